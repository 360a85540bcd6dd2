"""Takes footage out: streams and a span of time become one MP4 that every player reads, and a report of what is in it.

    lots of all streams, by time ─▶ plan (which tracks, how long) ─▶ fetch (best copy, checksum) ─▶ sink

Samples are bit-exact. The file begins with the keyframe at or before the start, so that it can be decoded from its first
frame. Time in the file is wall-clock time since then: a gap is a jump of the timeline, never a splice. A stream that
changed its codec or picture size goes on in a second track, and so do runs that overlap in time (two writers, a clock
stepped back): one file, one checksum, nothing left out; `notes` of the report say so.

Invariant: a file appears under its name whole and synced, or not at all. Fragments that no copy gives are in the report.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol

from nvrstore.catalog.coverage import Hole
from nvrstore.errors import NotFoundError, NvrstoreError, UsageError
from nvrstore.limits import HOLE_NS_MIN
from nvrstore.model import NS_PER_S, FragmentFlag, Gap, Media, TrackConfig, TrackKey
from nvrstore.playback.mp4 import MovieTrack, movie_header, placed, random_access
from nvrstore.playback.reader import FootageReader, Identity, Lot, StoredFragment, order_of

LOOKBACK_NS: Final = 120 * NS_PER_S  # so far a keyframe is looked for: smart codecs set them tens of seconds apart
DRIFT_NS_MAX: Final = NS_PER_S  # a camera's clock may part from UTC by so much within a run; then the timeline is set again


class Sink(Protocol):
    """Where the bytes go, in order."""

    def write(self, data: bytes | bytearray, /) -> object: ...


@dataclass(frozen=True, slots=True)
class ExportProgress:
    """How far an export is; `bytes_total` counts media, not the few boxes around it."""

    bytes_done: int
    bytes_total: int
    utc_ns: int


@dataclass(frozen=True, slots=True)
class ExportedTrack:
    """One track of the exported file."""

    track_id: int
    stream: str
    media: Media
    codec: str
    width: int
    height: int
    frames: int
    fragments: int
    bytes: int
    first_ns: int
    last_ns: int


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was exported, and what was not. `start_ns` is the file's time 0; it may lie before the start that was asked for."""

    path: str  # empty for a file object
    bytes: int
    sha256: str
    asked_start_ns: int
    asked_end_ns: int
    start_ns: int
    end_ns: int
    frames: int
    tracks: tuple[ExportedTrack, ...]
    gaps: tuple[Gap, ...]  # of the ledger, inside
    holes: tuple[Hole, ...]  # what the ledger does not explain: unexplained, damaged, unreachable, outside of what is known
    sources: dict[str, dict[str, int]]  # volume's path -> target -> fragments read from there
    notes: tuple[str, ...]


def export(
    reader: FootageReader,
    streams: Sequence[str],
    start_ns: int,
    end_ns: int,
    sink: Sink,
    *,
    on_progress: Callable[[ExportProgress], None] | None = None,
) -> ExportReport:
    """Write [start_ns, end_ns) of `streams` to `sink`. Raises `UsageError`, `NotFoundError` where nothing is stored, the sink's errors."""
    if end_ns <= start_ns:
        raise UsageError("the end of an export must lie behind its start", hint="the earlier time comes first")
    if not streams or len(set(streams)) != len(streams):
        raise UsageError("an export needs streams, each of them once", hint="`nvrstore ls` shows their ids")
    known = {stream.stream for stream in reader.library.reader().streams()}
    unknown = [stream for stream in streams if stream not in known]
    if unknown:
        raise NotFoundError(f"no footage of stream {unknown[0]!r} is known")
    return _Export(reader, tuple(streams), start_ns, end_ns, sink, on_progress).run()


