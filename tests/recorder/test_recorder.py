"""The recorder as a host embeds it: real RTSP, real workers, real files."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.support.recorder import JOURNAL, Site, small_farm, until

import nvrstore
from nvrstore import events
from nvrstore.errors import ClosedError, JournalInUseError, NotFoundError, RecorderFailedError, TargetIdentityError, UsageError
from nvrstore.farm import Farm
from nvrstore.limits import STOP_S
from nvrstore.model import NS_PER_S, RecordKind
from nvrstore.recorder.wiring import make_target
from nvrstore.targets.faulty import FaultyTarget

pytestmark = pytest.mark.slow


@pytest.fixture
def farm() -> Iterator[Farm]:
    with small_farm(2) as running:
        yield running


@pytest.fixture
def site(tmp_path: Path, farm: Farm) -> Site:
    return Site(tmp_path, farm)


async def durable(recorder: nvrstore.Recorder) -> None:
    """Until every stream has something durable."""
    await until(lambda: all(stream.durable_until() is not None for stream in recorder.streams()))


async def state(recorder: nvrstore.Recorder, target: str, *wanted: str) -> None:
    """Until a target is in one of the wanted states."""
    await until(lambda: {t["target"]: t["state"] for t in recorder.statistics()["journals"][0]["targets"]}[target] in wanted)


async def drained(recorder: nvrstore.Recorder) -> None:
    """Until nothing arrives any more."""
    before = -1
    while (frames := sum(stream.status().samples for stream in recorder.streams())) != before:
        before = frames
        await anyio.sleep(0.5)


async def waiting(inbox: Any) -> list[events.Event]:
    """The events that have come so far."""
    found: list[events.Event] = []
    with anyio.move_on_after(0.2):
        while True:
            found.append(await inbox.receive())
    return found


def faulty(made: dict[str, FaultyTarget]) -> Any:
    def make(config: Any, python: str | None, lock_fd: int | None) -> FaultyTarget:
        made[config.name] = FaultyTarget(make_target(config, python, lock_fd))
        return made[config.name]

    return make


@pytest.mark.anyio
async def test_every_frame_of_every_camera_is_on_both_targets(site: Site, farm: Farm) -> None:
    """The main job: the farm stops first, the recorder drains, every frame is looked up."""
    async with nvrstore.Recorder(site.config()) as recorder:
        await durable(recorder)
        await anyio.sleep(1.5)
        sent = await anyio.to_thread.run_sync(farm.stop_sending)
        await drained(recorder)
    account = site.account()
    assert site.lost(sent, account) == {}
    assert site.differences() == []
    assert account.damage == ()
    assert all(report.whole for report in account.reports.values())
    assert sum(frames.count for frames in sent) > 50


@pytest.mark.anyio
async def test_a_primary_that_fails_and_returns_costs_no_frame_and_gets_everything_it_missed(site: Site, farm: Farm) -> None:
    """Fail over, fail back, and copies that are equal again by themselves."""
    made: dict[str, FaultyTarget] = {}
    async with nvrstore.Recorder(site.config(), make=faulty(made)) as recorder, recorder.events() as inbox:
        await durable(recorder)
        await state(recorder, "a", "synced")
        fault = made["a"].fail(errno.EIO)
        await state(recorder, "a", "away")
        await anyio.sleep(1.5)
        fault.remove()
        await state(recorder, "a", "synced")
        sent = await anyio.to_thread.run_sync(farm.stop_sending)
        await drained(recorder)
        happened = await waiting(inbox)
    kinds = [type(event) for event in happened]
    assert kinds.index(events.TargetLost) < kinds.index(events.FailedOver)
    lost = next(event for event in happened if isinstance(event, events.TargetLost))
    degraded = next(event for event in happened if isinstance(event, events.SetChanged) and event.degraded)
    assert lost.target == "a"
    assert lost.since_failure_s is None, "a simulated failure is none of a worker's"
    assert [member.target for member in degraded.members] == ["b"]
    assert site.lost(sent) == {}
    assert site.differences() == []


@pytest.mark.anyio
async def test_a_host_that_blocks_its_loop_loses_no_frame(site: Site, farm: Farm) -> None:
    """The data plane never runs on the host's event loop; a target that fails meanwhile is replaced all the same."""
    made: dict[str, FaultyTarget] = {}
    async with nvrstore.Recorder(site.config(), make=faulty(made)) as recorder:
        await durable(recorder)
        fault = made["b"].fail(errno.EIO)
        time.sleep(4.0)  # noqa: ASYNC251 - this is what the test is about
        fault.remove()
        assert recorder.statistics()["journals"][0]["copies"] >= 1
        sent = await anyio.to_thread.run_sync(farm.stop_sending)
        await drained(recorder)
        await state(recorder, "b", "synced")
    assert site.lost(sent) == {}
    assert site.differences() == []


