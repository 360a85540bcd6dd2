"""What a drill makes of what a recorder told: times, and false alarms. From values alone."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from nvrstore.drills.live import lost_as_well
from nvrstore.drills.losses import GRACE_S, explained, losses, worst
from nvrstore.drills.recording import Heard
from nvrstore.drills.report import Moment, Sample
from nvrstore.drills.scenarios import SCENARIOS
from nvrstore.drills.witness import BACK_S, STALL_S, Witness

BEGIN_S = 1000.0


def lost(t_s: float, target: str, since_failure_s: float | None = None) -> Heard:
    return Heard(BEGIN_S + t_s, {"event": "TargetLost", "target": target, "reason": "EIO", "since_failure_s": since_failure_s})


def failed_over(t_s: float) -> Heard:
    return Heard(BEGIN_S + t_s, {"event": "FailedOver", "target": "a", "ttr_s": 0.001})


def done(t_s: float, kind: str, target: str = "") -> Moment:
    return Moment(t_s, kind, "", target)


def test_times_are_from_the_fault_to_the_declaration_and_on_to_the_next_commit() -> None:
    """In real time, whatever the recorder itself says; recovery is both together."""
    (loss,) = losses([lost(2.5, "a", 0.2), failed_over(4.0)], [done(2.0, "fault", "a")], BEGIN_S)
    assert (loss.ttd_s, loss.ttr_s, loss.recovery_s, loss.since_failure_s) == (0.5, 1.5, 2.0, 0.2)


def test_each_loss_has_the_fault_before_it_and_the_commit_behind_it() -> None:
    """Three faults of a flapping target are three losses; where two targets go, both wait for the same commit."""
    moments = [done(1.0, "fault", "a"), done(2.0, "healed", "a"), done(5.0, "fault", "a"), done(9.0, "fault")]
    heard = [lost(1.25, "a"), failed_over(1.5), lost(5.5, "a"), failed_over(6.0), lost(9.25, "a"), lost(9.5, "b"), failed_over(13.0)]
    found = losses(heard, moments, BEGIN_S)
    assert [loss.ttd_s for loss in found] == [0.25, 0.5, 0.25, 0.5]
    assert [loss.ttr_s for loss in found] == [0.25, 0.5, 3.75, 3.5]
    assert worst(loss.recovery_s for loss in found) == 4.0
    (never,) = losses([lost(9.5, "a")], moments, BEGIN_S)
    assert (never.ttr_s, never.recovery_s) == (None, None)


@pytest.mark.parametrize(
    ("at_s", "target", "why"),
    [
        (1.9, "a", "before the fault"),
        (2.1, "b", "nothing was done to it"),
        (3.0 + GRACE_S + 0.1, "a", "mended long ago"),
    ],
)
def test_a_loss_that_nothing_explains_is_a_false_alarm(at_s: float, target: str, why: str) -> None:
    """A target is lost because of what was done to it, and while it is broken, or it should not have been."""
    moments = [done(2.0, "fault", "a"), done(3.0, "healed", "a")]
    (loss,) = losses([lost(at_s, target)], moments, BEGIN_S)
    assert not explained(loss, {"a"}, moments, BEGIN_S), why
    for good_s in (2.1, 3.1):
        (loss,) = losses([lost(good_s, "a")], moments, BEGIN_S)
        assert explained(loss, {"a"}, moments, BEGIN_S)
    moments.append(done(at_s - 0.1, "fault"))  # broken again, with all others
    (loss,) = losses([lost(at_s, target)], moments, BEGIN_S)
    assert explained(loss, {"a", "b"}, moments, BEGIN_S)


def test_scenarios_that_break_no_target_may_lose_none() -> None:
    """Late is not lost, damage is no loss, a clock is nobody's fault; a spare is never lost."""
    for name in ("nothing", "slow", "corrupt", "clock-step"):
        assert not SCENARIOS[name].loses + SCENARIOS[name].may_lose
    assert all("c" not in scenario.loses + scenario.may_lose for scenario in SCENARIOS.values())


def test_a_live_drill_during_which_another_target_is_lost_says_so() -> None:
    """Only the chosen one may be lost; what was away before the drill is none of its business."""
    first = Sample(0.0, 0, 0, None, (("a", "synced"), ("b", "synced"), ("c", "away")))
    broken = Sample(1.0, 0, 0, None, (("a", "away"), ("b", "synced"), ("c", "away")))
    assert lost_as_well([first, broken], "a") == []
    (problem,) = lost_as_well([first, broken, Sample(2.0, 0, 0, None, (("a", "away"), ("b", "away"), ("c", "away")))], "a")
    assert "nothing was done to b" in problem
    assert lost_as_well([], "a") == []


class SteppedClock:
    """Every reading is so much later than the one before."""

    def __init__(self, step_s: float) -> None:
        self.now_s, self._step_s = 0.0, step_s

    def monotonic_s(self) -> float:
        self.now_s += self._step_s
        return self.now_s

    def utc_ns(self) -> int:
        return 0


@pytest.mark.parametrize(("took_s", "stalled"), [(STALL_S / 2, False), (STALL_S * 2, True)])
def test_a_witness_tells_a_disk_that_took_too_long_from_one_that_did_not(
    took_s: float, stalled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own writes; it leaves no file behind. What took long long ago excuses nobody now."""
    monkeypatch.setattr("nvrstore.drills.witness.PERIOD_S", 0.001)
    clock = SteppedClock(took_s)
    witness = Witness({"b": tmp_path}, clock)
    while clock.now_s < 8 * took_s:
        threading.Event().wait(0.001)
    assert bool(witness.stalled_s("b", 4 * took_s)) is stalled
    witness.close()
    assert bool(witness.stalled_s("b", 4 * took_s)) is stalled
    assert not witness.stalled_s("b", clock.now_s + took_s + BACK_S)
    assert not witness.stalled_s("a", 4 * took_s)
    assert list(tmp_path.iterdir()) == []
