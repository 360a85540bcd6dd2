"""Faults on demand, over a real directory and over the model: they strike what they are meant to, and end when told."""

from __future__ import annotations

import errno
import select
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.targets import PATIENCE_S, answers, append, ask, block, open_volume, run, target_of

from nvrstore.errors import TargetUnavailableError
from nvrstore.limits import BLOCK_BYTES, MIB
from nvrstore.targets.contract import UNAVAILABLE, Request, Verb
from nvrstore.targets.faulty import FaultyTarget
from nvrstore.targets.faulty_appender import FaultyAppender
from nvrstore.targets.identity import identify
from nvrstore.targets.look import look_request, look_result
from nvrstore.targets.pool import Pool
from nvrstore.targets.steps import list_all, read_all

SHORT_S = 0.05  # of a call that is meant to run out of time


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool(4 * MIB)
    yield made
    made.close()


@pytest.fixture(params=["faulty-memory", "faulty-process"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FaultyTarget]:
    with target_of(request.param, tmp_path) as made:
        assert isinstance(made, FaultyTarget)
        yield made
        made.clear()


def opened(target: FaultyTarget, pool: Pool, handle: int = 1) -> FaultyAppender:
    assert ask(target, Verb.PREPARE, f"j/.next/{handle}", length=MIB).ok
    appender = target.start_appender(pool)
    open_volume(appender, pool, handle=handle, prepared=f"j/.next/{handle}")
    assert answers(appender, 1)[0].ok
    return appender


def stored(target: FaultyTarget, first: int, last: int) -> bytes:
    return run(target, read_all("t", "j/day/v.mp4", fresh=True))[first * BLOCK_BYTES : last * BLOCK_BYTES]


def test_a_target_fails_and_returns(target: FaultyTarget, pool: Pool) -> None:
    """Everything answers EIO until it is told to stop; the volume that was hit stays refused, a new one is fine."""
    appender = opened(target, pool)
    fault = target.fail(errno.EIO)
    append(appender, block(pool, b"x"), offset=BLOCK_BYTES)
    assert answers(appender, 1)[0].errno == errno.EIO
    assert ask(target, Verb.SPACE).errno == errno.EIO
    assert fault.struck == 2
    fault.remove()
    append(appender, block(pool, b"x"), offset=BLOCK_BYTES)
    assert answers(appender, 1)[0].errno == errno.EIO, "the rest of that volume"
    assert ask(target, Verb.SPACE).ok
    assert ask(target, Verb.PREPARE, "j/.next/2", length=MIB).ok
    open_volume(appender, pool, handle=2, prepared="j/.next/2", name="j/day/w.mp4")
    append(appender, block(pool, b"x"), offset=BLOCK_BYTES, handle=2)
    assert [answer.errno for answer in answers(appender, 2)] == [0, 0]
    assert stored(target, 1, 2) == bytes(BLOCK_BYTES), "an injected failure writes nothing"
    assert appender.close(PATIENCE_S)


def test_faults_choose_by_verb_path_and_count(target: FaultyTarget) -> None:
    """The second and third PUT into epochs/ fail, and nothing else does."""
    assert ask(target, Verb.MKDIR, "j/epochs").ok
    target.fail(errno.ENOSPC, verbs={Verb.PUT}, path="*/epochs/*", after=1, times=2)
    assert [ask(target, Verb.PUT, f"j/epochs/{i}", data=b"").errno for i in range(5)] == [0, errno.ENOSPC, errno.ENOSPC, 0, 0]
    assert ask(target, Verb.PUT, "j/other", data=b"").ok
    assert [entry.name for entry in run(target, list_all("t", "j/epochs"))] == ["0", "3", "4"]


def test_appends_are_matched_by_the_name_their_volume_has(target: FaultyTarget, pool: Pool) -> None:
    """An APPEND carries a handle; the fault is told a path."""
    appender = opened(target, pool)
    target.fail(errno.EIO, verbs={Verb.APPEND}, path="j/day/other.mp4")
    append(appender, block(pool, b"x"), offset=BLOCK_BYTES)
    assert answers(appender, 1)[0].ok
    target.fail(errno.EIO, verbs={Verb.APPEND}, path="j/day/v.mp4")
    append(appender, block(pool, b"x"), offset=BLOCK_BYTES)
    assert answers(appender, 1)[0].errno == errno.EIO
    assert appender.close(PATIENCE_S)


@pytest.mark.parametrize("done", [False, True])
def test_a_hang_withholds_and_what_stands_behind_it_waits(target: FaultyTarget, pool: Pool, done: bool) -> None:
    """No answer, a running call whose age is told, nothing behind overtakes; the end of the fault rings the owner's bell."""
    appender = opened(target, pool)
    fault = target.hang(verbs={Verb.APPEND}, done=done)
    append(appender, block(pool, b"x"), offset=BLOCK_BYTES)
    appender.submit(Request(Verb.CLOSE, handle=1))
    assert appender.running_since_s() is not None
    assert appender.answers() == []
    fault.remove()
    assert select.select([appender], [], [], PATIENCE_S)[0]
    assert [answer.errno for answer in answers(appender, 2)] == [0, 0]
    assert stored(target, 1, 2) == b"x" * BLOCK_BYTES
    assert appender.running_since_s() is None
    assert appender.close(PATIENCE_S)


@pytest.mark.parametrize("done", [False, True])
def test_a_hanging_keeper_answers_nobody_and_goes_on_when_the_fault_ends(target: FaultyTarget, done: bool) -> None:
    """Callers get UNAVAILABLE in time; looks too wait behind the call that hangs; futures are answered at last."""
    fault = target.hang(verbs={Verb.PUT}, done=done)
    hung = target.keeper.submit(Request(Verb.PUT, "f", data=b"x"))
    behind = target.keeper.submit(Request(Verb.SPACE))
    assert target.keeper.call(Request(Verb.SPACE), SHORT_S).errno == UNAVAILABLE
    assert target.keeper.running_since_s() is not None
    assert not behind.done()
    fault.remove()
    assert hung.result(PATIENCE_S).ok
    assert behind.result(PATIENCE_S).ok
    assert run(target, read_all("t", "f")) == b"x"


def test_workers_given_up_while_they_hang_count_as_stuck(target: FaultyTarget, pool: Pool) -> None:
    """Neither gone nor replaced without a bound, until the fault ends."""
    appender = opened(target, pool)
    fault = target.hang()
    append(appender, block(pool, b"x"), offset=BLOCK_BYTES)
    hung = target.keeper.submit(Request(Verb.SPACE))
    appender.abandon()
    assert not target.keeper.restart()
    assert hung.result(PATIENCE_S).errno == UNAVAILABLE
    assert not appender.gone()
    with pytest.raises(TargetUnavailableError):
        target.start_appender(pool)
    fault.remove()
    while not appender.gone():
        pass
    assert target.keeper.restart()
    assert ask(target, Verb.SPACE).ok


def test_a_slow_target_answers_later_and_in_order(target: FaultyTarget, pool: Pool) -> None:
    """The answer comes after the delay, without anybody asking in between."""
    appender = opened(target, pool)
    target.slow(0.02, times=2)
    numbers = [append(appender, block(pool, b"x"), offset=(1 + i) * BLOCK_BYTES) for i in range(2)]
    assert appender.answers() == []
    assert [answer.number for answer in answers(appender, 2)] == numbers
    target.slow(0.02, times=1)
    assert ask(target, Verb.SPACE).ok
    assert appender.close(PATIENCE_S)


def test_a_short_write_is_half_there_and_fails(target: FaultyTarget, pool: Pool) -> None:
    """What recovery finds after it: a torn batch, and nothing behind."""
    appender = opened(target, pool)
    target.short()
    append(appender, block(pool, b"x", 8), offset=BLOCK_BYTES)
    append(appender, block(pool, b"y"), offset=9 * BLOCK_BYTES)
    assert [answer.errno for answer in answers(appender, 2)] == [errno.EIO, errno.EIO]
    assert stored(target, 1, 10) == b"x" * 4 * BLOCK_BYTES + bytes(5 * BLOCK_BYTES)
    target.short()
    assert ask(target, Verb.WRITE, "f", data=b"12345678").errno == errno.EIO
    assert run(target, read_all("t", "f")) == b"1234"
    assert appender.close(PATIENCE_S)


def test_a_lying_target_says_done_and_has_nothing(target: FaultyTarget, pool: Pool) -> None:
    """The lost write of a disk that lies: only a scan finds it."""
    appender = opened(target, pool)
    target.lie()
    append(appender, block(pool, b"x"), offset=BLOCK_BYTES)
    append(appender, block(pool, b"y"), offset=2 * BLOCK_BYTES)
    assert [(answer.errno, answer.value) for answer in answers(appender, 2)] == [(0, BLOCK_BYTES)] * 2
    assert stored(target, 1, 3) == bytes(BLOCK_BYTES) + b"y" * BLOCK_BYTES
    assert appender.close(PATIENCE_S)


def test_a_flipped_bit_is_in_what_is_read_not_in_what_is_stored(target: FaultyTarget) -> None:
    """One bit, as often as it is read, until it is over."""
    assert ask(target, Verb.PUT, "f", data=bytes(100)).ok
    fault = target.flip(path="f")
    assert sum(ask(target, Verb.READ, "f", length=100).data) == 0x10
    fault.remove()
    assert ask(target, Verb.READ, "f", length=100).data == bytes(100)


def test_a_lost_identity_looks_like_a_bare_mount_point(target: FaultyTarget, pool: Pool) -> None:
    """The look finds nobody, nothing is written, open volumes go on; then it is back, unchanged."""
    appender = opened(target, pool)
    target_id = run(target, identify("t")).id
    look = look_request(look_id="r", counter=1, journals=("j",), target_id=target_id)
    fault = target.lose_identity()
    assert look_result(target.keeper.call(look, PATIENCE_S), "t").identity is None
    assert ask(target, Verb.PREPARE, "j/.next/2", length=MIB).errno == errno.ENODEV
    assert run(target, list_all("t", "")) == []
    append(appender, block(pool, b"x"), offset=BLOCK_BYTES)
    assert answers(appender, 1)[0].ok
    fault.remove()
    seen = look_result(target.keeper.call(look, PATIENCE_S), "t")
    assert seen.identity is not None
    assert seen.identity.id == target_id
    assert appender.close(PATIENCE_S)


def test_killed_workers_answer_esrch_and_a_new_appender_goes_on(target: FaultyTarget, pool: Pool) -> None:
    """As by SIGKILL: what was outstanding is unknown."""
    appender = opened(target, pool)
    target.hang(verbs={Verb.APPEND})
    append(appender, block(pool, b"x"), offset=BLOCK_BYTES)
    target.kill_workers()
    assert [(answer.errno, answer.value) for answer in answers(appender, 1)] == [(errno.ESRCH, -1)]
    while not appender.gone():
        pass
    target.clear()
    assert ask(target, Verb.PREPARE, "j/.next/2", length=MIB).ok
    other = target.start_appender(pool)
    open_volume(other, pool, prepared="j/.next/2", name="j/day/w.mp4")
    assert answers(other, 1)[0].ok
    assert other.close(PATIENCE_S)
    assert appender.close(PATIENCE_S)