@pytest.mark.anyio
async def test_a_host_that_burns_its_gil_accuses_no_target(site: Site, farm: Farm) -> None:
    """The detector knows its own lateness."""
    stop = threading.Event()

    def burn() -> None:
        while not stop.is_set():
            sum(range(2000))

    burners = [threading.Thread(target=burn) for _ in range(4)]
    async with nvrstore.Recorder(site.config()) as recorder, recorder.events(events.TargetLost) as inbox:
        await durable(recorder)
        for thread in burners:
            thread.start()
        try:
            await anyio.sleep(5)
        finally:
            stop.set()
            for thread in burners:
                thread.join()
        accused = await waiting(inbox)
        sent = await anyio.to_thread.run_sync(farm.stop_sending)
        await drained(recorder)
    assert accused == []
    assert site.lost(sent) == {}


@pytest.mark.anyio
async def test_a_second_recorder_is_refused_with_a_sentence(site: Site, tmp_path: Path) -> None:
    """The same state directory, or another one over the same targets: either would write where somebody writes."""
    async with nvrstore.Recorder(site.config()) as recorder:
        await durable(recorder)
        with pytest.raises(JournalInUseError, match="state directory"):
            async with nvrstore.Recorder(site.config()):
                pass
        tables = site.tables()
        tables["recorder"] = {"name": "other", "state": str(tmp_path / "other")}
        with pytest.raises(JournalInUseError, match="'nvr-test'") as caught:
            async with nvrstore.Recorder(nvrstore.Config.parse(tables)):
                pass
        assert "--take-over" in caught.value.hint
        assert recorder.stream("cam0").status().state == "recording"


@pytest.mark.anyio
async def test_a_recorder_that_is_gone_is_succeeded_after_its_looks_stood_still(site: Site, tmp_path: Path) -> None:
    """A new machine with the same targets: it waits `takeover_s`, then records under a higher term."""
    async with nvrstore.Recorder(site.config()) as recorder:
        await durable(recorder)
    tables = site.tables()
    tables["recorder"] = {"name": "other", "state": str(tmp_path / "other")}
    tables["journal"][0]["takeover_s"] = 1.0
    async with nvrstore.Recorder(nvrstore.Config.parse(tables)) as successor:
        await durable(successor)
        assert successor.statistics()["journals"][0]["epoch"].startswith("2.")


@pytest.mark.anyio
async def test_a_mark_is_durable_when_mark_returns(site: Site) -> None:
    """Stored with the footage, on both copies."""
    async with nvrstore.Recorder(site.config()) as recorder:
        await durable(recorder)
        now = datetime.now(UTC)
        mark = await recorder.stream("cam0").mark("person", now, now, {"score": 0.93}, copies=2)
        with pytest.raises(UsageError, match="time zone"):
            await recorder.stream("cam0").mark("person", datetime.now(), now)  # noqa: DTZ005
        with pytest.raises(UsageError, match="JSON"):
            await recorder.stream("cam0").mark("person", now, now, {"score": float("nan")})
        with pytest.raises(UsageError, match="3 copies"):
            await recorder.stream("cam0").mark("person", now, now, copies=3)
        await recorder.stream("cam0").wait_durable(now, copies=2)
    for target in ("a", "b"):
        found = [record for record in site.account(target).records if record.kind == RecordKind.MARK]
        assert [(record.id, record.body["data"]) for record in found] == [(mark, {"score": 0.93})]


@pytest.mark.anyio
async def test_a_tap_gets_live_samples_that_begin_with_a_keyframe(site: Site) -> None:
    """Analytics without a second session with the camera."""
    async with nvrstore.Recorder(site.config()) as recorder:
        await durable(recorder)
        async with recorder.stream("cam0").tap() as samples:
            first = await samples.receive()
            second = await samples.receive()
        assert first.sample.keyframe
        assert second.utc_ns > first.utc_ns
        async with recorder.stream("cam0").tap(keyframes_only=True) as samples:
            assert (await samples.receive()).sample.keyframe
            assert (await samples.receive()).sample.keyframe


