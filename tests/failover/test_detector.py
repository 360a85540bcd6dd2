"""Good, late or lost: on the data plane's evidence alone."""

from dataclasses import replace

import pytest

from nvrstore.failover.detector import DEADLINES, EXCUSED_MAX, P99_FACTOR, Deadlines, Health, Observation, deadlines, judge
from nvrstore.model import Medium

LIMITS = Deadlines(late_s=0.5, lost_s=1.0)
IDLE = Observation(now_s=100.0, running_since_s=None, oldest_wait_s=None, look_since_s=None)
KINDS = ("running_since_s", "oldest_wait_s", "look_since_s")


@pytest.mark.parametrize("medium", Medium)
def test_every_medium_has_deadlines_and_late_comes_first(medium: Medium) -> None:
    """No medium falls through."""
    assert 0 < DEADLINES[medium].late_s < DEADLINES[medium].lost_s


def test_an_idle_target_is_good() -> None:
    """Nothing waits, nothing is late."""
    assert judge(IDLE, LIMITS).health is Health.GOOD


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("age_s", "health"), [(0.5, Health.GOOD), (0.51, Health.LATE), (1.0, Health.LATE), (1.01, Health.LOST)])
def test_each_age_counts_by_itself(kind: str, age_s: float, health: Health) -> None:
    """A call that runs, a batch that waits, a look that does not return: each is enough. Deadlines are exceeded, not met."""
    verdict = judge(replace(IDLE, **{kind: 100.0 - age_s}), LIMITS)
    assert verdict.health is health
    assert bool(verdict.reason) == (health is not Health.GOOD)


def test_a_fresh_look_never_clears_a_stuck_batch() -> None:
    """On a hung disk small requests may still be answered."""
    assert judge(replace(IDLE, oldest_wait_s=98.0, look_since_s=99.99), LIMITS).health is Health.LOST


def test_a_target_is_measured_against_its_own_p99() -> None:
    """A disk that always takes 0.4 s is not dead after 1 s."""
    slow = replace(IDLE, oldest_wait_s=98.0, p99_s=0.4)
    assert judge(slow, LIMITS).health is Health.GOOD
    assert judge(replace(slow, oldest_wait_s=100.0 - P99_FACTOR * 0.4 - 0.1), LIMITS).health is Health.LOST


@pytest.mark.parametrize("kind", KINDS)
def test_the_detectors_own_pause_condemns_nobody(kind: str) -> None:
    """After a pause of the whole process, ages count from its end."""
    seen = replace(IDLE, **{kind: 98.0}, resumed_s=99.9)
    assert judge(seen, LIMITS).health is Health.GOOD


@pytest.mark.parametrize("kind", KINDS)
def test_a_machine_that_stood_still_for_an_hour_condemns_nobody(kind: str) -> None:
    """One pause excuses all of its length; what began behind it, or long before it, is judged as ever."""
    seen = replace(IDLE, now_s=5000.0, resumed_s=4999.9, paused_s=3600.0)
    assert judge(replace(seen, **{kind: 1399.5}), LIMITS).health is Health.GOOD
    assert judge(replace(seen, **{kind: 1399.8 - EXCUSED_MAX * 1.0}), LIMITS).health is Health.LOST
    assert judge(replace(seen, now_s=5001.0, **{kind: 4999.95}), LIMITS).health is Health.LOST


def test_pauses_excuse_a_dead_target_only_so_long() -> None:
    """A detector that is late all the time must still find it."""
    seen = replace(IDLE, running_since_s=100.0 - EXCUSED_MAX * 1.0 - 0.01, resumed_s=99.99)
    assert judge(seen, LIMITS).health is Health.LOST


def test_configured_deadlines_override_the_mediums() -> None:
    """An earlier lost pulls late along with it."""
    assert deadlines(Medium.SSD, lost_s=0.3) == Deadlines(0.3, 0.3)
    assert deadlines(Medium.SSD, late_s=0.1) == Deadlines(0.1, 1.0)
    assert deadlines(Medium.DISK) == DEADLINES[Medium.DISK]
