"""What the engine tells the world, and what a lane asks of its journal.

An `Observer` is called in the engine's thread: it must not block, and must not call back into the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from nvrstore.clock import Clock
from nvrstore.failover.machine import State
from nvrstore.failover.terms import ClaimKey
from nvrstore.journal.model import Batch, VolumeHeader
from nvrstore.limits import BUFFER_BYTES_MIN, FRAGMENT_S, TICK_S, VOLUME_AGE_S
from nvrstore.model import Commit, Epoch, MemberRef, Record
from nvrstore.replicate.buffer import ReplayBuffer
from nvrstore.replicate.port import Port


@dataclass(frozen=True, slots=True)
class JournalSpec:
    """One journal as its engine needs it: names of targets in order of preference, and its bounds."""

    name: str
    journal_id: str
    recorder: str
    session: int
    claim: ClaimKey
    targets: tuple[str, ...]
    copies: int
    claimed_on: frozenset[str] = frozenset()  # targets that hold the claim already
    commit_any: bool = False
    failback_auto: bool = True
    tick_s: float = TICK_S
    fragment_s: float = FRAGMENT_S
    hold_down_s: float = 30.0
    hold_down_s_max: float = 3600.0
    buffer_bytes: int = BUFFER_BYTES_MIN
    volume_bytes: int | None = None  # None: from the lane's throughput
    volume_age_s: float = VOLUME_AGE_S
    refuge: str | None = None  # name of the implicit last target on the state disk


class Observer(Protocol):
    """Hears what happened, in the order in which it happened."""

    def volume_opened(self, header: VolumeHeader, path: str, target: str) -> None: ...

    def batch_stored(self, header: VolumeHeader, path: str, batch: Batch, targets: Sequence[str], commit: Commit | None) -> None:
        """`commit` is None where only the refuge holds it."""

    def volume_closed(self, header: VolumeHeader, path: str, length: int, batches: int, targets: Sequence[str]) -> None: ...

    def volume_left(self, header: VolumeHeader, path: str) -> None:
        """It stays open on disk; recovery decides later what it holds."""

    def target_changed(self, journal: str, target: str, before: State, after: State, reason: str, since_failure_s: float | None) -> None:
        """`since_failure_s`: from the first call that failed hard there to this moment, where that is why."""

    def set_changed(self, journal: str, epoch: Epoch, members: Sequence[MemberRef]) -> None: ...

    def first_commit(self, journal: str, since_lost_s: float) -> None:
        """The first commit after a member was lost: the time to recovery, from the declaration."""

    def needs_space(self, journal: str, target: str) -> None: ...

    def workers_started(self, journal: str, target: str) -> None:
        """What was prepared there in an earlier generation is nobody's any more."""

    def claim_wanted(self, journal: str, target: str) -> None:
        """A target answers again: bring the claim there, then call `JournalEngine.claimed`."""

    def claim_again(self, journal: str, seen: ClaimKey | None) -> None:
        """A claim of this recorder's earlier session turned up, with a higher term: claim above it, then `JournalEngine.reclaimed`."""

    def resync_wanted(self, journal: str, target: str) -> None: ...


class LaneHost(Protocol):
    """What a lane knows of its journal."""

    spec: JournalSpec
    clock: Clock
    buffer: ReplayBuffer
    ports: Mapping[str, Port]
    observer: Observer
    post: Callable[[Callable[[], None]], None]

    @property
    def epoch(self) -> Epoch: ...

    @property
    def set_durable(self) -> int: ...

    def members(self) -> list[MemberRef]:
        """Of the present set, primary first; the refuge alone where no member lives."""

    @property
    def fenced(self) -> bool:
        """Whether another writer's higher term was seen: nothing is closed any more."""

    def binding(self, target: str) -> bool:
        """Whether a commit waits for this member (not while it is still joining)."""

    def volume_bytes(self, rate_bps: float) -> int: ...

    def standing(self) -> list[Record]:
        """Records that every new volume repeats."""

    def header_durable(self, header: VolumeHeader, target: str) -> None: ...

    def copy_left(self, path: str, target: str, generation: int) -> None:
        """A copy was given up while its file was open."""

    def abandoned(self, target: str, header: VolumeHeader, why: str) -> None:
        """A volume was abandoned on a member that stays in the set."""

    def committed(self, commit: Commit, batch: Batch, latency_s: float) -> None: ...
