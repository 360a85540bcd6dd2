"""Live reading: everything from a point in time on, and then what becomes durable, for as long as somebody listens.

    history  [start, what is durable now)     as `FootageReader.pieces`
    tail     every volume has a cursor, the next batch to look at; what a recorder commits appears behind it

Invariant: each fragment once, and none left out, also when the wall clock steps back meanwhile: the tail goes by batches, not by
time. Within the tail, fragments come in the order in which they were committed; a gap comes when it is opened and again, with its end, when
it is closed. `None` means: nothing new now, ask again in a moment.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, TypeVar

from nvrstore.catalog.coverage import HoleReason
from nvrstore.catalog.query import END_OF_TIME_NS, CatalogReader
from nvrstore.catalog.views import VolumeInfo
from nvrstore.model import NS_PER_S, Gap, Media
from nvrstore.playback.reader import FootageReader, Identity, Lot, Piece, StoredFragment

SLACK_NS: Final = 60 * NS_PER_S  # volumes that were opened and closed between two looks are found by time, so far back
REMEMBERED: Final = 4096  # finished volumes, told gaps, fragments handed out at the seam

K = TypeVar("K")
V = TypeVar("V")


class Follower:
    """One listener's position in one stream."""

    def __init__(self, reader: FootageReader, stream: str, start_ns: int, media: Media | None = None) -> None:
        self._reader, self._stream, self._start_ns, self._media = reader, stream, start_ns, media
        self._cursors: dict[str, int] = {}  # volume id -> next batch
        self._finished: OrderedDict[str, None] = OrderedDict()
        self._handed: OrderedDict[Identity, None] = OrderedDict()
        self._gaps: OrderedDict[str, int | None] = OrderedDict()  # id -> end, as last told
        self._at_ns = start_ns  # the latest end that was handed out
        self._holes_ns = start_ns  # up to here holes were told

    def pieces(self) -> Iterator[Piece | None]:
        """Never ends. Raises `NvrstoreError` where the catalog cannot be read."""
        catalog = self._reader.library.reader()
        known = catalog.bounds(self._stream)
        until_ns = max(self._start_ns, known[1]) if known else self._start_ns
        for volume in catalog.open_volumes():
            self._cursors[volume.volume_id] = volume.batches
        for span in catalog.spans(self._stream, until_ns - SLACK_NS, END_OF_TIME_NS, self._media):
            if span.volume_id not in self._cursors:
                _remember(self._finished, span.volume_id, None)
        if known and until_ns > self._start_ns:
            for piece in self._reader.pieces(self._stream, self._start_ns, until_ns, self._media):
                yield from self._told(piece)
        self._at_ns = self._holes_ns = until_ns
        while True:
            yield from self._tail(self._reader.library.reader())
            yield None

    def _tail(self, catalog: CatalogReader) -> Iterator[Piece]:
        volumes = {volume.volume_id: volume for volume in catalog.open_volumes()}
        spans = catalog.spans(self._stream, self._at_ns - SLACK_NS, END_OF_TIME_NS, self._media)
        for volume_id in {span.volume_id for span in spans} | set(self._cursors):
            if volume_id in volumes or volume_id in self._finished:
                continue
            closed = catalog.volume(volume_id)
            if closed is None:
                self._cursors.pop(volume_id, None)  # retention took it
            else:
                volumes[volume_id] = closed
        for volume in sorted(volumes.values(), key=lambda volume: volume.order):
            yield from self._behind_cursor(catalog, volume)
        yield from self._ledger(catalog)

    def _behind_cursor(self, catalog: CatalogReader, volume: VolumeInfo) -> Iterator[Piece]:
        first = self._cursors.get(volume.volume_id, 0)
        if volume.batches > first:
            spans = [span for span in catalog.spans_of(volume.volume_id, self._stream, self._media) if span.last_batch >= first]
            lots, holes = self._reader.lots_of(catalog, {volume.volume_id: spans}, first_batch=first) if spans else ([], [])
            new = sorted((lot for lot in lots if lot.identity not in self._handed), key=_written)
            for piece in self._reader.fetch([*new, *holes]):
                yield from self._told(piece)
        self._cursors[volume.volume_id] = max(first, volume.batches)
        if volume.closed:
            del self._cursors[volume.volume_id]
            _remember(self._finished, volume.volume_id, None)

    def _ledger(self, catalog: CatalogReader) -> Iterator[Piece]:
        for gap in catalog.gaps(self._stream, self._at_ns - SLACK_NS):
            if gap.end_ns is None or gap.end_ns > self._start_ns:
                yield from self._told(gap)
        if self._at_ns > self._holes_ns:
            account = catalog.coverage(self._stream, self._holes_ns, self._at_ns)
            yield from account.unexplained
            self._holes_ns = self._at_ns

    def _told(self, piece: Piece) -> Iterator[Piece]:
        """`piece`, unless it is a gap that was told as it is now."""
        if isinstance(piece, StoredFragment):
            _remember(self._handed, (piece.track, piece.session, piece.index), None)
            self._at_ns = max(self._at_ns, piece.end_ns)
        elif isinstance(piece, Gap):
            if self._gaps.get(piece.id, -1) == piece.end_ns:
                return
            _remember(self._gaps, piece.id, piece.end_ns)
        elif piece.reason is HoleReason.OUTSIDE:
            return  # before the first fragment there is nothing to wait for, behind the last one everything
        yield piece


def _remember(shelf: OrderedDict[K, V], key: K, value: V) -> None:
    shelf[key] = value
    while len(shelf) > REMEMBERED:
        shelf.popitem(last=False)


def _written(lot: Lot) -> tuple[int, int]:
    return (lot.places[0].offset, lot.entry.index)
