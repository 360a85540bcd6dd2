"""Resync: what is copied, and what interruption, damage and conflicts do to it."""

from __future__ import annotations

import errno
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.copies import (
    MINE,
    flipped,
    make_volume,
    path_of,
    plan,
    recover,
    run,
    series,
    store,
    targets_with_claim,
    volumes,
)
from tests.support.steps import Stopped, content, drive, put, tree

from nvrstore.errors import FencedError
from nvrstore.failover.terms import Claim
from nvrstore.limits import KEEPER_PIECE_BYTES, MIB
from nvrstore.model import Epoch, Record, RecordKind
from nvrstore.replicate.claim import put_claim
from nvrstore.replicate.copying import ConflictError, Progress, drop_parts, part_path
from nvrstore.replicate.resync import Pace, resync
from nvrstore.targets.contract import UNAVAILABLE, Answer, Call, Request, Verb


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


def test_the_time_that_is_left_follows_from_the_pace_so_far() -> None:
    """Nothing is promised before anything is done; more than was thought is no time in the past."""
    assert Progress(bytes_total=1000).seconds_left(10.0) is None
    assert Progress(bytes_total=1000, bytes_done=250).seconds_left(10.0) == 30
    assert Progress(bytes_total=1000, bytes_done=1100).seconds_left(10.0) == 0


def test_an_interrupted_copy_is_continued_after_it_was_checked() -> None:
    """Stopped before each of its changes with the power cut, it comes to the same end; what was synced is not written again."""
    for count in range(60):
        targets = targets_with_claim("ab")
        volume = make_volume(targets, "ab", batches=6, closed=True, sizes=60_000)  # a piece each
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
    volume = make_volume(targets, "abc", batches=6, closed=True, sizes=60_000)
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


def test_small_batches_are_copied_many_at_once() -> None:
    """What costs time is a call, not a batch; a damaged one among them is still mended from the other copy."""
    targets = targets_with_claim("abc")
    volume = make_volume(targets, "abc", batches=50, closed=True)
    place = volume.batches[20].entries[0]
    path = store(targets, volume, a=flipped(volume.data, volume.batches[20].offset + place.offset + 90), b=volume.data)
    writes = 0

    def count(request: Request) -> int:
        nonlocal writes
        writes += request.verb is Verb.WRITE
        return 0

    the_plan = plan(targets, "abc")
    targets["c"].fault = count
    report = run(targets, the_plan)
    assert content(targets["c"], path) == volume.data
    assert report.copied[0].damage == ()
    assert writes < 10


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


@settings(max_examples=20, deadline=None)
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
    assert Pace(KEEPER_PIECE_BYTES / 4).delay_s(piece, 5.0) == 3.0  # a slow pace has no burst of seconds
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
