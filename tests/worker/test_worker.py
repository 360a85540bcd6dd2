"""The worker process on its own: what it does when its parent dies, its target hangs, or it is given up."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from tests.support.targets import PATIENCE_S, answers, append, ask, block, open_volume, run

from nvrstore.errors import TargetUnavailableError
from nvrstore.limits import ABANDONED_WORKERS_MAX, BLOCK_BYTES, MIB
from nvrstore.targets.contract import UNAVAILABLE, Answer, Appender, Request, Verb
from nvrstore.targets.directory import DirectoryTarget
from nvrstore.targets.identity import init_target
from nvrstore.targets.look import look_request
from nvrstore.targets.pool import Pool

SHORT_S = 0.05  # of a call that is meant to run out of time


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool(4 * MIB)
    yield made
    made.close()


@pytest.fixture
def target(tmp_path: Path) -> Iterator[DirectoryTarget]:
    made = DirectoryTarget("t", tmp_path)
    run(made, init_target("t"))
    yield made
    assert made.close(PATIENCE_S)


@pytest.fixture
def in_thread(tmp_path: Path) -> Iterator[DirectoryTarget]:
    made = DirectoryTarget("t", tmp_path, isolation="thread")
    run(made, init_target("t"))
    yield made
    assert made.close(PATIENCE_S)


def keeper_pid(target: DirectoryTarget) -> int:
    """The process that answers for the keeper: the only worker that holds slots."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    found = [int(pid) for pid in children if b"\0keeper\0" in Path(f"/proc/{pid}/cmdline").read_bytes() + b"\0"]
    return found[-1]


def test_a_listing_names_files_and_directories_alone(target: DirectoryTarget, tmp_path: Path) -> None:
    """A FIFO with the name of a volume would keep whoever scans it waiting for ever."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "v.mp4").write_bytes(b"x")
    (tmp_path / "d" / "more").mkdir()
    os.mkfifo(tmp_path / "d" / "w.mp4")
    assert [row[:3] for row in ask(target, Verb.LIST, "d").json()] == [["more", 0, True], ["v.mp4", 1, False]]


def stuck_read(target: DirectoryTarget, path: Path) -> Future[Answer]:
    """A call that hangs: nobody writes into the FIFO that it opens. Returns once the call is running."""
    os.mkfifo(path)
    future = target.keeper.submit(Request(Verb.READ, path.name, length=1))
    while target.keeper.running_since_s() is None:
        if future.done():
            raise RuntimeError("the read did not hang")
    return future


# --- hangs


def test_a_call_that_hangs_is_seen_in_the_stamps_and_hangs_nobody(target: DirectoryTarget, tmp_path: Path) -> None:
    """The age of the running call is read without a system call; callers get UNAVAILABLE in time; restart goes on elsewhere."""
    hung = stuck_read(target, tmp_path / "fifo")
    assert ask_briefly(target, Verb.SPACE).errno == UNAVAILABLE
    assert target.keeper.restart()
    assert hung.result(PATIENCE_S).errno == UNAVAILABLE
    assert ask(target, Verb.SPACE).ok


def ask_briefly(target: DirectoryTarget, verb: Verb) -> Answer:
    return target.keeper.call(Request(verb), SHORT_S)


def test_looks_overtake_everything_that_waits(target: DirectoryTarget, tmp_path: Path) -> None:
    """A look that is asked for behind a queue of copies is answered right after the running call."""
    order: list[Verb] = []
    hung = stuck_read(target, tmp_path / "fifo")
    waiting = [target.keeper.submit(Request(Verb.WRITE, f"f{i}", data=b"x")) for i in range(40)]
    look = target.keeper.submit(look_request(look_id="r", counter=1, journals=(), target_id="0" * 32))
    for future in (*waiting, look):
        future.add_done_callback(lambda done: order.append(Verb.LOOK if done is look else Verb.WRITE))
    with (tmp_path / "fifo").open("wb"):
        pass
    assert hung.result(PATIENCE_S).errno == errno.ESPIPE, "a FIFO has no offsets"
    assert all(future.result(PATIENCE_S).ok for future in (look, *waiting))
    assert order[0] is Verb.LOOK


class Gate:
    """Makes `os.open` of certain names hang inside this process, as a hung mount would, until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, start: str) -> None:
        self.entered, self._go = threading.Semaphore(0), threading.Event()
        really = os.open

        def hang(path: str, flags: int, mode: int = 0o777) -> int:
            if os.path.basename(path).startswith(start):
                self.entered.release()
                self._go.wait()
            return really(path, flags, mode)

        monkeypatch.setattr(os, "open", hang)

    def wait_entered(self) -> None:
        assert self.entered.acquire(timeout=PATIENCE_S)

    def let_go(self) -> None:
        self._go.set()


