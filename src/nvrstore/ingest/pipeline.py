"""From the samples of one stream to what is stored, without threads or connections (pure but for the intake).

    Sample ─▶ (video from a keyframe on) ─▶ Timeline: UTC, runs ─▶ Fragmenter ─▶ Gate ─▶ Intake
                                               └▶ taps                └▶ StreamGaps ──▶ Intake (records)

Lives as long as the session of the recorder: sample indices go on over reconnects. Used under the supervisor's lock.

Invariant: a sample that comes in is put out in a fragment, or lies in a gap that is written down.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence

from nvrstore.config import RecordMode
from nvrstore.events import Event, GapClosed, GapOpened
from nvrstore.ingest.contract import Intake
from nvrstore.ingest.gaps import StreamGaps
from nvrstore.ingest.gate import Gate, Passed
from nvrstore.ingest.taps import Tap
from nvrstore.limits import FRAGMENT_S, KEYFRAME_WAIT_S, SEGMENT_S
from nvrstore.media.fragment import Fragmenter
from nvrstore.model import NS_PER_S, Cause, Fragment, Gap, Mark, Media, Sample, TrackConfig, TrackKey, new_id
from nvrstore.timeline import Placement, RunReason, Timeline

HOLE_NS_MIN = 200_000_000  # inside a session: a few frames; less is jitter
_REASONS = {RunReason.LEAP: Cause.TIMESTAMPS, RunReason.RESET: Cause.TIMESTAMPS}


class Pipeline:
    """One stream's way from samples to the intake."""

    def __init__(
        self,
        stream: str,
        name: str,
        session: int,
        intake: Intake,
        *,
        start_ns: int,
        mode_at: Callable[[int], RecordMode] = lambda _: "always",
        pre_event_s: float = 10.0,
        fragment_s: float = FRAGMENT_S,
        segment_s: float = SEGMENT_S,
        open_gaps: Iterable[Gap] = (),
        first_index: Mapping[Media, int] | None = None,
        tell: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self.stream, self.name, self.session = stream, name, session
        self._intake = intake
        self._tell = tell
        self._fragment_s, self._segment_s = fragment_s, segment_s
        # A stream that was removed and added again in one session goes on counting; its runs get names of their own.
        self.next_index: dict[Media, int] = dict(first_index or {})
        self._timeline = Timeline(stream, secrets.randbits(64) if first_index else session)
        self._fragmenters: dict[Media, Fragmenter] = {}
        self._gate = Gate(stream, mode_at, pre_event_s=pre_event_s)
        self._gaps = StreamGaps(stream, start_ns, open_gaps=open_gaps)
        self._waiting_s: float | None = None  # since then a keyframe is waited for; None: not any more, or not yet
        self._begun = False  # samples of this session are recorded
        self._keyless = False  # waiting was in vain the last time
        self.taps: tuple[Tap, ...] = ()
        self.now_ns = start_ns  # arrival of the last sample
        self.configs: dict[Media, TrackConfig] = {}
        self.skipped = 0  # samples in front of the first keyframe of their session

    # --- what a source tells

    def track(self, config: TrackConfig) -> None:
        """A track begins, or goes on differently."""
        media = config.media
        known = self._fragmenters.get(media)
        if known is not None:
            self._placed(self._timeline.due(math.inf))  # what is still held belongs to the old configuration
        self._placed(self._timeline.declare(media, config.timescale))
        self._intake.declare(TrackKey(self.stream, media), self.name, config)
        if known is None:
            self._fragmenters[media] = Fragmenter(
                TrackKey(self.stream, media),
                config,
                self.session,
                fragment_s=self._fragment_s,
                segment_s=self._segment_s,
                index=self.next_index.get(media, 0),
            )
        else:
            self._stored(known.configure(config))
        self.configs[media] = config

    def samples(self, samples: Sequence[Sample]) -> None:
        """The next samples of one track (at least one), in decode order."""
        self.now_ns = samples[-1].arrival_ns
        if not self._begun and samples[0].media is Media.VIDEO:
            samples = self._from_keyframe(samples)
            if not samples:
                return
        self._placed(self._timeline.place(samples))

    def reference(self, media: Media, pts: int, utc_ns: int) -> None:
        """The camera's own clock, where it says so."""
        self._timeline.reference(media, pts, utc_ns)

    def interrupted(self, cause: Cause, detail: str, now_ns: int) -> None:
        """The session is over, or none could be had."""
        placements, runs = self._timeline.disconnect()
        self._placed(placements)
        for run in runs:
            self._intake.record(run.record())
        for fragmenter in self._fragmenters.values():
            self._stored(fragmenter.flush())
        self._begun, self._waiting_s = False, None
        self._changed(self._gaps.mended(self._gaps.end_ns), now_ns)
        self._changed(self._gaps.interrupted(cause, detail, now_ns), now_ns)

    # --- what the clock and the user tell

    def due(self, now_s: float) -> None:
        """Give out what need not wait any longer."""
        self._placed(self._timeline.due(now_s))
        for fragmenter in self._fragmenters.values():
            self._stored(fragmenter.due(now_s))

    def trigger(self, name: str, now_ns: int, *, pre_s: float, post_s: float) -> Mark:
        """Store what event recording would leave out, and mark it."""
        mark = Mark(new_id(), self.stream, name, now_ns - round(pre_s * NS_PER_S), now_ns + round(post_s * NS_PER_S), {"trigger": True})
        self._intake.record(mark.record())
        self._passed(self._gate.trigger(now_ns, pre_s=pre_s, post_s=post_s))
        return mark

    def close(self) -> None:
        """The recorder stops, or the stream is removed: everything goes out; gaps that are open stay so."""
        placements, runs = self._timeline.disconnect()
        self._placed(placements)
        for run in runs:
            self._intake.record(run.record())
        for media, fragmenter in self._fragmenters.items():
            self._stored(fragmenter.flush())
            self.next_index[media] = fragmenter.next_index
        self._changed(self._gaps.mended(self._gaps.end_ns))
        self._changed(self._gate.close())

    # --- looking

    @property
    def open_gap(self) -> Gap | None:
        return self._gaps.open_gap or self._gate.open_gap

    @property
    def mode(self) -> RecordMode:
        return self._gate.mode

    @property
    def end_ns(self) -> int:
        """Where the footage ends."""
        return self._gaps.end_ns

    # --- the way

    def _from_keyframe(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Those of the session's first pictures with which, and behind which, recording begins."""
        for i, sample in enumerate(samples):
            if self._begins(sample):
                return samples[i:]
            self.skipped += 1
            if self._gaps.open_gap is None:
                self._changed(self._gaps.interrupted(Cause.CAMERA, "waiting for a keyframe", sample.arrival_ns))
        return ()

    def _begins(self, sample: Sample) -> bool:
        """Whether recording begins with this picture: a keyframe, or the end of a bounded wait for one. Sound does not wait."""
        if self._waiting_s is None:
            self._waiting_s = sample.arrival_s
        if sample.keyframe:
            self._keyless = False
        elif self._keyless or sample.arrival_s - self._waiting_s >= KEYFRAME_WAIT_S:
            self._keyless = True  # the next session does not wait
        else:
            return False
        self._begun = True
        return True

    def _placed(self, placements: list[Placement]) -> None:
        for sample, utc_ns, began, ended, lost_ns in placements:
            if began is not None:
                if ended is not None:
                    self._intake.record(ended.record())
                self._intake.record(began.record())
                if lost_ns >= HOLE_NS_MIN and sample.media is Media.VIDEO:
                    cause = _REASONS.get(began.reason, Cause.NETWORK)
                    detail = f"{lost_ns / NS_PER_S:.1f} s are missing between two pictures ({began.reason})"
                    self._changed(self._gaps.missing(cause, detail, utc_ns - lost_ns, utc_ns))
            if sample.media is Media.VIDEO and (sample.damaged or self._gaps.damaged):
                self._changed(self._gaps.frame(utc_ns, damaged=sample.damaged, keyframe=sample.keyframe))
            fragmenter = self._fragmenters[sample.media]
            closed = fragmenter.push(sample, utc_ns, discontinuity=began is not None)
            if closed:
                self._stored(closed)
            for tap in self.taps:
                tap.offer(sample, fragmenter.config, utc_ns)

    def _stored(self, fragments: tuple[Fragment, ...]) -> None:
        for fragment in fragments:
            if fragment.track.media is Media.VIDEO:
                self._changed(self._gaps.stored(fragment.utc_ns, fragment.end_ns))
            self._passed(self._gate.push(fragment))

    def _passed(self, passed: Passed) -> None:
        self._changed(passed.gaps)
        for fragment in passed.fragments:
            self._intake.put(fragment)

    def _changed(self, gaps: Iterable[Gap], noticed_ns: int | None = None) -> None:
        """Write down and tell; noticed with the last sample where nothing else is said."""
        for gap in gaps:
            self._intake.record(gap.record())
            kind = GapOpened if gap.end_ns is None else GapClosed
            self._tell(kind(utc_ns=self.now_ns if noticed_ns is None else noticed_ns, gap=gap))
