"""Three clocks, watched: our wall clock, the camera's media clock, and how far arrivals lag behind the latter.

`ClockWatch` notices that our wall clock was set. `CameraClock` tells a DTS that follows from one that is a little wrong
(put right) and from one that cannot go on (a run must begin). `Arrivals` knows the least delayed sample of the last minute.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from nvrstore.model import NS_PER_S, Sample
from nvrstore.timeline.model import ClockStep, RunReason

JUMP_S: Final = 2.0  # a longer way to the next sample (and longer than three of the ways before) ends the run
REWIND_S: Final = 0.5  # a longer way back ends the run; a shorter one is clamped, unless it leads a keyframe to where the clock began
AGREE_S: Final = 1.0  # a jump that our clock confirms within this is missing footage; else the camera's clock leapt
STUCK_MAX: Final = 5  # samples with one and the same DTS; from then on arrival tells their time
STEP_S: Final = 0.5  # a step of the wall clock; NTP slews less than 0.128 s away
WINDOW: Final = 60  # seconds of least-delayed arrivals that are remembered
DRIFT_WINDOWS: Final = (16, WINDOW)  # a false rate shows in the last 16 seconds, a slightly false one in the last minute
DRIFT_NS_MIN: Final = 250_000_000  # less is jitter
STEADY_NS: Final = 100_000_000


class ClockWatch:
    """Notices steps of the wall clock against the monotonic one. Two looks must agree: between our two readings we may have slept."""

    def __init__(self) -> None:
        self.wall_ns: int | None = None  # UTC minus monotonic
        self._suspect_ns: int | None = None

    def look(self, utc_ns: int, monotonic_s: float) -> ClockStep | None:
        """Compare the two clocks, read at the same time."""
        wall = utc_ns - round(monotonic_s * NS_PER_S)
        known = self.wall_ns
        if known is None or abs(wall - known) < STEP_S * NS_PER_S:
            self.wall_ns, self._suspect_ns = wall, None
            return None
        if self._suspect_ns is None or abs(wall - self._suspect_ns) > STEP_S * NS_PER_S / 5:
            self._suspect_ns = wall
            return None
        self.wall_ns, self._suspect_ns = wall, None
        return ClockStep(utc_ns, wall - known)


class Unwrapper:
    """Timestamps of `bits` bits, which wrap (RTP: 32, every 13.25 h at 90 kHz), to ones that do not."""

    def __init__(self, bits: int = 32) -> None:
        self._period: Final = 1 << bits
        self._last: int | None = None

    def unwrap(self, value: int) -> int:
        """The value congruent to `value` that is nearest to the one before; the first stays what it is."""
        if self._last is not None:
            half = self._period // 2
            value = self._last + (value - self._last + half) % self._period - half
        self._last = value
        return value


class CameraClock:
    """The camera's clock as its DTS show it: what follows normally, what is put right, what cannot go on."""

    def __init__(self, timescale: int) -> None:
        self.timescale: Final = timescale
        self.dts: int | None = None  # of the last sample, as it was given out
        self.arrival_s = 0.0
        self.interval = max(1, timescale // 25)  # the usual way from sample to sample
        self._way = self.interval  # the last one, jumps included: slow streams are told from broken ones by it
        self._near: Final = round(JUMP_S * timescale)
        self._raw = self._shift = self._stuck = 0
        self._origin = 0  # where the clock began: DTS of the first sample, or of the one with which it leapt or went back

    def follow(self, samples: Sequence[Sample]) -> bool:
        """Take all of them in at once, if each follows the one before it normally; else none of them."""
        last, near = self.dts, self._near
        if last is None or self._shift:
            return False
        dts = before = last
        for sample in samples:
            before, dts = dts, sample.dts
            if not 0 < dts - before <= near:
                return False
        self.dts = self._raw = dts
        self.interval = self._way = dts - before
        self._stuck, self.arrival_s = 0, samples[-1].arrival_s
        return True

    def next(self, sample: Sample) -> tuple[Sample, RunReason | None]:
        """The sample, its DTS put right where it is a little wrong; and why a run must begin with it, if one must."""
        raw = dts = sample.dts
        reason = None
        if self.dts is None:
            self._origin = raw
        else:
            dts = raw + self._shift
            delta = dts - self.dts
            if 0 < delta <= self._near:
                self.interval = self._way = delta
                self._stuck = 0
            else:
                dts, reason = self._irregular(raw, delta, sample.arrival_s - self.arrival_s, sample.keyframe)
        self.dts, self._raw, self.arrival_s = dts, raw, sample.arrival_s
        if dts != raw:  # no picture is shown before it is decoded: of those that come as they are shown, PTS grow as DTS do
            sample = sample._replace(dts=dts, pts=max(dts, sample.pts + self._shift))
        return sample, reason

    def _irregular(self, raw: int, delta: int, waited_s: float, keyframe: bool) -> tuple[int, RunReason | None]:
        assert self.dts is not None
        if delta > 3 * self._way and delta > 0:
            if abs(delta / self.timescale - waited_s) <= AGREE_S + waited_s / 10:
                self._way = delta
                return raw + self._shift, RunReason.JUMP
            self._shift, self._origin = 0, raw
            return raw, RunReason.LEAP
        if delta > 0:
            self.interval = self._way = delta
            return raw + self._shift, None
        if delta < -REWIND_S * self.timescale or (keyframe and self._begins_anew(raw)):
            self._shift, self._stuck, self._origin = 0, int(raw == self._raw), raw
            return raw, RunReason.RESET
        self._stuck = self._stuck + 1 if raw == self._raw else 0
        if self._stuck <= STUCK_MAX:
            return self.dts + 1, None
        dts = self.dts + max(1, round(waited_s * self.timescale))
        self._shift = dts - raw
        return dts, None

    def _begins_anew(self, raw: int) -> bool:
        """Whether a DTS is back where the clock began: some servers begin again for everybody when another client joins.

        One look cannot tell any other short way back from jitter. That of one sample is told from a DTS that stands still once.
        """
        back = raw < self._raw or (raw == self._raw and not self._stuck)
        return back and raw - self._origin <= self.interval // 2


class Arrivals:
    """Arrival minus media time: the least delayed of every second, for the last minute."""

    def __init__(self) -> None:
        self.least_ns = 0
        self._seconds: deque[tuple[float, int]] = deque(maxlen=WINDOW)
        self._current: int | None = None
        self._since_s = 0.0

    def add(self, offset_ns: int, at_s: float) -> bool:
        """Take an arrival in; whether a second was completed."""
        current = self._current
        if current is not None and at_s < self._since_s + 1.0:
            if offset_ns < current:
                self._current = offset_ns
                self.least_ns = min(self.least_ns, offset_ns)
            return False
        if current is not None:
            self._seconds.append((self._since_s, current))
        self._current, self._since_s = offset_ns, at_s
        self.least_ns = min(offset_ns, min((least for _, least in self._seconds), default=offset_ns))
        return current is not None

    def restart(self) -> None:
        """Forget all but the last full second."""
        while len(self._seconds) > 1:
            self._seconds.popleft()
        known = [least for _, least in self._seconds]
        self.least_ns = min(known if self._current is None else [*known, self._current], default=0)

    def steady(self) -> bool:
        """Whether the last five seconds agree."""
        last = [least for _, least in self._seconds][-5:]
        return len(last) == 5 and max(last) - min(last) < STEADY_NS

    def fell(self) -> bool:
        """Whether the last second is far below all others: what looked like a slow clock was a link that fell behind."""
        earlier = [least for _, least in self._seconds][:-1]
        return bool(earlier) and self._seconds[-1][1] < min(earlier) - AGREE_S * NS_PER_S

    def drift(self) -> float:
        """Seconds per second by which media time falls behind arrival, if it does so evenly; else 0."""
        for size in DRIFT_WINDOWS:
            if len(self._seconds) < size:
                break
            points = list(self._seconds)[-size:]
            (start_s, first), (end_s, last) = points[0], points[-1]
            change = last - first
            if abs(change) < DRIFT_NS_MIN:
                continue
            if all(abs((points[size * i // 4][1] - first) / change - i / 4) < 0.15 for i in (1, 2, 3)):
                return change / ((end_s - start_s) * NS_PER_S)
        return 0.0
