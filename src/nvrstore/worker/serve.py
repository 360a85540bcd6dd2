"""Serves requests until the parent closes the channel, dies, or gives this worker up."""

from __future__ import annotations

import errno
import heapq
import mmap
import os
import select
import signal
import sys
import time

from .calls import Calls, Forsaken, Place
from .wire import (
    ANSWER,
    DONE,
    FAILED,
    FAILED_NS,
    HARD_ERRORS,
    INLINE_BYTES_MAX,
    LOOK,
    MESSAGE_BYTES,
    PROTOCOL,
    READ,
    RUNNING,
    STAMPS_BYTES,
    Ask,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from .appender import Appender
    from .keeper import Keeper

FD_CHANNEL, FD_STAMPS, FD_MEMORY, FD_LOCK = 3, 4, 5, 6


def work(kind: str, root: str, guard: str, *, channel: int, stamps: memoryview, memory: memoryview, parent_pid: int) -> None:
    """Serve requests from `channel` until it is closed. `parent_pid` 0: inside a thread, which lives and dies with its process."""
    calls = Calls(stamps, parent_pid)
    place = Place(calls, root.rstrip("/") or "/.", guard)
    worker = _worker(kind, place, memory)
    parent = os.pidfd_open(parent_pid) if parent_pid and hasattr(os, "pidfd_open") else -1
    hello = f'{{"protocol": {PROTOCOL}, "pid": {os.getpid()}, "python": "{sys.version.split()[0]}", "kind": "{kind}"}}'.encode()
    try:
        os.write(channel, ANSWER.pack(0, 0, -1, 0, len(hello)) + hello)
        _serve(worker, calls, channel, parent, memory if kind == "keeper" else None)
    except (Forsaken, BrokenPipeError, ConnectionResetError):
        pass  # nobody is there to be told
    finally:
        worker.end()
        if parent >= 0:
            os.close(parent)


def _worker(kind: str, place: Place, memory: memoryview) -> Appender | Keeper:
    if kind == "appender":
        from .appender import Appender

        return Appender(place, memory)
    from .keeper import Keeper

    return Keeper(place)


def _serve(worker: Appender | Keeper, calls: Calls, channel: int, parent: int, slots: memoryview | None) -> None:
    waiting: list[tuple[int, int, Ask]] = []  # looks first, then by number
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    if parent >= 0:
        poll.register(parent, select.POLLIN)  # a fork of the parent may keep the channel open after the parent's death
    more = True
    while more or waiting:
        while more and (ready := poll.poll(0 if waiting else None)):
            if any(fd == parent for fd, _ in ready):
                raise Forsaken
            message = os.read(channel, MESSAGE_BYTES)
            more = bool(message)
            if more:
                ask = Ask(message, slots)
                heapq.heappush(waiting, (0 if ask.verb == LOOK else 1, ask.number, ask))
        if waiting:
            os.write(channel, _answer(worker, calls, heapq.heappop(waiting)[2]))


def _answer(worker: Appender | Keeper, calls: Calls, ask: Ask) -> bytes:
    stamps = calls.stamps
    stamps[RUNNING] = ask.number
    calls.failed_ns = 0
    code, value = 0, 0
    data: bytes | memoryview = b""
    try:
        value, data = worker.do(ask)
        if ask.room is None and len(data) > INLINE_BYTES_MAX:
            code, data = errno.EMSGSIZE, b""
    except OSError as error:
        code = error.errno or errno.EIO
        if isinstance(error.__cause__, OSError):
            value = error.__cause__.errno or 0  # what the system said, where the answer is another
    except (ValueError, KeyError, TypeError, OverflowError, MemoryError):
        code = errno.EINVAL  # a request that makes no sense: refused, and the next one is served
    stamps[DONE] += 1
    stamps[FAILED] += code != 0
    if code in HARD_ERRORS and ask.verb != READ:
        stamps[FAILED_NS] = stamps[FAILED_NS] or calls.failed_ns or time.monotonic_ns()
    elif ask.verb == LOOK and not code:
        stamps[FAILED_NS] = 0
    if ask.room is None:
        return ANSWER.pack(ask.number, code, -1, value, len(data)) + bytes(data)
    if not isinstance(data, memoryview):
        ask.room[: len(data)] = data
    return ANSWER.pack(ask.number, code, ask.slot, value, len(data))


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A mistake of ours ends the worker; the parent is told which, since nobody reads our standard error."""
    import traceback

    text = "".join(traceback.format_exception(kind, error, trace))[-8000:].encode(errors="replace")
    os.write(FD_CHANNEL, ANSWER.pack(0, errno.EFAULT, -1, 0, len(text)) + text)


def main() -> None:
    """Entry of the child process."""
    sys.excepthook = _report
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # meant for the parent, which then closes us in order
        signal.signal(ignored, signal.SIG_IGN)
    os.closerange(FD_LOCK + 1, 1 << 20)
    os.chdir("/")
    kind, root, guard, parent_pid = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    stamps = memoryview(mmap.mmap(FD_STAMPS, STAMPS_BYTES)).cast("Q")
    memory = memoryview(mmap.mmap(FD_MEMORY, 0, prot=mmap.PROT_READ | (mmap.PROT_WRITE if kind == "keeper" else 0)))
    os.close(FD_STAMPS)
    os.close(FD_MEMORY)
    work(kind, root, guard, channel=FD_CHANNEL, stamps=stamps, memory=memory, parent_pid=parent_pid)
    os._exit(0)  # skips the interpreter's teardown: mappings that are in use cannot be unmapped in order
