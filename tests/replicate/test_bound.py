"""The buffer's bound is reached: the one that holds it up pays, and nobody else."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from tests.support.engine import CONFIG, RECORDER, SESSION, Camera, Heard, Rig

from nvrstore.clock import ManualClock
from nvrstore.failover.terms import ClaimKey
from nvrstore.limits import MIB
from nvrstore.model import RecordKind
from nvrstore.replicate.bound import laggard
from nvrstore.replicate.buffer import ReplayBuffer
from nvrstore.replicate.contract import JournalSpec
from nvrstore.replicate.engine import JournalEngine
from nvrstore.replicate.intake import Intake
from nvrstore.replicate.port import Port
from nvrstore.targets.contract import Verb
from nvrstore.targets.memory import MemoryTarget
from nvrstore.targets.pool import Pool

BOUND = 4 * MIB


def filmed(rig: Rig, cameras: int) -> None:
    """Cameras of 100 kB/s record, targets are synced."""
    for number in range(cameras):
        rig.camera(f"camera-{number}", size=5000)
    rig.run(3)
    rig.sync()
    rig.run(0.2)


@pytest.fixture
def rig() -> Iterator[Rig]:
    """Ten cameras, 1 MB a second, two targets and a refuge; the bound is reached after four seconds."""
    made = Rig(refuge=True, pool_bytes=64 * MIB)
    made.buffer.bytes_max = BOUND
    filmed(made, 10)
    yield made
    for target in made.targets.values():
        target.fault = None
        target.release()
    made.close()


def in_refuge(rig: Rig) -> int:
    return sum(len(batch.entries) for _, batch, _, commit in rig.heard.stored if commit is None)


def test_who_leaves() -> None:
    """The one with most on its way; the last one only where another takes over; nobody without a backlog."""
    assert laggard({"a": 1, "b": 2}, elsewhere=False) == "b"
    assert laggard({"a": 0, "b": 0}, elsewhere=True) is None
    assert laggard({"a": 5}, elsewhere=True) == "a"
    assert laggard({"a": 5}, elsewhere=False) is None
    assert laggard({}, elsewhere=True) is None
    assert laggard({"a": 1, "b": 2}, elsewhere=False, spared={"b"}) == "a"
    assert laggard({"a": 0, "b": 2}, elsewhere=False, spared={"b"}) is None


def test_the_survivor_is_not_blamed_for_what_the_laggard_held_up(rig: Rig) -> None:
    """Nothing is freed until the new set is durable on it, which takes it a few rounds; it was taken out in the next one."""
    rig.ports["b"]._lost_s = 10.0  # as on a network file system: the bound is reached before the deadline
    rig.targets["b"].hold()
    rig.targets["a"].hold()
    for number in range(9 * 50):
        rig.run(0.02, step_s=0.02)
        if number % 4 == 3:
            rig.targets["a"].step(8)  # an answer takes up to 80 ms
    assert rig.states() == {"a": "synced", "b": "away"}
    assert [reason for name, _, _, reason in rig.heard.changes if "lags behind" in reason] != []
    rig.targets["a"].release()
    rig.finish()
    assert rig.heard.acked == rig.put
    assert in_refuge(rig) == 0


@pytest.mark.parametrize("step_s", [0.02, 0.05])
def test_two_that_hang_leave_one_after_the_other_and_the_third_loses_nothing(step_s: float) -> None:
    """What waited was dropped in vain while the second one still held the buffer: the third one had room for it."""
    rig = Rig(("a", "b", "c"), copies=3, refuge=True, pool_bytes=64 * MIB)
    rig.buffer.bytes_max = BOUND
    try:
        filmed(rig, 10)
        for name in "ab":
            rig.ports[name]._lost_s = 10.0
            rig.targets[name].hold()
        rig.run(9.0, step_s=step_s)
        assert rig.states()["c"] == "synced"
        for name in "ab":
            rig.targets[name].release()
        rig.finish()
        assert rig.heard.acked == rig.put
    finally:
        for target in rig.targets.values():
            target.release()
        rig.close()


def test_a_full_target_that_nothing_can_be_removed_from_does_not_hold_up_the_other(rig: Rig) -> None:
    """Commits waited for twenty seconds for its next file, and at the bound footage was dropped while the other one was idle."""
    rig.targets["a"].fault = lambda request: errno.ENOSPC if request.verb is Verb.PREPARE else 0
    longest, before, since_s = 0.0, 0, rig.clock.monotonic_s()
    for _ in range(30 * 20):
        rig.run(0.05)
        if len(rig.heard.stored) != before:
            before, since_s = len(rig.heard.stored), rig.clock.monotonic_s()
        longest = max(longest, rig.clock.monotonic_s() - since_s)
    assert rig.states()["b"] == "synced"
    assert longest < 4.5, "the time that retention has, a tick and a round"
    rig.finish()
    assert rig.heard.acked == rig.put


def test_without_anywhere_else_the_last_target_is_kept_and_only_what_is_too_much_goes() -> None:
    """It is slow, and takes what it can; to take it out would lose everything for its hold-down."""
    rig = Rig(("a",), copies=1, pool_bytes=2 * MIB)
    try:
        rig.ports["a"]._lost_s = 1e9
        filmed(rig, 10)
        rig.targets["a"].hold()
        for _ in range(10):
            rig.run(4)
            rig.targets["a"].step(3)
        assert rig.states()["a"] != "away"
        rig.targets["a"].release()
        rig.run(5)
        rig.finish()
        assert 0 < len(rig.heard.acked) < len(rig.put)
    finally:
        rig.targets["a"].release()
        rig.close()


class Two:
    """Two journals over one buffer, as a recorder has them: "dead" on x, "well" on a and b."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self._posted: deque[Callable[[], None]] = deque()
        self.targets = {name: MemoryTarget(name, clock=self.clock) for name in "xab"}
        self.pool = Pool(64 * MIB)
        self.buffer = ReplayBuffer(self.pool, bytes_max=64 * MIB)
        self.buffer.bytes_max = BOUND
        journals = ["dead", "well"]
        self.ports = {
            name: Port(t, self.pool, self.clock, target_id=t.id, look_id=RECORDER, journals=journals, post=self._posted.append)
            for name, t in self.targets.items()
        }
        self.rigs = {name: Journal(self, name, places) for name, places in (("dead", "x"), ("well", "ab"))}

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.05)):
            self.clock.advance(0.05)
            for journal in self.rigs.values():
                for camera in journal.cameras:
                    camera.film(journal)  # type: ignore[arg-type]
            while self._posted:
                self._posted.popleft()()
            for port in self.ports.values():
                port.pump()
                port.tick()
            for journal in self.rigs.values():
                journal.engine.step()
            for port in self.ports.values():
                port.pump()


