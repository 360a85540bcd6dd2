"""Reads footage of one stream: `Fragment | Gap | Hole`, in order of time.

    catalog: spans ─▶ Lots ─────▶ fetch ───────────────────────▶ weave ─▶ pieces
                      one per      best copy, checksum,            with gaps of the ledger
                      identity     else the next copy              and holes that nothing explains

A *lot* is one fragment, wherever it lies: in several copies of a volume, sometimes (written back from refuge, replayed) in several
volumes. Only identity (track, session, index) makes two fragments one; runs that overlap in UTC are all listed.

Invariants: no byte is handed out whose checksum does not match. A target that errs, is damaged or hangs costs time, never
footage, while another copy lives. Whatever is not handed out is a Gap or a Hole. Memory is bounded by `AHEAD_BYTES` and one window.
Synchronous; runs in a worker thread of `Archive`, never on an event loop.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from nvrstore.catalog.coverage import Hole, HoleReason
from nvrstore.catalog.query import END_OF_TIME_NS, CatalogReader
from nvrstore.catalog.rows import BatchRow
from nvrstore.catalog.views import SpanInfo, VolumeInfo
from nvrstore.checksum import crc32c
from nvrstore.errors import NotFoundError, NvrstoreError, TargetError
from nvrstore.journal.model import FragmentEntry, VolumeHeader
from nvrstore.limits import KEEPER_PIECE_BYTES, KIB, MIB
from nvrstore.media.boxes import HEADER
from nvrstore.model import NS_PER_S, Fragment, Gap, Media, TrackKey
from nvrstore.playback.copies import Copies, Pending
from nvrstore.playback.directory import Directories, Place, ranked
from nvrstore.playback.library import Library
from nvrstore.telemetry import get_logger

log = get_logger(__name__)

WINDOW_NS: Final = 60 * NS_PER_S  # directories are read for so much time at once
AHEAD_BYTES: Final = 4 * MIB  # asked of keepers before it is wanted
WASTE_BYTES: Final = 256 * KIB  # read between two fragments rather than asking twice


@dataclass(frozen=True, slots=True)
class StoredFragment(Fragment):
    """A fragment as it was stored: its one part is `moof` + `mdat` with the volume's own sequence number, track_ID and time."""

    volume_id: str = ""
    path: str = ""  # of the volume, on every target
    target: str = ""  # which copy it was read from

    @property
    def data(self) -> bytes:
        """`moof` + `mdat`."""
        return bytes(self.parts[0])


Piece = StoredFragment | Gap | Hole
Identity = tuple[TrackKey, int, int]  # track, session, index: for ever


@dataclass(frozen=True, slots=True)
class Lot:
    """One fragment and all places where it lies; `header` is that of the first place's volume."""

    identity: Identity
    places: tuple[Place, ...]
    header: VolumeHeader = field(repr=False)

    @property
    def entry(self) -> FragmentEntry:
        return self.places[0].entry

    @property
    def end_ns(self) -> int:
        timescale = self.header.tracks[self.entry.track_id - 1].config.timescale
        return self.entry.utc_ns + self.entry.duration * NS_PER_S // timescale

    @property
    def order(self) -> tuple[int, str, int, int]:
        track, session, index = self.identity
        return (self.entry.utc_ns, str(track.media), session, index)


@dataclass(slots=True)
class _Chunk:
    """Neighbouring fragments that are read with one request (several where one fragment is larger than 1 MiB)."""

    target: str
    path: str
    offset: int
    end: int
    lots: list[Lot]
    pending: list[Pending] = field(default_factory=list)


