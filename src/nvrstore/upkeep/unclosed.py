"""Volumes that recovery could not bring to their end, and when it tries again. Pure.

    a member is away                -> when another target answers than at that time
    it left while this was tried    -> when it answers again, by workers of its own
    a worker of it is stuck         -> when that one is gone
    any other error                 -> after 5 s, then twice as long each time, up to 5 min

Until then they count as they are: `holders` have all there is, and nobody is called synced who lacks it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

RETRY_S: Final = 5.0  # a second scan of a volume costs what the first one did: gigabytes on a bad day
RETRY_S_MAX: Final = 300.0


class Heard(NamedTuple):
    """A target that answers, and by whom: what failed with earlier workers may succeed now."""

    target: str
    generation: int = 0  # of its workers
    haunted: bool = False  # one that was given up may still write


@dataclass(frozen=True, slots=True)
class _Tried:
    holders: frozenset[str]
    answered: frozenset[Heard]
    at_s: float
    wait_s: float


class Unclosed:
    """The volumes of one journal that wait, by id."""

    def __init__(self) -> None:
        self._tried: dict[str, _Tried] = {}
        self._waits: dict[str, float] = {}

    def tried(self, volume_id: str, holders: Collection[str], *, answered: Collection[Heard], now_s: float) -> None:
        """Recovery came to no end."""
        before_s = self._waits.get(volume_id)
        wait_s = RETRY_S if before_s is None else min(2 * before_s, RETRY_S_MAX)
        self._waits[volume_id] = wait_s
        self._tried[volume_id] = _Tried(frozenset(holders), frozenset(answered), now_s, wait_s)

    def done(self, volume_id: str) -> None:
        """It did."""
        self._tried.pop(volume_id, None)
        self._waits.pop(volume_id, None)

    def holders(self, shown: Collection[str], *, answered: Collection[Heard], now_s: float) -> Mapping[str, frozenset[str]]:
        """Who has all there is of the volumes that are not to be tried again now. Those that are not `shown` are forgotten."""
        for volume_id in [v for v in self._waits if v not in shown]:
            self.done(volume_id)
        for volume_id, tried in list(self._tried.items()):
            if not tried.answered.issuperset(answered):
                self.done(volume_id)  # what failed so far says nothing about this time: waiting begins anew, too
            elif now_s - tried.at_s >= tried.wait_s:
                del self._tried[volume_id]
        return {volume_id: tried.holders for volume_id, tried in self._tried.items()}
