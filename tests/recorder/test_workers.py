"""`[recorder] workers = N`: the same recorder, with its cameras received in processes of their own."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.support.crash import Footage
from tests.support.recorder import Site, small_farm, until

import nvrstore
from nvrstore import events
from nvrstore.crew import crew, process
from nvrstore.errors import NotFoundError, SourceError, UsageError
from nvrstore.farm import Farm
from nvrstore.ingest.contract import Endpoint
from nvrstore.journal.batch import VolumeBuilder
from nvrstore.model import Cause, Gap, RecordKind

pytestmark = pytest.mark.slow


@pytest.fixture
def anyio_backend() -> str:
    """Neither loop knows where cameras are received."""
    return "asyncio"


@pytest.fixture
def farm() -> Iterator[Farm]:
    with small_farm(4, audio="pcma") as running:
        yield running


@pytest.fixture
def site(tmp_path: Path, farm: Farm) -> Site:
    return Site(tmp_path, farm, recorder={"workers": 2})


async def durable(recorder: nvrstore.Recorder) -> None:
    await until(lambda: all(stream.durable_until() is not None for stream in recorder.streams()))


async def drained(recorder: nvrstore.Recorder) -> None:
    """Until nothing arrives any more: workers say how many samples there were once a second."""
    before = -1
    while (frames := sum(stream.status().samples for stream in recorder.streams())) != before:
        before = frames
        await anyio.sleep(1.5)


def seats(recorder: nvrstore.Recorder) -> list[dict[str, Any]]:
    workers: list[dict[str, Any]] = recorder.statistics()["ingest_workers"]
    return workers


def shown(pid: int) -> bytes:
    """What everybody may see of a process; nothing of one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def gaps(site: Site) -> list[Gap]:
    """What the ledger says in the end."""
    latest = {(record.kind, record.id): record for record in site.account().records}
    return [Gap.of(record) for record in latest.values() if record.kind == RecordKind.GAP]


async def receive(inbox: Any, kind: type[events.Event]) -> events.Event:
    with anyio.fail_after(30):
        while True:
            event: events.Event = await inbox.receive()
            if isinstance(event, kind):
                return event


