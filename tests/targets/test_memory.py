"""The model of a target: it hangs, thaws, loses power and runs full as real ones do, without waiting for anything."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from random import Random

import pytest
from tests.support.targets import append, ask, block, open_volume, run

from nvrstore.clock import ManualClock
from nvrstore.errors import TargetUnavailableError
from nvrstore.limits import ABANDONED_WORKERS_MAX, BLOCK_BYTES, MIB
from nvrstore.targets.contract import UNAVAILABLE, Answer, Request, Verb
from nvrstore.targets.look import look_request, look_result
from nvrstore.targets.memory import MemoryTarget
from nvrstore.targets.memory_appender import MemoryAppender
from nvrstore.targets.pool import Pool
from nvrstore.targets.steps import list_all, read_all


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool(4 * MIB)
    yield made
    made.close()


@pytest.fixture
def target() -> MemoryTarget:
    made = MemoryTarget("t", clock=ManualClock())
    assert ask(made, Verb.PREPARE, "j/.next/p", length=MIB).ok
    return made


def opened(target: MemoryTarget, pool: Pool) -> MemoryAppender:
    appender = target.start_appender(pool)
    open_volume(appender, pool)
    assert appender.answers()[0].ok
    return appender


def volume(target: MemoryTarget) -> bytes:
    return run(target, read_all("t", "j/day/v.mp4", fresh=True))


def test_answers_are_there_when_submit_returns(target: MemoryTarget, pool: Pool) -> None:
    """No thread, no waiting: an engine test runs in one breath."""
    appender = opened(target, pool)
    number = append(appender, block(pool, b"x"), offset=BLOCK_BYTES)
    assert appender.answers() == [Answer(number, 0, BLOCK_BYTES)]


def test_held_requests_wait_in_order_and_their_age_is_told(target: MemoryTarget, pool: Pool) -> None:
    """As on a hung disk: nothing is written, nothing answered, the head of the line counts as running since it got there."""
    clock = target.clock
    assert isinstance(clock, ManualClock)
    appender = opened(target, pool)
    target.hold()
    began_s = clock.monotonic_s()
    first = append(appender, block(pool, b"a"), offset=BLOCK_BYTES)
    second = append(appender, block(pool, b"b"), offset=2 * BLOCK_BYTES)
    clock.advance(3)
    assert appender.running_since_s() == began_s
    assert (appender.answers(), target.pending()) == ([], 2)
    assert target.step() == 1
    assert [answer.number for answer in appender.answers()] == [first]
    assert appender.running_since_s() == clock.monotonic_s()
    target.release()
    assert [answer.number for answer in appender.answers()] == [second]
    assert appender.running_since_s() is None


def test_a_late_write_takes_what_is_in_the_memory_then(target: MemoryTarget, pool: Pool) -> None:
    """The hazard that the rule of extents exists for: after a thaw, an abandoned worker writes newer bytes at the old offset."""
    appender = opened(target, pool)
    extent = block(pool, b"a")
    target.hold()
    append(appender, extent, offset=BLOCK_BYTES)
    append(appender, extent, offset=2 * BLOCK_BYTES)
    appender.abandon()
    assert not appender.gone()
    assert target.workers_stuck() == 1
    pool.view(extent)[:] = b"b" * BLOCK_BYTES
    target.release()
    assert appender.gone()
    assert target.workers_stuck() == 0
    assert volume(target)[BLOCK_BYTES : 3 * BLOCK_BYTES] == b"b" * BLOCK_BYTES + bytes(BLOCK_BYTES), "the running call only"
    assert appender.answers() == []


def test_a_write_may_be_done_and_its_answer_outstanding(target: MemoryTarget, pool: Pool) -> None:
    """`perform` carries out without answering: what was durable and not acknowledged must be found by a recovery."""
    appender = opened(target, pool)
    target.hold()
    append(appender, block(pool, b"a"), offset=BLOCK_BYTES)
    assert target.perform() == 1
    assert appender.answers() == []
    assert volume_held(target)[BLOCK_BYTES : 2 * BLOCK_BYTES] == b"a" * BLOCK_BYTES


def volume_held(target: MemoryTarget) -> bytes:
    return target.files.file("j/day/v.mp4").read(0, MIB, fresh=True)


def test_a_power_cut_keeps_the_synced_and_loses_the_rest(target: MemoryTarget, pool: Pool) -> None:
    """Appends are durable when answered; a WRITE is not before its SYNC, nor its name before its directory's."""
    opened(target, pool)
    assert ask(target, Verb.WRITE, "synced", data=b"old").ok
    assert ask(target, Verb.SYNC, "synced").ok
    assert ask(target, Verb.SYNC, "").ok
    assert ask(target, Verb.WRITE, "synced", offset=1, data=b"new").ok
    target.crash()
    assert run(target, read_all("t", "synced")) == b"old"
    assert volume(target)[:BLOCK_BYTES] == b"H" * BLOCK_BYTES


