"""Drills on a running recorder, as an operator starts them: one target is hit, nothing else, and the ledger stays empty."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.recorder import Process, Site, small_farm

from nvrstore.cli import main
from nvrstore.drills.faults import LoopDisk

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(120)]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Site]:
    """A recorder in a process of its own; target a is a file system of its own."""
    with (
        LoopDisk.mounted("ext4", tmp_path / "a.img", tmp_path / "a", size_bytes=128 << 20),
        small_farm(2) as farm,
    ):
        site = Site(tmp_path, farm)
        process = Process(site)
        try:
            process.wait_recording(2)
            process.wait_for(lambda e: e.get("event") == "status" and all(t["state"] == "synced" for t in e["journals"][0]["targets"]))
            yield site
        finally:
            process.end()


def test_a_running_recorder_is_drilled_and_loses_nothing(running: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """Frozen, covered, full, without its worker, drained: each is noticed, and the target is in step again afterwards."""
    scenarios = ["hang", "unmount", "fill", "kill-worker", "drain"]
    status = main(["drill", *scenarios, str(running.file), "--target", "a", "--rto", "5", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert status == 0, json.dumps(document)[:4000]
    for scenario in document["scenarios"]:
        run = scenario["runs"][0]
        assert run["frames"]["lost"] == 0
        assert run["frames"]["sent"] > 0
        if scenario["scenario"] in ("hang", "unmount"):
            assert run["objectives"] == {"rto": True}
            assert {moment["kind"] for moment in run["moments"]} >= {"fault", "lost", "recovered", "healed", "synced"}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["fill", "--target", "b"], "no file system of its own"),
        (["hang", "--target", "b"], "no file system of its own"),
        (["power-cut", "--target", "a"], "no scenario"),
        (["drain", "--target", "z"], "no target"),
        (["drain"], "CONFIG and --target"),
    ],
)
def test_what_would_hit_more_than_the_target_is_refused(
    running: Site, words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, before anything is touched."""
    assert main(["drill", words[0], str(running.file), *words[1:]]) == 2
    assert why in capsys.readouterr().err
