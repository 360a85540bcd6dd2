"""Faults of a simulation: each kind once, drawn by chance, taken back by chance, and all of them healed at the end.

Named after what happens to a user: a disk that errs once or for long, hangs, thaws, is slow, full, unmounted; a power cut that
tears sectors; a path to one recorder that is cut; workers, recorders, hosts that die; clocks that step; recorders that freeze.
Never the last copy of anything: what a disk has synced, it keeps.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Final

from tests.support.simulation_disks import View

from nvrstore.failover.machine import State
from nvrstore.targets.contract import Request, Verb

if TYPE_CHECKING:
    from tests.support.simulation_node import Node
    from tests.support.simulation_world import World

_WRITING: Final = frozenset({Verb.APPEND, Verb.OPEN})
_ROOM: Final = frozenset({Verb.PREPARE, Verb.APPEND, Verb.WRITE, Verb.PUT, Verb.MKDIR, Verb.OPEN})
_SYNCS: Final = frozenset({Verb.SYNC, Verb.TRUNCATE, Verb.RENAME, Verb.LINK, Verb.UNLINK, Verb.PUT})

OPERATOR_S: Final = 3.0  # on average between two acts of maintenance

KINDS: Final = (
    "io-error",
    "write-error-once",
    "keeper-error",
    "hang",
    "partition",
    "slow",
    "full",
    "full-once",
    "unmount",
    "power-cut",
    "kill-workers",
    "clock-step",
    "kill-recorder",
    "host-power-cut",
    "freeze",
    "take-over",
    "lose-catalog",
)


class Faults:
    """See the module."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.injected: Counter[str] = Counter()  # what really happened, by kind
        self._next_s = 0.5
        self._slow: dict[int, int] = {}
        self._operator = Random(f"nvrstore operator {world.seed}")
        self._operator_next_s = 1.0

    def step(self) -> None:
        """Perhaps something happens now."""
        world, rng = self.world, self.world.rng
        if world.plan.operator and world.now_s >= self._operator_next_s:
            self._operator_next_s = world.now_s + self._operator.expovariate(1.0 / OPERATOR_S)
            self._operate()
        if world.now_s >= self._next_s:
            self._next_s = world.now_s + rng.expovariate(1.0 / world.plan.fault_every_s)
            if rng.random() < 0.45:
                self._mend_one()
            else:
                self.happen(rng.choice(world.plan.kinds))
        if not world.living() and rng.random() < 0.3:
            who = "nvr-2" if world.plan.second and rng.random() < 0.3 else "nvr-1"
            self._note(f"start {who}")
            world.begin(who, take_over=rng.random() < 0.5)

    def _operate(self) -> None:
        """A target is taken out for maintenance, or comes back."""
        running = [(node, engine) for node in self.world.living() if not node.frozen and (engine := node.engine) is not None]
        if not running:
            return
        node, engine = self._operator.choice(running)
        target, state = self._operator.choice(sorted(engine.states().items()))
        drained = state is State.DRAINED
        self._note(f"{'return' if drained else 'drain'} {node.who}:{target}")
        self.injected["return" if drained else "drain"] += 1
        (engine.take_back if drained else engine.drain)(target)

    def _note(self, what: str) -> None:
        self.world.history.append(f"{self.world.now_s:.1f} {what}")

    def _view(self) -> View:
        rng, world = self.world.rng, self.world
        who = rng.choice([node.who for node in world.living()] or ["nvr-1"])
        return world.views[who][rng.choice(sorted(world.views[who]))]

    def happen(self, kind: str) -> None:
        """One fault of this kind."""
        world, rng = self.world, self.world.rng
        view = self._view()
        self._note(f"{kind} {view.who}:{view.name}")
        self.injected[kind] += 1
        match kind:
            case "io-error":
                view.rule = lambda request: errno.EIO if request.verb in _WRITING else 0
            case "write-error-once":
                view.rule = _once(view, lambda request: request.verb in _WRITING, errno.EIO)
            case "keeper-error":
                share = rng.choice([0.1, 0.5])
                chance = rng
                view.rule = lambda request: errno.EIO if request.verb in _SYNCS and chance.random() < share else 0
            case "hang":
                for other in view.disk.views:
                    other.hold()
            case "partition":
                view.hold()
            case "slow":
                view.hold()
                self._slow[id(view)] = rng.choice([1, 2, 5])
            case "full":
                world.full = True
                view.rule = lambda request: errno.ENOSPC if request.verb in _ROOM else 0
            case "full-once":
                world.full = True
                view.rule = _once(view, lambda request: request.verb in _ROOM, errno.ENOSPC)
            case "unmount":
                view.unmount()
            case "power-cut":
                view.disk.cut_power(rng)
            case "kill-workers":
                view.kill_workers()
            case "clock-step":
                step_s = rng.choice([-3600.0, -5.0, 2.0, 3600.0] if world.plan.keep_s is None else [-5.0, -1.0, 2.0])
                world.stepped_back_s += max(0.0, -step_s)  # footage that seems older than what follows goes a little earlier
                world.clock.step(step_s)
            case "lose-catalog":
                node = world.node_of(view.who)
                if node is not None:
                    node.kill()
                world.states[view.who].lose_catalog()
            case _:
                self.injected[kind] -= not self._recorder(kind)

    def _recorder(self, kind: str) -> bool:
        """Whether there was a recorder that it could happen to."""
        world, rng = self.world, self.world.rng
        if not world.living():
            return False
        node: Node = rng.choice(world.living())
        match kind:
            case "kill-recorder":
                node.kill()
            case "host-power-cut":
                node.kill()
                for view in node.views.values():
                    view.disk.cut_power(rng)
            case "freeze":
                node.frozen = True
            case "take-over":
                other = "nvr-2" if node.who == "nvr-1" else "nvr-1"
                if not world.plan.second or world.node_of(other) is not None:
                    return False
                world.begin(other, take_over=True)
        return True

    def _mend_one(self) -> None:
        world, rng = self.world, self.world.rng
        broken = [v for views in world.views.values() for v in views.values() if v.held or v.rule is not None or not v.mounted]
        frozen = [node for node in world.living() if node.frozen]
        if frozen and (not broken or rng.random() < 0.4):
            node = rng.choice(frozen)
            self._note(f"thaw {node.who}")
            node.thaw()
        elif broken:
            view = rng.choice(broken)
            self._note(f"mend {view.who}:{view.name}")
            self._mend(view)

    def _mend(self, view: View) -> None:
        view.rule = None
        if not view.mounted:
            view.mount()
        if view.held:
            self._slow.pop(id(view), None)
            view.release()

    def slow(self, view: View) -> bool:
        return view.held and id(view) in self._slow

    def dribble(self) -> None:
        """Slow targets do a little."""
        for views in self.world.views.values():
            for view in views.values():
                if view.held and id(view) in self._slow:
                    view.step(self._slow[id(view)])

    def heal(self) -> None:
        """Everything works again."""
        self._note("heal")
        for views in self.world.views.values():
            for view in views.values():
                self._mend(view)
        for node in self.world.living():
            if node.frozen:
                node.thaw()
            for target, state in node.engine.states().items() if node.engine is not None else ():
                if state is State.DRAINED and node.engine is not None:
                    node.engine.take_back(target)


def _once(view: View, which: Callable[[Request], bool], code: int) -> Callable[[Request], int]:
    def rule(request: Request) -> int:
        if not which(request):
            return 0
        view.rule = None
        return code

    return rule
