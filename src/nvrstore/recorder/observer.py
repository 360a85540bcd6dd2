"""What the engine reports, handed on: to the catalog, to waiters, to listeners, to upkeep. Called in the engine's thread.

Order: a commit reaches the catalog's queue before anybody who waits for it is told, so that who reads after waiting finds it.
A change of set is told when all of its members take part, and in any case before the first commit on fewer copies than wanted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from nvrstore import events
from nvrstore.catalog.store import Catalog
from nvrstore.clock import Clock
from nvrstore.failover.machine import MEMBER, State
from nvrstore.failover.terms import ClaimKey
from nvrstore.journal.model import Batch, VolumeHeader
from nvrstore.model import Commit, Epoch, MemberRef, Role
from nvrstore.recorder.bus import Bus
from nvrstore.recorder.durable import Durability

#: States in which a target takes new batches.
_TAKING: Final = (State.LIVE, State.SYNCED)


class Wishes(Protocol):
    """What the engine wants done beside recording (upkeep/chores.py). Only queues."""

    def claim(self, journal: str, target: str) -> None: ...

    def claim_again(self, journal: str, seen: ClaimKey | None) -> None: ...

    def mend(self, journal: str) -> None: ...

    def leftovers(self, journal: str, target: str) -> None: ...

    def space(self, journal: str, target: str) -> None: ...


class RecorderObserver:
    """The engine's `Observer`."""

    def __init__(
        self, catalog: Catalog, durability: Durability, bus: Bus, wishes: Wishes, clock: Clock, wanted: Callable[[str], int]
    ) -> None:
        """`wanted`: copies that a journal wants."""
        self._catalog, self._durability, self._bus, self._wishes = catalog, durability, bus, wishes
        self._clock, self._wanted = clock, wanted
        self._lost: dict[str, tuple[str, str]] = {}  # journal: the member that was lost last, and why
        self._sets: dict[str, tuple[Epoch, tuple[MemberRef, ...]]] = {}
        self._told: dict[str, tuple[Epoch, tuple[MemberRef, ...]]] = {}  # of them, what listeners know
        self._taking: defaultdict[str, set[str]] = defaultdict(set)  # targets that take new batches

    def volume_opened(self, header: VolumeHeader, path: str, target: str) -> None:
        self._catalog.volume_opened(header, path, [target])

    def batch_stored(self, header: VolumeHeader, path: str, batch: Batch, targets: Sequence[str], commit: Commit | None) -> None:
        if commit is not None and commit.copies < commit.wanted and not self._known_degraded(header.journal):
            self._tell_set(header.journal, complete=False)
        self._catalog.batch_committed(header, path, batch, targets)
        if commit is not None:
            self._durability.batch(header, batch, commit.copies)
        else:
            self._durability.in_refuge(header, batch)

    def volume_closed(self, header: VolumeHeader, path: str, length: int, batches: int, targets: Sequence[str]) -> None:
        self._catalog.volume_closed(header, path, length, batches, targets)
        self._publish(
            events.VolumeClosed(
                utc_ns=self._clock.utc_ns(),
                journal=header.journal,
                volume_id=header.volume_id,
                path=path,
                length=length,
                targets=tuple(targets),
            )
        )

    def volume_left(self, header: VolumeHeader, path: str) -> None:
        self._wishes.mend(header.journal)

    def target_changed(self, journal: str, target: str, before: State, after: State, reason: str, since_failure_s: float | None) -> None:
        if after in _TAKING:
            self._taking[journal].add(target)
        else:
            self._taking[journal].discard(target)
        kind = events.TargetChanged
        more: dict[str, Any] = {}
        if before in MEMBER and after is State.AWAY:
            kind, more = events.TargetLost, {"since_failure_s": since_failure_s}
            self._lost[journal] = (target, reason)
        elif after is State.LIVE and before is State.JOINING:
            kind = events.TargetJoined
        elif after is State.SYNCED:
            kind = events.TargetSynced
        self._publish(
            kind(utc_ns=self._clock.utc_ns(), journal=journal, target=target, before=str(before), after=str(after), reason=reason, **more)
        )
        if journal in self._sets:
            self._tell_set(journal)

    def set_changed(self, journal: str, epoch: Epoch, members: Sequence[MemberRef]) -> None:
        self._sets[journal] = (epoch, tuple(members))
        for member in members:
            if member.role is Role.REFUGE:  # it is entered anew: as with a target whose workers were started
                self._wishes.leftovers(journal, member.target)
        self._tell_set(journal)

    def _tell_set(self, journal: str, *, complete: bool = True) -> None:
        """Tell who takes part now; with `complete` only if all do that should: a newcomer's volume is opened first."""
        epoch, members = self._sets[journal]
        taking = tuple(member for member in members if member.role is Role.REFUGE or member.target in self._taking[journal])
        if (complete and len(taking) < len(members)) or self._told.get(journal) == (epoch, taking):
            return
        self._told[journal] = (epoch, taking)
        now_ns = self._clock.utc_ns()
        self._publish(events.SetChanged(utc_ns=now_ns, journal=journal, epoch=epoch, members=taking, wanted=self._wanted(journal)))
        if taking and all(member.role is Role.REFUGE for member in taking):
            self._publish(events.RefugeEntered(utc_ns=now_ns, journal=journal))

    def _known_degraded(self, journal: str) -> bool:
        _, members = self._told.get(journal, (None, ()))
        return journal in self._told and sum(member.role is not Role.REFUGE for member in members) < self._wanted(journal)

    def first_commit(self, journal: str, since_lost_s: float) -> None:
        target, reason = self._lost.pop(journal, ("", ""))
        self._publish(events.FailedOver(utc_ns=self._clock.utc_ns(), journal=journal, target=target, reason=reason, ttr_s=since_lost_s))

    def needs_space(self, journal: str, target: str) -> None:
        self._wishes.space(journal, target)

    def resync_wanted(self, journal: str, target: str) -> None:
        self._wishes.mend(journal)

    def workers_started(self, journal: str, target: str) -> None:
        self._wishes.leftovers(journal, target)

    def claim_wanted(self, journal: str, target: str) -> None:
        self._wishes.claim(journal, target)

    def claim_again(self, journal: str, seen: ClaimKey | None) -> None:
        self._wishes.claim_again(journal, seen)

    def _publish(self, event: events.Event) -> None:
        self._bus.publish(event)
