"""Disks that are not what they were: an old copy put back, two swapped, one that drops a write. Seen, brought up to date, or named."""

from __future__ import annotations

import shutil
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from tests.support.recorder import Site, small_farm, until

import nvrstore
from nvrstore.archive import Archive
from nvrstore.farm import Farm, SentFrames
from nvrstore.playback.reader import StoredFragment
from nvrstore.recorder.wiring import make_target
from nvrstore.targets.faulty import FaultyTarget

pytestmark = [pytest.mark.slow, pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]

WRONG = ("away", "another target is mounted at its path")


def synced(recorder: nvrstore.Recorder) -> bool:
    """Every stream is being recorded, and no target lacks anything."""
    states = {target["state"] for target in recorder.statistics()["journals"][0]["targets"]}
    return states == {"synced"} and all(stream.durable_until() is not None for stream in recorder.streams())


async def record(site: Site, *, last: Farm | None = None) -> list[SentFrames]:
    """Record for a second; until the cameras have stopped and everything has arrived, where it is the last time."""
    sent: list[SentFrames] = []
    async with nvrstore.Recorder(site.config()) as recorder:
        await until(lambda: synced(recorder))
        await anyio.sleep(0.5)
        if last is not None:
            sent = await anyio.to_thread.run_sync(last.stop_sending)
            await anyio.sleep(1.0)
            await until(lambda: synced(recorder))
    return sent


async def test_old_copies_that_were_put_back_are_brought_up_to_date(tmp_path: Path) -> None:
    """Snapshots of a target and of the state disk: nothing that was recorded since goes, and no term is used twice."""
    old = ("a", "state")
    with small_farm(2) as farm:
        site = Site(tmp_path, farm, journal={"volume_age_s": 1})
        await record(site)
        for name in old:
            shutil.copytree(tmp_path / name, tmp_path / f"{name}.old", ignore=shutil.ignore_patterns("control.sock"))
        await record(site)
        stored = {stream: report.ranges for stream, report in site.account("b").reports.items()}
        for name in old:
            shutil.rmtree(tmp_path / name)
            (tmp_path / f"{name}.old").rename(tmp_path / name)
        await record(site, last=farm)
    assert site.differences() == []
    account = site.account()
    assert account.damage == ()
    for stream, ranges in stored.items():
        have = {number for piece in account.reports[stream].ranges for number in range(piece.first, piece.last + 1)}
        assert {number for piece in ranges for number in range(piece.first, piece.last + 1)} <= have
        assert account.reports[stream].duplicated == ()
    claims = [claim.name for claim in (tmp_path / "b" / "main" / "epochs").iterdir()]
    assert len(claims) == len({name.partition("-")[0] for name in claims}) == 3, claims


async def test_two_targets_that_were_swapped_are_both_away_and_stay_as_they_are(tmp_path: Path) -> None:
    """Each path leads to a target, to the wrong one: not a byte is written there, and when they are put right both are given everything."""
    with small_farm(1) as farm:
        site = Site(tmp_path, farm)
        await record(site)
        swap(tmp_path)
        before = {path: path.stat().st_mtime_ns for name in "ab" for path in (tmp_path / name).rglob("*")}
        async with nvrstore.Recorder(site.config()) as recorder:
            await until(lambda: {(t["state"], t["reason"]) for t in recorder.statistics()["journals"][0]["targets"]} == {WRONG})
            await until(lambda: recorder.streams()[0].status().samples > 25)
            assert {path: path.stat().st_mtime_ns for name in "ab" for path in (tmp_path / name).rglob("*")} == before
            swap(tmp_path)
            await until(lambda: synced(recorder))
            sent = await anyio.to_thread.run_sync(farm.stop_sending)
            await anyio.sleep(1.0)
            await until(lambda: synced(recorder))
    assert site.differences() == []
    numbers = [number for piece in site.account().reports["cam0"].ranges for number in range(piece.first, piece.last + 1)]
    assert numbers[-1] == sent[0].ranges[-1].last
    assert site.account().damage == ()


def swap(folder: Path) -> None:
    for source, into in (("a", "c"), ("b", "a"), ("c", "b")):
        (folder / source).rename(folder / into)


async def test_a_write_that_a_disk_acknowledged_and_dropped_is_found_and_read_from_the_other(tmp_path: Path) -> None:
    """No error was ever seen: the checksums tell, by name, and where the whole copy is."""
    made: dict[str, FaultyTarget] = {}

    def make(config: object, python: str | None, lock_fd: int | None) -> FaultyTarget:
        target = FaultyTarget(make_target(config, python, lock_fd))  # type: ignore[arg-type]
        made[target.name] = target
        return target

    with small_farm(1) as farm:
        site = Site(tmp_path, farm)
        async with nvrstore.Recorder(site.config(), make=make) as recorder:
            await until(lambda: synced(recorder))
            lie = made["a"].lie(path="*.mp4", after=3)
            await until(lambda: lie.struck)
            await anyio.sleep(1.0)
            assert synced(recorder), "nobody noticed anything"
            sent = await anyio.to_thread.run_sync(farm.stop_sending)
            await anyio.sleep(1.0)
        async with Archive(site.config()) as archive:
            report = await archive.verify()
            spans = await archive.spans("cam0")
            end_ns = max(span.end_ns for span in spans)
            async with archive.read("cam0", spans[0].start_ns, end_ns) as pieces:
                read = [piece async for piece in pieces]
    assert {(found.target, found.whole_on) for found in report.damage} == {("a", ("b",))}
    assert site.lost(sent, site.account("b")) == {}
    assert [type(piece) for piece in read] == [StoredFragment] * sum(span.fragments for span in spans), "no hole is seen"
