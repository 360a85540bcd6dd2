"""One journal's engine: who is in the set, which lanes write, what is committed.

    intake --> lanes --> ports (targets)          every decision is one of failover/'s tables and functions;
      looks, answers --> detector --> machine     this class carries out their effects
                                   --> set + 1: cut every lane, open volumes with the new members

A change of set is durable when a volume header with its number is durable on one member, and only then is anything
acknowledged that the old set owed. First shrink; growing is a change of its own.
No threads, no files, no waiting: `step` is called again and again (replicate/hub.py) with the time in `clock`, so a
simulation drives the very same code.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import Final

from nvrstore.clock import Clock
from nvrstore.failover.detector import Health
from nvrstore.failover.homes import Home, Turn, move, waited
from nvrstore.failover.machine import MEMBER, Effect, Event, State
from nvrstore.failover.members import Told, choose_primary, next_change, when_told
from nvrstore.failover.terms import ClaimKey
from nvrstore.journal.model import Batch, VolumeHeader
from nvrstore.journal.names import volume_path
from nvrstore.journal.records import pack_record
from nvrstore.model import Commit, Epoch, Media, MemberRef, Record, RecordKind, Role, TrackKey, new_id
from nvrstore.replicate.bound import Bound
from nvrstore.replicate.buffer import ReplayBuffer
from nvrstore.replicate.contract import JournalSpec, Observer
from nvrstore.replicate.engine_status import engine_status
from nvrstore.replicate.intake import Intake
from nvrstore.replicate.lane import Lane
from nvrstore.replicate.left import LeftCopies
from nvrstore.replicate.measures import Latencies
from nvrstore.replicate.places import Watch
from nvrstore.replicate.port import Port
from nvrstore.replicate.sizing import next_volume_bytes
from nvrstore.replicate.standing import Standing
from nvrstore.replicate.volume import CopyState
from nvrstore.telemetry import get_logger

log = get_logger("replicate.engine")

SETTLE_S: Final = 1.0  # at the start, how long to wait for all configured targets before the first set is formed


class JournalEngine:
    """See the module."""

    def __init__(
        self,
        spec: JournalSpec,
        ports: Mapping[str, Port],
        buffer: ReplayBuffer,
        intake: Intake,
        clock: Clock,
        observer: Observer,
        post: Callable[[Callable[[], None]], None],
    ) -> None:
        self.spec, self.ports, self.buffer, self.intake = spec, ports, buffer, intake
        self.clock, self.observer, self.post = clock, observer, post
        now_s = clock.monotonic_s()
        self.watch = Watch(self)
        self.lanes: list[Lane] = []
        self._lane_of: dict[TrackKey, Lane] = {}
        self._set = self.set_durable = 0
        self.set_since_s = float("-inf")
        self._primary: str | None = None
        self._home = Home.MEMORY
        self._promoted: str | None = None  # whom the operator wants to have the role
        self._members: list[MemberRef] = []
        self._alone_since_s: float | None = now_s
        self._started_s, self._formed = now_s, False
        self.standing_state = Standing()
        self._left = LeftCopies(ports)
        self.lost_at_s: float | None = None
        self._stopping = self._ended = False
        self._bound = Bound(self)
        self.commit_latencies = Latencies(1024)
        self.commits = 0

    # --- LaneHost

    @property
    def epoch(self) -> Epoch:
        return Epoch(self.spec.claim.term, self._set)

    def members(self) -> list[MemberRef]:
        return self._members

    @property
    def fenced(self) -> bool:
        """Whether another writer's higher term was seen anywhere: from then on nothing is pruned, closed or repaired."""
        return bool(self.watch.fenced_by)

    def binding(self, target: str) -> bool:
        place = self.watch.places.get(target)
        return place is None or place.state is not State.JOINING

    def volume_bytes(self, rate_bps: float) -> int:
        looks = (self.ports[member.target].look for member in self._members)
        return next_volume_bytes(self.spec.volume_bytes, rate_bps, looks=looks, lanes=len(self.lanes))

    def standing(self) -> list[Record]:
        return self.standing_state.records()

    def header_durable(self, header: VolumeHeader, target: str) -> None:
        if header.epoch.term != self.spec.claim.term:
            return
        if header.epoch.set > self.set_durable:
            self.set_durable = header.epoch.set
        if header.epoch.set == self._set and target in self.watch.places:
            self.watch.happen(target, Event.OPENED, "")

    def abandoned(self, target: str, header: VolumeHeader, why: str) -> None:
        if target in self.watch.places:
            self.watch.happen(target, Event.STALE, why)
        body = {"target": target, "volume": header.volume_id, "path": volume_path(header), "why": why}
        self.own_record(Record(RecordKind.VOLUME_ABANDONED, new_id(), body))

    def committed(self, commit: Commit, batch: Batch, latency_s: float) -> None:
        self.commits += 1
        self.commit_latencies.add(latency_s)
        if self.lost_at_s is not None:  # what the lost member should have had waited for the new set: this commit is under it
            self.observer.first_commit(self.spec.name, self.clock.monotonic_s() - self.lost_at_s)
            self.lost_at_s = None

    # --- the step

    def step(self, *, resumed_s: float = 0.0) -> None:
        """Everything that is due. `resumed_s`: when the caller last came back from an unusual pause."""
        if self._ended:
            return  # what upkeep still writes down comes too late: the next recorder finds the same
        now_s = self.clock.monotonic_s()
        self._take_in()
        self.watch.step(now_s, resumed_s=resumed_s)
        self._form(now_s)
        self._watch_refuge(resumed_s)
        self._find_refuge(now_s)
        for lane in sorted(self.lanes, key=lambda lane: lane.built_s):  # who waits longest for a target that is busy has the next place
            lane.step(now_s, flush=self._stopping)
        self._bound.step(now_s)
        for member in self._members if self._lane_of else ():
            self.ports[member.target].look_if_idle(self.spec.tick_s)

    @property
    def due_s(self) -> float:
        """When the next lane wants its tick."""
        return min((lane.due_s for lane in self.lanes), default=self.clock.monotonic_s() + self.spec.tick_s)

    def _take_in(self) -> None:
        taken = self.intake.take()
        for track, name, config, group in taken.declared:
            self._lane(track, group).declare(track, name, config)
        for fragment in taken.fragments:
            self._lane(fragment.track).put(fragment)
            self._bound.came(fragment)
        for record in taken.records:
            self.own_record(record)

    def own_record(self, record: Record) -> None:
        try:
            pack_record(record)
        except (ValueError, TypeError) as error:
            log.error("record.refused", kind=record.kind, id=record.id, reason=str(error))  # one bad record must not stop the rest
            return
        self.standing_state.apply(record)
        stream = record.body.get("stream")
        lane = self._lane_of.get(TrackKey(stream, Media.VIDEO)) if isinstance(stream, str) else None
        (lane or next(iter(self.lanes), None) or self._lane_with_room(None)).waiting.records.append(record)

    def _lane(self, track: TrackKey, group: Hashable = None) -> Lane:
        """The lane of a track, for the whole session. Audio goes with its video where there is room."""
        lane = self._lane_of.get(track)
        if lane is None:
            beside = self._lane_of.get(TrackKey(track.stream, Media.VIDEO))
            lane = beside if beside is not None and beside.room > 0 else self._lane_with_room(group)
            self._lane_of[track] = lane
        return lane

    def _lane_with_room(self, group: Hashable) -> Lane:
        """Whoever lays batches out elsewhere names what belongs together: such tracks have lanes of their own."""
        with_room = (lane for lane in self.lanes if not lane.tracks or (lane.group == group and lane.room > 0))
        lane = next(with_room, None) or Lane(self, len(self.lanes))
        if lane.number == len(self.lanes):
            self.lanes.append(lane)
        lane.group = group
        return lane

    # --- effects of what happens to targets (places.py)

    def carry_out(self, name: str, effect: Effect) -> None:
        """An effect that concerns the set. Growing is done once for all recruits, in `_form`."""
        if effect is Effect.SHRINK_SET:
            self._change_set(without=name)
        elif effect is Effect.START_RESYNC:
            self.observer.resync_wanted(self.spec.name, name)  # nothing ends it: its job looks at the state before every piece

    # --- the set

    def _change_set(self, *, without: str | None = None) -> None:
        """Set + 1: new members, every lane cut. `without` left: nothing it acknowledged counts any longer."""
        self._set += 1
        self.set_since_s = self.clock.monotonic_s()
        states = self.states()
        self._primary = choose_primary(self.spec.targets, states, self._primary, failback=self.spec.failback_auto)
        names = sorted((name for name in self.spec.targets if states[name] in MEMBER), key=lambda name: name != self._primary)
        self._members = [MemberRef(n, self.ports[n].target_id, Role.PRIMARY if n == self._primary else Role.STANDBY) for n in names]
        self._home = move(self._home, Turn.JOINED if self._members else Turn.LEFT)
        if self._home is Home.REFUGE and self.spec.refuge:
            self._members = [MemberRef(self.spec.refuge, self.ports[self.spec.refuge].target_id, Role.REFUGE)]
        for lane in self.lanes:
            if without is not None:
                lane.leave(without, self._set)
            else:
                lane.cut()
        self.observer.set_changed(self.spec.name, self.epoch, self._members)

    def _form(self, now_s: float) -> None:
        """Grow, release, or hand the primary's role back: one change at a time, each durable before the next."""
        states = self.states()
        if not self._formed:
            settled = all(state not in (State.AWAY, State.HOLD_DOWN) for state in states.values())
            if not settled and now_s - self._started_s < SETTLE_S:
                return
            self._formed = True
        if self._home is Home.MEMBERS and self.set_durable < self._set and any(lane.tracks for lane in self.lanes):
            return
        failback = self.spec.failback_auto
        recruit, release = next_change(self.spec.targets, states, self.spec.copies, kept=None if failback else self._primary)
        for name in recruit:
            self.watch.happen(name, Event.RECRUITED, "")
        if recruit:
            self._change_set()
        elif release:
            self.watch.happen(release[0], Event.RELEASED, "the preferred targets are synced again")
        elif self._primary is not None:
            wished, self._promoted = self._promoted, None
            present = wished if wished is not None and states[wished] is State.SYNCED else self._primary
            better = choose_primary(self.spec.targets, states, present, failback=failback)
            if better != self._primary:
                self._primary = better
                self._change_set()

    def _find_refuge(self, now_s: float) -> None:
        if self._home is not Home.MEMORY:
            self._alone_since_s = None
            return
        if self._alone_since_s is None:
            self._alone_since_s = now_s
        refuge = self.spec.refuge
        if refuge is None or not self._formed:
            return
        if waited(now_s - self._alone_since_s, self.buffer.bytes / self.buffer.bytes_max):
            port = self.ports[refuge]
            if port.answering and port.start():
                self._home = move(self._home, Turn.WAITED)
                log.warning("refuge.entered", journal=self.spec.name)
                self._change_set()

    def _watch_refuge(self, resumed_s: float) -> None:
        """The refuge has no place in the watch. When it is lost, what only it had on its way is owed again, and it is entered anew."""
        refuge = self.spec.refuge
        if refuge is None:
            return
        port = self.ports[refuge]
        copies = [copy for lane in self.lanes for volume in lane.volumes() for copy in volume.live() if copy.target == refuge]
        if not copies:
            return
        verdict = port.verdict(resumed_s=resumed_s)
        if verdict.health is Health.LOST:
            port.fail(verdict.reason)
        if not port.up or any(copy.generation != port.generation for copy in copies):
            log.warning("refuge.lost", journal=self.spec.name, reason=port.reason)
            if self._home is Home.REFUGE:
                self._home = move(self._home, Turn.LOST)
                self._change_set(without=refuge)
            else:
                for lane in self.lanes:
                    lane.leave(refuge, self._set)
        elif self._home is not Home.REFUGE and any(copy.state is CopyState.PREPARING for copy in copies):
            # It was full, and nobody prepares anything there any more: what was meant for it goes to the members.
            for lane in self.lanes:
                lane.leave(refuge, self._set)

    # --- what others ask for (in the engine's thread: see hub.call)

    def synced(self, target: str) -> None:
        """Resync found that `target` lacks nothing."""
        self.watch.happen(target, Event.SYNCED, "")

    def synced_if_whole(self, target: str) -> bool:
        """The same, unless a volume that is being written now is not written there: that one has to be copied first."""
        if any(target not in volume.copies or not volume.copies[target].counts for lane in self.lanes for volume in lane.volumes()):
            return False
        self.synced(target)
        return True

    def copy_left(self, path: str, target: str, generation: int) -> None:
        self._left.add(path, target, generation)

    def released(self, path: str, target: str) -> bool:
        """Whether no worker of this session can still write to that copy."""
        return self._left.released(path, target) and path not in self.paths_in_use()

    def claimed(self, target: str) -> None:
        """The claim stands on `target` now."""
        self.watch.places[target].claimed = True

    def drain(self, target: str) -> None:
        """Maintenance: take `target` out in order."""
        self.watch.happen(target, Event.DRAINED, "drained by the operator")

    def take_back(self, target: str) -> Told:
        """Maintenance is over; or, of one that is in step again: it shall be primary again."""
        told = when_told(self.spec.targets, self.states(), self._primary, target)
        if told is Told.RETURNS:
            self.watch.happen(target, Event.RETURNED, "returned by the operator")
        elif told is Told.PRIMARY:
            self._promoted = target
        return told

    def clock_stepped(self, seconds: float) -> None:
        """The wall clock stepped: new volumes get a new origin."""
        self.own_record(Record(RecordKind.CLOCK_STEP, new_id(), {"seconds": seconds, "utc_ns": self.clock.utc_ns()}))
        for lane in self.lanes:
            lane.cut()

    def reclaimed(self, claim: ClaimKey, answered: frozenset[int]) -> None:
        """A higher term was claimed: everything from now on is written under it. `answered`: sessions that it outbids."""
        self.watch.answered = answered
        self.spec = replace(self.spec, claim=claim)
        for name, place in self.watch.places.items():
            place.claimed = False
            if place.state is not State.DRAINED:  # asked for when it returns
                self.observer.claim_wanted(self.spec.name, name)
        self._set = self.set_durable = 0
        self._change_set()
        for lane in self.lanes:
            lane.require(self._set)

    def stop(self) -> None:
        """No more ticks: commit what is here, then close every volume. To be called until `idle`."""
        self._stopping = True
        self._take_in()
        self._bound.end()
        if all(not lane.waiting for lane in self.lanes):
            for lane in self.lanes:
                if lane.volume is not None and not lane.volume.submitted:
                    lane.cut()
        if self.idle and not self._ended:
            self._ended = True
            for lane in self.lanes:
                lane.end()

    @property
    def idle(self) -> bool:
        """Everything is committed and closed."""
        return all(lane.idle and lane.volume is None for lane in self.lanes)

    @property
    def in_refuge(self) -> bool:
        """Whether footage goes to the state disk, since no member lives."""
        return self._home is Home.REFUGE

    def paths_in_use(self) -> set[str]:
        """Volumes that are being written: upkeep leaves them alone."""
        return {volume.path for lane in self.lanes for volume in lane.volumes()}

    def states(self) -> dict[str, State]:
        return {name: place.state for name, place in self.watch.places.items()}

    def status(self) -> dict[str, object]:
        """JSON values for `status`."""
        return engine_status(self)
