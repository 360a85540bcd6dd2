"""What the catalog answers with: volumes, copies, spans, streams, as values, and the statements that read them.

Rows become values here and nowhere else. Session ids are unsigned again, ends are exclusive.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from nvrstore.catalog.coverage import Stretch
from nvrstore.catalog.schema import CopyState, unsigned
from nvrstore.model import Epoch, Media, MemberRef, Role, TrackKey

#: States in which a copy is worth reading, best first; of a damaged one most fragments are whole, and each has its checksum.
READABLE: Final = (CopyState.COMPLETE, CopyState.LIVE, CopyState.PARTIAL, CopyState.DAMAGED)


@dataclass(frozen=True, slots=True)
class CopyInfo:
    """One copy of a volume: valid up to `length`."""

    target: str
    length: int
    state: CopyState


@dataclass(frozen=True, slots=True)
class VolumeInfo:
    """One volume. `first_ns`, `last_ns` are 0 while it holds no fragment."""

    volume_id: str
    journal: str
    journal_id: str
    recorder: str
    session: int
    epoch: Epoch
    lane: int
    number: int
    path: str
    created_ns: int
    origin_ns: int
    members: tuple[MemberRef, ...]
    closed: bool
    length: int
    batches: int
    first_ns: int
    last_ns: int
    stale: bool
    copies: tuple[CopyInfo, ...]

    @property
    def order(self) -> tuple[Epoch, int, str]:
        """The order of volumes."""
        return (self.epoch, self.number, self.volume_id)


@dataclass(frozen=True, slots=True)
class TrackInfo:
    """A track as its configuration says: zeroes where a field does not apply."""

    media: Media
    name: str
    codec: str
    timescale: int
    width: int
    height: int
    sample_rate: int
    channels: int


@dataclass(frozen=True, slots=True)
class SpanInfo:
    """An unbroken stretch of one track inside one volume."""

    volume_id: str
    track: TrackKey
    track_id: int
    config: TrackInfo
    session: int
    index: int
    next_index: int
    start_ns: int
    end_ns: int
    first_batch: int
    last_batch: int
    samples: int
    fragments: int
    bytes: int

    @property
    def stretch(self) -> Stretch:
        return Stretch(self.start_ns, self.end_ns, self.session, self.index, self.next_index)


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What is stored of one stream. `tracks` as their newest footage has them, video first.

    `fragments` and `bytes` count volumes, not copies; they are None unless totals were asked for.
    """

    stream: str
    name: str
    journals: tuple[str, ...]
    tracks: tuple[TrackInfo, ...]
    first_ns: int
    last_ns: int
    fragments: int | None = None
    bytes: int | None = None


@dataclass(frozen=True, slots=True)
class TrackEnds:
    """From when until when a track is stored in one journal, and its newest configuration."""

    journal: str
    track: TrackKey
    config: TrackInfo
    first_ns: int
    last_ns: int
    fragments: int | None = None
    bytes: int | None = None


def read_volumes(connection: sqlite3.Connection, where: str, arguments: Sequence[Any]) -> list[VolumeInfo]:
    """The volumes that match a condition on the table `volumes`."""
    copies: dict[int, list[CopyInfo]] = {}
    query = f"SELECT volume, target, length, state FROM copies WHERE volume IN (SELECT id FROM volumes WHERE {where}) ORDER BY target"
    for volume, target, length, state in connection.execute(query, arguments):
        copies.setdefault(volume, []).append(CopyInfo(target, length, CopyState(state)))
    rows = connection.execute(
        "SELECT id, volume_id, journal, journal_id, recorder, session, term, set_number, lane, number, path, created_ns, origin_ns,"
        f" closed, length, batches, first_ns, last_ns, stale, members FROM volumes WHERE {where}",
        arguments,
    )
    return [_volume_info(row, copies.get(row[0], [])) for row in rows]


def _volume_info(row: tuple[Any, ...], copies: list[CopyInfo]) -> VolumeInfo:
    _, volume_id, journal, journal_id, recorder, session, term, set_number, lane, number, path, created_ns, origin_ns, *rest = row
    closed, length, batches, first_ns, last_ns, stale, members = rest
    return VolumeInfo(
        volume_id=volume_id,
        journal=journal,
        journal_id=journal_id,
        recorder=recorder,
        session=unsigned(session),
        epoch=Epoch(term, set_number),
        lane=lane,
        number=number,
        path=path,
        created_ns=created_ns,
        origin_ns=origin_ns,
        members=tuple(MemberRef(target, target_id, Role(role)) for target, target_id, role in json.loads(members)),
        closed=bool(closed),
        length=length,
        batches=batches,
        first_ns=first_ns,
        last_ns=last_ns,
        stale=bool(stale),
        copies=tuple(copies),
    )