class FootageReader:
    """Reads from the copies of a library."""

    def __init__(self, library: Library, copies: Copies, *, on_damage: Callable[[str, str, int], None] | None = None) -> None:
        """`on_damage(target, path, offset)` hears of every fragment whose checksum does not match."""
        self.library: Final = library
        self.copies: Final = copies
        self.directories: Final = Directories(copies)
        self._on_damage = on_damage

    def pieces(self, stream: str, start_ns: int, end_ns: int, media: Media | None = None) -> Iterator[Piece]:
        """Everything of [start_ns, end_ns), and the fragments that reach into it. `media` leaves out the other tracks."""
        account = self.library.reader().coverage(stream, start_ns, end_ns)
        told: list[Gap | Hole] = sorted([*account.gaps, *account.holes], key=lambda t: (t.start_ns, t.end_ns or 0))
        yield from weave(self.fetch(self.lots(stream, start_ns, end_ns, media)), told)

    # --- where

    def lots(self, stream: str, start_ns: int, end_ns: int, media: Media | None = None) -> Iterator[Lot | Hole]:
        """The fragments of [start_ns, end_ns) in order of time, from the directories alone: nothing is fetched, nothing checked.

        Fragments whose directory no copy tells are holes.
        """
        at, first = start_ns, True
        while at < end_ns:
            catalog = self.library.reader()
            until = min(at + WINDOW_NS, end_ns)
            lots, holes = self.window(catalog, stream, at, until, media)
            found: list[Lot | Hole] = [lot for lot in lots if first or lot.entry.utc_ns >= at]
            found += [hole for hole in holes if first or hole.start_ns >= at]
            yield from sorted(found, key=order_of)
            following = until if catalog.spans(stream, until, until + 1, media) else catalog.next_start(stream, until)
            if following is None:
                return
            at, first = following, False

    def window(
        self, catalog: CatalogReader, stream: str, start_ns: int, end_ns: int, media: Media | None = None
    ) -> tuple[list[Lot], list[Hole]]:
        """The fragments that begin before `end_ns` and end behind `start_ns`, one lot per identity, in no order; and what is missing."""
        spans: dict[str, list[SpanInfo]] = {}
        for span in catalog.spans(stream, start_ns, end_ns, media):
            spans.setdefault(span.volume_id, []).append(span)
        lots, holes = self.lots_of(catalog, spans, start_ns=start_ns, end_ns=end_ns)
        inside = [lot for lot in lots if lot.end_ns > start_ns and lot.entry.utc_ns < end_ns]
        return inside, [hole for hole in holes if hole.end_ns > start_ns and hole.start_ns < end_ns]

    def lots_of(
        self,
        catalog: CatalogReader,
        spans: Mapping[str, Sequence[SpanInfo]],
        *,
        first_batch: int = 0,
        start_ns: int = 0,
        end_ns: int = END_OF_TIME_NS,
    ) -> tuple[list[Lot], list[Hole]]:
        """The fragments of spans (by volume id), at least those from `first_batch` on in [start_ns, end_ns); what no directory lists."""
        lots: dict[Identity, Lot] = {}
        broken: dict[str, NvrstoreError] = {}
        for volume_id, wanted in spans.items():
            volume = catalog.volume(volume_id)
            if volume is None:
                continue  # retention took it between two questions
            try:
                header = self.directories.header(volume)
                places = self._places(catalog, volume, wanted, first_batch, start_ns, end_ns)
            except NvrstoreError as error:
                broken[volume_id] = error
                continue
            for place in places:
                identity = (header.tracks[place.entry.track_id - 1].track, place.entry.session, place.entry.index)
                known = lots.get(identity)
                lots[identity] = Lot(identity, (place,), header) if known is None else Lot(identity, (*known.places, place), known.header)
        holes: list[Hole] = []
        for volume_id, wanted in spans.items():
            for span in wanted:
                problem = broken.get(volume_id)
                if problem is not None:
                    holes += _missing(span, lots, _reason(problem), problem.message, whole=True)
                else:
                    holes += _missing(span, lots, HoleReason.DAMAGED, "its batch header is damaged on every copy", whole=False)
        return list(lots.values()), holes

    def _places(
        self, catalog: CatalogReader, volume: VolumeInfo, spans: Sequence[SpanInfo], first_batch: int, start_ns: int, end_ns: int
    ) -> list[Place]:
        rows: list[BatchRow] = []
        if not volume.closed:
            rows = [row for row in catalog.batches(volume.volume_id) if row.last_ns > start_ns and row.first_ns < end_ns]
            volume = volume if rows else catalog.volume(volume.volume_id) or volume  # it may have been closed meanwhile
        tracks = {span.track_id for span in spans}
        first, last = min(span.first_batch for span in spans), max(span.last_batch for span in spans)
        return self.directories.places(volume, tracks, max(first, first_batch), last, rows)

    # --- the bytes

    def fetch(self, lots: Iterable[Lot | Hole]) -> Iterator[StoredFragment | Hole]:
        """The fragments of `lots`, in their order, read ahead; a lot of which no copy is whole becomes a hole."""
        waiting: deque[_Chunk | Hole] = deque()
        ahead = 0
        for item in self._chunks(lots):
            waiting.append(item)
            if isinstance(item, Hole):
                continue
            self._start(item)
            ahead += item.end - item.offset
            while ahead > AHEAD_BYTES and len(waiting) > 1:
                done = waiting.popleft()
                yield from self._finish(done)
                ahead -= 0 if isinstance(done, Hole) else done.end - done.offset
        while waiting:
            yield from self._finish(waiting.popleft())

    def _chunks(self, lots: Iterable[Lot | Hole]) -> Iterator[_Chunk | Hole]:
        """Neighbours in time that are neighbours in one file too, up to 1 MiB."""
        chunk: _Chunk | None = None
        for lot in lots:
            if isinstance(lot, Hole):
                if chunk is not None:
                    yield chunk
                    chunk = None
                yield lot
                continue
            place = lot.places[0]
            if (
                chunk is not None
                and chunk.path == place.volume.path
                and 0 <= place.offset - chunk.end <= WASTE_BYTES
                and place.end - chunk.offset <= KEEPER_PIECE_BYTES
                and not self.copies.avoided(chunk.target)
            ):
                chunk.end = place.end
                chunk.lots.append(lot)
                continue
            if chunk is not None:
                yield chunk
            targets = ranked(place.volume, self.copies, place.end)
            chunk = _Chunk(targets[0] if targets else "", place.volume.path, place.offset, place.end, [lot])
        if chunk is not None:
            yield chunk

    def _start(self, chunk: _Chunk) -> None:
        for at in range(chunk.offset, chunk.end, KEEPER_PIECE_BYTES):
            try:
                chunk.pending.append(self.copies.start(chunk.target, chunk.path, at, min(KEEPER_PIECE_BYTES, chunk.end - at)))
            except TargetError:
                chunk.pending.clear()  # no such target: `_finish` asks the others
                return

    def _finish(self, item: _Chunk | Hole) -> Iterator[StoredFragment | Hole]:
        if isinstance(item, Hole):
            yield item
            return
        data = b""
        try:
            data = b"".join([self.copies.finish(pending) for pending in item.pending])
        except TargetError as error:
            log.warning("copy.passed_over", target=item.target, path=item.path, problem=error.message)
        for lot in item.lots:
            place = lot.places[0]
            whole = data[place.offset - item.offset : place.end - item.offset]
            if whole and crc32c(whole) == lot.entry.crc and len(whole) == lot.entry.length:
                yield _fragment(lot, place, item.target, whole)
            else:
                yield self._elsewhere(lot, item.target, whole)

    def _elsewhere(self, lot: Lot, tried: str, whole: bytes) -> StoredFragment | Hole:
        """The fragment from another copy than the one that gave `whole`, or a hole that says why there is none."""
        told: list[str] = []
        damaged = False
        for place in lot.places:
            for target in ranked(place.volume, self.copies, place.end):
                if whole and place is lot.places[0] and target == tried:
                    data, error = whole, None
                else:
                    data, error = self._read(target, place)
                if error is not None:
                    told.append(error.message)
                    continue
                if len(data) == lot.entry.length and crc32c(data) == place.entry.crc:
                    return _fragment(lot, place, target, data)
                if data[: HEADER.size] == HEADER.pack(lot.entry.length, b"free"):
                    return _hole(lot, HoleReason.ERASED, "erased")
                damaged = True
                told.append(f"target {target!r}: {place.volume.path} is damaged at byte {place.offset}")
                log.warning("fragment.damaged", target=target, path=place.volume.path, offset=place.offset, length=lot.entry.length)
                if self._on_damage is not None:
                    self._on_damage(target, place.volume.path, place.offset)
        reason = HoleReason.DAMAGED if damaged else HoleReason.UNREACHABLE
        return _hole(lot, reason, "; ".join(told) or f"no target that holds {lot.places[0].volume.path} is known")

    def _read(self, target: str, place: Place) -> tuple[bytes, TargetError | None]:
        try:
            return self.copies.read(target, place.volume.path, place.offset, place.entry.length), None
        except TargetError as error:
            return b"", error


