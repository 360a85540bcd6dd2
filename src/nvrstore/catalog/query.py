"""The catalog as it is asked: streams, volumes, spans of time, gaps, marks, coverage. Works while a recorder writes, and while none does.

    CatalogReader(path)            the file, read-only, on a connection of its own
    CatalogReader(path, overlay)   the same, and volumes that a scan has just found (a tail behind the last transaction)

An answer never waits for the writer (WAL), and is one consistent state of the file. Where the overlay knows a volume it is
right about its contents. Rows say what was durable when they were written: whoever reads the bytes checks them all the same.
It answers from any thread, one question at a time. Raises `CatalogError` where the file cannot be read.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from nvrstore.catalog import schema
from nvrstore.catalog.coverage import Coverage, coverage
from nvrstore.catalog.filelock import is_locked
from nvrstore.catalog.rows import BatchRow, record_rank
from nvrstore.catalog.views import (
    READABLE,
    SpanInfo,
    StreamInfo,
    VolumeInfo,
    merge_volumes,
    read_ends,
    read_spans,
    read_volumes,
    stream_infos,
)
from nvrstore.errors import CatalogError
from nvrstore.model import Gap, Mark, Media, Record, RecordKind, TrackKey

END_OF_TIME_NS: Final = (1 << 63) - 1


class Footage(NamedTuple):
    """From when until when one session stored something without a break."""

    start_ns: int
    end_ns: int
    session: int


class CatalogReader:
    """Asks one catalog file, one in memory (the overlay), or both."""

    def __init__(self, path: Path | None, overlay: sqlite3.Connection | None = None, *, lock: threading.RLock | None = None) -> None:
        """`lock` is held during every question: that of whoever writes the overlay."""
        self.path: Final = path
        self._lock = lock or threading.RLock()
        self._overlay = overlay
        self._main: sqlite3.Connection | None = None if path is None else _open_readonly(path)

    def close(self) -> None:
        """Close the file's connection; the overlay belongs to its maker."""
        with self._lock:
            if self._main is not None:
                self._main.close()

    def __enter__(self) -> CatalogReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- what is there

    def streams(self, *, totals: bool = False) -> list[StreamInfo]:
        """Every stream of which something is stored, by id. `totals` (fragments, bytes) reads every span: slow in a large archive."""
        with self._sources() as sources:
            found = [read_ends(source, None, totals=totals) for source in sources[1:]]
            if sources:
                found.append(read_ends(sources[0], None, totals=totals, without=_volume_ids(sources[1:])))
        return stream_infos(ends for source in found for ends in source)

    def volumes(self, journal: str | None = None) -> list[VolumeInfo]:
        """All volumes, or those of one journal, in their order."""
        return self._volumes("?1 IS NULL OR journal = ?1", journal)

    def volume(self, volume_id: str) -> VolumeInfo | None:
        """One volume, None where it is not known."""
        return next(iter(self._volumes("volume_id = ?", volume_id)), None)

    def open_volumes(self) -> list[VolumeInfo]:
        """Volumes that are not known to be closed."""
        found = self._volumes("closed = 0")
        known = (self.volume(volume.volume_id) for volume in found)  # the overlay may have seen it closed
        return [volume for volume in known if volume is not None and not volume.closed]

    def batches(self, volume_id: str) -> list[BatchRow]:
        """Where the batches of an open volume lie; empty for a closed one, whose index says it."""
        with self._sources() as sources:
            for source in reversed(sources):
                row = schema.volume_row(source, volume_id)
                if row is not None:
                    query = "SELECT number, offset, length, first_ns, last_ns FROM batches WHERE volume = ? ORDER BY number"
                    return [BatchRow(*line) for line in source.execute(query, (row,))]
        return []

    # --- spans of time

    def spans(self, stream: str, start_ns: int = 0, end_ns: int = END_OF_TIME_NS, media: Media | None = None) -> list[SpanInfo]:
        """The spans of a stream that overlap [start_ns, end_ns), by start."""
        where = "t.stream = ?1 AND (?2 IS NULL OR t.media = ?2) AND s.start_ns < ?4 AND s.end_ns > ?3 AND s.start_ns >= ?3 - t.span_ns_max"
        arguments = (stream, None if media is None else str(media), max(start_ns, 0), end_ns)
        with self._sources() as sources:
            found = [read_spans(source, where, arguments) for source in sources]
            rescanned = _volume_ids(sources[1:])
            if rescanned:
                found[0] = [span for span in found[0] if span.volume_id not in rescanned]
        return sorted((span for spans in found for span in spans), key=lambda s: (s.start_ns, s.track, s.volume_id, s.index))

    def spans_of(self, volume_id: str, stream: str, media: Media | None = None) -> list[SpanInfo]:
        """The spans of a stream in one volume, by start."""
        where = "v.volume_id = ?1 AND t.stream = ?2 AND (?3 IS NULL OR t.media = ?3)"
        with self._sources() as sources:
            for source in reversed(sources):
                if schema.volume_row(source, volume_id) is not None:
                    found = read_spans(source, where, (volume_id, stream, None if media is None else str(media)))
                    return sorted(found, key=lambda s: (s.start_ns, s.track, s.index))
        return []

    def next_start(self, stream: str, after_ns: int) -> int | None:
        """Where the next span that begins at `after_ns` or later begins; None behind the last one."""
        query = "SELECT min(start_ns) FROM spans WHERE track = ? AND start_ns >= ?"  # of one track: answered by the index
        found: list[int | None] = []
        with self._sources() as sources:
            for source in sources:
                tracks = source.execute("SELECT id FROM tracks WHERE stream = ?", (stream,)).fetchall()
                found += [source.execute(query, (track, after_ns)).fetchone()[0] for (track,) in tracks]
        return min((start for start in found if start is not None), default=None)

    def footage_before(self, stream: str, before_ns: int, count: int, media: Media | None = None) -> list[Footage]:
        """The last `count` spans of a stream that begin before a moment, the latest first."""
        query = "SELECT session, start_ns, end_ns FROM spans WHERE track = ? AND start_ns < ? ORDER BY start_ns DESC LIMIT ?"
        which = "SELECT id FROM tracks WHERE stream = ?1 AND (?2 IS NULL OR media = ?2)"
        found: set[Footage] = set()  # the same span may stand in both sources
        with self._sources() as sources:
            for source in sources:
                for (track,) in source.execute(which, (stream, None if media is None else str(media))).fetchall():
                    rows = source.execute(query, (track, before_ns, count))
                    found |= {Footage(start_ns, end_ns, schema.unsigned(session)) for session, start_ns, end_ns in rows}
        return sorted(found, reverse=True)[:count]

    def bounds(self, stream: str) -> tuple[int, int] | None:
        """From when until when anything is known about a stream: footage or gaps. None where it is unknown."""
        last = "max(max(coalesce(end_ns, start_ns), start_ns))"
        gaps = f"SELECT min(start_ns), {last} FROM records WHERE kind = ? AND stream = ? AND current = 1"
        with self._sources() as sources:
            ends = [(found.first_ns, found.last_ns) for source in sources for found in read_ends(source, stream)]
            for source in sources:
                ends += source.execute(gaps, (int(RecordKind.GAP), stream)).fetchall()
        known = [(first, last) for first, last in ends if first is not None]
        return (min(first for first, _ in known), max(last for _, last in known)) if known else None

    def last_durable(self, stream: str | None = None) -> dict[TrackKey, int]:
        """Per track, UTC at which its last durable sample ends."""
        last: dict[TrackKey, int] = {}
        with self._sources() as sources:
            for source in sources:
                for ends in read_ends(source, stream):
                    last[ends.track] = max(last.get(ends.track, 0), ends.last_ns)
        return last

    def coverage(self, stream: str, start_ns: int, end_ns: int) -> Coverage:
        """What of [start_ns, end_ns) is stored, what the ledger explains, and what nothing does.

        Counts the video track where there is one. Footage of which no copy is left to read is not counted as stored.
        """
        spans = self.spans(stream, start_ns, end_ns)
        readable = {
            volume.volume_id
            for volume in map(self.volume, {span.volume_id for span in spans})
            if volume is not None and any(copy.state in READABLE for copy in volume.copies)
        }
        held = [span for span in spans if span.volume_id in readable]
        leading = [span for span in held if span.track.media is Media.VIDEO] or held
        stretches = [span.stretch for span in leading]
        return coverage(stream, stretches, self.gaps(stream, start_ns, end_ns), start_ns, end_ns, self.bounds(stream))

    # --- the ledger

    def gaps(self, stream: str | None = None, start_ns: int = 0, end_ns: int = END_OF_TIME_NS) -> list[Gap]:
        """Ledger gaps that overlap [start_ns, end_ns), open ones included, by start."""
        found = [Gap.of(record) for record in self.records(RecordKind.GAP, stream, start_ns, end_ns)]
        return sorted(found, key=lambda gap: (gap.start_ns, gap.stream, gap.id))

    def marks(self, stream: str | None = None, start_ns: int = 0, end_ns: int = END_OF_TIME_NS) -> list[Mark]:
        """Users' events that overlap [start_ns, end_ns), by start."""
        found = [Mark.of(record) for record in self.records(RecordKind.MARK, stream, start_ns, end_ns)]
        return sorted(found, key=lambda mark: (mark.start_ns, mark.stream, mark.id))

    def records(self, kind: int, stream: str | None = None, start_ns: int = 0, end_ns: int = END_OF_TIME_NS) -> list[Record]:
        """The last entry of every id of a kind, by id; entries that name no stream or no time are always among them."""
        kind = int(kind)
        where = "r.kind = ? AND r.current = 1"
        time = " AND (?2 IS NULL OR r.stream IS NULL OR r.stream = ?2) AND (r.start_ns IS NULL OR r.start_ns < ?4)"
        time += " AND (r.end_ns IS NULL OR r.end_ns > ?3 OR r.end_ns = r.start_ns AND r.start_ns >= ?3)"
        with self._sources() as sources:
            latest: dict[str, _Placed] = {}
            if len(sources) == 2:
                # An entry that matches in one source may have been followed by another in the other: compare all of the small one.
                latest = dict(_placed(sources[1], where, (kind,)))
                for name in list(latest):
                    for _, other in _placed(sources[0], f"{where} AND r.id = ?", (kind, name)):
                        latest[name] = max(latest[name], other, key=lambda placed: placed[0])
            arguments = (kind, stream, start_ns, end_ns)
            for name, placed in _placed(sources[0], where.replace("?", "?1") + time, arguments) if sources else ():
                latest.setdefault(name, placed)
        return [record for _, (_, record) in sorted(latest.items()) if _overlaps(record, stream, start_ns, end_ns)]

    # --- how it is kept

    @property
    def writer_alive(self) -> bool:
        """Whether a recorder (or a rebuild) has this catalog open for writing now."""
        return self.path is not None and is_locked(Path(f"{self.path}.lock"))

    @property
    def needs_refresh(self) -> bool:
        """Whether rows are missing: some were dropped, or the last writer died before it wrote its last ones."""
        with self._sources() as sources:
            for source in sources[:1]:
                if schema.get_meta(source, "refresh") == "1" or (schema.get_meta(source, "open") == "1" and not self.writer_alive):
                    return True
        return False

    # --- inside

    @contextmanager
    def _sources(self) -> Iterator[list[sqlite3.Connection]]:
        """The file first, then the overlay."""
        with self._lock:
            try:
                yield [source for source in (self._main, self._overlay) if source is not None]
            except sqlite3.Error as error:
                raise CatalogError(f"the catalog {self.path} cannot be read: {error}") from error

    def _volumes(self, where: str, *arguments: Any) -> list[VolumeInfo]:
        found: list[VolumeInfo] = []
        with self._sources() as sources:
            for source in sources:
                found = merge_volumes(found, read_volumes(source, where, arguments))
        return found


