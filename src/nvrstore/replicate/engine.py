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

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from nvrstore.clock import Clock
from nvrstore.failover.detector import Health
from nvrstore.failover.machine import MEMBER, Effect, Event, State, step
from nvrstore.failover.members import choose_primary, next_change
from nvrstore.failover.terms import ClaimKey, Verdict, judge
from nvrstore.journal.model import Batch, VolumeHeader
from nvrstore.journal.names import volume_path
from nvrstore.limits import MIB, VOLUME_BYTES_MAX, VOLUME_BYTES_MIN, VOLUME_SHARE_MAX, VOLUME_SPAN_S
from nvrstore.model import Cause, Commit, Epoch, Fragment, Gap, Media, MemberRef, Record, RecordKind, Role, TrackKey, new_id
from nvrstore.replicate.buffer import ReplayBuffer
from nvrstore.replicate.contract import JournalSpec, Observer
from nvrstore.replicate.intake import Intake
from nvrstore.replicate.lane import Lane
from nvrstore.replicate.port import Latencies, Port
from nvrstore.replicate.standing import Standing
from nvrstore.telemetry import get_logger

log = get_logger("replicate.engine")

SETTLE_S: Final = 1.0  # at the start, how long to wait for all configured targets before the first set is formed
REFUGE_S: Final = 2.0  # without any member for this long, or with half the buffer full: the state disk takes over
FLAP_S: Final = 600.0  # a member lost again within this has flapped: its hold-down doubles


