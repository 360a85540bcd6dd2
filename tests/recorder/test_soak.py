"""A long recording under memory tracing, with retention on: nothing grows, nothing drifts, nothing is missing.

`./run test` records a few cameras for 45 seconds; `./run prove` 300 cameras of 256 kbit/s for 20 minutes. The oldest volumes are
removed all along, so what is there at the end is a window: in it every frame that was sent is looked up, on both copies.
"""

from __future__ import annotations

import filecmp
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Final

import pytest
from tests.support import soak_host
from tests.support.prove import note, proving
from tests.support.recorder import JOURNAL, init, toml

from nvrstore.drills.account import Account, take_account, volumes_in
from nvrstore.model import NS_PER_S, Media, RecordKind
from nvrstore.timeline import RunRecord

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

CONNECT_S: Final = 90.0  # for all cameras, traced
DRIFT_S_MAX: Final = 0.05  # of media time against UTC, over a whole run
LAG_GROWTH_S_MAX: Final = 0.5  # of the newest footage behind the clock, at the worst camera


@dataclass(frozen=True)
class Soak:
    """One soak. Growth is from the second quarter to the last: caches and the window of retention are full by then."""

    streams: int
    seconds: float
    look_s: float
    volume_bytes: int
    keep_bytes: int
    traced_growth_max: int
    pss_growth_max: int
    bitrate: str = "256k"
    fps: int = 10  # as cameras send second streams of this size; what is traced costs by the frame


# A leak of a hundred bytes per frame would be 180 KB between the quarters of the short one, and 180 MB in the 20 minutes.
SHORT: Final = Soak(8, 45, 1.0, 1 << 20, 3 << 20, 150_000, 8 << 20)
TWENTY_MINUTES: Final = Soak(300, 1200, 5.0, 128 << 20, 1 << 30, 4 << 20, 48 << 20)


