"""The engine's volumes, lanes and set, over targets in memory and on a clock that the test moves."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.support.engine import RECORDER, SESSION, Rig, failing, started, volumes

from nvrstore.failover.terms import ClaimKey
from nvrstore.limits import LANE_TRACKS_MAX, MIB
from nvrstore.model import RecordKind
from nvrstore.targets.contract import Request, Verb

pytestmark = pytest.mark.usefixtures("laid_out")


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


# --- volumes and lanes


def test_a_camera_that_joins_cuts_the_volume_once_and_a_crowd_cuts_it_not_much_more_often(rig: Rig) -> None:
    """At most one such cut in two seconds."""
    started(rig, "gate")
    before = len({path for path, *_ in rig.heard.stored})
    for i in range(30):
        rig.camera(f"late-{i}")
        rig.run(0.1)
    rig.run(4)
    assert len({path for path, *_ in rig.heard.stored}) - before <= 3
    rig.finish()
    assert rig.heard.acked == rig.put


def test_a_change_of_resolution_cuts_and_old_and_new_samples_keep_their_order(rig: Rig) -> None:
    """The old fragments go into a volume whose `moov` describes them."""
    camera = rig.camera("gate")
    rig.run(5)
    camera.reconfigure(rig, width=640, height=480)
    rig.run(5)
    rig.finish()
    assert rig.heard.acked == rig.put
    assert len({path for path, *_ in rig.heard.stored}) >= 2


def test_volumes_are_cut_by_size(rig: Rig) -> None:
    """None grows beyond what was preallocated for it."""
    rig = Rig(volume_bytes=MIB)
    try:
        started(rig, seconds=40)
        rig.finish()
        assert len(rig.heard.closed) >= 3
        assert all(length <= MIB + 256 * 1024 for _, length, _ in rig.heard.closed)
        assert volumes(rig, "a") == volumes(rig, "b")
    finally:
        rig.close()


def test_more_cameras_than_a_lane_takes_get_another_lane() -> None:
    """ffmpeg refuses files with more than 1,000 streams."""
    rig = Rig()
    try:
        for i in range(LANE_TRACKS_MAX + 5):
            rig.camera(f"cam-{i}", fps=2, size=100)
        rig.run(3)
        assert len(rig.engine.lanes) == 2
        rig.finish()
        assert rig.heard.acked == rig.put
    finally:
        rig.close()


def test_a_full_target_calls_retention_and_is_not_lost_while_that_helps() -> None:
    """ENOSPC while preparing is not a failure of the target."""
    rig = Rig()
    try:
        started(rig)
        rig.targets["a"].fault = failing(Verb.PREPARE, code=errno.ENOSPC)
        for lane in rig.engine.lanes:
            lane.cut()
        rig.run(2)
        for lane in rig.engine.lanes:
            lane.cut()
        rig.run(2.5)
        assert "a" in rig.heard.spaces
        assert rig.states()["a"] == "synced"
        rig.targets["a"].fault = None
        rig.run(2)
        rig.finish()
        assert rig.heard.acked == rig.put
    finally:
        rig.close()


def test_no_space_in_the_middle_of_a_volume_abandons_only_that_volume(rig: Rig) -> None:
    """The target stays, lacks something, and says so in the ledger."""
    started(rig)
    failed: list[Request] = []

    def once(request: Request) -> int:
        if request.verb is Verb.APPEND and not failed:
            failed.append(request)
            return errno.ENOSPC
        return 0

    rig.targets["a"].fault = once
    rig.run(5)
    assert rig.states()["a"] == "live"
    assert rig.heard.resyncs[-1] == "a"
    rig.finish()
    assert rig.heard.acked == rig.put
    assert RecordKind.VOLUME_ABANDONED in [record.kind for record in rig.heard.records]


def test_a_clock_step_cuts_the_volume_and_is_in_the_ledger(rig: Rig) -> None:
    """Track times count from the volume's origin: a new clock needs a new one."""
    started(rig)
    rig.clock.step(-3600)
    rig.engine.clock_stepped(-3600)
    rig.run(3)
    assert RecordKind.CLOCK_STEP in [record.kind for record in rig.heard.records]
    rig.finish()
    assert rig.heard.acked == rig.put


# --- the set


def test_a_spare_is_recruited_and_released_when_the_lost_target_is_synced_again() -> None:
    """N+1: the number of copies is back at once, the order later."""
    rig = Rig(("a", "b", "s"))
    try:
        started(rig)
        assert [m.target for m in rig.engine.members()] == ["a", "b"]
        rig.targets["a"].fault = failing(Verb.APPEND, Verb.LOOK)
        rig.run(3)
        assert {m.target for m in rig.engine.members()} == {"b", "s"}
        rig.sync("s")
        rig.targets["a"].fault = None
        rig.run(40)
        assert {m.target for m in rig.engine.members()} == {"a", "b", "s"}
        rig.sync("a")
        rig.run(2)
        assert [m.target for m in rig.engine.members()] == ["a", "b"]
        rig.finish()
        assert rig.heard.acked == rig.put
    finally:
        rig.close()


