"""Packets of one video track, as libav gives them, to samples.

    packet ─▶ access unit (media/nal.py) ─▶ times in ticks of 1/90,000 s ─▶ Sample         H.264, H.265
           └▶ as it is ─────────────────────────────────────────────────▶ Sample           MJPEG

Configuration: from the session's description where it holds parameter sets, else from the first ones in-band; later ones
change the track only if they change the picture (a camera that flaps its sets changes nothing).

Times: libav leaves the first packets of an RTSP session without any, and those of a stream with B-frames without DTS
until it has seen enough of it. They are held, at most HELD_MAX of them, and get theirs by counting back from the first
packet that has both.

Keyframes in pieces: a server that sends parameter sets in front of every slice of a keyframe (GStreamer's) makes libav
believe that each slice is a picture. So keyframes are kept back until the next packet came, and put together; a stream
whose keyframes come whole is not kept waiting for long.

Arrival: where libav has to find out where a frame ends (`framed=False`: RTP), it gives a frame out when the next one
begins, or when it has waited in vain. So a frame began to arrive when the one before it came out.
"""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import Any, Final

from nvrstore.errors import SourceNotVideoError
from nvrstore.ingest.contract import Receiver
from nvrstore.limits import SAMPLE_BYTES_MAX
from nvrstore.media.init import VIDEO_TIMESCALE, video_config
from nvrstore.media.nal import NAL_CODECS, AccessUnits, ParameterSets, join_annexb, rest_of_picture
from nvrstore.model import Media, Sample, TrackConfig

HELD_MAX: Final = 32  # more reordering than any profile allows (H.264 A.3.1: 16 frames)
WHOLE_MIN: Final = 3  # keyframes in a row that came whole: from then on none is kept back
_PRFT: Final = struct.Struct("=q")  # AVProducerReferenceTime: wall clock in microseconds, from RTCP sender reports
_PRFT_NAME: Final = "prft"


