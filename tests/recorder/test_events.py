"""What a recorder tells its host: every kind of event, in an order that can be relied on, and never at the cost of recording."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
import pytest
from tests.support.recorder import Site, small_farm

import nvrstore
from nvrstore import events
from nvrstore.drills.faults import filled, small_tmpfs
from nvrstore.farm import Act, Farm
from nvrstore.journal.model import Batch, VolumeHeader
from nvrstore.limits import MIB
from nvrstore.model import Epoch, Gap, RecordKind, Role
from nvrstore.recorder.bus import LISTENER_EVENTS_MAX, Bus
from nvrstore.recorder.durable import Durability
from nvrstore.recorder.wiring import make_target
from nvrstore.targets.faulty import FaultyTarget

pytestmark = pytest.mark.slow

WAIT_S: Final = 60.0  # bound of every wait: only a broken program comes near it
SILENCE_S: Final = 1.0

Made = dict[str, FaultyTarget]


def recorder_of(site: Site, made: Made) -> nvrstore.Recorder:
    """A recorder whose targets fail when they are told to."""

    def make(config: Any, python: str | None, lock_fd: int | None) -> FaultyTarget:
        made[config.name] = FaultyTarget(make_target(config, python, lock_fd))
        return made[config.name]

    tables = site.tables()
    for stream in tables["stream"]:
        stream["silence_s"] = SILENCE_S
    return nvrstore.Recorder(nvrstore.Config.parse(tables), make=make)


class Order:
    """Events and commits in the order in which they are told, each with what stands in it: of every recorder made from now on."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seen: list[events.Event | tuple[Epoch, int]] = []
        publish, commit = Bus.publish, Durability.batch

        def published(bus: Bus, event: events.Event) -> None:
            self.seen.append(event)
            publish(bus, event)

        def committed(durability: Durability, header: VolumeHeader, batch: Batch, copies: int) -> None:
            self.seen.append((header.epoch, copies))
            commit(durability, header, batch, copies)

        patch.setattr(Bus, "publish", published)
        patch.setattr(Durability, "batch", committed)

    @property
    def all(self) -> list[events.Event]:
        """The events alone."""
        return [one for one in self.seen if isinstance(one, events.Event)]

    def at(self, kind: type[events.Event], since: int = 0, **fields: Any) -> int:
        """Where the first such event stands; -1 while there is none."""
        for i, one in enumerate(self.seen[since:], start=since):
            if isinstance(one, kind) and all(getattr(one, name) == value for name, value in fields.items()):
                return i
        return -1

    async def wait(self, kind: type[events.Event], since: int = 0, **fields: Any) -> int:
        """Until it is there."""
        await until(lambda: self.at(kind, since, **fields) >= 0)
        return self.at(kind, since, **fields)


async def until(what: Callable[[], object]) -> None:
    with anyio.fail_after(WAIT_S):
        while not what():  # noqa: ASYNC110 - there is no event of it
            await anyio.sleep(0.02)


async def recording(recorder: nvrstore.Recorder) -> None:
    """Until every stream has something durable, and every target lacks nothing."""

    def settled() -> bool:
        targets = recorder.statistics()["journals"][0]["targets"]
        return all(s.durable_until() for s in recorder.streams()) and all(t["state"] == "synced" for t in targets if t["role"] != "refuge")

    await until(settled)


async def drained(recorder: nvrstore.Recorder) -> None:
    """Until nothing arrives any more."""
    before = -1
    while (frames := sum(stream.status().samples for stream in recorder.streams())) != before:
        before = frames
        await anyio.sleep(0.5)


async def story(recorder: nvrstore.Recorder, made: Made, farm: Farm, order: Order) -> None:
    """A target fails and returns; both fail and return; a camera falls silent and speaks again."""
    await recording(recorder)
    fault = made["a"].fail(errno.EIO)
    failed_over = await order.wait(events.FailedOver)
    fault.remove()
    returned = await order.wait(events.TargetSynced, failed_over, target="a")
    faults = [made[name].fail(errno.EIO) for name in "ab"]
    refuge = await order.wait(events.RefugeEntered, returned)
    for fault in faults:
        fault.remove()
    await order.wait(events.TargetSynced, refuge, target="a")
    await order.wait(events.TargetSynced, refuge, target="b")
    farm.act(Act("mute", streams=(0,), for_s=2 * SILENCE_S))
    opened = await order.wait(events.GapOpened, refuge)
    await order.wait(events.GapClosed, opened)
    await order.wait(events.StreamChanged, opened, stream="cam0", state="recording")


