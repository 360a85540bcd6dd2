"""The appender of the target in memory."""

from __future__ import annotations

import errno
import os
import posixpath
from random import Random
from typing import TYPE_CHECKING

from nvrstore.extents import Extent
from nvrstore.limits import BLOCK_BYTES
from nvrstore.targets.contract import APPENDER_VERBS, Answer, Request, Verb
from nvrstore.targets.memory_files import MemoryFile, fail, write_sectors
from nvrstore.targets.memory_line import Line
from nvrstore.targets.pool import Pool

if TYPE_CHECKING:
    from nvrstore.targets.memory import MemoryTarget


class MemoryAppender(Line):
    """Appender of a MemoryTarget."""

    def __init__(self, target: MemoryTarget, pool: Pool) -> None:
        super().__init__(target)
        self._pool = pool
        self._handles: dict[int, MemoryFile] = {}
        self._refused: set[int] = set()
        self._ready: list[Answer] = []
        self._outstanding: dict[int, None] = {}
        self._event: int | None = None

    def fileno(self) -> int:
        if self._event is None:
            self._event = os.eventfd(1 if self._ready else 0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return self._event

    def submit(self, request: Request) -> int:
        if request.verb not in APPENDER_VERBS:
            raise ValueError(f"an appender does not {request.verb.name}")
        with self.target.lock:
            if self.dead or self.abandoned:
                number = self.target.next_number()
                self._deliver(Answer(number, errno.ESRCH, -1))
                return number
            number = self.put(request, self._deliver)
            if any(pending.number == number for pending in self.line):
                self._outstanding[number] = None
            return number

    def _deliver(self, answer: Answer) -> None:
        with self.target.lock:
            self._outstanding.pop(answer.number, None)
            self._ready.append(answer)
            if self._event is not None:
                os.eventfd_write(self._event, 1)

    def answers(self) -> list[Answer]:
        with self.target.lock:
            ready, self._ready = self._ready, []
            if ready and self._event is not None:
                os.eventfd_read(self._event)
            return ready

    def abandon(self) -> None:
        self.forsake()
        self._outstanding.clear()
        self._ready.clear()
        self._forget_event()

    def wind_up(self) -> None:
        self.resting = True

    def gone(self) -> bool:
        with self.target.lock:
            return (self.abandoned or self.dead or self.resting) and not self.line

    def close(self, timeout_s: float) -> bool:
        in_order = not self.line
        self.abandon()
        return in_order

    def die(self, *, running: bool = False) -> None:
        with self.target.lock:
            self.dead = True
            outstanding = list(self._outstanding)
            self.forsake()
            if not running:
                self.line.clear()
                self.target.dismiss(self)
            for number in outstanding:
                self._deliver(Answer(number, errno.ESRCH, -1))

    def _forget_event(self) -> None:
        if self._event is not None:
            os.close(self._event)
            self._event = None

    def failed(self, request: Request) -> None:
        """A volume whose opening or last append failed takes nothing more; an OPEN of a handle in use harms it not."""
        known = request.handle in self._handles
        if (request.verb is Verb.APPEND and known) or (request.verb is Verb.OPEN and not known):
            self._refused.add(request.handle)

    def carry_out(self, request: Request) -> tuple[int, bytes]:
        files = self.target.files
        if request.verb is Verb.CLOSE:
            self._refused.discard(request.handle)
            if self._handles.pop(request.handle, None) is None:
                raise fail(errno.EBADF)
            return 0, b""
        if request.verb is Verb.OPEN:
            if request.handle in self._handles:
                raise fail(errno.EBUSY)
            self._refused.discard(request.handle)
            file = files.file(request.path)
            self._append(file, request)
            files.mkdirs(posixpath.dirname(request.path2))
            files.link(request.path, request.path2)
            files.unlink(request.path)
            self._handles[request.handle] = file
            return request.length, b""
        if request.handle in self._refused:
            raise fail(errno.EIO)
        if request.handle not in self._handles:
            raise fail(errno.EBADF)
        self._append(self._handles[request.handle], request)
        return request.length, b""

    def _append(self, file: MemoryFile, request: Request) -> None:
        aligned = (request.offset | request.length | request.extent) % BLOCK_BYTES == 0
        if not aligned or not 0 < request.length <= self._pool.length - request.extent:
            raise fail(errno.EINVAL)
        self.target.files.reserve(request.offset + request.length - file.seen_size)
        file.write_through(request.offset, self._pool.view(Extent(request.extent, request.length)))
        file.mtime_ns = self.target.clock.utc_ns()

    def tear(self, request: Request, rng: Random) -> None:
        if request.verb is Verb.APPEND and request.handle in self._handles and request.handle not in self._refused:
            write_sectors(self._handles[request.handle], request.offset, self._pool.view(Extent(request.extent, request.length)), rng)
