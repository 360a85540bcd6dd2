"""What every target promises, whatever is behind it: one suite over all kinds."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.targets import KINDS, PATIENCE_S, answers, append, ask, block, open_volume, run, target_of

from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.errors import TargetIdentityError, TargetIOError
from nvrstore.limits import BLOCK_BYTES, KEEPER_PIECE_BYTES, MIB
from nvrstore.targets.contract import UNAVAILABLE, LookResult, Request, Target, Verb
from nvrstore.targets.identity import ensure_journal, find_journal, identify, init_target
from nvrstore.targets.look import look_request, look_result
from nvrstore.targets.pool import Pool
from nvrstore.targets.steps import list_all, read_all

OTHER_ID = "f" * 32


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def target(kind: str, tmp_path: Path) -> Iterator[Target]:
    with target_of(kind, tmp_path) as made:
        yield made


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool(4 * MIB)
    yield made
    made.close()


def prepared(target: Target, length: int = MIB, path: str = "j/.next/p") -> None:
    assert ask(target, Verb.PREPARE, path, length=length).ok


def look(target: Target, counter: int, journals: tuple[str, ...] = ("j",)) -> LookResult:
    request = look_request(look_id="r1", counter=counter, journals=journals, target_id=run(target, identify("t")).id)
    return look_result(target.keeper.call(request, PATIENCE_S), "t")


# --- the appender


def test_a_volume_is_opened_under_its_name_and_takes_batches(target: Target, pool: Pool) -> None:
    """OPEN writes the header and moves the prepared file to its name, making its directory; APPEND follows without waiting."""
    prepared(target)
    appender = target.start_appender(pool)
    numbers = [open_volume(appender, pool)]
    numbers += [append(appender, block(pool, bytes([i]), 2), offset=(1 + 2 * i) * BLOCK_BYTES) for i in range(3)]
    numbers.append(appender.submit(Request(Verb.CLOSE, handle=1)))
    got = answers(appender, 5)
    assert [answer.number for answer in got] == numbers, "in order"
    assert all(answer.ok for answer in got)
    whole = run(target, read_all("t", "j/day/v.mp4", fresh=True))
    assert whole[: 7 * BLOCK_BYTES] == b"H" * BLOCK_BYTES + b"".join(bytes([i]) * 2 * BLOCK_BYTES for i in range(3))
    assert not any(whole[7 * BLOCK_BYTES :])
    assert run(target, list_all("t", "j/.next")) == []
    assert appender.close(PATIENCE_S)
    assert appender.gone()


def test_a_name_that_is_taken_is_never_opened_over(target: Target, pool: Pool) -> None:
    """OPEN answers EEXIST, the file that has the name stays as it is, and appends to the handle are refused."""
    prepared(target, path="j/.next/a")
    prepared(target, path="j/.next/b")
    appender = target.start_appender(pool)
    open_volume(appender, pool, handle=1, prepared="j/.next/a")
    open_volume(appender, pool, handle=2, prepared="j/.next/b")
    append(appender, block(pool, b"x"), offset=BLOCK_BYTES, handle=2)
    first, second, third = answers(appender, 3)
    assert (first.errno, second.errno, third.errno) == (0, errno.EEXIST, errno.EIO)
    assert run(target, read_all("t", "j/day/v.mp4"))[BLOCK_BYTES : 2 * BLOCK_BYTES] == bytes(BLOCK_BYTES)
    assert appender.close(PATIENCE_S)


def test_after_a_failed_append_the_rest_of_that_volume_is_refused_and_others_go_on(target: Target, pool: Pool) -> None:
    """An append that fails makes a hole: what was submitted behind it for the same volume must not follow."""
    prepared(target, path="j/.next/a")
    prepared(target, path="j/.next/b")
    appender = target.start_appender(pool)
    open_volume(appender, pool, handle=1, prepared="j/.next/a", name="j/day/a.mp4")
    open_volume(appender, pool, handle=2, prepared="j/.next/b", name="j/day/b.mp4")
    batch = block(pool, b"x")
    append(appender, batch, offset=BLOCK_BYTES + 1, handle=1)  # not on a block: fails
    append(appender, batch, offset=BLOCK_BYTES, handle=1)
    append(appender, batch, offset=BLOCK_BYTES, handle=2)
    appender.submit(Request(Verb.CLOSE, handle=1))
    got = [answer.errno for answer in answers(appender, 6)]
    assert got == [0, 0, errno.EINVAL, errno.EIO, 0, 0]
    assert appender.close(PATIENCE_S)


def test_an_append_without_a_volume_is_refused(target: Target, pool: Pool) -> None:
    """A handle that was never opened is EBADF; one that was closed too."""
    prepared(target)
    appender = target.start_appender(pool)
    append(appender, block(pool, b"x"), offset=0, handle=9)
    open_volume(appender, pool)
    appender.submit(Request(Verb.CLOSE, handle=1))
    append(appender, block(pool, b"x"), offset=BLOCK_BYTES, handle=1)
    assert [answer.errno for answer in answers(appender, 4)] == [errno.EBADF, 0, 0, errno.EBADF]
    assert appender.close(PATIENCE_S)


def test_an_extent_beyond_the_pool_is_never_read(target: Target, pool: Pool) -> None:
    """A request that points outside the shared memory is refused, not carried out with other bytes."""
    prepared(target)
    appender = target.start_appender(pool)
    open_volume(appender, pool)
    appender.submit(Request(Verb.APPEND, handle=1, offset=BLOCK_BYTES, extent=pool.size, length=BLOCK_BYTES))
    assert [answer.ok for answer in answers(appender, 2)] == [True, False]
    assert appender.close(PATIENCE_S)


def test_an_abandoned_appender_says_nothing_more_and_is_gone_in_the_end(target: Target, pool: Pool) -> None:
    """Its answers are dropped; once `gone` says so, its extents may be used again; a new appender goes on elsewhere."""
    prepared(target)
    appender = target.start_appender(pool)
    open_volume(appender, pool)
    answers(appender, 1)
    appender.abandon()
    assert appender.answers() == []
    while not appender.gone():  # bounded by the test's own timeout
        target.workers_stuck()
    prepared(target, path="j/.next/q")
    other = target.start_appender(pool)
    open_volume(other, pool, prepared="j/.next/q", name="j/day/w.mp4")
    assert answers(other, 1)[0].ok
    assert other.close(PATIENCE_S)


def test_an_idle_worker_runs_nothing(target: Target, pool: Pool) -> None:
    """`running_since_s` is None between calls: an idle worker is not a hung one."""
    prepared(target)
    appender = target.start_appender(pool)
    open_volume(appender, pool)
    answers(appender, 1)
    assert appender.running_since_s() is None
    assert target.keeper.running_since_s() is None
    assert appender.close(PATIENCE_S)


# --- the keeper: files


def test_what_is_written_is_read_back_plain_and_fresh_at_any_offset(target: Target) -> None:
    """WRITE, SYNC, READ; fresh reads go past the page cache also where offset and length are odd; reads end with the file."""
    content = bytes(range(256)) * 5000
    for at in range(0, len(content), 300_000):
        assert ask(target, Verb.WRITE, "f", offset=at, data=content[at : at + 300_000]).value == len(content[at : at + 300_000])
    assert ask(target, Verb.SYNC, "f").ok
    assert ask(target, Verb.SYNC, "").ok, "a directory is synced in the same way"
    for offset, length in ((0, 10), (4095, 2), (4096, 4096), (1, 999_999), (len(content) - 5, 100), (len(content), 10), (2_000_000, 10)):
        for fresh in (False, True):
            assert ask(target, Verb.READ, "f", offset=offset, length=length, fresh=fresh).data == content[offset : offset + length]


def test_requests_beyond_their_bounds_are_refused(target: Target) -> None:
    """No piece is larger than 1 MiB; no path leaves the root."""
    assert ask(target, Verb.READ, "target.json", length=KEEPER_PIECE_BYTES + 1).errno == errno.EINVAL
    assert ask(target, Verb.WRITE, "f", data=bytes(KEEPER_PIECE_BYTES + 1)).errno == errno.EINVAL
    assert ask(target, Verb.READ, "x" * 60_000, length=1).errno == errno.ENAMETOOLONG
    for path in ("../f", "/etc/passwd", "a/../../f"):
        assert ask(target, Verb.WRITE, path, data=b"x").errno == errno.EINVAL
        assert ask(target, Verb.READ, path, length=1).errno == errno.EINVAL


def test_prepare_takes_a_new_file_of_the_length_asked_for(target: Target) -> None:
    """Exclusive, its directories made, its space taken where the file system can."""
    answer = ask(target, Verb.PREPARE, "j/.next/p", length=MIB)
    assert answer.ok
    size = ask(target, Verb.STAT, "j/.next/p").json()["size"]
    assert size == (MIB if answer.value else 0)
    assert ask(target, Verb.PREPARE, "j/.next/p", length=MIB).errno == errno.EEXIST


def test_a_listing_is_sorted_complete_and_comes_in_pages(target: Target) -> None:
    """More names than one answer holds come in several, without a repetition; directories say so."""
    names = [f"{i:04d}" for i in range(503)]
    assert ask(target, Verb.MKDIR, "d/sub").ok
    for name in names:
        assert ask(target, Verb.WRITE, f"d/{name}", data=b"xy").ok
    assert ask(target, Verb.LIST, "d").value == 1
    entries = run(target, list_all("t", "d"))
    assert [entry.name for entry in entries] == [*names, "sub"]
    assert {(entry.size, entry.directory) for entry in entries} == {(2, False), (0, True)}


def test_names_are_moved_linked_and_removed(target: Target) -> None:
    """RENAME replaces, LINK does not, UNLINK and RMDIR say when there is nothing or too much."""
    for name in "ab":
        assert ask(target, Verb.PUT, name, data=name.encode()).ok
    assert ask(target, Verb.LINK, "a", "b").errno == errno.EEXIST
    assert ask(target, Verb.LINK, "a", "c").ok
    assert ask(target, Verb.RENAME, "a", "b").ok
    assert {name: run(target, read_all("t", name)) for name in "bc"} == {"b": b"a", "c": b"a"}
    assert ask(target, Verb.UNLINK, "a").errno == errno.ENOENT
    assert ask(target, Verb.UNLINK, "c").ok
    assert ask(target, Verb.MKDIR, "d/e").ok
    assert ask(target, Verb.MKDIR, "d/e").ok
    assert ask(target, Verb.RMDIR, "d").errno == errno.ENOTEMPTY
    assert ask(target, Verb.RMDIR, "d/e").ok
    assert ask(target, Verb.MKDIR, "b/x").errno == errno.ENOTDIR


def test_a_directory_is_renamed_with_what_is_in_it(target: Target) -> None:
    """Also while a file in it is being written."""
    assert ask(target, Verb.MKDIR, "d").ok
    assert ask(target, Verb.WRITE, "d/f", data=b"12").ok
    assert ask(target, Verb.RENAME, "d", "e").ok
    assert ask(target, Verb.WRITE, "e/f", offset=2, data=b"34").ok
    assert ask(target, Verb.SYNC, "e/f").ok
    assert run(target, read_all("t", "e/f")) == b"1234"
    assert ask(target, Verb.STAT, "d").errno == errno.ENOENT


def test_put_is_all_or_nothing_and_never_replaces(target: Target) -> None:
    """The content is there whole, or the name is somebody else's; no temporary file stays; its directory has to exist."""
    large = bytes(100_000)
    assert ask(target, Verb.PUT, "x", data=large).ok
    assert ask(target, Verb.PUT, "x", data=b"other").errno == errno.EEXIST
    assert run(target, read_all("t", "x")) == large
    assert [entry.name for entry in run(target, list_all("t", ""))] == ["target.json", "x"]
    assert ask(target, Verb.PUT, "no/dir", data=b"").errno == errno.ENOENT


