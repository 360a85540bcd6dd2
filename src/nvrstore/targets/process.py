"""Starts, kills and reaps worker processes, without ever waiting for one that is stuck.

    posix_spawn -> python -I -S worker/main.py     own session; descriptors: channel, stamps, memory, perhaps a lock

Invariants: a worker is *gone* only when the kernel has said so (it was reaped): until then it may still write from the
memory that it was given. Nothing here blocks but `wait`, which is bounded. No descriptor of ours that is not meant for it
reaches the worker, and none of the worker's reaches us.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import signal
import socket
import sys
import threading
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from typing import Final, Protocol

from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.errors import ForkedError, TargetUnavailableError
from nvrstore.worker import wire
from nvrstore.worker.serve import FD_CHANNEL, FD_LOCK, FD_MEMORY, FD_STAMPS

MAIN: Final = Path(str(files("nvrstore.worker") / "main.py"))
#: All that a worker needs of our environment: secrets that we were given there are none of its business.
_ENVIRONMENT: Final = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ")


class Worker(Protocol):
    """A running worker, whatever carries it. `channel` is our end of its socket."""

    channel: socket.socket
    stamps: memoryview
    started_s: float

    def kill(self) -> None:
        """Forbid it to touch the target any more, and end it where that is possible. Does not wait."""

    def gone(self) -> bool:
        """Whether it has ended: it holds no memory, no descriptor, no lock any more. Does not wait."""

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is gone, at most so long."""


class Stamps:
    """The shared memory in which a worker stamps, and we forbid."""

    def __init__(self) -> None:
        self.fd: Final = os.memfd_create("nvrstore-stamps", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, wire.STAMPS_BYTES)
            self.words: Final = memoryview(mmap.mmap(self.fd, wire.STAMPS_BYTES)).cast("Q")
        except OSError:
            self.close_fd()
            raise

    def close_fd(self) -> None:
        os.close(self.fd)


def spawn(kind: str, root: str, guard: str, *, memory_fd: int, python: str, lock_fd: int | None, target: str) -> ProcessWorker:
    """Start a worker process; it says hello on its channel once it is ready. Raises TargetUnavailableError when that fails."""
    arguments = [python, "-I", "-S", "-X", "utf8", str(MAIN), kind, root, guard, str(os.getpid())]
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    hint = "the process may have no descriptor left: raise `ulimit -n`, or `LimitNOFILE` of its service"
    with ExitStack() as unless_started, ExitStack() as handed_over:
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            unless_started.callback(ours.close)
            handed_over.callback(theirs.close)
            stamps = Stamps()
            handed_over.callback(stamps.close_fd)
            given = {FD_CHANNEL: theirs.fileno(), FD_STAMPS: stamps.fd, FD_MEMORY: memory_fd}
            if lock_fd is not None:
                given[FD_LOCK] = lock_fd
            actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
                (os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)
            ]
            for to, fd in given.items():
                # Moved out of the way first: a source that lies where another one is to go would be overwritten before it is copied.
                high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64)
                handed_over.callback(os.close, high)
                actions.append((os.POSIX_SPAWN_DUP2, high, to))
            hint = f"`worker_python` has to name a Python of version {sys.version_info.major}.{sys.version_info.minor}"
            pid = os.posix_spawn(
                python, arguments, environment, file_actions=actions, setsid=True, setsigmask=[], setsigdef=[signal.SIGCHLD]
            )
        except OSError as error:
            raise TargetUnavailableError(f"target {target!r}: no worker can be started: {error}", target=target, hint=hint) from error
        unless_started.pop_all()
    return ProcessWorker(pid, ours, stamps.words)


def _pidfd(pid: int) -> int:
    """A pidfd names this very process for ever; a bare pid may be somebody else's once it was reaped. -1: there is none to be had."""
    try:
        return os.pidfd_open(pid) if hasattr(os, "pidfd_open") else -1
    except OSError:
        return -1  # no descriptor left; it was started, and has to be accounted for all the same


def _another(fd: int) -> int:
    """A duplicate; -1 where there is nothing to duplicate, or no descriptor is left."""
    try:
        return os.dup(fd) if fd >= 0 else -1
    except OSError:
        return -1


class ProcessWorker:
    """A worker in a child process."""

    def __init__(self, pid: int, channel: socket.socket, stamps: memoryview) -> None:
        self.pid, self.channel, self.stamps = pid, channel, stamps
        self.started_s = SYSTEM_CLOCK.monotonic_s()
        self._owner = os.getpid()
        self._gone = False
        self._lock = threading.Lock()  # the reader of a keeper's answers and its owner may both find it dead
        self._pidfd = _pidfd(pid)

    def kill(self) -> None:
        self._check_owner()
        self.stamps[wire.ABANDONED] = 1
        with self._lock:
            if self._reaped():
                return
            try:
                if self._pidfd >= 0:
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                else:
                    os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it went in this moment

    def gone(self) -> bool:
        self._check_owner()
        with self._lock:
            return self._reaped()

    def _reaped(self) -> bool:
        if not self._gone:
            try:
                self._gone = os.waitpid(self.pid, os.WNOHANG)[0] == self.pid
            except ChildProcessError:
                self._gone = True  # the host reaps all children itself: it can only have done so because it ended
            if self._gone:
                self.stamps = memoryview(bytearray(self.stamps.tobytes())).cast("Q")  # its last words; the shared memory goes
                if self._pidfd >= 0:
                    os.close(self._pidfd)
                    self._pidfd = -1
        return self._gone

    def wait(self, timeout_s: float) -> bool:
        deadline_s = SYSTEM_CLOCK.monotonic_s() + timeout_s
        with self._lock:
            if self._reaped():
                return True
            ended = _another(self._pidfd)  # ours alone: nobody closes it while we wait
        poll = select.poll()
        if ended >= 0:
            poll.register(ended, select.POLLIN)
        try:
            while not self.gone():
                left_s = deadline_s - SYSTEM_CLOCK.monotonic_s()
                if left_s <= 0:
                    return False
                poll.poll(1000 * (left_s if ended >= 0 else min(left_s, 0.005)))
            return True
        finally:
            if ended >= 0:
                os.close(ended)

    def _check_owner(self) -> None:
        if os.getpid() != self._owner:
            raise ForkedError("this worker belongs to the process that was forked")