def told(happened: list[events.Event], kind: type[events.Event]) -> list[Any]:
    return [event for event in happened if isinstance(event, kind)]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_day_of_troubles_is_told_in_order(tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of event, with its fields; what leads to what stands before it; and the ledger says the same of gaps."""
    made: Made = {}
    heard: list[events.Event] = []

    async def listen(inbox: Any, into: Callable[[events.Event], None]) -> None:
        async for event in inbox:
            into(event)

    order = Order(monkeypatch)

    async def run() -> None:
        recorder = recorder_of(site, made)
        async with recorder, anyio.create_task_group() as tasks, recorder.events() as inbox:
            tasks.start_soon(listen, inbox, heard.append)
            since = len(order.all)
            await story(recorder, made, farm, order)
            sent = await anyio.to_thread.run_sync(farm.stop_sending)
            await drained(recorder)
            assert [event.utc_ns for event in heard] == [event.utc_ns for event in order.all[since : since + len(heard)]]
            tasks.cancel_scope.cancel()
        assert site.lost(sent) == {}

    with small_farm(2) as farm:
        site = Site(tmp_path, farm)
        anyio.run(run, backend=backend)
    assert site.differences() == []
    _in_order(order)
    _degraded_is_told_before_anything_counts_on_one_copy(order)
    _as_the_ledger_says(order, site)
    for event in order.all:
        assert json.loads(json.dumps(event.as_json()))["event"] == type(event).__name__


def _in_order(order: Order) -> None:
    lost = order.at(events.TargetLost, target="a")
    shrunk = order.at(events.SetChanged, lost, degraded=True)
    failed_over = order.at(events.FailedOver, lost)
    joined = order.at(events.TargetJoined, failed_over, target="a")
    synced = order.at(events.TargetSynced, joined, target="a")
    assert 0 <= lost < shrunk < failed_over < joined < synced
    first = order.seen[failed_over]
    assert isinstance(first, events.FailedOver)
    assert (first.target, first.ttr_s >= 0, "Input/output error" in first.reason) == ("a", True, True)
    sets = told(order.all, events.SetChanged)
    assert [one.epoch for one in sets] == sorted({one.epoch for one in sets}), "set numbers grow"
    assert all(len({member.target for member in one.members}) == len(one.members) for one in sets)
    assert not sets[-1].degraded
    assert sets[-1].members[0].role is Role.PRIMARY
    assert {member.target for member in sets[-1].members} == {"a", "b"}
    refuge = order.at(events.RefugeEntered)
    before = [one for one in order.seen[:refuge] if isinstance(one, events.SetChanged)][-1]
    assert [member.role for member in before.members] == [Role.REFUGE]
    assert order.at(events.TargetLost, synced, target="b") < refuge
    opened = order.at(events.GapOpened, refuge)
    closed = order.at(events.GapClosed, opened)
    silent = order.at(events.StreamChanged, refuge, stream="cam0", state="waiting")
    assert 0 <= refuge < opened < closed
    assert 0 <= silent < closed < order.at(events.StreamChanged, silent, stream="cam0", state="recording") + len(order.seen)
    states = [event.state for event in told(order.all, events.StreamChanged) if event.stream == "cam1"]
    assert states in (["connecting", "recording", "stopped"], ["waiting", "connecting", "recording", "stopped"])
    assert told(order.all, events.VolumeClosed)


def _degraded_is_told_before_anything_counts_on_one_copy(order: Order) -> None:
    """Whoever watches the events knows that there is one copy only before anything is durable on one copy only."""
    degraded: dict[Epoch, bool] = {}
    now = True  # nothing has been promised yet
    single = 0
    for one in order.seen:
        if isinstance(one, events.SetChanged):
            degraded[one.epoch] = now = one.degraded
        elif isinstance(one, tuple):
            epoch, copies = one
            assert copies >= 1
            if copies < 2:
                single += 1
                assert now or degraded.get(epoch, False), f"a commit of {epoch} on one copy, and nobody was told"
    assert single > 0, "the story holds no commit on one copy"


def _as_the_ledger_says(order: Order, site: Site) -> None:
    gaps = {gap.id: gap for gap in (Gap.of(r) for r in site.account().records if r.kind == RecordKind.GAP)}
    closed = told(order.all, events.GapClosed)
    assert closed
    for event in closed:
        assert gaps[event.gap.id] == event.gap
        assert event.gap.end_ns is not None
        assert event.gap.end_ns > event.gap.start_ns
    opened = [event.gap.id for event in told(order.all, events.GapOpened)]
    assert len(opened) == len(set(opened))


# --- listeners


@pytest.mark.anyio
async def test_a_listener_that_never_reads_slows_nothing_and_is_told_what_it_lost(tmp_path: Path) -> None:
    """Hundreds of them, and a flood of events: no frame is lost, and whoever reads at last learns how many events it missed."""
    flood = 4 * LISTENER_EVENTS_MAX

    def pour(core: Any) -> None:
        for i in range(flood):
            core.publish(events.ResyncProgress(utc_ns=i, journal="main", target="a", done_bytes=i, total_bytes=flood))

    with small_farm(2) as farm:
        site = Site(tmp_path, farm)
        async with nvrstore.Recorder(site.config()) as recorder:
            await until(lambda: all(stream.durable_until() for stream in recorder.streams()))
            managers = [recorder.events() for _ in range(100)]
            idle = [await manager.__aenter__() for manager in managers]
            async with recorder.events(events.ResyncProgress) as slow, recorder.events(events.TargetLost) as narrow:
                await anyio.to_thread.run_sync(pour, recorder._core)
                got = [await slow.receive() for _ in range(LISTENER_EVENTS_MAX + 1)]
                assert isinstance(got[0], events.EventsDropped)
                assert got[0].count == flood - LISTENER_EVENTS_MAX
                assert [event.utc_ns for event in got[1:]] == list(range(flood - LISTENER_EVENTS_MAX, flood))
                recorder._core.publish(events.ResyncProgress(utc_ns=-1, journal="main", target="a", done_bytes=0, total_bytes=0))
                assert (await slow.receive()).utc_ns == -1  # told once
                with anyio.move_on_after(0.1) as nothing:
                    await narrow.receive()
                assert nothing.cancelled_caught
            first = await idle[0].receive()
            assert isinstance(first, events.EventsDropped)
            for manager in managers:
                await manager.__aexit__(None, None, None)
            sent = await anyio.to_thread.run_sync(farm.stop_sending)
            await drained(recorder)
    assert site.lost(sent) == {}


@pytest.mark.anyio
async def test_listeners_end_with_the_recorder(tmp_path: Path) -> None:
    """What was told can still be read; then the stream ends, instead of waiting for ever."""
    with small_farm(1) as farm:
        site = Site(tmp_path, farm)
        ended: list[events.Event] = []
        recorder = nvrstore.Recorder(site.config())
        async with anyio.create_task_group() as tasks, recorder:
            ready = anyio.Event()

            async def listen() -> None:
                async with recorder.events(events.StreamChanged, events.VolumeClosed) as inbox:
                    ready.set()
                    async for event in inbox:
                        ended.append(event)  # noqa: PERF401 - looked at from outside

            tasks.start_soon(listen)
            await ready.wait()
            await until(lambda: all(stream.durable_until() for stream in recorder.streams()))
    assert [event.state for event in ended if isinstance(event, events.StreamChanged)][-1] == "stopped"
    assert isinstance(ended[-1], events.VolumeClosed)


# --- alarms


@pytest.mark.anyio
async def test_an_alarm_from_before_anybody_could_listen_is_in_the_status(tmp_path: Path) -> None:
    """A control socket that cannot be made is told while the recorder starts; it records all the same."""
    with small_farm(1) as farm:
        site = Site(tmp_path, farm)
        (site.state / "control.sock" / "in the way").mkdir(parents=True)
        async with nvrstore.Recorder(site.config()) as recorder:
            await until(lambda: all(stream.durable_until() for stream in recorder.streams()))
            (alarm,) = recorder.statistics()["alarms"]
    assert alarm["what"] == "control"
    assert "no control socket" in alarm["sentence"]
    assert alarm["utc_ns"] > 0


@pytest.mark.root
def test_a_state_disk_that_is_full_is_an_alarm_and_never_a_stop(tmp_path: Path) -> None:
    """The catalog cannot be written: told as an event and in the status, until it can be again; no frame is lost."""

    async def run() -> None:
        async with nvrstore.Recorder(site.config()) as recorder, recorder.events(events.Alarm) as alarms:
            await recording(recorder)
            with filled(site.state):
                with anyio.fail_after(WAIT_S):
                    alarm = await alarms.receive()
                assert isinstance(alarm, events.Alarm)
                assert alarm.what == "catalog"
                assert alarm.sentence
                assert [one["what"] for one in recorder.statistics()["alarms"]] == ["catalog"]
            await until(lambda: recorder.statistics()["alarms"] == [])
            sent = await anyio.to_thread.run_sync(farm.stop_sending)
            await drained(recorder)
        assert site.lost(sent) == {}

    with small_farm(2) as farm, small_tmpfs(tmp_path / "state", size_bytes=8 * MIB):
        site = Site(tmp_path, farm)
        anyio.run(run)
    assert site.differences() == []
