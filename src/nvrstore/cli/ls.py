"""`nvrstore ls PLACE [WHAT]`: what is stored.

nvrstore ls nvr.toml                               streams: from when until when, which tracks
nvrstore ls nvr.toml volumes                       files and their copies
nvrstore ls nvr.toml spans --stream gate           unbroken stretches
nvrstore ls nvr.toml gaps --from -1d               what was not stored, and why
nvrstore ls nvr.toml marks · coverage              events; the account per stream
nvrstore ls /mnt/array-a · nvrstore ls x.mp4       a target, a volume, without a configuration
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from nvrstore.catalog.query import END_OF_TIME_NS
from nvrstore.catalog.views import SpanInfo, StreamInfo, TrackInfo, VolumeInfo
from nvrstore.cli.common import JsonFlag, human_bytes, human_s, iso, parse_time, print_json, say, show_table, warn
from nvrstore.cli.stored import From, Place, To, archive_at
from nvrstore.errors import TargetUnavailableError, UsageError
from nvrstore.model import NS_PER_S, Gap, Mark
from nvrstore.playback.core import ArchiveCore


class What(StrEnum):
    """What is listed."""

    STREAMS = "streams"
    VOLUMES = "volumes"
    SPANS = "spans"
    GAPS = "gaps"
    MARKS = "marks"
    COVERAGE = "coverage"


def command(
    place: Place,
    what: Annotated[What, typer.Argument(help="What to list.")] = What.STREAMS,
    stream: Annotated[str, typer.Option(help="Only this stream.", show_default=False)] = "",
    start: From = "",
    end: To = "",
    totals: Annotated[bool, typer.Option("--totals", help="Also bytes and fragments per stream: slow in a large archive.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """What is stored: streams, volumes, spans, gaps, marks, coverage."""
    start_ns = parse_time(start) if start else 0
    end_ns = parse_time(end) if end else END_OF_TIME_NS
    if end_ns <= start_ns:
        raise UsageError("the end lies before the start", hint="--from is the earlier time, --to the later one")
    with archive_at(place) as archive:
        found = _ask(archive, what, stream or None, start_ns, end_ns, totals=totals)
        away = archive.library.unreachable()
        for target in away:
            warn(f"target {target!r} did not answer: what only it holds is not listed")
        if not found and len(away) == len(archive.copies.targets):
            raise TargetUnavailableError("no target answered, and there is no catalog", target=", ".join(away))
    if as_json:
        print_json({str(what): [_plain(item) for item in found]})
        return
    if not found:
        say(f"no {what}")
        return
    columns, row = _TABLES[what]
    show_table(columns, [row(item) for item in found])


def _ask(archive: ArchiveCore, what: What, stream: str | None, start_ns: int, end_ns: int, *, totals: bool) -> list[Any]:
    if stream is not None:
        archive.known(stream)
    streams = [s for s in archive.streams(totals=totals) if stream in (None, s.stream)]
    match what:
        case What.STREAMS:
            return [s for s in streams if s.first_ns < end_ns and s.last_ns > start_ns]
        case What.VOLUMES:
            volumes = archive.volumes()
            held = {span.volume_id for span in archive.spans(stream, start_ns, end_ns)} if stream is not None else None
            return [
                v
                for v in volumes
                if (not v.last_ns or (v.first_ns < end_ns and v.last_ns > start_ns)) and (held is None or v.volume_id in held)
            ]
        case What.SPANS:
            return [span for s in streams for span in archive.spans(s.stream, start_ns, end_ns)]
        case What.GAPS:
            return list(archive.gaps(stream, start_ns, end_ns))
        case What.MARKS:
            return list(archive.marks(stream, start_ns, end_ns))
        case What.COVERAGE:
            last = END_OF_TIME_NS
            return [archive.coverage(s.stream, start_ns or s.first_ns, s.last_ns if end_ns == last else end_ns) for s in streams]


def _plain(item: Any) -> Any:
    """As JSON says it: properties that people ask for are spelled out."""
    if isinstance(item, VolumeInfo):
        return {**{name: getattr(item, name) for name in VolumeInfo.__slots__}, "session": f"{item.session:016x}", "epoch": str(item.epoch)}
    if isinstance(item, SpanInfo):
        return {**{name: getattr(item, name) for name in SpanInfo.__slots__}, "session": f"{item.session:016x}"}
    return item


def _shape(track: TrackInfo) -> str:
    return f"{track.codec} {track.width}x{track.height}" if track.width else f"{track.codec} {track.sample_rate} Hz"


def _stream_row(s: StreamInfo) -> list[Any]:
    size = "" if s.bytes is None else human_bytes(s.bytes)
    return [s.stream, s.name, ", ".join(map(_shape, s.tracks)), iso(s.first_ns), iso(s.last_ns), ", ".join(s.journals), size]


def _volume_row(v: VolumeInfo) -> list[Any]:
    copies = ", ".join(f"{copy.target} {copy.state}" for copy in v.copies)
    times = [iso(v.first_ns or None), iso(v.last_ns or None)]
    return [v.path, str(v.epoch), "closed" if v.closed else "open", human_bytes(v.length), v.batches, *times, copies]


def _span_row(s: SpanInfo) -> list[Any]:
    length = human_s((s.end_ns - s.start_ns) / NS_PER_S)
    return [str(s.track), iso(s.start_ns), iso(s.end_ns), length, s.samples, human_bytes(s.bytes), s.volume_id[:8]]


def _gap_row(gap: Gap) -> list[Any]:
    length = "open" if gap.end_ns is None else human_s((gap.end_ns - gap.start_ns) / NS_PER_S)
    return [gap.stream, str(gap.cause), iso(gap.start_ns), iso(gap.end_ns), length, gap.detail]


def _mark_row(mark: Mark) -> list[Any]:
    return [mark.stream, mark.kind, iso(mark.start_ns), iso(mark.end_ns), dict(mark.data) or ""]


def _coverage_row(c: Any) -> list[Any]:
    gaps = ", ".join(f"{cause} {human_s(ms / 1000)}" for cause, ms in c.gaps_ms.items())
    share = c.recorded_ms / max(1, c.recorded_ms + sum(c.gaps_ms.values()) + c.unexplained_ms + c.outside_ms)
    return [c.stream, iso(c.start_ns), iso(c.end_ns), human_s(c.recorded_ms / 1000), f"{share:.3%}", gaps, human_s(c.unexplained_ms / 1000)]


_TABLES: Any = {
    What.STREAMS: (("stream", "name", "tracks", "from", "until", "journal", ">bytes"), _stream_row),
    What.VOLUMES: (("volume", "epoch", "state", ">bytes", ">batches", "from", "until", "copies"), _volume_row),
    What.SPANS: (("track", "from", "until", ">length", ">samples", ">bytes", "volume"), _span_row),
    What.GAPS: (("stream", "cause", "from", "until", ">length", "detail"), _gap_row),
    What.MARKS: (("stream", "mark", "from", "until", "data"), _mark_row),
    What.COVERAGE: (("stream", "from", "until", ">recorded", ">share", "gaps", ">unexplained"), _coverage_row),
}
