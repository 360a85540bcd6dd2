"""Recovery and resync on a running recorder: round after round, until every member lacks nothing.

    survey of the targets that answer -> plan -> recover what an earlier session, or a lost member, left open
                                              -> copy what a member lacks, newest first
                                              -> what the refuge holds and every member has now: released
                                              -> a member that lacks nothing: SYNCED

Recording never waits for any of it, and all of it lets live batches pass (yielding.py). What recovery finds goes to the catalog,
and from there into the ledger (downtime.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict
from typing import Any, Final, TypeVar

from nvrstore.catalog.schema import CopyState
from nvrstore.catalog.views import VolumeInfo
from nvrstore.errors import CatalogError, NvrstoreError, TargetError
from nvrstore.events import Alarm, ResyncProgress
from nvrstore.failover.machine import State
from nvrstore.journal.model import Batch, VolumeHeader
from nvrstore.journal.names import VolumeName, parse_volume_path, writer_tag
from nvrstore.model import NS_PER_S, Record, RecordKind
from nvrstore.replicate.copying import Progress
from nvrstore.replicate.engine import JournalEngine
from nvrstore.replicate.floor import Floor, expired
from nvrstore.replicate.inventory import Known, Survey, Volume, begun_since, scan_copy, survey
from nvrstore.replicate.recover import CopyStatus, Recovered, recover_volume
from nvrstore.replicate.resync import CopyJob, Pace, ResyncPlan, expect, plan_resync, resync
from nvrstore.replicate.truth import choose_truth
from nvrstore.targets.contract import Call, Request, Steps, Verb
from nvrstore.telemetry import get_logger
from nvrstore.upkeep.downtime import Downtime
from nvrstore.upkeep.host import UpkeepHost, Work, do
from nvrstore.upkeep.pruning import Pruning
from nvrstore.upkeep.retention import RETENTION_GAP
from nvrstore.upkeep.unclosed import Heard, Unclosed
from nvrstore.upkeep.yielding import Yielding, yielding

log = get_logger("upkeep.mending")

T = TypeVar("T")

_STATES: Final = {
    CopyStatus.WHOLE: CopyState.COMPLETE,
    CopyStatus.OPEN: CopyState.LIVE,
    CopyStatus.PARTIAL: CopyState.PARTIAL,
    CopyStatus.DAMAGED: CopyState.DAMAGED,
    CopyStatus.CONFLICT: CopyState.DAMAGED,
    CopyStatus.AWAY: CopyState.PARTIAL,
}


class Mending:
    """See the module. Used by the long thread of upkeep."""

    def __init__(self, host: UpkeepHost, refuge: str, pruning: Pruning, wait: Callable[[float], bool]) -> None:
        """`wait` passes seconds, for live writing to go first; True: there is nothing to wait for any more."""
        self._host, self._refuge, self._pruning, self._wait = host, refuge, pruning, wait
        self._unclosed: dict[str, Unclosed] = {}  # by journal
        self._downtime = Downtime(host)
        self._claimed_s = host.clock.monotonic_s()
        self._progress: dict[str, Progress] = {}
        self._begun_s: dict[str, float] = {}  # when each of them began
        self.recovered = self.copied = 0
        self._settled: set[str] = set()  # journals of which the last round left nothing to do
        self._whole: set[str] = set()  # journals of which everything on every target was looked at

    @property
    def pending(self) -> bool:
        """Whether another round shall follow soon."""
        return not self._settled.issuperset(self._host.engines)

    def status(self) -> dict[str, Any]:
        """JSON values. `resync` says per journal how far the present round is, and how long it still takes at its pace so far."""
        now_s = self._host.clock.monotonic_s()
        return {
            "recovered_volumes": self.recovered,
            "copied_volumes": self.copied,
            "resync": {
                journal: asdict(progress) | {"seconds_left": progress.seconds_left(now_s - self._begun_s.get(journal, now_s))}
                for journal, progress in self._progress.items()
            },
        }

    # --- what earlier sessions wrote down

    def learn(self) -> Work[None]:
        """From the catalog, before the first round; what the catalog lacks comes with the volumes it lacks."""
        yield from ()
        host = self._host
        host.catalog.flush()
        with host.catalog.reader() as reader:
            overwritten = [record for record in reader.records(RecordKind.GAP) if record.id.startswith(RETENTION_GAP)]
            for journal in host.engines:
                self._pruning.learn(journal, [*reader.records(RecordKind.RETENTION_FLOOR), *overwritten])

    def _learn_records(self, journal: str, header: VolumeHeader, records: Iterable[Record]) -> None:
        self._pruning.learn(journal, records)
        if header.session != self._host.session:
            self._downtime.changed()

    # --- one round

    def run(self, journal: str) -> Work[None]:
        """One round for one journal."""
        host, engine = self._host, self._host.engines[journal]
        infos = self._infos(journal)
        names = [name for name, port in engine.ports.items() if port.answering or port.up]
        busy, begun = host.hub.ask(lambda: (engine.paths_in_use(), {lane.number: lane.begun for lane in engine.lanes}))
        asked = heard(engine, names)  # before the survey: who leaves from here on has to come back by other workers
        seen = yield from self._beside(engine, names, survey(names, journal, _known(infos)))
        answered = [asked[name] for name in seen.answered]
        # What was opened while the survey went on is no leftover, whether it is still written or not.
        busy |= host.hub.ask(engine.paths_in_use) | begun_since(seen, writer_tag(host.session), begun)
        self._forget_missing(infos, seen, busy)
        members = self._members(engine)
        plan = self._plan(engine, seen, members, busy, infos, answered)
        for path in plan.conflicts:
            self._alarm(f"targets hold different volumes under {path}; nothing was overwritten")
        work = bool(plan.recover or plan.copies)
        for volume in plan.recover:
            yield from self._recover(engine, volume, seen, answered)
        yield from self._adopt_unknown(engine, seen, infos, busy)
        told = self._downtime.tell(journal)
        if plan.copies:
            yield from self._copy(engine, plan.copies)
        for volume in plan.release:
            yield from self._release(volume)
        if not work:
            self._declare(engine, plan)
        if work or not told or any(state in (State.JOINING, State.LIVE) for state in engine.states().values()):
            self._settled.discard(journal)
        else:
            self._settled.add(journal)
            self._looked_through(engine, seen)

    def _beside(self, engine: JournalEngine, targets: Collection[str], steps: Steps[T], pace: Pace | None = None) -> Work[T]:
        """Have steps run that read and write these targets, beside what is recorded to them."""
        ports = [engine.ports[name] for name in targets]
        return do(yielding(steps, Yielding(self._host.clock, self._wait, lambda: any(port.busy for port in ports), pace)))

    def _looked_through(self, engine: JournalEngine, seen: Survey) -> None:
        """Nothing is left to do for a journal. Once that holds for all, the catalog of a recorder that was killed is whole again."""
        if engine.ports.keys() <= {*seen.answered}:
            self._whole.add(engine.spec.name)
        if self._host.catalog.needs_refresh and not self.pending and self._whole.issuperset(self._host.engines):
            self._host.catalog.refreshed()

    def _infos(self, journal: str) -> list[VolumeInfo]:
        """What the catalog knows; nothing where the state disk does not let it: then every header is read from the targets."""
        self._host.catalog.flush()
        try:
            with self._host.catalog.reader() as reader:
                return reader.volumes(journal)
        except CatalogError as error:
            log.warning("catalog.unread", reason=str(error))
            return []

    def _plan(
        self,
        engine: JournalEngine,
        seen: Survey,
        members: list[str],
        busy: set[str],
        infos: Iterable[VolumeInfo],
        answered: Collection[Heard],
    ) -> ResyncPlan:
        host = self._host
        away: dict[str, VolumeName] = {}
        for info in infos:
            name = parse_volume_path(info.path)
            elsewhere = [c for c in info.copies if c.target not in seen.answered and c.target in engine.ports]
            if name is not None and elsewhere:
                away[info.volume_id] = name
        return plan_resync(
            seen,
            members,
            recorder=host.config.recorder.name,
            held_s=host.clock.monotonic_s() - self._claimed_s,
            refuge=self._refuge,
            busy=busy,
            wanted=self._wanted(engine),
            floors=self._floors(engine.spec.name),
            held=self._waiting(engine).holders(
                [volume.volume_id for volume in seen.volumes], answered=answered, now_s=host.clock.monotonic_s()
            ),
            known=away,
        )

    def _wanted(self, engine: JournalEngine) -> Callable[[Volume, str], bool]:
        """Which copies there shall be: members of the first rank get everything.

        A spare gets what was begun since one of them is lost (and just before: it had no time to get its last copy); the history only
        when that one has not come back for `rebuild_after_s`: copying it takes hours, and is in vain where somebody replaces a cable.
        """
        host, spec = self._host, engine.spec
        first = spec.targets[: spec.copies]
        lost_s = host.hub.ask(lambda: engine.watch.lost_since_s(first))
        away_s = 0.0 if lost_s is None else host.clock.monotonic_s() - lost_s
        if away_s >= host.config.journal(spec.name).rebuild_after_s and lost_s is not None:
            return lambda volume, target: True
        since_ns = host.clock.utc_ns() - round((away_s + spec.volume_age_s) * NS_PER_S)
        return lambda volume, target: target in first or volume.name.made_ns >= since_ns

    def _members(self, engine: JournalEngine) -> list[str]:
        return [name for name, state in engine.states().items() if state in (State.LIVE, State.SYNCED)]

    def _declare(self, engine: JournalEngine, plan: ResyncPlan) -> None:
        """Nothing was left to do: who lacks nothing, also of what is being written, is synced."""
        done = [name for name, state in engine.states().items() if state is State.LIVE and name in plan.synced]
        # At once: between one and the other the primary's role would wander, and cut every volume.
        synced = bool(done) and any(self._host.hub.ask(lambda: [engine.synced_if_whole(name) for name in done]))
        states = engine.states().values()
        if synced and not any(state is State.LIVE for state in states):
            self._host.synced(engine.spec.name, sum(state is State.SYNCED for state in states))

    # --- recovery

    def _recover(self, engine: JournalEngine, volume: Volume, seen: Survey, answered: Collection[Heard]) -> Work[None]:
        host = self._host
        configured = {name: engine.ports[name].target_id for name in engine.spec.targets}
        self._pruning.recovering = {volume.volume_id, volume.name.path}
        if self._pruning.recovering & self._pruning.mending:
            self._pruning.recovering = set()
            return  # retention mends it just now, in the other thread: it is looked at again in the next round
        done = yield from self._beside(
            engine,
            {*volume.copies, *seen.answered},
            recover_volume(
                volume,
                own=engine.spec.claim,
                configured=configured,
                answered=seen.answered,
                in_place_ok=lambda target, path: self._in_place_ok(engine, target, path),
            ),
        )
        self._pruning.recovering = set()
        self.recovered += 1
        if done.header is None:
            self._alarm(f"{done.path}: no copy of it can be read")
            self._waiting(engine).tried(volume.volume_id, (), answered=answered, now_s=host.clock.monotonic_s())
            return
        self._learn_records(engine.spec.name, done.header, done.records)
        copies = {target: (copy.length, _STATES[copy.status]) for target, copy in done.copies.items()}
        host.catalog.adopt(done.header, done.path, done.batches, copies, closed_length=done.closed_length)
        self._note(done)
        if done.closed_length is None or any(copy.status is not CopyStatus.WHOLE for copy in done.copies.values()):
            self._waiting(engine).tried(done.volume_id, done.holders, answered=answered, now_s=host.clock.monotonic_s())
        else:
            self._waiting(engine).done(done.volume_id)

    def _waiting(self, engine: JournalEngine) -> Unclosed:
        return self._unclosed.setdefault(engine.spec.name, Unclosed())

    def _in_place_ok(self, engine: JournalEngine, target: str, path: str) -> bool:
        """Whether every worker that had the file open is known to be gone."""
        name = parse_volume_path(path)
        own = name is not None and name.tag == writer_tag(self._host.session)
        return self._host.hub.ask(lambda: engine.released(path, target)) and (own or target in self._host.worker_locks)

    def _note(self, done: Recovered) -> None:
        for found in done.damage:
            log.warning("volume.damaged", path=done.path, target=found.target, what=str(found.damage), mended=found.mended)
            if not found.mended:
                self._alarm(f"{done.path} on target {found.target!r}: {found.damage}")
        for target, copy in done.copies.items():
            if copy.status is CopyStatus.CONFLICT:
                self._alarm(f"{done.path} on target {target!r} holds other bytes than its peers; nothing was overwritten")

    def _adopt_unknown(self, engine: JournalEngine, seen: Survey, infos: Iterable[VolumeInfo], busy: set[str]) -> Work[None]:
        """Whole volumes that the catalog lacks, or knows in part: it is new, was lost, dropped rows, or its writer was killed."""
        host, journal = self._host, engine.spec.name
        stale = set(host.catalog.stale_volumes())
        known = {info.volume_id: info for info in infos if info.closed and not info.stale and info.volume_id not in stale}
        for volume in seen.volumes:
            if not volume.settled or volume.name.path in busy:
                continue
            if volume.volume_id in known:
                have = {copy.target for copy in known[volume.volume_id].copies if copy.state in (CopyState.COMPLETE, CopyState.DAMAGED)}
                for target in volume.copies.keys() - have:
                    host.catalog.copy_changed(volume.volume_id, target, volume.copies[target].size, CopyState.COMPLETE)
                continue
            target, copy = next(iter(volume.copies.items()))
            try:
                scan = yield from self._beside(engine, [target], scan_copy(target, copy.path, copy.size))
            except TargetError as error:
                log.warning("volume.unread", path=copy.path, target=target, reason=str(error))
                continue
            truth = choose_truth({target: scan})
            if truth is None:
                continue
            self._learn_records(journal, truth.header, _records(truth.batches))
            copies = {t: (c.size, CopyState.COMPLETE) for t, c in volume.copies.items()}
            host.catalog.adopt(truth.header, volume.name.path, truth.batches, copies, closed_length=copy.size)

    def _forget_missing(self, infos: Iterable[VolumeInfo], seen: Survey, busy: set[str]) -> None:
        """Rows of files that a target which answered does not show any more."""
        shown = {(target, volume.volume_id) for volume in seen.volumes for target in volume.copies}
        shown |= {(copy.target, copy.path) for copy in seen.strangers}
        for info in infos:
            if info.path in busy:
                continue
            for copy in info.copies:
                gone = copy.target in seen.answered and not {(copy.target, info.volume_id), (copy.target, info.path)} & shown
                if gone:
                    self._host.catalog.volume_removed(info.volume_id, copy.target)

    # --- resync

    def _floors(self, journal: str) -> dict[str, Floor]:
        return {place: floor for (of, place), floor in self._pruning.floors.items() if of == journal}

    def _copy(self, engine: JournalEngine, jobs: tuple[CopyJob, ...]) -> Work[None]:
        host, journal = self._host, engine.spec.name
        bps = host.config.journal(journal).resync_bps
        pace = Pace(bps / 8) if bps else None
        progress = Progress()
        expect(progress, jobs)
        self._begun_s[journal] = host.clock.monotonic_s()
        self._progress[journal] = progress
        for job in jobs:
            if engine.states().get(job.target) not in (State.LIVE, State.SYNCED):
                progress.bytes_total -= job.bytes
                continue  # it left meanwhile
            if expired(job.volume.name, self._floors(journal), job.target):
                progress.bytes_total -= job.bytes
                continue  # a floor that this round's recovery brought to light
            steps = resync([job], own=engine.spec.claim, progress=progress)
            report = yield from self._beside(engine, {*job.sources, job.target}, steps, pace)
            for copied in report.copied:
                self.copied += 1
                state = CopyState.DAMAGED if copied.damage else CopyState.COMPLETE
                host.catalog.copy_changed(job.volume.volume_id, copied.target, copied.length, state)
                if not copied.damage:
                    host.copied(journal, job.volume.volume_id)
                host.publish(
                    ResyncProgress(
                        utc_ns=host.clock.utc_ns(),
                        journal=journal,
                        target=copied.target,
                        done_bytes=progress.bytes_done,
                        total_bytes=progress.bytes_total,
                    )
                )
            for (target, path), error in report.failed.items():
                log.warning("resync.failed", target=target, path=path, reason=str(error))
        self._progress.pop(journal, None)

    def _release(self, volume: Volume) -> Work[None]:
        """Every member has it now: the refuge's copy goes."""
        try:
            yield from do(_unlink(self._refuge, volume.copies[self._refuge].path))
        except NvrstoreError as error:
            log.warning("refuge.kept", path=volume.name.path, reason=str(error))
            return
        self._host.catalog.volume_removed(volume.volume_id, self._refuge)

    def _alarm(self, sentence: str) -> None:
        self._host.publish(Alarm(utc_ns=self._host.clock.utc_ns(), what="mending", sentence=sentence))


def heard(engine: JournalEngine, names: Iterable[str]) -> dict[str, Heard]:
    """How these targets answer now, by name."""
    return {name: Heard(name, engine.ports[name].generation, engine.ports[name].haunted) for name in names}


def _known(infos: Iterable[VolumeInfo]) -> dict[tuple[str, str], Known]:
    return {
        (copy.target, info.path): Known(info.volume_id, info.length)
        for info in infos
        if info.closed and not info.stale
        for copy in info.copies
        if copy.state is CopyState.COMPLETE
    }


def _records(batches: Iterable[Batch]) -> list[Record]:
    return [record for batch in batches for record in batch.records]


def _unlink(target: str, path: str) -> Steps[bool]:
    answer = yield Call(target, Request(Verb.UNLINK, path))
    return answer.ok
