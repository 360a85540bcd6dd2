"""What is wrong with cameras: traits that one has for life, and acts that happen to it at a moment.

    Traits(real_fps=21)                        declares 25 frames a second, sends 21
    Act("disconnect", streams=(3,), at_s=5)    five seconds after the farm's start

Each of them was seen on real cameras and described in the trackers of recorders. A stream with traits has a feed of its own
(`OddFeed`), so its neighbours stay sane. Times are those of the camera; nothing here does any I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import StrEnum
from fractions import Fraction
from typing import ClassVar, Final, Literal

from nvrstore.farm import nal as _nal
from nvrstore.farm import rtp
from nvrstore.farm.feed import AudioTrack, Feed, Packets
from nvrstore.farm.nal import Codec
from nvrstore.farm.on_air import OnAir
from nvrstore.farm.reels import AudioSpec, Unit, VideoReel, VideoSpec
from nvrstore.farm.sdp import Sets

AudioName = Literal["aac", "pcma", "none"]


class Reports(StrEnum):
    """How a camera speaks RTCP."""

    TRUE = "true"
    NONE = "none"  # never
    LATE = "late"  # the first one after `LATE_S`
    STRANGER = "stranger"  # for an SSRC that nobody heard of
    WRONG = "wrong"  # its clock was never set: time since 1970 began when it was switched on


LATE_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class Traits:
    """What is special about a stream. None: as the farm's configuration says."""

    # what it sends
    codec: Codec | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    bitrate_bps: int | None = None
    gop: int | None = None
    b_frames: int | None = None
    slices: int | None = None  # per picture
    no_key: bool = False  # parameter sets now and then, but never a key unit (periodic intra refresh)
    sps_flap: bool = False  # another SPS with every GOP, of the same pictures
    delimiters: bool = False  # an access unit delimiter before each unit
    aggregate: bool = False  # parameter sets in one packet (STAP-A, AP)
    stamp_marker: bool = False  # the marker bit also on the SEI's packet, in the middle of the unit
    # what it says of itself
    sdp_sets: Sets = "full"
    audio_config: bool = True  # AAC's configuration in the SDP
    # its clock
    real_fps: float | None = None  # what it sends, where that is not what it declares
    timestamp_0: int | None = None  # first RTP timestamp; 2**32 - 90000 wraps after a second
    first_off_s: float = 0.0  # the first timestamp is wrong by this, the others are right
    stuck_every: int = 0  # every so many units one has the timestamp of the unit before
    backward_every: int = 0  # every so many units one has a timestamp from three units before
    prebuffer_s: float = 0.0  # at PLAY it sends what it kept of so many seconds, at once
    reports: Reports = Reports.TRUE
    # its sound
    audio: AudioName | None = None
    audio_rate: int | None = None
    audio_late_s: float = 0.0  # sound that was declared arrives so late; inf: never
    audio_offset_s: float = 0.0  # sound is behind (> 0) or ahead of the picture
    audio_hz_ratio: float = 1.0  # sound comes faster (> 1) or slower than its timestamps say
    # its manners
    loss: float = 0.0  # share of RTP packets that are not sent
    jitter_s: float = 0.0
    mute: bool = False  # answers everything, sends nothing
    refuse: bool = False  # 401, whatever the login
    away: bool = False  # closes every connection that asks for it
    hang: bool = False  # takes the request, never answers
    clients_max: int | None = None  # 453 for more than so many
    join_anywhere: bool = False  # begins in the middle of a GOP

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    _OUTWARD: ClassVar = frozenset({"sdp_sets", "audio_config", "refuse", "away", "hang", "clients_max", "loss"})

    def __post_init__(self) -> None:
        """Plain text is as good as the enum's member."""
        if self.codec is not None:
            object.__setattr__(self, "codec", Codec(self.codec))
        object.__setattr__(self, "reports", Reports(self.reports))

    @property
    def own_feed(self) -> bool:
        """Whether packets differ from those of a sane stream."""
        return any(getattr(self, field.name) != field.default for field in fields(self) if field.name not in self._OUTWARD)

    @property
    def starts_anywhere(self) -> bool:
        """Whether a client gets what comes, and not the next key unit first."""
        return self.no_key or self.join_anywhere

    def video_spec(self, base: VideoSpec) -> VideoSpec:
        """The farm's spec with what this stream has of its own."""
        fps = None if self.fps is None else Fraction(self.fps).limit_denominator(1001)
        own = {"codec": self.codec, "width": self.width, "height": self.height, "fps": fps, "bitrate_bps": self.bitrate_bps}
        own |= {"gop": self.gop, "b_frames": self.b_frames, "slices": self.slices}
        return replace(base, **{name: value for name, value in own.items() if value is not None})  # type: ignore[arg-type]

    def audio_spec(self, base: AudioSpec | None) -> AudioSpec | None:
        """The farm's audio with what this stream has of its own."""
        if self.audio is not None:
            base = None if self.audio == "none" else AudioSpec(self.audio, 16_000 if self.audio == "aac" else 8_000)
        if base is not None and self.audio_rate is not None:
            base = replace(base, rate=self.audio_rate)
        return base


