"""`engine = "auto"`: the lean engine where it fits, libav where it does not.

    with options of libav's ────────────────────────────────────────────────────────▶ pyav
    else ─▶ lean ─ "this I do not speak" (`SourceUnsupportedError`, while connecting) ─▶ pyav, in the same session
                 └ three sessions in a row without a sensible answer ─────────────────▶ pyav, for the next one

What was found out about a stream is remembered for SESSIONS sessions: a camera may be set to something else. The choice and its
reason are `engine` and `engine_reason`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from math import inf
from typing import Final

from nvrstore.clock import Clock
from nvrstore.errors import SourceError, SourceSilentError
from nvrstore.ingest.contract import Receiver, Source, SourceFactory, SourceRequest
from nvrstore.ingest.errors import SourceUnsupportedError
from nvrstore.ingest.lean.source import OPTIONS
from nvrstore.model import TrackConfig
from nvrstore.telemetry import get_logger

SESSIONS: Final = 100  # until lean is tried again
SILENT_MAX: Final = 3  # sessions of lean in a row that came to nothing, before libav gets its turn
STREAMS_MAX: Final = 10_000  # that are remembered

_log = get_logger("ingest.auto")


@dataclass(slots=True)
class _Verdict:
    """What is known of one stream."""

    reason: str = ""  # why libav opens it
    sessions: int = 0  # that remain
    silent: int = 0


class AutoEngine:
    """Makes sources that choose. See `SourceFactory`."""

    def __init__(self, lean: SourceFactory, pyav: SourceFactory) -> None:
        self.lean, self.pyav = lean, pyav
        self._verdicts: OrderedDict[str, _Verdict] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, request: SourceRequest, receiver: Receiver, clock: Clock) -> AutoSource:
        return AutoSource(self, request, receiver, clock, self._why_not_lean(request))

    def _why_not_lean(self, request: SourceRequest) -> str:
        """Why libav is to open this stream; empty if it is not."""
        foreign = sorted(set(request.options) - OPTIONS)
        if foreign:
            return f"options of libav's: {', '.join(foreign)}"
        with self._lock:
            verdict = self._verdicts.get(request.stream)
            if verdict is None:
                return ""
            if verdict.reason:
                verdict.sessions -= 1
                if verdict.sessions < 0:
                    del self._verdicts[request.stream]
                    return ""
                return verdict.reason
            if verdict.silent >= SILENT_MAX:
                verdict.silent = 0
                return f"lean got no sensible answer in {SILENT_MAX} sessions"
            return ""

    def found(self, stream: str, reason: str) -> None:
        """Libav opens this stream, because of `reason`."""
        with self._lock:
            self._verdicts[stream] = _Verdict(reason, SESSIONS)
            self._bound()

    def silent(self, stream: str, *, silent: bool) -> None:
        """A session of lean came to nothing, or to something."""
        with self._lock:
            if silent:
                self._verdicts.setdefault(stream, _Verdict()).silent += 1
                self._bound()
            else:
                self._verdicts.pop(stream, None)

    def _bound(self) -> None:
        while len(self._verdicts) > STREAMS_MAX:
            self._verdicts.popitem(last=False)


class AutoSource:
    """One session, through one engine or, where that cannot, the other. See `Source`."""

    def __init__(self, owner: AutoEngine, request: SourceRequest, receiver: Receiver, clock: Clock, reason: str) -> None:
        self._owner, self._request, self._receiver, self._clock = owner, request, receiver, clock
        self.engine_reason = reason
        self._lock = threading.Lock()
        self._stopping = False
        self._tracks = 0
        self.on_samples, self.on_reference = receiver.on_samples, receiver.on_reference  # straight through
        self._source: Source = (owner.pyav if reason else owner.lean)(request, self, clock)

    @property
    def engine(self) -> str:
        return self._source.engine

    @property
    def packets_lost(self) -> int:
        return int(getattr(self._source, "packets_lost", 0))

    @property
    def connecting_s(self) -> float:
        return float(getattr(self._source, "connecting_s", -inf))

    @property
    def heard_until_s(self) -> float:
        return float(getattr(self._source, "heard_until_s", inf))

    @property
    def behind(self) -> bool:
        return bool(getattr(self._source, "behind", False))

    def start(self) -> None:
        self._source.start()

    def stop(self) -> None:
        with self._lock:
            self._stopping = True
            source = self._source
        source.stop()

    def join(self, timeout_s: float) -> bool:
        deadline_s = self._clock.monotonic_s() + timeout_s
        while True:
            with self._lock:
                source = self._source
            if not source.join(max(0.0, deadline_s - self._clock.monotonic_s())):
                return False
            with self._lock:
                if source is self._source:
                    return True

    # --- what the present engine tells

    def on_track(self, config: TrackConfig) -> None:
        """It speaks this camera's language."""
        if not self._tracks:
            self._tracks = 1
            if self._source.engine == "lean":
                self._owner.silent(self._request.stream, silent=False)
            elif self.engine_reason.startswith("lean got"):
                self._owner.found(self._request.stream, self.engine_reason)
        self._receiver.on_track(config)

    def on_ended(self, error: SourceError) -> None:
        """It is over, or has to go on with the other engine."""
        stream = self._request.stream
        if isinstance(error, SourceUnsupportedError) and not self._tracks and self._source.engine == "lean":
            with self._lock:
                stopping = self._stopping
                if not stopping:
                    self.engine_reason = error.message
                    self._source = self._owner.pyav(self._request, self, self._clock)
            if not stopping:
                self._owner.found(stream, error.message)
                _log.info("engine.chosen", stream=stream, engine="pyav", reason=error.message)
                self._go_on()
                return
        elif isinstance(error, SourceSilentError) and not self._tracks and self._source.engine == "lean":
            self._owner.silent(stream, silent=True)
        self._receiver.on_ended(error)

    def _go_on(self) -> None:
        failed = ""
        try:
            self._source.start()
        except RuntimeError as error:
            failed = str(error)
        if failed:
            self._receiver.on_ended(SourceError(f"{self._request.stream}: no thread could be started ({failed})"))
        elif self._stopping:
            self._source.stop()
