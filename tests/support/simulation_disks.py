"""Disks of a simulation, and what each recorder sees of them.

    Disk (what survives)  <--files--  View of recorder 1 (lines of its workers, its partition, its errors)
                          <--files--  View of recorder 2

A view is a target in memory whose files belong to the disk. Whatever any worker does, abandoned ones included, is shown to
the world's checks at the moment it is carried out, not when it is asked for: a call that hung may come through much later.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from random import Random

from nvrstore.checksum import crc32c
from nvrstore.clock import ManualClock
from nvrstore.extents import Extent
from nvrstore.limits import GIB
from nvrstore.targets.contract import Request, Verb
from nvrstore.targets.memory import MemoryTarget
from nvrstore.targets.memory_appender import MemoryAppender
from nvrstore.targets.memory_files import write_sectors
from nvrstore.targets.pool import Pool

WRITES = frozenset({Verb.OPEN, Verb.APPEND})

Carried = Callable[["View", Request], None]


class Disk:
    """What a power cut leaves."""

    def __init__(self, name: str, clock: ManualClock) -> None:
        made = MemoryTarget(name, clock=clock)
        self.name, self.id, self.files = name, made.id, made.files
        self.views: list[View] = []
        self.lost: set[str] = set()  # files that lost writes, not said yet
        made.close(0)

    def cut_power(self, rng: Random) -> None:
        """What was written and not synced is lost, and the next sync of it says so: whoever wrote it may live on."""
        self.lost |= {path for path, file in self.files.files.items() if file.dirty}
        for view in self.views:
            view.crash(rng)


class View(MemoryTarget):
    """One recorder's way to a disk."""

    def __init__(self, disk: Disk, who: str, clock: ManualClock, carried: Carried, rng: Random) -> None:
        super().__init__(disk.name, id=disk.id, blank=True, clock=clock, capacity_bytes=1024 * GIB)
        self.files = disk.files
        self.disk, self.who = disk, who
        self.troubled_s = float("-inf")  # when something was last wrong with it (monotonic)
        self._rule: Callable[[Request], int] | None = None
        self.fault = self._about_to
        self.failed_at: dict[str, int] = {}  # by volume's path: from where on a write or sync failed
        self.written: dict[int, tuple[Request, Pool, int]] = {}  # what a write was given: its memory may not change
        self._carried, self._rng = carried, rng
        disk.views.append(self)

    @property
    def rule(self) -> Callable[[Request], int] | None:
        """Which requests fail, with which error number."""
        return self._rule

    @rule.setter
    def rule(self, rule: Callable[[Request], int] | None) -> None:
        self._rule, self.troubled_s = rule, self.clock.monotonic_s()

    @property
    def well(self) -> bool:
        """Whether nothing is wrong with it."""
        return not self.held and self.rule is None and self.mounted

    def kill_workers(self) -> None:
        super().kill_workers()
        self.troubled_s = self.clock.monotonic_s()

    def crash(self, rng: Random | None = None) -> None:
        super().crash(rng)
        self.troubled_s = self.clock.monotonic_s()

    def start_appender(self, pool: Pool) -> MemoryAppender:
        self.need_place()
        return _Appender(self, pool)

    def _about_to(self, request: Request) -> int:
        code = self.rule(request) if self.rule is not None else 0
        if request.verb is Verb.SYNC and request.path in self.disk.lost:
            self.disk.lost.discard(request.path)
            code = errno.EIO
        if not code:
            self._carried(self, request)
        given = self.written.pop(id(request), None)
        if code == errno.EIO and request.verb is Verb.APPEND and given is not None:
            self._half_done(request, given[1])
        return code

    def _half_done(self, request: Request, pool: Pool) -> None:
        """A write that fails may have reached some sectors."""
        for worker in self._workers:
            if isinstance(worker, MemoryAppender):
                file = worker._handles.get(request.handle)
                if file is not None and worker._pool is pool and request.handle not in worker._refused:
                    write_sectors(file, request.offset, pool.view(Extent(request.extent, request.length)), self._rng)

    @property
    def quiet(self) -> bool:
        """Whether no call of any of its workers is still to come."""
        return not any(worker.line for worker in self._workers)


class _Appender(MemoryAppender):
    """Notes what each write was given."""

    def __init__(self, view: View, pool: Pool) -> None:
        super().__init__(view, pool)
        self._view = view
        self._paths: dict[int, str] = {}  # by handle

    def submit(self, request: Request) -> int:
        if request.verb in WRITES and not (self.dead or self.abandoned):
            # The request itself is kept, so that its id is nobody else's.
            self._view.written[id(request)] = (request, self._pool, crc32c(self._pool.view(Extent(request.extent, request.length))))
        if request.verb is Verb.OPEN:
            self._paths[request.handle] = request.path2
        return super().submit(request)

    def failed(self, request: Request) -> None:
        super().failed(request)
        path = self._paths.get(request.handle)
        if path is not None and request.verb in WRITES:
            self._view.failed_at[path] = min(request.offset, self._view.failed_at.get(path, request.offset))
