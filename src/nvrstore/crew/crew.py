"""All streams of a recorder, received in processes of their own: `[recorder] workers = N`. See `Cameras`.

    seat 1: worker ◀─ streams          a worker dies ─▶ what it had handed over is kept
    seat 2: worker ◀─ streams                        ─▶ the spare sits down, gets its streams, connects
    spare:  worker, everything imported, no stream   ─▶ another spare is started

A camera keeps its seat, and a seat its window of the pool: batches are laid out there, a few a second, and written from
where they lie. A GIL that the host burns costs the recorder a few lines per fragment, and no copy, instead of all that a
packet needs. URLs and logins are looked up here, when a worker asks.

Invariants: nothing is written over in a window that the recorder still needs, whichever worker sits there; a
stream is received by one worker at a time, and begins in the next one when nothing of the last can be heard
any more. Samples that a worker had not handed over lie in a gap that is written down.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Final

from nvrstore.clock import SYSTEM_CLOCK, Clock
from nvrstore.config import StreamConfig
from nvrstore.config.models import RecorderConfig
from nvrstore.crew.batcher import taken_over
from nvrstore.crew.messages import (
    Asked,
    Declared,
    LaidOut,
    Logged,
    Looked,
    Recorded,
    Remove,
    Removed,
    Report,
    Resolved,
    Setup,
    Stop,
    Stopped,
    Tapped,
    Told,
)
from nvrstore.crew.process import Process
from nvrstore.crew.seat import Heard, Seat, plain_endpoint, plain_error
from nvrstore.crew.stream import RemoteStream
from nvrstore.errors import ClosedError, NvrstoreError, SourceError, UsageError
from nvrstore.events import Alarm, Event, GapClosed, GapOpened, IngestWorkerLost
from nvrstore.extents import Window
from nvrstore.ingest.contract import Endpoint, LaneIntake, SourceRequest, resolved
from nvrstore.ingest.supervisor import ResolveStream, resolve_configured
from nvrstore.limits import FRAGMENT_S, STOP_S
from nvrstore.model import Cause, Gap, Sample, new_id
from nvrstore.telemetry import ROOT, get_logger

SHORT_LIVES_MAX: Final = 2  # in a row, before a seat waits longer and longer for its next worker
WAIT_S_MAX: Final = 30.0
LAST_WORDS_S: Final = 0.5  # for what a worker still has to hand over
WAIT_S: Final = 1.0  # when no process can be started

log = get_logger("ingest.crew")


class Crew:
    """As many workers as `recorder` says, and a spare, started with the first stream; then so many `windows` are asked for. Thread-safe."""

    def __init__(
        self,
        session: int,
        recorder: RecorderConfig,
        ticks_s: Mapping[str, float],
        windows: Callable[[], Sequence[Window]],
        *,
        clock: Clock = SYSTEM_CLOCK,
        on_event: Callable[[Event], None] = lambda _: None,
        resolve: ResolveStream = resolve_configured,
    ) -> None:
        """`ticks_s`: how often each journal commits."""
        self._setup = Setup(session, recorder, dict(ticks_s), logging.getLogger(ROOT).getEffectiveLevel(), os.getpid())
        self._session, self._clock, self._on_event, self._resolve = session, clock, on_event, resolve
        self._count, self._windows = recorder.workers, windows
        self._seats: list[Seat] = []
        self._lock = threading.RLock()
        self._spawning = threading.Lock()
        self._streams: dict[str, RemoteStream] = {}
        self._ended: dict[str, RemoteStream] = {}  # by id, as it was when it was removed
        self._spare: Process | None = None
        self._spares_lost = 0
        self._manned = False
        self._heard: dict[Process, Heard] = {}
        self._stopping = threading.Event()
        self._do: Final[dict[type, Callable[[Process, Heard, Any], None]]] = {
            Declared: self._declared,
            LaidOut: self._laid_out,
            Recorded: self._recorded,
            Told: self._told,
            Asked: self._asked,
            Removed: self._removed,
            Tapped: self._tapped,
            Looked: self._looked,
            Logged: self._logged,
            Stopped: self._stopped,
        }

    # --- streams

    def add(
        self, config: StreamConfig, intake: LaneIntake, *, open_gaps: Iterable[Gap] = (), fragment_s: float = FRAGMENT_S
    ) -> RemoteStream:
        with self._lock:
            if self._stopping.is_set():
                raise ClosedError("the recorder is stopping")
            if config.id in self._streams:
                raise UsageError(f"there is a stream {config.id!r} already")
            self._man()
            before = self._ended.get(config.id)
            open_gaps = tuple(open_gaps) or (before.open_gaps if before is not None else ())
            stream = RemoteStream(config, intake, fragment_s, open_gaps, before, self._on_event)
            if before is not None and before.end_ns is not None and not open_gaps:
                detail = "the stream was not configured, or changed"
                stream.gap(Gap(new_id(), config.id, Cause.POLICY, before.end_ns, None, detail), self._clock.utc_ns())
            self._streams[config.id] = stream
            seat = min(self._seats, key=lambda seat: (seat.number != stream.seat, len(seat.streams)))  # its lanes are where it was
            seat.streams.append(stream)
            if seat.process is not None:
                self._begin(stream, seat.process)
        return stream

    def remove(self, stream: str, timeout_s: float = STOP_S) -> bool:
        with self._lock:
            leaving = self._streams.pop(stream)
            seat = next(seat for seat in self._seats if leaving in seat.streams)
            seat.streams.remove(leaving)
            process = seat.process
            if process is None:
                leaving.removed.set_result(True)
            leaving.post(Remove(stream, timeout_s))
        gone = False
        for wait_s in (timeout_s + 1.0, timeout_s):
            try:
                gone = leaving.removed.result(wait_s)
                break
            except FutureTimeoutError:
                if process is not None:  # what it still said of this stream would be taken for what the next one says
                    process.kill("it does not answer")
        with self._lock:
            self._ended[stream] = leaving
        return gone

    def supervisor(self, stream: str) -> RemoteStream:
        return self._streams[stream]

    def supervisors(self) -> list[RemoteStream]:
        with self._lock:
            return list(self._streams.values())

    def stuck(self) -> int:
        return sum(stream.status().stuck for stream in self.supervisors())

    def workers(self) -> list[dict[str, Any]]:
        with self._lock:
            return [
                {
                    "worker": seat.number,
                    "pid": seat.process.pid if seat.process is not None else None,
                    "streams": len(seat.streams),
                    "waiting_bytes": self._heard[seat.process].waiting_bytes if seat.process is not None else 0,
                    "ended": seat.ended,
                    "reason": seat.reason,
                }
                for seat in self._seats
            ]

    def stop(self, timeout_s: float = STOP_S) -> int:
        with self._lock:
            self._stopping.set()
            seated = [seat.process for seat in self._seats if seat.process is not None]
            spare, self._spare = self._spare, None
        if self._spawning.acquire(timeout=timeout_s):  # behind this nobody takes the pool's descriptor, which is closed next
            self._spawning.release()
        for process in seated:
            process.post(Stop(max(0.0, timeout_s - LAST_WORDS_S)))
        deadline_s = self._clock.monotonic_s() + timeout_s
        if spare is not None:
            spare.close()
        stuck = 0
        for process in seated:
            in_order = process.join(max(0.0, deadline_s - self._clock.monotonic_s()))
            stuck += self._heard[process].stuck if in_order else 1
        for process in seated:
            process.close()
        deadline_s = self._clock.monotonic_s() + LAST_WORDS_S
        for process in [*seated, *([spare] if spare is not None else [])]:
            process.wait_closed(max(0.0, deadline_s - self._clock.monotonic_s()))
        if stuck:
            log.warning("sources.left_behind", count=stuck)
        return stuck

    # --- seats, under the lock

    def _man(self) -> None:
        """Start the workers, when the first stream comes. Raises `NvrstoreError`."""
        if self._manned:
            return
        self._seats = self._seats or [Seat(i, window) for i, window in enumerate(self._windows()[: self._count], start=1)]
        for seat in self._seats:
            if seat.process is None and (process := self._start()) is not None:
                self._sit(seat, process)
            if seat.process is None:
                raise NvrstoreError("no ingest worker can be started", hint="the log says why; `[recorder] workers = 0` needs none")
        self._spare = self._start()
        self._manned = True

    def _start(self) -> Process | None:
        """None: the machine is at its end."""
        try:
            with self._spawning:
                if self._stopping.is_set():
                    return None
                process = Process(self._setup, self._windows()[0].fd, self._reports, self._gone)
            self._heard[process] = Heard()
            process.begin()
        except (OSError, RuntimeError) as error:
            log.error("worker.not_started", reason=str(error))
            return None
        return process

    def _sit(self, seat: Seat, process: Process) -> None:
        self._heard[process].seat = seat
        seat.sit(process, self._clock.monotonic_s())

    def _begin(self, stream: RemoteStream, process: Process) -> None:
        self._heard[process].streams[stream.config.id] = stream
        stream.begin(process.post, _seat(self._heard[process]).number)

    # --- what workers tell, in the thread that hears them

    def _reports(self, process: Process, reports: list[Report]) -> None:
        heard = self._heard[process]
        end = heard.end
        for report in reports:
            if heard.torn:
                break
            try:
                self._do[type(report)](process, heard, report)
            except Exception as error:  # noqa: BLE001  # one stream's trouble must not silence the others
                log.error("report.failed", report=type(report).__name__, kind=type(error).__name__, reason=str(error))
                if isinstance(report, LaidOut):  # what follows would hide that it is missing; without it the gap begins in front of it
                    heard.torn = True
                    process.kill("a batch of it could not be taken over")
        if heard.end != end:
            process.release(heard.end)

    def _declared(self, process: Process, heard: Heard, declared: Declared) -> None:
        stream = heard.streams[declared.track.stream]
        heard.tracks[declared.number] = (declared.track, declared.config)
        stream.lanes[declared.track.media] = declared.lane
        stream.intake.declare(declared.track, declared.name, declared.config, (_seat(heard).number, declared.lane))

    def _laid_out(self, process: Process, heard: Heard, laid_out: LaidOut) -> None:
        streams = [heard.streams[heard.tracks[put.number][0].stream] for put in laid_out.puts]
        fragments = taken_over(laid_out, _seat(heard).window, heard.tracks, self._session)
        streams[0].intake.put_lane(fragments)
        for stream, fragment in zip(streams, fragments, strict=True):
            stream.handed_over(fragment)

    def _tapped(self, process: Process, heard: Heard, tapped: Tapped) -> None:
        track, config = heard.tracks[tapped.number]
        heard.end = tapped.position + tapped.length
        data = process.copy(tapped.position, tapped.length)
        sample = Sample(track.media, data, tapped.pts, tapped.dts, tapped.keyframe, tapped.arrival_ns, tapped.arrival_s, tapped.damaged)
        heard.streams[track.stream].tapped(sample, config, tapped.utc_ns, tapped.dropped)

    def _recorded(self, process: Process, heard: Heard, recorded: Recorded) -> None:
        heard.streams[recorded.stream].record(recorded.record)

    def _told(self, process: Process, heard: Heard, told: Told) -> None:
        stream = told.event.gap.stream if isinstance(told.event, GapOpened | GapClosed) else getattr(told.event, "stream", "")
        heard.streams[stream].told(told.event)

    def _looked(self, process: Process, heard: Heard, looked: Looked) -> None:
        heard.waiting_bytes = looked.waiting_bytes
        for status in looked.statuses:
            if (stream := heard.streams.get(status.id)) is not None:
                stream.looked(status)

    def _removed(self, process: Process, heard: Heard, removed: Removed) -> None:
        leaving = heard.streams.pop(removed.stream)
        if not leaving.removed.done():
            leaving.removed.set_result(removed.gone)

    def _stopped(self, process: Process, heard: Heard, stopped: Stopped) -> None:
        heard.stuck = stopped.stuck

    def _logged(self, process: Process, heard: Heard, logged: Logged) -> None:
        logger = logging.getLogger(logged.name)
        if logger.isEnabledFor(logged.level):
            extra = {"nvrstore": logged.fields}
            logger.handle(logger.makeRecord(logged.name, logged.level, __file__, 0, logged.line, (), None, extra=extra))

    def _asked(self, process: Process, heard: Heard, asked: Asked) -> None:
        """URL and login, from a hook that may take its time: in a thread of its own. A worker has CONNECTS_MAX of them at most."""
        config = heard.streams[asked.stream].config

        def answer() -> None:
            endpoint: Endpoint | None = None
            problem: SourceError | None = None
            try:
                endpoint = plain_endpoint(resolved(SourceRequest(config.id, lambda: self._resolve(config))))
            except SourceError as error:
                problem = plain_error(error)
            except Exception as error:  # noqa: BLE001  # a hook that answers something else
                problem = SourceError(f"{config.id}: the address and login could not be resolved ({type(error).__name__})")
            process.post(Resolved(asked.ask, endpoint, problem))

        threading.Thread(target=answer, name="nvrstore-resolve", daemon=True).start()

    # --- a worker is gone, in the thread that heard it

    def _gone(self, process: Process) -> None:
        with self._lock:
            process.gone = True
            heard = self._heard[process]
            for stream in heard.streams.values():
                if self._streams.get(stream.config.id) is not stream and not stream.removed.done():
                    stream.removed.set_result(True)  # it went with its worker
            if self._stopping.is_set():
                return
            del self._heard[process]
            seat = next((seat for seat in self._seats if seat.process is process), None)
            if seat is not None:
                seat.lost(process.reason, self._clock.monotonic_s())
            if self._spare is process:
                self._spare = None
                self._spares_lost += 1
        if seat is not None:
            self._replace(seat)
        elif self._stopping.wait(min(WAIT_S_MAX, 2.0 ** min(self._spares_lost, 5))):
            return
        self._recruit()

    def _replace(self, seat: Seat) -> None:
        """Give the streams of a seat to another worker: at once, but for one that ends again and again."""
        with self._lock:
            streams = list(seat.streams)
        log.error("worker.lost", worker=seat.number, reason=seat.reason, streams=len(streams))
        now_ns = self._clock.utc_ns()
        for stream in streams:
            try:
                stream.orphaned(seat.reason, now_ns)
            except Exception as error:  # noqa: BLE001  # one stream's trouble must not keep the others without a worker
                log.error("stream.orphaned", stream=stream.config.id, kind=type(error).__name__, reason=str(error))
        self._on_event(IngestWorkerLost(utc_ns=now_ns, worker=seat.number, reason=seat.reason, streams=len(streams)))
        often = seat.short_lives - SHORT_LIVES_MAX
        wait_s = min(WAIT_S_MAX, 2.0 ** min(often, 5)) if often > 0 else 0.0
        if wait_s:
            sentence = f"ingest worker {seat.number} ends again and again ({seat.reason}): its {len(streams)} streams wait {wait_s:.0f} s"
            self._on_event(Alarm(utc_ns=now_ns, what="ingest", sentence=sentence))
        while not self._stopping.wait(wait_s):
            with self._lock:
                spare, self._spare = self._spare, None
            process = spare or self._start()  # without the lock: a disk that hangs must not make everybody wait
            with self._lock:
                if process is not None and not process.gone and not self._stopping.is_set():
                    self._spares_lost = 0
                    self._sit(seat, process)
                    for stream in seat.streams:
                        self._begin(stream, process)
                    return
            if process is not None:
                process.close()
            wait_s = WAIT_S

    def _recruit(self) -> None:
        """Have a spare: it is started while nobody waits for it."""
        with self._lock:
            if self._spare is not None or self._stopping.is_set():
                return
        process = self._start()
        if process is None:
            return
        with self._lock:
            if self._spare is None and not process.gone and not self._stopping.is_set():
                self._spare = process
                return
        process.close()


def _seat(heard: Heard) -> Seat:
    """Where a worker sits that has streams."""
    assert heard.seat is not None
    return heard.seat