def test_a_name_that_was_never_synced_goes_with_the_power(target: MemoryTarget) -> None:
    """The mistake that only a crash shows: a file is synced, its directory is not."""
    assert ask(target, Verb.WRITE, "f", data=b"x").ok
    assert ask(target, Verb.SYNC, "f").ok
    target.crash()
    assert ask(target, Verb.STAT, "f").errno == errno.ENOENT


def test_a_power_cut_tears_the_running_append_by_sectors(target: MemoryTarget, pool: Pool) -> None:
    """With a seed, chance decides which of its sectors arrived: neither all nor none, and nothing outside of it."""
    appender = opened(target, pool)
    target.hold()
    append(appender, block(pool, b"x", 8), offset=BLOCK_BYTES)
    target.crash(Random(1))
    target.release()
    after = volume(target)
    torn = after[BLOCK_BYTES : 9 * BLOCK_BYTES]
    sectors = {torn[at : at + 512] for at in range(0, len(torn), 512)}
    assert sectors == {b"x" * 512, bytes(512)}
    assert after[:BLOCK_BYTES] == b"H" * BLOCK_BYTES
    assert not any(after[9 * BLOCK_BYTES :])
    assert [(answer.errno, answer.value) for answer in appender.answers()] == [(errno.ESRCH, -1)]
    assert appender.gone()


def test_after_a_failed_sync_the_cache_shows_what_the_disk_does_not_have(target: MemoryTarget) -> None:
    """A plain read sees the new bytes, a fresh one the old; the next sync succeeds, and means nothing."""
    assert ask(target, Verb.PUT, "f", data=b"old").ok
    assert ask(target, Verb.WRITE, "f", data=b"new").ok
    target.fault = lambda request: errno.EIO if request.verb is Verb.SYNC else 0
    assert ask(target, Verb.SYNC, "f").errno == errno.EIO
    target.fault = None
    assert ask(target, Verb.SYNC, "f").ok
    assert run(target, read_all("t", "f")) == b"new"
    assert run(target, read_all("t", "f", fresh=True)) == b"old"


