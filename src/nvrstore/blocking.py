"""The same recorder and archive for hosts without an event loop: `with nvrstore.blocking(config) as recorder: ...`.

An event loop of our own runs in a thread; every method here hands its async counterpart to it and waits. Streams of values
are plain iterators. Thread-safe: any thread of the host may call anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

import anyio
from anyio.abc import ObjectReceiveStream
from anyio.from_thread import BlockingPortal, start_blocking_portal

from nvrstore.archive import Archive
from nvrstore.config import Config, StreamConfig
from nvrstore.events import Event
from nvrstore.failover.members import Told
from nvrstore.ingest.status import StreamStatus
from nvrstore.ingest.supervisor import ResolveStream, resolve_configured
from nvrstore.ingest.taps import TapSample
from nvrstore.recorder.facade import Recorder, Stream
from nvrstore.times import Moment

T = TypeVar("T")


class Values(Generic[T]):
    """A bounded stream of values as an iterator; ends when its source ends. `next_within` for those who poll."""

    def __init__(self, portal: BlockingPortal, inbox: ObjectReceiveStream[T]) -> None:
        self._portal, self._inbox = portal, inbox

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        try:
            return self._portal.call(self._inbox.receive)
        except anyio.EndOfStream:
            raise StopIteration from None

    def next_within(self, timeout_s: float) -> T | None:
        """The next value, or None when none comes within `timeout_s`."""

        async def receive() -> T | None:
            with anyio.move_on_after(timeout_s):
                return await self._inbox.receive()
            return None

        return self._portal.call(receive)


class BlockingStream:
    """`Stream`, waiting instead of awaiting."""

    def __init__(self, portal: BlockingPortal, stream: Stream) -> None:
        self._portal, self._stream, self.id = portal, stream, stream.id

    @property
    def config(self) -> StreamConfig:
        return self._stream.config

    def status(self) -> StreamStatus:
        return self._stream.status()

    def mark(self, kind: str, start: Moment, end: Moment, data: Mapping[str, Any] | None = None, *, copies: int = 1) -> str:
        return self._portal.call(partial(self._stream.mark, kind, start, end, data, copies=copies))

    def trigger(self, name: str, *, pre_s: float = 10.0, post_s: float = 20.0) -> None:
        self._portal.call(partial(self._stream.trigger, name, pre_s=pre_s, post_s=post_s))

    def wait_durable(self, until: Moment, *, copies: int = 1) -> None:
        self._portal.call(partial(self._stream.wait_durable, until, copies=copies))

    @contextmanager
    def tap(self, *, keyframes_only: bool = False, audio: bool = False) -> Iterator[Values[TapSample]]:
        tap = self._stream.tap(keyframes_only=keyframes_only, audio=audio)
        with self._portal.wrap_async_context_manager(tap) as samples:
            yield Values(self._portal, samples)


class BlockingRecorder:
    """`Recorder`, waiting instead of awaiting. Made by `blocking`."""

    def __init__(self, portal: BlockingPortal, recorder: Recorder) -> None:
        self._portal, self._recorder = portal, recorder

    def add_stream(self, stream: StreamConfig) -> BlockingStream:
        return BlockingStream(self._portal, self._portal.call(self._recorder.add_stream, stream))

    def remove_stream(self, stream_id: str) -> None:
        self._portal.call(self._recorder.remove_stream, stream_id)

    def stream(self, stream_id: str) -> BlockingStream:
        return BlockingStream(self._portal, self._recorder.stream(stream_id))

    def streams(self) -> list[BlockingStream]:
        return [BlockingStream(self._portal, stream) for stream in self._recorder.streams()]

    def apply(self, config: Config) -> list[str]:
        return self._portal.call(self._recorder.apply, config)

    def statistics(self) -> dict[str, Any]:
        return self._recorder.statistics()

    def drain(self, target: str) -> bool:
        return self._portal.call(self._recorder.drain, target)

    def take_back(self, target: str) -> dict[str, Told]:
        return self._portal.call(self._recorder.take_back, target)

    @contextmanager
    def events(self, *kinds: type[Event]) -> Iterator[Values[Event]]:
        with self._portal.wrap_async_context_manager(self._recorder.events(*kinds)) as happened:
            yield Values(self._portal, happened)


@contextmanager
def blocking(config: Config, *, resolve: ResolveStream = resolve_configured, take_over: bool = False) -> Iterator[BlockingRecorder]:
    """Record while the `with` block runs. Raises what `Recorder` raises on entering."""
    with start_blocking_portal() as portal:
        recorder = Recorder(config, resolve=resolve, take_over=take_over)
        entered: AbstractContextManager[Recorder] = portal.wrap_async_context_manager(recorder)
        with entered as running:
            yield BlockingRecorder(portal, running)


class BlockingArchive:
    """`Archive`, waiting instead of awaiting. Made by `blocking_archive`."""

    def __init__(self, portal: BlockingPortal, archive: Archive) -> None:
        self._portal, self._archive = portal, archive

    def call(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Any coroutine method of `Archive` by its name: `call("gaps", "gate", start, end)`."""
        return self._portal.call(partial(getattr(self._archive, method), *arguments, **named))

    def export(self, streams: list[str], start: Moment, end: Moment, to: Path | str | BinaryIO, **named: Any) -> Any:
        return self.call("export", streams, start, end, to, **named)

    def coverage(self, stream: str, start: Moment, end: Moment) -> Any:
        return self.call("coverage", stream, start, end)

    @contextmanager
    def read(self, stream: str, start: Moment, end: Moment | None, **named: Any) -> Iterator[Values[Any]]:
        with self._portal.wrap_async_context_manager(self._archive.read(stream, start, end, **named)) as pieces:
            yield Values(self._portal, pieces)


@contextmanager
def blocking_archive(config: Config) -> Iterator[BlockingArchive]:
    """Read what is stored; works while the recorder is down."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(Archive(config)) as archive:
        yield BlockingArchive(portal, archive)