@dataclass(slots=True)
class _Place:
    """One target in this journal."""

    state: State = State.AWAY
    generation: int = -1
    since_s: float = 0.0
    hold_s: float = 0.0
    reason: str = ""
    late: bool = False
    claimed: bool = False  # the writer's claim stands there: others see it, and it may join


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
        self.places = {name: _Place(since_s=now_s, claimed=name in spec.claimed_on) for name in spec.targets}
        self.lanes: list[Lane] = []
        self._lane_of: dict[TrackKey, Lane] = {}
        self._set = 0
        self.set_durable = 0
        self._primary: str | None = None
        self._refuge = False
        self._members: list[MemberRef] = []
        self._alone_since_s: float | None = now_s
        self._started_s = now_s
        self._formed = False
        self.standing_state = Standing()
        self._answered: frozenset[int] = frozenset()  # earlier sessions of this recorder, whose claims were outbid
        self._losses: dict[str, Gap] = {}
        self._left: dict[tuple[str, str], int] = {}  # copies that were given up while open: under which generation of the port
        self._lost_at_s: float | None = None
        self._resumed_s = 0.0
        self._stopping = False
        self.commit_latencies = Latencies(1024)
        self.commits = 0
        self.fenced_by = ""

    # --- LaneHost

    @property
    def epoch(self) -> Epoch:
        return Epoch(self.spec.claim.term, self._set)

    def members(self) -> list[MemberRef]:
        return self._members

    def binding(self, target: str) -> bool:
        place = self.places.get(target)
        return place is None or place.state is not State.JOINING

    def volume_bytes(self, rate_bps: float) -> int:
        if self.spec.volume_bytes is not None:
            size = self.spec.volume_bytes
        else:
            size = int(min(max(rate_bps * VOLUME_SPAN_S, VOLUME_BYTES_MIN), VOLUME_BYTES_MAX))
        totals = [look.total_bytes for m in self._members if (look := self.ports[m.target].look) is not None]
        if totals:
            size = min(size, max(min(totals) // VOLUME_SHARE_MAX, MIB))
        return -(-size // MIB) * MIB

    def standing(self) -> list[Record]:
        return self.standing_state.records()

    def header_durable(self, header: VolumeHeader, target: str) -> None:
        if header.epoch.term != self.spec.claim.term:
            return
        if header.epoch.set > self.set_durable:
            self.set_durable = header.epoch.set
        if header.epoch.set == self._set and target in self.places:
            self._happen(target, Event.OPENED, "")

    def abandoned(self, target: str, header: VolumeHeader, why: str) -> None:
        if target in self.places:
            self._happen(target, Event.STALE, why)
        body = {"target": target, "volume": header.volume_id, "path": volume_path(header), "why": why}
        self._own_record(Record(RecordKind.VOLUME_ABANDONED, new_id(), body))

    def committed(self, commit: Commit, batch: Batch, latency_s: float) -> None:
        self.commits += 1
        self.commit_latencies.add(latency_s)
        if self._lost_at_s is not None:  # what the lost member should have had waited for the new set: this commit is under it
            self.observer.first_commit(self.spec.name, self.clock.monotonic_s() - self._lost_at_s)
            self._lost_at_s = None

    # --- the step

    def step(self, *, resumed_s: float = 0.0) -> None:
        """Everything that is due. `resumed_s`: when the caller last came back from an unusual pause."""
        now_s = self.clock.monotonic_s()
        self._resumed_s = resumed_s
        self._take_in()
        self._watch(now_s)
        self._form(now_s)
        self._find_refuge(now_s)
        self._bound()
        for lane in self.lanes:
            lane.step(now_s, flush=self._stopping)

    @property
    def due_s(self) -> float:
        """When the next lane wants its tick."""
        return min((lane.due_s for lane in self.lanes), default=self.clock.monotonic_s() + self.spec.tick_s)

    def _take_in(self) -> None:
        taken = self.intake.take()
        for track, name, config in taken.declared:
            self._lane(track).declare(track, name, config)
        for fragment in taken.fragments:
            self._lane(fragment.track).put(fragment)
            if self._losses:
                self._end_loss(fragment)
        for record in taken.records:
            self._own_record(record)

    def _own_record(self, record: Record) -> None:
        self.standing_state.apply(record)
        stream = record.body.get("stream")
        lane = self._lane_of.get(TrackKey(stream, Media.VIDEO)) if isinstance(stream, str) else None
        (lane or self._lane_with_room()).records.append(record)

    def _lane(self, track: TrackKey) -> Lane:
        """The lane of a track, for the whole session. Audio goes with its video where there is room."""
        lane = self._lane_of.get(track)
        if lane is None:
            beside = self._lane_of.get(TrackKey(track.stream, Media.VIDEO))
            lane = beside if beside is not None and beside.room > 0 else self._lane_with_room()
            self._lane_of[track] = lane
        return lane

    def _lane_with_room(self) -> Lane:
        for lane in self.lanes:
            if lane.room > 0:
                return lane
        self.lanes.append(Lane(self, len(self.lanes)))
        return self.lanes[-1]

    # --- health and events

    def _watch(self, now_s: float) -> None:
        for name, place in self.places.items():
            port = self.ports[name]
            if place.state in MEMBER or place.state is State.READY:
                if not port.up or port.generation != place.generation:
                    self._happen(name, Event.LOST, port.reason)
                    continue
                verdict = port.verdict(resumed_s=self._resumed_s)
                place.late = verdict.health is Health.LATE
                if verdict.health is Health.LOST:
                    self._lose(name, verdict.reason)
                elif not self._lawful(name):
                    self._lose(name, f"fenced: {self.fenced_by} recorded there with a higher term")
            elif place.state is State.AWAY:
                if port.answering and self._lawful(name):
                    self._happen(name, Event.ANSWERED, "")
                    if not place.claimed:
                        self.observer.claim_wanted(self.spec.name, name)
            elif place.state is State.HOLD_DOWN:
                if not port.answering:
                    self._happen(name, Event.LOST, port.reason or "no look succeeds")
                elif place.claimed and (now_s - place.since_s >= place.hold_s or self._nobody()):
                    self._happen(name, Event.HELD, "")

    def _nobody(self) -> bool:
        return not any(place.state in MEMBER or place.state is State.READY for place in self.places.values())

    def _lawful(self, target: str) -> bool:
        """Whether no other writer's higher term is seen there."""
        look = self.ports[target].look
        seen = look.claims.get(self.spec.name, "") if look is not None else ""
        verdict = judge(self.spec.claim, ClaimKey.of(seen), self._answered)
        if verdict is Verdict.STALE_SELF:
            self.observer.claim_again(self.spec.name, ClaimKey.of(seen))
        elif verdict is Verdict.SUPERSEDED:
            self.fenced_by = seen
        return verdict is not Verdict.SUPERSEDED

    def _lose(self, name: str, reason: str) -> None:
        self.ports[name].fail(reason)
        self._happen(name, Event.LOST, reason)

    def _happen(self, name: str, event: Event, reason: str) -> None:
        place = self.places[name]
        before = place.state
        after, effects = step(before, event)
        if after is before and not effects:
            return
        now_s = self.clock.monotonic_s()
        if event is Event.LOST and before in MEMBER:
            flapped = now_s - place.since_s < FLAP_S and place.hold_s > 0
            place.hold_s = min(place.hold_s * 2 if flapped else self.spec.hold_down_s, self.spec.hold_down_s_max)
            self._lost_at_s = now_s
        if after is not before:
            place.state, place.reason = after, reason
            if not (before in MEMBER and after in MEMBER):
                place.since_s = now_s
            self.observer.target_changed(self.spec.name, name, before, after, reason)
            log.info("target.changed", journal=self.spec.name, target=name, before=str(before), after=str(after), reason=reason)
        for effect in effects:
            self._carry_out(name, place, effect, reason)

    def _carry_out(self, name: str, place: _Place, effect: Effect, reason: str) -> None:
        port = self.ports[name]
        match effect:
            case Effect.START_WORKERS:
                if port.start():
                    place.generation = port.generation
                else:
                    self._happen(name, Event.LOST, port.reason)
            case Effect.ABANDON_WORKERS:
                if port.generation == place.generation:
                    port.fail(reason)
            case Effect.CLOSE_WORKERS | Effect.GROW_SET:
                pass  # growing is done once for all recruits in `_form`; a drained target's appender ends with the port
            case Effect.SHRINK_SET:
                self._change_set(without=name)
            case Effect.START_RESYNC:
                self.observer.resync_wanted(self.spec.name, name)
            case Effect.STOP_RESYNC:
                pass  # the resync job looks at the state before every piece

    # --- the set

    def _change_set(self, *, without: str | None = None) -> None:
        """Set + 1: new members, every lane cut. `without` left: nothing it acknowledged counts any longer."""
        self._set += 1
        states = {name: place.state for name, place in self.places.items()}
        self._primary = choose_primary(self.spec.targets, states, self._primary, failback=self.spec.failback_auto)
        self._members = self._named(states)
        if self._members:
            self._refuge = False
        elif self._refuge and self.spec.refuge:
            self._members = [MemberRef(self.spec.refuge, self.ports[self.spec.refuge].target_id, Role.REFUGE)]
        for lane in self.lanes:
            if without is not None:
                lane.leave(without, self._set)
            else:
                lane.cut()
        self.observer.set_changed(self.spec.name, self.epoch, self._members)

    def _named(self, states: Mapping[str, State]) -> list[MemberRef]:
        names = [name for name in self.spec.targets if states[name] in MEMBER]
        names.sort(key=lambda name: name != self._primary)
        return [MemberRef(n, self.ports[n].target_id, Role.PRIMARY if n == self._primary else Role.STANDBY) for n in names]

    def _form(self, now_s: float) -> None:
        """Grow, release, or hand the primary's role back: one change at a time, each durable before the next."""
        states = {name: place.state for name, place in self.places.items()}
        if not self._formed:
            settled = all(state is not State.AWAY and state is not State.HOLD_DOWN for state in states.values())
            if not settled and now_s - self._started_s < SETTLE_S:
                return
            self._formed = True
        if self._members and not self._refuge and self.set_durable < self._set and any(lane.tracks for lane in self.lanes):
            return
        recruit, release = next_change(self.spec.targets, states, self.spec.copies)
        for name in recruit:
            self._happen(name, Event.RECRUITED, "")
        if recruit:
            self._change_set()
        elif release:
            self._happen(release[0], Event.RELEASED, "the preferred targets are synced again")
        elif self._primary is not None:
            better = choose_primary(self.spec.targets, states, self._primary, failback=self.spec.failback_auto)
            if better != self._primary:
                self._change_set()

    def _find_refuge(self, now_s: float) -> None:
        if self._members:
            self._alone_since_s = None
            return
        if self._alone_since_s is None:
            self._alone_since_s = now_s
        refuge = self.spec.refuge
        if refuge is None or self._refuge or not self._formed:
            return
        if now_s - self._alone_since_s >= REFUGE_S or self.buffer.bytes >= self.buffer.bytes_max // 2:
            port = self.ports[refuge]
            if port.answering and port.start():
                self._refuge = True
                log.warning("refuge.entered", journal=self.spec.name)
                self._change_set()

    def _bound(self) -> None:
        """At the buffer's bound the laggard leaves; with nobody left, the oldest goes into the ledger."""
        if not self.buffer.full:
            return
        members = [m.target for m in self._members if m.role is not Role.REFUGE]
        if members:
            laggard = max(members, key=lambda name: self.ports[name].backlog_bytes)
            if self.ports[laggard].backlog_bytes > 0:
                self._lose(laggard, "it lags behind by all that the replay buffer holds")
                return
        while self.buffer.full:
            lane = max(self.lanes, key=lambda lane: lane.waiting_bytes, default=None)
            fragment = lane.drop_oldest() if lane is not None else None
            if fragment is None:
                return
            self._note_loss(fragment)

    def _note_loss(self, fragment: Fragment) -> None:
        stream = fragment.track.stream
        gap = self._losses.get(stream)
        if gap is None:
            gap = Gap(new_id(), stream, Cause.STORAGE, fragment.utc_ns, None, "no target and no refuge could take it")
            self._own_record(gap.record())
        end_ns = max(fragment.end_ns, gap.end_ns or 0)
        self._losses[stream] = Gap(gap.id, stream, gap.cause, min(gap.start_ns, fragment.utc_ns), end_ns, gap.detail)

    def _end_loss(self, fragment: Fragment) -> None:
        if self.buffer.bytes > self.buffer.bytes_max // 2:
            return
        gap = self._losses.pop(fragment.track.stream, None)
        if gap is not None:
            self._own_record(gap.record())

    # --- what others ask for (in the engine's thread: see hub.call)

    def synced(self, target: str) -> None:
        """Resync found that `target` lacks nothing."""
        self._happen(target, Event.SYNCED, "")

    def synced_if_whole(self, target: str) -> bool:
        """The same, unless a volume that is being written now is not written there: that one has to be copied first."""
        if any(target not in volume.copies or not volume.copies[target].counts for lane in self.lanes for volume in lane.volumes()):
            return False
        self.synced(target)
        return True

    def copy_left(self, path: str, target: str, generation: int) -> None:
        self._left[path, target] = generation

    def released(self, path: str, target: str) -> bool:
        """Whether no worker of this session can still write to that copy."""
        port = self.ports[target]
        return not port.haunted and (not port.up or self._left.get((path, target)) != port.generation) and path not in self.paths_in_use()

    def claimed(self, target: str) -> None:
        """The claim stands on `target` now."""
        self.places[target].claimed = True

    def drain(self, target: str) -> None:
        """Maintenance: take `target` out in order."""
        self._happen(target, Event.DRAINED, "drained by the operator")

    def take_back(self, target: str) -> None:
        """Maintenance is over."""
        self._happen(target, Event.RETURNED, "returned by the operator")

    def clock_stepped(self, seconds: float) -> None:
        """The wall clock stepped: new volumes get a new origin."""
        self._own_record(Record(RecordKind.CLOCK_STEP, new_id(), {"seconds": seconds, "utc_ns": self.clock.utc_ns()}))
        for lane in self.lanes:
            lane.cut()

    def reclaimed(self, claim: ClaimKey, answered: frozenset[int]) -> None:
        """A higher term was claimed: everything from now on is written under it. `answered`: sessions that it outbids."""
        self._answered = answered
        self.spec = replace(self.spec, claim=claim)
        for name, place in self.places.items():
            place.claimed = False
            self.observer.claim_wanted(self.spec.name, name)
        self._set = self.set_durable = 0
        self._change_set()

    def stop(self) -> None:
        """No more ticks: commit what is here, then close every volume."""
        self._stopping = True
        if all(not lane.waiting and not lane.records for lane in self.lanes):
            for lane in self.lanes:
                if lane.volume is not None and not lane.volume.submitted:
                    lane.cut()
        if self.idle:
            for lane in self.lanes:
                lane.end()

    @property
    def idle(self) -> bool:
        """Everything is committed and closed."""
        return all(lane.idle and lane.volume is None for lane in self.lanes)

    def paths_in_use(self) -> set[str]:
        """Volumes that are being written: upkeep leaves them alone."""
        return {path for lane in self.lanes for path in lane.paths_in_use()}

    def states(self) -> dict[str, State]:
        return {name: place.state for name, place in self.places.items()}

    def status(self) -> dict[str, object]:
        """JSON values for `status`."""
        roles = {m.target: m.role for m in self._members}
        return {
            "journal": self.spec.name,
            "epoch": str(self.epoch),
            "set_durable": self.set_durable,
            "copies": len([m for m in self._members if m.role is not Role.REFUGE]),
            "wanted": self.spec.copies,
            "refuge": self._refuge,
            "commit_ms_p50": round(self.commit_latencies.quantile(0.5) * 1e3, 1),
            "commit_ms_p99": round(self.commit_latencies.quantile(0.99) * 1e3, 1),
            "commits": self.commits,
            "waiting_bytes": sum(lane.waiting_bytes for lane in self.lanes),
            "lanes": len(self.lanes),
            "targets": [
                {
                    "target": name,
                    "role": str(roles[name]) if name in roles else "-",
                    "state": str(place.state),
                    "late": place.late,
                    "reason": place.reason,
                    **self.ports[name].stats(),
                }
                for name, place in self.places.items()
            ],
        }
