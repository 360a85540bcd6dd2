"""A volume that is being written: its copies on the members, its batches on their way.

    PREPARING --prepared--> OPENING --header durable--> OPEN --closed--> CLOSED
         `------------------------ LEFT ------------------------'   (its target left the set, or the volume was abandoned there)

Invariant: an acknowledgement of a copy that is LEFT never counts, also when it arrives afterwards.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from nvrstore.journal.batch import VolumeBuilder, fragment_of
from nvrstore.journal.model import Batch, VolumeHeader
from nvrstore.model import Fragment, TrackKey
from nvrstore.replicate.buffer import Held
from nvrstore.replicate.port import Op

Identity = tuple[TrackKey, int, int]  # track, session, index: what a fragment is, in whatever volume


class CopyState(Enum):
    """How far one copy is."""

    PREPARING = "preparing"
    OPENING = "opening"
    OPEN = "open"
    CLOSED = "closed"
    LEFT = "left"


@dataclass(slots=True)
class Copy:
    """One member's copy."""

    target: str
    handle: int
    generation: int  # of the port when the volume was opened: a restarted port knows nothing of the handle
    state: CopyState = CopyState.PREPARING
    deferred: list[Op] = field(default_factory=list)  # waits until the file is prepared

    @property
    def counts(self) -> bool:
        return self.state is not CopyState.LEFT


@dataclass(slots=True)
class Submitted:
    """A batch that was built: from here on its extent is the replay buffer."""

    batch: Batch
    held: Held
    pending: set[str]
    acked: set[str]
    set_needed: int  # number of the set that must be durable before it may be acknowledged
    order: int  # of the lane's batches, as they were built first: what is owed again keeps the one that it had
    built_s: float
    committed: bool = False

    def fragments(self, header: VolumeHeader) -> list[Fragment]:
        """What it holds, copied: whoever still writes it may pin its extent."""
        copied = memoryview(bytes(self.held.view[: self.batch.length]))
        return [fragment_of(entry, copied, header) for entry in self.batch.entries]


@dataclass(slots=True)
class OpenVolume:
    """A volume from its header to its close."""

    header: VolumeHeader
    path: str
    builder: VolumeBuilder
    header_held: Held
    header_length: int
    copies: dict[str, Copy]
    opened_s: float
    bytes_max: int
    submitted: deque[Submitted] = field(default_factory=deque)
    batches: list[Batch] = field(default_factory=list)
    committed: int = -1  # number of its last committed batch
    cut: bool = False
    orphaned: bool = False  # a batch of it lives in a later volume: recovery decides what it holds
    closing: Held | None = None  # the index, on its way
    length: int = 0  # of the closed file

    def live(self) -> list[Copy]:
        """The copies that count."""
        return [copy for copy in self.copies.values() if copy.counts]

    @property
    def open_on(self) -> list[str]:
        return [copy.target for copy in self.copies.values() if copy.state in (CopyState.OPEN, CopyState.CLOSED)]

    @property
    def held_bytes(self) -> int:
        """Of the buffer: what is not settled yet."""
        return sum(sub.held.extent.length for sub in self.submitted)

    def deferred_bytes(self, target: str) -> int:
        """What waits for its file on a target, which is not prepared yet."""
        copy = self.copies.get(target)
        return sum(op.request.length for op in copy.deferred) if copy is not None else 0

    def leave(self, target: str, set_needed: int | None) -> list[Submitted]:
        """`target` no longer counts. Returns the batches that no copy has or will have: they are owed again.

        `set_needed`: the set without it, which must be durable before anything it should have had is acknowledged;
        None where the target stays in the set and only this volume was abandoned on it.
        """
        copy = self.copies.get(target)
        if copy is None or not copy.counts:
            return []
        copy.state = CopyState.LEFT
        for op in copy.deferred:
            if op.held:
                op.held.drop()
        copy.deferred.clear()
        orphans = []
        for sub in self.submitted:
            sub.pending.discard(target)
            if set_needed is not None:
                sub.acked.discard(target)
                if not sub.committed:
                    sub.set_needed = set_needed
            if not sub.pending and not sub.acked:
                orphans.append(sub)
        for sub in orphans:
            self.submitted.remove(sub)
            self.orphaned = True
        return orphans
