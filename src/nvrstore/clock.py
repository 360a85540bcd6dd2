"""The only place that asks the operating system what time it is.

Two clocks, two uses: *monotonic seconds* (`_s`, float) decide; *UTC nanoseconds* (`_ns`, int) are stored.
Pure code takes `now_s` or `now_ns` as an argument; everything else takes a `Clock`.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Both clocks of one machine."""

    def monotonic_s(self) -> float:
        """Seconds since an arbitrary point; never steps. Comparable between processes of one machine."""

    def utc_ns(self) -> int:
        """Nanoseconds since 1970-01-01 UTC; may step."""


class SystemClock:
    """The machine's own clocks (CLOCK_MONOTONIC, CLOCK_REALTIME). They are read once per frame: nothing of ours stands in between."""

    monotonic_s = staticmethod(time.monotonic)
    utc_ns = staticmethod(time.time_ns)


class ManualClock:
    """A clock that moves only when told: a 30-second failover is tested in a millisecond."""

    def __init__(self, *, monotonic_s: float = 1000.0, utc_ns: int = 1_700_000_000_000_000_000) -> None:
        self._monotonic_s = monotonic_s
        self._utc_ns = utc_ns

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def utc_ns(self) -> int:
        return self._utc_ns

    def advance(self, seconds: float) -> None:
        """Let time pass on both clocks."""
        self._monotonic_s += seconds
        self._utc_ns += round(seconds * 1e9)

    def step(self, seconds: float) -> None:
        """Step the wall clock alone, as NTP or a person does."""
        self._utc_ns += round(seconds * 1e9)


SYSTEM_CLOCK = SystemClock()