def weave(fragments: Iterable[StoredFragment | Hole], told: Iterable[Gap | Hole]) -> Iterator[Piece]:
    """Both in order of their start; a gap before the fragment that begins with it."""
    return heapq.merge(told, fragments, key=_start_ns)


def _start_ns(piece: Piece) -> int:
    return piece.utc_ns if isinstance(piece, StoredFragment) else piece.start_ns


def order_of(item: Lot | Hole) -> tuple[int, str, int, int]:
    """What lots and holes sort by: time first."""
    return (item.start_ns, "", 0, 0) if isinstance(item, Hole) else item.order


def _fragment(lot: Lot, place: Place, target: str, data: bytes) -> StoredFragment:
    entry, track = lot.entry, lot.header.tracks[lot.entry.track_id - 1]
    return StoredFragment(
        track=track.track,
        config=track.config,
        session=entry.session,
        index=entry.index,
        samples=entry.samples,
        utc_ns=entry.utc_ns,
        duration=entry.duration,
        flags=entry.flags,
        parts=(data,),
        length=len(data),
        volume_id=place.volume.volume_id,
        path=place.volume.path,
        target=target,
    )


def _hole(lot: Lot, reason: HoleReason, detail: str) -> Hole:
    return Hole(lot.identity[0].stream, reason, lot.entry.utc_ns, lot.end_ns, lot.entry.samples, detail)


def _missing(span: SpanInfo, lots: Mapping[Identity, Lot], reason: HoleReason, detail: str, *, whole: bool) -> list[Hole]:
    """Samples of a span that no directory lists; with `whole` also before the first and behind the last one that is listed."""
    track, session = span.track, span.session
    known = sorted(
        (lot for (t, s, index), lot in lots.items() if t == track and s == session and span.index <= index < span.next_index),
        key=lambda lot: lot.entry.index,
    )
    ends = [(lot.entry.index, lot.entry.index + lot.entry.samples, lot.entry.utc_ns, lot.end_ns) for lot in known]
    if whole:
        ends = [(span.index, span.index, span.start_ns, span.start_ns), *ends, (span.next_index, span.next_index, span.end_ns, span.end_ns)]
    return [
        Hole(track.stream, reason, end_ns, start_ns, index - next_index, detail)
        for (_, next_index, _, end_ns), (index, _, start_ns, _) in pairwise(ends)
        if index > next_index
    ]


def _reason(error: NvrstoreError) -> HoleReason:
    return HoleReason.UNREACHABLE if isinstance(error, TargetError | NotFoundError) else HoleReason.DAMAGED
