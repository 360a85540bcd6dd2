"""Drills on a running recorder, as an operator starts them: one target is hit, nothing else, and the ledger stays empty."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.recorder import Process, Site, small_farm

from nvrstore.cli import main
from nvrstore.drills.faults import LoopDisk

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(120)]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Site]:
    """A recorder in a process of its own; target a is a file system of its own."""
    with recorded(tmp_path) as (site, _):
        yield site


@contextmanager
def recorded(tmp_path: Path, **journal: Any) -> Iterator[tuple[Site, Process]]:
    with (
        LoopDisk.mounted("ext4", tmp_path / "a.img", tmp_path / "a", size_bytes=128 << 20),
        small_farm(2) as farm,
    ):
        site = Site(tmp_path, farm, journal=journal)
        process = Process(site)
        try:
            process.wait_recording(2)
            process.wait_for(lambda e: e.get("event") == "status" and all(t["state"] == "synced" for t in e["journals"][0]["targets"]))
            yield site, process
        finally:
            process.end()


def test_a_frozen_file_system_that_thaws_under_a_recorder_has_the_same_bytes_in_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real freeze, volumes rolling all along: writes of workers that were given up come late, and harm nothing."""
    with recorded(tmp_path, volume_age_s=1) as (site, process):
        status = main(["drill", "hang", str(site.file), "--target", "a", "--json"])
        document = json.loads(capsys.readouterr().out)
        assert status == 0, json.dumps(document)[:4000]
        sent = site.farm.stop_sending()
        drained(process)
        assert process.end() == 0
        site_lost, accounts, differences = site.lost(sent), {name: site.account(name) for name in "ab"}, site.differences()
        states = [stuck_while_frozen(event) for event in process.events if event.get("event") == "status"]
    run = document["scenarios"][0]["runs"][0]
    assert run["ttd_ms"] <= run["recovery_ms"]
    # It was frozen while volumes were opened and closed on the other one, and workers were stuck in the kernel.
    assert max(states) >= 1
    frozen_ns = next(event["utc_ns"] for event in process.events if event.get("event") == "TargetLost")
    back_ns = next(event["utc_ns"] for event in process.events if event.get("event") == "TargetJoined" and event["utc_ns"] > frozen_ns)
    rolled = [event for event in process.events if event.get("event") == "VolumeClosed" and frozen_ns < event["utc_ns"] < back_ns]
    assert len(rolled) >= 2
    # Every volume, every checksum, every frame.
    assert differences == []
    assert [account.damage for account in accounts.values()] == [(), ()]
    assert site_lost == {}
    for account in accounts.values():
        assert site.lost(sent, account) == {}
        assert all(not report.duplicated and not report.damaged for report in account.reports.values())


def stuck_while_frozen(status: dict[str, Any]) -> int:
    return int(sum(target["workers_stuck"] for target in status["journals"][0]["targets"] if target["target"] == "a"))


def drained(process: Process) -> None:
    """Until a status says that no frame came since the one before."""
    past, samples = len(process.events), -1

    def quiet(event: dict[str, Any]) -> bool:
        nonlocal past, samples
        past -= 1
        if past >= 0 or event.get("event") != "status":
            return False
        before, samples = samples, sum(stream["samples"] for stream in event["streams"])
        return samples == before

    process.wait_for(quiet)


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