@pytest.mark.anyio
async def test_batches_are_written_from_where_a_worker_laid_them_out(site: Site, farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorder copies those alone into which a record goes; each worker has a lane of its own; at the end its window is free."""
    built: list[tuple[bool, int]] = []
    build = VolumeBuilder.build

    def watched(self: VolumeBuilder, view: memoryview, fragments: Any, records: Any, *, in_place: bool, **rest: Any) -> Any:
        if fragments and not records:
            built.append((in_place, self.header.lane))
        return build(self, view, fragments, records, in_place=in_place, **rest)

    monkeypatch.setattr(VolumeBuilder, "build", watched)
    async with nvrstore.Recorder(site.config()) as recorder:
        await durable(recorder)
        built.clear()
        await until(lambda: len(built) >= 20)
        sent = await anyio.to_thread.run_sync(farm.stop_sending)
        await drained(recorder)
        windows = recorder._core._pool.windows
        await until(lambda: not any(window.taken_bytes for window in windows))
    assert {lane for _, lane in built} == {0, 1}
    assert any(in_place for in_place, _ in built)  # where a target is busy, two that wait become one, by copying
    assert site.lost(sent) == {}
    assert site.differences() == []


@pytest.mark.anyio
async def test_every_frame_comes_over(site: Site, farm: Farm, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures and sound, in two processes; who looks sees what threads would show; stopping leaves no process behind."""
    monkeypatch.setenv("GATE_LOGIN", "admin:secret")
    with caplog.at_level(logging.INFO, "nvrstore"):
        async with nvrstore.Recorder(site.config()) as recorder:
            await durable(recorder)
            assert [seat["streams"] for seat in seats(recorder)] == [2, 2]
            await until(lambda: recorder.stream("cam3").status().fps > 20)
            status = recorder.stream("cam3").status()
            assert (status.state, status.engine, status.codec, status.width, status.gap) == ("recording", "lean", "h264", 320, None)
            assert status.audio_codec
            for seat in seats(recorder):
                assert not any(word in shown(seat["pid"]) for word in (b"rtsp://", b"secret"))
            sent = await anyio.to_thread.run_sync(farm.stop_sending)
            await drained(recorder)
            pids = [seat["pid"] for seat in seats(recorder)]
    assert [shown(pid) for pid in pids] == [b"", b""]
    assert site.lost(sent) == {}
    assert site.differences() == []
    assert gaps(site) == []
    assert any(record.name == "nvrstore.ingest.supervisor" and "stream.connected" in record.getMessage() for record in caplog.records)


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_a_worker_that_is_gone_is_replaced_by_the_spare(site: Site, farm: Farm, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Its streams go on in the spare, with the sample behind the last one that came over; the ledger has the gap, and only theirs."""
    monkeypatch.setattr(process, "SILENT_S", 2.0)
    async with nvrstore.Recorder(site.config()) as recorder, recorder.events(events.IngestWorkerLost) as inbox:
        await durable(recorder)
        await anyio.sleep(1.0)
        first = seats(recorder)[0]["pid"]
        theirs = ["cam0", "cam2"]
        os.kill(first, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        lost = await receive(inbox, events.IngestWorkerLost)
        assert isinstance(lost, events.IngestWorkerLost)
        assert (lost.worker, lost.streams) == (1, 2)
        assert ("signal 9" in lost.reason) == (how == "killed")
        await until(lambda: all(recorder.stream(stream).status().state == "recording" for stream in theirs))
        again = {stream: recorder.stream(stream).durable_until() for stream in theirs}
        await until(lambda: all(recorder.stream(stream).durable_until() != again[stream] for stream in theirs))
        await until(lambda: all(recorder.stream(stream).status().gap is None for stream in theirs))
        assert seats(recorder)[0]["pid"] != first
        assert [seat["ended"] for seat in seats(recorder)] == [1, 0]
        sent = await anyio.to_thread.run_sync(farm.stop_sending)
        await drained(recorder)
    written = gaps(site)
    assert sorted(gap.stream for gap in written) == theirs
    assert {gap.cause for gap in written} == {Cause.RECORDER}
    assert all(gap.end_ns is not None and gap.end_ns > gap.start_ns for gap in written)
    account = site.account()
    assert set(site.lost(sent, account)) == set(theirs), "what a worker had not handed over, of its own streams alone"
    fragments = Footage.of(site.folder / "a").fragments
    for stream in theirs:
        (hole,) = site.lost(sent, account)[stream]
        assert hole.first > 0
        ordered = sorted(fragments[stream], key=lambda fragment: fragment.utc_ns)
        ends = [(fragment.session, fragment.index + len(fragment.numbers)) for fragment in ordered]
        assert [(fragment.session, fragment.index) for fragment in ordered[1:]] == ends[:-1], "no number is left out, or used twice"
    assert site.differences() == []
    assert not any(report.duplicated for report in account.reports.values())


@pytest.mark.anyio
async def test_a_host_that_burns_its_gil_loses_no_frame(site: Site, farm: Farm) -> None:
    """Four threads that never let go of the GIL by themselves; the cameras do not notice."""
    over = threading.Event()

    def burn() -> None:
        while not over.is_set():
            sum(range(10_000))

    burners = [threading.Thread(target=burn) for _ in range(4)]
    async with nvrstore.Recorder(site.config()) as recorder:
        await durable(recorder)
        for thread in burners:
            thread.start()
        try:
            await anyio.sleep(4)
        finally:
            over.set()
            for thread in burners:
                thread.join()
        sent = await anyio.to_thread.run_sync(farm.stop_sending)
        await drained(recorder)
    assert site.lost(sent) == {}
    assert gaps(site) == []


@pytest.mark.anyio
async def test_streams_come_and_go_and_are_tapped(site: Site, farm: Farm) -> None:
    """The face of a stream is the same: added, removed, added again, tapped, triggered, looked up by a hook."""
    site.streams = (0,)
    asked: list[str] = []

    class NotToday(SourceError):
        """An error that a worker has never heard of."""

    class Address(str):
        """An address as the host likes it: a class that no other process can load."""

    def resolve(stream: nvrstore.StreamConfig) -> Endpoint:
        asked.append(stream.id)
        if stream.id == "never":
            raise NotToday("the vault is closed", hint="come back tomorrow")
        if stream.id == "nothing":
            return None  # type: ignore[return-value]  # a hook with a mistake
        return Endpoint(Address(farm.url(1)) if stream.id == "gate" else stream.url)

    async with nvrstore.Recorder(site.config(), resolve=resolve) as recorder:
        gate = await recorder.add_stream(nvrstore.StreamConfig(id="gate", url="rtsp://127.0.0.1:9/nobody"))
        with pytest.raises(UsageError, match="there is a stream 'gate' already"):
            await recorder.add_stream(nvrstore.StreamConfig(id="gate", url=farm.url(1)))
        await until(lambda: gate.durable_until() is not None)
        await until(lambda: {"cam0", "gate"} <= set(asked))
        never = await recorder.add_stream(nvrstore.StreamConfig(id="never", url=farm.url(2)))
        await until(lambda: never.status().gap is not None)
        assert (never.status().reason, never.status().hint) == ("the vault is closed", "come back tomorrow")

        nothing = await recorder.add_stream(nvrstore.StreamConfig(id="nothing", url=farm.url(2)))
        await until(lambda: nothing.status().gap is not None)
        assert "could not be resolved" in nothing.status().reason

        async with gate.tap() as tap:
            seen = [await tap.receive() for _ in range(40)]
        assert seen[0].sample.keyframe
        assert sum(item.dropped_before for item in seen) == 0
        steps = {later.sample.dts - sooner.sample.dts for sooner, later in pairwise(seen)}
        assert len(steps) == 1, "no picture is missing"
        await gate.trigger("door", pre_s=1.0, post_s=1.0)

        await recorder.remove_stream("gate")
        with pytest.raises(NotFoundError):
            recorder.stream("gate")
        gate = await recorder.add_stream(nvrstore.StreamConfig(id="gate", url=farm.url(1)))
        await until(lambda: gate.status().samples > 0 and gate.status().gap is None)
        before = gate.durable_until()
        await until(lambda: gate.durable_until() != before)
    account = site.account()
    assert [gap.cause for gap in gaps(site) if gap.stream == "gate"] == [Cause.POLICY]
    assert not any(report.duplicated for report in account.reports.values())
    assert any(record.kind == RecordKind.MARK for record in account.records)


@pytest.mark.anyio
async def test_a_worker_that_ends_again_and_again_waits_and_says_so(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A camera that kills whoever receives it must not keep the machine busy with starting processes."""
    monkeypatch.setattr(crew, "SHORT_LIVES_MAX", 1)
    site.streams = (0,)
    site.recorder = {"workers": 1}
    async with nvrstore.Recorder(site.config()) as recorder, recorder.events(events.Alarm, events.IngestWorkerLost) as inbox:
        for _ in range(2):
            await until(lambda: seats(recorder)[0]["pid"] is not None)
            os.kill(seats(recorder)[0]["pid"], signal.SIGKILL)
            await receive(inbox, events.IngestWorkerLost)
        alarm = await receive(inbox, events.Alarm)
        assert isinstance(alarm, events.Alarm)
        assert alarm.what == "ingest"
        assert "ingest worker 1 ends again and again" in alarm.sentence
        await until(lambda: recorder.stream("cam0").durable_until() is not None)


FORKED = """
import os, sys, threading
from nvrstore.config import StreamConfig
from nvrstore.config.models import RecorderConfig
from nvrstore.crew.crew import Crew
from nvrstore.replicate.intake import Intake
from nvrstore.targets.pool import Pool
pool = Pool(1 << 20, windows=1, window_bytes=1 << 20)
crew = Crew(1, RecorderConfig(name="nvr", state=sys.argv[1], workers=1), {}, lambda: pool.windows)
crew.add(StreamConfig(id="gate", url="rtsp://127.0.0.1:9/nobody"), Intake())
while not crew.supervisor("gate").status().reason:
    threading.Event().wait(0.05)
print(crew.workers()[0]["pid"], flush=True)
if os.fork() == 0:
    os.read(0, 1)
os._exit(9)
"""


@pytest.mark.parametrize("forked", [False, True], ids=["alone", "a fork keeps the pipe"])
def test_workers_end_when_their_recorder_dies(tmp_path: Path, forked: bool) -> None:
    """Killed without a word, also while a fork of it holds everything open that it had."""
    script = FORKED if forked else FORKED.replace("os.fork()", "1")
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as host:
        assert host.stdout is not None
        worker = int(host.stdout.readline())
        pause = threading.Event()
        for _ in range(100):
            if not running(worker):
                break
            pause.wait(0.1)
        assert not running(worker)
        assert host.stdin is not None
        host.stdin.close()  # the fork, where there is one, may go


def running(pid: int) -> bool:
    """A zombie, which nobody may have asked about yet, runs no more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
