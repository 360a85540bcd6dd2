"""The next volume's file on one target, made ready before it is needed.

    want(length) --PREPARE--> ready --take()--> becomes a volume when the appender links it to its name

The keeper preallocates under `.next/`, so that opening a volume is one small write and two directory syncs. A full disk
is noticed here, before any footage is concerned: `on_full` calls retention, and the target is given up only when no file
can be prepared for `FULL_S`.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from nvrstore.journal.names import next_path, volume_day
from nvrstore.replicate.contract import LaneHost
from nvrstore.replicate.port import Port
from nvrstore.replicate.volume import CopyState, OpenVolume
from nvrstore.targets.contract import UNAVAILABLE, Answer, Request, Verb
from nvrstore.telemetry import get_logger

log = get_logger("replicate.prepare")

RETRY_S: Final = 0.25
FULL_S: Final = 20.0  # retention deletes by whole volumes in milliseconds; after this long it has nothing left to delete
FULL_STALL_S: Final = 3.0  # where another member has the volume already, its commits wait only so long for that

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Preparer:
    """Keeps one prepared file for one lane on one target."""

    def __init__(
        self,
        port: Port,
        journal: str,
        *,
        session: int,
        post: Callable[[Callable[[], None]], None],
        on_full: Callable[[], None],
        utc_ns: Callable[[], int],
    ) -> None:
        self._port, self._journal, self._session = port, journal, session
        self._post, self._on_full, self._utc_ns = post, on_full, utc_ns
        self._path: str | None = None
        self.length = 0
        self._asked: str | None = None
        self._retry_s = 0.0
        self._full_since_s: float | None = None
        self._generation = -1

    def want(self, length: int, now_s: float) -> None:
        """Have a file of `length` bytes prepared, unless one is ready or on its way."""
        if self._generation != self._port.generation:
            # What was prepared before the target went away is a leftover: upkeep clears `.next` when it returns.
            self._path = self._asked = self._full_since_s = None
            self._retry_s, self._generation = 0.0, self._port.generation
        if self._path is not None or self._asked is not None or now_s < self._retry_s:
            return
        path = next_path(self._journal, f"{self._session:016x}-{self._generation}-{secrets.token_hex(8)}")
        self._asked, self.length = path, length
        # The day's folder too, while there is room: opening a volume on a full disk must not need any.
        day_path = volume_day(self._journal, self._utc_ns())
        self._port.target.keeper.submit(Request(Verb.MKDIR, path=day_path))
        future = self._port.target.keeper.submit(Request(Verb.PREPARE, path=path, length=length))
        future.add_done_callback(lambda done: self._post(lambda: self._prepared(path, done, now_s)))

    @property
    def ready(self) -> bool:
        return self._path is not None and self._generation == self._port.generation

    @property
    def full(self) -> bool:
        """Whether the last file that was wanted found no space."""
        return self._full_since_s is not None

    def take(self) -> str | None:
        """The prepared file's path, which is the caller's from now on; None while there is none."""
        if not self.ready:
            return None
        path, self._path = self._path, None
        return path

    def discard(self, path: str) -> None:
        """A file that was taken could not be opened as a volume: its space is wanted."""
        self._port.target.keeper.submit(Request(Verb.UNLINK, path=path))

    def drop(self) -> None:
        """Remove the prepared file, also one that is on its way: the recorder stops. What is missed is cleared at the next start."""
        path = self.take() or self._asked
        self._asked = None
        if path is not None:  # the keeper does one after the other: this comes behind a PREPARE
            self.discard(path)

    def _prepared(self, path: str, done: Future[Answer], now_s: float) -> None:
        if self._asked != path:
            return  # of a time before the target went away
        self._asked = None
        answer = done.result()
        if answer.ok:
            self._path, self._full_since_s = path, None
            return
        self._retry_s = now_s + RETRY_S
        if answer.errno in _FULL:
            self._full_since_s = now_s if self._full_since_s is None else self._full_since_s
            if now_s - self._full_since_s > FULL_S:
                self._port.fail("full: no new volume can be prepared, and retention frees nothing", answer.errno)
            else:
                log.info("target.full", target=self._port.name, journal=self._journal)
                self._on_full()
        elif answer.errno != UNAVAILABLE:
            self._port.fail(f"preparing a volume: {os.strerror(answer.errno)}", answer.errno)


class Preparers:
    """One per target, for one lane."""

    def __init__(self, host: LaneHost) -> None:
        self._host = host
        self._all: dict[str, Preparer] = {}

    def on(self, target: str) -> Preparer:
        found = self._all.get(target)
        if found is None:
            host, spec = self._host, self._host.spec
            found = self._all[target] = Preparer(
                host.ports[target],
                spec.name,
                session=spec.session,
                post=host.post,
                on_full=lambda: host.observer.needs_space(spec.name, target),
                utc_ns=host.clock.utc_ns,
            )
        return found

    def give_up(self, volume: OpenVolume, now_s: float) -> None:
        """A full member, of which retention frees nothing, holds up what another one has: it leaves like one that is too slow."""
        if not any(copy.state is CopyState.OPEN for copy in volume.copies.values()):
            return
        for copy in volume.copies.values():
            port = self._host.ports[copy.target]
            waited = now_s - volume.opened_s > max(FULL_STALL_S, port.deadlines.lost_s)
            if waited and copy.state is CopyState.PREPARING and self.on(copy.target).full:
                port.fail("full: no new volume can be prepared, and the others wait for it", errno.ENOSPC)

    def drop(self) -> None:
        """Give all prepared files back."""
        for preparer in self._all.values():
            preparer.drop()