def merge_volumes(found: Iterable[VolumeInfo], newer: Iterable[VolumeInfo]) -> list[VolumeInfo]:
    """Volumes of two sources, in order; of one that both know, the newer contents, and the copies of both."""
    merged = {volume.volume_id: volume for volume in found}
    for volume in newer:
        before = merged.get(volume.volume_id)
        if before is not None:
            copies = {copy.target: copy for copy in (*before.copies, *volume.copies)}
            volume = replace(volume, copies=tuple(copies[target] for target in sorted(copies)))
        merged[volume.volume_id] = volume
    return sorted(merged.values(), key=lambda volume: (volume.journal, *volume.order))


def read_spans(connection: sqlite3.Connection, where: str, arguments: Sequence[Any]) -> list[SpanInfo]:
    """The spans that match a condition on spans (s) and tracks (t)."""
    query = (
        "SELECT v.volume_id, t.stream, t.media, s.track_id, c.name, c.codec, c.timescale, c.width, c.height, c.sample_rate, c.channels,"
        " s.session, s.first_index, s.next_index, s.start_ns, s.end_ns, s.first_batch, s.last_batch, s.samples, s.fragments, s.bytes"
        " FROM tracks t JOIN spans s ON s.track = t.id JOIN configs c ON c.id = s.config JOIN volumes v ON v.id = s.volume"
        f" WHERE {where}"
    )
    return [
        SpanInfo(
            row[0],
            TrackKey(row[1], Media(row[2])),
            row[3],
            TrackInfo(Media(row[2]), *row[4:11]),
            unsigned(row[11]),
            *row[12:],
        )
        for row in connection.execute(query, arguments)
    ]


def read_ends(connection: sqlite3.Connection, stream: str | None, *, totals: bool = False, without: Iterable[str] = ()) -> list[TrackEnds]:
    """Both ends of every track that has footage, by the index alone. `totals` reads every span but those of the volumes `without`."""
    tracks = connection.execute(
        "SELECT id, journal, stream, media, span_ns_max FROM tracks WHERE ?1 IS NULL OR stream = ?1", (stream,)
    ).fetchall()
    others = "volume NOT IN (SELECT id FROM volumes WHERE volume_id IN (SELECT value FROM json_each(?)))"
    left_out = json.dumps(list(without))
    found: list[TrackEnds] = []
    for track, journal, name, media, span_ns_max in tracks:
        first, latest = connection.execute("SELECT min(start_ns), max(start_ns) FROM spans WHERE track = ?", (track,)).fetchone()
        if first is None:
            continue
        config, last = connection.execute(
            "SELECT config, max(end_ns) FROM spans WHERE track = ? AND start_ns >= ?", (track, latest - span_ns_max)
        ).fetchone()
        described = connection.execute(
            "SELECT name, codec, timescale, width, height, sample_rate, channels FROM configs WHERE id = ?", (config,)
        ).fetchone()
        sums: tuple[int | None, int | None] = (None, None)
        if totals:
            sums = connection.execute(
                f"SELECT coalesce(sum(fragments), 0), coalesce(sum(bytes), 0) FROM spans WHERE track = ? AND {others}", (track, left_out)
            ).fetchone()
        found.append(TrackEnds(journal, TrackKey(name, Media(media)), TrackInfo(Media(media), *described), first, last, *sums))
    return found


def stream_infos(ends: Iterable[TrackEnds]) -> list[StreamInfo]:
    """Streams by id; of a track that several sources know, the ends of both and the newest configuration."""
    streams: dict[str, list[TrackEnds]] = {}
    for found in ends:
        streams.setdefault(found.track.stream, []).append(found)
    return [_stream_info(stream, found) for stream, found in sorted(streams.items())]


def _stream_info(stream: str, found: list[TrackEnds]) -> StreamInfo:
    newest: dict[Media, TrackEnds] = {}
    for ends in sorted(found, key=lambda e: (e.last_ns, e.journal)):
        newest[ends.track.media] = ends
    tracks = sorted((ends.config for ends in newest.values()), key=lambda t: t.media is not Media.VIDEO)
    counted = [(ends.fragments, ends.bytes) for ends in found if ends.fragments is not None and ends.bytes is not None]
    return StreamInfo(
        stream=stream,
        name=tracks[0].name,
        journals=tuple(sorted({ends.journal for ends in found})),
        tracks=tuple(tracks),
        first_ns=min(ends.first_ns for ends in found),
        last_ns=max(ends.last_ns for ends in found),
        fragments=sum(fragments for fragments, _ in counted) if counted else None,
        bytes=sum(size for _, size in counted) if counted else None,
    )
