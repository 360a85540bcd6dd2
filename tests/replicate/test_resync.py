"""Resync: what is planned, what is copied, what interruption, damage and conflicts do to it."""

from __future__ import annotations

import errno
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.copies import MINE, Targets, cut_at, flipped, look, make_volume, path_of, recover, store, targets_with_claim
from tests.support.steps import Stopped, content, drive, put, tree
from tests.support.volumes import Volume

from nvrstore.errors import FencedError, TargetUnavailableError
from nvrstore.failover.terms import Claim
from nvrstore.journal.names import VolumeName
from nvrstore.limits import KEEPER_PIECE_BYTES, MIB
from nvrstore.model import Epoch, Record, RecordKind
from nvrstore.replicate.claim import put_claim
from nvrstore.replicate.copying import ConflictError, Progress, drop_parts, part_path
from nvrstore.replicate.floor import Floor
from nvrstore.replicate.inventory import Known, list_volumes, survey
from nvrstore.replicate.resync import Pace, ResyncPlan, ResyncReport, plan_resync, resync
from nvrstore.targets.contract import UNAVAILABLE, Answer, Call, Request, Verb


def plan(targets: Targets, members: str, **options: object) -> ResyncPlan:
    return plan_resync(look(targets), list(members), recorder="nvr-1", held_s=0, **options)  # type: ignore[arg-type]


def run(targets: Targets, the_plan: ResyncPlan, *, changes_max: int | None = None, progress: Progress | None = None) -> ResyncReport:
    return drive(resync(the_plan.copies, own=MINE.key, progress=progress), targets, changes_max=changes_max)


def volumes(targets: Targets, name: str) -> dict[str, bytes]:
    return {path: data for path, data in tree(targets[name]).items() if path.endswith(".mp4")}


def series(targets: Targets, count: int, *, first: int = 0, sizes: int = 40) -> list[Volume]:
    return [make_volume(targets, "".join(targets)[:2], batches=2, number=first + n, closed=True, sizes=sizes) for n in range(count)]


# --- inventory


def test_copies_of_one_volume_are_brought_together() -> None:
    """By the id in the header, in the order of writing, over many pages of a listing."""
    targets = targets_with_claim("ab")
    many = series(targets, 3)
    store(targets, many[0], a=many[0].data)
    store(targets, many[1], a=many[1].data, b=many[1].data)
    store(targets, many[2], b=cut_at(many[2], 0))
    put(targets["a"], "main/2026-11-23/notes.txt", b"x")
    put(targets["a"], "main/.next/abc", b"x")
    seen = look(targets)
    assert [(v.name.number, "".join(v.copies), v.settled) for v in seen.volumes] == [(0, "a", True), (1, "ab", True), (2, "b", False)]
    assert [v.header is None for v in seen.volumes] == [True, True, False], "headers are large: only open volumes keep theirs"


def test_a_target_that_does_not_answer_is_named_and_the_others_are_listed() -> None:
    """Half a listing is none."""
    targets = targets_with_claim("ab")
    [one] = series(targets, 1)
    store(targets, one, a=one.data, b=one.data)
    lists = 0

    def second(request: Request) -> int:
        nonlocal lists
        lists += request.verb is Verb.LIST
        return UNAVAILABLE if lists >= 2 else 0

    targets["b"].fault = second
    seen = look(targets)
    assert seen.answered == ("a",)
    assert isinstance(seen.failed["b"], TargetUnavailableError)
    assert set(seen.volumes[0].copies) == {"a"}


def test_what_the_catalog_knows_is_not_read_again() -> None:
    """A closed copy of the known length costs no read; any other length does."""
    targets = targets_with_claim("a")
    one, two = series(targets, 2)
    store(targets, one, a=one.data)
    store(targets, two, a=two.data)
    known = {
        ("a", path_of(one)): Known(one.builder.header.volume_id, len(one.data)),
        ("a", path_of(two)): Known(two.builder.header.volume_id, 4096),
    }
    reads: list[str] = []

    def note(call: Call, answer: Answer) -> None:
        if call.request.verb is Verb.READ:
            reads.append(call.request.path)

    seen = drive(survey(["a"], "main", known), targets, seen=note)
    assert set(reads) == {path_of(two)}
    assert [(v.volume_id, v.settled) for v in seen.volumes] == [(v.builder.header.volume_id, True) for v in (one, two)]


