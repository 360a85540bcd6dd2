"""`Archive`: what is stored, for hosts on asyncio or trio. Works while the recorder is down, and beside a running one.

    async with nvrstore.Archive(config) as archive:
        async with archive.read("gate", start, end) as pieces:         Fragment | Gap | Hole; end=None follows live
            async for piece in pieces: ...
        report = await archive.export(["gate"], start, end, "clip.mp4")
        coverage = await archive.coverage("gate", start, end)

A thin face over playback/core.py, which waits for targets in threads of its own limiter: the host's loop is never blocked,
and the host's default threads are never used up. Times are aware datetimes or UTC nanoseconds.
"""

from __future__ import annotations

import inspect
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self, TypeVar, cast

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
from anyio.abc import ObjectReceiveStream

from nvrstore.catalog.coverage import Coverage
from nvrstore.catalog.query import END_OF_TIME_NS
from nvrstore.catalog.views import SpanInfo, StreamInfo, VolumeInfo
from nvrstore.config import Config
from nvrstore.errors import ClosedError, ForkedError, UsageError
from nvrstore.limits import MIB
from nvrstore.model import Gap, Mark, Media
from nvrstore.playback.core import ArchiveCore
from nvrstore.playback.export import ExportProgress, ExportReport, Sink
from nvrstore.playback.reader import Piece, StoredFragment
from nvrstore.playback.verify import VerifyProgress, VerifyReport
from nvrstore.times import Moment, to_utc_ns

T = TypeVar("T")

THREADS: Final = 8  # questions that wait for targets at once
TAKE_BYTES: Final = 2 * MIB  # footage that one trip to a thread brings
TAKE_PIECES: Final = 64
POLL_S: Final = 0.3  # a live reader that has everything asks again after this


class AsyncSink(Protocol):
    """An asynchronous file object: aiofiles' (asyncio only) or anyio's."""

    def write(self, data: bytes, /) -> Awaitable[object]: ...


