"""A feed: one running encoder. Cameras that share it send the same packets at the same instants, but for the stamp.

    reel  [K . . . . . . K . . . . . .]  round and round          Wheel: 31 feeds of one reel, their key units spread over
      |                                                           the length of a GOP; a camera that begins to play takes
    Feed.next_unit() -> OnAir --> every camera on the feed        a feed whose key unit comes soon and that is not crowded

What 300 cameras cost is decided here: headers and images are built once per feed and unit (about 31 x 25 times a second), and
each camera adds one stamp and one `sendmsg`. So sequence numbers, timestamps and SSRC belong to the feed, not to the session; a
receiver learns them from RTP-Info, as from any camera that was running before it came. A camera with traits of its own has a
feed of its own (`oddities.OddFeed`).

Time: unit n is due at `start_s + n / fps`; its timestamp is `timestamp_0 + (n + shift) x ticks`, whether it was sent in time or not.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from nvrstore.farm import rtp
from nvrstore.farm.on_air import OnAir
from nvrstore.farm.reels import AudioReel, Unit, VideoReel

if TYPE_CHECKING:
    from nvrstore.farm.camera import Camera

SPOKES: Final = 31  # feeds per reel; prime, so that they also spread over the time between two frames
CROWD_SHARE: Final = 15  # a camera on a feed weighs as much as waiting for 1/15 of a GOP longer: 300 at once spread over all feeds


class Packets:
    """The payloads of one reel's units, cut once."""

    __slots__ = ("codec", "reel", "sets", "slices")

    def __init__(
        self, reel: VideoReel, *, delimiters: bool = False, aggregate: bool = False, packet_bytes_max: int = rtp.PACKET_BYTES_MAX
    ) -> None:
        self.reel = reel
        self.codec = reel.spec.codec

        def before(unit: Unit) -> tuple[bytes, ...]:
            delimiter = (rtp.DELIMITER[self.codec],) if delimiters else ()
            if aggregate and len(unit.sets) > 1:
                return (*delimiter, rtp.aggregated(self.codec, unit.sets))
            return rtp.video_payloads(self.codec, (*delimiter, *unit.sets), packet_bytes_max)

        self.sets = tuple(map(before, reel.units))
        self.slices = tuple(rtp.video_payloads(self.codec, unit.slices, packet_bytes_max) for unit in reel.units)


class AudioTrack:
    """The sound of a feed: frames due since the last unit ride with the next one.

    `offset_s`: sound is behind (> 0) or ahead of the picture. `hz_ratio`: it comes faster (> 1) than its timestamps say. `late_s`:
    nothing of it is sent before.
    """

    __slots__ = (
        "count",
        "hz_ratio",
        "late_s",
        "octets_sent",
        "offset_s",
        "origin_s",
        "packets_sent",
        "payload_type",
        "payloads",
        "reel",
        "seq",
        "ssrc",
        "timestamp_0",
    )

    def __init__(self, reel: AudioReel, *, seq: int, timestamp_0: int, ssrc: int) -> None:
        self.reel = reel
        aac = reel.spec.codec == "aac"
        self.payloads = tuple(rtp.aac_payload(frame) if aac else frame for frame in reel.frames)
        self.payload_type = rtp.AAC_PT if aac else rtp.PCMA_PT
        self.seq, self.timestamp_0, self.ssrc = seq, timestamp_0, ssrc
        self.count = self.packets_sent = self.octets_sent = 0
        self.origin_s = self.offset_s = self.late_s = 0.0
        self.hz_ratio = 1.0

    def _frames(self, elapsed_s: float) -> float:
        media_s = elapsed_s - self.origin_s - self.offset_s
        return media_s * self.reel.spec.rate * self.hz_ratio / self.reel.samples_per_frame

    def catch_up(self, elapsed_s: float) -> None:
        """Count from here on: what was due earlier is not sent."""
        self.count = max(0, math.ceil(self._frames(elapsed_s)))

    def due(self, elapsed_s: float) -> list[tuple[bytes, int, int]]:
        """Payloads, sequence numbers and timestamps of the frames that end by `elapsed_s` after the feed's start."""
        if elapsed_s < self.late_s:
            self.catch_up(elapsed_s)
            return []
        out = []
        samples = self.reel.samples_per_frame
        for count in range(self.count, math.floor(self._frames(elapsed_s))):
            payload = self.payloads[count % len(self.payloads)]
            out.append((payload, self.seq, self.timestamp_0 + count * samples))
            self.seq += 1
            self.octets_sent += len(payload)
        self.packets_sent += len(out)
        self.count += len(out)
        return out

    @property
    def next_timestamp(self) -> int:
        return self.timestamp_0 + self.count * self.reel.samples_per_frame

    def timestamp_at(self, elapsed_s: float) -> int:
        """The audio clock, for sender reports."""
        return self.timestamp_0 + round((elapsed_s - self.origin_s - self.offset_s) * self.reel.spec.rate)

    def copy(self) -> AudioTrack:
        """The same track, to go its own way."""
        other = AudioTrack(self.reel, seq=self.seq, timestamp_0=self.timestamp_0, ssrc=self.ssrc)
        for name in ("count", "origin_s", "offset_s", "late_s", "hz_ratio", "packets_sent", "octets_sent"):
            setattr(other, name, getattr(self, name))
        return other


