"""Where in time the samples of a stream belong: tracks, their runs and anchors (the picture is in `__init__.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from nvrstore.limits import MIB, SLEW_PPM_MAX
from nvrstore.model import NS_PER_S, Media, Sample, TrackKey
from nvrstore.timeline.clocks import AGREE_S, Arrivals, CameraClock, ClockWatch
from nvrstore.timeline.model import Placement, RunReason, RunRecord

SETTLE_S: Final = 0.5  # samples are held so long at the start of a run, longer while a burst lasts
SETTLE_S_MAX: Final = 3.0
SETTLE_BYTES_MAX: Final = 8 * MIB
BURST_NS: Final = 20_000_000  # a burst goes on while arrivals of the last quarter second were this much less delayed than before
SHARE_S: Final = 0.5  # sound and picture that agree this well share one anchor: their sync is the camera's
DRIFT_NS_MAX: Final = 10_000_000_000  # an error of UTC beyond this ends the run, whatever explains it
ANCHOR_NS_MAX: Final = 1_000_000_000  # a steady error beyond this ends the run
FALSE_RATE_SLEW: Final = 0.1  # how fast the UTC of a clock with a false rate is put right
REFERENCE_NS_MAX: Final = 2_000_000_000  # a camera's NTP further from arrival than this is not believed
REFERENCE_JITTER_NS: Final = 50_000_000  # nor one whose reports disagree by more
DRIFT_MAX: Final = 0.9  # of a second per second: media time that all but stands still
RATE_NOISE: Final = 0.003  # measured rates below this are none
RATE_MIN: Final = -0.8  # and media time that runs five times too fast; the rest ends runs


class _Track:
    """One track of a stream: its runs, its anchor. UTC of a sample = media time + correction + offset."""

    def __init__(self, timeline: Timeline, key: TrackKey, timescale: int) -> None:
        self.key, self.timescale = key, timescale
        self.arrivals = Arrivals()
        self.offset_ns = 0  # applied; follows the target slowly
        self.rate = 0.0  # what UTC gains on media time per second, once the clock is known to be false
        self.run: RunRecord | None = None
        self.references: list[int] = []  # offsets that the camera's NTP reported
        self._timeline = timeline
        self._clock = CameraClock(timescale)
        self._correction_ns = 0
        self._held: list[Sample] = []
        self._settled_s = self._settled_s_max = 0.0
        self._burst_ns = 0
        self._next: RunReason | None = RunReason.START  # a run has to begin with the next sample
        self._anchored = False
        self._leapt_ns: int | None = None  # the anchor before a leap of the camera's clock
        self._ended: RunRecord | None = None
        self._runs = self._samples = 0
        self._first_dts = self._last_dts = self._last_utc_ns = 0
        self._end_ns: int | None = None  # of the track so far

    # --- samples

    def place(self, samples: Sequence[Sample]) -> list[Placement]:
        if self._anchored and self._next is None and not self.rate and self._clock.follow(samples):
            return self._follow(samples)
        out: list[Placement] = []
        for sample in samples:
            out += self._place(sample)
        return out

    def _follow(self, samples: Sequence[Sample]) -> list[Placement]:
        """The usual case: samples that came together and go on regularly are placed as one, where `_place` would place them one by one."""
        timescale, media_ns = self.timescale, self._media_ns
        latest = samples[-1]  # of what one read brought, only the first can have arrived before the rest: no other is delayed less
        full = self.arrivals.add(min(self._delay_ns(samples[0]), self._delay_ns(latest)), latest.arrival_s)
        last_dts, last_ns, offset_ns = self._last_dts, self._last_utc_ns, self.offset_ns
        error = self._timeline.target_ns(self) - offset_ns
        out: list[Placement] = []
        for sample in samples:
            dts = sample.dts
            limit = (dts - last_dts) * NS_PER_S // timescale * SLEW_PPM_MAX // 1_000_000
            slew = limit if error > limit else -limit if error < -limit else error
            offset_ns += slew
            error -= slew
            utc_ns = media_ns(dts) + offset_ns
            if utc_ns <= last_ns:
                utc_ns = last_ns + 1
            last_dts, last_ns = dts, utc_ns
            out.append(Placement(sample, utc_ns))
        self._last_dts, self._last_utc_ns, self.offset_ns = last_dts, last_ns, offset_ns
        self._samples += len(samples)
        if full:
            self._review()
        return out

    def _place(self, sample: Sample) -> list[Placement]:
        before_s = self._clock.arrival_s
        sample, reason = self._clock.next(sample)
        out: list[Placement] = []
        if reason is not None and not (reason is not RunReason.JUMP and self._retime_first(sample, before_s)):
            out = self.release()
            before_ns = self.offset_ns + self._correction_ns
            self.end(reason, anchored=reason is RunReason.JUMP)
            self._leapt_ns = before_ns if reason is RunReason.LEAP else None
        if not self._anchored:
            return out + self._hold(sample)
        if self.rate:
            self._correction_ns += int((sample.dts - self._last_dts) * NS_PER_S / self.timescale * self.rate)
        if self.arrivals.add(self._delay_ns(sample), sample.arrival_s):
            self._review()
        return [*out, self._put(sample)]

    def _hold(self, sample: Sample) -> list[Placement]:
        """Keep a sample until the anchor is known."""
        delay, now_s = self._delay_ns(sample), sample.arrival_s
        if not self._held:
            self._settled_s, self._settled_s_max, self._burst_ns = now_s + SETTLE_S, now_s + SETTLE_S_MAX, delay
        elif delay < self._burst_ns - BURST_NS:
            self._settled_s = min(max(self._settled_s, now_s + SETTLE_S / 2), self._settled_s_max)
            self._burst_ns = delay
        self._held.append(sample)
        if now_s >= self._settled_s or sum(len(held.data) for held in self._held) > SETTLE_BYTES_MAX:
            return self.release()
        return []

    def due(self, now_s: float) -> list[Placement]:
        return self.release() if self._held and now_s >= self._settled_s else []

    def release(self) -> list[Placement]:
        """Anchor the run with what is held, and give it out."""
        if not self._held:
            return []
        held, self._held = self._held, []
        for sample in held:
            self.arrivals.add(self._delay_ns(sample), sample.arrival_s)
        self.offset_ns = self._timeline.anchor_ns(self)
        if self._leapt_ns is not None and self._next is RunReason.LEAP and abs(self.offset_ns - self._leapt_ns) <= AGREE_S * NS_PER_S:
            self._next, self.offset_ns = RunReason.JUMP, self._leapt_ns  # our clock went as far, only the first sample came early
        self._leapt_ns = None
        overlap_ns = (self._end_ns or 0) - self._media_ns(held[0].dts) - self.offset_ns
        if 0 < overlap_ns < AGREE_S * NS_PER_S:
            self.offset_ns += overlap_ns
        self._anchored = True
        return [self._put(sample) for sample in held]

    def _put(self, sample: Sample) -> Placement:
        if self._next is not None:
            return self._begin(sample)
        way_ns = (sample.dts - self._last_dts) * NS_PER_S // self.timescale
        limit = int(way_ns * FALSE_RATE_SLEW) if self.rate else way_ns * SLEW_PPM_MAX // 1_000_000
        error = self._timeline.target_ns(self) - self.offset_ns
        self.offset_ns += max(-limit, min(limit, error))
        utc_ns = max(self._media_ns(sample.dts) + self.offset_ns, self._last_utc_ns + 1)
        self._last_dts, self._last_utc_ns = sample.dts, utc_ns
        self._samples += 1
        return Placement(sample, utc_ns)

    def _retime_first(self, sample: Sample, before_s: float) -> bool:
        """A wild first DTS: put that sample just before the second one, if nothing else has come."""
        if len(self._held) != 1 or self._next is not RunReason.START:
            return False
        first = self._held[0]
        dts = sample.dts - max(1, round(min(1.0, sample.arrival_s - before_s) * self.timescale))
        self._held[0] = first._replace(dts=dts, pts=dts + max(0, sample.pts - sample.dts))
        self._burst_ns = self._delay_ns(self._held[0])
        return True

    def _media_ns(self, dts: int) -> int:
        return dts * NS_PER_S // self.timescale + self._correction_ns

    def _delay_ns(self, sample: Sample) -> int:
        """Arrival minus media time: the network's delay, plus a constant."""
        return round(sample.arrival_s * NS_PER_S) - self._media_ns(sample.dts)

    def heard_ns(self) -> int | None:
        """The least delay heard of so far, None before the first sample and on a false clock."""
        if self._held:
            return min(map(self._delay_ns, self._held))
        return self.arrivals.least_ns if self.run is not None and not self.rate else None

    # --- runs

    def _begin(self, sample: Sample) -> Placement:
        assert self._next is not None
        reason, ended = self._next, self._ended
        utc_ns = self._media_ns(sample.dts) + self.offset_ns
        lost_ns = 0
        if reason is RunReason.DRIFT and ended is not None:
            ended = replace(ended, end_ns=max(ended.start_ns, utc_ns))
        elif reason is not RunReason.CLOCK_STEP and self._end_ns is not None:
            lost_ns = max(0, utc_ns - self._end_ns)
        self._runs += 1
        name = f"{self._timeline.session:016x}.{self.key}.{self._runs}"
        self.run = RunRecord(name, self.key, reason, utc_ns, self.timescale)
        self._next = self._ended = None
        self._first_dts = self._last_dts = sample.dts
        self._last_utc_ns, self._samples = utc_ns, 1
        return Placement(sample, utc_ns, self.run, ended, lost_ns)

    def end(self, reason: RunReason, *, anchored: bool) -> RunRecord | None:
        """End the run, if there is one; the next sample begins another, because of `reason`, on the same anchor or a new one."""
        self._next = self._next or reason
        if not anchored:
            self.arrivals = Arrivals()
            self.rate, self._correction_ns = 0.0, 0
            self.references.clear()
        self._anchored = anchored and self._anchored
        if self.run is None:
            return None
        self._end_ns = self._last_utc_ns + self._clock.interval * NS_PER_S // self.timescale
        ticks = self._last_dts + self._clock.interval - self._first_dts
        self._ended = replace(self.run, end_ns=self._end_ns, media_ticks=ticks, samples=self._samples)
        self.run = None
        return self._ended

    def step(self, by_ns: int) -> None:
        """The wall clock was set: the anchor moves with it, and a run ends."""
        self.offset_ns += by_ns
        self.references.clear()
        if self.run is not None:
            self.end(RunReason.CLOCK_STEP, anchored=True)
            self._end_ns = None

    def succeed(self, other: _Track) -> list[Placement]:
        """Go on where `other` ends: the same track with another timescale."""
        out = other.release()
        other.end(RunReason.START, anchored=False)
        self._ended, self._end_ns, self._runs = other._ended, other._end_ns, other._runs
        return out

    def disconnect(self) -> tuple[list[Placement], RunRecord | None]:
        """The session is over; the next sample comes from another one, on a clock that may have nothing to do with this."""
        out = self.release()
        ended = self.end(RunReason.START, anchored=False)
        self._next, self._ended = RunReason.START, None
        self._clock = CameraClock(self.timescale)
        return out, ended

    def _review(self) -> None:
        """Once a second: has the camera's clock come apart from ours, and how?"""
        wrong = self.rate != 0 and self.arrivals.fell()
        drift = self.arrivals.drift()
        if wrong:
            self.rate = 0.0
            self.arrivals.restart()
        elif drift:
            rate = (1 + self.rate) / (1 - min(drift, DRIFT_MAX)) - 1
            self.rate = max(RATE_MIN, rate) if abs(rate) > RATE_NOISE else 0.0
            self.arrivals.restart()
        error = self._timeline.target_ns(self) - self.offset_ns
        strict = wrong or (not self.rate and self.arrivals.steady())
        if abs(error) > (ANCHOR_NS_MAX if strict else DRIFT_NS_MAX):
            self.end(RunReason.DRIFT, anchored=True)
            self.offset_ns += error


