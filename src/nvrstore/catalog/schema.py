"""The catalog's tables, and the statements that write them.

    volumes --< copies      on which target, how far durable, in which state
       |----< spans >-- tracks, configs     which time of which track lies in it
       |----< batches      where they lie; only while the volume is open (its index says it afterwards)
       '----< records      ledger entries; `current` is 1 on the last of every (kind, id)

Invariants: everything is a function of what lies on the targets, so the file may be deleted at any time. Every
statement can be carried out twice with the same result. Rows never promise bytes that are not durable: whoever calls
this has seen them durable. Connections are given; this module opens none.

Session ids are unsigned 64-bit numbers, SQLite's are signed: `signed` and `unsigned` turn one into the other.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

from nvrstore.catalog.rows import VolumeRows, record_rank
from nvrstore.journal.model import VolumeHeader
from nvrstore.model import Record

VERSION: Final = 1


class CopyState(StrEnum):
    """What is known about one copy of a volume."""

    LIVE = "live"  # of an open volume: it grows
    COMPLETE = "complete"  # closed, and holds everything
    PARTIAL = "partial"  # the volume is closed, this copy lacks its end
    DAMAGED = "damaged"  # a checksum failed, or it cannot be read
    GONE = "gone"  # was there, and is no more; another copy still is


SCHEMA: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE volumes (
    id INTEGER PRIMARY KEY, volume_id TEXT NOT NULL UNIQUE, journal TEXT NOT NULL, journal_id TEXT NOT NULL, recorder TEXT NOT NULL,
    session INTEGER NOT NULL, term INTEGER NOT NULL, set_number INTEGER NOT NULL, lane INTEGER NOT NULL, number INTEGER NOT NULL,
    path TEXT NOT NULL, created_ns INTEGER NOT NULL, origin_ns INTEGER NOT NULL, members TEXT NOT NULL,
    closed INTEGER NOT NULL DEFAULT 0, length INTEGER NOT NULL DEFAULT 0, batches INTEGER NOT NULL DEFAULT 0,
    first_ns INTEGER NOT NULL DEFAULT 0, last_ns INTEGER NOT NULL DEFAULT 0, stale INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX volumes_by_path ON volumes (journal, path);
CREATE INDEX volumes_open ON volumes (closed) WHERE closed = 0;
CREATE TABLE copies (
    volume INTEGER NOT NULL REFERENCES volumes ON DELETE CASCADE, target TEXT NOT NULL, length INTEGER NOT NULL, state TEXT NOT NULL,
    PRIMARY KEY (volume, target)
) WITHOUT ROWID;
CREATE TABLE tracks (
    id INTEGER PRIMARY KEY, journal TEXT NOT NULL, stream TEXT NOT NULL, media TEXT NOT NULL,
    span_ns_max INTEGER NOT NULL DEFAULT 0, -- no span of the track is longer: bounds the search by time
    UNIQUE (stream, media, journal)
);
CREATE TABLE configs (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, codec TEXT NOT NULL, timescale INTEGER NOT NULL, width INTEGER NOT NULL,
    height INTEGER NOT NULL, sample_rate INTEGER NOT NULL, channels INTEGER NOT NULL,
    UNIQUE (name, codec, timescale, width, height, sample_rate, channels)
);
CREATE TABLE spans (
    volume INTEGER NOT NULL REFERENCES volumes ON DELETE CASCADE, track INTEGER NOT NULL REFERENCES tracks,
    session INTEGER NOT NULL, first_index INTEGER NOT NULL, track_id INTEGER NOT NULL, config INTEGER NOT NULL REFERENCES configs,
    next_index INTEGER NOT NULL, start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL, first_batch INTEGER NOT NULL,
    last_batch INTEGER NOT NULL, samples INTEGER NOT NULL, fragments INTEGER NOT NULL, bytes INTEGER NOT NULL,
    PRIMARY KEY (volume, track, session, first_index)
) WITHOUT ROWID;
CREATE INDEX spans_by_time ON spans (track, start_ns);
CREATE TABLE batches (
    volume INTEGER NOT NULL REFERENCES volumes ON DELETE CASCADE, number INTEGER NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL,
    first_ns INTEGER NOT NULL, last_ns INTEGER NOT NULL, PRIMARY KEY (volume, number)
) WITHOUT ROWID;
CREATE TABLE records (
    volume INTEGER NOT NULL REFERENCES volumes ON DELETE CASCADE, kind INTEGER NOT NULL, id TEXT NOT NULL, batch INTEGER NOT NULL,
    position INTEGER NOT NULL, rank INTEGER NOT NULL, current INTEGER NOT NULL, stream TEXT, start_ns INTEGER, end_ns INTEGER,
    body TEXT NOT NULL,
    PRIMARY KEY (volume, kind, id)
) WITHOUT ROWID;
CREATE INDEX records_by_id ON records (kind, id);
CREATE INDEX records_by_time ON records (kind, stream, start_ns) WHERE current = 1;
"""

