"""Who shall be in the set, and who is its primary. Pure.

The configured order is the order of preference. The first `copies` healthy targets are wanted; a member that is not
wanted (a recruited spare) goes only when all wanted ones are synced: the number of copies never sinks for order's sake.
With failback = "manual" nobody gives up the primary's role, or leaves with it, until the operator says so (`when_told`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

from nvrstore.failover.machine import MEMBER, State

_HEALTHY: Final = frozenset({State.READY}) | MEMBER

#: What a primary may be, the best first: read first and kept in full, it lacks as little as anybody does.
RANKS: Final = (State.SYNCED, State.LIVE, State.JOINING)
if set(RANKS) != MEMBER:
    raise AssertionError("every member may become the primary")


class Told(StrEnum):
    """What comes of the operator's word that a target is back."""

    RETURNS = "returns"  # it was drained: it joins again, gets what it missed, then its role
    PRIMARY = "primary"  # it is in step, and preferred to the present primary: the role goes to it
    NOTHING = "nothing"  # it has the role that it can have
    TOO_EARLY = "too early"  # it is away or still being resynced: it goes on with that by itself


def next_change(order: Sequence[str], states: Mapping[str, State], copies: int, *, kept: str | None = None) -> tuple[list[str], list[str]]:
    """Names to recruit and names to release now.

    `order`: the journal's targets as configured. Growing is one step, releasing another: never both in one answer.
    `kept` is not released: a primary that keeps its role until told.
    """
    healthy = [name for name in order if states[name] in _HEALTHY]
    wanted = healthy[:copies]
    recruit = [name for name in wanted if states[name] is State.READY]
    if recruit:
        return recruit, []
    if all(states[name] is State.SYNCED for name in wanted):
        return [], [name for name in healthy[copies:] if states[name] in MEMBER and name != kept]
    return [], []


def choose_primary(order: Sequence[str], states: Mapping[str, State], primary: str | None, *, failback: bool) -> str | None:
    """The member that is kept in full and read first.

    A synced member always comes before one that is not. The present primary stays among equals, unless `failback`
    is on and a member earlier in `order` is synced too.
    """
    for rank in RANKS:
        candidates = [name for name in order if states[name] is rank]
        if candidates:
            return primary if primary in candidates and not (failback and rank is State.SYNCED) else candidates[0]
    return None


def when_told(order: Sequence[str], states: Mapping[str, State], primary: str | None, name: str) -> Told:
    """What becomes of `name` when the operator says that it is back."""
    state = states[name]
    if state is State.DRAINED:
        return Told.RETURNS
    if state is State.SYNCED:
        preferred = primary is not None and order.index(name) < order.index(primary)
        return Told.PRIMARY if preferred else Told.NOTHING
    return Told.NOTHING if state is State.READY or name == primary else Told.TOO_EARLY
