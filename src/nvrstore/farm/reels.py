"""Reels: pictures and sound that are encoded once and sent for ever.

    VideoSpec --encode (libav)--> VideoReel: access units, first one a key unit, played round and round
    AudioSpec --encode (libav)--> AudioReel: frames of a tone that fits the reel's length, so that it has no seam

A reel is the same for all streams that have the same spec: its slices carry no stream, number or time (those are in the stamp).
Every unit's checksum is taken here, once. The picture is libav's test pattern under noise, so that the encoder has something
to spend the bitrate on. This is the only file of the farm that knows libav, but for `burn.py`.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Final, Literal

import av
import av.filter
from av.audio.codeccontext import AudioCodecContext
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType, VideoFrame

from nvrstore.farm import nal as _nal
from nvrstore.farm.nal import Codec

REEL_S: Final = 2.0  # at least this long, so that rate control has room; always whole GOPs
ENCODE_TRIES: Final = 3  # rate control misses on so short a piece: its aim is corrected
BITRATE_TOLERANCE: Final = 0.04


@dataclass(frozen=True, slots=True)
class VideoSpec:
    """What to encode. Equal specs share one reel."""

    codec: Codec = Codec.H264
    width: int = 1920
    height: int = 1080
    fps: Fraction = Fraction(25)
    bitrate_bps: int = 4_000_000
    gop: int = 50
    b_frames: int = 0
    slices: int = 1  # per picture


@dataclass(frozen=True, slots=True)
class Unit:
    """One access unit: NAL units that go before its stamp, and those that go behind it."""

    sets: tuple[bytes, ...]
    slices: tuple[bytes, ...]
    key: bool
    shift: int  # presentation minus position, in frames: not 0 where B-frames reorder
    crc: int  # CRC-32C of the slices


@dataclass(frozen=True, slots=True)
class VideoReel:
    """Access units in the order of decoding. `parameter_sets` are those of the first unit."""

    spec: VideoSpec
    units: tuple[Unit, ...]
    parameter_sets: tuple[bytes, ...]

    @property
    def bitrate_bps(self) -> float:
        """What it came to, stamps not counted."""
        octets = sum(len(nal) for unit in self.units for nal in (*unit.sets, *unit.slices))
        return float(octets * 8 * self.spec.fps / len(self.units))

    @property
    def gop_s(self) -> float:
        return float(self.spec.gop / self.spec.fps)


@dataclass(frozen=True, slots=True)
class AudioSpec:
    """What to encode for audio."""

    codec: Literal["aac", "pcma"] = "aac"
    rate: int = 16_000
    channels: int = 1


@dataclass(frozen=True, slots=True)
class AudioReel:
    """Audio frames, all of the same duration. `config` is the AudioSpecificConfig of AAC (ISO/IEC 14496-3 1.6.2.1)."""

    spec: AudioSpec
    frames: tuple[bytes, ...]
    samples_per_frame: int
    config: bytes


def pattern(spec: VideoSpec, frames: int, *, noise: bool = True) -> Iterable[VideoFrame]:
    """The test pattern, under noise that is coarser where there are more bits to spend."""
    bits_per_pixel = spec.bitrate_bps / float(spec.fps) / (spec.width * spec.height)
    strength = max(4, min(60, round(bits_per_pixel * 150)))
    graph = av.filter.Graph()
    chain = [graph.add("testsrc2", f"size={spec.width}x{spec.height}:rate={spec.fps}")]
    if noise:
        chain.append(graph.add("noise", f"alls={strength}:allf=t:all_seed=1"))
    chain += [graph.add("format", "yuv420p"), graph.add("buffersink")]
    for one, next_one in pairwise(chain):
        one.link_to(next_one)
    graph.configure()
    for _ in range(frames):
        frame = graph.pull()
        if not isinstance(frame, VideoFrame):
            raise TypeError("the test pattern is not a picture")
        frame.pict_type = PictureType.NONE  # the pattern says "I" of every picture, and encoders obey
        yield frame


def open_encoder(spec: VideoSpec, *, aim_bps: float | None = None, live: bool = False) -> VideoCodecContext:
    """A fast libx264 or libx265 for `spec`; parameter sets are repeated at each key unit.

    `live`: a picture comes out for each that goes in.
    """
    aim = spec.bitrate_bps if aim_bps is None else round(aim_bps)
    name = "libx264" if spec.codec is Codec.H264 else "libx265"
    rate = f"vbv-maxrate={aim // 1000}:vbv-bufsize={max(1, aim // 1000)}"
    structure = f"keyint={spec.gop}:min-keyint={spec.gop}:scenecut=0:bframes={spec.b_frames}:open-gop=0"
    params = f"{rate}:{structure}:slices={spec.slices}:repeat-headers=1"
    if spec.codec is Codec.H265:
        params += ":log-level=none"
    context = av.CodecContext.create(name, "w")
    if not isinstance(context, VideoCodecContext):
        raise TypeError(f"{name} is not a video encoder")
    context.width, context.height, context.pix_fmt = spec.width, spec.height, "yuv420p"
    context.framerate = spec.fps
    context.time_base = 1 / spec.fps
    context.bit_rate = aim
    context.options = {"preset": "ultrafast", f"{name[3:]}-params": params}
    context.thread_type = "FRAME"  # threads that share a picture would cut it into slices, one for each core of this machine
    if live:
        context.options |= {"tune": "zerolatency"}
        context.thread_count = 1
    return context


def cut_unit(codec: Codec, data: bytes, shift: int) -> Unit:
    """An encoded packet as a unit: the encoder's own SEI and delimiters are left out."""
    nals = _nal.split_annex_b(data)
    sets = tuple(nal for nal in nals if _nal.is_parameter_set(codec, nal))
    slices = tuple(nal for nal in nals if _nal.is_slice(codec, nal))
    if not slices:
        raise ValueError("an encoded picture without slices")
    return Unit(sets, slices, _nal.is_key_slice(codec, slices[0]), shift, _nal.slices_crc(codec, slices))


