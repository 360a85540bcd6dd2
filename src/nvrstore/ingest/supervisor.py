"""One stream: sessions with its camera, one after the other, whatever happens to them.

    IDLE ─▶ CONNECTING ─first sample─▶ RECORDING ─ended, silent─▶ WAITING ─backoff─▶ CONNECTING ...
                 └──failed──▶ WAITING, REFUSED                                 any ──stop──▶ STOPPED

Samples come in the source's thread, time comes from the ingest thread (`tick`, group.py); one lock joins them. A session
is heard only while it is the present one: what a source that was given up still says is dropped. Nothing here runs on
the host's loop, and nothing waits for a camera. A session that is told to end is heard to its end: engines still hold
a frame, and the socket may hold more.

Invariant: at most one session is heard, and a new one begins only when the source of the last one has ended, or was
left behind after STOP_S and counted: many cameras take only a few clients. With SOURCES_STUCK_MAX of them left behind
there is no next one until one of them comes back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from math import inf
from random import Random

from nvrstore.clock import Clock
from nvrstore.config import RecordMode, StreamConfig
from nvrstore.errors import SourceEndedError, SourceError, SourceRefusedError, SourceSilentError, redact
from nvrstore.events import Event, StreamChanged
from nvrstore.ingest.backoff import Backoff
from nvrstore.ingest.contract import Endpoint, Intake, Source, SourceFactory, SourceRequest
from nvrstore.ingest.engines import choose
from nvrstore.ingest.errors import cause_of
from nvrstore.ingest.pipeline import Pipeline
from nvrstore.ingest.status import Rates, StreamState, StreamStatus
from nvrstore.ingest.taps import Tap
from nvrstore.limits import FRAGMENT_S, SOURCES_STUCK_MAX, STOP_S
from nvrstore.model import Gap, Mark, Media, Sample, TrackConfig
from nvrstore.telemetry import get_logger

#: Asked at every connect for URL and login, in a thread of ingest.
ResolveStream = Callable[[StreamConfig], Endpoint]

CONNECT_FACTOR = 3  # connecting takes several answers, each of which may take `silence_s`

_log = get_logger("ingest.supervisor")


def resolve_configured(config: StreamConfig) -> Endpoint:
    """URL and login as the configuration says them: the login is read at this moment."""
    return Endpoint(config.url, config.resolve_login())


class Supervisor:
    """Records one stream into an intake. Thread-safe; no method but `stop` waits for anything."""

    def __init__(
        self,
        config: StreamConfig,
        intake: Intake,
        *,
        session: int,
        clock: Clock,
        engines: Mapping[str, SourceFactory],
        local: Callable[[int], datetime],
        resolve: ResolveStream = resolve_configured,
        on_event: Callable[[Event], None] = lambda _: None,
        fragment_s: float = FRAGMENT_S,
        first_index: Mapping[Media, int] | None = None,
        random: Random | None = None,
    ) -> None:
        self.config = config
        self._intake, self._session_id, self._clock, self._engines = intake, session, clock, engines
        self._local, self._resolve, self._on_event = local, resolve, on_event
        self._fragment_s = config.fragment_s or fragment_s
        self.next_index: Mapping[Media, int] = first_index or {}  # of samples, for whoever goes on with this stream after `stop`
        self.end_ns: int | None = None  # where its footage ended, likewise
        self._backoff = Backoff(random or Random())
        self._lock = threading.Lock()
        self._pipeline: Pipeline | None = None
        self._state = StreamState.IDLE
        self._reason = self._hint = ""
        self._engine = self._engine_reason = ""
        self._packets_lost = 0  # in sessions that are over
        self._session: _Session | None = None
        self._stuck: list[Source] = []  # told to end, not heard any more, still there
        self._due_s = 0.0  # of the next try
        self._rates = Rates()
        self._frames = self._bytes = self._reconnects = 0
        self._taps: tuple[Tap, ...] = ()

    # --- the life of a stream

    def start(self, open_gaps: Iterable[Gap] = ()) -> None:
        """Connect with the next tick. The first footage closes `open_gaps`: those of earlier sessions, and "recorder down"."""
        with self._lock:
            now_ns = self._clock.utc_ns()
            config = self.config
            self._pipeline = Pipeline(
                config.id,
                config.title,
                self._session_id,
                self._intake,
                start_ns=now_ns,
                mode_at=self._mode_at,
                pre_event_s=config.pre_event_s,
                fragment_s=self._fragment_s,
                segment_s=config.segment_s,
                open_gaps=open_gaps,
                first_index=self.next_index,
                tell=self._on_event,
            )
            self._pipeline.taps = self._taps
            self._due_s = self._clock.monotonic_s()
            self._enter(StreamState.WAITING, "")

    def stop(self, timeout_s: float = STOP_S) -> bool:
        """End everything, and hand on what was received. False: a source is stuck, and was left behind."""
        self.request_stop()
        return self.finish(self._clock.monotonic_s() + timeout_s)

    def request_stop(self) -> None:
        """The first half of `stop`: tell the source, do not wait."""
        with self._lock:
            if self._state is not StreamState.STOPPED:
                self._enter(StreamState.STOPPED, "")
                if self._session is not None:
                    self._session.tell_to_end(SourceEndedError("stopped"), self._clock.monotonic_s())

    def finish(self, deadline_s: float) -> bool:
        """The second half: wait for the source until `deadline_s`, then close."""
        session = self._session
        gone = session is None or session.source.join(max(0.0, deadline_s - self._clock.monotonic_s()))
        with self._lock:
            if not gone:
                self._abandon()
            if self._pipeline is not None:
                self._pipeline.close()
                self.next_index = self._pipeline.next_index
                self.end_ns = self._pipeline.end_ns
                self._pipeline = None
            self._sweep()
            return not self._stuck

    def retry_now(self) -> None:
        """Try at once: somebody says that the camera is back, or changed its login."""
        with self._lock:
            self._backoff.forget()
            if self._state in (StreamState.WAITING, StreamState.REFUSED):
                self._due_s = self._clock.monotonic_s()

    # --- time

    def wants_connect(self, now_s: float) -> float | None:
        """Since when a session is due, or None."""
        with self._lock:
            waits = self._state in (StreamState.WAITING, StreamState.REFUSED) and now_s >= self._due_s
            return self._due_s if waits and len(self._stuck) < SOURCES_STUCK_MAX else None

    @property
    def connecting(self) -> bool:
        return self._state is StreamState.CONNECTING

    def connect(self) -> None:
        """Begin a session. Called by the ingest thread, when its turn has come."""
        with self._lock:
            if self._state not in (StreamState.WAITING, StreamState.REFUSED):
                return
            config = self.config
            request = SourceRequest(
                config.id, lambda: self._resolve(config), config.transport, config.audio, config.silence_s, config.options
            )
            session = _Session(self, self._clock.monotonic_s())
            try:
                session.source = choose(self._engines, config.engine)(request, session, self._clock)
            except SourceError as error:
                self._failed(error, 0.0)
                return
            self._session = session
            self._enter(StreamState.CONNECTING, self._reason, self._hint)
            try:
                session.source.start()
            except RuntimeError as error:  # no thread can be started: the machine is at its end, the recorder goes on
                self._session = None
                self._failed(SourceError(f"{config.id}: no thread could be started ({error})"), 0.0)

    def tick(self, now_s: float, awake_s: float = -inf) -> None:
        """What is due by the clock: fragments, the watchdog, sources that were told to end. `awake_s`: until then we stood still."""
        with self._lock:
            pipeline = self._pipeline
            if pipeline is None:
                return
            pipeline.due(now_s)
            if self._stuck:
                self._sweep()
            session = self._session
            if session is None:
                return
            self._rates.look(now_s, self._frames, self._bytes)
            if session.told_s is not None:
                if now_s - session.told_s > STOP_S and self._state is not StreamState.STOPPED and not _behind(session.source):
                    self._abandon()
                    self._over(session, session.error)
                else:
                    session.source.stop()
                return
            silence_s = self.config.silence_s
            if session.frames and min(now_s, _heard_until_s(session.source)) - max(session.last_s, awake_s) > silence_s:
                session.tell_to_end(SourceSilentError(f"{redact(self.config.url)}: connected, and no picture for {silence_s:g} s"), now_s)
            elif not session.frames and now_s - max(session.began_s, awake_s, _connecting_s(session.source)) > CONNECT_FACTOR * silence_s:
                silent = f"{redact(self.config.url)}: no picture within {CONNECT_FACTOR * silence_s:g} s of connecting"
                session.tell_to_end(SourceSilentError(silent), now_s)

    # --- what the user asks for

    def status(self) -> StreamStatus:
        """A frozen snapshot. Takes no lock: its parts may be a moment apart."""
        pipeline, session, config = self._pipeline, self._session, self.config
        video = pipeline.configs.get(Media.VIDEO) if pipeline else None
        audio = pipeline.configs.get(Media.AUDIO) if pipeline else None
        fps, bitrate_bps = self._rates.rates() if session is not None and session.frames else (0.0, 0.0)
        waiting = self._state in (StreamState.WAITING, StreamState.REFUSED)
        return StreamStatus(
            id=config.id,
            name=config.title,
            state=self._state,
            reason=self._reason,
            hint=self._hint,
            engine=session.source.engine if session is not None else self._engine,
            engine_reason=_engine_reason(session.source) if session is not None else self._engine_reason,
            mode=pipeline.mode if pipeline else "off",
            codec=video.codec if video else "",
            width=video.width if video else 0,
            height=video.height if video else 0,
            audio_codec=audio.codec if audio else "",
            fps=fps,
            bitrate_bps=bitrate_bps,
            last_sample_ns=pipeline.now_ns if pipeline and self._frames else None,
            footage_end_ns=pipeline.end_ns if pipeline and self._frames else None,
            connected_ns=session.connected_ns if session is not None and session.frames else None,
            next_try_s=self._due_s if waiting else None,
            samples=self._frames,
            skipped=pipeline.skipped if pipeline else 0,
            packets_lost=self._packets_lost + (_packets_lost(session.source) if session is not None else 0),
            reconnects=self._reconnects,
            stuck=len(self._stuck),
            gap=pipeline.open_gap if pipeline else None,
        )

    def trigger(self, name: str, *, pre_s: float, post_s: float) -> Mark | None:
        """Event recording: store from `pre_s` before now to `post_s` behind it, and mark it. None while the stream does not run."""
        with self._lock:
            if self._pipeline is None:
                return None
            return self._pipeline.trigger(name, self._clock.utc_ns(), pre_s=pre_s, post_s=post_s)

    def add_tap(self, tap: Tap) -> None:
        """Give it samples from now on."""
        with self._lock:
            self._taps = (*self._taps, tap)
            if self._pipeline is not None:
                self._pipeline.taps = self._taps

    def remove_tap(self, tap: Tap) -> None:
        with self._lock:
            self._taps = tuple(other for other in self._taps if other is not tap)
            if self._pipeline is not None:
                self._pipeline.taps = self._taps

    # --- under the lock

    def _mode_at(self, utc_ns: int) -> RecordMode:
        """What is asked for every fragment: local time is looked up only for a schedule."""
        record = self.config.record
        return record if isinstance(record, str) else self.config.mode_at(self._local(utc_ns))

    def _enter(self, state: StreamState, reason: str, hint: str = "") -> None:
        if (state, reason) != (self._state, self._reason):
            self._state, self._reason, self._hint = state, reason, hint
            self._on_event(StreamChanged(utc_ns=self._clock.utc_ns(), stream=self.config.id, state=str(state), reason=reason, hint=hint))

    def _begun(self, session: _Session, sample: Sample) -> None:
        """The first picture of a session."""
        session.connected_ns = sample.arrival_ns
        self._rates.forget()
        self._enter(StreamState.RECORDING, "")
        _log.info("stream.connected", stream=self.config.id, engine=session.source.engine, after_s=sample.arrival_s - session.began_s)

    def _over(self, session: _Session, error: SourceError) -> None:
        """The present session is over, because of `error`."""
        self._session = None
        self._remember(session.source)
        if self._state is not StreamState.STOPPED:
            self._failed(error, session.last_s - session.began_s if session.frames else 0.0)

    def _abandon(self) -> None:
        """The source does not end: hear it no longer."""
        session, self._session = self._session, None
        if session is not None:
            self._stuck.append(session.source)
            self._remember(session.source)
            _log.warning("source.left_behind", stream=self.config.id, engine=self._engine)

    def _remember(self, source: Source) -> None:
        """What is shown of a source that is over."""
        self._engine, self._engine_reason = source.engine, _engine_reason(source)
        self._packets_lost += _packets_lost(source)

    def _failed(self, error: SourceError, lasted_s: float) -> None:
        assert self._pipeline is not None
        now_s, now_ns = self._clock.monotonic_s(), self._clock.utc_ns()
        delay_s = self._backoff.ended(error, lasted_s)
        self._due_s = now_s + delay_s
        self._reconnects += 1
        self._pipeline.interrupted(cause_of(error), error.message, now_ns)
        self._enter(StreamState.REFUSED if isinstance(error, SourceRefusedError) else StreamState.WAITING, error.message, error.hint)
        _log.warning("stream.lost", stream=self.config.id, reason=error.message, next_try_s=delay_s)

    def _sweep(self) -> None:
        """Forget the sources that have ended after all; ask the others again."""
        for source in self._stuck:
            source.stop()
        self._stuck = [source for source in self._stuck if not source.join(0)]


def _engine_reason(source: Source) -> str:
    return str(getattr(source, "engine_reason", ""))


def _heard_until_s(source: Source) -> float:
    """Up to when everything that came was handed on: a machine that is behind must not take a camera for silent."""
    return float(getattr(source, "heard_until_s", inf))


def _connecting_s(source: Source) -> float:
    """Since when it connects: what it waits for its turn is not the camera's doing."""
    return float(getattr(source, "connecting_s", -inf))


