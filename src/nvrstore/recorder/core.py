"""The recorder, synchronous: every room built from the configuration, started and stopped in order, in threads of its own.

    start   state directory -> targets -> identities -> claims -> catalog, pool, ports, engines, hub -> streams -> upkeep
    stop    streams -> engines drain and close their volumes -> upkeep -> hub -> targets -> catalog -> state directory

Recording starts as soon as the terms are claimed; recovery of what an earlier session left runs beside it. A target that
is away at the start joins when it answers. Nothing here runs on the host's event loop, and nothing here knows of one.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from datetime import datetime
from functools import partial
from typing import Any, Final, TypeVar

from nvrstore import events
from nvrstore.catalog.store import Catalog
from nvrstore.clock import SYSTEM_CLOCK, Clock
from nvrstore.config import Config, StreamConfig, TargetConfig
from nvrstore.control import ControlServer
from nvrstore.errors import ClosedError, NotFoundError, RecorderFailedError, UsageError
from nvrstore.failover.members import Told
from nvrstore.ingest.face import StreamHand
from nvrstore.ingest.supervisor import ResolveStream, resolve_configured
from nvrstore.limits import BUFFER_BYTES_MIN, GIB, MIB, STOP_S
from nvrstore.model import Gap, Record
from nvrstore.recorder.bus import Bus
from nvrstore.recorder.durable import Durability
from nvrstore.recorder.follow import changes
from nvrstore.recorder.marks import mark_record
from nvrstore.recorder.observer import RecorderObserver
from nvrstore.recorder.report import stream_status
from nvrstore.recorder.startup import ClaimedJournal, claim_journal, ensure_refuge, identify_targets
from nvrstore.recorder.state import StateDirectory
from nvrstore.recorder.wiring import MakeTarget, journal_spec, make_cameras, make_ports, make_target
from nvrstore.replicate.buffer import ReplayBuffer
from nvrstore.replicate.claim import Claimant
from nvrstore.replicate.engine import JournalEngine
from nvrstore.replicate.hub import Hub
from nvrstore.replicate.intake import Intake
from nvrstore.targets.contract import Steps, Target
from nvrstore.targets.pool import Pool
from nvrstore.telemetry import get_logger
from nvrstore.times import to_datetime
from nvrstore.upkeep.chores import Chores

log = get_logger("recorder.core")

T = TypeVar("T")

REFUGE: Final = "refuge"
POOL_BYTES: Final = 2 * GIB  # address space only: pages are touched as the buffer grows, up to its bound
BUFFER_BYTES: Final = 512 * MIB  # default bound: 3 x lost_s of 170 MB/s on ssd; where journals give `buffer_bytes`, their sum
DRAIN_S: Final = 2.0  # of the 5 s in which a stopping recorder commits and closes everything
STEP_S: Final = 0.02
REST_S: Final = 2.0  # longer than its deadline no target is waited for that is drained: its workers are stuck then


class RecorderCore:
    """See the module. `start` and `stop` block, within bounds; everything else returns at once."""

    def __init__(
        self,
        config: Config,
        *,
        resolve: ResolveStream = resolve_configured,
        take_over: bool = False,
        clock: Clock = SYSTEM_CLOCK,
        make: MakeTarget = make_target,
    ) -> None:
        self.config, self._take_over, self.clock, self._make = config, take_over, clock, make
        self.session = secrets.randbits(64)
        self.bus = Bus()
        self._ingest = make_cameras(self.session, config, clock, self.publish, resolve, lambda: self._pool.windows)
        self.failed: Future[None] = Future()  # done with an exception when the recorder itself cannot go on
        self.durability = Durability(max(journal.copies for journal in config.journals))
        self._intakes: dict[str, Intake] = {}
        self.engines: dict[str, JournalEngine] = {}
        self.targets: dict[str, Target] = {}
        self.worker_locks: set[str] = set()  # targets none of whose earlier workers can still run
        self._alarms: dict[str, events.Alarm] = {}  # the last of each kind; who listens later finds them in the status
        self._undo: list[Callable[[], object]] = []
        self.started_ns = 0
        self._giving_up = threading.Event()
        self._applying = threading.Lock()

    # --- start and stop

    def start(self) -> None:
        """Raises `JournalInUseError`, `TargetIdentityError`, `ConfigError`; on any error everything is closed again."""
        self.state = StateDirectory(self.config.recorder.state)
        self._undo.append(self.state.close)
        try:
            self._open_targets()
            self._build(self._claim())
            self._begin()
        except BaseException:
            self._ingest.stop(STOP_S)
            self._unwind()
            raise

    def give_up(self) -> None:
        """From any thread: a `start` that waits for another recorder to stand still ends with `ClosedError`."""
        self._giving_up.set()

    def stop(self) -> bool:
        """End in order, in 5 s at most; False when something had to be left behind (it is in the log)."""
        in_order = self._ingest.stop(STOP_S) == 0
        in_order &= self._drain_engines()
        if not in_order:
            log.warning("recorder.stopped_late")
        self._unwind()
        self.bus.close()
        return in_order

    def _unwind(self) -> None:
        while self._undo:
            try:
                self._undo.pop()()
            except Exception:
                log.exception("recorder.close_failed")  # the others are closed all the same

    def _open_targets(self) -> None:
        for config in self.config.targets:
            self._add_target(config, self._make)
        self._ids, self._answering = identify_targets(self.targets, self.state, self.config.targets)
        refuge = self._add_target(TargetConfig(name=REFUGE, path=self.state.refuge), make_target)
        self._ids[REFUGE] = ensure_refuge(refuge)

    def _add_target(self, config: TargetConfig, make: MakeTarget) -> Target:
        lock_fd = self.state.worker_lock(config.name)
        if lock_fd is not None:
            self.worker_locks.add(config.name)
            self._undo.append(lambda: os.close(lock_fd))
        target = make(config, self.config.recorder.worker_python, lock_fd)
        self.targets[config.name] = target
        self._undo.append(lambda: target.close(1.0))
        return target

    def _claim(self) -> dict[str, ClaimedJournal]:
        me = Claimant(self.config.recorder.name, self.state.recorder_id, self.session)
        return {
            journal.name: claim_journal(
                journal.name,
                # One that hangs is not asked again and again: the claim is brought there when it answers.
                {name: self.targets[name] for name in journal.targets if name in self._answering},
                me,
                self.state,
                self.clock,
                takeover_s=journal.takeover_s,
                take_over=self._take_over,
                wait=self._giving_up.wait,
            )
            for journal in self.config.journals
        }

    def _build(self, claims: Mapping[str, ClaimedJournal]) -> None:
        config, clock = self.config, self.clock
        self.catalog = Catalog(self.state.catalog, on_alarm=self._catalog_alarm)
        self._undo.append(self.catalog.close)
        wanted = [journal.buffer_bytes for journal in config.journals if journal.buffer_bytes is not None]
        buffer_bytes = max(sum(wanted), BUFFER_BYTES_MIN) if wanted else BUFFER_BYTES
        # A window is never what is full first: the buffer's bound is, and what then has to go is decided here.
        self._pool = Pool(POOL_BYTES, windows=config.recorder.workers, window_bytes=2 * buffer_bytes)
        self._undo.append(self._pool.close)
        self._buffer = ReplayBuffer(self._pool, bytes_max=buffer_bytes)
        self.hub = Hub(clock, on_failure=self._fail)
        ports = self._ports = make_ports(self, self._pool, self._ids)
        for port in ports.values():
            self._undo.append(partial(port.close, 0.5))
        self._undo.append(lambda: self.hub.stop(1.0))
        self._chores = Chores(self, REFUGE)
        copies = {journal.name: journal.copies for journal in config.journals}
        observer = RecorderObserver(self.catalog, self.durability, self.bus, self._chores, clock, copies.__getitem__)
        for journal in config.journals:
            intake = self._intakes[journal.name] = Intake(self.hub.wake)
            own = {name: ports[name] for name in (*journal.targets, REFUGE)}
            spec = journal_spec(self, journal, claims[journal.name], REFUGE, BUFFER_BYTES)
            self.engines[journal.name] = JournalEngine(spec, own, self._buffer, intake, clock, observer, self.hub.post)
        self.hub.add(list(ports.values()), list(self.engines.values()))

    def _begin(self) -> None:
        self.started_ns = self.clock.utc_ns()
        self.hub.start()
        for stream in self.config.streams:
            self.add_stream(stream)
        self._chores.start()
        self._undo.append(self._chores.stop)
        control = ControlServer(
            self.state.socket,
            {
                "status": lambda _: self.status(),
                "drain": lambda args: {"at_rest": self.drain(str(args["target"]))},
                "return": lambda args: {"journals": self.take_back(str(args["target"]))},
                "trigger": self._trigger,
            },
        )
        try:
            control.start()
        except OSError as error:  # the state disk: an alarm, never a stop
            self._alarm("control", f"no control socket at {self.state.socket}: {error.strerror}")
        self._undo.append(control.close)

    def _drain_engines(self) -> bool:
        """Commit and close what is here; False when the targets did not let it in time."""

        def step() -> bool:
            for engine in self.engines.values():
                engine.stop()
            return all(engine.idle for engine in self.engines.values())

        try:
            return self._until(step, DRAIN_S)
        except (ClosedError, TimeoutError):
            return False  # the engine's thread ended with a bug, or the machine is at its end: what is not committed is in no promise

    def _until(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Whether `done`, asked in the engines' thread, says so in time."""
        deadline_s, pause = self.clock.monotonic_s() + timeout_s, threading.Event()
        while not (said := self.hub.ask(done, timeout_s=timeout_s)) and self.clock.monotonic_s() < deadline_s:
            pause.wait(STEP_S)
        return said

    # --- streams

    def add_stream(self, stream: StreamConfig) -> None:
        """Raises UsageError for an id that is in use or a journal that there is not."""
        intake = self._intakes.get(stream.journal or "")
        if intake is None:
            raise UsageError(f"stream {stream.id!r}: there is no journal {stream.journal!r}", hint="journals: " + ", ".join(self._intakes))
        self._ingest.add(stream, intake, fragment_s=self.config.journal(stream.journal or "").fragment_s)

    def remove_stream(self, stream_id: str) -> None:
        """Raises NotFoundError."""
        self.supervisor(stream_id)
        self._ingest.remove(stream_id)

    def supervisor(self, stream_id: str) -> StreamHand:
        """Raises NotFoundError."""
        try:
            return self._ingest.supervisor(stream_id)
        except KeyError:
            raise NotFoundError(f"there is no stream {stream_id!r}", hint="`nvrstore status` lists the streams") from None

    def stream_ids(self) -> list[str]:
        return [supervisor.config.id for supervisor in self._ingest.supervisors()]

    def apply(self, config: Config) -> list[str]:
        """Follow `config`: streams come, go, change; those that wait are tried at once. Returns what needs a restart, in words.

        Raises UsageError, with nothing changed, where a stream wants a journal that this recorder was not started with.
        """
        tables = [what for what in ("recorder", "targets", "journals") if getattr(config, what) != getattr(self.config, what)]
        later = [f"`{what}` changed: takes effect when the recorder is started again" for what in tables]
        with self._applying:
            todo = changes([hand.config for hand in self._ingest.supervisors()], config.streams, self._intakes)
            for stream_id in todo.remove:
                self._ingest.remove(stream_id)
            for stream in todo.change:  # a source that is stuck takes its time to leave: only its own stream is dark meanwhile
                self._ingest.remove(stream.id)
                self.add_stream(stream)
            for stream in todo.add:
                self.add_stream(stream)
            for stream_id in todo.keep:
                self.supervisor(stream_id).retry_now()  # its login may have changed, which no configuration shows
            self.config = self.config.model_copy(update={"streams": config.streams, "stream_defaults": config.stream_defaults})
        return later

    def mark(self, stream_id: str, kind: str, start_ns: int, end_ns: int, data: dict[str, Any], copies: int) -> tuple[str, Future[None]]:
        """The mark's id, and when it is durable. Raises UsageError for data that is no JSON, too much, and copies that there never are."""
        journal = self.supervisor(stream_id).config.journal or ""
        if not 1 <= copies <= (most := self.config.journal(journal).copies):
            raise UsageError(f"a mark on {copies} copies: journal {journal!r} keeps {most}", hint=f"copies is 1 to {most}")
        record = mark_record(stream_id, kind, start_ns, end_ns, data)
        durable = self.durability.wait_record(record, copies)
        self._intakes[journal].record(record)
        return record.id, durable

    def record_gap(self, journal: str, gap: Gap) -> None:
        """Enter what upkeep found into the ledger."""
        self._intakes[journal].record(gap.record())

    def _trigger(self, args: dict[str, Any]) -> None:
        supervisor = self.supervisor(str(args["stream"]))
        supervisor.trigger(str(args.get("name", "manual")), pre_s=float(args.get("pre_s", 10)), post_s=float(args.get("post_s", 20)))

    # --- targets

    def drain(self, target: str) -> bool:
        """Take a target out of every journal; whether nothing of this recorder is open there now. Raises NotFoundError."""
        self._each_journal_of(target, lambda engine: engine.drain(target))
        port = self._ports[target]
        return self._until(lambda: port.at_rest, port.deadlines.lost_s + REST_S)

    def take_back(self, target: str) -> dict[str, Told]:
        """Maintenance is over, or it shall be primary again; what comes of it, by journal. Raises NotFoundError."""
        return self._each_journal_of(target, lambda engine: engine.take_back(target))

    def _each_journal_of(self, target: str, call: Callable[[JournalEngine], T]) -> dict[str, T]:
        """What `call` says, by journal; of all in one round."""
        engines = [engine for engine in self.engines.values() if target in engine.spec.targets]
        if not engines:
            raise NotFoundError(f"there is no target {target!r}", hint="targets: " + ", ".join(t.name for t in self.config.targets))
        return self.hub.ask(lambda: {engine.spec.name: call(engine) for engine in engines})

    # --- looking

    def durable_until(self, stream_id: str, copies: int = 1) -> datetime | None:
        durable_ns = self.durability.durable_ns(stream_id, copies)
        return to_datetime(durable_ns) if durable_ns else None

    def status(self) -> dict[str, Any]:
        """Everything as JSON values. Stored bytes and age are what is durable, never what is intended."""
        now_ns = self.clock.utc_ns()
        catalog = self.catalog.statistics()
        return {
            "recorder": self.config.recorder.name,
            "recorder_id": self.state.recorder_id,
            "session": f"{self.session:016x}",
            "started_ns": self.started_ns,
            "utc_ns": now_ns,
            "streams": [stream_status(supervisor, self.durability, now_ns) for supervisor in self._ingest.supervisors()],
            "journals": [engine.status() for engine in self.engines.values()],
            "buffer": {"bytes": self._buffer.bytes, "bytes_max": self._buffer.bytes_max},
            "upkeep": self._chores.status(),
            "catalog": {"healthy": catalog.healthy, "rows_waiting": catalog.rows_waiting},
            "late_s_max": round(self.hub.late_s_max, 3),
            "sources_stuck": self._ingest.stuck(),
            "ingest_workers": self._ingest.workers(),
            "alarms": [{"utc_ns": a.utc_ns, "what": a.what, "sentence": a.sentence} for a in list(self._alarms.values())],
        }

    # --- for upkeep

    @property
    def recorder_id(self) -> str:
        return self.state.recorder_id

    def publish(self, event: events.Event) -> None:
        if isinstance(event, events.Alarm):
            self._alarms[event.what] = event
        self.bus.publish(event)

    def save_term(self, journal: str, term: int) -> bool:
        return self.state.save_term(journal, term)

    def saved_term(self, journal: str) -> int:
        return self.state.term(journal)

    def saved_waits(self) -> Mapping[str, float]:
        return self.state.waits()

    def save_waits(self, waited: Mapping[str, float]) -> bool:
        return self.state.save_waits(waited)

    def wait_records(self, records: Sequence[tuple[str, Record]], timeout_s: float) -> Steps[bool]:
        """Enter records into the ledgers of journals; whether all became durable in time. Asks nobody: whoever runs it waits."""
        durable = [self.durability.wait_record(record) for _, record in records]
        for journal, record in records:
            self._intakes[journal].record(record)
        yield from ()
        return not wait(durable, timeout_s).not_done

    def synced(self, journal: str, copies: int) -> None:
        """Everything of the journal is on so many copies."""
        self.durability.synced(journal, self.streams_of(journal), copies)

    def copied(self, journal: str, volume_id: str) -> None:
        """A target has a closed volume of the journal now that it lacked."""
        self.durability.copied(journal, self.streams_of(journal), volume_id)

    def streams_of(self, journal: str) -> list[str]:
        return [supervisor.config.id for supervisor in self._ingest.supervisors() if supervisor.config.journal == journal]

    # --- failures

    def _fail(self, error: BaseException) -> None:
        if not self.failed.done():
            self.failed.set_exception(RecorderFailedError(f"the engine ended: {error!r}", hint="please report this with the log"))

    def _catalog_alarm(self, sentence: str) -> None:
        if sentence:
            self._alarm("catalog", sentence)
        else:
            self._alarms.pop("catalog", None)

    def _alarm(self, what: str, sentence: str) -> None:
        log.error("alarm.raised", what=what, sentence=sentence)
        self.publish(events.Alarm(utc_ns=self.clock.utc_ns(), what=what, sentence=sentence))