def test_a_full_target_says_enospc_and_keeps_what_it_promised(pool: Pool) -> None:
    """Preallocated space is there; what goes beyond is refused; a look tells it from a broken target."""
    target = MemoryTarget("t", capacity_bytes=MIB)
    assert ask(target, Verb.PREPARE, "j/.next/p", length=MIB // 2).ok
    assert ask(target, Verb.PREPARE, "j/.next/q", length=MIB).errno == errno.ENOSPC
    assert ask(target, Verb.STAT, "j/.next/q").errno == errno.ENOENT
    free = ask(target, Verb.SPACE).json()["free"]
    assert ask(target, Verb.PREPARE, "rest", length=free).ok
    appender = opened(target, pool)
    append(appender, block(pool, b"x"), offset=BLOCK_BYTES)
    append(appender, block(pool, b"x"), offset=MIB)
    assert [answer.errno for answer in appender.answers()] == [0, errno.ENOSPC]
    look = look_request(look_id="r", counter=1, journals=(), target_id=target.id)
    seen = look_result(target.keeper.call(look, 1), "t")
    assert (seen.counter, seen.counter_errno, seen.free_bytes) == (0, errno.ENOSPC, 0)


def test_an_unmounted_target_shows_an_empty_directory_and_open_volumes_go_on(target: MemoryTarget, pool: Pool) -> None:
    """What a look by path sees and open descriptors do not; mounted again, all is as before."""
    appender = opened(target, pool)
    target.unmount()
    append(appender, block(pool, b"x"), offset=BLOCK_BYTES)
    assert appender.answers()[0].ok
    look = look_request(look_id="r", counter=1, journals=("j",), target_id=target.id)
    assert look_result(target.keeper.call(look, 1), "t").identity is None
    assert ask(target, Verb.MKDIR, "j").errno == errno.ENODEV
    assert run(target, list_all("t", "")) == []
    target.mount()
    assert look_result(target.keeper.call(look, 1), "t").counter == 1
    assert volume(target)[BLOCK_BYTES : 2 * BLOCK_BYTES] == b"x" * BLOCK_BYTES


def test_a_keeper_is_not_given_up_where_it_would_be_the_third(target: MemoryTarget, pool: Pool) -> None:
    """As on a directory: a place is kept for the appender, which has to be given up when the target is lost."""
    appender = opened(target, pool)
    target.hold()
    append(appender, block(pool, b"x"), offset=BLOCK_BYTES)
    appender.abandon()
    second = target.start_appender(pool)
    with pytest.raises(TargetUnavailableError):
        target.start_appender(pool)
    append(second, block(pool, b"x"), offset=BLOCK_BYTES)
    hung = target.keeper.submit(Request(Verb.PUT, "late", data=b"x"))
    assert not target.keeper.restart()
    second.abandon()
    assert not target.keeper.restart()
    assert (target.workers_stuck(), hung.done()) == (ABANDONED_WORKERS_MAX, False)
    target.release()
    assert hung.result(0).ok
    assert target.workers_stuck() == 0
    assert target.keeper.restart()


def test_a_keeper_that_hangs_with_two_stuck_is_woken_when_it_has_finished(target: MemoryTarget, pool: Pool) -> None:
    """Drained while it hung, and returned at once: to give it up would leave a third one."""
    target.hold()
    for handle in (1, 2):
        appender = target.start_appender(pool)
        append(appender, block(pool, b"x"), offset=BLOCK_BYTES, handle=handle)
        if handle == 1:
            appender.abandon()
    hung = target.keeper.submit(Request(Verb.PUT, "late", data=b"x"))
    appender.abandon()
    target.keeper.rest()
    target.keeper.wake()
    assert (target.workers_stuck(), hung.done()) == (ABANDONED_WORKERS_MAX, False)
    assert target.keeper.submit(Request(Verb.SPACE)).result(0).errno == UNAVAILABLE
    target.release()
    assert hung.result(0).ok
    assert ask(target, Verb.SPACE).ok


def test_with_two_stuck_no_keeper_follows_the_one_that_was_given_up(target: MemoryTarget, pool: Pool) -> None:
    """As on a directory, until one of them is gone."""
    appender = opened(target, pool)
    target.hold()
    append(appender, block(pool, b"x"), offset=BLOCK_BYTES)
    appender.abandon()
    hung = target.keeper.submit(Request(Verb.PUT, "late", data=b"x"))
    assert not target.keeper.restart()
    assert hung.result(0).errno == UNAVAILABLE
    assert target.workers_stuck() == ABANDONED_WORKERS_MAX
    assert target.keeper.submit(Request(Verb.SPACE)).result(0).errno == UNAVAILABLE
    target.release()
    assert ask(target, Verb.SPACE).ok


def test_a_held_keeper_is_restarted_and_its_running_call_is_still_carried_out(target: MemoryTarget) -> None:
    """Its callers get UNAVAILABLE, which means unknown: the write of the worker that was given up happens after all."""
    target.hold()
    running = target.keeper.submit(Request(Verb.PUT, "late", data=b"x"))
    dropped = target.keeper.submit(Request(Verb.PUT, "never", data=b"x"))
    assert target.keeper.call(Request(Verb.SPACE), 5).errno == UNAVAILABLE, "a virtual clock is not waited for"
    assert target.keeper.restart()
    assert [future.result(0).errno for future in (running, dropped)] == [UNAVAILABLE, UNAVAILABLE]
    assert target.workers_stuck() == 1
    target.release()
    assert target.workers_stuck() == 0
    assert ask(target, Verb.STAT, "late").ok
    assert ask(target, Verb.STAT, "never").errno == errno.ENOENT


def test_workers_that_are_killed_answer_and_serve_no_more(target: MemoryTarget, pool: Pool) -> None:
    """The appender's outstanding requests are ESRCH; the keeper goes on with another worker."""
    appender = opened(target, pool)
    target.hold()
    number = append(appender, block(pool, b"x"), offset=BLOCK_BYTES)
    target.kill_workers()
    target.release()
    assert appender.answers() == [Answer(number, errno.ESRCH, -1)]
    late = append(appender, block(pool, b"x"), offset=BLOCK_BYTES)
    assert appender.answers() == [Answer(late, errno.ESRCH, -1)]
    assert ask(target, Verb.SPACE).ok
