"""Is a target good, late, or lost? Pure: what was observed in, a verdict with its reason out.

Looks at the data plane: how long the running call runs, how old the oldest unacknowledged batch is, which errors came
back, when the last look succeeded; never at a ping or at free space (on a hung disk both answer).
The detector knows its own lateness: after a pause in which nobody evaluated, ages count from its end, so that a stopped
machine or a busy interpreter condemns nobody. One pause excuses all of its length, many short ones together at most
`EXCUSED_MAX` times the deadline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from nvrstore.model import Medium


class Health(Enum):
    """A verdict, from best to worst."""

    GOOD = "good"
    LATE = "late"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Ages in seconds from which a call is late, and from which its target is lost."""

    late_s: float
    lost_s: float


#: By class of medium: a spinning disk may need seconds to spin up, a network file system retries for longer.
DEADLINES: Final[Mapping[Medium, Deadlines]] = {
    Medium.SSD: Deadlines(0.5, 1.0),
    Medium.NODE: Deadlines(0.5, 1.0),
    Medium.MEMORY: Deadlines(0.5, 1.0),
    Medium.DISK: Deadlines(2.0, 5.0),
    Medium.NETWORK: Deadlines(3.0, 10.0),
}
P99_FACTOR: Final = 8.0  # never condemn a target for less than this times its own usual p99
EXCUSED_MAX: Final = 3.0  # all pauses but the last excuse a target only so long: a detector that is always late must find a dead one


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known about one target at `now_s` (monotonic). Times are None where there is nothing to time."""

    now_s: float
    running_since_s: float | None  # the appender's running call
    oldest_wait_s: float | None  # when the oldest unacknowledged batch was submitted
    look_since_s: float | None  # when the look that runs now began
    p99_s: float = 0.0  # the target's own usual commit latency
    resumed_s: float = 0.0  # when the detector last came back from a pause longer than usual; 0: never
    paused_s: float = 0.0  # how long that pause was


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to think of a target, and why."""

    health: Health
    reason: str = ""


def deadlines(medium: Medium, *, late_s: float | None = None, lost_s: float | None = None) -> Deadlines:
    """The medium's deadlines, with what the configuration overrides."""
    usual = DEADLINES[medium]
    lost = usual.lost_s if lost_s is None else lost_s
    return Deadlines(min(usual.late_s, lost) if late_s is None else late_s, lost)


def judge(seen: Observation, limits: Deadlines) -> Verdict:
    """The verdict on one target. A deadline is passed when it is exceeded, not when it is met."""
    floor_s = P99_FACTOR * seen.p99_s
    late_s, lost_s = max(limits.late_s, floor_s), max(limits.lost_s, floor_s)
    worst = Verdict(Health.GOOD)
    for what, since_s in (("a call", seen.running_since_s), ("a batch", seen.oldest_wait_s), ("a look", seen.look_since_s)):
        if since_s is None:
            continue
        age_s = seen.now_s - since_s
        held_s = seen.now_s - max(since_s, seen.resumed_s)
        asleep_s = seen.paused_s if since_s < seen.resumed_s else 0.0  # a machine that stood still for a minute
        if held_s > lost_s or age_s - asleep_s > EXCUSED_MAX * lost_s:
            return Verdict(Health.LOST, f"{what} has been waiting for {age_s:.1f} s")
        if held_s > late_s:
            worst = Verdict(Health.LATE, f"{what} has been waiting for {age_s:.1f} s")
    return worst