class Timeline:
    """Places the samples of one stream in time, through all its sessions with the camera. Used by one thread.

    `session` is the recorder's; with `trust_camera_clock` the camera's own clock (RTCP) counts where it is plausible.
    """

    def __init__(self, stream: str, session: int, *, trust_camera_clock: bool = False) -> None:
        self.stream: Final = stream
        self.session: Final = session
        self._trust = trust_camera_clock
        self._watch = ClockWatch()
        self._tracks: dict[Media, _Track] = {}

    def declare(self, media: Media, timescale: int) -> list[Placement]:
        """Say how many ticks a second has on a track, before its first sample. Another number ends its run."""
        known = self._tracks.get(media)
        if known is not None and known.timescale == timescale:
            return []
        track = self._tracks[media] = _Track(self, TrackKey(self.stream, media), timescale)
        if known is None:
            return []
        return track.succeed(known)

    def place(self, samples: Sequence[Sample]) -> list[Placement]:
        """What can be given out now that `samples` came (at least one, of one track, in decode order).

        Nothing while an anchor is sought, else they, behind any that were held.
        """
        latest = samples[-1]
        step = self._watch.look(latest.arrival_ns, latest.arrival_s)
        if step is not None:
            for track in self._tracks.values():
                track.step(step.by_ns)
        return self._tracks[latest.media].place(samples)

    def due(self, now_s: float) -> list[Placement]:
        """What need not be held any longer, though nothing else came: call it a few times a second."""
        return [placement for track in self._tracks.values() for placement in track.due(now_s)]

    def reference(self, media: Media, pts: int, utc_ns: int) -> None:
        """The camera says that `pts` was at `utc_ns` (an RTCP sender report, RFC 3550 6.4.1). Believed where trusted and plausible."""
        track = self._tracks.get(media)
        if self._trust and track is not None:
            track.references = [*track.references[-1:], utc_ns - pts * NS_PER_S // track.timescale]

    def disconnect(self) -> tuple[list[Placement], list[RunRecord]]:
        """The session with the camera is over: what was held, and the runs that ended, with both their ends."""
        placements: list[Placement] = []
        runs = []
        for track in self._tracks.values():
            out, ended = track.disconnect()
            placements += out
            runs += [ended] if ended is not None else []
        return placements, runs

    def target_ns(self, track: _Track) -> int:
        """The offset that `track` should have: the camera's NTP where it counts, else the least delayed arrival.

        Of two tracks that agree it is the lesser, for both.
        """
        wall_ns = self._watch.wall_ns or 0
        least = track.arrivals.least_ns
        if len(track.references) == 2 and not track.rate:
            before, latest = track.references
            if abs(latest - before) < REFERENCE_JITTER_NS and abs(latest - least - wall_ns) < REFERENCE_NS_MAX:
                return latest
        for other in self._tracks.values():
            if other is not track and not track.rate:
                theirs = other.heard_ns()
                if theirs is not None and theirs < least < theirs + SHARE_S * NS_PER_S:
                    least = theirs
        return least + wall_ns

    def anchor_ns(self, track: _Track) -> int:
        """The offset with which `track` begins: that of the other track if it agrees."""
        target = self.target_ns(track)
        for other in self._tracks.values():
            if other is not track and other.run is not None and abs(other.offset_ns - target) < SHARE_S * NS_PER_S:
                return other.offset_ns
        return target
