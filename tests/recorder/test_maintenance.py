"""`target drain` and `target return`, on a recorder that runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.recorder import Process, Site, small_farm

from nvrstore.clock import SYSTEM_CLOCK

pytestmark = pytest.mark.slow


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "nvrstore", *arguments], capture_output=True, text=True, timeout=60)


def test_a_target_is_drained_moved_away_and_brought_back(tmp_path: Path) -> None:
    """Nothing touches it while it is drained, no camera notices, and the copies are equal again."""
    with small_farm(2) as farm:
        site = Site(tmp_path, farm)
        process = Process(site)
        try:
            process.wait_recording(2)
            drained = cli("target", "drain", "a", str(site.file), "--json")
            assert drained.returncode == 0, drained.stderr
            assert json.loads(drained.stdout)["states"] == {"main": "drained"}
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
