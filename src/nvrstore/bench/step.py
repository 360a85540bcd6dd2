"""One step: N simulated cameras, a recorder, two targets; connect, settle, measure, stop, look up every frame.

Everything is written below directories that were made for this step, and removed at its end, whatever happened.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nvrstore.bench.model import Step, Usage
from nvrstore.bench.proc import cpu_s, machine_s, others_s, pss_mb, threads_s, tree
from nvrstore.bench.program import Cameras, Interrupted, Program
from nvrstore.bench.verify import verify_archive
from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.errors import NvrstoreError
from nvrstore.limits import LANE_TRACKS_MAX, MIB
from nvrstore.targets.directory import DirectoryTarget
from nvrstore.targets.identity import init_target
from nvrstore.targets.steps import run_steps
from nvrstore.upkeep.room import RESERVE_S

SETTLE_S: Final = 4.0  # what connecting costs is another question
CONNECT_S_MAX: Final = 60.0
VOLUME_S: Final = 10.0  # several volumes are cut while a step is measured; those of a minute would want disks four times as large
VOLUME_BYTES_MIN: Final = 64 * MIB
MARGIN: Final = 1.25  # bitrates are averages
POLL_S: Final = 0.2
INIT_S: Final = 20.0
PREFIX: Final = "nvrstore-bench-"


@dataclass(frozen=True, slots=True)
class Plan:
    """What all steps have in common."""

    targets: tuple[Path, Path]
    bitrate: str
    rate_bps: int  # the same
    seconds: float
    engine: str
    cores: int

    def volume_bytes(self, streams: int) -> int:
        """Of a volume, for so many cameras."""
        return max(VOLUME_BYTES_MIN, round(self.rate_bps / 8 * streams / _lanes(streams) * VOLUME_S))

    def room_bytes(self, streams: int) -> float:
        """What a step needs on each target: footage; per lane the open volume, the next one, and one kept free; a reserve."""
        seconds = self.seconds + SETTLE_S + CONNECT_S_MAX / 4 + RESERVE_S
        return MARGIN * (self.rate_bps / 8 * streams * seconds + 3 * _lanes(streams) * self.volume_bytes(streams))


def _lanes(streams: int) -> int:
    return -(-streams // LANE_TRACKS_MAX)


@contextmanager
def folders(targets: Sequence[Path]) -> Iterator[tuple[Path, Path, Path]]:
    """State, target a, target b: directories of our own, gone afterwards."""
    made: list[Path] = []
    try:
        made.append(Path(tempfile.mkdtemp(prefix=PREFIX)))
        made.extend(Path(tempfile.mkdtemp(prefix=PREFIX, dir=root)) for root in targets)
        yield made[0], made[1], made[2]
    finally:
        for folder in made:
            shutil.rmtree(folder, ignore_errors=True)


def configuration(state: Path, a: Path, b: Path, urls: Sequence[str], plan: Plan) -> dict[str, Any]:
    """The recorder's, with every default on but the size of volumes."""
    return {
        "format": 1,
        "recorder": {"name": "bench", "state": str(state / "state")},
        "target": [{"name": "a", "path": str(a)}, {"name": "b", "path": str(b)}],
        "journal": [{"name": "main", "targets": ["a", "b"], "copies": 2, "volume_bytes": plan.volume_bytes(len(urls))}],
        "stream_defaults": {"journal": "main", "engine": plan.engine},
        "stream": [{"id": f"cam{i}", "url": url} for i, url in enumerate(urls)],
    }


def run_step(plan: Plan, streams: int, end: threading.Event) -> Step:
    """Raises `Interrupted` when `end` was set meanwhile. What goes wrong with the recorder is a step that failed, not an error."""
    with folders(plan.targets) as (state, a, b):
        try:
            return _recorded(plan, streams, state, a, b, end)
        except NvrstoreError as error:
            return Step(streams, plan.seconds, None, problem=error.message)