def _behind(source: Source) -> bool:
    """It is over, and hands on what it read: nothing of that is thrown away."""
    return bool(getattr(source, "behind", False))


def _packets_lost(source: Source) -> int:
    return int(getattr(source, "packets_lost", 0))


class _Session:
    """The ears of a supervisor for one session. See `Receiver`."""

    def __init__(self, owner: Supervisor, began_s: float) -> None:
        self._owner = owner
        self.source: Source
        self.began_s = self.last_s = began_s
        self.told_s: float | None = None  # since when it should end, and why
        self.error: SourceError = SourceEndedError("ended")
        self.connected_ns: int | None = None
        self.frames = 0

    def tell_to_end(self, error: SourceError, now_s: float) -> None:
        if self.told_s is None:
            self.told_s, self.error = now_s, error
            self.source.stop()

    def on_track(self, config: TrackConfig) -> None:
        owner = self._owner
        with owner._lock:
            if owner._session is self and owner._pipeline is not None:
                owner._pipeline.track(config)

    def on_samples(self, samples: Sequence[Sample]) -> None:
        owner = self._owner
        with owner._lock:
            pipeline = owner._pipeline
            if owner._session is not self or pipeline is None:
                return
            if samples[0].media is Media.VIDEO:
                if not self.frames:
                    owner._begun(self, samples[0])
                self.frames += len(samples)
                self.last_s = samples[-1].arrival_s
                owner._frames += len(samples)
            for sample in samples:
                owner._bytes += len(sample.data)
            pipeline.samples(samples)

    def on_reference(self, media: Media, pts: int, utc_ns: int) -> None:
        owner = self._owner
        with owner._lock:
            if owner._session is self and owner._pipeline is not None:
                owner._pipeline.reference(media, pts, utc_ns)

    def on_ended(self, error: SourceError) -> None:
        owner = self._owner
        with owner._lock:
            if owner._session is self:
                owner._over(self, error if self.told_s is None else self.error)
