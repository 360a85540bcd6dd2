"""`nvrstore bench`: how many cameras this machine records to these targets, with every frame looked up.

The number of streams is doubled until a step fails, then bisected. Exit status 0: at least one stream was recorded without
loss. Ctrl-C and SIGTERM end it in order, with what was measured so far.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import signal
import tempfile
import threading
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from nvrstore.bench.bottleneck import bottleneck_of, disturbed
from nvrstore.bench.model import Step
from nvrstore.bench.page import page
from nvrstore.bench.program import Interrupted
from nvrstore.bench.search import bounds, next_streams
from nvrstore.bench.sizing import size
from nvrstore.bench.step import Plan, run_step
from nvrstore.cli.common import STATUS_INTERRUPTED, JsonFlag, human_bytes, print_json, say, show_table
from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.errors import UsageError

_BITRATE: Final = re.compile(r"(\d+(?:\.\d+)?)([kM]?)")


def command(
    streams: Annotated[str, typer.Option(help="auto: search; a number: this step alone.", metavar="auto|N")] = "auto",
    bitrate: Annotated[str, typer.Option(help="Bits per second and camera: 4M, 512k.")] = "4M",
    seconds: Annotated[float, typer.Option(help="Measured time of a step.", min=1, max=3600)] = 30.0,
    targets: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="DIR DIR", help="Where the two copies go; only a sub-directory is used.")
    ] = None,
    engine: Annotated[str, typer.Option(help="lean, pyav or auto.")] = "auto",
    most: Annotated[int, typer.Option("--max", help="No more streams than this.", min=1, max=100_000)] = 4096,
    limit: Annotated[float, typer.Option(help="No new step begins after so many seconds.", min=1)] = 1800.0,
    html: Annotated[Path | None, typer.Option(help="Write the report as one self-contained page.", show_default=False)] = None,
    as_json: JsonFlag = False,
) -> None:
    """How many cameras this machine records without loss, commit p99 under 500 ms. Exit status 0: at least one."""
    rate_bps = _rate(bitrate)
    alone = _streams(streams)
    if engine not in ("lean", "pyav", "auto"):
        raise UsageError(f"there is no engine {engine!r}", hint="lean, pyav or auto")
    places = _places(targets)
    _raise_files_max()
    end = threading.Event()
    before = {number: signal.signal(number, lambda *_: end.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    own = Path(tempfile.mkdtemp(prefix="nvrstore-bench-")) if places is None else None
    try:
        where = places or _both(own)
        facts = _facts(where)
        plan = Plan(where, bitrate, rate_bps, seconds, engine, os.cpu_count() or 1)
        _check_room(plan, alone or 1)
        if own is not None and not as_json:
            say("No --targets were given: both copies lie in one temporary directory, on one disk.")
        steps, stopped = _search(plan, alone, most, limit, end, as_json=as_json)
    finally:
        if own is not None:
            shutil.rmtree(own, ignore_errors=True)
        for number, handler in before.items():
            signal.signal(number, handler)
    _report(plan, steps, stopped, targets=facts, html=html, as_json=as_json)
    if not bounds([(step.streams, step.passed) for step in steps])[0]:
        raise typer.Exit(STATUS_INTERRUPTED if end.is_set() and not steps else 1)


def _raise_files_max() -> None:
    """As many open files as the system allows: a camera is a socket in the recorder, and one in the farm. Both inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _rate(text: str) -> int:
    match = _BITRATE.fullmatch(text)
    rate = round(float(match[1]) * {"": 1, "k": 1_000, "M": 1_000_000}[match[2]]) if match else 0
    if rate <= 0:
        raise UsageError(f"{text!r} is no bitrate", hint="write 4M, 512k, or 4000000")
    return rate


