"""Can bytes of a camera crash the lean engine, or make it grow? A fuzzer led by coverage (atheris) tries each entry point.

Run: python tests/fuzz/fuzz.py --seconds 300 [--entry h264,sdp] [--json]

Method: every entry point of entries.py in a process of its own, from its seeds on, for so many seconds of CPU, or for `--runs` executions.
        What raises is a crash: its input is kept in `--keep`, and belongs into a named test of test_fuzz.py. Memory is bounded by
        MEMORY_MB_MAX, one execution by EXECUTION_S_MAX.
Reports: one line per entry point: executions, crashes, peak memory; with --json one object of them all.
Needs:   atheris (`pip install nvrstore[fuzz]`); exit status 2 where it is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent.parent
MEMORY_MB_MAX: Final = 1024
EXECUTION_S_MAX: Final = 20
ROUND_S: Final = 60  # by the clock; seconds to spend are of CPU


def child(entry: str, arguments: list[str]) -> None:
    """The fuzzer's process: does not return."""
    import atheris

    with atheris.instrument_imports(include=["nvrstore.ingest.lean", "nvrstore.media"]):
        from tests.fuzz.entries import ENTRIES

    atheris.Setup([sys.argv[0], *arguments], ENTRIES[entry])
    atheris.Fuzz()


def cpu_s() -> float:
    """Of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(entry: str, *, seconds: float, runs: int, keep: Path) -> dict[str, Any]:
    """Fuzz one entry point; its figures. In rounds that begin with what the earlier ones had found."""
    from tests.fuzz.entries import SEEDS

    figures = {"executions": 0, "crashes": 0, "cpu_s": 0, "peak_memory_mb": 0, "coverage": 0, "corpus": 0}
    begin_s = cpu_s()
    with tempfile.TemporaryDirectory(prefix="nvrstore-fuzz-") as corpus:
        for number, seed in enumerate(SEEDS[entry]):
            (Path(corpus) / f"seed-{number}").write_bytes(seed)
        while not figures["crashes"] and (left_s := seconds - (cpu_s() - begin_s)) > 0:
            limits = [f"-max_total_time={min(ROUND_S, int(left_s) + 1)}", f"-rss_limit_mb={MEMORY_MB_MAX}", f"-timeout={EXECUTION_S_MAX}"]
            limits += ["-max_len=4096", "-print_final_stats=1", f"-artifact_prefix={keep}/{entry}-"]
            limits += [f"-runs={runs - figures['executions']}"] if runs else []
            command = [sys.executable, __file__, "--child", entry, "--", *limits, corpus]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False)
            if done.returncode != 0:
                figures["crashes"] += 1
                sys.stderr.write(done.stderr[-4000:])
            stats = dict(re.findall(r"^stat::(\w+):\s+(\d+)", done.stderr, re.MULTILINE))
            figures["executions"] += int(stats.get("number_of_executed_units", 0))
            figures["peak_memory_mb"] = max(figures["peak_memory_mb"], int(stats.get("peak_rss_mb", 0)))
            figures["coverage"] = max([figures["coverage"], *map(int, re.findall(r"\bcov: (\d+)", done.stderr))])
            if runs and figures["executions"] >= runs:
                break
        figures["corpus"] = len(list(Path(corpus).iterdir()))
    figures["cpu_s"] = round(cpu_s() - begin_s)
    return figures


def main() -> int:
    if "--child" in sys.argv:
        child(sys.argv[2], sys.argv[4:])
        return 0
    from tests.fuzz.entries import ENTRIES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entry", default=",".join(ENTRIES), help="several with commas")
    parser.add_argument("--seconds", type=float, default=60, help="of CPU, for each entry point")
    parser.add_argument("--runs", type=int, default=0, help="at most so many executions of each; 0: as many as there is time for")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()), help="where inputs that crash go")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: pip install nvrstore[fuzz]", file=sys.stderr)
        return 2
    found: dict[str, dict[str, Any]] = {}
    for entry in args.entry.split(","):
        found[entry] = run(entry, seconds=args.seconds, runs=args.runs, keep=args.keep)
        if not args.json:
            print(entry, json.dumps(found[entry]), flush=True)
    crashes = sum(figures["crashes"] for figures in found.values())
    if args.json:
        host = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        figures = {"executions": sum(f["executions"] for f in found.values()), "crashes": crashes}
        print(json.dumps({"proof": "fuzz", "host": host, "cpu_s_each": args.seconds, **figures, "entries": found}, indent=1))
    return 1 if crashes else 0


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "src")]
    sys.exit(main())