def test_a_file_that_vanishes_while_it_is_listed_is_no_error() -> None:
    """Retention goes on beside it."""
    targets = targets_with_claim("a")
    one, two = series(targets, 2)
    store(targets, one, a=one.data)
    store(targets, two, a=two.data)
    targets["a"].fault = lambda r: errno.ENOENT if r.verb is Verb.READ and r.path == path_of(one) else 0
    assert [v.name.number for v in look(targets).volumes] == [1]
    assert len(drive(list_volumes("a", "main"), targets)) == 2


# --- plan


def test_members_get_what_they_lack_newest_first() -> None:
    """In both directions; who lacks nothing is synced."""
    targets = targets_with_claim("abc")
    many = series(targets, 4)
    for number, names in enumerate(["a", "b", "ab", "a"]):
        store(targets, many[number], **dict.fromkeys(names, many[number].data))
    the_plan = plan(targets, "ab")
    jobs = [(job.volume.name.number, job.target, job.sources) for job in the_plan.copies]
    assert jobs == [
        (3, "b", ("a",)),
        (1, "a", ("b",)),
        (0, "b", ("a",)),
    ]
    assert the_plan.synced == frozenset()
    run(targets, the_plan)
    assert volumes(targets, "a") == volumes(targets, "b") == {path_of(v): bytes(v.data) for v in many}
    again = plan(targets, "ab")
    assert again.copies == ()
    assert again.synced == {"a", "b"}
    assert volumes(targets, "c") == {}


def test_what_expired_does_not_come_back() -> None:
    """Under the journal's floor nobody gets it, under a target's floor that target does not."""
    targets = targets_with_claim("ab")
    many = series(targets, 3)
    for volume in many:
        store(targets, volume, b=volume.data)
    names = [c.name for c in drive(list_volumes("b", "main"), targets)]
    the_plan = plan(targets, "ab", floors={"*": Floor().raised(names[:1]), "a": Floor().raised(names[:2])})
    assert [job.volume.name.number for job in the_plan.copies] == [2]
    assert plan(targets, "ab", floors={"b": Floor().raised(names)}).synced == {"b"}
    assert plan(targets, "ab", floors={"a": Floor().raised(names)}).synced == {"a", "b"}


def test_the_policy_decides_what_a_standby_gets() -> None:
    """A window is a predicate."""
    targets = targets_with_claim("ab")
    many = series(targets, 3)
    for volume in many:
        store(targets, volume, a=volume.data)
    the_plan = plan(targets, "ab", wanted=lambda volume, target: target == "a" or volume.name.number >= 2)
    assert [job.volume.name.number for job in the_plan.copies] == [2]


