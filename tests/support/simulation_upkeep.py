"""Upkeep of a simulated recorder: the real chores, mending and pruning, driven call by call on the virtual clock.

    Chores.quick_round, long_round --Steps--> `driven` --Call, Pause--> the node's `Work`, so many calls in a step

What a recorder's host gives them is here: its catalog in memory, its ledger, its terms. The threads are two scripts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.support.simulation_catalog import MemoryCatalog

from nvrstore import events
from nvrstore.config import Config, StreamConfig
from nvrstore.failover.terms import ClaimKey
from nvrstore.model import Gap, Record
from nvrstore.recorder.durable import Durability
from nvrstore.replicate.hub import Hub
from nvrstore.targets.contract import Steps, Verb
from nvrstore.upkeep.chores import ROOM_S, ROUND_S, SOON_S, Chores
from nvrstore.upkeep.host import Work
from nvrstore.upkeep.retention import Removal
from nvrstore.worker.wire import HARD_ERRORS

if TYPE_CHECKING:
    from tests.support.simulation_node import Node

TURN_S = 0.05  # how often a script that waits for another looks


@dataclass(frozen=True, slots=True)
class Pause:
    seconds: float


Script = Generator[Any, Any, Any]


def driven(work: Work[Any], suspect: Callable[[str], object]) -> Script:
    """As `Runner.work`, but whoever drives this carries the calls out."""
    try:
        steps = next(work)
        while True:
            try:
                done = yield from _told(steps, suspect)
            except Exception as error:  # noqa: BLE001 - it belongs to the work
                steps = work.throw(error)
            else:
                steps = work.send(done)
    except StopIteration as stop:
        return stop.value
    finally:
        work.close()


def _told(steps: Steps[Any], suspect: Callable[[str], object]) -> Script:
    """The steps; of a target on which a call fails hard somebody is told."""
    try:
        call = next(steps)
        while True:
            answer = yield call
            if answer is not None and answer.errno in HARD_ERRORS and call.request.verb is not Verb.READ:
                suspect(call.target)
            call = steps.send(answer)
    except StopIteration as stop:
        return stop.value
    finally:
        steps.close()


class NodeHub(Hub):
    """Its caller is its thread."""

    def ask(self, call: Callable[[], Any], timeout_s: float = 5.0) -> Any:
        return call()


class Host:
    """One recorder, as upkeep sees it."""

    def __init__(self, node: Node, hub: Hub, *, streams: Sequence[str]) -> None:
        self.node, self.hub, self.clock = node, hub, node.clock
        self.session, self.recorder_id, self.started_ns = node.session, node.recorder_id, node.clock.utc_ns()
        self.targets = node.views
        self.worker_locks = node.worker_locks
        self.catalog = MemoryCatalog(node.state.database)
        self.durability = Durability(len(node.views))
        self.config = _config(node, streams)
        self.told: list[events.Event] = []

    @property
    def engines(self) -> Mapping[str, Any]:
        return {"main": self.node.engine}

    def publish(self, event: events.Event) -> None:
        """Also of whatever the engine's observer says."""
        self.told.append(event)
        if isinstance(event, events.Alarm) and event.what == "upkeep":
            broken = sys.exc_info()[1]
            raise broken if isinstance(broken, AssertionError) else AssertionError(event.sentence)

    def save_term(self, journal: str, term: int) -> bool:
        self.node.world.checks.claimed(self.node, ClaimKey(term, self.recorder_id, self.session))
        self.node.state.term = term
        return True

    def saved_term(self, journal: str) -> int:
        return self.node.state.term

    def saved_waits(self) -> Mapping[str, float]:
        return self.node.state.waits

    def save_waits(self, waited: Mapping[str, float]) -> bool:
        self.node.state.waits = dict(waited)
        return True

    def wait_records(self, records: Sequence[tuple[str, Record]], timeout_s: float) -> Steps[bool]:
        durable = [self.durability.wait_record(record) for _, record in records]
        for _, record in records:
            self.node.intake.record(record)
        return _wait(durable, self.clock.monotonic_s() + timeout_s, self.clock.monotonic_s)

    def record_gap(self, journal: str, gap: Gap) -> None:
        self.node.intake.record(gap.record())

    def synced(self, journal: str, copies: int) -> None:
        self.durability.synced(journal, self.streams_of(journal), copies)

    def copied(self, journal: str, volume_id: str) -> None:
        self.durability.copied(journal, self.streams_of(journal), volume_id)

    def streams_of(self, journal: str) -> list[str]:
        return [stream.id for stream in self.config.streams]


