"""`nvrstore export PLACE STREAM... --from T --to T -o clip.mp4`: footage as one MP4 that every player reads.

It begins with the keyframe at or before the start. Exit status 1 when footage of this span was stored and cannot be read from
any copy: the file then holds the rest, and the report says what is missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nvrstore.catalog.coverage import HoleReason
from nvrstore.cli.common import JsonFlag, human_bytes, human_s, iso, parse_time, print_json, say, warn
from nvrstore.cli.stored import From, Place, To, archive_at, progress
from nvrstore.errors import UsageError
from nvrstore.model import NS_PER_S
from nvrstore.playback.export import ExportProgress, ExportReport

_LOST = frozenset({HoleReason.DAMAGED, HoleReason.UNREACHABLE})


def command(
    place: Place,
    streams: Annotated[list[str], typer.Argument(metavar="STREAM...", help="Ids, as `nvrstore ls` shows them.", show_default=False)],
    start: From,
    end: To,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Default: the streams' names and the start.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Take footage out as one standard MP4, samples bit-exact, gaps as gaps."""
    start_ns, end_ns = parse_time(start), parse_time(end)
    path = output or Path(f"{'-'.join(streams)}_{iso(start_ns).replace(':', '-')}.mp4")
    if path.exists() and not force:
        raise UsageError(f"{path} exists already", hint="choose another name with --output, or --force")
    with archive_at(place) as archive, progress("exporting", shown=not as_json) as show:

        def step(now: ExportProgress) -> None:
            show(now.bytes_done / max(1, now.bytes_total), iso(now.utc_ns))

        report = archive.export(streams, start_ns, end_ns, path, on_progress=step)
    if as_json:
        print_json(report)
    else:
        _show(report)
    if any(hole.reason in _LOST for hole in report.holes):
        raise typer.Exit(1)


def _show(report: ExportReport) -> None:
    length = human_s((report.end_ns - report.start_ns) / NS_PER_S)
    say(f"{report.path}: {length} from {iso(report.start_ns)}, {report.frames} frames, {human_bytes(report.bytes)}")
    say(f"sha256 {report.sha256}")
    for track in report.tracks:
        size = f" {track.width}x{track.height}" if track.width else ""
        say(f"  track {track.track_id}: {track.stream} {track.media}, {track.codec}{size}, {track.frames} samples")
    for gap in report.gaps:
        say(f"  gap: {gap.stream} from {iso(gap.start_ns)} until {iso(gap.end_ns)}: {gap.cause}{f', {gap.detail}' if gap.detail else ''}")
    for hole in report.holes:
        told = f"{hole.stream} from {iso(hole.start_ns)} until {iso(hole.end_ns)}: {hole.reason}{f', {hole.detail}' if hole.detail else ''}"
        if hole.reason in _LOST:
            warn(f"not in the file: {told}")
        else:
            say(f"  hole: {told}")
    for note in report.notes:
        warn(note)