def wait_gone(appender: Appender) -> None:
    while not appender.gone():  # bounded by the test's own timeout
        pass


def test_a_worker_that_is_let_go_after_it_was_given_up_touches_nothing_more(
    in_thread: DirectoryTarget, tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call stuck in the kernel cannot be ended; once it returns, the worker finds that it was abandoned, and stops there."""
    assert ask(in_thread, Verb.PREPARE, "prepared", length=BLOCK_BYTES).ok
    gate = Gate(monkeypatch, "prepared")
    appender = in_thread.start_appender(pool)
    open_volume(appender, pool, prepared="prepared", name="volume")
    gate.wait_entered()
    assert appender.running_since_s() is not None
    appender.abandon()
    assert in_thread.workers_stuck() == 1
    assert not appender.gone(), "it still holds the pool"
    gate.let_go()
    wait_gone(appender)
    assert (tmp_path / "prepared").read_bytes() == bytes(BLOCK_BYTES), "no header was written"
    assert not (tmp_path / "volume").exists()
    assert in_thread.workers_stuck() == 0


def test_too_many_stuck_workers_are_not_joined_by_another(in_thread: DirectoryTarget, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory and threads stay bounded while a target hangs for ever; it serves again when it thaws."""
    gate = Gate(monkeypatch, "prepared")
    stuck = [in_thread.start_appender(pool) for _ in range(ABANDONED_WORKERS_MAX)]
    for appender in stuck:
        open_volume(appender, pool, prepared="prepared")
        gate.wait_entered()
        appender.abandon()
    with pytest.raises(TargetUnavailableError, match="stuck"):
        in_thread.start_appender(pool)
    assert not in_thread.keeper.restart()
    assert ask(in_thread, Verb.SPACE).ok, "a keeper that lives is not given up where no other could follow"
    gate.let_go()
    for appender in stuck:
        wait_gone(appender)
    assert in_thread.keeper.restart()
    assert ask(in_thread, Verb.SPACE).ok


@pytest.mark.parametrize("keeper_first", [True, False])
def test_a_keeper_is_not_given_up_where_it_would_be_the_third(
    in_thread: DirectoryTarget, pool: Pool, monkeypatch: pytest.MonkeyPatch, keeper_first: bool
) -> None:
    """One is stuck; then the next appender hangs, and the keeper: whichever is found first. The keeper's own answer comes in the end."""
    gate = Gate(monkeypatch, "prepared")
    stuck = [in_thread.start_appender(pool)]
    open_volume(stuck[0], pool, prepared="prepared")
    gate.wait_entered()
    stuck[0].abandon()
    stuck.append(in_thread.start_appender(pool))
    with pytest.raises(TargetUnavailableError, match="stuck"):
        in_thread.start_appender(pool)
    open_volume(stuck[1], pool, prepared="prepared")
    hung = in_thread.keeper.submit(Request(Verb.READ, "prepared", length=1))
    for _ in range(2):
        gate.wait_entered()
    for step in [True, False] if keeper_first else [False, True]:
        if step:
            assert not in_thread.keeper.restart()
        else:
            stuck[1].abandon()
    assert in_thread.workers_stuck() == ABANDONED_WORKERS_MAX
    assert not hung.done()
    gate.let_go()
    assert hung.result(PATIENCE_S).errno == errno.ENOENT
    for appender in stuck:
        wait_gone(appender)
    assert in_thread.workers_stuck() == 0
    assert in_thread.keeper.restart()
    assert ask(in_thread, Verb.SPACE).ok


def test_a_keeper_that_hangs_with_two_stuck_is_woken_when_it_has_finished(
    in_thread: DirectoryTarget, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drained while it hung, and returned at once: to give it up would leave a third one."""
    gate = Gate(monkeypatch, "prepared")
    stuck = [in_thread.start_appender(pool) for _ in range(ABANDONED_WORKERS_MAX)]
    for appender in stuck:
        open_volume(appender, pool, prepared="prepared")
        gate.wait_entered()
    hung = in_thread.keeper.submit(Request(Verb.READ, "prepared", length=1))
    gate.wait_entered()
    for appender in stuck:
        appender.abandon()
    in_thread.keeper.rest()
    in_thread.keeper.wake()
    assert in_thread.workers_stuck() == ABANDONED_WORKERS_MAX
    assert ask_briefly(in_thread, Verb.SPACE).errno == UNAVAILABLE
    gate.let_go()
    assert hung.result(PATIENCE_S).errno == errno.ENOENT
    for appender in stuck:
        wait_gone(appender)
    deadline_s = time.monotonic() + PATIENCE_S
    while not ask_briefly(in_thread, Verb.SPACE).ok and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert ask(in_thread, Verb.SPACE).ok


def test_closing_does_not_wait_for_a_worker_that_is_stuck(tmp_path: Path) -> None:
    """`close` says False after its bound, and kills what it leaves behind."""
    target = DirectoryTarget("t", tmp_path)
    run(target, init_target("t"))
    hung = stuck_read(target, tmp_path / "fifo")
    assert not target.keeper.close(SHORT_S)
    assert hung.result(PATIENCE_S).errno == UNAVAILABLE
    assert target.close(PATIENCE_S), "a process can be killed out of a FIFO"


def test_a_stopped_worker_is_replaced(target: DirectoryTarget) -> None:
    """SIGSTOP: it stamps nothing and answers nothing; the caller's bound is what counts."""
    assert ask(target, Verb.SPACE).ok
    os.kill(keeper_pid(target), signal.SIGSTOP)
    assert ask_briefly(target, Verb.SPACE).errno == UNAVAILABLE
    assert target.keeper.restart()
    assert ask(target, Verb.SPACE).ok


# --- deaths


def test_a_dead_appender_answers_everything_outstanding_with_esrch(target: DirectoryTarget, tmp_path: Path, pool: Pool) -> None:
    """Its descriptor becomes readable; what was asked, and what is asked after, is answered; nothing of it is running."""
    os.mkfifo(tmp_path / "prepared")
    appender = target.start_appender(pool)
    numbers = [open_volume(appender, pool, prepared="prepared"), append(appender, block(pool, b"x"), offset=BLOCK_BYTES)]
    os.kill(appender._worker.pid, signal.SIGKILL)  # type: ignore[attr-defined]
    assert [(answer.number, answer.errno, answer.value) for answer in answers(appender, 2)] == [(n, errno.ESRCH, -1) for n in numbers]
    late = append(appender, block(pool, b"x"), offset=BLOCK_BYTES)
    assert appender.answers() == [Answer(late, errno.ESRCH, -1)]
    assert appender.running_since_s() is None
    wait_gone(appender)
    assert appender.close(PATIENCE_S)


def test_what_a_dead_keeper_wrote_and_did_not_sync_is_never_called_synced(target: DirectoryTarget) -> None:
    """A new worker's sync would not hear of an error that came in between: SYNC says EIO, once; a new file starts clean."""
    for path in ("a", "b", "c"):
        assert ask(target, Verb.WRITE, path, data=b"x").ok
    assert ask(target, Verb.SYNC, "a").ok
    assert target.keeper.restart()
    assert ask(target, Verb.SYNC, "a").ok
    assert ask(target, Verb.SYNC, "b").errno == errno.EIO
    assert ask(target, Verb.SYNC, "b").ok
    assert ask(target, Verb.UNLINK, "c").ok
    assert ask(target, Verb.WRITE, "c", data=b"y").ok
    assert ask(target, Verb.SYNC, "c").ok


def test_a_keeper_that_died_is_started_anew(target: DirectoryTarget) -> None:
    """What was outstanding is UNAVAILABLE; the first request after a moment starts another."""
    assert ask(target, Verb.SPACE).ok
    os.kill(keeper_pid(target), signal.SIGKILL)
    pause = threading.Event()
    while not ask(target, Verb.SPACE).ok:  # bounded by the test's own timeout
        pause.wait(0.05)


PARENT = """
import fcntl, os, sys, time
from nvrstore.targets.contract import Request, Verb
from nvrstore.targets.directory import DirectoryTarget
from nvrstore.targets.pool import Pool
root, lock, fork = sys.argv[1:]
lock_fd = os.open(lock, os.O_RDWR | os.O_CREAT)
fcntl.flock(lock_fd, fcntl.LOCK_EX)
target, pool = DirectoryTarget("t", root, lock_fd=lock_fd), Pool(1 << 20)
appender = target.start_appender(pool)
target.wait_ready(20)
os.close(lock_fd)
child = 0
if fork == "fork":
    child = os.fork()
    if child == 0:
        os.close(1)
        time.sleep(60)
workers = open(f"/proc/self/task/{os.getpid()}/children").read().split()
print(child, *(pid for pid in workers if int(pid) != child), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("fork", ["alone", "fork"])
def test_workers_go_when_their_parent_is_killed(tmp_path: Path, fork: str) -> None:
    """No worker outlives its recorder by more than its running call, also when a fork of it keeps the channel open.

    As long as one lives it holds the target's lock, so that a new recorder can tell.
    """
    (tmp_path / "root").mkdir()
    lock = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", PARENT, tmp_path / "root", lock, fork], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child, *workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        watched = [os.pidfd_open(pid) for pid in workers]
        with lock.open() as mine:
            with pytest.raises(BlockingIOError):
                fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
            parent.kill()
            for pidfd in watched:
                ended, _, _ = select.select([pidfd], [], [], PATIENCE_S)
                os.close(pidfd)
                assert ended
            if child:
                os.kill(child, signal.SIGKILL)
            fcntl.flock(mine, fcntl.LOCK_EX)


FORKED = """
import os, sys
from nvrstore.errors import ForkedError
from nvrstore.targets.contract import Request, Verb
from nvrstore.targets.directory import DirectoryTarget
from nvrstore.targets.pool import Pool
target, pool = DirectoryTarget("t", sys.argv[1]), Pool(1 << 20)
target.wait_ready(20)
appender = target.start_appender(pool)
def refused(call):
    try:
        call()
    except ForkedError:
        return True
    return False
child = os.fork()
if child == 0:
    calls = [
        lambda: target.keeper.submit(Request(Verb.SPACE)),
        lambda: target.start_appender(pool),
        lambda: appender.submit(Request(Verb.CLOSE)),
        lambda: appender.abandon(),
        lambda: target.close(1),
    ]
    os._exit(0 if all(refused(call) for call in calls) else 1)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
fine = target.keeper.call(Request(Verb.SPACE), 20).ok
sys.exit(0 if status == 0 and fine and appender.close(20) and target.close(20) else 1)
"""


def test_a_fork_cannot_use_or_harm_its_parents_workers(tmp_path: Path) -> None:
    """In a forked child everything raises ForkedError; the parent's workers go on."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED, tmp_path], check=True, timeout=60)


def test_signals_meant_for_the_recorder_do_not_end_its_workers(target: DirectoryTarget) -> None:
    """A service manager signals the whole group: the recorder then closes its workers in order."""
    assert ask(target, Verb.SPACE).ok
    pid = keeper_pid(target)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(pid, signum)
    assert ask(target, Verb.SPACE).ok
    assert keeper_pid(target) == pid


# --- starting


def test_a_worker_gets_nothing_that_is_not_its_business(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No secret of the environment, no descriptor but its own: a stuck worker must not keep a camera's socket open."""
    monkeypatch.setenv("CAMERA_PASSWORD", "hunter2")
    ours, theirs = socket.socketpair()
    os.set_inheritable(theirs.fileno(), True)
    with ours, theirs:
        target = DirectoryTarget("t", tmp_path)
        target.wait_ready(PATIENCE_S)
        pid = keeper_pid(target)
        assert b"hunter2" not in Path(f"/proc/{pid}/environ").read_bytes()
        links = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
        assert f"socket:[{os.fstat(theirs.fileno()).st_ino}]" not in links
        assert os.getsid(pid) == pid, "a session of its own"
        assert target.close(PATIENCE_S)


@pytest.mark.parametrize("python", ["/bin/false", "/no/such/python"])
def test_a_python_that_cannot_run_workers_is_said_so(tmp_path: Path, python: str) -> None:
    """An error with the command to try, in time, and not a worker that never answers."""
    target = DirectoryTarget("t", tmp_path, worker_python=python)
    with pytest.raises(TargetUnavailableError) as caught:
        target.wait_ready(PATIENCE_S)
    assert python in caught.value.hint
    assert target.close(PATIENCE_S)


def test_what_a_new_appender_is_asked_before_it_is_up_is_not_lost(target: DirectoryTarget, pool: Pool) -> None:
    """Requests may follow at once; until it said hello it counts as busy since its start."""
    assert ask(target, Verb.PREPARE, "j/.next/p", length=MIB).ok
    appender = target.start_appender(pool)
    assert appender.running_since_s() is not None
    open_volume(appender, pool)
    assert answers(appender, 1)[0].ok
    assert appender.running_since_s() is None
    assert appender.close(PATIENCE_S)


def test_requests_beyond_the_channels_capacity_wait_and_keep_their_order(target: DirectoryTarget, pool: Pool) -> None:
    """A thousand requests at once: none blocks the caller, none is lost, all answers come in order."""
    assert ask(target, Verb.PREPARE, "j/.next/p", length=8 * MIB).ok
    appender = target.start_appender(pool)
    open_volume(appender, pool)
    extent = block(pool, b"x")
    numbers = [append(appender, extent, offset=(1 + i) * BLOCK_BYTES) for i in range(1000)]
    got = answers(appender, 1001)
    assert [answer.number for answer in got][1:] == numbers
    assert all(answer.ok for answer in got)
    assert appender.close(PATIENCE_S)
