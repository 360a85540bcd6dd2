"""How many cameras does one machine record to two targets, and what does it cost beside one process per camera?

Run: python benchmarks/bench_streams.py --streams 50,150 --engine lean,pyav --peer ffmpeg,ffmpeg-one-copy,gstreamer
     python benchmarks/bench_streams.py --streams 300,600 --engine lean --peer none --workers 2
     python benchmarks/bench_streams.py --streams 300 --engine lean --peer floor
     python benchmarks/bench_streams.py --streams 1000 --engine lean --peer none --bitrate 1M
     python benchmarks/bench_streams.py --streams 150 --engine lean,lean/udp --peer none

Question: CPU and memory per stream of the recorder (two copies, every promise on) against one process per camera:
          `ffmpeg -f tee` (two copies), `ffmpeg` (one copy), GStreamer's `splitmuxsink` (one copy), and against the floor: a loop that
          receives and writes the same bytes twice, and does nothing else (floor.py). Ratios are to the first peer.
Method:   the farm (a process of its own) sends N cameras over RTSP/TCP; each recorder in turn records all of them
          for `--seconds`, beginning SETTLE_S after everybody has connected. CPU is that of the whole process tree
          (user + system); beside it that of the whole machine minus the farm, since write-back runs in kernel threads.
          Memory is PSS of the tree at the end.
          Before a figure counts, the recording is verified: of our archive every frame of every camera that was sent between
          the first and the last one recorded, intact, once, on both copies; of the peers' files the number of frames.
Reports:  a table, and with --json one JSON object per line: {bench, host, unit, value, peer, ratio, ...}.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nvrstore.bench.proc import cpu_s, machine_s, pss_mb, tree
from nvrstore.bench.program import Cameras

ROOT = Path(__file__).resolve().parent.parent
SETTLE_S = 6.0  # what connecting costs is another question
VERIFIED = "every frame, both copies"
VOLUME_BYTES = 4 << 30  # half of what it would be for 300 cameras: two lanes prepare 32 GB on the disk that way
MANY = 600  # more cameras than this are of a low bitrate, and have more lanes: a quarter of it
PEERS = ("ffmpeg", "ffmpeg-one-copy", "gstreamer", "floor")


@dataclass(frozen=True)
class Figures:
    """One recorder at one N."""

    recorder: str
    streams: int
    cpu_ms_per_stream_s: float
    machine_ms_per_stream_s: float  # everything on the machine but the farm
    pss_mb: float
    connected_s: float
    frames_sent: int
    frames_lost: int
    verified: str


# --- measuring


def measure(pid: int, farm: Cameras, seconds: float) -> tuple[float, float, float]:
    """CPU seconds of the tree, of the machine without the farm, and PSS in MB at the end."""
    time.sleep(SETTLE_S)
    begin, machine, farming = cpu_s(tree(pid)), machine_s(), cpu_s([farm.pid])
    time.sleep(seconds)
    pids = tree(pid)
    used = cpu_s(pids) - begin
    return used, machine_s() - machine - (cpu_s([farm.pid]) - farming), pss_mb(pids)


# --- the recorder


def run_ours(n: int, farm: Cameras, folder: Path, seconds: float, engine: str, workers: int) -> Figures:
    """Record with the library in a child process; verify through the archive."""
    words = ["--child", str(folder), "--port", str(farm.port), "--streams", str(n), "--engine", engine, "--workers", str(workers)]
    child = subprocess.Popen([sys.executable, __file__, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdin is not None
    try:
        connected = json.loads(child.stdout.readline())
        used, machine, memory = measure(child.pid, farm, seconds)
        sent = farm.ask("stop")
        child.stdin.write("stop\n")
        child.stdin.flush()
        json.loads(child.stdout.readline())
        child.wait(120)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    from nvrstore.bench.verify import verify_archive

    lost, frames, problem = verify_archive(folder / "a", folder / "b", sent)
    return Figures(
        f"nvrstore {engine}" + (f", {workers} workers" if workers else ""),
        n,
        used / seconds / n * 1e3,
        machine / seconds / n * 1e3,
        memory,
        connected["connected_s"],
        frames,
        lost,
        problem or VERIFIED,
    )


def child(folder: Path, port: int, n: int, engine: str, workers: int) -> None:
    """The recording process: JSON lines to its parent, `stop` on standard input ends it."""
    import logging

    import anyio

    import nvrstore

    logging.basicConfig(level=logging.WARNING)
    config = nvrstore.Config.parse(recorder_config(folder, port, n, engine, workers))

    async def main() -> None:
        start = time.monotonic()
        async with nvrstore.Recorder(config) as recorder:
            while any(stream.status().state != "recording" for stream in recorder.streams()):
                await anyio.sleep(0.1)
                if time.monotonic() - start > 120:
                    break
            print(json.dumps({"connected_s": round(time.monotonic() - start, 2)}), flush=True)
            await anyio.to_thread.run_sync(sys.stdin.readline)
            before = -1
            for _ in range(30):  # what is in the sockets when the farm has stopped
                frames = sum(stream.status().samples for stream in recorder.streams())
                if frames == before:
                    break
                before = frames
                await anyio.sleep(1.0)
        print(json.dumps({"stopped": True}), flush=True)

    anyio.run(main)


def recorder_config(folder: Path, port: int, n: int, engine: str, workers: int) -> dict[str, Any]:
    return {
        "format": 1,
        "recorder": {"name": "bench", "state": str(folder / "state"), "workers": workers},
        "target": [{"name": "a", "path": str(folder / "a")}, {"name": "b", "path": str(folder / "b")}],
        "journal": [{"name": "main", "targets": ["a", "b"], "copies": 2, "volume_bytes": VOLUME_BYTES // 4 if n > MANY else VOLUME_BYTES}],
        "stream_defaults": {"journal": "main", "engine": engine.split("/")[0], "transport": engine.partition("/")[2] or "tcp"},
        "stream": [{"id": f"cam{i}", "url": f"rtsp://127.0.0.1:{port}/cam{i}"} for i in range(n)],
    }


# --- the peers


def command_of(peer: str, url: str, folder: Path, i: int) -> str:
    """One process for one camera: fragmented MP4 in segments of 10 s."""
    options = "-v error -nostdin -rtsp_transport tcp -probesize 500000 -analyzeduration 0"
    segment = "segment_time=10:segment_format=mp4:segment_format_options=movflags=frag_keyframe+empty_moov"
    match peer:
        case "ffmpeg":
            outputs = "|".join(f"[f=segment:{segment}]{folder}/{name}/{i}-%03d.mp4" for name in "ab")
            return f"ffmpeg {options} -i {url} -c copy -map 0 -f tee '{outputs}'"
        case "ffmpeg-one-copy":
            one = "-segment_time 10 -segment_format mp4 -segment_format_options movflags=frag_keyframe+empty_moov"
            return f"ffmpeg {options} -i {url} -c copy -map 0 -f segment {one} {folder}/a/{i}-%03d.mp4"
        case _:
            source = f"rtspsrc location={url} protocols=tcp latency=200 ! rtph264depay ! h264parse"
            muxer = "muxer-factory=mp4mux muxer-properties=properties,fragment-duration=1000"
            return f"gst-launch-1.0 -q -e {source} ! splitmuxsink location={folder}/a/{i}-%03d.mp4 max-size-time=10000000000 {muxer}"


NAMES = {"ffmpeg": "ffmpeg -f tee", "ffmpeg-one-copy": "ffmpeg, one copy", "gstreamer": "splitmuxsink, one copy"}


def run_peer(peer: str, n: int, farm: Cameras, folder: Path, seconds: float) -> Figures:
    """One process per camera."""
    copies = [folder / name for name in ("ab" if peer == "ffmpeg" else "a")]
    for copy in copies:
        copy.mkdir()
    script = Path(tempfile.mkstemp(suffix=".sh", dir=folder)[1])
    lines = []
    for i in range(n):
        lines.append(command_of(peer, farm.url(i), folder, i) + " &")
        if i % 5 == 4:
            lines.append("sleep 0.1")
    # An interrupt is what all of them take for the end of the recording; a shell's background jobs would ignore it.
    script.write_text("\n".join(["set -m", *lines, "trap 'kill -INT $(jobs -p); wait; exit' TERM", "wait", ""]))
    start = time.monotonic()
    shell = subprocess.Popen(["bash", str(script)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while len(list((folder / "a").glob("*-*0.mp4"))) < n and time.monotonic() - start < 120:
            time.sleep(0.1)
        connected_s = time.monotonic() - start
        used, machine, memory = measure(shell.pid, farm, seconds)
        sent = farm.ask("stop")
        time.sleep(1)
        if peer != "gstreamer":
            farm.close()  # ffmpeg waits for the camera before it hears a signal, and ends in order when the camera goes
            shell.wait(60)
    finally:
        shell.send_signal(signal.SIGTERM)
        try:
            shell.wait(60)
        except subprocess.TimeoutExpired:
            for pid in tree(shell.pid):
                os.kill(pid, signal.SIGKILL)
            shell.wait()
    from benchmarks.verify import verify_files

    lost, frames, problem = verify_files(copies, n, sent)
    return Figures(
        NAMES[peer],
        n,
        used / seconds / n * 1e3,
        machine / seconds / n * 1e3,
        memory,
        connected_s,
        frames,
        lost,
        problem or f"number of frames, {len(copies)} copies",
    )


def run_floor(n: int, farm: Cameras, folder: Path, seconds: float) -> Figures:
    """One thread that receives, two that write."""
    for name in "ab":
        (folder / name).mkdir()
    words = [sys.executable, str(Path(__file__).with_name("floor.py")), str(folder), str(farm.port), str(n)]
    child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdin is not None
    with child:
        connected = json.loads(child.stdout.readline())
        used, machine, memory = measure(child.pid, farm, seconds)
        sent = farm.ask("stop")
        child.stdin.write("stop\n")
        child.stdin.flush()
        stored = json.loads(child.stdout.readline())["bytes"]
    frames = sum(camera["sent"] for camera in sent["streams"])
    return Figures(
        "floor: receive, write twice",
        n,
        used / seconds / n * 1e3,
        machine / seconds / n * 1e3,
        memory,
        connected["connected_s"],
        frames,
        0,
        f"{stored / 1e6:.0f} MB, two copies",
    )


# --- the run


def prepare(folder: Path) -> None:
    for name in ("a", "b"):
        command = [sys.executable, "-m", "nvrstore", "target", "init", str(folder / name)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="50,150")
    parser.add_argument("--peer", default="ffmpeg", help=f"of {', '.join(PEERS)}, or none; several with commas")
    parser.add_argument("--engine", default="pyav", help="pyav, lean, lean/udp; several with commas")
    parser.add_argument("--workers", type=int, default=0, help="ingest workers of the recorder")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--bitrate", default="4M")
    parser.add_argument("--dir", type=Path, default=None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        child(args.child, args.port, int(args.streams), args.engine, args.workers)
        return 0
    threading.stack_size(0)
    results: list[Figures] = []
    for n in (int(part) for part in args.streams.split(",")):
        peers = [peer for peer in args.peer.split(",") if peer != "none"]
        for who in (*args.engine.split(","), *peers):
            folder = Path(tempfile.mkdtemp(prefix="nvrstore-bench-", dir=args.dir))
            try:
                with Cameras(n, args.bitrate) as farm:
                    if who == "floor":
                        results.append(run_floor(n, farm, folder, args.seconds))
                    elif who in PEERS:
                        results.append(run_peer(who, n, farm, folder, args.seconds))
                    else:
                        prepare(folder)
                        results.append(run_ours(n, farm, folder, args.seconds, who, args.workers))
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            print(json.dumps(asdict(results[-1])), file=sys.stderr, flush=True)
    report(results, as_json=args.json)
    return 0 if all(f.frames_lost == 0 and f.verified == VERIFIED for f in results if f.recorder.startswith("nvrstore")) else 1


def report(results: list[Figures], *, as_json: bool) -> None:
    peers = {f.streams: f for f in reversed(results) if not f.recorder.startswith("nvrstore")}
    if not as_json:
        print(f"{'recorder':<24}{'N':>5}{'CPU ms/s':>10}{'machine':>10}{'PSS MB':>9}{'lost':>7}  ratio CPU, machine, memory; verified")
    for f in results:
        peer = peers.get(f.streams)
        ratios = [
            round(f.cpu_ms_per_stream_s / peer.cpu_ms_per_stream_s, 3),
            round(f.machine_ms_per_stream_s / peer.machine_ms_per_stream_s, 3),
            round(f.pss_mb / peer.pss_mb, 3),
        ] if peer is not None and peer is not f else []  # fmt: skip
        if as_json:
            host = {"cores": os.cpu_count()}
            line = {"bench": "streams", "host": host, "unit": "ms CPU per second and stream", "value": round(f.cpu_ms_per_stream_s, 3)}
            print(json.dumps({**line, "peer": peer.recorder if peer else None, "ratio": ratios[0] if ratios else None, **asdict(f)}))
        else:
            print(
                f"{f.recorder:<24}{f.streams:>5}{f.cpu_ms_per_stream_s:>10.2f}{f.machine_ms_per_stream_s:>10.2f}{f.pss_mb:>9.0f}"
                f"{f.frames_lost:>7}  {' '.join(str(r) for r in ratios)}  {f.verified}"
            )


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
