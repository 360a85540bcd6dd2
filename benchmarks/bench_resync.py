"""How fast is a target brought up to date, and do live commits feel it?

Run: python benchmarks/bench_resync.py [--dir DIR] [--mb 768] [--rounds 5] [--streams 20] [--seconds 16] [--free-mb 3072] [--json]

Question: MB/s of a resync from one target to another on the disk at hand; and the latency of live commits while one runs: a throttled
          one, and one without a pace, which yields to them.
Method:   *copy*: closed volumes of 192 MiB lie on target a, none on b; what a recorder's upkeep does (survey, plan, read past the
          page cache, check every checksum, write, sync, rename) runs to its end, with worker processes for both targets. The peer copies
          the same files to the same disk, in the same run, in turn. Before each the caches are dropped (as root by
          /proc/sys/vm/drop_caches, otherwise by posix_fadvise for the files). *live*: a recorder with simulated cameras on both targets;
          its commits (one a tick) are timed for `--seconds` without, then with a resync at `--resync-mbit` beside, then without again.
          *free*: the same with `--free-mb` to copy and no pace, timed for as long as that takes, `--seconds` at most. No bound is
          promised there: batches come first, and find what a few pieces have left in the queue of the disk.
          Before a figure counts, the copies are compared byte for byte (past the page cache), and after *live* every frame that was
          sent is looked up on both targets.
Peer:     `cp --reflink=never` and `sync` of what it wrote. Of commits: those without a resync.
Reports:  a table, or with --json one JSON object per line: {bench, host, unit, value, peer, ratio, ...}.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.config import Config
from nvrstore.drills.account import differences
from nvrstore.farm import Farm, FarmConfig
from nvrstore.journal.batch import VolumeBuilder
from nvrstore.journal.index import volume_index
from nvrstore.journal.model import Batch, VolumeHeader, VolumeTrack
from nvrstore.journal.names import volume_path
from nvrstore.limits import BATCH_BYTES_CUT, MIB, TICK_S
from nvrstore.media.fragment import Fragmenter
from nvrstore.media.init import video_config
from nvrstore.model import NS_PER_S, Epoch, Fragment, Media, Sample, TrackKey, new_id
from nvrstore.recorder.core import RecorderCore
from nvrstore.replicate.claim import Claimant, claim_term
from nvrstore.replicate.inventory import survey
from nvrstore.replicate.measures import Latencies
from nvrstore.replicate.resync import plan_resync, resync
from nvrstore.targets.directory import DirectoryTarget
from nvrstore.targets.identity import ensure_journal, init_target
from nvrstore.targets.steps import run_steps
from nvrstore.upkeep.host import Runner

JOURNAL: Final = "main"
VOLUME_BYTES: Final = 192 * MIB
CAMERAS: Final = 64
BATCH_BYTES: Final = BATCH_BYTES_CUT // 2  # what 50 cameras of 3 Mbit/s send in a tick, and a few more
SAMPLE_BYTES: Final = 20_000
FPS: Final = 25
WAIT_S: Final = 60.0
SHARE_MIN: Final = 0.7  # of the peer's throughput
LATENCY_FACTOR_MAX: Final = 2.0  # of live commits beside a throttled resync


# --- volumes


def samples() -> list[Sample]:
    """Two seconds of one camera; no two frames are the same."""
    config_bytes = os.urandom(SAMPLE_BYTES + 2 * FPS)
    return [
        Sample(Media.VIDEO, config_bytes[i : i + SAMPLE_BYTES], i * 90_000 // FPS, i * 90_000 // FPS, i % FPS == 0, 0, i / FPS)
        for i in range(2 * FPS)
    ]


def write_volume(root: Path, journal_id: str, number: int, utc_ns: int, film: list[Sample]) -> None:
    """A closed volume of VOLUME_BYTES below `root`, as a recorder of long ago left it."""
    sets = bytes.fromhex("00000001674d0028965201e0089f97016e0200000fa00003a982100000000168ebef20")
    config = video_config("h264", sets, 1920, 1080)
    keys = [TrackKey(f"old{i}", Media.VIDEO) for i in range(CAMERAS)]
    tracks = tuple(VolumeTrack(key, key.stream, config) for key in keys)
    header = VolumeHeader(new_id(), JOURNAL, journal_id, "bench", 7, Epoch(1, 1), 0, number, (), utc_ns, utc_ns - NS_PER_S, tracks)
    builder = VolumeBuilder(header)
    path = root / volume_path(header)
    path.parent.mkdir(parents=True, exist_ok=True)
    cutters = [Fragmenter(key, config, 7) for key in keys]
    waiting: list[Fragment] = []
    batches: list[Batch] = []
    with path.open("xb") as file:
        file.write(builder.header_bytes)
        turn = 0
        while builder.offset < VOLUME_BYTES:
            for n, cutter in enumerate(cutters):
                for i in range(FPS):
                    sample = film[(turn * FPS + i + n) % len(film)]
                    ticks = (turn * FPS + i) * 90_000 // FPS
                    timed = Sample(Media.VIDEO, sample.data, ticks, ticks, i == 0, 0, turn + i / FPS)
                    waiting += cutter.push(timed, utc_ns + turn * NS_PER_S + i * NS_PER_S // FPS)
                if sum(fragment.length for fragment in waiting) >= BATCH_BYTES:
                    memory = memoryview(bytearray(builder.size(waiting)))
                    batches.append(builder.build(memory, waiting, (), last_committed=len(batches) - 1, utc_now_ns=utc_ns))
                    file.write(memory)
                    waiting = []
            turn += 1
        file.write(volume_index(header, batches))
        file.flush()
        os.fsync(file.fileno())


# --- how fast


def forget(folder: Path) -> None:
    """What lies below `folder` is read from the medium next time."""
    os.sync()
    if os.geteuid() == 0:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
        return
    for path in folder.rglob("*.mp4"):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


@contextmanager
def targets(folder: Path) -> Iterator[dict[str, DirectoryTarget]]:
    """Targets a and b with worker processes."""
    made = {name: DirectoryTarget(name, folder / name) for name in "ab"}
    try:
        yield made
    finally:
        for target in made.values():
            target.close(5.0)


def bring(folder: Path) -> float:
    """Bring b up to date, as upkeep does; how many seconds it took. Raises RuntimeError when it did not."""
    with targets(folder) as places:
        claimed = run_steps(
            claim_term(list(places), JOURNAL, Claimant("bench", "ab" * 16, 9), utc_ns=0, state_term=1, take_over=True),
            places,
            timeout_s=WAIT_S,
        )
        forget(folder)
        runner = Runner(places, lambda _: None)
        began = time.perf_counter()
        seen = runner.run(survey(list(places), JOURNAL))
        plan = plan_resync(seen, list(places), recorder="bench", held_s=0.0)
        report = runner.run(resync(plan.copies, own=claimed.claim.key))
        took_s = time.perf_counter() - began
    if report.failed or not report.copied:
        raise RuntimeError(f"nothing was copied: {report.failed}")
    return took_s


def copy(folder: Path) -> float:
    """The peer: the same files by `cp`, made durable."""
    files = sorted((folder / "a" / JOURNAL).glob("*/*.mp4"))
    day = folder / "b" / JOURNAL / files[0].parent.name
    day.mkdir(parents=True)
    forget(folder)
    began = time.perf_counter()
    subprocess.run(["cp", "--reflink=never", *files, day], check=True)
    subprocess.run(["sync", *(day / file.name for file in files)], check=True)
    return time.perf_counter() - began


def copies_equal(folder: Path) -> None:
    """Raises RuntimeError."""
    forget(folder)
    different = differences(folder / "a", folder / "b", JOURNAL)
    if different:
        raise RuntimeError(f"the copies differ: {different[:3]}")


def prepare(folder: Path) -> str:
    """Two empty targets with the journal on both; the journal's id."""
    for name in "ab":
        (folder / name).mkdir()
    journal_id = new_id()
    with targets(folder) as places:
        for name in places:
            run_steps(init_target(name), places, timeout_s=WAIT_S)
            run_steps(ensure_journal(name, JOURNAL, journal_id), places, timeout_s=WAIT_S)
    return journal_id


