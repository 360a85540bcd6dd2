"""Where each target stands in one journal: what is observed becomes events, the failover machine's table does the rest.

    port down, verdict lost, higher term seen --lost-->   machine   --effects--> port (workers), engine (set, resync)
    look succeeded --answered--> hold-down over --held-->

A target that flaps is held down for twice as long each time; while no member lives, one that answers is taken at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from nvrstore.clock import Clock
from nvrstore.failover.detector import Health
from nvrstore.failover.machine import MEMBER, Effect, Event, State, step
from nvrstore.failover.terms import ClaimKey, Verdict, judge
from nvrstore.replicate.contract import JournalSpec, Observer
from nvrstore.replicate.port import Port
from nvrstore.telemetry import get_logger

log = get_logger("replicate.places")

FLAP_S: Final = 600.0  # a member lost again within this has flapped: its hold-down doubles
CLAIM_AGAIN_S: Final = 2.0  # how often a claim that does not stand yet is asked for


@dataclass(slots=True)
class Place:
    """One target in this journal."""

    state: State = State.AWAY
    generation: int = -1
    since_s: float = 0.0
    lost_s: float | None = None  # since when it has had no part in the recording; None: it has
    hold_s: float = 0.0
    reason: str = ""
    late: bool = False
    asked_s: float = float("-inf")  # when its claim was last asked for
    claimed: bool = False  # the writer's claim stands there: others see it, and it may join


class PlacesHost(Protocol):
    """What is asked of the journal's engine."""

    spec: JournalSpec
    ports: Mapping[str, Port]
    clock: Clock
    observer: Observer
    lost_at_s: float | None

    def carry_out(self, name: str, effect: Effect) -> None: ...


class Watch:
    """The places of one journal. Used by the engine's thread."""

    def __init__(self, host: PlacesHost) -> None:
        self._host = host
        now_s = host.clock.monotonic_s()
        self.places = {name: Place(since_s=now_s, lost_s=now_s, claimed=name in host.spec.claimed_on) for name in host.spec.targets}
        self.fenced_by = ""  # file name of the claim that superseded this writer
        self.answered: frozenset[int] = frozenset()  # earlier sessions of this recorder, whose claims were outbid

    def step(self, now_s: float, *, resumed_s: float) -> None:
        """Turn what is observed now into events."""
        for name, place in self.places.items():
            port = self._host.ports[name]
            if place.state in MEMBER or place.state is State.READY:
                if not port.up or port.generation != place.generation:
                    self.happen(name, Event.LOST, port.reason)
                    continue
                verdict = port.verdict(resumed_s=resumed_s)
                place.late = verdict.health is Health.LATE
                if verdict.health is Health.LOST:
                    self.lose(name, verdict.reason)
                elif not self._lawful(name):
                    self.lose(name, f"fenced: {self.fenced_by} recorded there with a higher term")
            elif place.state is State.AWAY:
                if port.answering and self._lawful(name):
                    self.happen(name, Event.ANSWERED, "")
            elif place.state is State.HOLD_DOWN:
                if not port.answering:
                    self.happen(name, Event.LOST, port.reason or "no look succeeds")
                elif place.claimed and (now_s - place.since_s >= place.hold_s or self._nobody()):
                    self.happen(name, Event.HELD, "")
            if not place.claimed and place.state is not State.AWAY and port.answering and now_s - place.asked_s >= CLAIM_AGAIN_S:
                # Asked for until it stands: the first try may find the target full, or gone again.
                place.asked_s = now_s
                self._host.observer.claim_wanted(self._host.spec.name, name)

    def _nobody(self) -> bool:
        return not any(place.state in MEMBER or place.state is State.READY for place in self.places.values())

    def _lawful(self, target: str) -> bool:
        """Whether no other writer's higher term is seen there."""
        spec, look = self._host.spec, self._host.ports[target].look
        seen = ClaimKey.of(look.claims.get(spec.name, "")) if look is not None else None
        verdict = judge(spec.claim, seen, self.answered)
        if verdict is Verdict.STALE_SELF:
            self._host.observer.claim_again(spec.name, seen)
        elif verdict is Verdict.SUPERSEDED and seen is not None:
            self.fenced_by = seen.name
        return verdict is not Verdict.SUPERSEDED

    def lost_since_s(self, names: Sequence[str]) -> float | None:
        """Since when (monotonic) the first of these has had no part in the recording; None while all have."""
        return min((place.lost_s for name in names if (place := self.places[name]).lost_s is not None), default=None)

    def lose(self, name: str, reason: str) -> None:
        """Take a target out now."""
        self._host.ports[name].fail(reason)
        self.happen(name, Event.LOST, reason)

    def happen(self, name: str, event: Event, reason: str) -> None:
        """Let the machine decide, and have its effects carried out."""
        host, place = self._host, self.places[name]
        before = place.state
        after, effects = step(before, event)
        if after is before and not effects:
            return
        now_s = host.clock.monotonic_s()
        if event is Event.LOST and before in MEMBER:
            flapped = now_s - place.since_s < FLAP_S and place.hold_s > 0
            place.hold_s = min(place.hold_s * 2 if flapped else host.spec.hold_down_s, host.spec.hold_down_s_max)
            host.lost_at_s = now_s
        if after is not before:
            place.state, place.reason = after, reason
            if not (before in MEMBER and after in MEMBER):
                place.since_s = now_s
            if after in MEMBER:
                place.lost_s = None
            elif before in MEMBER:
                place.lost_s = now_s
            failed_s = host.ports[name].failed_s if event is Event.LOST else None
            since_failure_s = None if failed_s is None else now_s - failed_s
            host.observer.target_changed(host.spec.name, name, before, after, reason, since_failure_s)
            log.info("target.changed", journal=host.spec.name, target=name, before=str(before), after=str(after), reason=reason)
        for effect in effects:
            self._carry_out(name, place, effect, reason)

    def _carry_out(self, name: str, place: Place, effect: Effect, reason: str) -> None:
        port = self._host.ports[name]
        match effect:
            case Effect.START_WORKERS:
                if port.start():
                    place.generation = port.generation
                    self._host.observer.workers_started(self._host.spec.name, name)
                else:
                    self.happen(name, Event.LOST, port.reason)
            case Effect.ABANDON_WORKERS:
                if port.generation == place.generation:
                    port.fail(reason)
            case Effect.CLOSE_WORKERS:
                port.drained(self._host.spec.name, reason)
            case Effect.LOOK_AGAIN:
                port.returned(self._host.spec.name)
            case _:
                self._host.carry_out(name, effect)