# The last one of a (kind, id): closed entries before open ones, then the order of volumes, then the place in the volume.
_LATEST: Final = """
SELECT r.volume FROM records r JOIN volumes v ON v.id = r.volume WHERE r.kind = ? AND r.id = ?
ORDER BY r.rank DESC, v.term DESC, v.set_number DESC, v.number DESC, r.batch DESC, r.position DESC, v.volume_id DESC LIMIT 1
"""


def signed(number: int) -> int:
    """An unsigned 64-bit number as SQLite keeps it."""
    return number - (1 << 64) if number >= 1 << 63 else number


def unsigned(number: int) -> int:
    """The inverse of `signed`."""
    return number + (1 << 64) if number < 0 else number


def create(connection: sqlite3.Connection) -> None:
    """Make all tables in an empty database."""
    connection.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")


def set_meta(connection: sqlite3.Connection, key: str, value: str) -> None:
    connection.execute("INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value))


def get_meta(connection: sqlite3.Connection, key: str) -> str | None:
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return None if row is None else str(row[0])


def volume_row(connection: sqlite3.Connection, volume_id: str) -> int | None:
    """The row number of a volume, None when the catalog does not know it."""
    row = connection.execute("SELECT id FROM volumes WHERE volume_id = ?", (volume_id,)).fetchone()
    return None if row is None else int(row[0])


def put_volume(connection: sqlite3.Connection, header: VolumeHeader, path: str) -> int:
    """The row number of a volume, which is made when it is new."""
    known = volume_row(connection, header.volume_id)
    if known is not None:
        return known
    members = json.dumps([[member.target, member.target_id, str(member.role)] for member in header.members])
    cursor = connection.execute(
        "INSERT INTO volumes (volume_id, journal, journal_id, recorder, session, term, set_number, lane, number, path,"
        " created_ns, origin_ns, members) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(header.volume_id, header.journal, header.journal_id, header.recorder, signed(header.session)),
            *(header.epoch.term, header.epoch.set, header.lane, header.number, path, header.created_ns, header.origin_ns, members),
        ),
    )
    return int(cursor.lastrowid or 0)


def put_copy(connection: sqlite3.Connection, volume: int, target: str, length: int, state: CopyState) -> None:
    """A copy as it is now, whatever was known before."""
    connection.execute(
        "INSERT INTO copies VALUES (?, ?, ?, ?)"
        " ON CONFLICT (volume, target) DO UPDATE SET length = excluded.length, state = excluded.state",
        (volume, target, length, state),
    )


def grow_copies(connection: sqlite3.Connection, volume: int, durable: Mapping[str, int]) -> None:
    """Copies that are durable up to these lengths. What is known to be damaged stays so."""
    connection.executemany(
        "INSERT INTO copies VALUES (?, ?, ?, 'live') ON CONFLICT (volume, target) DO UPDATE SET length = max(length, excluded.length)",
        [(volume, target, length) for target, length in durable.items()],
    )


#: Row numbers of (volume, track_id): its track and its configuration. Kept by the caller between calls, forgotten after a rollback.
TrackCache = dict[tuple[int, int], tuple[int, int]]


def put_rows(connection: sqlite3.Connection, volume: int, rows: VolumeRows, cache: TrackCache | None = None) -> None:
    """Write what changed in `rows` since `settle`. The volume's own row must exist."""
    connection.execute(
        "UPDATE volumes SET length = max(length, ?), batches = max(batches, ?), last_ns = max(last_ns, ?),"
        " first_ns = CASE WHEN first_ns = 0 THEN ?4 WHEN ?4 = 0 THEN first_ns ELSE min(first_ns, ?4) END WHERE id = ?5",
        (rows.length, rows.batches, rows.last_ns, rows.first_ns, volume),
    )
    _put_spans(connection, volume, rows, {} if cache is None else cache)
    connection.executemany(
        "INSERT OR REPLACE INTO batches VALUES (?, ?, ?, ?, ?, ?)",
        [(volume, b.number, b.offset, b.length, b.first_ns, b.last_ns) for b in rows.new_batches],
    )
    changed = [rows.records[key] for key in sorted(rows.changed_records)]
    connection.executemany(
        "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?) ON CONFLICT (volume, kind, id) DO UPDATE SET"
        " batch = excluded.batch, position = excluded.position, rank = excluded.rank, stream = excluded.stream,"
        " start_ns = excluded.start_ns, end_ns = excluded.end_ns, body = excluded.body",
        [(volume, r.record.kind, r.record.id, r.batch, r.position, record_rank(r.record), *_searchable(r.record)) for r in changed],
    )
    choose_current(connection, sorted(rows.changed_records))


def close_volume(connection: sqlite3.Connection, volume: int, length: int, batches: int, complete: Iterable[str]) -> None:
    """The volume is closed at `length` with `batches`; these targets hold all of it, the others lack something."""
    connection.execute("UPDATE volumes SET closed = 1, length = ?, batches = ? WHERE id = ?", (length, batches, volume))
    for target in complete:
        put_copy(connection, volume, target, length, CopyState.COMPLETE)
    connection.execute("UPDATE copies SET state = 'partial' WHERE volume = ? AND state = 'live'", (volume,))
    connection.execute("DELETE FROM batches WHERE volume = ?", (volume,))