class Journal:
    """What a camera wants of a rig."""

    worker = None

    def __init__(self, two: Two, name: str, targets: str) -> None:
        self.clock, self.intake, self.heard = two.clock, Intake(), Heard()
        claim = ClaimKey(1, RECORDER, SESSION)
        spec = JournalSpec(name, "cd" * 16, "nvr-1", SESSION, claim, tuple(targets), len(targets), frozenset(targets))
        ports = {target: two.ports[target] for target in targets}
        self.engine = JournalEngine(
            replace(spec, volume_bytes=4 * MIB), ports, two.buffer, self.intake, two.clock, self.heard, two._posted.append
        )
        self.cameras = [Camera(f"{name}-{n}", 20, 5000, CONFIG, two.clock.monotonic_s()) for n in range(5)]
        for camera in self.cameras:
            self.intake.declare(camera.track, camera.track.stream, CONFIG)


def test_a_journal_whose_targets_are_dead_costs_another_one_nothing() -> None:
    """They share the buffer. It is the one which fills it that has to give way."""
    two = Two()
    try:
        two.run(4)
        for name in "xab":
            two.rigs["dead" if name == "x" else "well"].engine.synced(name)
        two.ports["x"]._lost_s = 1e9
        two.targets["x"].hold()
        two.run(25)
        well, dead = two.rigs["well"], two.rigs["dead"]
        assert {str(state) for state in well.engine.states().values()} == {"synced"}
        put = {identity for camera in well.cameras for identity in camera.put}
        two.run(1.5)
        assert put <= well.heard.acked
        assert any(record.kind is RecordKind.GAP for record in dead.engine.lanes[0].waiting.records)
    finally:
        two.targets["x"].release()
        for port in two.ports.values():
            port.close(0.0)
        for target in two.targets.values():
            target.close(0.0)
        two.pool.close()


def test_a_recorder_that_stops_while_the_oldest_goes_says_how_far_it_went(rig: Rig) -> None:
    """No later frame of a camera ends its gap then; it was left open, as if everything since were missing."""
    for target in rig.targets.values():
        target.fault = lambda request: errno.EIO if request.verb in (Verb.APPEND, Verb.OPEN, Verb.LOOK) else 0
    rig.run(20)
    for camera in rig._cameras.values():
        camera.flush(rig)
    rig.run(5, record=False)
    for target in rig.targets.values():
        target.fault = None
    rig.run(3, record=False)
    rig.finish(60)
    lost = rig.put - rig.heard.acked
    gaps = {record.id: record.body for record in rig.heard.records if record.kind is RecordKind.GAP}
    assert lost
    assert {body["stream"] for body in gaps.values()} == {stream for stream, _, _ in lost}
    assert all(body["end_ns"] is not None for body in gaps.values())
