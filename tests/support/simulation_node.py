"""One recorder of a simulation, from its start to its end: the real hub, ports and engine; upkeep as steps on the virtual clock.

    start: read claims -> (watch the owner) -> claim --> hub.round() every step
                                                         quick work: claims for targets that return, room
                                                         long work:  tidy, then survey -> recover -> resync -> declare -> retention

What a thread waits for in a recorder is a `Pause` or an unanswered call here; a crash or a freeze finds it anywhere.
The catalog is a table in memory that survives on the state disk, unless the world loses it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, Final

from tests.support.laid_out import Worker
from tests.support.simulation_members import Told

from nvrstore.clock import ManualClock
from nvrstore.errors import FormatError, JournalInUseError, NvrstoreError, TargetError
from nvrstore.failover.machine import MEMBER, State
from nvrstore.failover.terms import Claim, ClaimKey, Verdict
from nvrstore.journal.model import Batch, VolumeHeader
from nvrstore.journal.names import VolumeName, parse_volume_path, writer_tag
from nvrstore.model import Commit, Epoch, Fragment, Gap, MemberRef, Record, RecordKind
from nvrstore.replicate.buffer import ReplayBuffer
from nvrstore.replicate.claim import Claimant, bring_claim, claim_term, in_use_by, read_claims
from nvrstore.replicate.contract import JournalSpec
from nvrstore.replicate.engine import JournalEngine
from nvrstore.replicate.floor import Floor, expired, floors_of
from nvrstore.replicate.hub import Hub
from nvrstore.replicate.intake import Intake
from nvrstore.replicate.inventory import Known, begun_since, scan_copy, survey
from nvrstore.replicate.port import Port
from nvrstore.replicate.recover import CopyStatus, recover_volume
from nvrstore.replicate.resync import plan_resync, resync
from nvrstore.replicate.truth import choose_truth
from nvrstore.targets.contract import UNAVAILABLE, Answer, Call, Request, Verb
from nvrstore.targets.identity import ensure_journal
from nvrstore.targets.pool import Pool
from nvrstore.upkeep.chores import clear_leftovers
from nvrstore.upkeep.mending import heard
from nvrstore.upkeep.prune import prune, restore_trash
from nvrstore.upkeep.retention import Keep, Space, Span, StoredCopy, StoredVolume, plan_retention
from nvrstore.upkeep.unclosed import Unclosed

if TYPE_CHECKING:
    from tests.support.simulation_world import World

CALL_S = 15.0  # as upkeep/host.py waits
ANSWER_S = 3.0  # as the start waits
ROUND_S = 1.0
SLACK_BYTES = 128 << 10


@dataclass(frozen=True, slots=True)
class Pause:
    seconds: float


Script = Generator[Any, Any, Any]


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
class Row:
    """What the catalog knows of a volume."""

    name: VolumeName
    end_ns: int
    copies: dict[str, CopyStatus] = field(default_factory=dict)
    closed_length: int | None = None


@dataclass
class StateDisk:
    """What a recorder remembers."""

    term: int = 0
    rows: dict[str, Row] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)


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
        self._claimed_s = 0.0
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
        self.hub = Hub(self.clock, on_failure=lambda error: None)
        self.put: dict[tuple[str, int, int], int] = {}  # identity -> UTC; what cameras handed over
        self.acked: set[tuple[str, int, int]] = set()
        self.refuged: set[tuple[str, int, int]] = set()
        self.acked_records: dict[tuple[int, str], Record] = {}
        self.next_index: dict[str, int] = {}
        self.due: dict[tuple[str, int, int], float] = {}  # what waits to be stored or dropped, and since when: the oldest first
        self.told = Told()
        self.thawed_s = self.slowed_s = self.clock.monotonic_s()
        self.spaces: set[str] = set()
        self.worker_locks = {name for name, view in self.views.items() if view.quiet}
        self._wishes: dict[tuple[str, ...], Script] = {}
        self._quick: Work | None = None
        self._long: Work | None = None
        self._unclosed = Unclosed()
        self._floors: dict[str, Floor] = {}
        self._answered: set[int] = set()
        self.recovering = ""
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
        for key in list(self._wishes):
            if self._quick is None:
                self._quick = Work(self._wishes.pop(key), self.views, self.clock)
        if self._quick is not None and self._quick.advance(calls):
            self._quick = None
        if self._long is None:
            self._long = Work(self._keep_on(), self.views, self.clock)
        self._long.advance(calls)
        if self._long.error is not None:
            raise AssertionError(f"upkeep ended: {self._long.error!r}")
        if self._quick is None and not self._wishes:
            return

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
        for script in self._wishes.values():
            script.close()
        self._wishes.clear()
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
        self.end()
        for view in self.views.values():
            view.kill_workers()

    def forget_cameras(self) -> None:
        """It only mends."""
        self.cameras_from_s = float("inf")

    # --- what the checks ask

    @property
    def all_floors(self) -> dict[str, Floor]:
        return self._floors

    def floors(self) -> dict[str, int]:
        """What expired for the whole journal."""
        return dict(self._floors.get("*", Floor()).gone)

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
        waiting = self._unclosed._tried
        return f"unclosed {[(self.state.rows[v].name.path if v in self.state.rows else v, sorted(t.holders)) for v, t in waiting.items()]}"

    # --- the start

    def _begin(self, take_over: bool) -> Script:
        plan, names = self.world.plan, [n for n in self.views if n != "refuge"]
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
        self._claimed_s = self.clock.monotonic_s()
        self._learn(self.state.records)
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
        )
        self.engine = JournalEngine(spec, ports, self.buffer, self.intake, self.clock, self, self.hub.post)
        self._hear_losses(self.engine)
        self.hub.add(list(ports.values()), [self.engine])
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

    # --- Observer: what the engine says goes to the checks, the catalog and the wishes

    def volume_opened(self, header: VolumeHeader, path: str, target: str) -> None:
        row = self._row(header.volume_id, path, header.created_ns)
        row.copies[target] = CopyStatus.PARTIAL

    def batch_stored(self, header: VolumeHeader, path: str, batch: Batch, targets: Sequence[str], commit: Commit | None) -> None:
        self.world.checks.stored(self, header, path, batch, targets, commit)
        row = self._row(header.volume_id, path, header.created_ns)
        row.end_ns = max([row.end_ns, *(entry.utc_ns for entry in batch.entries)])

    def volume_closed(self, header: VolumeHeader, path: str, length: int, batches: int, targets: Sequence[str]) -> None:
        row = self._row(header.volume_id, path, header.created_ns)
        row.closed_length = length
        for target in targets:
            row.copies[target] = CopyStatus.WHOLE
        self.world.checks.closed(self, header.volume_id, path, length, targets)

    def volume_left(self, header: VolumeHeader, path: str) -> None: ...

    def target_changed(self, journal: str, target: str, before: State, after: State, reason: str, since_failure_s: float | None) -> None:
        self.world.checks.members.changed(self, target, before, after, reason)

    def set_changed(self, journal: str, epoch: Epoch, members: Sequence[MemberRef]) -> None: ...

    def first_commit(self, journal: str, since_lost_s: float) -> None: ...

    def needs_space(self, journal: str, target: str) -> None:
        self.spaces.add(target)

    def workers_started(self, journal: str, target: str) -> None: ...

    def claim_wanted(self, journal: str, target: str) -> None:
        self._wishes.setdefault(("claim", target), self._bring(target))

    def claim_again(self, journal: str, seen: ClaimKey | None) -> None:
        self._wishes.setdefault(("again",), self._again(seen))

    def resync_wanted(self, journal: str, target: str) -> None: ...

    def _row(self, volume_id: str, path: str, end_ns: int) -> Row:
        row = self.state.rows.get(volume_id)
        if row is None:
            name = parse_volume_path(path)
            if name is None:
                raise AssertionError(path)
            row = self.state.rows[volume_id] = Row(name, end_ns)
        return row

    # --- quick work, as upkeep/chores.py

    def _bring(self, target: str) -> Script:
        engine = self.engine
        if engine is None:
            return
        key = engine.spec.claim
        claim = Claim("main", key.term, self.who, key.recorder_id, key.session, self.clock.utc_ns())
        yield from ensure_journal(target, "main", engine.spec.journal_id)
        verdict = yield from bring_claim(target, claim, frozenset(self._answered))
        if verdict is Verdict.OK:
            yield from self._tidy(target)
            self.hub.post(lambda: engine.claimed(target) if engine.spec.claim == key else None)
        elif verdict is Verdict.STALE_SELF:
            yield from self._again(None)

    def _tidy(self, target: str) -> Script:
        yield from restore_trash(target, "main")
        self.world.checks.tidied(self, target)
        yield from clear_leftovers(target, "main", keep=f"{self.session:016x}-")

    def _again(self, seen: ClaimKey | None) -> Script:
        engine = self.engine
        if engine is None:
            return
        if seen is not None:
            self._answered.add(seen.session)
        term = max(engine.spec.claim.term, self.state.term)
        claimed = yield from claim_term(
            list(engine.spec.targets), "main", self.me, utc_ns=self.clock.utc_ns(), state_term=term, take_over=True
        )
        self.world.checks.claimed(self, claimed.claim.key)
        self.state.term = claimed.claim.term
        answered = frozenset(self._answered)
        self.hub.post(lambda: engine.reclaimed(claimed.claim.key, answered))

    # --- long work, as upkeep/mending.py and upkeep/pruning.py

    def _keep_on(self) -> Script:
        engine = self.engine
        if engine is None:
            return
        claimed_s = self._claimed_s
        for target in sorted(engine.spec.claimed_on):
            try:
                yield from self._tidy(target)
            except TargetError:
                continue
        while True:
            if not engine.fenced:
                try:
                    yield from self._mend(engine, self.clock.monotonic_s() - claimed_s)
                except NvrstoreError:
                    pass
            if not engine.fenced:
                try:
                    yield from self._retention(engine)
                except NvrstoreError:
                    pass
            yield Pause(ROUND_S)

    def _mend(self, engine: JournalEngine, held_s: float) -> Script:
        rows = self.state.rows
        infos = {volume_id: list(row.copies) for volume_id, row in rows.items()}
        names = [name for name in self.views if engine.ports[name].answering or engine.ports[name].up]
        busy, begun = engine.paths_in_use(), {lane.number: lane.begun for lane in engine.lanes}
        known = {
            (target, row.name.path): Known(volume_id, row.closed_length)
            for volume_id, row in rows.items()
            if row.closed_length is not None
            for target, status in row.copies.items()
            if status is CopyStatus.WHOLE
        }
        asked = heard(engine, names)
        seen = yield from survey(names, "main", known)
        answered = [asked[name] for name in seen.answered]
        busy = busy | engine.paths_in_use() | begun_since(seen, writer_tag(self.session), begun)
        shown = {(target, volume.volume_id) for volume in seen.volumes for target in volume.copies}
        strangers = {(copy.target, copy.path) for copy in seen.strangers}
        for volume_id, before in infos.items():
            row = rows.get(volume_id)
            if row is not None and row.name.path not in busy:
                for target in before:
                    if (
                        target in row.copies
                        and target in seen.answered
                        and (target, volume_id) not in shown
                        and (target, row.name.path) not in strangers
                    ):
                        del row.copies[target]
        for volume_id in [v for v in infos if v in rows and not rows[v].copies and rows[v].name.path not in busy]:
            del rows[volume_id]
        members = [name for name, state in engine.states().items() if state in (State.LIVE, State.SYNCED)]
        away = {
            volume_id: row.name
            for volume_id, row in rows.items()
            if any(target not in seen.answered and target in engine.spec.targets for target in row.copies)
        }
        plan = plan_resync(
            seen,
            members,
            recorder=self.who,
            held_s=held_s,
            refuge="refuge",
            busy=busy,
            floors=self._floors,
            held=self._unclosed.holders([volume.volume_id for volume in seen.volumes], answered=answered, now_s=self.clock.monotonic_s()),
            known=away,
        )
        self.world.checks.planned(self, plan)
        for volume in plan.recover:
            configured = {name: engine.ports[name].target_id for name in engine.spec.targets}
            self.recovering = volume.volume_id
            done = yield from recover_volume(
                volume,
                own=engine.spec.claim,
                configured=configured,
                answered=seen.answered,
                in_place_ok=lambda target, path: self._in_place_ok(engine, target, path),
            )
            self.recovering = ""
            if done.header is None:
                self._unclosed.tried(volume.volume_id, (), answered=answered, now_s=self.clock.monotonic_s())
                continue
            self._learn(done.records)
            row = self._row(done.volume_id, done.path, done.header.created_ns)
            row.end_ns = max([row.end_ns, *(e.utc_ns for b in done.batches for e in b.entries)])
            row.copies |= {target: copy.status for target, copy in done.copies.items()}
            row.closed_length = done.closed_length
            if done.closed_length is None or any(copy.status is not CopyStatus.WHOLE for copy in done.copies.values()):
                self._unclosed.tried(done.volume_id, done.holders, answered=answered, now_s=self.clock.monotonic_s())
            else:
                self._unclosed.done(done.volume_id)
        for volume in seen.volumes:
            if volume.volume_id in rows or not volume.settled or volume.name.path in busy:
                continue
            target, copy = next(iter(volume.copies.items()))
            scan = yield from scan_copy(target, copy.path, copy.size)
            truth = choose_truth({target: scan})
            if truth is not None:
                self._learn(record for batch in truth.batches for record in batch.records)
                row = self._row(volume.volume_id, volume.name.path, truth.header.created_ns)
                row.end_ns = max([row.end_ns, *(e.utc_ns for b in truth.batches for e in b.entries)])
                row.copies = dict.fromkeys(volume.copies, CopyStatus.WHOLE)
                row.closed_length = copy.size
        for job in plan.copies:
            if engine.states().get(job.target) not in (State.LIVE, State.SYNCED):
                continue
            if expired(job.volume.name, self._floors, job.target):
                continue
            report = yield from resync([job], own=engine.spec.claim)
            for copied in report.copied:
                if job.volume.volume_id in rows:
                    rows[job.volume.volume_id].copies[copied.target] = CopyStatus.DAMAGED if copied.damage else CopyStatus.WHOLE
        for volume in plan.release:
            yield Call("refuge", Request(Verb.UNLINK, volume.copies["refuge"].path))
        if not plan.recover and not plan.copies:
            for name, state in engine.states().items():
                if state is State.LIVE and name in plan.synced:
                    engine.synced_if_whole(name)
        settled = not plan.recover and not plan.copies and not plan.release
        self.quiet_rounds = self.quiet_rounds + 1 if settled else 0

    def _in_place_ok(self, engine: JournalEngine, target: str, path: str) -> bool:
        name = parse_volume_path(path)
        own = name is not None and name.tag == writer_tag(self.session)
        if target not in engine.ports:
            return False
        return engine.released(path, target) and (own or target in self.worker_locks)

    def _learn(self, records: Iterable[Record]) -> None:
        kept = [record for record in records if record.kind == RecordKind.RETENTION_FLOOR]
        for place, floor in floors_of(kept).items():
            self._floors[place] = self._floors.get(place, Floor()).merged(floor)

    def _retention(self, engine: JournalEngine) -> Script:
        plan = self.world.plan
        if plan.keep_s is None and not self.spaces:
            return
        spaces = {}
        for name, state in engine.states().items():
            if state in MEMBER or state is State.READY:
                answer = yield Call(name, Request(Verb.SPACE))
                if answer.ok:
                    spaces[name] = Space(answer.json()["total"], answer.json()["free"])
        if not spaces or engine.fenced:
            return
        busy = engine.paths_in_use()
        stored = []
        for volume_id, row in self.state.rows.items():
            copies = tuple(StoredCopy(t, row.closed_length or 4096, s is CopyStatus.WHOLE) for t, s in row.copies.items() if t != "refuge")
            if copies:
                is_open = row.name.path in busy or volume_id == self.recovering
                spans = (Span("gate", row.end_ns - 1, row.end_ns),)
                stored.append(StoredVolume(volume_id, row.name, row.end_ns, copies, is_open, spans))
        behind = [name for name, state in engine.states().items() if state in (State.JOINING, State.LIVE)]
        unsynced = {v.volume_id for v in stored if any(name not in {c.target for c in v.copies} for name in behind)}
        keep = Keep(None if plan.keep_s is None else int(plan.keep_s * 1e9))
        made = plan_retention(
            stored,
            spaces,
            {"main": keep},
            now_ns=self.clock.utc_ns(),
            unsynced=unsynced,
            floors={("main", place): floor for place, floor in self._floors.items()},
        )
        for (_, place), floor in made.floors.items():
            record = floor.record(place)
            self.intake.record(record)
            until_s = self.clock.monotonic_s() + 5.0
            while self.acked_records.get((record.kind, record.id)) != record:
                if self.clock.monotonic_s() >= until_s:
                    return
                yield Pause(0.1)
            self._floors[place] = floor
            self.state.records.append(record)
        for removal in made.removals:
            self.world.checks.removing(self, removal)
            row_ = self.state.rows.get(removal.volume.volume_id)
            if row_ is not None:
                row_.copies.pop(removal.target, None)
            try:
                yield from prune(removal.target, removal.volume.name, engine.spec.claim, busy_days={removal.volume.name.day})
            except (TargetError, FormatError):
                continue
            except NvrstoreError:
                return