@pytest.mark.anyio
async def test_streams_come_and_go_while_it_runs(site: Site, farm: Farm) -> None:
    """Declarative, and by hand."""
    site.streams = [0]
    async with nvrstore.Recorder(site.config()) as recorder:
        await durable(recorder)
        gate = await recorder.add_stream(nvrstore.StreamConfig(id="gate", url=farm.url(1)))
        await durable(recorder)
        assert gate.status().state == "recording"
        with pytest.raises(UsageError, match="already"):
            await recorder.add_stream(nvrstore.StreamConfig(id="gate", url=farm.url(1)))
        site.streams = [1]
        assert await recorder.apply(site.config()) == []
        assert [stream.id for stream in recorder.streams()] == ["cam1"]
        with pytest.raises(NotFoundError):
            recorder.stream("gate")
        await durable(recorder)
    assert set(site.account().reports) == {"cam0", "gate", "cam1"}


@pytest.mark.anyio
async def test_a_configuration_that_cannot_be_followed_changes_nothing(site: Site, farm: Farm) -> None:
    """A stream is moved to a journal that needs a restart: it records on where it is, and so do all the others."""
    async with nvrstore.Recorder(site.config()) as recorder:
        await durable(recorder)
        tables = site.tables()
        tables["journal"].append({**tables["journal"][0], "name": "second"})
        tables["stream"][0]["journal"] = "second"
        tables["stream"][1] |= {"journal": JOURNAL, "name": "Yard"}
        tables["stream"].append({"id": "new", "url": farm.url(0), "journal": JOURNAL})
        before = [(stream.id, stream.config) for stream in recorder.streams()]
        with pytest.raises(UsageError, match="'cam0' into journal 'second'"):
            await recorder.apply(nvrstore.Config.parse(tables))
        assert [(stream.id, stream.config) for stream in recorder.streams()] == before
        assert recorder.config == site.config()
        sent = await anyio.to_thread.run_sync(farm.stop_sending)
        await drained(recorder)
    assert site.lost(sent) == {}


@pytest.mark.anyio
async def test_a_stream_that_changes_is_dark_only_for_its_own_change(site: Site) -> None:
    """The source of another one may be stuck for seconds before it leaves."""
    async with nvrstore.Recorder(site.config()) as recorder:
        await durable(recorder)
        ingest = recorder._core._ingest
        recorded: list[tuple[str, list[str]]] = []
        remove = ingest.remove

        def watched(stream: str, timeout_s: float = STOP_S) -> bool:
            recorded.append((stream, recorder._core.stream_ids()))
            return remove(stream, timeout_s)

        ingest.remove = watched  # type: ignore[method-assign]
        tables = site.tables()
        for stream in tables["stream"]:
            stream["name"] = f"{stream['id']}, renamed"
        await recorder.apply(nvrstore.Config.parse(tables))
        await durable(recorder)
    assert recorded == [("cam0", ["cam0", "cam1"]), ("cam1", ["cam1", "cam0"])]


@pytest.mark.anyio
async def test_dead_cameras_are_states_and_gaps_never_exceptions(site: Site, farm: Farm) -> None:
    """The others record on."""
    tables = site.tables()
    tables["stream"].append({"id": "dead", "url": "rtsp://127.0.0.1:1/none"})
    async with nvrstore.Recorder(nvrstore.Config.parse(tables)) as recorder:
        await until(lambda: recorder.stream("cam0").durable_until() is not None and recorder.stream("dead").status().gap is not None)
        status = recorder.stream("dead").status()
        assert status.state == "waiting"
        assert status.reason
        assert status.gap is not None
        await anyio.sleep(0.6)
    assert "dead" in {r.body.get("stream") for r in site.account().records if r.kind == RecordKind.GAP}


@pytest.mark.anyio
async def test_what_the_body_raises_comes_out_as_it_is(site: Site) -> None:
    """Not wrapped in a group: hosts catch their own errors."""
    with pytest.raises(ZeroDivisionError):
        async with nvrstore.Recorder(site.config()):
            _ = 1 / 0
    async with nvrstore.Recorder(site.config()) as again:
        await durable(again)
    with pytest.raises(ClosedError):
        again.statistics()


@pytest.mark.anyio
async def test_only_a_recorder_that_cannot_go_on_cancels_the_body(site: Site) -> None:
    """And it says why."""

    def bug() -> None:
        raise RuntimeError("a bug in the engine")

    async def record() -> None:
        async with nvrstore.Recorder(site.config()) as recorder:
            recorder._core.hub.post(bug)
            await anyio.sleep(30)

    with pytest.raises(RecorderFailedError, match="bug"):
        await record()