PLAIN: Final = Traits()

Deed = Literal[
    "disconnect",  # close connections in order, after what is begun
    "reset",  # break connections off (RST), what is under way is lost
    "mute",
    "unmute",
    "refuse",  # 401 from now on; who plays goes on
    "admit",
    "leave",  # disconnect, and close every new connection: switched off
    "come",
    "hang",  # answer no request, send nothing, close nothing
    "wake",
    "restart",  # timestamps and sequence numbers begin at 0, with another SSRC, in the middle of a GOP
    "jump",  # timestamps jump by `seconds` (may be negative)
    "lose",  # `frames` units are lost on the way: sequence numbers and timestamps tell
    "change",  # another `width`, `height`, `codec` or `fps`, from the next unit on
]
INVERSE: Final[dict[str, Deed]] = {"mute": "unmute", "refuse": "admit", "leave": "come", "hang": "wake"}


@dataclass(frozen=True, slots=True)
class Act:
    """Something that happens to streams. `streams` None: all of them."""

    do: Deed
    streams: tuple[int, ...] | None = None
    at_s: float = 0.0  # after the farm's start
    for_s: float = 0.0  # then undone, where that can be; 0: never
    every_s: float = 0.0  # again and again; 0: once
    seconds: float = 0.0  # of jump
    frames: int = 0  # of lose
    width: int | None = None
    height: int | None = None
    codec: Codec | None = None
    fps: float | None = None

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        """Plain text is as good as the enum's member."""
        if self.codec is not None:
            object.__setattr__(self, "codec", Codec(self.codec))

    def changed(self, spec: VideoSpec) -> VideoSpec:
        """What `change` makes of a spec."""
        return Traits(codec=self.codec, width=self.width, height=self.height, fps=self.fps).video_spec(spec)


def with_level(codec: Codec, sps: bytes, level: int) -> bytes:
    """An SPS with another level: other bytes, the same pictures."""
    plain = bytearray(_nal.unescape(sps))
    if codec is Codec.H264:
        plain[3] = level  # level_idc (7.3.2.1.1), behind header, profile_idc and constraint flags
    else:
        plain[14] = level  # general_level_idc (7.3.3), behind header, ids and 11 bytes of profile and constraints
    return _nal.escape(bytes(plain))


_LEVELS: Final = {Codec.H264: 51, Codec.H265: 153}  # 5.1: holds whatever the farm encodes


def flapping(reel: VideoReel) -> VideoReel:
    """The reel with another SPS in every second GOP; twice, where it has an odd number of them."""
    codec, kind = reel.spec.codec, _nal.H264_SPS if reel.spec.codec is Codec.H264 else _nal.H265_SPS
    gops = sum(unit.key for unit in reel.units)
    units: list[Unit] = []
    gop = -1
    for unit in reel.units * (1 + gops % 2):
        gop += unit.key
        if gop % 2:
            sets = tuple(with_level(codec, nal, _LEVELS[codec]) if _nal.nal_type(codec, nal) == kind else nal for nal in unit.sets)
            unit = replace(unit, sets=sets)
        units.append(unit)
    return replace(reel, units=tuple(units))


def keyless(reel: VideoReel) -> VideoReel:
    """The reel without its key units; parameter sets stand before the units that followed them."""
    units = [replace(after, sets=before.sets) for before, after in zip(reel.units, reel.units[1:], strict=False) if not after.key]
    return replace(reel, units=tuple(units))


