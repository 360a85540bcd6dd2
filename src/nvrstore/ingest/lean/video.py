"""Access units of one H.264 or H.265 track, as the hot loop gives them, to samples.

    parts joined ─▶ ordinary picture ────────────────────────────▶ times ─▶ Sample
                 └▶ keyframe, parameter sets, no picture: media/nal.py ─┘

RTP tells when a picture is shown, never when it is decoded. DTS come from the order of arrival: with pictures reordered by
`n` (said by the parameter sets, or seen), a picture's DTS is the (n+1)th highest PTS so far. The first n pictures of a
session are held until their DTS can be counted back from that, and their interval is known.

Invariant: samples leave in the order in which they came, with DTS that grow (where the camera's own do not go back).
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from nvrstore.errors import SourceNotVideoError
from nvrstore.ingest.contract import Receiver
from nvrstore.ingest.lean.hot import ODD, RECOVERY
from nvrstore.ingest.lean.rtp import SenderReport
from nvrstore.limits import SAMPLE_BYTES_MAX
from nvrstore.media.init import VIDEO_TIMESCALE, video_config
from nvrstore.media.nal import AccessUnits, ParameterSets, join_annexb, split_lengths
from nvrstore.media.sps import DEPTH_MAX, reorder_depth
from nvrstore.model import NS_PER_S, Media, Sample, TrackConfig

RESTART_TICKS: Final = VIDEO_TIMESCALE  # a jump of the clock, and not a reordered picture
_HALF, _PERIOD = 1 << 31, 1 << 32  # of RTP timestamps
_NEVER: Final = -(1 << 62)
_SETS: Final = {"h264": 1 << 7 | 1 << 8, "hevc": 1 << 32 | 1 << 33 | 1 << 34}
_KEYS: Final = {"h264": 1 << 5, "hevc": sum(1 << kind for kind in range(16, 24))}
_PICTURES: Final = {"h264": sum(1 << kind for kind in range(1, 6)), "hevc": (1 << 32) - 1}


@dataclass(slots=True)
class _Picture:
    """A picture whose DTS is not known yet."""

    data: bytes
    keyframe: bool
    pts: int
    arrival_ns: int
    arrival_s: float
    damaged: bool


class Pictures:
    """The pictures of one track. See `hot.Sink`."""

    def __init__(self, codec: str, described: list[bytes], receiver: Receiver) -> None:
        self.codec: Final = codec
        self.count = 0
        self._receiver = receiver
        self._units = AccessUnits(codec, join_annexb(described))
        self._special: Final = _SETS[codec] | _KEYS[codec] | RECOVERY | ODD
        self._pictures: Final = _PICTURES[codec]
        self._sets: ParameterSets | None = None
        self._config: TrackConfig | None = None
        self._damaged = False  # the next sample stands behind one that had to be left out
        self._pts: int | None = None  # of the last picture, unwrapped
        self._dts = _NEVER
        self._times = _DecodeTimes()
        self._held: list[_Picture] = []
        self._out: list[Sample] = []  # of the present read
        self._report: SenderReport | None = None

    def unit(self, data: bytes, kinds: int, timestamp: int, damaged: bool, arrival_ns: int, arrival_s: float) -> None:
        """The next access unit, in decode order."""
        last = self._pts
        if last is None:
            pts = timestamp
        else:
            pts = timestamp - last & 0xFFFF_FFFF
            pts = last + (pts if pts < _HALF else pts - _PERIOD)
        self._pts = pts
        keyframe = False
        units = self._units
        if kinds & self._special or not kinds & self._pictures or units.pending:
            unit = units.take(split_lengths(data))
            if unit is None:
                self._damaged |= damaged
                return
            data, keyframe = unit
            if units.sets is not self._sets and self._config is not None:
                self._configure()
        if self._config is None:
            self._configure()
            if self._config is None:
                return  # nothing can be decoded yet: the parameter sets are still to come
        if len(data) > SAMPLE_BYTES_MAX:
            self._damaged = True
            return
        if self._damaged:
            damaged, self._damaged = True, False
        if self._report is not None:
            self._refer(self._report, timestamp, pts)
        self.count += 1
        times = self._times
        if not times.depth:
            if pts > self._dts or times.known or not is_b_picture(self.codec, data):
                self._dts = pts
                self._out.append(Sample(Media.VIDEO, data, pts, pts, keyframe, arrival_ns, arrival_s, damaged))
                return
            times.discover(self._dts)
        self._reordered(_Picture(data, keyframe, pts, arrival_ns, arrival_s, damaged))

    def report(self, report: SenderReport) -> None:
        """The camera told its clock: the next picture is told with it."""
        self._report = report

    def flush(self) -> None:
        """The session is over."""
        held, self._held = self._held, []
        if held:
            self._times.begin([picture.pts for picture in held])
        for picture in held:
            self._give(picture, self._times.next(picture.pts))
        self.deliver()

    def deliver(self) -> None:
        """The read is over: what came with it goes on, together."""
        out = self._out
        if out:
            self._out = []
            self._receiver.on_samples(out)

    def _refer(self, report: SenderReport, timestamp: int, pts: int) -> None:
        self._report = None
        ticks = timestamp - report.timestamp & 0xFFFF_FFFF
        ticks -= _PERIOD if ticks >= _HALF else 0
        self.deliver()
        self._receiver.on_reference(Media.VIDEO, pts, report.utc_ns + ticks * NS_PER_S // VIDEO_TIMESCALE)

    def _reordered(self, picture: _Picture) -> None:
        """A picture of a stream whose pictures come in another order than they are shown in."""
        times = self._times
        if times.begun:
            self._give(picture, times.next(picture.pts))
            return
        self._held.append(picture)
        if len(self._held) > times.depth + 1:
            self.flush()

    def _give(self, picture: _Picture, dts: int) -> None:
        if 0 <= self._dts - dts < RESTART_TICKS:
            dts = self._dts + 1  # the depth grew: those in front of it went out too early
        self._dts = dts
        p = picture
        self._out.append(Sample(Media.VIDEO, p.data, p.pts, dts, p.keyframe, p.arrival_ns, p.arrival_s, p.damaged))

    def _configure(self) -> None:
        """Make the track's configuration of what is known now, and tell it where it changed."""
        self._sets = sets = self._units.sets
        if not sets.complete:
            return
        try:
            config = video_config(self.codec, sets.annexb(), 0, 0)
        except SourceNotVideoError:
            return  # sets that cannot be read: better ones may follow
        depth = reorder_depth(self.codec, sets.sps[-1])
        if depth is not None and not (self._times.known and self._times.depth == depth):
            self.flush()
            self._times = _DecodeTimes(depth)
        if self._config is None or not self._config.continues(config):
            self._config = config
            self.deliver()
            self._receiver.on_track(config)


