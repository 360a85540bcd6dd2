"""`target drain` and `target return`, on a recorder that runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
from tests.support.recorder import JOURNAL, Process, Site, small_farm

from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.drills.faults import LoopDisk, frozen
from nvrstore.drills.recording import workers_of

pytestmark = pytest.mark.slow


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "nvrstore", *arguments], capture_output=True, text=True, timeout=60)


def open_below(pids: Iterable[int], path: Path) -> list[str]:
    """Descriptors, working directories and mappings of these processes that lie in a directory."""
    found = []
    for pid in pids:
        task = Path(f"/proc/{pid}")
        places = [os.readlink(link) for link in [task / "cwd", task / "root", *(task / "fd").iterdir()]]
        places += [line.split(maxsplit=5)[-1] for line in (task / "maps").read_text().splitlines()]
        found += [place for place in places if place.startswith(f"{path}/") or place == str(path)]
    return found


def test_a_target_is_drained_moved_away_and_brought_back(tmp_path: Path) -> None:
    """Nothing touches it while it is drained, no camera notices, and the copies are equal again."""
    with small_farm(2) as farm:
        site = Site(tmp_path, farm)
        process = Process(site)
        try:
            process.wait_recording(2)
            drained = cli("target", "drain", "a", str(site.file), "--json")
            assert drained.returncode == 0, drained.stderr
            assert json.loads(drained.stdout) == {"target": "a", "done": "drain", "at_rest": True, "states": {"main": "drained"}}
            assert workers_of(process.pid, tmp_path / "a", "") == []
            assert len(workers_of(process.pid, tmp_path / "b", "")) == 2
            assert open_below([process.pid, *process.workers()], tmp_path / "a") == []
            (tmp_path / "a").rename(tmp_path / "unmounted")
            process.wait_for(lambda e: e.get("event") == "SetChanged" and [m["target"] for m in e["members"]] == ["b"])
            (tmp_path / "unmounted").rename(tmp_path / "a")
            returned_ns = SYSTEM_CLOCK.utc_ns()
            back = cli("target", "return", "a", str(site.file))
            assert back.returncode == 0, back.stderr
            process.wait_for(lambda e: e.get("event") == "TargetSynced" and e["target"] == "a" and e["utc_ns"] > returned_ns, timeout_s=30)
            process.wait_for(lambda e: e.get("event") == "SetChanged" and e["epoch"]["set"] >= 4)
            sent = farm.stop_sending()
            unknown = cli("target", "drain", "none", str(site.file))
            assert unknown.returncode != 0
            assert "targets: a, b" in unknown.stderr
            process.wait_for(lambda e: e.get("event") == "status" and e["utc_ns"] > 0)
        finally:
            status = process.end()
        assert status == 0
        assert site.lost(sent) == {}
        assert site.differences() == []
    gone = cli("target", "drain", "a", str(site.file))
    assert gone.returncode == 3
    assert "nvrstore record" in gone.stderr


def test_with_manual_failback_the_role_is_handed_back_when_told(tmp_path: Path) -> None:
    """The first word ends the maintenance, the second one hands over the role, the third one finds nothing to do."""
    with small_farm(1) as farm:
        site = Site(tmp_path, farm, journal={"failback": "manual"})
        process = Process(site)

        def primaries() -> list[str]:
            sets = [e for e in process.events if e.get("event") == "SetChanged"]
            return [m["target"] for e in sets for m in e["members"] if m["role"] == "primary"]

        try:
            process.wait_recording(1)
            process.wait_for(lambda e: e.get("event") == "status" and all(t["state"] == "synced" for t in e["journals"][0]["targets"]))
            assert cli("target", "drain", "a", str(site.file)).returncode == 0
            returned_ns = SYSTEM_CLOCK.utc_ns()
            back = cli("target", "return", "a", str(site.file))
            assert back.stdout.startswith("main: a returns: "), back.stdout + back.stderr
            process.wait_for(lambda e: e.get("event") == "TargetSynced" and e["target"] == "a" and e["utc_ns"] > returned_ns)
            threading.Event().wait(2.0)
            assert primaries()[-1] == "b"
            told_ns = SYSTEM_CLOCK.utc_ns()
            told = cli("target", "return", "a", str(site.file))
            assert told.stdout == "main: a becomes primary again\n", told.stdout + told.stderr
            process.wait_for(
                lambda e: (
                    e.get("event") == "SetChanged"
                    and e["utc_ns"] > told_ns
                    and [(m["target"], m["role"]) for m in e["members"]] == [("a", "primary"), ("b", "standby")]
                )
            )
            again = cli("target", "return", "a", str(site.file), "--json")
            assert json.loads(again.stdout) == {
                "target": "a",
                "done": "return",
                "journals": {"main": "nothing"},
                "states": {"main": "synced"},
            }
            words = cli("target", "return", "a", str(site.file))
            assert words.returncode == 0
            assert "nothing to do" in words.stdout
            sent = farm.stop_sending()
            stopped_ns = SYSTEM_CLOCK.utc_ns()
            process.wait_for(lambda e: e.get("event") == "status" and e["utc_ns"] > stopped_ns + 2_000_000_000)
            assert process.end() == 0, process.errors
        finally:
            process.end(signal.SIGKILL)
        assert site.lost(sent) == {}
        assert site.differences() == []


@pytest.mark.root
@pytest.mark.timeout(120)
def test_a_drained_target_is_unmounted_and_mounted_again(tmp_path: Path) -> None:
    """The plain umount, which refuses where anything is open; upkeep goes round meanwhile, and the bare mount point stays empty."""
    path = tmp_path / "a"
    with LoopDisk.mounted("ext4", tmp_path / "a.img", path, size_bytes=128 << 20) as disk, small_farm(2) as farm:
        site = Site(tmp_path, farm, journal={"volume_age_s": 2})
        process = Process(site)
        try:
            process.wait_recording(2)
            process.wait_for(lambda e: e.get("event") == "status" and all(t["state"] == "synced" for t in e["journals"][0]["targets"]))
            drained = cli("target", "drain", "a", str(site.file))
            assert drained.returncode == 0, drained.stderr
            assert "can be unmounted" in drained.stdout
            subprocess.run(["umount", path], check=True)
            threading.Event().wait(7.0)  # a whole round of upkeep, and seven looks
            assert list(path.iterdir()) == []
            assert workers_of(process.pid, path, "") == []
            assert process.process.poll() is None
            disk.mount()
            assert list((path / JOURNAL).glob("*/*.mp4"))
            returned_ns = SYSTEM_CLOCK.utc_ns()
            back = cli("target", "return", "a", str(site.file))
            assert back.returncode == 0, back.stderr
            process.wait_for(lambda e: e.get("event") == "TargetSynced" and e["target"] == "a" and e["utc_ns"] > returned_ns)
            sent = farm.stop_sending()
            stopped_ns = SYSTEM_CLOCK.utc_ns()
            process.wait_for(lambda e: e.get("event") == "status" and e["utc_ns"] > stopped_ns + 2_000_000_000)
            status = process.end()
        finally:
            process.end(signal.SIGKILL)
        assert status == 0, process.errors
        assert site.lost(sent) == {}
        assert site.lost(sent, site.account("b")) == {}
        assert site.differences() == []
        assert list((path / JOURNAL / ".next").iterdir()) == []
    assert "chore.failed" not in process.errors
    assert "Traceback" not in process.errors


@pytest.mark.root
@pytest.mark.timeout(120)
def test_draining_a_target_that_hangs_says_that_it_cannot_be_unmounted_yet(tmp_path: Path) -> None:
    """It ends with status 1, within bounds; asked again once it thaws, with 0."""
    path = tmp_path / "a"
    with LoopDisk.mounted("ext4", tmp_path / "a.img", path, size_bytes=128 << 20), small_farm(1) as farm:
        site = Site(tmp_path, farm)
        process = Process(site)
        try:
            process.wait_recording(1)
            process.wait_for(lambda e: e.get("event") == "status" and all(t["state"] == "synced" for t in e["journals"][0]["targets"]))
            with frozen(path):
                process.wait_for(lambda e: e.get("event") == "TargetLost" and e["target"] == "a")
                hangs = cli("target", "drain", "a", str(site.file), "--json")
                assert hangs.returncode == 1
                assert json.loads(hangs.stdout)["at_rest"] is False
                assert "cannot be unmounted before" in hangs.stderr
            thawed = cli("target", "drain", "a", str(site.file))
            assert thawed.returncode == 0, thawed.stderr
            assert workers_of(process.pid, path, "") == []
            assert process.end() == 0, process.errors
        finally:
            process.end(signal.SIGKILL)