class OddFeed(Feed):
    """A feed of one camera, with its traits."""

    def __init__(
        self, packets: Packets, traits: Traits, *, start_s: float, seq: int, timestamp_0: int, ssrc: int, audio: AudioTrack | None
    ) -> None:
        first = timestamp_0 if traits.timestamp_0 is None else traits.timestamp_0
        super().__init__(packets, start_s=start_s, seq=seq, timestamp_0=first, ssrc=ssrc, audio=audio)
        self.traits = traits
        self.jitter_s = traits.jitter_s
        self.first = 0  # number of the unit that it began with
        if traits.real_fps is not None:
            self.load(packets, Fraction(traits.real_fps).limit_denominator(1001))
        if audio is not None:
            audio.offset_s, audio.hz_ratio, audio.late_s = traits.audio_offset_s, traits.audio_hz_ratio, traits.audio_late_s

    @classmethod
    def fork(cls, feed: Feed, traits: Traits) -> OddFeed:
        """A camera leaves a shared feed: its own goes on where that one is."""
        audio = None if feed.audio is None else feed.audio.copy()
        own = cls(feed.packets, traits, start_s=feed.start_s, seq=feed.seq, timestamp_0=feed.timestamp_0, ssrc=feed.ssrc, audio=audio)
        own.number, own.packets_sent, own.octets_sent = feed.number, feed.packets_sent, feed.octets_sent
        own.report_due_s = feed.report_due_s
        return own

    def begin(self, now_s: float) -> None:
        """Start at once, with a key unit or in the middle of a GOP, and with what was kept from before."""
        number = max(1, self.packets.reel.spec.gop // 2) if self.traits.join_anywhere else 0
        self.start_s = now_s - self.traits.prebuffer_s - self.elapsed_s(number)
        self.first = number
        self.move_to(number)

    def timestamp_of(self, number: int, shift: int = 0) -> int:
        traits = self.traits
        if traits.first_off_s and number == self.first:
            return super().timestamp_of(number, shift) + round(traits.first_off_s * rtp.VIDEO_HZ)
        if traits.stuck_every and number and number % traits.stuck_every == 0:
            number -= 1
        elif traits.backward_every and number and number % traits.backward_every == 0:
            number -= 3
        return super().timestamp_of(number, shift)

    def next_unit(self) -> OnAir:
        on_air = super().next_unit()
        on_air.stamp_marker = self.traits.stamp_marker
        return on_air

    def jump(self, seconds: float) -> None:
        """Both clocks jump."""
        self.timestamp_0 += round(seconds * rtp.VIDEO_HZ)
        if self.audio is not None:
            self.audio.timestamp_0 += round(seconds * self.audio.reel.spec.rate)

    def lose(self, frames: int) -> None:
        """Units that are lost on the way: what follows comes when it would have come, and its sequence numbers tell."""
        for _ in range(frames):
            self.next_unit()

    def pass_over(self) -> None:
        """A unit that is not made: time goes on, sequence numbers do not."""
        self.move_to(self.number + 1)

    def restart(self, now_s: float, ssrc: int) -> None:
        """The camera was switched off and on: clocks and sequence numbers at 0, another SSRC, in the middle of a GOP."""
        number = self.packets.reel.spec.gop // 2
        self.seq, self.ssrc = 0, ssrc
        self.start_s = now_s - self.elapsed_s(number)
        self.timestamp_0 = 0
        self.timestamp_0 = -super().timestamp_of(number)
        if self.audio is not None:
            self.audio.origin_s = 0.0
            self.audio.catch_up(self.elapsed_s(number))
            self.audio.seq, self.audio.ssrc = 0, ssrc ^ 1
            self.audio.timestamp_0 = 0
            self.audio.timestamp_0 = -self.audio.next_timestamp
        self.number = number

    def change(self, packets: Packets, now_s: float) -> None:
        """Another picture from now on, beginning with a key unit; the clocks go on."""
        self.timestamp_0 = self.timestamp_at(now_s)
        if self.audio is not None:
            self.audio.origin_s -= now_s - self.start_s
        self.start_s, self.number = now_s, 0
        self.load(packets)
