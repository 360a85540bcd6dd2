"""One recorder of a simulation, from its start to its end: the real hub, ports, engine, observer and upkeep, on the virtual clock.

    start: read claims -> (watch the owner) -> claim --> hub.round() every step
                                                         quick work: claims for targets that return, room
                                                         long work:  tidy, then survey -> recover -> resync -> declare -> retention

What a thread waits for in a recorder is a `Pause` or an unanswered call here; a crash or a freeze finds it anywhere.
The catalog is a database in memory that survives on the state disk, unless the world loses it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, Final, cast

from tests.support.laid_out import Worker
from tests.support.simulation_catalog import new_database
from tests.support.simulation_members import Told
from tests.support.simulation_upkeep import Host, NodeChores, NodeHub, Pause, Script

from nvrstore.clock import ManualClock
from nvrstore.errors import JournalInUseError, NvrstoreError, TargetError
from nvrstore.failover.machine import State
from nvrstore.failover.terms import ClaimKey
from nvrstore.journal.model import Batch, VolumeHeader
from nvrstore.limits import CATALOG_COMMIT_S
from nvrstore.model import Commit, Epoch, Fragment, Gap, MemberRef, Record
from nvrstore.recorder.bus import Bus
from nvrstore.recorder.observer import RecorderObserver
from nvrstore.replicate.buffer import ReplayBuffer
from nvrstore.replicate.claim import Claimant, claim_term, in_use_by, read_claims
from nvrstore.replicate.contract import JournalSpec
from nvrstore.replicate.engine import JournalEngine
from nvrstore.replicate.floor import Floor
from nvrstore.replicate.intake import Intake
from nvrstore.replicate.port import Port
from nvrstore.targets.contract import UNAVAILABLE, Answer, Call
from nvrstore.targets.identity import ensure_journal
from nvrstore.targets.pool import Pool

if TYPE_CHECKING:
    from tests.support.simulation_world import World

CALL_S = 15.0  # as upkeep/host.py waits
ANSWER_S = 3.0  # as the start waits
ROUND_S = 1.0
SLACK_BYTES = 128 << 10


class Work:
    """A script on the virtual clock: so many calls a step, and an answer that never comes is one of `UNAVAILABLE`."""

    def __init__(self, script: Script, targets: dict[str, Any], clock: ManualClock, *, timeout_s: float = CALL_S) -> None:
        self.script, self._targets, self._clock, self._timeout_s = script, targets, clock, timeout_s
        self._future: Future[Answer] | None = None
        self._until_s: float | None = None
        self._begun = False
        self.result: Any = None
        self.error: NvrstoreError | None = None

    def advance(self, calls: int) -> bool:
        """Up to so many calls; True when it is done."""
        try:
            if not self._begun:
                self._begun = True
                self._take(next(self.script))
            while calls > 0:
                calls -= 1
                now_s = self._clock.monotonic_s()
                if self._future is None:
                    if self._until_s is not None and now_s < self._until_s:
                        return False
                    self._take(self.script.send(None))
                elif self._future.done():
                    self._take(self.script.send(self._future.result()))
                elif self._until_s is not None and now_s >= self._until_s:
                    self._take(self.script.send(Answer(0, UNAVAILABLE)))
                else:
                    return False
        except StopIteration as stop:
            self.result = stop.value
            return True
        except NvrstoreError as error:
            self.error = error
            return True
        return False

    def _take(self, wish: Call | Pause) -> None:
        now_s = self._clock.monotonic_s()
        if isinstance(wish, Pause):
            self._future, self._until_s = None, now_s + wish.seconds
        else:
            self._future, self._until_s = self._targets[wish.target].keeper.submit(wish.request), now_s + self._timeout_s


@dataclass
class StateDisk:
    """What a recorder remembers."""

    term: int = 0
    waits: dict[str, float] = field(default_factory=dict)
    database: sqlite3.Connection = field(default_factory=new_database)

    def lose_catalog(self) -> None:
        self.database.close()
        self.database = new_database()


class Node:
    """See the module. `world` hears everything (it is the engine's observer's ear)."""

    HOLD_DOWN_S: Final = 1.0
    HOLD_DOWN_S_MAX: Final = 4.0

    def __init__(self, world: World, who: str, recorder_id: str, session: int, *, take_over: bool, copies: int) -> None:
        self.world, self.who, self.recorder_id, self.session = world, who, recorder_id, session
        self.clock: ManualClock = world.clock
        self.rng: Random = world.rng
        self.views = world.views[who]
        self.state: StateDisk = world.states[who]
        self.copies = copies
        self.me = Claimant(who, recorder_id, session)
        self.last = False
        self.frozen = False
        self.crashed = False
        self.engine: JournalEngine | None = None
        windows = int(world.plan.laid_out)
        # As in a recorder: at the bound there is room for a header, and the bound is reached before a window is full.
        self.pool = Pool(world.plan.pool_bytes + SLACK_BYTES, windows=windows, window_bytes=2 * world.plan.pool_bytes + SLACK_BYTES)
        self.buffer = ReplayBuffer(self.pool, bytes_max=world.plan.pool_bytes)
        self.buffer.bytes_max = world.plan.pool_bytes
        self.intake = Intake()
        self.worker = Worker(self.pool.windows[0], self.intake, session) if windows else None
        self.hub = NodeHub(self.clock, on_failure=lambda error: None)
        self.put: dict[tuple[str, int, int], int] = {}  # identity -> UTC; what cameras handed over
        self.acked: set[tuple[str, int, int]] = set()
        self.refuged: set[tuple[str, int, int]] = set()
        self.acked_records: dict[tuple[int, str], Record] = {}
        self.next_index: dict[str, int] = {}
        self.due: dict[tuple[str, int, int], float] = {}  # what waits to be stored or dropped, and since when: the oldest first
        self.told = Told()
        self.thawed_s = self.slowed_s = self.clock.monotonic_s()
        self.worker_locks = {name for name, view in self.views.items() if view.quiet}
        self._quick: Work | None = None
        self._long: Work | None = None
        self._written_s = self.clock.monotonic_s()  # when the catalog was written last
        self.quiet_rounds = 0  # of upkeep, that found nothing to do
        self.cameras_from_s = 0.0
        self.filmed = 0
        self._unsynced_primary_s: float | None = None
        self._primary_seen_s = 0.0
        self.dropped: set[tuple[str, int, int]] = set()
        self._start = Work(self._begin(take_over), self.views, self.clock, timeout_s=ANSWER_S)
        self.refused = False

    # --- life

    @property
    def running(self) -> bool:
        return self.engine is not None and not self.crashed

    def round(self, calls: int) -> None:
        """One step, unless it is frozen or dead."""
        if self.frozen or self.crashed:
            return
        if self.engine is None:
            if self._start.advance(calls) and self.engine is None:
                self.refused = True
                self.end()
            return
        self.hub.round()
        now_s = self.clock.monotonic_s()
        if now_s - self._written_s >= CATALOG_COMMIT_S:
            self._written_s = now_s
            self.host.catalog.write()
        for work in (self._quick, self._long):
            if work is not None and (work.advance(calls) or work.error is not None):
                raise AssertionError(f"upkeep ended: {work.error!r}")

    def thaw(self) -> None:
        self.frozen = False
        self.hub.resumed_s = self.thawed_s = self.clock.monotonic_s()

    def hand_over(self, identity: tuple[str, int, int], utc_ns: int) -> None:
        """A camera's fragment is the engine's from now on."""
        self.put[identity] = utc_ns
        self.due[identity] = self.clock.monotonic_s()

    def kill(self) -> None:
        """SIGKILL: its workers go too, but for what the kernel is doing."""
        for view in self.views.values():
            view.kill_workers()
        self.end()

    def end(self) -> None:
        """Nothing of it runs any more. Its pool lives on while a stuck call may read it: the world closes it."""
        self.crashed = True
        for work in (self._quick, self._long, self._start):
            if work is not None:
                work.script.close()
        self.hub.stop(0.0)

    def stop_in_order(self) -> None:
        """Commit, close, end."""
        engine = self.engine
        if engine is None:
            return
        for _ in range(60):
            if engine.idle:
                break
            engine.stop()
            self.clock.advance(0.25)
            self.hub.round()
        self.host.catalog.write(ending=True)
        self.end()
        for view in self.views.values():
            view.kill_workers()

    def forget_cameras(self) -> None:
        """It only mends."""
        self.cameras_from_s = float("inf")

    # --- what the checks ask

    @property
    def all_floors(self) -> dict[str, Floor]:
        """By place."""
        return {place: floor for (_, place), floor in self.chores._pruning.floors.items()} if self.engine is not None else {}

    def floors(self) -> dict[str, int]:
        """What expired for the whole journal."""
        return dict(self.all_floors.get("*", Floor()).gone)

    def whole(self) -> bool:
        """Whether every configured target is where it belongs, and the wanted copies are synced."""
        engine = self.engine
        if engine is None:
            return False
        states = list(engine.states().values())
        # Open volumes of another recorder are left alone for an hour; who lacks them is not called synced so long.
        good = (State.SYNCED, State.LIVE) if self.world.succeeded and not self.last else (State.SYNCED,)
        return all(s in (*good, State.READY) for s in states) and sum(s in good for s in states) >= min(self.copies, len(states))

    def primary_may_wait(self, target: str) -> bool:
        """A change of set is on its way: at most a second."""
        now_s = self.clock.monotonic_s()
        if self._unsynced_primary_s is None or now_s - self._primary_seen_s > 0.5:
            self._unsynced_primary_s = now_s
        self._primary_seen_s = now_s
        return now_s - self._unsynced_primary_s < 6.0

    def why_not(self) -> str:
        waiting = self.chores.mending._unclosed
        return f"unclosed {[(v, sorted(t.holders)) for unclosed in waiting.values() for v, t in unclosed._tried.items()]}"

    # --- the start

    def _begin(self, take_over: bool) -> Script:
        plan, names = self.world.plan, [n for n in self.views if n != "refuge"]
        for view in self.views.values():
            view.keeper.wake()  # of a process of its own: whatever an earlier one had drained
        first = yield from read_claims(names, "main")
        owner = in_use_by(first, self.recorder_id)
        earlier = None
        if owner is not None and not take_over:
            yield Pause(5.0)
            again = yield from read_claims(names, "main")
            if in_use_by(again, self.recorder_id, first) is not None:
                raise JournalInUseError("it is being recorded by another")
            earlier = first
        for name in first.keys:
            try:
                yield from ensure_journal(name, "main", "cd" * 16)
            except TargetError:
                continue
        claimed = yield from claim_term(
            names, "main", self.me, utc_ns=self.clock.utc_ns(), state_term=self.state.term, take_over=take_over, earlier=earlier
        )
        self.world.checks.claimed(self, claimed.claim.key)
        self.state.term = claimed.claim.term
        ports = {
            name: Port(
                view,
                self.pool,
                self.clock,
                target_id=view.id,
                look_id=self.recorder_id,
                journals=["main"] if name != "refuge" else [],
                post=self.hub.post,
            )
            for name, view in self.views.items()
        }
        spec = JournalSpec(
            name="main",
            journal_id="cd" * 16,
            recorder=self.who,
            session=self.session,
            claim=claimed.claim.key,
            targets=tuple(names),
            copies=self.copies,
            claimed_on=frozenset(claimed.targets),
            commit_any=plan.commit_any,
            hold_down_s=self.HOLD_DOWN_S,
            hold_down_s_max=self.HOLD_DOWN_S_MAX,
            volume_bytes=1 << 20,
            volume_age_s=plan.volume_age_s,
            refuge="refuge" if "refuge" in self.views else None,
            failback_auto=plan.failback,
        )
        self.host = Host(self, self.hub, streams=() if self.last else self.world.streams)
        self.chores = NodeChores(self, self.host)
        bus = cast(Bus, self.host)  # it publishes
        self.observer = RecorderObserver(self.host.catalog, self.host.durability, bus, self.chores, self.clock, lambda _: self.copies)
        self.engine = JournalEngine(spec, ports, self.buffer, self.intake, self.clock, self, self.hub.post)
        self._hear_losses(self.engine)
        self.hub.add(list(ports.values()), [self.engine])
        self._quick, self._long = (Work(script, self.views, self.clock) for script in (self.chores.quick(), self.chores.long()))
        self.world.begun(self)

    def _hear_losses(self, engine: JournalEngine) -> None:
        told = engine._bound._losses.dropped

        def dropped(fragment: Fragment) -> Gap | None:
            identity = (fragment.track.stream, fragment.session, fragment.index)
            self.dropped.add(identity)
            self.due.pop(identity, None)
            self.world.checks.dropping(self)
            return told(fragment)

        engine._bound._losses.dropped = dropped  # type: ignore[method-assign]

    # --- Observer: what the engine says goes to the checks, and where it goes in a recorder

    def volume_opened(self, header: VolumeHeader, path: str, target: str) -> None:
        self.observer.volume_opened(header, path, target)

    def batch_stored(self, header: VolumeHeader, path: str, batch: Batch, targets: Sequence[str], commit: Commit | None) -> None:
        self.world.checks.stored(self, header, path, batch, targets, commit)
        self.observer.batch_stored(header, path, batch, targets, commit)

    def volume_closed(self, header: VolumeHeader, path: str, length: int, batches: int, targets: Sequence[str]) -> None:
        self.observer.volume_closed(header, path, length, batches, targets)
        self.world.checks.closed(self, header.volume_id, path, length, targets)

    def volume_left(self, header: VolumeHeader, path: str) -> None:
        self.observer.volume_left(header, path)

    def target_changed(self, journal: str, target: str, before: State, after: State, reason: str, since_failure_s: float | None) -> None:
        self.observer.target_changed(journal, target, before, after, reason, since_failure_s)
        self.world.checks.members.changed(self, target, before, after, reason)

    def set_changed(self, journal: str, epoch: Epoch, members: Sequence[MemberRef]) -> None:
        self.observer.set_changed(journal, epoch, members)

    def first_commit(self, journal: str, since_lost_s: float) -> None:
        self.observer.first_commit(journal, since_lost_s)

    def needs_space(self, journal: str, target: str) -> None:
        self.observer.needs_space(journal, target)

    def workers_started(self, journal: str, target: str) -> None:
        self.observer.workers_started(journal, target)

    def claim_wanted(self, journal: str, target: str) -> None:
        self.observer.claim_wanted(journal, target)

    def claim_again(self, journal: str, seen: ClaimKey | None) -> None:
        self.observer.claim_again(journal, seen)

    def resync_wanted(self, journal: str, target: str) -> None:
        self.observer.resync_wanted(journal, target)