class Pieces(ObjectReceiveStream[Piece]):
    """Footage, one piece at a time; nothing is read ahead of what the receiver takes but a few MiB."""

    def __init__(self, source: Iterator[Piece | None], run: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
        self._source, self._run = source, run
        self._waiting: deque[Piece] = deque()
        self._ended = self._closed = self._busy = False

    async def receive(self) -> Piece:
        """The next piece. Raises `anyio.EndOfStream` behind the last one, `NvrstoreError` where the archive cannot be asked."""
        if self._busy:
            raise anyio.BusyResourceError("receiving from")
        self._busy = True
        try:
            while not self._waiting:
                if self._closed:
                    raise anyio.ClosedResourceError
                if self._ended:
                    raise anyio.EndOfStream
                await self._run(self._take)
                if not self._waiting and not self._ended:
                    await anyio.sleep(POLL_S)
            else:
                await anyio.lowlevel.checkpoint()
        finally:
            self._busy = False
        return self._waiting.popleft()

    async def aclose(self) -> None:
        """Give it up; what was read ahead is dropped."""
        self._closed = True
        self._waiting.clear()
        await anyio.lowlevel.checkpoint()

    def _take(self) -> None:
        """In a thread: what is read goes into the stream at once, so that a cancelled `receive` loses nothing."""
        size = 0
        while size < TAKE_BYTES and len(self._waiting) < TAKE_PIECES and not self._closed:
            try:
                piece = next(self._source)
            except StopIteration:
                self._ended = True
                return
            if piece is None:
                return
            self._waiting.append(piece)
            size += piece.length if isinstance(piece, StoredFragment) else 0


class Archive:
    """What is stored under a configuration. See the module."""

    def __init__(self, config: Config) -> None:
        self.config: Final = config
        self._pid = os.getpid()
        self._core: ArchiveCore | None = None
        self._left = False

    async def __aenter__(self) -> Self:
        if self._core is not None or self._left:
            raise UsageError("an Archive is entered once; make another one")
        self._check_process()
        self._threads = anyio.CapacityLimiter(THREADS)
        self._core = await anyio.to_thread.run_sync(ArchiveCore.configured, self.config, limiter=self._threads)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        core, self._core, self._left = self._core, None, True
        if core is not None:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(core.close, limiter=anyio.CapacityLimiter(1))

    # --- what is there

    async def streams(self, *, totals: bool = False) -> list[StreamInfo]:
        """Every stream of which something is stored, by id. `totals` adds fragments and bytes: slow in a large archive."""
        return await self._run(partial(self._checked().streams, totals=totals))

    async def volumes(self, journal: str | None = None) -> list[VolumeInfo]:
        """Volumes and their copies, in their order."""
        return await self._run(partial(self._checked().volumes, journal))

    async def spans(self, stream: str, start: Moment | None = None, end: Moment | None = None) -> list[SpanInfo]:
        """Unbroken stretches of a stream's tracks, volume by volume."""
        return await self._run(partial(self._checked().spans, stream, *_span(start, end)))

    async def gaps(self, stream: str | None = None, start: Moment | None = None, end: Moment | None = None) -> list[Gap]:
        """The gap ledger: what was not stored, with its cause and both ends (the end is None while it is open)."""
        return await self._run(partial(self._checked().gaps, stream, *_span(start, end)))

    async def marks(self, stream: str | None = None, start: Moment | None = None, end: Moment | None = None) -> list[Mark]:
        """Events that were stored with the footage."""
        return await self._run(partial(self._checked().marks, stream, *_span(start, end)))

    async def coverage(self, stream: str, start: Moment, end: Moment) -> Coverage:
        """How much of a span of time is stored, what the ledger says about the rest, and what nothing explains."""
        return await self._run(partial(self._checked().coverage, stream, to_utc_ns(start), to_utc_ns(end)))

    # --- footage

    @asynccontextmanager
    async def read(self, stream: str, start: Moment, end: Moment | None, *, media: Media | None = None) -> AsyncIterator[Pieces]:
        """Footage of [start, end) in order of time: `Fragment | Gap | Hole`; with `end=None` it follows live and never ends.

        Each fragment is read from the best copy, its checksum checked, and from another copy when a target errs, is damaged or
        hangs. `media` leaves the other track out. Raises `NotFoundError` for a stream that nobody knows.
        """
        core = self._checked()
        start_ns, end_ns = to_utc_ns(start), None if end is None else to_utc_ns(end)
        pieces = Pieces(await self._run(partial(core.pieces, stream, start_ns, end_ns, media)), self._run)
        try:
            yield pieces
        finally:
            with anyio.CancelScope(shield=True):
                await pieces.aclose()

    async def export(
        self,
        streams: Sequence[str],
        start: Moment,
        end: Moment,
        to: str | os.PathLike[str] | Sink | AsyncSink,
        *,
        on_progress: Callable[[ExportProgress], None] | None = None,
    ) -> ExportReport:
        """Footage as one MP4, to a path (it appears there whole, or not at all) or to a file object, synchronous or asynchronous.

        `on_progress` is called in a worker thread. Raises `NotFoundError` where nothing is stored, `UsageError`.
        """
        if isinstance(streams, str):
            raise UsageError("streams are a list of ids", hint=f"write [{streams!r}]")
        core = self._checked()
        target: Path | Sink
        if isinstance(to, str | os.PathLike):
            target = Path(to)
        elif inspect.iscoroutinefunction(to.write):
            target = _FromThread(cast("AsyncSink", to))
        else:
            target = cast("Sink", to)
        return await self._run(partial(core.export, list(streams), to_utc_ns(start), to_utc_ns(end), target, on_progress=on_progress))

    async def verify(
        self,
        targets: Sequence[str] | None = None,
        *,
        reference: bool = False,
        on_progress: Callable[[VerifyProgress], None] | None = None,
    ) -> VerifyReport:
        """Check every byte of every copy that has a checksum; compare the copies. Changes nothing.

        `reference` repeats it with an independent implementation of the checksum. `on_progress` is called in a worker thread.
        """
        return await self._run(partial(self._checked().verify, targets, reference=reference, on_progress=on_progress))

    # --- inside

    async def _run(self, call: Callable[[], T]) -> T:
        self._check_process()
        return await anyio.to_thread.run_sync(call, limiter=self._threads)

    def _checked(self) -> ArchiveCore:
        self._check_process()
        if self._core is None:
            raise ClosedError("the Archive is not open: use it inside its `async with` block")
        return self._core

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedError("this Archive belongs to the process that made it")


class _FromThread:
    """An asynchronous file object for a worker thread."""

    def __init__(self, sink: AsyncSink) -> None:
        self._sink = sink

    def write(self, data: bytes | bytearray, /) -> None:
        anyio.from_thread.run(self._write, bytes(data))

    async def _write(self, data: bytes) -> None:
        await self._sink.write(data)


def _span(start: Moment | None, end: Moment | None) -> tuple[int, int]:
    return (0 if start is None else to_utc_ns(start)), (END_OF_TIME_NS if end is None else to_utc_ns(end))
