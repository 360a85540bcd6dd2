"""A host that embeds the recorder under memory tracing, looks at itself every so often, and says what it sees.

python soak_host.py nvr.toml SECONDS LOOK_S CONNECT_S      one JSON object a line:
    {"event": "connected", "streams"}            the time runs from here
    {"event": "look", "at_s", "traced_bytes", "pss_bytes", "threads", "descriptors", "children", "lag_s", "samples", ...}
    {"event": "enough"}                          then it waits for a line on standard input, drains, and ends
    {"event": "grown", "lines": [...]}           where the memory grew, from a quarter of the time to its end

Python 3.11 finds the line of every traced allocation by walking through its function's table of lines: that makes the hot loop
twenty times slower, and 300 cameras too many. Functions that ran under `sys.settrace` once keep an array of their lines. So one
camera is recorded so for WARM_S first; the others join then.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import threading
import tracemalloc
from pathlib import Path
from types import FrameType
from typing import Any, Final

import anyio
import anyio.to_thread

import nvrstore
from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.model import NS_PER_S

DRAIN_LOOKS_MAX: Final = 60
WARM_S: Final = 6.0
TOGETHER: Final = 20  # so many join at once: what connecting 300 at once costs is another question

_warm = threading.Event()


def step(_frame: FrameType, _event: str, _argument: object) -> Any:
    """Trace every line, for no other reason than that it was traced; every thread ends it by itself."""
    if _warm.is_set():
        sys.settrace(None)
        return None
    return step


def say(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


def children() -> list[int]:
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        try:
            found += [int(pid) for pid in (task / "children").read_text().split()]
        except OSError:
            continue  # the thread has ended meanwhile
    return sorted(found)


def pss_bytes() -> int:
    """Of this process and its workers: shared memory counts once."""
    total = 0
    for pid in [os.getpid(), *children()]:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total


def look(recorder: nvrstore.Recorder, begin_s: float) -> dict[str, Any]:
    """What may grow, and what may drift."""
    gc.collect()
    traced, peak = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    now_ns = SYSTEM_CLOCK.utc_ns()
    streams = [stream.status() for stream in recorder.streams()]
    status = recorder.statistics()
    return {
        "at_s": round(SYSTEM_CLOCK.monotonic_s() - begin_s, 1),
        "cpu_s": round(sum(os.times()[:2]), 1),
        "traced_bytes": traced,
        "traced_peak_bytes": peak,
        "pss_bytes": pss_bytes(),
        "threads": len(os.listdir("/proc/self/task")),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "children": len(children()),
        "buffer_bytes": status["buffer"]["bytes"],
        "lag_s": max((now_ns - s.footage_end_ns) / NS_PER_S for s in streams if s.footage_end_ns) if streams else 0.0,
        "samples": sum(s.samples for s in streams),
        "recording": sum(str(s.state) == "recording" for s in streams),
        "reconnects": sum(s.reconnects for s in streams),
        "packets_lost": sum(s.packets_lost for s in streams),
        "pruned": status["upkeep"]["pruned"],
        "alarms": [alarm["sentence"] for alarm in status["alarms"]],
    }


def grown(before: tracemalloc.Snapshot, after: tracemalloc.Snapshot) -> list[str]:
    """The lines whose memory grew most."""
    root = str(Path(nvrstore.__file__).parent.parent)
    return [
        f"{str(line.traceback[0]).removeprefix(root + '/')}: {line.size_diff:+} bytes, {line.count_diff:+} blocks"
        for line in after.compare_to(before, "lineno")[:8]
        if line.size_diff > 0
    ]


async def connected(recorder: nvrstore.Recorder, connect_s: float) -> None:
    """Until every stream records."""
    with anyio.fail_after(connect_s):
        while any(stream.status().state != "recording" for stream in recorder.streams()):  # noqa: ASYNC110 - a snapshot is asked for again
            await anyio.sleep(0.1)


async def main(path: str, seconds: float, look_s: float, connect_s: float) -> None:
    config = nvrstore.Config.load(path)
    first, *others = config.streams
    async with nvrstore.Recorder(config.model_copy(update={"streams": (first,)})) as recorder:
        await connected(recorder, connect_s)
        await anyio.sleep(WARM_S)
        _warm.set()
        sys.settrace(None)
        for at in range(0, len(others), TOGETHER):
            for stream in others[at : at + TOGETHER]:
                await recorder.add_stream(stream)
            await connected(recorder, connect_s)
        say("connected", streams=len(recorder.streams()))
        begin_s = SYSTEM_CLOCK.monotonic_s()
        before: tracemalloc.Snapshot | None = None
        looks = round(seconds / look_s)
        for number in range(1, looks + 1):
            await anyio.sleep(max(0.0, begin_s + number * look_s - SYSTEM_CLOCK.monotonic_s()))
            say("look", **look(recorder, begin_s))
            if before is None and number >= looks / 4:
                before = tracemalloc.take_snapshot()
        say("enough")
        await anyio.to_thread.run_sync(sys.stdin.readline)
        samples = -1
        for _ in range(DRAIN_LOOKS_MAX):  # what is in the sockets when the cameras have stopped
            now = sum(stream.status().samples for stream in recorder.streams())
            if now == samples:
                break
            samples = now
            await anyio.sleep(1.0)
        after = tracemalloc.take_snapshot()
    if before is not None:  # which takes seconds of a processor: nobody records any more
        say("grown", lines=grown(before, after))


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    tracemalloc.start()
    threading.settrace(step)
    sys.settrace(step)
    anyio.run(main, sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