def test_volumes_that_are_written_now_are_left_alone() -> None:
    """Not copied, not recovered; a member that has no part in them is not synced yet."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "a", batches=2)
    path = store(targets, volume, a=volume.data)
    the_plan = plan(targets, "ab", busy={path})
    assert (the_plan.copies, the_plan.recover, the_plan.synced) == ((), (), frozenset({"a"}))


def test_what_only_a_target_that_is_away_has_is_lacking() -> None:
    """The catalog knows of it: nobody is called synced before it was copied."""
    targets = targets_with_claim("ab")
    one, two = series(targets, 2)
    store(targets, one, a=one.data, b=one.data)
    name = VolumeName(path_of(two), "main", "2026-11-23", "07-45-10", 8, "9f2c41aa", 0, 1)
    known = {two.builder.header.volume_id: name, one.builder.header.volume_id: name}
    assert plan(targets, "ab").synced == {"a", "b"}
    assert plan(targets, "ab", known=known).synced == frozenset()
    assert plan(targets, "ab", known=known, floors={"*": Floor().raised([name])}).synced == {"a", "b"}


def test_unsettled_volumes_are_recovered_first_and_copied_then() -> None:
    """One that cannot be closed yet, since a member is away, is copied as far as it goes."""
    targets = targets_with_claim("abc")
    volume = make_volume(targets, "ac", batches=3)
    path = store(targets, volume, a=volume.data + bytes(8192))
    targets["c"].fault = lambda request: UNAVAILABLE
    first = plan(targets, "ab")
    assert [v.name.number for v in first.recover] == [42]
    assert first.copies == ()
    [result] = recover(targets)
    held = {result.volume_id: result.holders}
    second = plan(targets, "ab", held=held)
    run(targets, second)
    assert content(targets["b"], path) == content(targets["a"], path) == volume.data
    targets["c"].fault = None
    recover(targets)
    assert plan(targets, "ab").synced == {"a", "b"}
    assert volumes(targets, "a") == volumes(targets, "b")


def test_the_refuge_comes_first_and_is_released_when_everybody_has_it() -> None:
    """What lies on the state disk alone is the most urgent; its copy goes only after the others are durable."""
    targets = targets_with_claim("abr")
    many = series(targets, 3)
    store(targets, many[0], r=many[0].data)
    store(targets, many[1], a=many[1].data)
    store(targets, many[2], a=many[2].data)
    first = plan(targets, "ab", refuge="r")
    assert [(job.volume.name.number, job.target) for job in first.copies] == [(0, "a"), (0, "b"), (2, "b"), (1, "b")]
    assert first.release == ()
    drive(resync(first.copies[:1], own=MINE.key), targets)
    assert plan(targets, "ab", refuge="r").release == (), "b still lacks it"
    run(targets, first)
    second = plan(targets, "ab", refuge="r")
    assert [v.name.number for v in second.release] == [0]
    assert second.copies == ()
    assert plan(targets, "", refuge="r").release == (), "while no member lives nothing is released"


# --- copy


def test_a_copy_is_byte_equal_durable_and_leaves_nothing_behind() -> None:
    """In pieces of at most 1 MiB, under its name only when all of it is synced."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "ab", batches=3, closed=True, sizes=200_000)
    assert max(b.length for b in volume.batches) > MIB
    path = store(targets, volume, a=volume.data)
    progress = Progress()
    report = run(targets, plan(targets, "ab"), progress=progress)
    targets["b"].crash()
    assert content(targets["b"], path) == volume.data
    assert [c.path for c in report.copied] == [path]
    assert (progress.volumes_done, progress.volumes_total, progress.current) == (1, 1, "")
    assert 0.9 * len(volume.data) < progress.bytes_done <= progress.bytes_total == len(volume.data)
    assert not [p for p in tree(targets["b"]) if ".part" in p]


def test_an_interrupted_copy_is_continued_after_it_was_checked() -> None:
    """Stopped before each of its changes with the power cut, it comes to the same end; what was synced is not written again."""
    for count in range(60):
        targets = targets_with_claim("ab")
        volume = make_volume(targets, "ab", batches=6, closed=True, sizes=3000)
        path = store(targets, volume, a=volume.data)
        finished = True
        try:
            run(targets, plan(targets, "ab"), changes_max=count)
        except Stopped:
            finished = False
        if count % 2:
            targets["b"].crash(Random(count))
        assert path not in tree(targets["b"]) or content(targets["b"], path) == volume.data
        part = part_path("main", volume.builder.header.volume_id)
        there = content(targets["b"], part) if part in tree(targets["b"]) else b""
        report = run(targets, plan(targets, "ab"))
        assert content(targets["b"], path) == volume.data
        if count % 2 == 0 and there:
            whole = max([0, *(b.end for b in volume.batches if there[: b.end] == volume.data[: b.end])])
            assert sum(c.bytes_written for c in report.copied) <= len(volume.data) - whole
        if finished:
            assert count > 8
            return
    raise AssertionError("it never came to its end")


def test_a_partial_file_of_something_else_is_not_believed() -> None:
    """Whatever lies under the temporary name, the copy is right."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "ab", batches=4, closed=True)
    path = store(targets, volume, a=volume.data)
    broken = flipped(volume.data, volume.batches[1].offset + 300) + bytes(100_000)
    put(targets["b"], part_path("main", volume.builder.header.volume_id), broken)
    run(targets, plan(targets, "ab"))
    assert content(targets["b"], path) == volume.data


def test_damage_at_the_source_is_taken_from_another_source() -> None:
    """Each batch is checked before it is written anywhere."""
    targets = targets_with_claim("abc")
    volume = make_volume(targets, "abc", batches=4, closed=True)
    spots = [volume.batches[n].offset + volume.batches[n].entries[0].offset + 80 for n in (1, 2)]
    path = store(targets, volume, a=flipped(volume.data, spots[0]), b=flipped(volume.data, spots[1]))
    report = run(targets, plan(targets, "abc"))
    assert content(targets["c"], path) == volume.data
    assert report.copied[0].damage == ()


def test_damage_that_no_source_can_mend_is_copied_and_said() -> None:
    """The rest of the volume is worth a second copy all the same."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "ab", batches=4, closed=True)
    data = flipped(volume.data, volume.batches[1].offset + volume.batches[1].entries[0].offset + 80)
    path = store(targets, volume, a=data)
    report = run(targets, plan(targets, "ab"))
    assert content(targets["b"], path) == data
    assert [d.batch for d in report.copied[0].damage] == [1]


