"""How soon do cameras go on when they, or the process that receives them, had gone, and what does a host cost that burns its GIL?

Run: python benchmarks/bench_workers.py --streams 20 --repeat 10 --seconds 8

Question: `[recorder] workers = 1`: from SIGKILL of the ingest worker until each of its cameras is received by the spare, and until
          a fragment recorded after the kill is durable on both targets. And: frames lost while four threads of the host burn
          its GIL, with the cameras in threads (workers = 0) and in a process of their own (workers = 1). And, in threads: cameras hang
          up and come back: from each one's first picture to a fragment of the new session that is durable on both targets.
Method:   simulated cameras (1 Mbit/s, a keyframe every two seconds) over RTSP/TCP; the recorder in this process, two directories. A run
          counts only if no frame is missing outside the gaps that the ledger names, and both copies are equal. Received is from the first
          keyframe on: the farm's cameras begin with one that is due soon (20 at once: all within 0.5 s of PLAY), so most of that time
          is waiting for the last of them. Cameras that send none to those who come wait for up to a GOP instead.
Reports:  a table, and with --json one JSON object per line: {bench, host, unit, value, ...}; times in ms, median and largest.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio

import nvrstore
from nvrstore.bench.program import Cameras
from nvrstore.bench.step import init
from nvrstore.bench.verify import sent_ranges
from nvrstore.drills.account import differences, take_account
from nvrstore.model import NS_PER_S

POLL_S = 0.005
BURNERS = 4


def configuration(folder: Path, farm: Cameras, n: int, workers: int) -> nvrstore.Config:
    for name in "ab":
        (folder / name).mkdir()
        init(name, folder / name)
    return nvrstore.Config.parse(
        {
            "format": 1,
            "recorder": {"name": "bench", "state": str(folder / "state"), "workers": workers},
            "target": [{"name": name, "path": str(folder / name), "medium": "ssd"} for name in "ab"],
            "journal": [{"name": "main", "targets": ["a", "b"], "copies": 2}],
            "stream": [{"id": f"cam{i}", "url": farm.url(i)} for i in range(n)],
        }
    )


async def until(holds: Callable[[], bool], timeout_s: float = 60.0) -> None:
    with anyio.fail_after(timeout_s):
        while not holds():  # noqa: ASYNC110 - a snapshot is asked for again
            await anyio.sleep(POLL_S)


def durable_since(recorder: nvrstore.Recorder, moment_ns: int) -> bool:
    """Whether every stream has something durable on two copies that was recorded after a moment."""
    found = [stream.durable_until(copies=2) for stream in recorder.streams()]
    return all(until is not None and until.timestamp() * NS_PER_S > moment_ns for until in found)


async def drained(recorder: nvrstore.Recorder) -> None:
    before = -1
    while (frames := sum(stream.status().samples for stream in recorder.streams())) != before:
        before = frames
        await anyio.sleep(1.5)


def missing(folder: Path, sent: dict[str, Any]) -> int:
    """Frames between the first and the last one recorded that are not there. Raises ValueError when the copies differ."""
    if differences(folder / "a", folder / "b", "main"):
        raise ValueError("the copies differ")
    account, lost = take_account(folder / "a", "main"), 0
    for stream, ranges in sent_ranges(sent).items():
        there = {n for piece in account.reports[stream].ranges for n in range(piece.first, piece.last + 1)}
        lost += sum(n not in there for first, last in ranges for n in range(max(first, min(there)), last + 1))
    return lost


async def kills(folder: Path, farm: Cameras, n: int, repeat: int) -> tuple[list[float], list[float], int]:
    """ms until all cameras are received again, ms until all have something durable again, frames in the gaps."""
    connected, durable = [], []
    async with nvrstore.Recorder(configuration(folder, farm, n, 1)) as recorder:
        await until(lambda: durable_since(recorder, 0))
        for _ in range(repeat):
            await anyio.sleep(11.0)  # longer than the life of a worker that ends again and again
            (worker,) = recorder.statistics()["ingest_workers"]
            killed_s, killed_ns = time.monotonic(), time.time_ns()
            os.kill(worker["pid"], signal.SIGKILL)
            # Until the spare sits, streams that were not told yet still seem to be received.
            await until(lambda pid=worker["pid"]: recorder.statistics()["ingest_workers"][0]["pid"] not in (None, pid))  # type: ignore[misc]
            await until(lambda: all(stream.status().state == "recording" for stream in recorder.streams()))
            connected.append(1e3 * (time.monotonic() - killed_s))
            await until(lambda ns=killed_ns: durable_since(recorder, ns))  # type: ignore[misc]
            durable.append(1e3 * (time.monotonic() - killed_s))
        sent = await anyio.to_thread.run_sync(farm.ask, "stop")
        await drained(recorder)
    return connected, durable, missing(folder, sent)


async def returns(folder: Path, farm: Cameras, n: int, repeat: int) -> tuple[list[float], int]:
    """ms from a camera's first picture after it had hung up until something of its new session is durable, frames lost in sessions."""
    durable: list[float] = []
    async with nvrstore.Recorder(configuration(folder, farm, n, 0)) as recorder:
        await until(lambda: durable_since(recorder, 0))
        for _ in range(repeat):
            left_ns = time.time_ns()
            await anyio.to_thread.run_sync(farm.ask, "leave")
            await anyio.sleep(3.0)
            await anyio.to_thread.run_sync(farm.ask, "come")
            waiting = {stream.id: stream for stream in recorder.streams()}
            with anyio.fail_after(60.0):
                while waiting:
                    await anyio.sleep(POLL_S)
                    for name, stream in list(waiting.items()):
                        begun_ns, there = stream.status().connected_ns, stream.durable_until(copies=2)
                        if begun_ns is not None and begun_ns > left_ns and there is not None and there.timestamp() * NS_PER_S > begun_ns:
                            durable.append((time.time_ns() - begun_ns) / 1e6)
                            del waiting[name]
        sent = await anyio.to_thread.run_sync(farm.ask, "stop")
        await drained(recorder)
    return durable, missing(folder, sent)