def _streams(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise UsageError(f"{text!r} is no number of streams", hint="auto, or a number from 1 on")
    return int(text)


def _places(targets: tuple[Path, Path] | None) -> tuple[Path, Path] | None:
    if targets is None:
        return None
    a, b = (path.resolve() for path in targets)
    for path in (a, b):
        if not path.is_dir():
            raise UsageError(f"{path} is no directory", hint="give two directories that exist and can be written")
        if not os.access(path, os.W_OK | os.X_OK):
            raise UsageError(f"{path} cannot be written", hint="give two directories that exist and can be written")
    if a.samefile(b):
        raise UsageError(f"{a} was given twice", hint="two copies need two directories, best on two disks")
    return a, b


def _both(folder: Path | None) -> tuple[Path, Path]:
    if folder is None:
        raise ValueError("no directory")
    places = folder / "a", folder / "b"
    for place in places:
        place.mkdir()
    return places


def _facts(where: tuple[Path, Path]) -> list[dict[str, Any]]:
    """What is said of the targets: looked up before anything is written."""
    one = where[0].stat().st_dev == where[1].stat().st_dev
    return [{"path": str(place), "free_bytes": shutil.disk_usage(place).free, "one_file_system": one} for place in where]


def _room(plan: Plan, streams: int) -> tuple[float, float]:
    """(bytes that a step needs on the fuller file system, bytes that are free there)."""
    a, b = plan.targets
    together = a.stat().st_dev == b.stat().st_dev
    return plan.room_bytes(streams) * (2 if together else 1), min(shutil.disk_usage(place).free for place in (a, b))


def _check_room(plan: Plan, streams: int) -> None:
    need, free = _room(plan, streams)
    if need > free:
        raise UsageError(
            f"a step needs {human_bytes(need)}, {human_bytes(free)} are free", hint="free space, or lower --seconds or --bitrate"
        )


def _search(plan: Plan, alone: int | None, most: int, limit_s: float, end: threading.Event, *, as_json: bool) -> tuple[list[Step], str]:
    """Steps in the order in which they ran, and why no more did."""
    begin_s = SYSTEM_CLOCK.monotonic_s()
    steps: list[Step] = []
    while True:
        wanted = next_streams([(step.streams, step.passed) for step in steps], most=most)
        if alone is not None:
            wanted = None if steps else alone
        if wanted is None:
            return steps, "done"
        if SYSTEM_CLOCK.monotonic_s() - begin_s > limit_s:
            return steps, "time limit"
        need, free = _room(plan, wanted)
        if need > free:
            return steps, f"no room for {wanted} streams: {human_bytes(need)} needed, {human_bytes(free)} free"
        if not as_json:
            say(f"{wanted} streams: connecting, {plan.seconds:g} s measured, every frame looked up ...")
        try:
            step = run_step(plan, wanted, end)
        except Interrupted:
            return steps, "interrupted"
        steps.append(step)
        if not as_json:
            say(f"   {'passed' if step.passed else 'FAILED: ' + step.reason}")


def _report(plan: Plan, steps: list[Step], stopped: str, *, targets: list[dict[str, Any]], html: Path | None, as_json: bool) -> None:
    best, worst = bounds([(step.streams, step.passed) for step in steps])
    failing = next((step for step in steps if step.streams == worst and not step.passed), None)
    kind, why = bottleneck_of(failing) if failing else ("none", "no step failed")
    top = next((step for step in reversed(steps) if step.passed and step.streams == best), None)
    sizing = size(top, plan.rate_bps) if top else None
    if html is not None:
        machine = f"{plan.cores} cores, {platform.machine()}, Linux {platform.release()}"
        about = (
            f"{machine} · cameras of {plan.rate_bps / 1e6:g} Mbit/s on it too · engine {plan.engine} · {plan.seconds:g} s measured a step"
        )
        about += " · both targets on one file system" if targets[0]["one_file_system"] else ""
        about += f" · {busy}" if (busy := disturbed(steps)) else ""
        html.write_text(
            page(
                steps,
                streams=best,
                bottleneck=why if stopped == "done" else f"{why}; the search ended early: {stopped}",
                sizing=sizing,
                about=about,
            ),
            encoding="utf-8",
        )
    if as_json:
        host = {"cores": plan.cores, "machine": platform.machine(), "kernel": platform.release()}
        document: dict[str, Any] = {
            "host": host,
            "targets": targets,
            "bitrate_bps": plan.rate_bps,
            "seconds": plan.seconds,
            "engine": plan.engine,
            "steps": [{**_fields(step), "passed": step.passed, "reason": step.reason} for step in steps],
            "result": {"streams": best, "stopped": stopped},
            "bottleneck": {"kind": str(kind), "sentence": why},
            "disturbed": disturbed(steps),
            "sizing": sizing,
        }
        print_json(document)
        return
    show_table([">streams", ">CPU %", ">with kernel %", ">PSS MiB", ">p50 ms", ">p99 ms", ">connect s", ">sent", ">lost", ">MB/s", ""],
               [_row(step) for step in sorted(steps, key=lambda step: step.streams)])  # fmt: skip
    say(f"bottleneck: {why}")
    say(sizing.sentence if sizing else "not even one stream was recorded without loss")
    if busy := disturbed(steps):
        say(busy)
    if stopped != "done":
        say(f"ended early: {stopped}")
    if html is not None:
        say(f"The report is in {html}.")


def _fields(step: Step) -> dict[str, Any]:
    return {name: getattr(step, name) for name in step.__dataclass_fields__}


def _row(step: Step) -> tuple[Any, ...]:
    usage = step.usage
    cpu = (f"{usage.recorder * 100:.0f}", f"{usage.recording * 100:.0f}") if usage else ("-", "-")
    times = (f"{step.commit_ms_p50:.0f}", f"{step.commit_ms_p99:.0f}", f"{step.connected_s:.1f}")
    verdict = "passed" if step.passed else f"FAILED: {step.reason}"
    return (step.streams, *cpu, f"{step.pss_mb:.0f}", *times, step.frames_sent, step.frames_lost, f"{step.target_mb_s:.1f}", verdict)