class Feed:
    """One running encoder."""

    jitter_s = 0.0
    muted = False

    def __init__(self, packets: Packets, *, start_s: float, seq: int, timestamp_0: int, ssrc: int, audio: AudioTrack | None = None) -> None:
        self.start_s = start_s
        self.seq, self.timestamp_0, self.ssrc = seq, timestamp_0, ssrc
        self.audio = audio
        self.number = 0  # of the next unit
        self.packets_sent = self.octets_sent = 0  # for sender reports
        self.cameras: tuple[Camera, ...] = ()
        self.scheduled = False
        self.report_due_s = 0.0
        self.load(packets)

    def load(self, packets: Packets, real_fps: Fraction | None = None) -> None:
        """Play this reel. Timestamps follow the declared rate, sending follows the real one."""
        self.packets = packets
        declared = packets.reel.spec.fps
        self.fps = declared if real_fps is None else real_fps
        self._interval_s = float(1 / self.fps)
        ticks = Fraction(rtp.VIDEO_HZ) / declared
        self._ticks, self._per = ticks.numerator, ticks.denominator

    def elapsed_s(self, number: int) -> float:
        """From the start to unit `number`."""
        return number * self._interval_s

    @property
    def due_s(self) -> float:
        """Monotonic time of the next unit."""
        return self.start_s + self.number * self._interval_s

    def key_after(self, now_s: float) -> int:
        """Number of the first key unit due at or after `now_s`."""
        units = self.packets.reel.units
        number = max(0, math.ceil((now_s - self.start_s) / self._interval_s))
        for _ in units:
            if units[number % len(units)].key:
                break
            number += 1
        return number

    def wake(self, now_s: float) -> None:
        """Begin again at the next key unit, after nobody listened."""
        self.move_to(self.key_after(now_s))

    def move_to(self, number: int) -> None:
        """Go on with unit `number`; what was due before it is not made."""
        self.number = number
        if self.audio is not None:
            self.audio.catch_up(self.elapsed_s(number))

    def timestamp_of(self, number: int, shift: int = 0) -> int:
        """RTP timestamp of unit `number`."""
        return self.timestamp_0 + (number + shift) * self._ticks // self._per

    def timestamp_at(self, now_s: float) -> int:
        """The video clock, for sender reports."""
        return self.timestamp_0 + math.floor((now_s - self.start_s) / self._interval_s * self._ticks / self._per)

    def next_unit(self) -> OnAir:
        """Build the unit that is due, and move on."""
        packets = self.packets
        at = self.number % len(packets.reel.units)
        unit = packets.reel.units[at]
        return self._air(unit, packets.sets[at], packets.slices[at])

    def _air(self, unit: Unit, sets: tuple[bytes, ...], slices: tuple[bytes, ...]) -> OnAir:
        number = self.number
        on_air = OnAir(self.packets.codec, unit, sets, slices, self.seq, self.timestamp_of(number, unit.shift), self.ssrc)
        self.seq += on_air.packets
        self.packets_sent += on_air.packets
        self.octets_sent += on_air.octets
        if self.audio is not None:
            on_air.audio = self.audio.due(number * self._interval_s)
            on_air.audio_type, on_air.audio_ssrc = self.audio.payload_type, self.audio.ssrc
        self.number = number + 1
        return on_air


class Wheel:
    """The feeds of one reel, started one after the other over the length of a GOP."""

    def __init__(self, feeds: list[Feed]) -> None:
        self.feeds = feeds

    def choose(self, now_s: float) -> Feed:
        """The feed for a camera that begins to play: soon, and not crowded."""
        weight_s = self.feeds[0].packets.reel.gop_s / CROWD_SHARE

        def cost(feed: Feed) -> float:
            return feed.start_s + feed.elapsed_s(feed.key_after(now_s)) - now_s + len(feed.cameras) * weight_s

        return min(self.feeds, key=cost)