def test_truncate_cuts_and_extends(target: Target) -> None:
    """To exactly the length asked for; what it adds is zero."""
    assert ask(target, Verb.PUT, "f", data=b"abcdef").ok
    assert ask(target, Verb.TRUNCATE, "f", length=3).ok
    assert ask(target, Verb.TRUNCATE, "f", length=5).ok
    assert run(target, read_all("t", "f")) == b"abc\0\0"
    assert ask(target, Verb.TRUNCATE, "none", length=1).errno == errno.ENOENT


def test_files_that_are_not_there_are_enoent_for_every_verb_that_needs_one(target: Target) -> None:
    """And a listing of a directory that is not there can be asked to be empty."""
    for verb in (Verb.READ, Verb.STAT, Verb.SYNC, Verb.LIST, Verb.UNLINK, Verb.RMDIR):
        assert ask(target, verb, "none", length=1).errno == errno.ENOENT, verb
    assert ask(target, Verb.RENAME, "none", "x").errno == errno.ENOENT
    assert run(target, list_all("t", "none", missing_ok=True)) == []
    with pytest.raises(TargetIOError, match="ENOENT"):
        run(target, list_all("t", "none"))


def test_space_is_told_in_bytes(target: Target) -> None:
    """Total and free, free not more than total."""
    space = ask(target, Verb.SPACE).json()
    assert 0 < space["free"] <= space["total"]
    assert space["inodes_free"] >= 0
    assert ask(target, Verb.ABOUT).json()["fstype"]


