"""From what a recorder told to figures of its losses. Pure: what was heard and what was done in, times and false alarms out.

    fault ----- TTD -----> TargetLost ----- TTR -----> FailedOver: the first commit under the set without it
    `------------------- time to recovery: what an RTO is held against ------------------'

All of it is real time, by the moments at which events were heard; nothing stops the clock, not even that no footage waited. A loss is
explained where something was done to its target that may cost it, before, and was not taken back long ago. Any other is a false alarm.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from nvrstore.drills.recording import Heard
from nvrstore.drills.report import Moment

GRACE_S: Final = 2.0  # what was broken may be noticed so long after it was mended: a deadline of the class ssd, and as much again


@dataclass(frozen=True, slots=True)
class Loss:
    """A target was declared lost. Moments are monotonic seconds."""

    target: str
    lost_s: float
    reason: str
    fault_s: float | None  # the last one that hit it before; None: none did
    since_failure_s: float | None  # from the first failed call to the declaration; None: no call failed
    commit_s: float | None  # the first commit after it, under the set without it; None: none came

    @property
    def ttd_s(self) -> float | None:
        """From the fault to the declaration."""
        return None if self.fault_s is None else self.lost_s - self.fault_s

    @property
    def ttr_s(self) -> float | None:
        """From the declaration to the next commit."""
        return None if self.commit_s is None else self.commit_s - self.lost_s

    @property
    def recovery_s(self) -> float | None:
        """From the fault to that commit."""
        return None if self.fault_s is None or self.commit_s is None else self.commit_s - self.fault_s


def losses(heard: Sequence[Heard], moments: Sequence[Moment], begin_s: float) -> list[Loss]:
    """Every loss that was told of, in order. `moments`: what was done, in seconds since `begin_s` (monotonic)."""
    commits = [one.t_s for one in heard if one.name == "FailedOver"]
    found = []
    for one in heard:
        if one.name == "TargetLost":
            target, since_s = str(one.event.get("target", "")), one.event.get("since_failure_s")
            faults = _moments("fault", target, moments, begin_s)
            found.append(
                Loss(
                    target,
                    one.t_s,
                    str(one.event.get("reason", "")),
                    fault_s=max((fault_s for fault_s in faults if fault_s <= one.t_s), default=None),
                    since_failure_s=None if since_s is None else float(since_s),
                    commit_s=min((commit_s for commit_s in commits if commit_s >= one.t_s), default=None),
                )
            )
    return found


def explained(loss: Loss, may_lose: Collection[str], moments: Sequence[Moment], begin_s: float) -> bool:
    """Whether something was done to the target that may cost it."""
    if loss.target not in may_lose or loss.fault_s is None:
        return False
    mended = [t_s for t_s in _moments("healed", loss.target, moments, begin_s) if t_s >= loss.fault_s]
    return not mended or loss.lost_s <= min(mended) + GRACE_S


def worst(values: Iterable[float | None]) -> float | None:
    """The largest of those that are known."""
    return max((value for value in values if value is not None), default=None)


def _moments(kind: str, target: str, moments: Sequence[Moment], begin_s: float) -> list[float]:
    """When something of that kind was done to `target`, alone or with all others (monotonic)."""
    return [moment.t_s + begin_s for moment in moments if moment.kind == kind and moment.target in ("", target)]
