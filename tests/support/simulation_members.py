"""What must hold of who records where, and when: checks of a simulation beside those of what is stored (simulation_checks.py).

    promise 2, I24 · while a member is well, nothing waits longer for a commit than it takes to find out about the others
    I8  · a claim is one writer's alone: its term may be another's too, its name never
    I16 · behind a write or sync that failed, nothing in that file is acknowledged
    I25 · no flapping: who was lost sits its hold-down out, which doubles, unless nobody else is there
    I26 · nobody is lost who is well
    I29 · whoever commits on fewer copies than wanted has said so before

What is true is asked of the disks (`View.troubled_s`), what was said of the engine's observer; never of the engine itself.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from nvrstore.failover.detector import DEADLINES
from nvrstore.failover.machine import MEMBER, State
from nvrstore.failover.terms import ClaimKey
from nvrstore.journal.model import Batch
from nvrstore.limits import LOOK_FRESH_S, LOOK_S
from nvrstore.model import Medium
from nvrstore.replicate.places import FLAP_S
from nvrstore.replicate.prepare import FULL_STALL_S

if TYPE_CHECKING:
    from tests.support.simulation_node import Node
    from tests.support.simulation_world import World

#: A call's deadline and a step to notice, for each of three that may be found out one after the other; then two steps to commit.
DELAY_S: Final = 3 * (DEADLINES[Medium.MEMORY].lost_s + 0.2) + 0.4
#: What a worker that died while nobody used it answers at last.
_DIED: Final = os.strerror(errno.ESRCH)
#: What a fault does may show this much later: a look has to fail, or be missing for long.
SHADOW_S: Final = LOOK_FRESH_S + 3 * LOOK_S
_RECORDS: Final = (State.LIVE, State.SYNCED)


class MemberChecks:
    """See the module. Told by the world's `Checks`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._keys: set[ClaimKey] = set()
        self.delay_s = 0.0  # the longest that anything had to wait beside a member that was well

    # --- claims

    def claimed(self, node: Node, key: ClaimKey) -> None:
        if key in self._keys:
            self.world.checks.fail("I8", f"{node.who} claims {key.name}, which was claimed before")
        self._keys.add(key)

    # --- what the observer hears

    def changed(self, node: Node, target: str, before: State, after: State, reason: str) -> None:
        now_s = self.world.now_s
        told = node.told
        told.states[target] = after
        if before in MEMBER and after is State.AWAY:
            flapped = target in told.joined_s and now_s - told.joined_s[target] < FLAP_S and told.hold_s.get(target, 0.0) > 0
            told.hold_s[target] = min(2 * told.hold_s[target] if flapped else node.HOLD_DOWN_S, node.HOLD_DOWN_S_MAX)
            self._lost(node, target, reason)
        if after is State.HOLD_DOWN:
            told.held_s[target] = now_s
        if before is State.HOLD_DOWN and after is State.READY:
            others = [t for t, state in told.states.items() if t != target and (state in MEMBER or state is State.READY)]
            sat_s = now_s - told.held_s[target]
            if others and sat_s < told.hold_s.get(target, 0.0) - 1e-6:
                self.world.checks.fail("I25", f"{target} is back after {sat_s:.1f} s of {told.hold_s[target]:.1f}, beside {others}")
        if after in MEMBER and before not in MEMBER:
            told.joined_s[target] = now_s
        if after in _RECORDS and before not in _RECORDS:
            told.records_s[target] = now_s

    def _lost(self, node: Node, target: str, reason: str) -> None:
        view = self.world.views[node.who][target]
        quiet_s = self.world.clock.monotonic_s() - max(view.troubled_s, node.thawed_s)
        # Who took over, on any target, clears away what this one had prepared, and closes what it had open, before it sees the claim.
        terms = [seen.term for name in self.world.plan.targets if (seen := self.world.checks.highest(name)[0]) is not None]
        superseded = node.engine is not None and max(terms, default=0) > node.engine.spec.claim.term
        if quiet_s > SHADOW_S and not superseded and not reason.startswith("fenced") and _DIED not in reason:
            self.world.checks.fail("I26", f"{node.who} gives {target} up, which is well for {quiet_s:.1f} s: {reason}")

    # --- acknowledgements

    def stored(self, node: Node, path: str, batch: Batch, targets: Sequence[str], *, committed: bool) -> None:
        for target in targets:
            view = self.world.views[node.who][target]
            failed = view.failed_at.get(path)
            if failed is not None and batch.end > failed:
                self.world.checks.fail("I16", f"batch {batch.number} of {path} counts on {target}, where a write failed at {failed}")
        engine = node.engine
        if engine is None or not committed or engine.spec.commit_any:
            return
        synced = [name for name, state in node.told.states.items() if state is State.SYNCED]
        if len(targets) < node.copies <= len(synced):
            self.world.checks.fail("I29", f"{path} is committed on {list(targets)}, and nobody was told that {synced} are not all there")

    # --- after every step

    def step(self, node: Node) -> None:
        now_s = self.world.clock.monotonic_s()
        for view in self.world.views[node.who].values():
            if not view.well:
                view.troubled_s = now_s
            if self.world.faults.slow(view):
                node.slowed_s = now_s  # who is only slow is waited for until the buffer is full
        oldest_s = next(iter(node.due.values()), None)
        if oldest_s is None or node.engine is None:
            return
        for target, state in node.engine.states().items():
            if state not in _RECORDS or node.engine.fenced:
                continue
            view = self.world.views[node.who][target]
            well_s = now_s - max(oldest_s, view.troubled_s, node.thawed_s, node.slowed_s, self._records_s(node, target))
            self.delay_s = max(self.delay_s, well_s - (FULL_STALL_S if self.world.full else 0.0))
            if well_s > DELAY_S + (FULL_STALL_S if self.world.full else 0.0):  # room is waited for, as retention makes it
                waits = next(iter(node.due))
                self.world.checks.fail("promise 2, I24", f"{waits} waits for {well_s:.1f} s, and {target} is well and records")

    def _records_s(self, node: Node, target: str) -> float:
        return self.world.zero_s + node.told.records_s.get(target, 0.0)


class Told:
    """What a recorder's observer was told of its targets."""

    def __init__(self) -> None:
        self.states: dict[str, State] = {}
        self.hold_s: dict[str, float] = {}  # as the rule says, not as the engine does
        self.held_s: dict[str, float] = {}  # since when it sits there
        self.joined_s: dict[str, float] = {}
        self.records_s: dict[str, float] = {}