def _encode(spec: VideoSpec, frames: int, aim_bps: float) -> list[Unit]:
    context = open_encoder(spec, aim_bps=aim_bps)
    packets = []
    for at, frame in enumerate(pattern(spec, frames)):
        frame.pts, frame.time_base = at, context.time_base
        packets += context.encode(frame)
    packets += context.encode(None)
    units = []
    for position, packet in enumerate(packets):
        if packet.pts is None:
            raise ValueError("an encoded picture without a time")
        units.append(cut_unit(spec.codec, bytes(packet), packet.pts - position))
    if len(units) != frames or not units[0].key:
        raise ValueError(f"{len(units)} pictures came out of the encoder where {frames} went in")
    return units


@lru_cache(maxsize=32)
def video_reel(spec: VideoSpec) -> VideoReel:
    """Encode a reel for `spec`, or return the one that this process encoded before."""
    frames = spec.gop * max(1, math.ceil(REEL_S * spec.fps / spec.gop))
    aim = float(spec.bitrate_bps)
    best: VideoReel | None = None
    for _ in range(ENCODE_TRIES):
        units = _encode(spec, frames, aim)
        reel = VideoReel(spec, tuple(units), units[0].sets)
        if best is None or abs(reel.bitrate_bps - spec.bitrate_bps) < abs(best.bitrate_bps - spec.bitrate_bps):
            best = reel
        if abs(reel.bitrate_bps / spec.bitrate_bps - 1) <= BITRATE_TOLERANCE:
            break
        aim *= max(0.25, min(4.0, spec.bitrate_bps / reel.bitrate_bps))
    if best is None:
        raise RuntimeError("no reel was encoded")
    return best


@lru_cache(maxsize=16)
def audio_reel(spec: AudioSpec) -> AudioReel:
    """Encode a tone for `spec`, or return the one that this process encoded before."""
    context = av.CodecContext.create("aac" if spec.codec == "aac" else "pcm_alaw", "w")
    if not isinstance(context, AudioCodecContext):
        raise TypeError(f"{spec.codec} is not an audio encoder")
    context.sample_rate = spec.rate
    context.layout = "mono" if spec.channels == 1 else "stereo"
    context.format = "fltp" if spec.codec == "aac" else "s16"
    context.time_base = Fraction(1, spec.rate)
    if spec.codec == "aac":
        context.bit_rate = 32_000 * spec.channels
    context.open()
    samples = 1024 if spec.codec == "aac" else spec.rate // 50
    count = max(1, round(REEL_S * spec.rate / samples))
    total = count * samples
    turns = round(440 * total / spec.rate)  # whole turns: the end meets the beginning
    wave = [0.25 * math.sin(2 * math.pi * turns * at / total) for at in range(total)]
    frames: list[bytes] = []
    for at in range(0, 3 * total, samples):  # of three rounds the middle one is kept: no priming, no end
        start = at % total
        frames += [bytes(packet) for packet in context.encode(_sound(spec, wave[start : start + samples], at))]
    frames = frames[count : 2 * count]
    if len(frames) != count:
        raise ValueError(f"{len(frames)} audio frames came out of the encoder where {count} were expected")
    return AudioReel(spec, tuple(frames), samples, bytes(context.extradata or b""))


def _sound(spec: AudioSpec, wave: list[float], pts: int) -> av.AudioFrame:
    layout = "mono" if spec.channels == 1 else "stereo"
    frame = av.AudioFrame(format="fltp" if spec.codec == "aac" else "s16", layout=layout, samples=len(wave))
    if spec.codec == "aac":
        plane = array("f", wave).tobytes()
        for target in frame.planes:
            target.update(plane)
    else:
        frame.planes[0].update(array("h", [round(32767 * value) for value in wave for _ in range(spec.channels)]).tobytes())
    frame.sample_rate, frame.pts, frame.time_base = spec.rate, pts, Fraction(1, spec.rate)
    return frame
