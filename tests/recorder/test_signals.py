"""Signals to `nvrstore record`: SIGTERM ends it in order whatever hangs, SIGHUP reads the configuration again, SIGSTOP accuses nobody."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import crash
from tests.support.crash import Footage, Watch
from tests.support.recorder import JOURNAL, Process, Site, small_farm

from nvrstore.farm import Farm
from nvrstore.farm.oddities import Act

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

STOP_S = 5.0  # in which a recorder that is told to end has ended, whatever hangs


@pytest.fixture
def farm() -> Iterator[Farm]:
    with small_farm(2) as running:
        yield running


@pytest.fixture
def site(tmp_path: Path, farm: Farm) -> Site:
    return Site(tmp_path, farm)


@pytest.fixture
def process(site: Site) -> Iterator[Process]:
    started = Process(site)
    try:
        yield started
    finally:
        started.end(signal.SIGKILL)


def stop(process: Process) -> None:
    """SIGTERM, and what is promised of it: exit status 0, in time, and no worker left."""
    workers = process.workers()
    start_s = time.monotonic()
    assert process.end(signal.SIGTERM) == 0, process.errors
    assert time.monotonic() - start_s < STOP_S
    assert [pid for pid in workers if crash.alive(pid)] == []


def leftovers(site: Site) -> list[Path]:
    """Files that were prepared for volumes that never came."""
    return [path for target in site.targets for path in (site.folder / target / JOURNAL / ".next").glob("*")]


def test_sigterm_commits_everything_that_arrived_and_closes_every_volume(site: Site, farm: Farm, process: Process) -> None:
    """The cameras go on sending: what they sent before the signal is stored, twice, and nothing has to be recovered."""
    with Watch(site, process) as watch:
        watch.wait_for(lambda status: crash.synced(status) and crash.recording(status))
        sent = [farm.sent(i) for i in range(2)]
        stop(process)
    assert site.lost(sent) == {}
    crash.check(site, [watch.durable_ns])
    assert leftovers(site) == []
    assert not (site.state / "control.sock").exists()


@pytest.mark.parametrize("delay_s", [0.0, 0.1, 0.3, 0.6])
def test_sigterm_while_it_starts_ends_it_in_order(site: Site, process: Process, delay_s: float) -> None:
    """Systemd may change its mind. What was begun is ended, and nothing is left to recover."""
    pause = threading.Event()
    while not (site.state / "lock").exists():
        assert process.process.poll() is None, process.errors
        pause.wait(0.005)
    pause.wait(delay_s)
    stop(process)
    crash.check(site, [])
    assert leftovers(site) == []


def test_sigterm_while_it_waits_for_another_recorder_to_stand_still_ends_it_at_once(site: Site, tmp_path: Path) -> None:
    """A takeover is watched for a minute; whoever thinks better of it does not wait for that."""
    process = Process(site)
    try:
        process.wait_recording(2)
    finally:
        process.end(signal.SIGKILL)
    moved = tmp_path / "other"
    site.file.write_text(site.file.read_text().replace(str(site.state), str(moved)))
    process = Process(site)
    try:
        process.wait_for_error("claim.watched")
        stop(process)
    finally:
        process.end(signal.SIGKILL)


def test_signals_that_come_while_it_stops_change_nothing(site: Site, farm: Farm, process: Process) -> None:
    """Somebody who presses Ctrl-C twice loses nothing by it."""
    with Watch(site, process) as watch:
        watch.wait_for(crash.recording)
        sent = [farm.sent(i) for i in range(2)]
        pause = threading.Event()
        process.process.send_signal(signal.SIGINT)
        while (site.state / "control.sock").exists():  # it goes when all is committed, and before the last things are closed
            process.process.send_signal(signal.SIGTERM)
            pause.wait(0.01)
    assert process.end() == 0, process.errors
    assert site.lost(sent) == {}
    crash.check(site, [watch.durable_ns])


def test_sigterm_while_a_worker_hangs_ends_in_time_with_everything_on_the_other_target(site: Site, farm: Farm, process: Process) -> None:
    """SIGSTOP stands for a call that hangs. The next recorder makes the copies equal."""
    with Watch(site, process) as watch:
        watch.wait_for(lambda status: crash.synced(status) and crash.recording(status))
        sent = [farm.sent(i) for i in range(2)]
        for pid in process.workers():
            if crash.worker(pid)[1] == str(site.folder / "a"):
                os.kill(pid, signal.SIGSTOP)
        stop(process)
    assert site.lost(sent, site.account("b")) == {}
    crash.live_on(site, farm, [watch.durable_ns])


@pytest.mark.parametrize("deed", ["mute", "hang"])
def test_sigterm_while_a_camera_hangs_ends_in_time(site: Site, farm: Farm, process: Process, deed: str) -> None:
    """Connected and silent, or not even answering: its thread waits in a socket. The other camera loses nothing by it."""
    with Watch(site, process) as watch:
        watch.wait_for(lambda status: crash.synced(status) and crash.recording(status))
        farm.act(Act(deed, streams=(1,)))  # type: ignore[arg-type]
        sent = [farm.sent(0)]
        stop(process)
    assert site.lost(sent) == {}
    crash.check(site, [watch.durable_ns])


def test_sighup_follows_the_configuration_and_a_broken_one_is_refused_with_a_sentence(site: Site, farm: Farm) -> None:
    """Streams come and go while the others go on; a mistake in the file costs nothing but a sentence."""
    site.streams = [0]
    site.write()
    process = Process(site)
    try:
        with Watch(site, process) as watch:
            watch.wait_for(crash.recording)
            site.file.write_text("format = 1\n[recorder]\nname = 7\n")
            process.process.send_signal(signal.SIGHUP)
            process.wait_for_error("the configuration was not applied")
            site.write()
            text = site.file.read_text()
            moved = text.replace("[[stream]]", '[[journal]]\nname = "second"\ntargets = ["a", "b"]\n[[stream]]\njournal = "second"', 1)
            site.file.write_text(moved)
            process.process.send_signal(signal.SIGHUP)
            process.wait_for_error("before it is started again; nothing was changed")
            site.streams = [0, 1]
            site.write()
            process.process.send_signal(signal.SIGHUP)
            watch.wait_for(lambda status: len(status["streams"]) == 2 and crash.recording(status))
            site.streams = [1]
            site.write()
            process.process.send_signal(signal.SIGHUP)
            watch.wait_for(lambda status: [stream["stream"] for stream in status["streams"]] == ["cam1"])
            sent = farm.sent(1)
            stop(process)
    finally:
        process.end(signal.SIGKILL)
    assert "recorder.name" in process.errors
    footage = Footage.of(site.folder / "a")
    assert crash.disorder(footage) == []
    assert set(footage.numbers("cam1")) >= {n for piece in sent.ranges for n in range(piece.first, piece.last + 1)}
    assert footage.numbers("cam0")


def test_a_recorder_that_was_stopped_for_seconds_accuses_no_target_and_goes_on(tmp_path: Path, farm: Farm) -> None:
    """A paused virtual machine, a debugger: afterwards its own lateness is not the targets', which had work under way."""
    site = Site(tmp_path, farm, journal={"fragment_s": 0.2})
    process = Process(site)
    pause = threading.Event()
    try:
        with Watch(site, process) as watch:
            watch.wait_for(lambda status: crash.synced(status) and crash.recording(status))
            epoch = watch.status["journals"][0]["epoch"]
            everybody = [*process.workers(), process.pid]  # workers first: a batch is under way when the recorder stops
            for pid in everybody:
                os.kill(pid, signal.SIGSTOP)
                pause.wait(0.4 if pid == everybody[-2] else 0.0)
            pause.wait(2.6)
            for pid in reversed(everybody):
                os.kill(pid, signal.SIGCONT)
                pause.wait(0.3 if pid == everybody[-1] else 0.0)
            resumed_ns = crash.now_ns()
            watch.wait_for(lambda status: crash.recording_until(status, resumed_ns + 1_000_000_000))
            status = watch.wait_for(crash.synced)
            sent = farm.stop_sending()
            crash.drained(watch)
            stop(process)
    finally:
        process.end(signal.SIGKILL)
    assert [event for event in process.events if event["event"] == "TargetLost"] == []
    assert status["journals"][0]["epoch"] == epoch, "nobody was taken out of the set"
    assert site.lost(sent) == {}, "the cameras' packets waited in the sockets"
    crash.check(site, [watch.durable_ns])