async def burning(folder: Path, farm: Cameras, n: int, workers: int, seconds: float) -> int:
    """Frames lost while the host burns its GIL."""
    over = threading.Event()

    def burn() -> None:
        while not over.is_set():
            sum(range(10_000))

    async with nvrstore.Recorder(configuration(folder, farm, n, workers)) as recorder:
        await until(lambda: durable_since(recorder, 0))
        burners = [threading.Thread(target=burn) for _ in range(BURNERS)]
        for thread in burners:
            thread.start()
        await anyio.sleep(seconds)
        over.set()
        for thread in burners:
            thread.join()
        sent = await anyio.to_thread.run_sync(farm.ask, "stop")
        await drained(recorder)
    return missing(folder, sent) + int(sent["frames_dropped"])


def run(what: Callable[..., Any], n: int, bitrate: str, *rest: Any) -> Any:
    folder = Path(tempfile.mkdtemp(prefix="nvrstore-bench-"))
    try:
        with Cameras(n, bitrate) as farm:
            return anyio.run(what, folder, farm, n, *rest)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    base = {"bench": "workers", "host": {"cores": os.cpu_count()}, "streams": args.streams}
    connected, durable, gaps = run(kills, args.streams, "1M", args.repeat)
    lines: list[dict[str, Any]] = [
        {
            **base,
            "what": "worker killed: all its cameras received again",
            "unit": "ms",
            "value": round(statistics.median(connected)),
            "largest": round(max(connected)),
            "repeats": args.repeat,
            "frames_in_gaps": round(gaps / args.repeat / args.streams, 2),
        },
        {
            **base,
            "what": "worker killed: all its cameras durable again (fragments of 1 s)",
            "unit": "ms",
            "value": round(statistics.median(durable)),
            "largest": round(max(durable)),
            "repeats": args.repeat,
        },
    ]
    came_back, gaps = run(returns, args.streams, "1M", args.repeat)
    lines.append(
        {
            **base,
            "what": "camera came back: first picture to durable (fragments of 1 s)",
            "unit": "ms",
            "value": round(statistics.median(came_back)),
            "largest": round(max(came_back)),
            "repeats": args.repeat,
            "frames_in_gaps": round(gaps / args.repeat / args.streams, 2),
        }
    )
    for workers in (0, 1):
        lost = run(burning, args.streams, "1M", workers, args.seconds)
        what = f"host burns its GIL for {args.seconds:g} s, workers = {workers}: frames lost"
        lines.append({**base, "what": what, "unit": "frames", "value": lost, "workers": workers})
    for line in lines:
        if args.json:
            print(json.dumps(line))
        else:
            print(f"{line['what']:<70}{line['value']:>8} {line['unit']}" + (f", largest {line['largest']}" if "largest" in line else ""))
    return 0 if lines[-1]["value"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