class VideoFeed:
    """One video track of one session. Used by the source's thread."""

    def __init__(
        self, codec: str, extradata: bytes, size: tuple[int, int], time_base: Fraction, receiver: Receiver, *, framed: bool = True
    ) -> None:
        self.codec: Final = codec
        self._receiver = receiver
        self._size = size
        self._scale = time_base * VIDEO_TIMESCALE
        self._exact = self._scale == 1
        self._units = AccessUnits(codec, extradata) if codec in NAL_CODECS else None
        self._sets: ParameterSets | None = None  # those that `_config` was made of
        self._config: TrackConfig | None = None
        self._framed = framed or self._units is None
        self._before: tuple[int, float] | None = None  # when the packet before came out
        self._held: list[tuple[Any, int, float]] = []
        self._key: tuple[Any, int, float] | None = None  # a keyframe whose other slices may be in the next packet
        self._whole = 0  # keyframes in a row that came in one packet
        self._timed = False  # packets have times of their own now
        self._last_dts = 0
        self._delta = VIDEO_TIMESCALE // 25
        self._damaged = False  # the next sample stands behind one that had to be left out
        self.samples = 0
        if self._units is None or self._units.sets.complete:
            self._configure()

    def push(self, packet: Any, arrival_ns: int, arrival_s: float) -> None:
        """Take the next packet of the track, in decode order."""
        if not self._framed:
            came = arrival_ns, arrival_s
            if self._before is not None:
                arrival_ns, arrival_s = self._before
            self._before = came
            if self._units is not None and (packet.is_keyframe or self._key is not None):
                self._gather(packet, arrival_ns, arrival_s)
                return
        self._push(packet, arrival_ns, arrival_s)

    def _gather(self, packet: Any, arrival_ns: int, arrival_s: float) -> None:
        """Put the slices of a keyframe together."""
        rest = rest_of_picture(self.codec, bytes(packet)) if packet.is_keyframe else []
        if rest:
            self._whole = 0
        if self._key is not None:
            first, key_ns, key_s = self._key
            if rest:  # at whatever time: libav puts times right with the first sender report, also in the middle of a picture
                self._key = (_Joined(first, join_annexb(rest), packet.is_corrupt), key_ns, key_s)
                return
            self._give_key()
        if packet.is_keyframe and self._whole < WHOLE_MIN:
            self._key = packet, arrival_ns, arrival_s
        else:
            self._push(packet, arrival_ns, arrival_s)

    def _give_key(self) -> None:
        if self._key is not None:
            key, self._key = self._key, None
            self._whole += 1
            self._push(*key)

    def _push(self, packet: Any, arrival_ns: int, arrival_s: float) -> None:
        if self._timed:
            dts, pts = packet.dts, packet.pts
            if dts is None or pts is None or not self._exact:
                pts, dts = self._times(pts, dts)
            self._deliver(packet, pts, dts, arrival_ns, arrival_s)
            return
        self._held.append((packet, arrival_ns, arrival_s))
        if packet.dts is not None or len(self._held) >= HELD_MAX:
            self._release()

    def flush(self) -> None:
        """The session is over: what is held goes as it is."""
        self._give_key()
        if self._held:
            self._release()

    def _times(self, pts: int | None, dts: int | None) -> tuple[int, int]:
        """Both times in ticks, missing ones from the other, or from the packet before."""
        if not self._exact:
            pts = None if pts is None else round(pts * self._scale)
            dts = None if dts is None else round(dts * self._scale)
        if dts is None:
            dts = self._last_dts + self._delta
        return (dts if pts is None else pts), dts

    def _release(self) -> None:
        held, self._held = self._held, []
        self._timed = True
        step = round((held[-1][0].duration or 0) * self._scale) or self._delta
        known = [round(packet.pts * self._scale) for packet, _, _ in held if packet.pts is not None]
        last = held[-1][0]
        # No time at all: they are counted from zero. All PTS known and no DTS: nothing says that pictures are reordered.
        end = round(last.dts * self._scale) if last.dts is not None else (min(known) if known else 0) + step * (len(held) - 1)
        missing = len(held) - len(known)
        earliest = (min(known) if known else end + step) - step * missing
        for i, (packet, arrival_ns, arrival_s) in enumerate(held):
            dts = end - step * (len(held) - 1 - i)
            if packet.pts is None:
                pts, earliest = earliest, earliest + step
            else:
                pts = round(packet.pts * self._scale)
            self._deliver(packet, pts, dts, arrival_ns, arrival_s)

    def _deliver(self, packet: Any, pts: int, dts: int, arrival_ns: int, arrival_s: float) -> None:
        delta = dts - self._last_dts
        if 0 < delta < VIDEO_TIMESCALE:
            self._delta = delta
        self._last_dts = dts
        data = bytes(packet)
        keyframe = True
        units = self._units
        if units is not None:
            unit = units.convert(data)
            if unit is None:
                return
            data, keyframe = unit
            if keyframe and units.sets is not self._sets:
                self._configure()
        if self._config is None:
            return  # nothing can be decoded yet: the parameter sets are still to come
        if len(data) > SAMPLE_BYTES_MAX:
            self._damaged = True
            return
        damaged = packet.is_corrupt or self._damaged
        self._damaged = False
        if keyframe and packet.has_sidedata(_PRFT_NAME):
            (wallclock_us,) = _PRFT.unpack_from(bytes(packet.get_sidedata(_PRFT_NAME)))
            self._receiver.on_reference(Media.VIDEO, pts, wallclock_us * 1000)
        self.samples += 1
        self._receiver.on_samples((Sample(Media.VIDEO, data, pts, dts, keyframe, arrival_ns, arrival_s, damaged),))

    def _configure(self) -> None:
        """Make the track's configuration of what is known now, and tell it where it changed."""
        extradata = b""
        if self._units is not None:
            self._sets = self._units.sets
            if not self._sets.complete:
                return
            extradata = self._sets.annexb()
        try:
            config = video_config(self.codec, extradata, *self._size)
        except SourceNotVideoError:
            if self._units is None:
                raise
            return  # sets that cannot be read: better ones may follow
        if self._config is None or not self._config.continues(config):
            self._config = config
            self._receiver.on_track(config)


class _Joined:
    """A packet, and slices that belong to the same picture."""

    def __init__(self, first: Any, slices: bytes, corrupt: bool) -> None:
        self._first = first
        self._data = bytes(first) + slices
        self.is_corrupt = first.is_corrupt or corrupt

    def __bytes__(self) -> bytes:
        return self._data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._first, name)