def _wait(durable: Sequence[Future[None]], until_s: float, now_s: Callable[[], float]) -> Script:
    while not all(future.done() for future in durable):
        if now_s() >= until_s:
            return False
        yield Pause(TURN_S)
    return True


def _config(node: Node, streams: Sequence[str]) -> Config:
    plan = node.world.plan
    keep = {} if plan.keep_s is None else {"days": plan.keep_s / 86_400}
    window = {} if plan.window_s is None else {"standby_keep": {"days": plan.window_s / 86_400}}
    config = Config.parse(
        {
            "recorder": {"name": node.who, "state": "/nowhere/state"},
            "target": [{"name": name, "path": f"/nowhere/{name}"} for name in plan.targets],
            "journal": [
                {
                    "name": "main",
                    "targets": list(plan.targets),
                    "copies": node.copies,
                    "keep": keep,
                    "rebuild_after_s": plan.rebuild_after_s,
                    "failback": "auto" if plan.failback else "manual",
                    **window,
                }
            ],
        }
    )
    made = tuple(config.complete(StreamConfig(id=name, url="rtsp://127.0.0.1/x")) for name in streams)
    return config.model_copy(update={"streams": made})


class NodeChores(Chores):
    """The real ones; what they are about to do is shown to the checks."""

    def __init__(self, node: Node, host: Host) -> None:
        super().__init__(host, "refuge")
        self.mending._wait = lambda seconds: True  # a disk of the simulation does all at once: nobody is in anybody's way
        self._node = node
        self._at_room = False
        plan, remove = self.mending._plan, self._pruning._remove

        def planned(*arguments: Any) -> Any:
            made = plan(*arguments)
            node.world.checks.planned(node, made)
            return made

        def removing(removal: Removal) -> Work[bool]:
            node.world.checks.removing(node, removal)
            return (yield from remove(removal))

        self.mending._plan = planned  # type: ignore[method-assign, assignment]
        self._pruning._remove = removing  # type: ignore[method-assign]

    def _tidy(self, journal: str, target: str) -> Work[None]:
        yield from super()._tidy(journal, target)
        self._node.world.checks.tidied(self._node, target)

    def _make_room(self) -> Work[int]:
        """Whoever comes second waits: a lock would wait for ever, where both are one thread."""
        while self._at_room:
            yield _turn()
        self._at_room = True
        try:
            return (yield from self._pruning.run())
        finally:
            self._at_room = False

    def quick(self) -> Script:
        """As its quick thread."""
        while True:
            yield from driven(self.quick_round(), self._host.hub.suspect)
            yield from self._bell(self._quick_bell, ROOM_S)

    def long(self) -> Script:
        """As its long thread."""
        yield from driven(self.begin(), self._host.hub.suspect)
        while True:
            yield from driven(self.long_round(), self._host.hub.suspect)
            self._node.quiet_rounds = 0 if self.mending.pending else self._node.quiet_rounds + 1
            yield from self._bell(self._long_bell, SOON_S if self.mending.pending else ROUND_S)

    def _bell(self, bell: Any, wait_s: float) -> Script:
        until_s = self._host.clock.monotonic_s() + wait_s
        while not bell.is_set() and self._host.clock.monotonic_s() < until_s:
            yield Pause(TURN_S)
        bell.clear()


def _turn() -> Script:
    yield Pause(TURN_S)