class _DecodeTimes:
    """DTS of pictures from their PTS in decode order. `depth` None: nobody says by how many places pictures are reordered."""

    def __init__(self, depth: int | None = None) -> None:
        self.known: Final = depth is not None
        self.depth = depth or 0
        self.begun = False
        self._shown: list[int] = []  # the last depth + 1 PTS, sorted
        self._step = VIDEO_TIMESCALE // 25

    def begin(self, shown: list[int]) -> None:
        """The first pictures will have these PTS: what stands in front of them is made up, as if there had been others before."""
        order = sorted(shown)
        steps = [b - a for a, b in pairwise(order) if 0 < b - a < RESTART_TICKS]
        self._step = min(steps, default=self._step)
        self._restart(order[0])

    def discover(self, last: int) -> None:
        """Pictures are reordered after all: one that is shown before the last one, `last`, came behind it."""
        self.depth, self.begun = 1, True
        self._shown = [last]

    def next(self, pts: int) -> int:
        """DTS of the next picture."""
        shown = self._shown
        if not -RESTART_TICKS < pts - shown[-1] < RESTART_TICKS:
            self._restart(pts)
            shown = self._shown
        insort(shown, pts)
        if not self.known and self.depth < DEPTH_MAX:
            self.depth = max(self.depth, len(shown) - 1 - shown.index(pts))
        del shown[: max(0, len(shown) - self.depth - 1)]
        return shown[0]

    def _restart(self, first: int) -> None:
        self.begun = True
        self._shown = [first - self._step * i for i in range(self.depth, 0, -1)]


def is_b_picture(codec: str, data: bytes) -> bool:
    """Whether the first slice of an H.264 access unit is a B slice (7.4.3: slice_type 1 or 6). H.265 always says its depth."""
    if codec != "h264":
        return False
    for nal in split_lengths(data):
        if 1 <= nal[0] & 31 <= 5:
            bits = int.from_bytes(nal[1:17].ljust(16, b"\0"), "big")
            values = []
            at = 128
            for _ in range(2):  # first_mb_in_slice, slice_type: Exp-Golomb (9.1)
                zeroes = at - (bits & (1 << at) - 1).bit_length()
                if 2 * zeroes + 1 > at:
                    return False
                values.append((bits >> at - 2 * zeroes - 1 & (1 << zeroes + 1) - 1) - 1)
                at -= 2 * zeroes + 1
            return values[1] in (1, 6)
    return False