def remove_copy(connection: sqlite3.Connection, volume_id: str, target: str) -> None:
    """A copy is gone. With the last one the volume goes, and with it what only it knew."""
    volume = volume_row(connection, volume_id)
    if volume is None:
        return
    connection.execute("DELETE FROM copies WHERE volume = ? AND target = ?", (volume, target))
    left = connection.execute("SELECT count(*) FROM copies WHERE volume = ? AND state != 'gone'", (volume,)).fetchone()[0]
    if not left:
        remove_volume(connection, volume)


def remove_volume(connection: sqlite3.Connection, volume: int) -> None:
    """Forget a volume; ledger entries fall back to what the volumes that are left say."""
    ids = connection.execute("SELECT kind, id FROM records WHERE volume = ? AND current = 1", (volume,)).fetchall()
    connection.execute("DELETE FROM volumes WHERE id = ?", (volume,))
    choose_current(connection, ids)


def adopt_volume(
    connection: sqlite3.Connection, rows: VolumeRows, copies: Mapping[str, tuple[int, CopyState]], closed_length: int | None
) -> None:
    """Replace what is known of a volume's contents by `rows` (all of them), and of its copies what `copies` says."""
    known = volume_row(connection, rows.header.volume_id)
    before: list[tuple[int, str]] = []
    if known is not None:
        before = connection.execute("SELECT kind, id FROM records WHERE volume = ? AND current = 1", (known,)).fetchall()
        for table in ("spans", "batches", "records"):
            connection.execute(f"DELETE FROM {table} WHERE volume = ?", (known,))
        connection.execute(
            "UPDATE volumes SET closed = 0, length = 0, batches = 0, first_ns = 0, last_ns = 0, stale = 0 WHERE id = ?", (known,)
        )
    volume = put_volume(connection, rows.header, rows.path)
    put_rows(connection, volume, rows)
    choose_current(connection, before)
    if closed_length is not None:
        close_volume(connection, volume, closed_length, rows.batches, ())
    for target, (length, state) in copies.items():
        put_copy(connection, volume, target, length, state)


def choose_current(connection: sqlite3.Connection, ids: Sequence[tuple[int, str]]) -> None:
    """Mark the last entry of each (kind, id), and none of the others."""
    for kind, record_id in ids:
        latest = connection.execute(_LATEST, (kind, record_id)).fetchone()
        if latest is not None:
            connection.execute("UPDATE records SET current = (volume = ?) WHERE kind = ? AND id = ?", (latest[0], kind, record_id))


def _put_spans(connection: sqlite3.Connection, volume: int, rows: VolumeRows, cache: TrackCache) -> None:
    values: list[tuple[int, ...]] = []
    longest: dict[int, int] = {}
    for key in sorted(rows.changed_spans):
        span = rows.spans[key]
        known = (volume, span.track_id)
        if known not in cache:
            cache[known] = _track_and_config(connection, rows.header, span.track_id)
        track, config = cache[known]
        longest[track] = max(longest.get(track, 0), span.end_ns - span.start_ns)
        values.append(
            (
                *(volume, track, signed(span.session), span.index, span.track_id, config, span.next_index, span.start_ns, span.end_ns),
                *(span.first_batch, span.last_batch, span.samples, span.fragments, span.bytes),
            )
        )
    connection.executemany("INSERT OR REPLACE INTO spans VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
    connection.executemany(
        "UPDATE tracks SET span_ns_max = ?1 WHERE id = ?2 AND span_ns_max < ?1", [(length, track) for track, length in longest.items()]
    )


def _track_and_config(connection: sqlite3.Connection, header: VolumeHeader, track_id: int) -> tuple[int, int]:
    described = header.tracks[track_id - 1]
    key = (header.journal, described.track.stream, str(described.track.media))
    connection.execute("INSERT OR IGNORE INTO tracks (journal, stream, media) VALUES (?, ?, ?)", key)
    (track,) = connection.execute("SELECT id FROM tracks WHERE journal = ? AND stream = ? AND media = ?", key).fetchone()
    c = described.config
    values = (described.name, c.codec, c.timescale, c.width, c.height, c.sample_rate, c.channels)
    columns = "name, codec, timescale, width, height, sample_rate, channels"
    connection.execute(f"INSERT OR IGNORE INTO configs ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", values)
    (config,) = connection.execute(f"SELECT id FROM configs WHERE ({columns}) = (?, ?, ?, ?, ?, ?, ?)", values).fetchone()
    return int(track), int(config)


def _searchable(record: Record) -> tuple[str | None, int | None, int | None, str]:
    body: Mapping[str, Any] = record.body
    stream, start, end = body.get("stream"), body.get("start_ns"), body.get("end_ns")
    return (
        stream if isinstance(stream, str) else None,
        start if isinstance(start, int) else None,
        end if isinstance(end, int) else None,
        json.dumps(body, separators=(",", ":"), sort_keys=True),
    )
