"""A feed: one running encoder. Cameras that share it send the same packets at the same instants, but for the stamp.

    reel  [K . . . . . . K . . . . . .]  round and round          Wheel: 31 feeds of one reel, their key units spread over
      |                                                           the length of a GOP; a camera that begins to play takes
    Feed.next_unit() -> OnAir --> every camera on the feed        a feed whose key unit comes soon and that is not crowded

What 300 cameras cost is decided here: headers and images are built once per feed and unit (about 31 x 25 times a second), and
each camera adds one stamp and one `sendmsg`. So sequence numbers, timestamps and SSRC belong to the feed, not to the session; a
receiver learns them from RTP-Info, as from any camera that was running before it came. A camera with a trait of its own has a
feed of its own.

Time: unit n is due at `start_s + n / fps`; its timestamp is `timestamp_0 + (n + shift) x ticks`, whether it was sent in time or not.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from nvrstore.farm import rtp
from nvrstore.farm.nal import Codec
from nvrstore.farm.reels import AudioReel, Unit, VideoReel
from nvrstore.farm.stamp import STAMP_BYTES

if TYPE_CHECKING:
    from nvrstore.farm.camera import Camera

SPOKES: Final = 31  # feeds per reel; prime, so that they also spread over the time between two frames
CROWD_SHARE: Final = 40  # a camera on a feed weighs as much as waiting for 1/40 of a GOP longer


class Packets:
    """The payloads of one reel's units, cut once."""

    __slots__ = ("codec", "reel", "sets", "slices")

    def __init__(self, reel: VideoReel, packet_bytes_max: int = rtp.PACKET_BYTES_MAX) -> None:
        self.reel = reel
        self.codec = reel.spec.codec
        self.sets = tuple(rtp.video_payloads(self.codec, unit.sets, packet_bytes_max) for unit in reel.units)
        self.slices = tuple(rtp.video_payloads(self.codec, unit.slices, packet_bytes_max) for unit in reel.units)


class OnAir:
    """One access unit with its headers, and the audio that is due with it. Images are built when first asked for."""

    __slots__ = (
        "_audio",
        "_tcp",
        "_udp",
        "audio",
        "audio_ssrc",
        "audio_type",
        "codec",
        "key",
        "octets",
        "packets",
        "seq",
        "sets",
        "slices",
        "ssrc",
        "timestamp",
        "unit",
    )

    def __init__(
        self, codec: Codec, unit: Unit, sets: tuple[bytes, ...], slices: tuple[bytes, ...], seq: int, timestamp: int, ssrc: int
    ) -> None:
        self.codec, self.unit, self.key = codec, unit, unit.key
        self.sets, self.slices = sets, slices
        self.seq, self.timestamp, self.ssrc = seq, timestamp, ssrc
        self.packets = len(sets) + 1 + len(slices)
        self.octets = sum(map(len, sets)) + STAMP_BYTES[codec] + sum(map(len, slices))
        self.audio: list[tuple[bytes, int, int]] = []  # payload, sequence number, timestamp
        self.audio_type = self.audio_ssrc = 0
        self._tcp: dict[int, tuple[bytes, bytes, int]] = {}
        self._udp: tuple[list[bytes], bytes, list[bytes]] | None = None
        self._audio: dict[int, bytes] = {}

    def tcp(self, channel: int) -> tuple[bytes, bytes, int]:
        """Interleaved bytes before the stamp, those after it, and the length of it all."""
        image = self._tcp.get(channel)
        if image is None:
            at = len(self.sets)
            size = STAMP_BYTES[self.codec]
            head = rtp.framed_packets(channel, self.sets, rtp.VIDEO_PT, self.seq, self.timestamp, self.ssrc, mark_last=False)
            head.append(rtp.framed_header(channel, size, rtp.VIDEO_PT, self.seq + at, self.timestamp, self.ssrc, marker=False))
            tail = rtp.framed_packets(channel, self.slices, rtp.VIDEO_PT, self.seq + at + 1, self.timestamp, self.ssrc, mark_last=True)
            before, after = b"".join(head), b"".join(tail)
            image = self._tcp[channel] = (before, after, len(before) + size + len(after))
        return image

    def udp(self, stamp: bytes) -> list[bytes]:
        """One datagram per packet."""
        if self._udp is None:
            seq, last = self.seq, self.seq + self.packets - 1
            plain = [
                rtp.rtp_header(rtp.VIDEO_PT, seq + at, self.timestamp, self.ssrc, marker=seq + at == last) for at in range(self.packets)
            ]
            at = len(self.sets)
            sets = [header + payload for header, payload in zip(plain[:at], self.sets, strict=True)]
            slices = [header + payload for header, payload in zip(plain[at + 1 :], self.slices, strict=True)]
            self._udp = (sets, plain[at], slices)
        sets, header, slices = self._udp
        return [*sets, header + stamp, *slices]

    def audio_packets(self) -> list[bytes]:
        """The audio packets that are due."""
        return [
            rtp.rtp_header(self.audio_type, seq, timestamp, self.audio_ssrc, marker=True) + payload
            for payload, seq, timestamp in self.audio
        ]

    def audio_tcp(self, channel: int) -> bytes:
        """The audio packets that are due, interleaved."""
        image = self._audio.get(channel)
        if image is None:
            image = self._audio[channel] = b"".join(rtp.framed(channel, packet) for packet in self.audio_packets())
        return image


