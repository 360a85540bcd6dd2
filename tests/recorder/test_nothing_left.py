"""Descriptors and inodes run out: nothing is half made, nothing is lost, and what is there again is used again."""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from tests.support import crash
from tests.support.crash import Watch
from tests.support.recorder import JOURNAL, Process, Site, small_farm, until

import nvrstore
from nvrstore import events
from nvrstore.drills.account import volumes_in
from nvrstore.drills.faults import small_tmpfs
from nvrstore.drills.recording import workers_of
from nvrstore.limits import MIB
from nvrstore.recorder.bridge import Inbox

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

HOLD_S = 1.0  # how long it lasts after it was noticed


@contextmanager
def without_descriptors(pids: Sequence[int]) -> Iterator[None]:
    """Nothing that these processes would open gets a descriptor; what is open goes on."""
    before = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in pids}
    try:
        for pid in pids:
            taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
            first_free = next(number for number in range(len(taken) + 1) if number not in taken)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (first_free, before[pid][1]))
        yield
    finally:
        for pid, limits in before.items():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("whose", ["worker", "recorder"])
def test_no_descriptors_left_costs_a_target_for_a_while_and_no_frame(tmp_path: Path, whose: str) -> None:
    """Of a worker: its target is lost, and the reason says so. Of the recorder: a worker that dies is replaced when there are some."""
    with small_farm(2) as farm:
        site = Site(tmp_path, farm)
        process = Process(site)
        try:
            with Watch(site, process) as watch:
                watch.wait_for(lambda status: crash.synced(status) and crash.recording(status))
                root = site.folder / "a"
                victims = workers_of(process.pid, root, "")
                assert len(victims) == 2
                children = len(process.workers())
                with without_descriptors(workers_of(process.pid, root, "keeper") if whose == "worker" else [process.pid]):
                    if whose == "recorder":
                        threading.Event().wait(HOLD_S / 2)  # the status is asked for all the time: nobody can be let in
                        for pid in victims:
                            os.kill(pid, signal.SIGKILL)
                    lost = process.wait_for(lambda event: event["event"] == "TargetLost")
                    threading.Event().wait(HOLD_S)
                    degraded_ns = crash.now_ns()
                watch.wait_for(lambda status: crash.recording_until(status, degraded_ns))
                watch.wait_for(crash.synced)
                sent = farm.stop_sending()
                crash.drained(watch)
                assert len(process.workers()) == children, "nobody was forgotten"
                assert process.end() == 0, process.errors
        finally:
            process.end(signal.SIGKILL)
    assert lost["target"] == "a"
    if whose == "worker":
        assert "Too many open files" in lost["reason"]
    assert site.lost(sent) == {}
    assert site.differences() == []
    assert list((site.folder / "a" / JOURNAL / ".next").iterdir()) == []
    assert "Traceback" not in process.errors


@contextmanager
def without_inodes(path: Path) -> Iterator[None]:
    """No file can be made on the file system at `path`, whatever room it has."""
    ballast = path / "ballast"
    ballast.mkdir()
    made: list[Path] = []
    try:
        while True:
            file = ballast / str(len(made))
            try:
                file.touch()
            except OSError:
                break
            made.append(file)
        yield
    finally:
        for file in made:
            file.unlink()
        ballast.rmdir()


async def lost_and_degraded(inbox: Inbox[events.Event]) -> events.TargetLost:
    """Until a target was lost, and the set without it was told."""
    lost: events.TargetLost | None = None
    async for event in inbox:
        if isinstance(event, events.TargetLost):
            lost = event
        elif isinstance(event, events.SetChanged) and event.degraded and lost is not None:
            return lost
    raise AssertionError("the recorder ended")


@pytest.mark.root
@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_inodes_run_out_on_a_target_that_has_plenty_of_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retention cannot help, so it is lost after a while; nothing is half made on it, and it returns when there are inodes again."""
    monkeypatch.setattr("nvrstore.replicate.prepare.FULL_S", HOLD_S)
    with small_tmpfs(tmp_path / "a", size_bytes=256 * MIB, inodes=400), small_farm(2) as farm:
        site = Site(tmp_path, farm, journal={"volume_age_s": 1})
        async with nvrstore.Recorder(site.config()) as recorder, recorder.events() as inbox:

            def synced() -> bool:
                return {t["state"] for t in recorder.statistics()["journals"][0]["targets"]} == {"synced"}

            await until(lambda: synced() and all(stream.durable_until() is not None for stream in recorder.streams()))
            with without_inodes(tmp_path / "a"):
                with anyio.fail_after(30):
                    lost = await lost_and_degraded(inbox)
                there = set(volumes_in(tmp_path / "a", JOURNAL))
                assert there <= set(volumes_in(tmp_path / "b", JOURNAL)), "no volume that the other does not have"
            await until(synced)
            sent = await anyio.to_thread.run_sync(farm.stop_sending)
            await anyio.sleep(1.0)
        assert lost.target == "a"
        assert lost.reason.startswith("full: no new volume can be prepared")
        assert site.lost(sent) == {}
        assert site.account().damage == ()
        assert list((tmp_path / "a" / JOURNAL / ".next").iterdir()) == [], "what was prepared and not opened is cleared away"
        assert site.differences() == []