def test_a_source_that_dies_in_the_middle_is_replaced_by_another() -> None:
    """The copy goes on from the other source."""
    targets = targets_with_claim("abc")
    volume = make_volume(targets, "abc", batches=6, closed=True)
    path = store(targets, volume, a=volume.data, b=volume.data)
    the_plan = plan(targets, "abc")
    reads = 0

    def dies(request: Request) -> int:
        nonlocal reads
        reads += request.verb is Verb.READ
        return UNAVAILABLE if reads > 8 else 0

    targets["a"].fault = dies
    run(targets, the_plan)
    assert reads > 8
    assert content(targets["c"], path) == volume.data


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, UNAVAILABLE])
def test_a_destination_that_fails_stops_no_other(code: int) -> None:
    """It gets no further jobs in this run; the others get theirs."""
    targets = targets_with_claim("abc")
    many = series(targets, 3)
    for volume in many:
        store(targets, volume, a=volume.data)
    writes = 0

    def fails(request: Request) -> int:
        nonlocal writes
        writes += request.verb is Verb.WRITE
        return code if request.verb is Verb.WRITE else 0

    the_plan = plan(targets, "abc")
    targets["b"].fault = fails
    report = run(targets, the_plan)
    assert volumes(targets, "c") == volumes(targets, "a")
    assert writes == 1
    assert {target for target, _ in report.failed} == {"b"}
    assert len(report.failed) == 3
    targets["b"].fault = None
    run(targets, plan(targets, "abc"))
    assert volumes(targets, "b") == volumes(targets, "a")


def test_a_superseded_writer_names_no_copy() -> None:
    """The claim that arrives while the copy is under way is seen before the rename."""
    targets = targets_with_claim("ab")
    [volume] = series(targets, 1)
    path = store(targets, volume, a=volume.data)

    def supersede(call: Call, answer: Answer) -> None:
        if call.request.verb is Verb.SYNC and ".part" in call.request.path:
            drive(put_claim("b", Claim("main", 10, "nvr-2", "b" * 32, 1, 0)), targets)

    report = drive(resync(plan(targets, "ab").copies, own=MINE.key), targets, seen=supersede)
    assert path not in tree(targets["b"])
    assert [type(error) for error in report.failed.values()] == [FencedError]


def test_other_bytes_under_the_same_name_are_never_overwritten() -> None:
    """Two volumes with one path on two targets: a conflict in the plan, and nothing is copied over either."""
    targets = targets_with_claim("abc")
    one = make_volume(targets, "ab", batches=2, closed=True, volume_id="1" * 32)
    other = make_volume(targets, "ab", batches=3, closed=True, volume_id="2" * 32)
    path = store(targets, one, a=one.data)
    assert path == store(targets, other, b=other.data)
    the_plan = plan(targets, "ab")
    assert the_plan.conflicts == (path,)
    assert the_plan.copies == ()
    assert the_plan.synced == frozenset()
    before = {name: tree(target) for name, target in targets.items()}
    run(targets, the_plan)
    assert {name: tree(target) for name, target in targets.items()} == before


def test_a_file_that_appears_where_the_copy_should_go_stays() -> None:
    """It is looked for before the rename, which would replace it."""
    targets = targets_with_claim("ab")
    [volume] = series(targets, 1)
    path = store(targets, volume, a=volume.data)
    the_plan = plan(targets, "ab")
    put(targets["b"], path, b"somebody else's")
    report = run(targets, the_plan)
    assert content(targets["b"], path) == b"somebody else's"
    assert [type(error) for error in report.failed.values()] == [ConflictError]


def test_a_file_that_appears_while_the_copy_is_under_way_stays_too() -> None:
    """It is looked for once more, right before the name is given."""
    targets = targets_with_claim("ab")
    [volume] = series(targets, 1)
    path = store(targets, volume, a=volume.data)

    def appear(call: Call, answer: Answer) -> None:
        if call.request.verb is Verb.SYNC and ".part" in call.request.path:
            put(targets["b"], path, b"somebody else's")

    report = drive(resync(plan(targets, "ab").copies, own=MINE.key), targets, seen=appear)
    assert content(targets["b"], path) == b"somebody else's"
    assert [type(error) for error in report.failed.values()] == [ConflictError]