def test_many_callers_get_their_own_answers(target: Target) -> None:
    """More requests at once than a worker holds: each future gets the answer to its own request."""
    for i in range(8):
        assert ask(target, Verb.PUT, f"f{i}", data=bytes([i]) * 5000).ok
    futures = [(i % 8, target.keeper.submit(Request(Verb.READ, f"f{i % 8}", length=MIB))) for i in range(200)]
    assert all(future.result(PATIENCE_S).data == bytes([i]) * 5000 for i, future in futures)


def test_a_keeper_that_was_restarted_serves_on(target: Target) -> None:
    """Restart replaces the worker; what it was not asked is not lost."""
    assert ask(target, Verb.PUT, "f", data=b"1").ok
    assert target.keeper.restart()
    assert run(target, read_all("t", "f")) == b"1"


def test_a_closed_keeper_answers_unavailable(kind: str, tmp_path: Path) -> None:
    """Never an exception, never silence."""
    with target_of(kind, tmp_path) as target:
        assert target.keeper.close(PATIENCE_S)
        assert ask(target, Verb.SPACE).errno == UNAVAILABLE


def test_each_worker_takes_its_own_verbs_only(target: Target, pool: Pool) -> None:
    """Mixing them up is a mistake of the program, said at once."""
    appender = target.start_appender(pool)
    with pytest.raises(ValueError, match="READ"):
        appender.submit(Request(Verb.READ, "f"))
    with pytest.raises(ValueError, match="APPEND"):
        target.keeper.submit(Request(Verb.APPEND))
    assert appender.close(PATIENCE_S)