_Placed = tuple[tuple[Any, ...], Record]  # what orders an entry among those of its id, and the entry


def _volume_ids(overlays: list[sqlite3.Connection]) -> set[str]:
    """The volumes about which an overlay is right, whatever the file says."""
    return {row[0] for overlay in overlays for row in overlay.execute("SELECT volume_id FROM volumes")}


def _placed(source: sqlite3.Connection, where: str, arguments: tuple[Any, ...]) -> Iterator[tuple[str, _Placed]]:
    query = (
        "SELECT r.kind, r.id, r.body, v.term, v.set_number, v.number, r.batch, r.position, v.volume_id FROM records r"
        f" JOIN volumes v ON v.id = r.volume WHERE {where}"
    )
    for kind, name, body, *place in source.execute(query, arguments):
        record = Record(kind, name, json.loads(body))
        yield name, ((record_rank(record), *place), record)


def _overlaps(record: Record, stream: str | None, start_ns: int, end_ns: int) -> bool:
    named, start, end = (record.body.get(key) for key in ("stream", "start_ns", "end_ns"))
    if stream is not None and named is not None and named != stream:
        return False
    if isinstance(start, int) and start >= end_ns:
        return False
    return not isinstance(end, int) or end > start_ns or (end == start and end >= start_ns)


def _open_readonly(path: Path) -> sqlite3.Connection:
    """A connection that changes nothing. Raises `CatalogError` where there is no catalog, or one that this version cannot read."""
    if not path.is_file():
        raise CatalogError(f"there is no catalog at {path}")
    uri = f"file:{quote(str(path.absolute()))}"
    problem: sqlite3.Error | None = None
    # The second where this user may not write the shared-memory file beside it: only while nobody changes the database.
    modes = ("mode=ro",) if is_locked(Path(f"{path}.lock")) else ("mode=ro", "mode=ro&immutable=1")
    for mode in modes:
        try:
            connection = sqlite3.connect(f"{uri}?{mode}", uri=True, isolation_level=None, timeout=5.0, check_same_thread=False)
        except sqlite3.Error as error:
            problem = error
            continue
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
        except sqlite3.Error as error:
            connection.close()
            problem = error
            continue
        if version == schema.VERSION:
            return connection
        connection.close()
        raise CatalogError(f"the catalog {path} has format {version}, this library reads {schema.VERSION}")
    raise CatalogError(f"the catalog {path} cannot be read: {problem}")
