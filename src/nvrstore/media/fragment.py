"""Samples of one track to fragments: `moof` + `mdat` (ISO/IEC 14496-12 8.8), the unit that is journaled.

    offset  0  moof
            8    mfhd   sequence number at 20      zeroes here,
           24    traf                              set when the
           32      tfhd track_ID at 44             batch is built
           48      tfdt (version 1) time at 60     (model.py)
           68      trun (version 1) entries of 16 bytes from 88: duration, size, flags, composition offset (signed)
      88+16·n  mdat header; then the samples' bytes, by reference

A fragment holds at most `fragment_s` and `fragment_bytes_max` (a larger sample stands alone); it begins at a keyframe
where there is one, and is closed without one where there is none: whatever a camera sends is recorded.
A sample's duration is known when the next one comes, so the last sample always waits; at a gap, and after silence, it
gets the duration of the one before it, never the length of the gap.

Invariant: `index` of a fragment + `samples` = `index` of the next one of its track and session, across reconnects.
Does not know UTC from media time (timeline.py) nor the volume that a fragment ends up in (journal/batch.py).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from typing import Final

from nvrstore.limits import FRAGMENT_BYTES_MAX, FRAGMENT_S, SAMPLE_BYTES_MAX, SEGMENT_S
from nvrstore.model import MFHD_SEQUENCE_AT, TFDT_TIME_AT, TFHD_TRACK_AT, Fragment, FragmentFlag, Media, Sample, TrackConfig, TrackKey

# sample_flags, ISO/IEC 14496-12 8.8.3.1: depends on no other sample; depends on others and is no sync sample.
SYNC: Final = 0x0200_0000
NON_SYNC: Final = 0x0101_0000

TRUN_AT: Final = 68
ENTRIES_AT: Final = 88
ENTRY_BYTES: Final = 16
MDAT_HEADER_BYTES: Final = 8

SAMPLES_MAX: Final = 4096  # per fragment: bounds the `moof` when a camera floods with tiny samples
SAMPLE_S_MAX: Final = 60.0  # a longer sample is a jump of the clock that nobody noticed before: time begins anew behind it
SILENCE_S: Final = 2.0  # the last sample waits for its successor so long, or three of its own durations, then goes without
CLOSE_FACTOR: Final = 1.25  # a fragment is closed by the wall clock at this many `fragment_s`: jitter alone does not split it
KEYFRAME_FACTOR: Final = (
    0.25  # no cut at a keyframe before this share of `fragment_s` (all-intra video), unless the open one has none in front
)
COMPOSITION_S_MAX: Final = 10.0  # a PTS further from its DTS is nonsense: shown when decoded
RESUME_S: Final = 0.25  # a guess of the last duration may be wrong by this much and is made good by the next sample
SEGMENT_FACTOR: Final = 0.9  # a keyframe this close to `segment_s` begins the next segment
SEGMENT_FACTOR_MAX: Final = 3  # without any keyframe a segment begins anyway after this many `segment_s`

_FLAGS: Final = tuple(FragmentFlag(value) for value in range(16))  # an IntFlag costs a microsecond to combine
_KEYFRAME, _SEGMENT, _DISCONTINUITY, _DAMAGED = (int(flag) for flag in FragmentFlag)
_U32: Final = 0xFFFF_FFFF
_NOTHING: Final[tuple[Fragment, ...]] = ()


@cache
def _layout(samples: int) -> struct.Struct:
    """The whole of `moof` and the header of `mdat` as one struct; at most SAMPLES_MAX of them exist."""
    return struct.Struct(f">I4sI4sIII4sI4sIII4sIQI4sIII{4 * samples}II4s")


def pack_moof(entries: Sequence[int], mdat_bytes: int) -> bytearray:
    """`moof` and the `mdat` header for `entries`, four unsigned 32-bit integers per sample: duration, size, flags, composition offset."""
    samples = len(entries) // 4
    trun = 20 + ENTRY_BYTES * samples
    moof = TRUN_AT + trun
    # fmt: off
    return bytearray(_layout(samples).pack(
        moof, b"moof", 16, b"mfhd", 0, 0,
        moof - 24, b"traf", 16, b"tfhd", 0x02_0000, 0,  # default-base-is-moof
        20, b"tfdt", 0x0100_0000, 0,
        trun, b"trun", 0x0100_0F01, samples, moof + MDAT_HEADER_BYTES, *entries,
        mdat_bytes + MDAT_HEADER_BYTES, b"mdat",
    ))
    # fmt: on


class Fragmenter:
    """Cuts the samples of one track, in decode order, into fragments. Lives as long as the session: it counts the samples.

    Every method returns the fragments that it closed, oldest first. Used by one thread.
    """

    def __init__(
        self,
        track: TrackKey,
        config: TrackConfig,
        session: int,
        *,
        fragment_s: float = FRAGMENT_S,
        fragment_bytes_max: int = FRAGMENT_BYTES_MAX,
        segment_s: float = SEGMENT_S,
        index: int = 0,
    ) -> None:
        self.track: Final = track
        self.session: Final = session
        self._video = track.media is Media.VIDEO
        self._fragment_s, self._segment_s = fragment_s, segment_s
        self._fragment_bytes_max = fragment_bytes_max
        self._close_s = CLOSE_FACTOR * fragment_s
        self._index = index  # where an earlier fragmenter of the same track and session ended
        # the open fragment: its samples, and when each is decoded (their own DTS where those are in order)
        self._samples: list[Sample] = []
        self._times: list[int] = []
        self._bytes = 0
        self._discontinuity = True
        self._segment = True
        self._end_dts: int | None = None  # of the track so far; None: time begins anew with the next sample
        self._dts = self._first_dts = self._limit_dts = self._segment_dts = 0
        self._utc_ns = self._first_utc_ns = 0
        self._first_arrival_s = 0.0
        self._first_keyframe = self._segment_keyframe = False
        self._configure(config)

    def _configure(self, config: TrackConfig) -> None:
        self.config = config
        scale = config.timescale
        self._ticks = max(1, round(self._fragment_s * scale))
        self._keyframe_ticks = round(KEYFRAME_FACTOR * self._fragment_s * scale)
        self._segment_ticks = round(SEGMENT_FACTOR * self._segment_s * scale)
        self._delta_max = min(_U32, round(SAMPLE_S_MAX * scale))
        self._composition_max = round(COMPOSITION_S_MAX * scale)
        self._duration = max(1, scale // 25)  # until two samples have been seen

    @property
    def next_index(self) -> int:
        """Index of the next sample to be pushed, within (track, session)."""
        return self._index + len(self._samples)

    @property
    def waiting_bytes(self) -> int:
        """Bytes of samples in the open fragment."""
        return self._bytes

    def push(self, sample: Sample, utc_ns: int, *, discontinuity: bool = False) -> tuple[Fragment, ...]:
        """Add the next sample in decode order, captured at `utc_ns`; `discontinuity` says that it begins a run.

        A DTS that repeats or goes back a little is moved one tick behind its predecessor; the PTS stays.
        Raises ValueError for a sample over SAMPLE_BYTES_MAX: the source should have refused it.
        """
        dts, size, samples = sample.dts, len(sample.data), self._samples
        if size > SAMPLE_BYTES_MAX:
            raise ValueError(f"{self.track}: a sample of {size} bytes is larger than {SAMPLE_BYTES_MAX}")
        if not samples:
            self._begin(sample, utc_ns, discontinuity)
            return _NOTHING
        delta = dts - self._dts
        if discontinuity or delta > self._delta_max:
            closed = self.flush()
            self._begin(sample, utc_ns, True)
            return closed
        if delta <= 0:
            dts, delta = self._dts + 1, 1
        else:
            self._duration = delta
        if (
            dts + delta > self._limit_dts
            or (sample.keyframe and self._video and self._cuts(dts))
            or self._bytes + size > self._fragment_bytes_max
            or sample.arrival_s - self._first_arrival_s > self._close_s
            or len(samples) >= SAMPLES_MAX
        ):
            fragment = self._emit(dts)
            self._open(sample, dts, utc_ns)
            return (fragment,)
        samples.append(sample)
        self._times.append(dts)
        self._bytes += size
        self._dts, self._utc_ns = dts, utc_ns
        return _NOTHING

    def flush(self) -> tuple[Fragment, ...]:
        """Close what is open, with its last sample. Time goes on behind it if the next sample agrees with that."""
        if not self._samples:
            return _NOTHING
        return (self._emit(self._dts + self._duration),)

    def due(self, now_s: float) -> tuple[Fragment, ...]:
        """Close by the clock what silence would keep open: call it a few times a second.

        First what is complete; the last sample follows when its successor does not come for `SILENCE_S`.
        """
        if not self._samples or now_s - self._first_arrival_s <= self._close_s:
            return _NOTHING
        last = self._samples[-1]
        if now_s - last.arrival_s > max(SILENCE_S, 3 * self._duration / self.config.timescale):
            return self.flush()
        if len(self._samples) == 1:
            return _NOTHING
        del self._samples[-1], self._times[-1]
        self._bytes -= len(last.data)
        fragment = self._emit(self._dts)
        self._open(last, self._dts, self._utc_ns)
        return (fragment,)

    def configure(self, config: TrackConfig) -> tuple[Fragment, ...]:
        """From the next sample on the track is what `config` says. Another timescale begins a run."""
        if config == self.config:
            return _NOTHING
        closed = self.flush()
        if config.timescale != self.config.timescale:
            self._end_dts = None
        self._segment = True
        self._configure(config)
        return closed

    def _begin(self, sample: Sample, utc_ns: int, discontinuity: bool) -> None:
        """Open a fragment behind a flush: on time, a little off (made good with the next duration), or a discontinuity."""
        dts = sample.dts
        end = self._end_dts
        if discontinuity or end is None or abs(dts - end) > RESUME_S * self.config.timescale:
            self._discontinuity = True
        else:
            dts = end
        self._open(sample, dts, utc_ns)

    def _open(self, sample: Sample, dts: int, utc_ns: int) -> None:
        self._dts, self._utc_ns = dts, utc_ns
        self._first_dts, self._first_utc_ns, self._first_arrival_s, self._first_keyframe = dts, utc_ns, sample.arrival_s, sample.keyframe
        self._limit_dts = dts + self._ticks
        self._samples, self._times, self._bytes = [sample], [dts], len(sample.data)
        if self._discontinuity or self._segment_due(dts, sample.keyframe):
            self._segment = True
        if self._segment:
            self._segment_dts, self._segment_keyframe = dts, sample.keyframe

    def _segment_due(self, dts: int, keyframe: bool) -> bool:
        elapsed = dts - self._segment_dts
        if keyframe:
            return elapsed >= self._segment_ticks or not self._segment_keyframe
        return elapsed >= SEGMENT_FACTOR_MAX * self._segment_ticks / SEGMENT_FACTOR

    def _cuts(self, dts: int) -> bool:
        """Whether a video keyframe at `dts` closes the open fragment."""
        return not self._first_keyframe or dts - self._first_dts >= self._keyframe_ticks or self._segment_due(dts, True)

    def _emit(self, end_dts: int) -> Fragment:
        """The fragment of all samples that are open; the last one ends at `end_dts`."""
        samples, times = self._samples, self._times
        entries: list[int] = []
        damaged, offset_max = False, self._composition_max
        for sample, dts, following in zip(samples, times, [*times[1:], end_dts], strict=True):
            offset = sample.pts - dts
            if not -offset_max <= offset <= offset_max:
                offset = 0
            entries += (following - dts, len(sample.data), SYNC if sample.keyframe else NON_SYNC, offset & _U32)
            damaged = damaged or sample.damaged
        head = pack_moof(entries, self._bytes)
        flags = (
            (_KEYFRAME if self._first_keyframe else 0)
            | (_SEGMENT if self._segment else 0)
            | (_DISCONTINUITY if self._discontinuity else 0)
            | (_DAMAGED if damaged else 0)
        )
        fragment = Fragment(
            self.track,
            self.config,
            self.session,
            self._index,
            len(samples),
            self._first_utc_ns,
            end_dts - self._first_dts,
            _FLAGS[flags],
            (head, *[sample.data for sample in samples]),
            len(head) + self._bytes,
            samples[-1].arrival_s,
        )
        self._index += len(samples)
        self._end_dts = end_dts
        self._discontinuity = self._segment = False
        self._samples, self._times, self._bytes = [], [], 0
        return fragment


assert (MFHD_SEQUENCE_AT, TFHD_TRACK_AT, TFDT_TIME_AT) == (20, 44, 60), "the picture above and model.py name the same places"