def export_file(
    reader: FootageReader,
    streams: Sequence[str],
    start_ns: int,
    end_ns: int,
    path: Path,
    *,
    on_progress: Callable[[ExportProgress], None] | None = None,
) -> ExportReport:
    """As `export`, into a file that appears under its name only when it is whole and synced; one that is there is replaced."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as file:
            report = export(reader, streams, start_ns, end_ns, file, on_progress=on_progress)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _sync_directory(path.parent)
    except OSError as error:
        raise NvrstoreError(f"{path} cannot be written: {error.strerror}", hint="choose a directory that exists and has room") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return replace(report, path=str(path))


@dataclass(slots=True)
class _Track:
    """A track of the file. `*_ns` and `run` are what was assigned to it, the rest what was written."""

    key: TrackKey
    name: str
    config: TrackConfig
    first_ns: int
    starts_decodable: bool
    end_ns: int = 0
    run: tuple[int, int] = (0, -1)  # session, index of the sample that would continue it
    written_run: tuple[int, int] = (0, -1)
    ticks: int = 0  # end of its last fragment in the file
    frames: int = 0
    fragments: int = 0
    bytes: int = 0
    keyframes: list[tuple[int, int]] = field(default_factory=list)


Runs = Mapping[tuple[TrackKey, int], Sequence[tuple[int, int]]]  # per track and session: stretches of indices that are stored


class _Assigner:
    """Decides to which track of the file each fragment goes: a function of the lots in their order, and of what is stored.

    A fragment follows its run; a run takes over a track only when the one that was there is over.
    """

    def __init__(self, runs: Runs) -> None:
        self.tracks: list[_Track] = []
        self._runs = runs

    def assign(self, lot: Lot) -> int:
        """The number of its track, from 0."""
        entry, described = lot.entry, lot.header.tracks[lot.entry.track_id - 1]
        key, session, index = lot.identity
        mine = [n for n, track in enumerate(self.tracks) if track.key == key and track.config.continues(described.config)]
        behind = [n for n in mine if entry.utc_ns >= self.tracks[n].end_ns - HOLE_NS_MIN]
        fitting = [
            n for n in mine if self.tracks[n].run == (session, index) and (n in behind or not entry.flags & FragmentFlag.DISCONTINUITY)
        ]
        fitting += [n for n in behind if not self._goes_on(self.tracks[n])]
        if not fitting:
            decodable = key.media is not Media.VIDEO or bool(entry.flags & FragmentFlag.KEYFRAME)
            self.tracks.append(_Track(key, described.name, described.config, entry.utc_ns, decodable))
            fitting = [len(self.tracks) - 1]
        track = self.tracks[fitting[0]]
        track.run = (session, index + entry.samples)
        track.end_ns = max(track.end_ns, lot.end_ns)
        return fitting[0]

    def _goes_on(self, track: _Track) -> bool:
        session, index = track.run
        return any(first <= index < last for first, last in self._runs.get((track.key, session), ()))


class _Export:
    def __init__(
        self,
        reader: FootageReader,
        streams: tuple[str, ...],
        start_ns: int,
        end_ns: int,
        sink: Sink,
        on_progress: Callable[[ExportProgress], None] | None,
    ) -> None:
        self.reader, self.streams, self.start_ns, self.end_ns = reader, streams, start_ns, end_ns
        self.sink, self.on_progress = sink, on_progress
        self.begins = {stream: keyframe_before(reader, stream, start_ns) for stream in streams}
        self.runs: dict[tuple[TrackKey, int], list[tuple[int, int]]] = {}
        catalog = reader.library.reader()
        for stream, begin_ns in self.begins.items():
            for span in catalog.spans(stream, begin_ns, end_ns):
                self.runs.setdefault((span.track, span.session), []).append((span.index, span.next_index))
        self.sha256 = hashlib.sha256()
        self.length = 0
        self.holes: list[Hole] = []
        self.sources: dict[str, dict[str, int]] = {}

    def run(self) -> ExportReport:
        plan = _Assigner(self.runs)
        first_ns, total = self.end_ns, 0
        for lot in self._lots():
            if isinstance(lot, Lot):
                plan.assign(lot)
                first_ns = min(first_ns, lot.entry.utc_ns)
                total += lot.entry.length
        if not plan.tracks:
            raise NotFoundError(f"nothing is stored of {', '.join(self.streams)} in this span of time")
        last_ns = max(track.end_ns for track in plan.tracks)
        names = _names(plan.tracks)
        movie = [MovieTrack(name, track.config) for name, track in zip(names, plan.tracks, strict=True)]
        self._write(movie_header(movie, captured_ns=first_ns, duration_ns=last_ns - first_ns))
        tracks = self._fragments(first_ns, total)
        self._write(random_access([track.keyframes for track in tracks]))
        return self._report(first_ns, last_ns, tracks)

    def _lots(self) -> Iterator[Lot | Hole]:
        """Of all streams, by time; of each from its keyframe on."""
        return heapq.merge(*(self._lots_of(stream, begin_ns) for stream, begin_ns in self.begins.items()), key=order_of)

    def _lots_of(self, stream: str, begin_ns: int) -> Iterator[Lot | Hole]:
        for lot in self.reader.lots(stream, begin_ns, self.end_ns):
            if isinstance(lot, Hole) or lot.identity[0].media is not Media.VIDEO or lot.entry.utc_ns >= begin_ns:
                yield lot

    def _fragments(self, origin_ns: int, total: int) -> list[_Track]:
        assigner = _Assigner(self.runs)
        numbers: dict[Identity, int] = {}
        sequence = done = 0

        def assigned() -> Iterator[Lot | Hole]:
            for lot in self._lots():
                if isinstance(lot, Lot):
                    numbers[lot.identity] = assigner.assign(lot)
                yield lot

        for piece in self.reader.fetch(assigned()):
            if isinstance(piece, Hole):
                self.holes.append(piece)
                continue
            number = numbers.pop((piece.track, piece.session, piece.index))
            sequence += 1
            self._fragment(assigner.tracks[number], number + 1, sequence, piece, origin_ns)
            done += piece.length
            if self.on_progress is not None:
                self.on_progress(ExportProgress(done, total, piece.utc_ns))
        return assigner.tracks

    def _fragment(self, track: _Track, track_id: int, sequence: int, piece: StoredFragment, origin_ns: int) -> None:
        scale = track.config.timescale
        wall = (piece.utc_ns - origin_ns) * scale // NS_PER_S
        follows = track.written_run == (piece.session, piece.index) and not piece.flags & FragmentFlag.DISCONTINUITY
        if not follows or abs(wall - track.ticks) * NS_PER_S > DRIFT_NS_MAX * scale:
            track.ticks = max(track.ticks, wall)
        if piece.flags & FragmentFlag.KEYFRAME:
            track.keyframes.append((track.ticks, self.length))
        self._write(placed(piece.data, sequence=sequence, track_id=track_id, time=track.ticks))
        track.ticks += piece.duration
        track.written_run = (piece.session, piece.index + piece.samples)
        track.frames += piece.samples
        track.fragments += 1
        track.bytes += piece.length
        read_from = self.sources.setdefault(piece.path, {})
        read_from[piece.target] = read_from.get(piece.target, 0) + 1

    def _write(self, data: bytes | bytearray) -> None:
        self.sink.write(data)
        self.sha256.update(data)
        self.length += len(data)

    def _report(self, first_ns: int, last_ns: int, tracks: Sequence[_Track]) -> ExportReport:
        catalog = self.reader.library.reader()
        accounts = [catalog.coverage(stream, self.start_ns, self.end_ns) for stream in self.streams]
        return ExportReport(
            path="",
            bytes=self.length,
            sha256=self.sha256.hexdigest(),
            asked_start_ns=self.start_ns,
            asked_end_ns=self.end_ns,
            start_ns=first_ns,
            end_ns=last_ns,
            frames=sum(track.frames for track in tracks if track.key.media is Media.VIDEO),
            tracks=tuple(
                ExportedTrack(
                    *(number, track.key.stream, track.key.media, track.config.codec, track.config.width, track.config.height),
                    *(track.frames, track.fragments, track.bytes, track.first_ns, track.end_ns),
                )
                for number, track in enumerate(tracks, start=1)
            ),
            gaps=tuple(gap for account in accounts for gap in account.gaps),
            holes=tuple(sorted([*self.holes, *(h for account in accounts for h in account.holes)], key=lambda h: (h.start_ns, h.stream))),
            sources={path: dict(sorted(targets.items())) for path, targets in sorted(self.sources.items())},
            notes=_notes(tracks),
        )


def keyframe_before(reader: FootageReader, stream: str, start_ns: int) -> int:
    """When the run that is under way at `start_ns` had its last keyframe; `start_ns` where none is under way, or none is found."""
    for back_ns in (LOOKBACK_NS // 8, LOOKBACK_NS):
        found = [lot for lot in reader.lots(stream, start_ns - back_ns, start_ns + 1, Media.VIDEO) if isinstance(lot, Lot)]
        if not found or found[-1].end_ns <= start_ns:
            return start_ns
        wanted = found[-1].identity
        for lot in reversed(found):
            track, session, index = lot.identity
            if (track, session, index + lot.entry.samples) != wanted and lot is not found[-1]:
                continue  # of another run that overlaps
            if lot.entry.flags & FragmentFlag.KEYFRAME:
                return lot.entry.utc_ns
            if lot.entry.flags & FragmentFlag.DISCONTINUITY:
                return start_ns
            wanted = lot.identity
    return start_ns


def _names(tracks: Sequence[_Track]) -> list[str]:
    """The streams' names; of one that has several tracks of a kind, numbered."""
    names: list[str] = []
    for n, track in enumerate(tracks):
        before = sum(other.key == track.key for other in tracks[:n])
        names.append(f"{track.name} ({before + 1})" if before else track.name)
    return names


def _notes(tracks: Sequence[_Track]) -> tuple[str, ...]:
    notes: list[str] = []
    for n, track in enumerate(tracks):
        earlier = [other for other in tracks[:n] if other.key == track.key]
        if earlier and not any(other.config.continues(track.config) for other in earlier):
            was, now = earlier[-1].config, track.config
            change = f"from {_shape(was)} to {_shape(now)}"
            notes.append(f"{track.key} changed {change}: it goes on in track {n + 1}")
        elif earlier:
            notes.append(
                f"{track.key} has footage twice of the same time (a clock was stepped back, or two recorders wrote): also in track {n + 1}"
            )
        if not track.starts_decodable:
            notes.append(f"{track.key} has no keyframe in the two minutes before track {n + 1} begins: its first frames cannot be shown")
    return tuple(notes)


def _shape(config: TrackConfig) -> str:
    size = f" {config.width}x{config.height}" if config.width else f" {config.sample_rate} Hz"
    return config.codec + size


def _sync_directory(path: Path) -> None:
    """Make a rename durable, where directories can be synced (not on Windows)."""
    if os.name != "posix":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
