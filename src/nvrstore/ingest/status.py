"""What can be seen of a stream: its state, a frozen snapshot, and rates from counters."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from nvrstore.config import RecordMode
from nvrstore.model import Gap

_WINDOW_S: Final = 5.0


class StreamState(StrEnum):
    """What a stream is doing."""

    IDLE = "idle"  # not started
    CONNECTING = "connecting"
    RECORDING = "recording"  # samples come
    WAITING = "waiting"  # for the next try
    REFUSED = "refused"  # the same, and long: the camera refused the login
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """A frozen snapshot of one stream. `_ns` are UTC."""

    id: str
    name: str
    state: StreamState
    reason: str  # why it is not recording, as a sentence; empty while it is
    hint: str  # what to do about it
    engine: str  # that opened it, or tries to
    engine_reason: str  # why not the one that comes first; empty where it is that one
    mode: RecordMode  # what the schedule says
    codec: str  # of the video, libav's names; empty until it is known
    width: int
    height: int
    audio_codec: str
    fps: float  # of the last seconds
    bitrate_bps: float
    last_sample_ns: int | None  # arrival
    footage_end_ns: int | None  # where the footage that was handed on ends
    connected_ns: int | None  # since when
    next_try_s: float | None  # monotonic
    samples: int  # of video, since the start
    skipped: int  # samples in front of the first keyframe of a session
    packets_lost: int  # RTP packets that never came, by their sequence numbers; only the lean engine sees them
    reconnects: int
    stuck: int  # sources that were left behind, waiting in the kernel
    gap: Gap | None  # what is open now


class Rates:
    """Frames and bits per second over the last few seconds, from counters that somebody else increments."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int, int]] = deque()

    def look(self, now_s: float, frames: int, size_bytes: int) -> None:
        """Note where the counters stand; called at least once a second."""
        points = self._points
        if points and now_s - points[-1][0] < _WINDOW_S / 10:
            return
        points.append((now_s, frames, size_bytes))
        while len(points) > 2 and now_s - points[1][0] >= _WINDOW_S:
            points.popleft()

    def forget(self) -> None:
        self._points.clear()

    def rates(self) -> tuple[float, float]:
        """Frames per second, bits per second."""
        points = list(self._points)
        if len(points) < 2:
            return 0.0, 0.0
        (start_s, frames_0, bytes_0), (end_s, frames_1, bytes_1) = points[0], points[-1]
        span_s = end_s - start_s
        return (frames_1 - frames_0) / span_s, 8 * (bytes_1 - bytes_0) / span_s