def measure_copy(folder: Path, size_mb: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round, by who copied. The volumes take `size_mb`, about."""
    journal_id = prepare(folder)
    film, begin_ns = samples(), SYSTEM_CLOCK.utc_ns() - 3600 * NS_PER_S
    for number in range(max(1, size_mb * MIB // VOLUME_BYTES)):
        write_volume(folder / "a", journal_id, number, begin_ns + number * 60 * NS_PER_S, film)
    took: dict[str, list[float]] = {"cp": [], "resync": []}
    for _ in range(rounds):
        for who, run in (("cp", copy), ("resync", bring)):
            took[who].append(run(folder))
            copies_equal(folder)
            for day in (folder / "b" / JOURNAL).glob("????-??-??"):
                shutil.rmtree(day)
    return took


# --- who feels it


class Timed(Latencies):
    """Commit latencies as they come."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[float] = []

    def add(self, seconds: float) -> None:
        super().add(seconds)
        self.all.append(seconds)


def wait(core: RecorderCore, holds: Any, what: str) -> None:
    pause, until = threading.Event(), time.monotonic() + WAIT_S
    while not holds(core.status()):
        if time.monotonic() > until:
            raise RuntimeError(f"waited in vain: {what}; {core.status()['journals'][0]}")
        pause.wait(0.05)


def measure_live(folder: Path, options: argparse.Namespace, throttle: int | None) -> tuple[dict[str, list[float]], float, str]:
    """Commit latencies by phase, MB/s of the resync, and what of the frames was verified. Raises RuntimeError when a frame is lost.

    `throttle`: bits per second of the resync; None lets it go.
    """
    journal_id = prepare(folder)
    size = int(throttle / 8 * options.seconds * 1.3) if throttle else options.free_mb * MIB
    film, begin_ns = samples(), SYSTEM_CLOCK.utc_ns() - 3600 * NS_PER_S
    history = folder / "history"
    for number in range(-(-size // VOLUME_BYTES)):
        write_volume(history, journal_id, number, begin_ns + number * 60 * NS_PER_S, film)
    forget(folder)
    farm_config = FarmConfig(streams=options.streams, width=640, height=360, bitrate_bps=2_000_000, fps=FPS, gop=FPS)
    with Farm(farm_config) as farm:
        journal: Mapping[str, Any] = {"name": JOURNAL, "targets": ["a", "b"], "copies": 2, "fragment_s": TICK_S}
        if throttle:
            journal = {**journal, "resync_bps": throttle}
        tables = {
            "format": 1,
            "recorder": {"name": "bench", "state": str(folder / "state")},
            "target": [{"name": name, "path": str(folder / name), "medium": "ssd"} for name in "ab"],
            "journal": [journal],
            "stream": [{"id": f"cam{i}", "url": farm.url(i)} for i in range(options.streams)],
        }
        core = RecorderCore(Config.parse(tables))
        core.start()
        try:
            timed = Timed()
            core.engines[JOURNAL].commit_latencies = timed
            wait(
                core,
                lambda status: (
                    all(stream["durable_ns"] for stream in status["streams"])
                    and all(target["state"] == "synced" for target in status["journals"][0]["targets"])
                ),
                "every camera is recorded, both targets in step",
            )
            time.sleep(3.0)
            found = {"without": phase(timed, options.seconds / 2)}
            for day in (history / JOURNAL).iterdir():
                (folder / "a" / JOURNAL / day.name).mkdir(exist_ok=True)
                for file in day.iterdir():
                    file.rename(folder / "a" / JOURNAL / day.name / file.name)
            wait(core, lambda status: copied(status) > 0, "the resync begins")
            found["with"], mb_per_s = beside(core, timed, options.seconds, to_the_end=throttle is None)
            wait(core, lambda status: not status["upkeep"]["resync"], "the resync ends")
            time.sleep(1.0)
            found["without"] += phase(timed, options.seconds / 2)
            sent = farm.stop_sending()
            time.sleep(1.5)
        finally:
            core.stop()
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from nvrstore.bench.verify import verify_archive

    lines = {"streams": [{"stream": s.stream, "ranges": [[r.first, r.last] for r in s.ranges]} for s in sent]}
    lost, frames, problem = verify_archive(folder / "a", folder / "b", lines)
    if lost or problem:
        raise RuntimeError(f"{lost} of {frames} frames are lost; {problem}")
    return found, mb_per_s, f"{frames} frames, none lost"


def beside(core: RecorderCore, timed: Timed, seconds: float, *, to_the_end: bool) -> tuple[list[float], float]:
    """Commit latencies while a resync runs, and its MB/s. Raises RuntimeError where it ends before `seconds` (`to_the_end`: it may)."""
    begin, began_s, before = len(timed.all), time.perf_counter(), copied(core.status())
    done, done_s = before, began_s
    while time.perf_counter() - began_s < seconds:
        time.sleep(0.05)
        now = copied(core.status())
        if not now:
            if not to_the_end:
                raise RuntimeError("the resync ended too early: --seconds is too long for what there was to copy")
            break
        done, done_s = now, time.perf_counter()
    return timed.all[begin:], (done - before) / 1e6 / (done_s - began_s)


def phase(timed: Timed, seconds: float) -> list[float]:
    begin = len(timed.all)
    time.sleep(seconds)
    return timed.all[begin:]


def copied(status: Mapping[str, Any]) -> int:
    return sum(progress["bytes_done"] for progress in status["upkeep"]["resync"].values())


# --- what is said


def quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dir", type=Path, help="a directory on the disk to measure; default: the temporary directory")
    parser.add_argument("--mb", type=int, default=768, help="megabytes to copy")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=20, help="cameras of the second part, 2 Mbit/s each; 0 leaves it out")
    parser.add_argument("--seconds", type=float, default=16.0, help="how long commits are timed, with a resync and without")
    parser.add_argument("--resync-mbit", type=int, default=200, help="throttle of the second part, Mbit/s")
    parser.add_argument("--free-mb", type=int, default=3072, help="megabytes to copy beside live writing without a pace")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    host = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bench-resync-", dir=options.dir) as name:
        folder = Path(name) / "copy"
        folder.mkdir()
        took = measure_copy(folder, options.mb, options.rounds)
        size = sum(path.stat().st_size for path in (folder / "a").rglob("*.mp4"))
        shutil.rmtree(folder)
        rates = {who: size / statistics.median(values) / 1e6 for who, values in took.items()}
        spread = {who: [round(size / value / 1e6) for value in values] for who, values in took.items()}
        line = {"bench": "resync copy", "host": host, "unit": "MB/s, median", "value": round(rates["resync"], 1), "bytes": size}
        line |= {
            "peer": "cp + sync",
            "peer_value": round(rates["cp"], 1),
            "ratio": round(rates["resync"] / rates["cp"], 2),
            "rounds": spread,
        }
        lines.append(line | {"verified": "copies equal byte for byte"})
        for beside_what, throttle in (("live commits", options.resync_mbit * 1_000_000), ("free, live commits", None)):
            if not options.streams:
                break
            folder.mkdir()
            found, mb_per_s, verified = measure_live(folder, options, throttle)
            shutil.rmtree(folder)
            for what, q in (("p50", 0.5), ("p99", 0.99)):
                with_ms, without_ms = (quantile(found[which], q) * 1e3 for which in ("with", "without"))
                line = {"bench": f"resync {beside_what} {what}", "host": host, "unit": "ms", "value": round(with_ms, 1)}
                line |= {"peer": "without a resync", "peer_value": round(without_ms, 1), "ratio": round(with_ms / without_ms, 2)}
                line |= {
                    "commits": len(found["with"]),
                    "peer_commits": len(found["without"]),
                    "resync_mb_per_s": round(mb_per_s, 1),
                    "streams": options.streams,
                }
                lines.append(line | {"verified": verified})
    if options.json:
        for line in lines:
            print(json.dumps(line), flush=True)
    else:
        print(f"{host}; {lines[0]['bytes'] / 1e6:.0f} MB in each of {options.rounds} rounds\n")
        print(f"{'':<28} {'nvrstore':>10} {'peer':>10} {'ratio':>7}")
        for line in lines:
            print(
                f"{line['bench']:<28} {line['value']:>10} {line['peer_value']:>10} {line['ratio']:>7}  {line['unit']}; {line['verified']}"
            )
    throttled = [line for line in lines if line["bench"].startswith("resync live")]
    kept = lines[0]["ratio"] >= SHARE_MIN and all(line["ratio"] <= LATENCY_FACTOR_MAX for line in throttled)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