def _recorded(plan: Plan, streams: int, state: Path, a: Path, b: Path, end: threading.Event) -> Step:
    for name, path in (("a", a), ("b", b)):
        init(name, path)
    with Cameras(streams, plan.bitrate, end) as farm:
        file = state / "config.json"
        file.write_text(json.dumps(configuration(state, a, b, [farm.url(i) for i in range(streams)], plan)))
        with Program("the recorder", ["nvrstore.bench.child", str(file)], end) as recorder:
            connected_s = _connected(recorder, streams, end)
            _pause(SETTLE_S, end)
            figures = _measured(plan, farm, recorder, end)
            sent = farm.ask("stop")
            stopped = recorder.ask("stop")
    lost, frames, problem = verify_archive(a, b, sent)
    if end.is_set():
        raise Interrupted
    return Step(
        streams=streams,
        seconds=plan.seconds,
        connected_s=round(connected_s, 2),
        frames_sent=frames,
        frames_lost=lost,
        frames_dropped=sent["frames_dropped"],
        late_ms_max=sent["lateness_ms_max"],
        targets_lost=tuple(stopped["targets_lost"]),
        problem=problem,
        **figures,
    )


def init(name: str, path: Path) -> None:
    """Make an empty directory a target. Raises TargetError."""
    target = DirectoryTarget(name, path)
    try:
        target.wait_ready(INIT_S)
        run_steps(init_target(name), {name: target}, timeout_s=INIT_S)
    finally:
        target.close(2.0)


def _connected(recorder: Program, streams: int, end: threading.Event) -> float:
    begin_s = SYSTEM_CLOCK.monotonic_s()
    while (passed_s := SYSTEM_CLOCK.monotonic_s() - begin_s) < CONNECT_S_MAX:
        if recorder.ask("state")["recording"] == streams:
            return passed_s
        _pause(POLL_S, end)
    raise NvrstoreError(f"not all of {streams} cameras were recording after {CONNECT_S_MAX:.0f} s")


def _pause(seconds: float, end: threading.Event) -> None:
    if end.wait(seconds):
        raise Interrupted


def _measured(plan: Plan, farm: Program, recorder: Program, end: threading.Event) -> dict[str, Any]:
    pids = tree(recorder.pid)
    first = recorder.ask("begin")
    before = _counters(farm.pid, recorder.pid, pids)
    _pause(plan.seconds, end)
    after = _counters(farm.pid, recorder.pid, tree(recorder.pid))
    last = recorder.ask("look")
    passed_s = float(after["at_s"] - before["at_s"])

    def cores(what: str) -> float:
        return float(after[what] - before[what]) / passed_s

    thread, busiest = _busiest(before["threads"], after["threads"], passed_s)
    usage = Usage(
        cores=plan.cores,
        machine=round(cores("machine"), 3),
        farm=round(cores("farm"), 3),
        farm_thread=round(_busiest(before["farm_threads"], after["farm_threads"], passed_s)[1], 3),
        recorder=round(cores("recorder"), 3),
        recorder_process=round(cores("process"), 3),
        thread=round(busiest, 3),
        thread_name=last["threads"].get(str(thread), "of a library"),
        others=round(_grown(before["others"], after["others"]) / passed_s, 3),
    )
    return {
        "usage": usage,
        "pss_mb": round(pss_mb(tree(recorder.pid)), 1),
        "commits": last["commits"] - first["commits"],
        "commit_ms_p50": round(last["commit_ms_p50"], 1),
        "commit_ms_p99": round(last["commit_ms_p99"], 1),
        "target_mb_s": round((last["stored_bytes"] - first["stored_bytes"]) / passed_s / 1e6, 2),
    }


def _counters(farm: int, recorder: int, pids: Sequence[int]) -> dict[str, Any]:
    return {
        "at_s": SYSTEM_CLOCK.monotonic_s(),
        "machine": machine_s(),
        "farm": cpu_s([farm]),
        "farm_threads": threads_s(farm),
        "recorder": cpu_s(pids),
        "process": cpu_s([recorder]),
        "threads": threads_s(recorder),
        "others": others_s([*pids, farm, os.getpid()]),
    }


def _grown(before: Mapping[int, float], after: Mapping[int, float]) -> float:
    return sum(seconds - before.get(pid, 0.0) for pid, seconds in after.items())


def _busiest(before: Mapping[int, float], after: Mapping[int, float], passed_s: float) -> tuple[int, float]:
    used = {thread: (seconds - before.get(thread, 0.0)) / passed_s for thread, seconds in after.items()}
    thread = max(used, key=used.__getitem__, default=0)
    return thread, used.get(thread, 0.0)