# --- looks and identity


def test_a_look_sees_identity_claims_and_its_own_counter(target: Target) -> None:
    """The counter is read back from the medium; the newest claim is the greatest name; dot files are none."""
    run(target, ensure_journal("t", "j", OTHER_ID))
    for name in ("t0001", "t0010", "t0009", ".tmp"):
        assert ask(target, Verb.PUT, f"j/epochs/{name}", data=b"{}").ok
    first = look(target, 1, ("j", "none"))
    second = look(target, 2)
    assert (first.counter, second.counter) == (1, 2)
    assert first.claims == {"j": "t0010", "none": ""}
    assert first.identity == second.identity == run(target, identify("t"))
    assert 0 < first.free_bytes <= first.total_bytes
    assert (first.counter_errno, second.counter_errno) == (0, 0)


def test_a_look_at_another_target_than_expected_writes_nothing(target: Target) -> None:
    """Swapped mounts: the identity is reported, and no counter is left on a stranger's disk."""
    request = look_request(look_id="r1", counter=1, journals=(), target_id=OTHER_ID)
    seen = look_result(target.keeper.call(request, PATIENCE_S), "t")
    assert seen.identity == run(target, identify("t"))
    assert seen.counter == 0
    assert ask(target, Verb.STAT, "looks").errno == errno.ENOENT


def test_without_identity_nothing_is_written(kind: str, tmp_path: Path, pool: Pool) -> None:
    """A bare mount point is never filled by mistake: every verb that would change it answers ENODEV."""
    with target_of(kind, tmp_path, initialised=False) as target:
        for verb in (Verb.PREPARE, Verb.WRITE, Verb.PUT, Verb.MKDIR, Verb.TRUNCATE, Verb.UNLINK, Verb.RMDIR):
            assert ask(target, verb, "f", length=BLOCK_BYTES, data=b"x").errno == errno.ENODEV, verb
        for verb in (Verb.RENAME, Verb.LINK):
            assert ask(target, verb, "f", "g").errno == errno.ENODEV, verb
        appender = target.start_appender(pool)
        open_volume(appender, pool)
        assert answers(appender, 1)[0].errno == errno.ENODEV
        assert appender.close(PATIENCE_S)
        seen = look_result(target.keeper.call(look_request(look_id="r", counter=1, journals=(), target_id=OTHER_ID), PATIENCE_S), "t")
        assert seen.identity is None
        assert run(target, list_all("t", "")) == []
        with pytest.raises(TargetIdentityError, match=r"no target\.json") as caught:
            run(target, identify("t"))
        assert "target init" in caught.value.hint


