"""What is measured while recording: how long commits take, how many bytes arrive."""

from __future__ import annotations

from collections import deque


class Latencies:
    """Durations of the last commits, for the p99 that a target is measured against."""

    def __init__(self, size: int = 256) -> None:
        self._last: deque[float] = deque(maxlen=size)

    def add(self, seconds: float) -> None:
        self._last.append(seconds)

    def quantile(self, q: float, *, without: int = 0) -> float:
        """0 where nothing was measured. `without`: so many of the longest are left out, as those on their way in a standstill."""
        ordered = sorted(self._last)[: max(0, len(self._last) - without)]
        return ordered[min(len(ordered) - 1, int(q * len(self._last)))] if ordered else 0.0


class Rate:
    """Bytes a second, smoothed over about five seconds."""

    def __init__(self, now_s: float) -> None:
        self.bps = 0.0
        self._bytes, self._since_s = 0, now_s

    def add(self, length: int) -> None:
        self._bytes += length

    def look(self, now_s: float) -> None:
        """Called at least once a second or so."""
        passed_s = now_s - self._since_s
        if passed_s >= 1.0:
            fresh = self._bytes / passed_s
            self.bps = fresh if self.bps == 0 else 0.8 * self.bps + 0.2 * fresh
            self._bytes, self._since_s = 0, now_s
