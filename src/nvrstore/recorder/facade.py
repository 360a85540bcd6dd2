"""`Recorder` and `Stream`: the recorder for hosts on asyncio or trio.

    async with nvrstore.Recorder(config) as recorder:
        gate = await recorder.add_stream(StreamConfig(id="gate", url="rtsp://10.0.0.5/main"))
        await gate.mark("person", start, end, {"score": 0.93})

A thin face over core.py: it starts and stops it in a thread, and waits for it by descriptors. A dead camera or target is a
state and an event, never an exception; the host's body is cancelled only by `RecorderFailedError`.
Every stream of values is used under `async with`, is bounded, and says what it dropped.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import anyio.to_thread

from nvrstore.config import Config, StreamConfig
from nvrstore.errors import ClosedError, ForkedError, RecorderFailedError, UsageError
from nvrstore.events import Event, EventsDropped
from nvrstore.failover.members import Told
from nvrstore.ingest.status import StreamStatus
from nvrstore.ingest.supervisor import ResolveStream, resolve_configured
from nvrstore.ingest.taps import Tap, TapSample
from nvrstore.recorder.bridge import Bell, Inbox, settled
from nvrstore.recorder.bus import LISTENER_EVENTS_MAX, Mailbox
from nvrstore.recorder.core import RecorderCore
from nvrstore.recorder.wiring import MakeTarget, make_target
from nvrstore.times import Moment, to_utc_ns

T = TypeVar("T")


class Stream:
    """One stream of a running recorder."""

    def __init__(self, recorder: Recorder, stream_id: str) -> None:
        self._recorder, self.id = recorder, stream_id

    @property
    def config(self) -> StreamConfig:
        return self._recorder._core.supervisor(self.id).config

    def status(self) -> StreamStatus:
        """A frozen snapshot; never blocks."""
        return self._recorder._core.supervisor(self.id).status()

    @asynccontextmanager
    async def tap(self, *, keyframes_only: bool = False, audio: bool = False) -> AsyncIterator[Inbox[TapSample]]:
        """Live samples for analytics: no second session with the camera. A slow consumer loses whole GOPs, recording nothing."""
        core = self._recorder._checked()
        bell = Bell()
        tap = Tap(bell.ring, keyframes_only=keyframes_only, audio=audio)
        supervisor = core.supervisor(self.id)
        supervisor.add_tap(tap)

        def leave() -> None:
            supervisor.remove_tap(tap)
            tap.close()

        inbox: Inbox[TapSample] = Inbox(bell, tap.take, lambda: tap.closed, leave)
        try:
            yield inbox
        finally:
            await inbox.aclose()

    async def mark(self, kind: str, start: Moment, end: Moment, data: Mapping[str, Any] | None = None, *, copies: int = 1) -> str:
        """Store an event with the footage; returns its id when it is durable on `copies` copies.

        `start` and `end`: aware datetimes or UTC nanoseconds. Raises UsageError for data that JSON cannot carry (NaN
        neither), or too much, and for more copies than the journal keeps.
        """
        start_ns, end_ns = to_utc_ns(start), to_utc_ns(end)
        if end_ns < start_ns:
            raise UsageError("a mark ends before it starts")
        mark_id, durable = self._recorder._checked().mark(self.id, kind, start_ns, end_ns, dict(data or {}), copies)
        await settled(durable)
        return mark_id

    async def trigger(self, name: str, *, pre_s: float = 10.0, post_s: float = 20.0) -> None:
        """Event recording: keep the last `pre_s` and the next `post_s` seconds."""
        self._recorder._checked().supervisor(self.id).trigger(name, pre_s=pre_s, post_s=post_s)
        await anyio.lowlevel.checkpoint()

    async def wait_durable(self, until: Moment, *, copies: int = 1) -> None:
        """Return when everything recorded of this stream up to `until` is on `copies` copies."""
        await settled(self._recorder._checked().durability.wait_footage(self.id, to_utc_ns(until), copies))

    def durable_until(self, copies: int = 1) -> datetime | None:
        """Up to when everything is on `copies` copies; None while nothing is."""
        return self._recorder._core.durable_until(self.id, copies)


class Recorder:
    """Records until its `async with` block ends. See the module.

    `resolve` is asked at every connect for URL and login (a vault, ONVIF, a token URL); it runs in a thread of ingest and
    may raise `SourceError`. Raises on entering: `ConfigError`, `JournalInUseError`, `TargetIdentityError`.
    """

    def __init__(
        self, config: Config, *, resolve: ResolveStream = resolve_configured, take_over: bool = False, make: MakeTarget = make_target
    ) -> None:
        self._core = RecorderCore(config, resolve=resolve, take_over=take_over, make=make)
        self._pid = os.getpid()
        self._entered = self._left = False

    @property
    def config(self) -> Config:
        return self._core.config

    async def __aenter__(self) -> Self:
        if self._entered:
            raise UsageError("a Recorder is entered once; make another one")
        self._entered = True
        # A thread of its own: shared default executors may be full of the host's work.
        self._threads = anyio.CapacityLimiter(8)
        await self._start()
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._watch)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool | None:
        failed = self._core.failed.done()
        try:
            if failed:
                await self._tasks.__aexit__(kind, error, trace)
            else:
                self._tasks.cancel_scope.cancel()
                await self._tasks.__aexit__(None, None, None)
        except BaseExceptionGroup as group:
            own, _ = group.split(RecorderFailedError)
            if own is None:
                raise
            raise _first(own) from None
        finally:
            self._left = True
            with anyio.CancelScope(shield=True):
                await self._run(self._core.stop)
        return None

    async def _start(self) -> None:
        """Start the core; a host that is cancelled meanwhile does not wait until another recorder has stood still."""
        problem: Exception | None = None
        started = False
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._give_up_when_cancelled)
                try:
                    await self._run(self._core.start)
                    started = True
                except Exception as error:  # noqa: BLE001 - raised below, as it is and not in a group
                    problem = error
                tasks.cancel_scope.cancel()
        except BaseException:
            if started:
                with anyio.CancelScope(shield=True):
                    await self._run(self._core.stop)
            raise
        if problem is not None:
            raise problem

    async def _give_up_when_cancelled(self) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            self._core.give_up()

    async def _watch(self) -> None:
        try:
            await settled(self._core.failed)
        except Exception as error:
            raise RecorderFailedError(f"the recorder cannot go on: {error}") from error

    async def _run(self, call: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(call, limiter=self._threads)

    def _checked(self) -> RecorderCore:
        if os.getpid() != self._pid:
            raise ForkedError("this Recorder belongs to the process that made it")
        if not self._entered or self._left:
            raise ClosedError("the Recorder is not running: use it inside its `async with` block")
        return self._core

    # --- streams

    async def add_stream(self, stream: StreamConfig) -> Stream:
        """Record one more stream from now on. Raises `UsageError` for an id that is in use or a journal that is unknown."""
        await self._run(partial(self._checked().add_stream, self.config.complete(stream)))
        return Stream(self, stream.id)

    async def remove_stream(self, stream_id: str) -> None:
        """Record it no longer; what is stored stays."""
        await self._run(partial(self._checked().remove_stream, stream_id))

    def stream(self, stream_id: str) -> Stream:
        """Raises `NotFoundError` for an id that is not recorded."""
        self._checked().supervisor(stream_id)
        return Stream(self, stream_id)

    def streams(self) -> list[Stream]:
        return [Stream(self, stream_id) for stream_id in self._checked().stream_ids()]

    async def apply(self, config: Config) -> list[str]:
        """Make the running recorder follow `config`: streams come, go and change. Returns what needs a restart, in words.

        Raises `UsageError` where a stream wants a journal that the recorder was not started with; then nothing was changed.
        """
        return await self._run(partial(self._checked().apply, config))

    # --- looking and steering

    def statistics(self) -> dict[str, Any]:
        """A snapshot of everything as JSON values, the same as `nvrstore status --json`; never blocks on a camera or a target."""
        return self._checked().status()

    @asynccontextmanager
    async def events(self, *kinds: type[Event]) -> AsyncIterator[Inbox[Event]]:
        """What happens from now on; all kinds where none is named. Bounded: a slow listener loses the oldest, and gets `EventsDropped`."""
        core = self._checked()
        bell = Bell()
        box: Mailbox[Event] = Mailbox(LISTENER_EVENTS_MAX, bell.ring)
        core.bus.listen(kinds, box)

        def take() -> list[Event]:
            missing, happened = box.take_counted()
            return [EventsDropped(utc_ns=core.clock.utc_ns(), count=missing), *happened] if missing else happened

        inbox: Inbox[Event] = Inbox(bell, take, lambda: box.closed, lambda: core.bus.leave(box))
        try:
            yield inbox
        finally:
            await inbox.aclose()

    async def drain(self, target: str) -> bool:
        """Take a target out for maintenance, in order. Whether it can be unmounted now: nothing of this recorder is open there.

        False: it hangs, and workers are stuck in it. Drained it is all the same.
        """
        return await self._run(partial(self._checked().drain, target))

    async def take_back(self, target: str) -> dict[str, Told]:
        """Maintenance is over: the target returns, is resynced, gets its role back. What comes of it, by journal.

        With `failback = "manual"`, once it is in step again: it is primary again, where it stands before the present one.
        """
        return await self._run(partial(self._checked().take_back, target))


def _first(group: BaseExceptionGroup[RecorderFailedError]) -> RecorderFailedError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