class AudioTrack:
    """The sound of a feed: frames due since the last unit ride with the next one."""

    __slots__ = ("_hz", "_samples", "count", "hz_ratio", "offset_s", "payload_type", "payloads", "reel", "seq", "ssrc", "timestamp_0")

    def __init__(self, reel: AudioReel, *, seq: int, timestamp_0: int, ssrc: int) -> None:
        self.reel = reel
        aac = reel.spec.codec == "aac"
        self.payloads = tuple(rtp.aac_payload(frame) if aac else frame for frame in reel.frames)
        self.payload_type = rtp.AAC_PT if aac else rtp.PCMA_PT
        self.seq, self.timestamp_0, self.ssrc = seq, timestamp_0, ssrc
        self.count = 0
        self.offset_s = 0.0  # sound that is late (> 0) or early against the picture
        self.hz_ratio = 1.0  # a sound card that runs fast (> 1) or slow
        self._hz, self._samples = reel.spec.rate, reel.samples_per_frame

    def catch_up(self, elapsed_s: float) -> None:
        """Count from here on: what was due earlier is not sent."""
        self.count = max(0, math.ceil((elapsed_s - self.offset_s) * self._hz * self.hz_ratio / self._samples))

    def due(self, elapsed_s: float) -> list[tuple[bytes, int, int]]:
        """Frames that end by `elapsed_s` after the feed's start."""
        out = []
        until = math.floor((elapsed_s - self.offset_s) * self._hz * self.hz_ratio / self._samples)
        while self.count < until:
            out.append((self.payloads[self.count % len(self.payloads)], self.seq, self.timestamp_0 + self.count * self._samples))
            self.count += 1
            self.seq += 1
        return out

    def timestamp_at(self, elapsed_s: float) -> int:
        """The audio clock, for sender reports."""
        return self.timestamp_0 + round((elapsed_s - self.offset_s) * self._hz * self.hz_ratio)


class Feed:
    """One running encoder."""

    def __init__(
        self,
        packets: Packets,
        *,
        start_s: float,
        seq: int,
        timestamp_0: int,
        ssrc: int,
        audio: AudioTrack | None = None,
        real_fps: Fraction | None = None,
    ) -> None:
        self.packets = packets
        self.start_s = start_s
        self.fps = real_fps or packets.reel.spec.fps
        self.seq, self.timestamp_0, self.ssrc = seq, timestamp_0, ssrc
        self.ticks = Fraction(rtp.VIDEO_HZ) / packets.reel.spec.fps  # as declared: a camera may send at another rate
        self.audio = audio
        self.number = 0  # of the next unit
        self.cameras: tuple[Camera, ...] = ()
        self.scheduled = False

    @property
    def due_s(self) -> float:
        """Monotonic time of the next unit."""
        return self.start_s + float(self.number / self.fps)

    def key_after(self, now_s: float) -> int:
        """Number of the first key unit due at or after `now_s`."""
        units = self.packets.reel.units
        number = max(0, math.ceil((now_s - self.start_s) * self.fps))
        for _ in units:
            if units[number % len(units)].key:
                break
            number += 1
        return number

    def wake(self, now_s: float) -> None:
        """Begin again at the next key unit, after nobody listened."""
        self.number = self.key_after(now_s)
        if self.audio is not None:
            self.audio.catch_up(float(self.number / self.fps))

    def timestamp_of(self, number: int, shift: int = 0) -> int:
        """RTP timestamp of unit `number`."""
        return self.timestamp_0 + math.floor((number + shift) * self.ticks)

    def timestamp_at(self, now_s: float) -> int:
        """The video clock, for sender reports."""
        return self.timestamp_0 + math.floor((now_s - self.start_s) * float(self.fps * self.ticks))

    def next_unit(self) -> OnAir:
        """Build the unit that is due, and move on."""
        packets = self.packets
        at = self.number % len(packets.reel.units)
        unit = packets.reel.units[at]
        on_air = OnAir(
            packets.codec, unit, packets.sets[at], packets.slices[at], self.seq, self.timestamp_of(self.number, unit.shift), self.ssrc
        )
        self.seq += on_air.packets
        if self.audio is not None:
            on_air.audio = self.audio.due(float(self.number / self.fps))
            on_air.audio_type, on_air.audio_ssrc = self.audio.payload_type, self.audio.ssrc
        self.number += 1
        return on_air


class Wheel:
    """The feeds of one reel, started one after the other over the length of a GOP."""

    def __init__(self, feeds: list[Feed]) -> None:
        self.feeds = feeds

    def choose(self, now_s: float) -> Feed:
        """The feed for a camera that begins to play: soon, and not crowded."""
        weight_s = self.feeds[0].packets.reel.gop_s / CROWD_SHARE

        def cost(feed: Feed) -> float:
            number = feed.key_after(now_s)
            return feed.start_s + float(number / feed.fps) - now_s + len(feed.cameras) * weight_s

        return min(self.feeds, key=cost)
