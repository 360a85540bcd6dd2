"""`nvrstore demo`: see it work in a minute, on this machine, with nothing prepared."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import anyio
import typer

from nvrstore.cli.common import JsonFlag, human_bytes, print_json, say, show_table
from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.errors import UsageError

STREAMS_MAX = 200
SECONDS_MIN = 8.0  # a failure, a hold-down and a return have to fit


def command(
    streams: Annotated[int, typer.Option(help="Simulated cameras.", min=1, max=STREAMS_MAX)] = 8,
    seconds: Annotated[float, typer.Option(help="How long they are recorded.", min=SECONDS_MIN, max=3600)] = 20.0,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="An empty directory to work in; it is kept. Without it: a temporary one.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Simulated cameras over real RTSP, two targets; one fails and returns; every frame is looked up. Exit status 0: nothing lost."""
    folder, keep = _folder(directory)
    begin_s = SYSTEM_CLOCK.monotonic_s()

    def tell(event: str, figures: dict[str, Any]) -> None:
        if not as_json:
            say(f"{SYSTEM_CLOCK.monotonic_s() - begin_s:6.1f} s  {_sentence(event, figures)}")

    from nvrstore.drills.demo import Demo

    if not as_json:
        say(f"{streams} simulated cameras over RTSP, two targets below {folder}; the first one will fail.")
    try:
        report = anyio.run(Demo(folder, streams=streams, seconds=seconds, say=tell).run)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        print_json({**asdict(report), "passed": report.passed})
    else:
        _show(report, kept=keep)
    if not report.passed:
        raise typer.Exit(1)


def _folder(directory: Path | None) -> tuple[Path, bool]:
    if directory is None:
        return Path(tempfile.mkdtemp(prefix="nvrstore-demo-")), False
    try:
        directory.mkdir(parents=True, exist_ok=True)
        empty = not any(directory.iterdir())
    except OSError as error:
        raise UsageError(f"{directory}: {error.strerror}", hint="give a directory that can be written, or none") from error
    if not empty:
        raise UsageError(f"{directory} is not empty", hint="give an empty directory, or none: the demo then uses a temporary one")
    return directory.resolve(), True


def _sentence(event: str, f: dict[str, Any]) -> str:
    match event:
        case "recording":
            targets = ", ".join(f"{name} {state}" for name, state in f["targets"].items())
            durable = f"{human_bytes(f['stored_bytes'])} durable, up to {f['oldest_durable_s'] or 0:.1f} s ago"
            what = f"{f['recording']} cameras, {f['frames']} frames, {durable if f['stored_bytes'] else 'nothing durable yet'}"
            return f"{what}; {targets}; epoch {f['epoch']}"
        case "broken":
            return f"!! target {f['target']} fails from now on: {f['error']}"
        case "lost":
            return f"-> target {f['target']} declared lost after {f['ttd_ms']:.0f} ms ({f['reason']})"
        case "failed over":
            return f"-> next commit {f['ttr_ms']:.0f} ms after the declaration, on the other target"
        case "mended":
            return f"!! target {f['target']} works again"
        case "joined":
            return f"-> target {f['target']} takes new footage again"
        case "synced":
            return f"-> target {f['target']} has been given everything it missed: the copies are equal again"
        case "stopped":
            return "the cameras stop; the recorder commits what is on its way"
        case "counting":
            return f"{f['frames_sent']} frames were sent: looking each of them up on disk, comparing the copies"
        case _:
            return f"{event} {f}"


def _show(report: Any, *, kept: bool) -> None:
    rows = [
        ("frames sent", report.frames_sent),
        ("frames durable", report.frames_durable),
        ("frames lost", report.frames_lost),
        ("frames twice", report.frames_duplicated),
        ("frames damaged", report.frames_damaged),
        ("copies equal, byte for byte", "yes" if report.targets_equal else "NO"),
        ("stored per copy", f"{human_bytes(report.bytes_per_copy)} in {report.volumes} volumes"),
        ("clip across the failure", f"{report.clip.get('frames_decoded', 0)} frames decoded"),
    ]
    for failover in report.failovers:
        rows.append((f"target {failover.target}: fault to declaration", f"{failover.ttd_ms:.0f} ms"))
        rows.append((f"target {failover.target}: declaration to next commit", f"{failover.ttr_ms:.0f} ms"))
    say()
    show_table(["", ">"], rows)
    for problem in report.problems:
        say(f"problem: {problem}")
    say("Nothing was lost." if report.passed else "NOT everything is as it should be.")
    if kept:
        say(f"Kept in {report.directory}: any volume below a/ and b/ plays in ffplay; the clip is {report.clip.get('path', 'missing')}.")