def test_a_split_pair_with_equal_terms_is_merged_and_nothing_overwritten() -> None:
    """Two writers recorded apart under one term: both sides' volumes end up on both targets, byte for byte."""
    targets = targets_with_claim("ab")
    left = [make_volume(targets, "a", batches=2, number=n, closed=n < 2, volume_id=f"a{n:031x}", session=1 << 40) for n in range(3)]
    right = [make_volume(targets, "b", batches=2, number=n, closed=n < 2, volume_id=f"b{n:031x}", session=2 << 40) for n in range(3)]
    assert {v.builder.header.epoch for v in (*left, *right)} == {Epoch(8, 3)}
    for volume in left:
        store(targets, volume, a=volume.data)
    for volume in right:
        store(targets, volume, b=volume.data)
    recover(targets)
    before = {**volumes(targets, "a"), **volumes(targets, "b")}
    assert len(before) == 6
    run(targets, plan(targets, "ab"))
    assert volumes(targets, "a") == volumes(targets, "b") == before
    assert plan(targets, "ab").synced == {"a", "b"}


def test_leftovers_of_copies_that_are_no_longer_wanted_go() -> None:
    """Those of volumes that are still to be copied stay, to be continued."""
    targets = targets_with_claim("a")
    put(targets["a"], part_path("main", "1" * 32), b"x")
    put(targets["a"], part_path("main", "2" * 32), b"y")
    assert drive(drop_parts("a", "main", ["2" * 32]), targets) == 1
    assert part_path("main", "2" * 32) in tree(targets["a"])
    assert drive(drop_parts("a", "other"), targets) == 0


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "b", "c", "ab", "bc", "abc"]), min_size=1, max_size=6),
    st.integers(0, 1 << 16),
    st.lists(st.integers(0, 40), max_size=4),
)
def test_however_often_it_is_interrupted_all_members_end_with_the_union(places: list[str], seed: int, stops: list[int]) -> None:
    """Idempotent and restartable at any call, with the power cut on every target in between."""
    rng = Random(seed)
    targets = targets_with_claim("abc")
    expected = {}
    for number, names in enumerate(places):
        volume = make_volume(targets, names, batches=2, number=number, closed=rng.random() < 0.7, sizes=1500)
        data = bytes(volume.data)
        store(targets, volume, **dict.fromkeys(names, data))
        if len(data) % 4096 == 0:
            expected[path_of(volume)] = data[: volume.batches[-1].end]
    for changes_max in (*stops, None):
        try:
            recover(targets, changes_max=changes_max)
            run(targets, plan(targets, "abc"), changes_max=changes_max)
        except Stopped:
            pass
        for target in targets.values():
            target.crash(rng)
    assert plan(targets, "abc").synced == {"a", "b", "c"}
    assert volumes(targets, "a") == volumes(targets, "b") == volumes(targets, "c")
    assert {path: data[: len(expected[path])] for path, data in volumes(targets, "a").items()} == expected


# --- pace


def test_the_pace_holds_on_average_and_lets_a_burst_pass() -> None:
    """A simulation of a thousand pieces at 10 MB/s: neither faster, nor slower than that."""
    pace = Pace(10e6)
    piece = Call("a", Request(Verb.WRITE, "x", data=bytes(KEEPER_PIECE_BYTES)))
    now_s, waited = 0.0, 0.0
    for _ in range(1000):
        delay_s = pace.delay_s(piece, now_s)
        assert pace.delay_s(Call("a", Request(Verb.READ, "x", length=KEEPER_PIECE_BYTES)), now_s) == delay_s
        now_s += delay_s + 0.01
        waited += delay_s
    expected_s = 1000 * KEEPER_PIECE_BYTES / 10e6
    assert expected_s * 0.99 < now_s < expected_s * 1.01
    assert Pace(10e6).delay_s(piece, 5.0) == 0.0
    with pytest.raises(ValueError, match="pace"):
        Pace(0)


def test_a_record_of_a_volume_travels_with_it() -> None:
    """Ledger records are in batches: a copy has them too."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "ab", batches=1)
    volume.add([], [Record(RecordKind.MARK, "m1", {"stream": "gate"})])
    volume.close()
    path = store(targets, volume, a=volume.data)
    run(targets, plan(targets, "ab"))
    assert content(targets["b"], path) == volume.data