def test_a_flapping_target_is_held_down_longer_each_time(rig: Rig) -> None:
    """At most one switch per hold-down, and that doubles."""
    started(rig)
    waits = []
    for _ in range(3):
        rig.targets["a"].fault = failing(Verb.APPEND)
        rig.run(3)
        rig.targets["a"].fault = None
        start_s = rig.clock.monotonic_s()
        while rig.states()["a"] not in ("live", "synced"):
            rig.run(0.5)
        waits.append(rig.clock.monotonic_s() - start_s)
    assert waits[1] > 1.5 * waits[0]
    assert waits[2] > 1.5 * waits[1]


def test_set_numbers_only_rise_and_every_header_is_durable_before_its_first_commit(rig: Rig) -> None:
    """Epochs compare as (term, set)."""
    started(rig)
    rig.targets["a"].fault = failing(Verb.APPEND)
    rig.run(3)
    rig.targets["a"].fault = None
    rig.run(40)
    numbers = [epoch.set for epoch, _ in rig.heard.sets]
    assert numbers == sorted(set(numbers))
    committed = [commit.epoch for *_, commit in rig.heard.stored if commit is not None]
    assert committed == sorted(committed)


def test_a_higher_term_of_another_writer_fences_that_target_and_recording_goes_on_elsewhere(rig: Rig) -> None:
    """A superseded writer neither appends nor closes there."""
    started(rig)
    files = rig.targets["a"].files
    files.mkdirs("main/epochs")
    files.create(f"main/epochs/t0000000002-{'99' * 16}-{7:016x}.claim", 0, synced=True)
    rig.run(4)
    assert rig.states()["a"] == "away"
    assert "fenced" in [reason for target, _, after, reason in rig.heard.changes if target == "a"][-1]
    size = {path: len(content) for path, content in volumes(rig, "a").items()}
    rig.run(40)
    assert {path: len(content) for path, content in volumes(rig, "a").items()} == size
    assert rig.states()["a"] == "away"
    rig.finish()
    assert rig.heard.acked == rig.put


def test_a_claim_of_an_own_earlier_session_is_outbid_and_nothing_is_lost(rig: Rig) -> None:
    """Its target was away when the term was chosen: the numbers of sets begin anew under the higher term."""
    started(rig)
    rig.targets["a"].fault = failing(Verb.APPEND)
    rig.run(3)
    rig.targets["a"].fault = None
    rig.run(40)
    rig.sync("a")
    rig.targets["b"].hold()
    rig.run(0.6)
    claim = ClaimKey(7, RECORDER, SESSION)
    rig.engine.reclaimed(claim, frozenset({1}))
    for name in ("a", "b"):
        rig.engine.claimed(name)
    rig.targets["b"].release()
    rig.run(3)
    assert rig.engine.epoch.term == 7
    rig.finish()
    assert rig.heard.acked == rig.put


def test_a_target_without_a_fresh_look_is_lost_and_does_not_hold_up_the_other(rig: Rig) -> None:
    """Its keeper dies at every look: nothing written there may be acknowledged."""
    started(rig)
    keeper = rig.targets["a"].keeper
    before = len(rig.heard.acked)
    for _ in range(100):
        rig.run(0.1)
        keeper.restart()
        rig.ports["a"].look_ok_s = min(rig.ports["a"].look_ok_s, rig.clock.monotonic_s() - 6.0)
    assert len(rig.heard.acked) > before
    assert "no look" in next(reason for target, _, after, reason in rig.heard.changes if target == "a" and str(after) == "away")
    rig.finish()
    assert rig.heard.acked == rig.put


def test_a_drained_target_leaves_and_returns_only_when_told(rig: Rig) -> None:
    """Maintenance."""
    started(rig)
    rig.engine.drain("a")
    rig.run(60)
    assert rig.states()["a"] == "drained"
    rig.engine.take_back("a")
    rig.run(40)
    assert rig.states()["a"] == "live"
    rig.finish()
    assert rig.heard.acked == rig.put


@pytest.mark.parametrize("seed", range(25))
def test_random_faults_lose_nothing_that_was_acknowledged_and_nothing_while_a_member_lives(seed: int) -> None:
    """A small simulation: faults come and go at random on one target at a time."""
    rng = random.Random(seed)
    rig = Rig(("a", "b", "s"), volume_bytes=MIB, change=lambda spec: replace(spec, hold_down_s=1.0))
    try:
        started(rig)
        for _ in range(12):
            victim = rng.choice(["a", "b", "s"])
            target = rig.targets[victim]
            kind = rng.choice(["append", "look", "hold", "kill", "prepare", "close"])
            match kind:
                case "hold":
                    target.hold()
                case "kill":
                    target.kill_workers()
                case "append":
                    target.fault = failing(Verb.APPEND, code=rng.choice([errno.EIO, errno.EROFS, errno.ENOSPC]))
                case "look":
                    target.fault = failing(Verb.LOOK)
                case "prepare":
                    target.fault = failing(Verb.PREPARE, code=rng.choice([errno.EIO, errno.ENOSPC]))
                case _:
                    target.fault = failing(Verb.CLOSE, Verb.TRUNCATE)
            rig.run(rng.uniform(0.2, 4.0))
            target.fault = None
            if target.held:
                target.release()
            rig.run(rng.uniform(0.2, 5.0))
            for name, state in rig.states().items():
                if state == "live" and rng.random() < 0.5:
                    rig.sync(name)
        rig.run(8)
        rig.finish()
        assert rig.heard.acked == rig.put, f"seed {seed}"
        assert rig.buffer.waiting_bytes == 0
        rig.run(2, record=False)
        assert rig.pool.taken_bytes == 0
    finally:
        rig.close()
