"""The appender: opens prepared volumes, appends batches, closes. Its answers alone make commits."""

from __future__ import annotations

import errno
import fcntl
import os
import time

from .calls import Forsaken, Place, refuse
from .wire import APPEND, BLOCK, BUFFERED, BYTES, CLOSE, DURABLE, DURABLE_NS, OPEN, Ask


class Appender:
    """Opens prepared volumes, appends, closes. After a failed or short write the rest of that volume is refused."""

    def __init__(self, place: Place, memory: memoryview) -> None:
        self.place, self.calls, self.memory = place, place.calls, memory
        self.open: dict[int, int] = {}
        self.refused: set[int] = set()

    def do(self, ask: Ask) -> tuple[int, bytes]:
        if ask.verb == APPEND:
            if ask.handle in self.refused:
                raise refuse(errno.EIO)
            if ask.handle not in self.open:
                raise refuse(errno.EBADF)
            try:
                self.append(self.open[ask.handle], ask)
            except OSError:
                self.refused.add(ask.handle)
                raise
            return ask.length, b""
        if ask.verb == CLOSE:
            self.refused.discard(ask.handle)
            if ask.handle not in self.open:
                raise refuse(errno.EBADF)
            self.calls.close(self.open.pop(ask.handle))
            return 0, b""
        if ask.verb != OPEN:
            raise refuse(errno.EINVAL)
        if ask.handle in self.open:
            raise refuse(errno.EBUSY)
        self.refused.discard(ask.handle)
        try:
            self.open[ask.handle] = self.open_volume(ask)
        except OSError:
            self.refused.add(ask.handle)
            raise
        return ask.length, b""

    def append(self, fd: int, ask: Ask) -> None:
        try:
            self.place.write_durable(fd, self.extent(ask), ask.offset)
        except OSError as error:
            if error.errno == errno.ENOSPC and self.place.full_below(fd, ask.offset + ask.length, ask.length):
                raise refuse(errno.EIO) from error  # a thin pool: a failed write like any other, and no work for retention
            raise
        stamps = self.calls.stamps
        stamps[BYTES] += ask.length
        stamps[DURABLE] = ask.number
        stamps[DURABLE_NS] = time.monotonic_ns()

    def extent(self, ask: Ask) -> memoryview:
        """The bytes to write; never what lies outside the pool, never less than asked for."""
        if (ask.offset | ask.length | ask.extent) % BLOCK or not 0 < ask.length <= len(self.memory) - ask.extent:
            raise refuse(errno.EINVAL)
        return self.memory[ask.extent : ask.extent + ask.length]

    def open_volume(self, ask: Ask) -> int:
        """Write the header into the prepared file, give it its name, make all of that durable: only then may anything be acknowledged."""
        self.extent(ask)
        self.place.check_identity()
        prepared, name = self.place.at(ask.path), self.place.at(ask.path2)
        fd, direct = self.place.open_direct(prepared, os.O_WRONLY)
        try:
            try:
                self.append(fd, ask)
            except OSError as error:
                if error.errno != errno.EINVAL or not direct:
                    raise
                self.calls.note(BUFFERED)  # O_DIRECT was granted, but not with this alignment
                self.calls(fcntl.fcntl, fd, fcntl.F_SETFL, 0)
                self.append(fd, ask)
            self.calls(os.fdatasync, fd)
            try:
                self.place.give_name(prepared, name)
            except FileNotFoundError:
                self.place.make_dirs(os.path.dirname(name))
                self.place.give_name(prepared, name)
            self.place.sync_dir(os.path.dirname(name))
            self.place.sync_dir(os.path.dirname(prepared))
        except (OSError, Forsaken):
            self.calls.close(fd)
            raise
        return fd

    def end(self) -> None:
        for fd in self.open.values():
            try:
                self.calls.close(fd)
            except OSError:
                pass  # everything that was acknowledged is durable; there is nobody left to tell
