"""The buffer's bound: who makes room when it is reached.

    full --> the journal that holds most of it --> its laggard leaves, where another place takes what is recorded
                                               --> nobody is to blame: its oldest waiting footage goes, into the ledger

A change of set frees nothing before it is durable on those who stay: for BURST_S nobody else is blamed, and nothing dropped.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import inf
from typing import Protocol

from nvrstore.failover.machine import State
from nvrstore.limits import BURST_S
from nvrstore.losses import Losses
from nvrstore.model import Fragment, Gap, MemberRef, Record, Role
from nvrstore.replicate.buffer import ReplayBuffer
from nvrstore.replicate.contract import JournalSpec
from nvrstore.replicate.lane import Lane
from nvrstore.replicate.places import Watch
from nvrstore.replicate.port import Port


class BoundHost(Protocol):
    """What is asked of the journal's engine."""

    spec: JournalSpec
    ports: Mapping[str, Port]
    buffer: ReplayBuffer
    lanes: list[Lane]

    watch: Watch
    set_since_s: float  # when the set changed last (monotonic)

    def members(self) -> Sequence[MemberRef]: ...

    def own_record(self, record: Record) -> None: ...


def laggard(lags: Mapping[str, int], *, elsewhere: bool, spared: Collection[str] = ()) -> str | None:
    """Who leaves, of members with so many bytes on their way; none of the `spared`. The last one does so only where a spare or
    the refuge takes over (`elsewhere`): otherwise recording goes on with what it can take, and only what is too much is given up.
    """
    name = max((name for name in lags if name not in spared), key=lags.__getitem__, default=None)
    return None if name is None or lags[name] == 0 or (len(lags) == 1 and not elsewhere) else name


class Bound:
    """See the module. Used by the engine's thread."""

    def __init__(self, host: BoundHost) -> None:
        self._host = host
        self._losses = Losses("no target and no refuge could take it")
        self._since_s = inf  # when the buffer became full, or the last one was blamed for that
        self._blamed: set[str] = set()  # who left for it, and it is full still
        host.buffer.holders.append(self._held)

    def step(self, now_s: float) -> None:
        """When everything that could be settled is: what has to go now, goes."""
        host = self._host
        if not host.buffer.full:
            self._since_s, self._blamed = inf, set()
            return
        self._since_s = min(self._since_s, now_s)
        # What workers laid out while this process stood still comes all at once, and the targets are to have it first.
        patient = host.buffer.pool.windows or host.set_since_s >= self._since_s - BURST_S
        if (patient and now_s - self._since_s < BURST_S) or self._held() < host.buffer.most_held:
            return
        members = [member.target for member in host.members() if member.role is not Role.REFUGE]
        # Once each: who is back already, and behind again, would keep all that waits in the memory for ever.
        name = laggard({member: self._lag(member) for member in members}, elsewhere=self._elsewhere(), spared=self._blamed)
        if name is None:
            self._drop()
        else:
            self._since_s = now_s
            self._blamed.add(name)
            host.watch.lose(name, "it lags behind by all that the replay buffer holds")

    def _drop(self) -> None:
        """The oldest that waits, until the buffer is not full any more."""
        while self._host.buffer.full:
            lane = max(self._host.lanes, key=lambda lane: lane.waiting.bytes, default=None)
            fragment = lane.drop_oldest() if lane is not None else None
            if fragment is None:
                return
            self._tell(self._losses.dropped(fragment))

    def came(self, fragment: Fragment) -> None:
        """A new fragment of a stream: what was lost of it ends here, where there is room again."""
        if self._losses and self._host.buffer.bytes <= self._host.buffer.bytes_max // 2:
            self._tell(self._losses.over(fragment.track.stream))

    def _elsewhere(self) -> bool:
        """Whether a spare or the refuge would take what the last member does not."""
        refuge = self._host.spec.refuge
        spare = any(place.state is State.READY for place in self._host.watch.places.values())
        return spare or (refuge is not None and self._host.ports[refuge].answering)

    def end(self) -> None:
        """Nothing more comes of any stream: what was lost reaches to where it was lost last."""
        for stream in self._losses.streams:
            self._tell(self._losses.over(stream))

    def _tell(self, gap: Gap | None) -> None:
        if gap is not None:
            self._host.own_record(gap.record())

    def _held(self) -> int:
        """Bytes of the buffer that are this journal's."""
        return sum(lane.waiting.bytes + sum(volume.held_bytes for volume in lane.volumes()) for lane in self._host.lanes)

    def _lag(self, name: str) -> int:
        """Bytes that wait for a member, handed over or not; also for its next file, which a full one does not get."""
        deferred = sum(volume.deferred_bytes(name) for lane in self._host.lanes for volume in lane.volumes())
        return self._host.ports[name].backlog_bytes + deferred
