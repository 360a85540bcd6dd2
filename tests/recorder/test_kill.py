"""`kill -9` of the recorder, and of its workers, at random moments: what was reported committed is there, what is not is explained.

Cameras send all the time. NVRSTORE_SEED=17 repeats one chain of kills; what is random is when, and who dies with whom.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from tests.support import crash
from tests.support.crash import Footage, Watch
from tests.support.prove import proving, seeds, tally
from tests.support.recorder import Process, Site, small_farm, until

import nvrstore
from nvrstore.farm import Farm
from nvrstore.farm.oddities import Act
from nvrstore.limits import MIB
from nvrstore.model import NS_PER_S, Cause, RecordKind

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

KILLS = 5  # in a row, before the recorder may go on in peace: two chains in `./run test`, ten in `./run prove`


@pytest.fixture
def farm() -> Iterator[Farm]:
    with small_farm(2) as running:
        yield running


@pytest.fixture
def site(tmp_path: Path, farm: Farm) -> Site:
    return Site(tmp_path, farm)


def die_once(site: Site, random: Random, moment: str) -> dict[str, int]:
    """Start a recorder, kill it at `moment`, look whether its promises are kept; returns them."""
    pause = threading.Event()
    process = Process(site)
    try:
        with Watch(site, process) as watch:
            if moment == "starting":
                pause.wait(random.uniform(0.0, 1.2))
            else:
                watch.wait_for(crash.recording if moment == "recording" else bool)
                pause.wait(random.uniform(0.0, 2.0 if moment == "recording" else 0.6))
            how = crash.kill(process, random)
    finally:
        process.end(signal.SIGKILL)
    stored = [Footage.of(site.folder / target) for target in site.targets]
    broken = [crash.holds(footage, watch.durable_ns) for footage in stored]
    assert not all(broken), f"killed ({how}) while {moment}: {broken}"
    assert not any(footage.problems for footage in stored)
    return dict(watch.durable_ns)


@pytest.mark.parametrize("seed", seeds(usual=2, proving=10))
def test_whenever_a_recorder_is_killed_what_it_reported_committed_is_there(tmp_path: Path, seed: int) -> None:
    """At random moments, also while it starts and recovers from the kill before; with its workers, by chance, or one of them first."""
    random = Random(f"kill {seed}")
    moments = [random.choice(("starting", "recovering", "recording", "recording")) for _ in range(KILLS - 1)]
    with small_farm(2, bitrate_bps=2_000_000) as farm:
        site = Site(tmp_path, farm, journal={"volume_bytes": (1 + 7 * (seed % 2)) * MIB})  # every two seconds, or hardly ever a new volume
        promises = [die_once(site, random, moment) for moment in ["recording", *moments]]
        footage = crash.live_on(site, farm, promises)
    holes = crash.holes(footage)
    assert holes, "no frame was lost: nobody was killed while cameras sent"
    tally(
        "kill-9",
        f"seed {seed}",
        kills=KILLS,
        while_killed=Counter(["recording", *moments]),
        promises=sum(map(bool, promises)),
        lost=0,  # of what was reported committed: every check above has passed
        frames_stored=sum(len(footage.numbers(stream)) for stream in footage.fragments),
        frames_in_holes=sum(hole.frames for hole in holes),  # not committed yet, or sent to nobody; the ledger names each hole
        holes=len(holes),
    )


@pytest.mark.parametrize("hanging", ["ab", "a"])
def test_nothing_is_reported_committed_before_every_target_has_answered(tmp_path: Path, hanging: str) -> None:
    """Targets hang, cameras go on sending, then everything dies: what was not written, and not everywhere, was never promised."""
    with small_farm(2) as farm:
        site = Site(tmp_path, farm, journal={"fragment_s": 0.2, "lost_s": 60.0})
        process = Process(site)
        try:
            with Watch(site, process) as watch:
                watch.wait_for(lambda status: crash.synced(status) and crash.recording(status))
                places = {str(site.folder / target) for target in hanging}
                appenders = [pid for pid in process.workers() if crash.worker(pid)[0] == "appender" and crash.worker(pid)[1] in places]
                for pid in appenders:
                    os.kill(pid, signal.SIGSTOP)
                hung_ns = crash.now_ns()
                watch.wait_for(lambda status: all(stream["durable_age_s"] > 2.0 for stream in status["streams"]))
                assert not crash.recording_until(watch.status, hung_ns)
                for pid in [process.pid, *process.workers()]:
                    os.kill(pid, signal.SIGKILL)
                crash.wait_gone(appenders)
        finally:
            process.end(signal.SIGKILL)
        for target in site.targets:
            assert crash.holds(Footage.of(site.folder / target), watch.durable_ns) == []
        crash.live_on(site, farm, [watch.durable_ns])


def test_marks_that_were_reported_durable_survive(site: Site, farm: Farm) -> None:
    """A ledger record is as durable as footage is: `mark` returns when it is on disk, and a `kill -9` right then takes nothing."""
    random = Random("marks")
    promises, marks = [], set[str]()
    for _ in range(10 if proving() else 3):
        process = crash.MarkingHost(site)
        try:
            process.wait_for(lambda event: event["event"] == "mark")
            threading.Event().wait(random.uniform(0.0, 1.0))
            crash.kill(process, random)
        finally:
            process.end(signal.SIGKILL)
        told = [event for event in process.events if event["event"] == "mark"]
        promises.append({event["stream"]: event["durable_ns"] for event in told if event["durable_ns"]})
        marks |= {event["id"] for event in told}
    crash.live_on(site, farm, promises)
    for target in site.targets:
        there = {record.id for record in Footage.of(site.folder / target).records if record.kind == RecordKind.MARK}
        assert marks <= there
    assert len(marks) > 3


def test_a_recorder_killed_again_and_again_in_its_first_second_finishes_recovery_in_the_end(site: Site, farm: Farm) -> None:
    """Every step of recovery may be the last; run again, it comes to the same end, and the ledger still names every hole."""
    random = Random("recovery")
    promises = [die_once(site, random, "recording")]
    promises += [die_once(site, random, "recovering") for _ in range(10 if proving() else 4)]
    crash.live_on(site, farm, promises)


def test_gaps_that_were_open_when_a_recorder_died_end_where_footage_goes_on(site: Site, farm: Farm) -> None:
    """A camera is away, two recorders die meanwhile, it comes back: every entry of the ledger has both its ends."""
    promises = []
    for _ in range(2):
        process = Process(site)
        try:
            with Watch(site, process) as watch:
                watch.wait_for(lambda status: status["streams"][0]["durable_ns"])
                farm.act(Act("leave", streams=(1,)))
                watch.wait_for(lambda status: status["streams"][1]["gap"] is not None)
                opened_ns = crash.now_ns()
                watch.wait_for(lambda status: status["streams"][0]["durable_ns"] > opened_ns + NS_PER_S)  # noqa: B023 - called before the next
                crash.kill(process)
                promises.append(dict(watch.durable_ns))
        finally:
            process.end(signal.SIGKILL)
    assert [gap for gap in crash.ledger(site) if gap.end_ns is None and gap.stream == "cam1"]
    farm.act(Act("come", streams=(1,)))
    crash.live_on(site, farm, promises)
    assert [gap for gap in crash.ledger(site) if gap.end_ns is None] == []
    assert {gap.cause for gap in crash.ledger(site) if gap.stream == "cam1"} == {Cause.CAMERA, Cause.RECORDER}


@pytest.mark.anyio
async def test_streams_that_the_host_added_get_the_time_of_the_death_explained_as_configured_ones_do(site: Site, farm: Farm) -> None:
    """A vendor keeps its cameras in a database of its own, and adds them at every start."""
    process = crash.MarkingHost(site, "--add")
    try:
        marked = {process.wait_for(lambda event: event.get("durable_ns") and event["stream"] == f"cam{i}")["stream"] for i in range(2)}  # noqa: B023
        farm.act(Act("leave", streams=(1,)))
        await until(lambda: [gap for gap in crash.ledger(site) if gap.end_ns is None and gap.stream == "cam1"])
        crash.kill(process)
    finally:
        process.end(signal.SIGKILL)
    farm.act(Act("come", streams=(1,)))
    config = site.config()
    async with nvrstore.Recorder(config.model_copy(update={"streams": ()})) as recorder:
        streams = [await recorder.add_stream(stream) for stream in config.streams]
        await until(lambda: all(stream.durable_until() is not None for stream in streams))
        await until(lambda: {gap.stream for gap in crash.ledger(site) if gap.cause is Cause.RECORDER} == marked)
    assert crash.unexplained(site, Footage.of(site.folder / "a")) == []
    assert [gap for gap in crash.ledger(site) if gap.end_ns is None] == []


def test_a_recorder_killed_while_it_resyncs_a_target_that_returned_goes_on_where_it_was(tmp_path: Path) -> None:
    """Twice in the middle of a copy; the target that returned has everything in the end."""
    with small_farm(2, bitrate_bps=6_000_000) as farm:
        site = Site(tmp_path, farm, journal={"resync_bps": 16_000_000})
        promises = []
        process = Process(site)
        try:
            with Watch(site, process) as watch:
                watch.wait_for(lambda status: crash.synced(status) and crash.recording(status))
                (tmp_path / "b").rename(tmp_path / "away")
                watch.wait_for(lambda status: crash.states(status)["b"] == "away")
                threading.Event().wait(5.0)
                (tmp_path / "away").rename(tmp_path / "b")
                watch.wait_for(crash.resyncing)
                crash.kill(process)
                promises.append(dict(watch.durable_ns))
        finally:
            process.end(signal.SIGKILL)
        process = Process(site)
        try:
            with Watch(site, process) as watch:
                watch.wait_for(crash.resyncing)
                crash.kill(process)
                promises.append(dict(watch.durable_ns))
        finally:
            process.end(signal.SIGKILL)
        crash.live_on(site, farm, promises)


@pytest.mark.parametrize("kind", ["appender", "keeper"])
def test_a_worker_that_is_killed_costs_no_frame(site: Site, farm: Farm, kind: str) -> None:
    """The recorder takes the target out and back, or starts another keeper; the other target holds everything meanwhile."""
    process = Process(site)
    try:
        with Watch(site, process) as watch:
            watch.wait_for(lambda status: crash.synced(status) and crash.recording(status))
            victims = [pid for pid in process.workers() if crash.worker(pid) == (kind, str(site.folder / "a"))]
            assert len(victims) == 1
            os.kill(victims[0], signal.SIGKILL)
            crash.wait_gone(victims)
            killed_ns = crash.now_ns()
            watch.wait_for(lambda status: crash.recording_until(status, killed_ns))
            watch.wait_for(crash.synced)
            sent = farm.stop_sending()
            crash.drained(watch)
            assert process.end() == 0
    finally:
        process.end(signal.SIGKILL)
    assert site.lost(sent) == {}
    crash.check(site, [watch.durable_ns])
    assert crash.holes(Footage.of(site.folder / "a")) == []
