"""The whole control plane on a virtual clock: disks, recorders, cameras, faults; one seed decides everything.

    with World(seed) as world: world.run()        raises Violation where an invariant does not hold

A run: a plan is drawn (targets, policies, which kinds of faults may happen at all: a swarm), the recorder starts, cameras
film, faults come and go; then everything heals, recording goes on for a while, and a last recorder brings it all together.
No threads, no files, no waiting. The last copy of a record is never destroyed: disks keep what was synced.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any, Final, Self
from unittest import mock

from tests.support.engine import CONFIG
from tests.support.simulation_checks import Checks, Identity
from tests.support.simulation_disks import Disk, View
from tests.support.simulation_faults import KINDS, Faults
from tests.support.simulation_node import Node, StateDisk
from tests.support.steps import drive

from nvrstore.clock import ManualClock
from nvrstore.media.fragment import pack_moof
from nvrstore.model import Fragment, FragmentFlag, Media, Record, RecordKind, TrackKey
from nvrstore.replicate.inventory import survey
from nvrstore.replicate.resync import plan_resync
from nvrstore.targets.contract import Request
from nvrstore.targets.pool import Pool

STEP_S = 0.2
FRAGMENT_S = 0.5
QUIET_S = 40.0  # after everything healed: hold-downs pass, resync runs
STREAMS: Final = ("gate", "yard")


@dataclass(frozen=True)
class Plan:
    """What one seed chose."""

    targets: str
    copies: int
    commit_any: bool
    refuge: bool
    second: bool
    volume_age_s: float
    keep_s: float | None
    pool_bytes: int
    seconds: float
    kinds: tuple[str, ...]
    fault_every_s: float
    calls: int
    laid_out: bool = False  # batches come from another process, through a window of the pool
    window_s: float | None = None  # what standbys keep
    rebuild_after_s: float = 0.0
    failback: bool = True
    operator: bool = False  # somebody takes targets out for maintenance, and brings them back

    @staticmethod
    def of_upkeep(rng: Random) -> dict[str, Any]:
        """What was drawn later than the rest, apart from it: the seeds that there were play as they did."""
        return {
            "window_s": rng.choice([None, None, None, 4.0]),
            "rebuild_after_s": rng.choice([0.0, 0.0, 6.0, 1200.0]),
            "failback": rng.random() < 0.75,
            "operator": rng.random() < 0.3,
        }

    @classmethod
    def draw(cls, rng: Random) -> Plan:
        targets = "abc"[: rng.choice([1, 2, 2, 2, 3, 3])]
        kinds = tuple(sorted(rng.sample(sorted(KINDS), rng.randint(1, min(6, len(KINDS))))))
        return cls(
            targets=targets,
            copies=rng.randint(1, len(targets)),
            commit_any=rng.random() < 0.2,
            refuge=rng.random() < 0.6,
            second=rng.random() < 0.4,
            volume_age_s=rng.choice([1.5, 3.0, 6.0]),
            keep_s=rng.choice([None, None, 8.0, 20.0]),
            pool_bytes=rng.choice([96 << 10, 256 << 10, 8 << 20]),
            seconds=rng.choice([8.0, 12.0, 20.0]),
            kinds=kinds,
            fault_every_s=rng.choice([0.7, 1.5, 4.0]),
            calls=rng.choice([3, 20, 200]),
        )


@lru_cache(maxsize=4096)
def _payload(identity: Identity) -> bytes:
    stream, session, index = identity
    return f"{stream} {session:016x} {index} ".encode() * (4 + index % 23)


class World:
    """See the module."""

    def __init__(self, seed: int, **changes: Any) -> None:
        self.seed = seed
        self.rng = Random(f"nvrstore {seed}")
        drawn = Plan.draw(self.rng)
        laid_out = Random(f"nvrstore laid out {seed}").random() < 0.4  # drawn apart: the seeds that there were play as they did
        upkeep = Plan.of_upkeep(Random(f"nvrstore upkeep {seed}"))
        self.plan = Plan(**{**drawn.__dict__, "laid_out": laid_out, **upkeep, **changes})
        self.clock = ManualClock()
        self.zero_s = self.clock.monotonic_s()
        self.history: list[str] = []
        self.full = False  # a target was full at some time
        self.healed = False
        self.stepped_back_s = 0.0
        self.ids = {"nvr-1": "1a" * 16, "nvr-2": "2b" * 16}
        self.states = {who: StateDisk() for who in self.ids}
        self.disks: dict[str, Disk] = {name: Disk(name, self.clock) for name in self.plan.targets}
        self.views: dict[str, dict[str, View]] = {}
        self.checks = Checks(self)
        for who in self.ids:
            self.views[who] = {name: View(self.disks[name], who, self.clock, self._carried, self.rng) for name in self.plan.targets}
            if self.plan.refuge:
                disk = self.disks[f"refuge-{who}"] = Disk("refuge", self.clock)
                self.views[who]["refuge"] = View(disk, who, self.clock, self._carried, self.rng)
        self.nodes: list[Node] = []
        self.streams = STREAMS
        self.faults = Faults(self)
        self._marks = 0

    def __enter__(self) -> Self:
        self._randomness = repeatable(self.rng)
        self._randomness.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._randomness.__exit__(None, None, None)
        for node in self.nodes:
            if not node.crashed:
                node.end()
            if node.engine is not None:
                for port in node.engine.ports.values():
                    if port.appender is not None:
                        port.appender.abandon()
        pools: list[Pool] = [node.pool for node in self.nodes]
        for views in self.views.values():
            for view in views.values():
                view.close(0)
        for node in self.nodes:
            if node.worker is not None:
                node.worker.close()
        for pool in pools:
            pool.close()
        for state in self.states.values():
            state.database.close()

    @property
    def now_s(self) -> float:
        return self.clock.monotonic_s() - self.zero_s

    def _carried(self, view: View, request: Request) -> None:
        self.checks.carrying_out(view, request)

    def payload(self, identity: Identity) -> bytes:
        return _payload(identity)

    def living(self) -> list[Node]:
        return [node for node in self.nodes if not node.crashed]

    def node_of(self, who: str) -> Node | None:
        return next((node for node in self.living() if node.who == who), None)

    @property
    def succeeded(self) -> bool:
        """Whether another recorder took the journal over."""
        return len({node.who for node in self.nodes if node.engine is not None}) > 1

    def begin(self, who: str, *, take_over: bool = False, copies: int = 0) -> Node:
        node = Node(self, who, self.ids[who], self.rng.getrandbits(64), take_over=take_over, copies=copies or self.plan.copies)
        self.nodes.append(node)
        return node

    def begun(self, node: Node) -> None:
        """It records from now on."""
        for stream in STREAMS:
            (node.worker or node.intake).declare(TrackKey(stream, Media.VIDEO), stream, CONFIG)
        node.cameras_from_s = self.clock.monotonic_s()

    # --- time

    def run(self) -> None:
        """All of it."""
        self.begin("nvr-1")
        while self.now_s < self.plan.seconds:
            self.faults.step()
            self.step()
        self.faults.heal()
        self.healed = True
        self.quiet()
        self.finish()

    def step(self, step_s: float = STEP_S, *, calls: int | None = None) -> None:
        self.clock.advance(step_s)
        self.faults.dribble()
        for node in self.living():
            if node.running and not node.frozen:
                self._film(node)
            node.round(self.plan.calls if calls is None else calls)
        self.checks.step()

    def _film(self, node: Node) -> None:
        elapsed = self.clock.monotonic_s() - node.cameras_from_s
        while node.filmed < int(elapsed / FRAGMENT_S):
            index = node.filmed
            for stream in STREAMS:
                identity = (stream, node.session, index)
                data = _payload(identity)
                moof = pack_moof([45_000, len(data), 0x0200_0000, 0], len(data))
                fragment = Fragment(
                    TrackKey(stream, Media.VIDEO),
                    CONFIG,
                    node.session,
                    index,
                    1,
                    self.clock.utc_ns(),
                    45_000,
                    FragmentFlag.KEYFRAME | FragmentFlag.SEGMENT,
                    (moof, data),
                    len(moof) + len(data),
                )
                if node.worker is not None:
                    node.worker.put(fragment)
                else:
                    node.hand_over(identity, fragment.utc_ns)
                    node.intake.put(fragment)
            node.filmed += 1
            if node.worker is not None:
                for handed in node.worker.hand_over():
                    node.hand_over((handed.track.stream, handed.session, handed.index), handed.utc_ns)
                if index % 8 == 7:
                    node.worker.sit()  # the process died between two batches
            if self.rng.random() < 0.1:
                self._marks += 1
                node.intake.record(Record(RecordKind.MARK, f"mark-{self._marks}", {"stream": "gate", "n": self._marks}))

    # --- the end of a run

    def quiet(self) -> None:
        """No faults any more: whoever owns the journal records on all its targets again."""
        if not any(node.running for node in self.living()):
            self._begin_again()
        until_s = self.now_s + QUIET_S
        heard_s = self.now_s + QUIET_S / 4
        whole = 0
        while self.now_s < until_s:
            self.step(0.25, calls=400)
            owner = self.owner()
            if owner is None and self.now_s > heard_s:
                heard_s = until_s
                self._begin_again()  # whoever superseded the others died: somebody is started, as people do
            whole = whole + 1 if owner is not None and owner.whole() else 0
            if whole >= 6:
                break
        owner = self.owner()
        if owner is None:
            self.checks.fail("I28", f"nobody records {QUIET_S} s after everything healed")
            return
        if not owner.whole():
            states = {name: str(state) for name, state in owner.engine.states().items()} if owner.engine is not None else {}
            self.checks.fail("I28", f"{QUIET_S} s after everything healed {owner.who} records on {states}")

    def _begin_again(self) -> None:
        for node in self.living():
            node.kill()
        self.begin("nvr-1", take_over=True)

    def owner(self) -> Node | None:
        """The recorder with the highest term."""
        running = [node for node in self.living() if node.engine is not None and not node.engine.fenced]
        return max(running, key=lambda node: node.state.term, default=None)

    def finish(self) -> None:
        """Everybody stops in order; then one more start of the first recorder merges what there is, long after."""
        for node in self.living():
            if node.engine is None:
                node.end()
                continue
            node.thaw()  # it stood still while others stopped
            for _ in range(60):
                if node.engine.idle:
                    break
                node.engine.stop()
                self.clock.advance(0.25)
                node.hub.round()
            self.checks.stopped(node)
            node.end()
            for view in node.views.values():
                view.kill_workers()
        for who in ["nvr-2", "nvr-1"] if self.plan.refuge and self.plan.second else ["nvr-1"]:
            last = self.begin(who, take_over=True, copies=len(self.plan.targets))
            last.last = True
            while last.engine is None:
                self.clock.advance(0.25)
                last.round(400)
            last.forget_cameras()
            self.clock.advance(7200.0)  # foreign writers' volumes are recovered after an hour
            for _ in range(240):
                self.clock.advance(0.25)
                last.round(2000)
                self.checks.step()
                if last.whole() and last.quiet_rounds >= 4:
                    break
            else:
                states = last.engine.states() if last.engine is not None else {}
                self.checks.fail("I28, I13", f"the last start never comes to its end: {states}, {last.why_not()}")
            last.stop_in_order()
        before = {name: self.volumes(name) for name in self.plan.targets}
        self.checks.end(last)
        again = drive_upkeep(self, last)
        if again or {name: self.volumes(name) for name in self.plan.targets} != before:
            self.checks.fail("I19", "another recovery changes something")

    def volumes(self, name: str) -> dict[str, bytes]:
        """What lies on a disk: every volume under its own name."""
        files = self.disks[name].files.files
        return {
            path: file.read(0, file.seen_size, fresh=True)
            for path, file in sorted(files.items())
            if path.endswith(".mp4") and "/.next/" not in path and "/trash/" not in path
        }


def drive_upkeep(world: World, node: Node) -> bool:
    """One more recovery and resync of everything; whether it found something to do."""
    views = world.views[node.who]
    seen = drive(survey(list(views), "main"), views)
    plan = plan_resync(seen, list(world.plan.targets), recorder=node.who, held_s=1e9, refuge="refuge", floors=node.all_floors)
    return bool(plan.recover or plan.copies)


@contextmanager
def repeatable(rng: Random) -> Iterator[None]:
    """Ids that are random elsewhere come from the seed here."""
    source = Random(rng.getrandbits(64))
    with mock.patch.object(secrets, "token_hex", lambda n=32: source.randbytes(n).hex()):
        yield