@contextmanager
def cameras(soak: Soak) -> Iterator[tuple[int, Any]]:
    """The farm in a process of its own: its port, and a function that tells it something."""
    command = [sys.executable, "-m", "nvrstore", "farm", "--streams", str(soak.streams), "--port", "0", "--size", "320x240"]
    command += ["--bitrate", soak.bitrate, "--fps", str(soak.fps), "--gop", str(2 * soak.fps)]
    farm = subprocess.Popen([*command, "--json", "--control"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert farm.stdin is not None
    assert farm.stdout is not None
    stdin, stdout = farm.stdin, farm.stdout

    def ask(do: str) -> dict[str, Any]:
        stdin.write(json.dumps({"do": do}) + "\n")
        stdin.flush()
        answer: dict[str, Any] = json.loads(stdout.readline())
        return answer

    try:
        yield json.loads(stdout.readline())["port"], ask
    finally:
        stdin.close()
        try:
            farm.wait(10)
        except subprocess.TimeoutExpired:
            farm.kill()
            farm.wait()
        stdout.close()


def configured(folder: Path, port: int, soak: Soak) -> Path:
    """Two targets, retention, and every camera of the farm."""
    for name in ("a", "b"):
        init(folder / name)
    keep = {"days": 30, "bytes": soak.keep_bytes}
    journal = {"name": JOURNAL, "targets": ["a", "b"], "copies": 2, "keep": keep, "volume_bytes": soak.volume_bytes}
    streams = [{"id": f"cam{i}", "url": f"rtsp://127.0.0.1:{port}/cam{i}", "engine": "lean"} for i in range(soak.streams)]
    lines = ["format = 1", f"recorder = {toml({'name': 'soak', 'state': str(folder / 'state')})}"]
    lines += [
        f"target = [{', '.join(toml({'name': name, 'path': str(folder / name)}) for name in ('a', 'b'))}]",
        f"journal = [{toml(journal)}]",
    ]
    for stream in streams:
        lines += ["[[stream]]", *(f"{key} = {toml(value)}" for key, value in stream.items())]
    file = folder / "nvr.toml"
    file.write_text("\n".join(lines) + "\n")
    return file


def soaked(folder: Path, soak: Soak) -> tuple[list[dict[str, Any]], list[str], dict[str, Any]]:
    """Record as long as the soak says: what the host saw of itself, where it grew, and what the farm had sent."""
    looks: list[dict[str, Any]] = []
    lines: list[str] = []
    with cameras(soak) as (port, ask):
        file = configured(folder, port, soak)
        command = [sys.executable, soak_host.__file__, str(file), str(soak.seconds), str(soak.look_s), str(CONNECT_S)]
        host = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert host.stdin is not None
        assert host.stdout is not None
        try:
            for line in host.stdout:
                said = json.loads(line)
                if said["event"] == "look":
                    looks.append(said)
                elif said["event"] == "enough":
                    break
            sent = ask("stop")
            host.stdin.write("stop\n")
            host.stdin.flush()
            for line in host.stdout:
                lines += json.loads(line).get("lines", ())
            assert host.wait(120) == 0
        finally:
            if host.poll() is None:
                host.kill()
                host.wait()
            host.stdin.close()
            host.stdout.close()
    return looks, lines, sent


def growth(looks: list[dict[str, Any]], key: str) -> float:
    """From the second quarter of the time to its last, by their medians."""
    quarter = len(looks) // 4
    return float(median(look[key] for look in looks[-quarter:]) - median(look[key] for look in looks[quarter : 2 * quarter]))


def missing(account: Account, sent: dict[str, Any]) -> tuple[int, int]:
    """Frames that the window should hold: how many, and how many of them it does not, from the oldest one of each camera on."""
    wanted = lost = 0
    for line in sent["streams"]:
        report = account.reports[f"cam{line['stream']}"]
        odd = (report.duplicated, report.damaged, report.unstamped, report.disordered)
        assert odd == ((), (), 0, 0), f"cam{line['stream']}"
        there = {number for piece in report.ranges for number in range(piece.first, piece.last + 1)}
        due = {number for first, last in line["ranges"] for number in range(max(first, report.ranges[0].first), last + 1)}
        wanted += len(due)
        lost += len(due - there)
    return wanted, lost


def drift_s(account: Account, streams: int) -> tuple[int, float]:
    """How many runs of video there were, and by how much media time and UTC came apart in the worst of them."""
    runs = {record.id: RunRecord.of(record) for record in account.records if record.kind == RecordKind.RUN}
    ended = [run for run in runs.values() if run.track.media is Media.VIDEO and run.end_ns is not None]
    assert len({run.track.stream for run in ended}) == streams, "a camera's last run is not there"
    apart = [abs((run.end_ns or 0) - run.start_ns - (run.media_ticks or 0) * NS_PER_S // run.timescale) for run in ended]
    return len(ended), max(apart) / NS_PER_S


def assert_copies_are_equal(folder: Path) -> None:
    """Volumes that both targets hold are the same bytes. Retention may have removed the oldest one from one of them first."""
    names = [volumes_in(folder / target, JOURNAL) for target in ("a", "b")]
    shared = sorted({*names[0]} & {*names[1]})
    assert len(shared) >= max(len(held) for held in names) - 1 > 0
    for name in shared:
        assert filecmp.cmp(folder / "a" / name, folder / "b" / name, shallow=False), f"{name}: other bytes"


def test_nothing_grows_and_nothing_drifts_while_old_footage_goes(tmp_path: Path) -> None:
    """Memory, threads, descriptors, disk, lag, media time against UTC; one run per camera, and every frame of the window."""
    soak = TWENTY_MINUTES if proving() else SHORT
    looks, lines, sent = soaked(tmp_path, soak)
    account = take_account(tmp_path / "a", JOURNAL)
    wanted, lost = missing(account, sent)
    runs, drift = drift_s(account, soak.streams)
    figures = {key: growth(looks, key) for key in ("traced_bytes", "pss_bytes", "threads", "descriptors", "children", "lag_s")}
    last = looks[-1]
    note(
        "soak",
        streams=soak.streams,
        seconds=last["at_s"],
        bitrate=soak.bitrate,
        fps=soak.fps,
        cpu_share=round((last["cpu_s"] - looks[0]["cpu_s"]) / (last["at_s"] - looks[0]["at_s"]), 3),
        growth={key: round(value, 3) for key, value in figures.items()},
        traced_bytes=last["traced_bytes"],
        traced_peak_bytes=max(look["traced_peak_bytes"] for look in looks),
        pss_bytes=last["pss_bytes"],
        samples=last["samples"],
        reconnects=last["reconnects"],
        reconnects_at_s=[b["at_s"] for a, b in pairwise(looks) if b["reconnects"] > a["reconnects"]],
        packets_lost=last["packets_lost"],
        volumes_pruned=last["pruned"],
        volumes_kept=account.volumes,
        bytes_kept=account.bytes,
        lag_s_max=round(max(look["lag_s"] for look in looks), 3),
        drift_s_max=round(drift, 6),
        runs=runs,
        frames_in_window=wanted,
        frames_lost=lost,
        farm_lateness_ms_max=sent["lateness_ms_max"],
        load_average=[round(load, 2) for load in os.getloadavg()],
        grown=lines,
    )
    assert (account.damage, lost) == ((), 0)
    assert_copies_are_equal(tmp_path)
    assert last["pruned"] > 0, "retention had nothing to do"
    assert account.bytes <= soak.keep_bytes + 3 * soak.volume_bytes
    assert (runs, last["recording"], last["reconnects"], last["packets_lost"]) == (soak.streams, soak.streams, 0, 0)
    assert not last["alarms"]
    assert figures["traced_bytes"] <= soak.traced_growth_max, lines
    assert figures["pss_bytes"] <= soak.pss_growth_max
    assert max(figures["threads"], figures["descriptors"], figures["children"]) <= 2
    assert figures["lag_s"] <= LAG_GROWTH_S_MAX
    assert drift <= DRIFT_S_MAX