@pytest.mark.anyio
async def test_a_bare_directory_is_refused_and_stays_empty(site: Site, tmp_path: Path) -> None:
    """It may be the mount point of a disk that was not mounted."""
    bare = tmp_path / "bare"
    bare.mkdir()
    tables = site.tables()
    tables["target"][1]["path"] = str(bare)
    with pytest.raises(TargetIdentityError) as caught:
        async with nvrstore.Recorder(nvrstore.Config.parse(tables)):
            pass
    assert "nvrstore target init" in caught.value.hint
    assert list(bare.iterdir()) == []


@pytest.mark.anyio
async def test_a_target_that_was_known_and_is_missing_at_the_start_joins_when_it_is_back(site: Site, tmp_path: Path, farm: Farm) -> None:
    """An unmounted disk does not keep the recorder from starting."""
    async with nvrstore.Recorder(site.config()) as recorder:
        await durable(recorder)
    (tmp_path / "b").rename(tmp_path / "elsewhere")
    (tmp_path / "b").mkdir()
    async with nvrstore.Recorder(site.config()) as recorder:
        await durable(recorder)
        assert list((tmp_path / "b").iterdir()) == []
        (tmp_path / "b").rmdir()
        (tmp_path / "elsewhere").rename(tmp_path / "b")
        await state(recorder, "b", "synced")
        sent = await anyio.to_thread.run_sync(farm.stop_sending)
        await drained(recorder)
    assert site.differences() == []
    assert sent


@pytest.mark.anyio
async def test_a_target_whose_directory_is_moved_away_is_lost_by_its_next_look(site: Site, tmp_path: Path, farm: Farm) -> None:
    """A directory that was moved takes writes through open descriptors for ever."""
    async with nvrstore.Recorder(site.config()) as recorder:
        await durable(recorder)
        (tmp_path / "a").rename(tmp_path / "moved")
        await state(recorder, "a", "away")
        (tmp_path / "moved").rename(tmp_path / "a")
        await state(recorder, "a", "synced")
        sent = await anyio.to_thread.run_sync(farm.stop_sending)
        await drained(recorder)
    assert site.lost(sent) == {}
    assert site.differences() == []


@pytest.mark.anyio
async def test_with_all_targets_gone_the_refuge_keeps_footage_and_gives_it_back(site: Site, farm: Farm) -> None:
    """Nothing is counted as committed meanwhile, and nothing is missing afterwards."""
    made: dict[str, FaultyTarget] = {}
    async with nvrstore.Recorder(site.config(), make=faulty(made)) as recorder:
        await durable(recorder)
        faults = [target.fail(errno.EIO) for target in made.values()]
        await until(lambda: recorder.statistics()["journals"][0]["refuge"])
        await anyio.sleep(2.0)
        for fault in faults:
            fault.remove()
        await state(recorder, "a", "synced")
        await state(recorder, "b", "synced")
        sent = await anyio.to_thread.run_sync(farm.stop_sending)
        await drained(recorder)
        await until(lambda: not list((site.state / "refuge" / JOURNAL).glob("*/*.mp4")))
    assert site.lost(sent) == {}
    assert site.differences() == []


@pytest.mark.anyio
async def test_what_the_refuge_kept_is_durable_when_a_target_has_its_copy(site: Site, farm: Farm) -> None:
    """Not before, and no later: the other target may have days to catch up with before anybody is called synced."""
    made: dict[str, FaultyTarget] = {}
    async with nvrstore.Recorder(site.config(), make=faulty(made)) as recorder:
        await durable(recorder)
        core = recorder._core
        core.durability.synced = lambda *_: None  # type: ignore[method-assign]
        faults = [target.fail(errno.EIO) for target in made.values()]
        await until(lambda: core.durability._owed.get(JOURNAL))
        inside = datetime.now(UTC)
        await until(lambda: all(line.told_ns > inside.timestamp() * NS_PER_S for line in core.durability._lines.values()))
        before = {stream.id: stream.durable_until() for stream in recorder.streams()}
        assert all(at is not None and at < inside for at in before.values())
        for fault in faults:
            fault.remove()
        with anyio.fail_after(30):
            for stream in recorder.streams():
                await stream.wait_durable(inside)
