"""The catalog may be deleted at any time: it is made again from the targets alone, and answers as before, ledger included."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import crash
from tests.support.crash import Watch
from tests.support.recorder import Process, Site, small_farm

from nvrstore.catalog.query import CatalogReader
from nvrstore.catalog.store import CATALOG_FILE
from nvrstore.farm import Farm
from nvrstore.farm.oddities import Act
from nvrstore.limits import MIB
from nvrstore.model import Cause
from nvrstore.playback.core import ArchiveCore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
def farm() -> Iterator[Farm]:
    with small_farm(2, bitrate_bps=3_000_000) as running:
        yield running


@pytest.fixture
def site(tmp_path: Path, farm: Farm) -> Site:
    return Site(tmp_path, farm, journal={"volume_bytes": MIB})


def lose(site: Site) -> None:
    """Somebody thought that it was a cache."""
    for file in site.state.glob(f"{CATALOG_FILE}*"):
        if not file.name.endswith(".lock"):
            file.unlink()


def volumes(site: Site, count: int) -> None:
    """Until so many more volumes are closed."""
    with CatalogReader(site.state / CATALOG_FILE) as catalog:
        before = sum(volume.closed for volume in catalog.volumes())
    crash.wait_for_catalog(site, lambda catalog: sum(volume.closed for volume in catalog.volumes()) >= before + count)


def make_history(site: Site, farm: Farm) -> None:
    """Marks, a camera that was away over several volumes, a recorder that was killed, another one that ended in order."""
    process: Process = crash.MarkingHost(site)
    try:
        with Watch(site, process) as watch:
            process.wait_for(lambda event: event["event"] == "mark")
            farm.act(Act("leave", streams=(1,)))
            watch.wait_for(lambda status: status["streams"][1]["gap"] is not None)
            volumes(site, 2)
            farm.act(Act("come", streams=(1,)))
            watch.wait_for(lambda status: status["streams"][1]["gap"] is None and status["streams"][1]["state"] == "recording")
            volumes(site, 1)
            crash.kill(process)
    finally:
        process.end(signal.SIGKILL)
    process = Process(site)
    try:
        with Watch(site, process) as watch:
            watch.wait_for(lambda status: crash.synced(status) and crash.recording(status))
            crash.wait_for_catalog(site, crash.whole)
            assert process.end() == 0, process.errors
    finally:
        process.end(signal.SIGKILL)


def test_a_catalog_that_is_gone_is_made_again_and_answers_as_before(site: Site, farm: Farm) -> None:
    """By an archive for itself, by `catalog rebuild`, and by a recorder that finds none when it starts."""
    make_history(site, farm)
    before = crash.kept(site)
    assert {gap.cause for gap in before["gaps"]} == {Cause.CAMERA, Cause.RECORDER}
    assert before["marks"]
    assert len(before["volumes"]) > 4
    assert crash.differing(before, crash.rebuilt(site)) == []

    lose(site)
    core = ArchiveCore.configured(site.config())
    try:
        assert crash.differing(before, crash.answers(core.catalog)) == []
    finally:
        core.close()
    assert not (site.state / CATALOG_FILE).exists(), "an archive writes nothing"

    command = [sys.executable, "-m", "nvrstore", "catalog", "rebuild", str(site.file), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["complete"]
    assert crash.differing(before, crash.kept(site)) == []

    lose(site)
    process = Process(site)
    try:
        with Watch(site, process) as watch:
            watch.wait_for(lambda status: crash.synced(status) and crash.recording(status))
            crash.wait_for_catalog(site, crash.whole)
            assert process.end() == 0, process.errors
    finally:
        process.end(signal.SIGKILL)
    after = crash.kept(site)
    for key in ("volumes", "spans of cam0", "spans of cam1", "gaps", "marks"):
        assert [entry for entry in before[key] if entry not in after[key]] == [], key
    new = [gap for gap in after["gaps"] if gap not in before["gaps"]]
    assert sorted((gap.stream, gap.cause) for gap in new) == [("cam0", Cause.RECORDER), ("cam1", Cause.RECORDER)]
    crash.check(site, [])


def test_a_catalog_that_is_removed_while_it_is_written_is_an_alarm_and_is_made_again(site: Site, farm: Farm) -> None:
    """SQLite goes on writing to a file without a name; nobody would notice before the next start."""
    process = Process(site)
    try:
        with Watch(site, process) as watch:
            watch.wait_for(lambda status: crash.synced(status) and crash.recording(status))
            volumes(site, 2)
            lose(site)
            process.wait_for(lambda event: event["event"] == "Alarm" and "removed" in event["sentence"])
            crash.wait_for_catalog(site, crash.whole)
            volumes(site, 1)
            assert watch.wait_for(lambda status: status["catalog"]["healthy"])
            sent = farm.stop_sending()
            crash.drained(watch)
            crash.wait_for_catalog(site, crash.whole)
            assert process.end() == 0, process.errors
    finally:
        process.end(signal.SIGKILL)
    assert site.lost(sent) == {}
    crash.check(site, [watch.durable_ns])