def test_the_first_hard_failure_is_stamped_until_a_look_goes_well(kind: str, tmp_path: Path) -> None:
    """By the worker that made the call, on everybody's monotonic clock; what a healthy target refuses is no failure of the target."""
    with target_of(kind, tmp_path, initialised=False) as target:
        assert ask(target, Verb.READ, "f", length=1).errno == errno.ENOENT
        assert target.first_failure_s() is None
        before_s = SYSTEM_CLOCK.monotonic_s()
        assert ask(target, Verb.PREPARE, "f", length=BLOCK_BYTES).errno == errno.ENODEV
        first_s = target.first_failure_s()
        assert first_s is not None
        assert before_s <= first_s <= SYSTEM_CLOCK.monotonic_s()
        assert ask(target, Verb.WRITE, "f", data=b"x").errno == errno.ENODEV
        assert target.first_failure_s() == first_s
        run(target, init_target("t"))
        look(target, 1)
        assert target.first_failure_s() is None


def test_init_makes_a_target_once(kind: str, tmp_path: Path) -> None:
    """An empty directory becomes a target; one that is a target already is refused with its id."""
    with target_of(kind, tmp_path, initialised=False) as target:
        made = run(target, init_target("t"))
        assert run(target, identify("t", expected_id=made.id)) == made
        with pytest.raises(TargetIdentityError, match=made.id):
            run(target, init_target("t"))
        with pytest.raises(TargetIdentityError, match="expected"):
            run(target, identify("t", expected_id=OTHER_ID))


def test_two_journals_of_one_name_are_refused(target: Target) -> None:
    """The name belongs to the journal whose id stands in journal.json; asking again with that id is fine."""
    assert run(target, find_journal("t", "main")) is None
    assert run(target, ensure_journal("t", "main", OTHER_ID)) == OTHER_ID
    assert run(target, ensure_journal("t", "main", OTHER_ID)) == OTHER_ID
    assert run(target, find_journal("t", "main")) == OTHER_ID
    with pytest.raises(TargetIdentityError, match="main"):
        run(target, ensure_journal("t", "main", "e" * 32))
    assert {entry.name for entry in run(target, list_all("t", "main"))} == {".next", "epochs", "journal.json", "trash"}


def test_a_target_at_rest_has_no_worker_and_starts_none_before_it_is_woken(target: Target, pool: Pool) -> None:
    """What was handed over is done first; afterwards nothing of ours is open there, and everybody is told so."""
    prepared(target)
    appender = target.start_appender(pool)
    open_volume(appender, pool)
    append(appender, block(pool, b"x"), offset=BLOCK_BYTES)
    appender.submit(Request(Verb.CLOSE, handle=1))
    last = target.keeper.submit(Request(Verb.PREPARE, "j/.next/q", length=MIB))
    target.keeper.rest()
    assert all(answer.ok for answer in answers(appender, 3))
    assert last.result(PATIENCE_S).ok
    appender.wind_up()
    pause = threading.Event()
    deadline_s = SYSTEM_CLOCK.monotonic_s() + PATIENCE_S
    while not (appender.gone() and target.at_rest()):
        assert SYSTEM_CLOCK.monotonic_s() < deadline_s
        pause.wait(0.01)
    assert appender.close(PATIENCE_S)
    assert ask(target, Verb.STAT, "j/day/v.mp4").errno == UNAVAILABLE
    assert not target.keeper.restart()
    assert target.at_rest()
    assert target.workers_stuck() == 0
    target.keeper.wake()
    assert ask(target, Verb.STAT, "j/day/v.mp4").ok
    assert ask(target, Verb.STAT, "j/.next/q").ok
    again = target.start_appender(pool)
    assert not target.at_rest()
    assert again.close(PATIENCE_S)
