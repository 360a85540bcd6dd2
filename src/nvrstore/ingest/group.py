"""All streams of a recorder: one thread that watches the time for them, and their turns to connect.

    tick (every INGEST_TICK_S): each stream's fragments, watchdog ─▶ who is due? ─▶ at most CONNECTS_MAX connect at once
    a session that has connected, or failed to ────────────────────────┘ its turn goes to the next one at once

Cameras that are due longest come first, so one that is dead cannot starve the others: its tries get rarer, and each is
bounded. Streams may be added and removed while it runs; stopping is bounded by STOP_S, for all of them together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from math import inf
from typing import Any, Final

from nvrstore.clock import SYSTEM_CLOCK, Clock
from nvrstore.config import StreamConfig
from nvrstore.errors import ClosedError, UsageError
from nvrstore.events import Event, GapOpened, StreamChanged
from nvrstore.ingest.contract import Intake, SourceFactory
from nvrstore.ingest.engines import default_engines
from nvrstore.ingest.status import StreamState
from nvrstore.ingest.supervisor import ResolveStream, Supervisor, resolve_configured
from nvrstore.limits import CONNECTS_MAX, FRAGMENT_S, INGEST_TICK_S, STOP_S
from nvrstore.model import NS_PER_S, Cause, Gap, Media, new_id
from nvrstore.telemetry import get_logger

PAUSE_S: Final = 1.0  # a longer time between two ticks is this machine's own silence
EXCUSE_S: Final = 60.0  # which excuses cameras once in this time: a machine that is always late still ends silent sessions

_log = get_logger("ingest.group")


def utc(utc_ns: int) -> datetime:
    """The time at `utc_ns` in UTC: schedules are meant so where nobody says otherwise."""
    return datetime.fromtimestamp(utc_ns / NS_PER_S, UTC)


class Ingest:
    """The streams of one recorder. Thread-safe. `session` is the recorder's random 64-bit id.

    `on_event` is called in ingest's threads with a stream's lock held: it must not block, and must not call back.
    """

    def __init__(
        self,
        session: int,
        *,
        clock: Clock = SYSTEM_CLOCK,
        on_event: Callable[[Event], None] = lambda _: None,
        resolve: ResolveStream = resolve_configured,
        local: Callable[[int], datetime] = utc,
        engines: Mapping[str, SourceFactory] | None = None,
    ) -> None:
        self._session, self._clock, self._on_event, self._resolve, self._local = session, clock, on_event, resolve, local
        self._engines = default_engines() if engines is None else engines
        self._lock = threading.Lock()
        self._streams: dict[str, Supervisor] = {}
        self._removed: list[Supervisor] = []  # whose sources are stuck
        self._ended: dict[str, Supervisor] = {}  # by id, the last one that was removed: identities are never used twice
        self._wake = threading.Event()
        self._ticked_s, self._awake_s = clock.monotonic_s(), -inf
        self._stopping = False
        self._thread: threading.Thread | None = None

    def add(
        self,
        config: StreamConfig,
        intake: Intake,
        *,
        open_gaps: Iterable[Gap] = (),
        fragment_s: float = FRAGMENT_S,
        first_index: Mapping[Media, int] | None = None,
    ) -> Supervisor:
        """Record a stream from now on. Raises `UsageError` for an id that is in use, `ClosedError` after `stop`.

        `open_gaps` were written down by the caller. A stream that was removed before goes on where it ended: the time between is a gap.
        `first_index`: the same for one that ended elsewhere (another process of this recorder).
        """
        before = self._ended.get(config.id)
        supervisor = Supervisor(
            config,
            intake,
            session=self._session,
            clock=self._clock,
            engines=self._engines,
            local=self._local,
            resolve=self._resolve,
            on_event=self._told,
            fragment_s=fragment_s,
            first_index=first_index or (before.next_index if before is not None else None),
        )
        with self._lock:
            if self._stopping:
                raise ClosedError("the recorder is stopping")
            if config.id in self._streams:
                raise UsageError(f"there is a stream {config.id!r} already")
            self._streams[config.id] = supervisor
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="nvrstore-ingest", daemon=True)
                self._thread.start()
        gaps = list(open_gaps)
        if before is not None and before.end_ns is not None and not gaps:
            gaps = [Gap(new_id(), config.id, Cause.POLICY, before.end_ns, None, "the stream was not configured, or changed")]
            intake.record(gaps[0].record())
            self._on_event(GapOpened(utc_ns=self._clock.utc_ns(), gap=gaps[0]))
        supervisor.start(gaps)
        self._wake.set()
        return supervisor

    def remove(self, stream: str, timeout_s: float = STOP_S) -> bool:
        """Record a stream no longer. False: its source is stuck and was left behind. Raises KeyError for an unknown id."""
        with self._lock:
            supervisor = self._streams.pop(stream)
        gone = supervisor.stop(timeout_s)
        with self._lock:
            self._ended[stream] = supervisor
            self._removed = [other for other in self._removed if other.status().stuck]
            if not gone:
                self._removed.append(supervisor)
        return gone

    def supervisor(self, stream: str) -> Supervisor:
        """Raises KeyError for an unknown id."""
        return self._streams[stream]

    def supervisors(self) -> list[Supervisor]:
        """All streams, in the order in which they were added."""
        with self._lock:
            return list(self._streams.values())

    def stuck(self) -> int:
        """Sources that were left behind, waiting in the kernel."""
        with self._lock:
            everybody = [*self._streams.values(), *self._removed]
        return sum(supervisor.status().stuck for supervisor in everybody)

    def workers(self) -> list[dict[str, Any]]:
        """None: everything is done by threads of this process."""
        return []

    def stop(self, timeout_s: float = STOP_S) -> int:
        """End all streams, handing on what was received; how many sources were left behind."""
        with self._lock:
            self._stopping = True
            supervisors = list(self._streams.values())
            thread = self._thread
        self._wake.set()
        deadline_s = self._clock.monotonic_s() + timeout_s
        for supervisor in supervisors:
            supervisor.request_stop()
        stuck = sum(not supervisor.finish(deadline_s) for supervisor in supervisors)
        if thread is not None:
            thread.join(timeout_s)
        if stuck:
            _log.warning("sources.left_behind", count=stuck)
        return stuck

    def _told(self, event: Event) -> None:
        """A stream tells something, with its lock held."""
        self._on_event(event)
        if isinstance(event, StreamChanged) and event.state != StreamState.CONNECTING:
            self._wake.set()

    # --- the thread

    def _run(self) -> None:
        clock = self._clock
        due_s = clock.monotonic_s()
        while not self._stopping:
            self._wake.wait(max(0.0, due_s - clock.monotonic_s()))
            self._wake.clear()
            if clock.monotonic_s() >= due_s:
                due_s = clock.monotonic_s() + INGEST_TICK_S
                self._tick()
            else:
                self._connect(self.supervisors())

    def _tick(self) -> None:
        supervisors = self.supervisors()
        now_s = self._clock.monotonic_s()
        if now_s - self._ticked_s > PAUSE_S and now_s - self._awake_s > EXCUSE_S:
            self._awake_s = now_s  # this machine stood still: nobody was silent meanwhile, as far as anybody here can tell
        for supervisor in supervisors:
            try:
                supervisor.tick(now_s, self._awake_s)
            except Exception as error:  # noqa: BLE001  # one stream's trouble must not end the watch over the others
                _log.error("tick.failed", stream=supervisor.config.id, kind=type(error).__name__, reason=str(error))
        self._connect(supervisors)
        self._ticked_s = self._clock.monotonic_s()

    def _connect(self, supervisors: list[Supervisor]) -> None:
        """Give the turns that are free to those that are due longest."""
        now_s = self._clock.monotonic_s()
        connecting = 0
        due: list[tuple[float, int]] = []
        for i, supervisor in enumerate(supervisors):
            if supervisor.connecting:
                connecting += 1
            elif (since_s := supervisor.wants_connect(now_s)) is not None:
                due.append((since_s, i))
        for _, i in sorted(due)[: max(0, CONNECTS_MAX - connecting)]:
            if self._stopping:
                break
            supervisors[i].connect()
