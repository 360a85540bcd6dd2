"""Real encoded pictures and sound, made by PyAV's encoders at test time."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import Any

import av

GLOBAL_HEADER = 1 << 22  # AV_CODEC_FLAG_GLOBAL_HEADER


@dataclass(frozen=True)
class Encoded:
    """An elementary stream: the encoder's extradata and its packets as (data, pts, dts, keyframe)."""

    codec: str
    extradata: bytes
    time_base: Fraction
    packets: tuple[tuple[bytes, int, int, bool], ...] = field(repr=False)


def picture(width: int, height: int, number: int) -> av.VideoFrame:
    """A grey ramp that moves: cheap, and no two frames are equal."""
    frame = av.VideoFrame(width, height, "yuv420p")
    plane = frame.planes[0]
    line = bytes((x + 3 * number) & 0xFF for x in range(plane.line_size))
    plane.update(b"".join(line[-(y & 7) :] + line[: -(y & 7)] if y & 7 else line for y in range(plane.height)))
    for chroma in frame.planes[1:]:
        chroma.update(bytes([(128 + number) & 0xFF]) * chroma.buffer_size)
    return frame


def _encode(encoder: Any, frames: Iterator[Any], codec: str, extradata: bytes = b"") -> Encoded:
    packets = [packet for frame in frames for packet in encoder.encode(frame)] + list(encoder.encode(None))
    return Encoded(
        codec,
        extradata or bytes(encoder.extradata or b""),
        encoder.time_base,
        tuple((bytes(packet), packet.pts, packet.dts, packet.is_keyframe) for packet in packets),
    )


def _video_encoder(codec: str, width: int, height: int, fps: int, options: dict[str, str]) -> Any:
    encoder: Any = av.CodecContext.create({"h264": "libx264", "hevc": "libx265", "mjpeg": "mjpeg"}[codec], "w")
    encoder.width, encoder.height = width, height
    encoder.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    encoder.time_base = Fraction(1, 90_000)
    encoder.framerate = Fraction(fps)
    encoder.thread_count = 1
    if codec == "h264":
        encoder.options = {"preset": "ultrafast", "tune": "zerolatency", "g": str(fps), **options}
    elif codec == "hevc":
        encoder.options = {"preset": "ultrafast", "x265-params": f"log-level=none:keyint={fps}:bframes=0:pools=none"}
    return encoder


@cache
def encode_video(
    codec: str = "h264", *, width: int = 320, height: int = 240, frames: int = 50, fps: int = 25, options: tuple[tuple[str, str], ...] = ()
) -> Encoded:
    """H.264, H.265 or MJPEG. H.264 and H.265 come as Annex B, with parameter sets both in-band and as extradata."""
    extradata = b""
    if codec != "mjpeg":
        describer = _video_encoder(codec, width, height, fps, dict(options))
        describer.flags |= GLOBAL_HEADER
        describer.open()
        extradata = bytes(describer.extradata)

    def shots() -> Iterator[av.VideoFrame]:
        for number in range(frames):
            frame = picture(width, height, number)
            if codec == "mjpeg":
                frame = frame.reformat(format="yuvj420p")
            frame.pts, frame.time_base = number * 90_000 // fps, Fraction(1, 90_000)
            yield frame

    return _encode(_video_encoder(codec, width, height, fps, dict(options)), shots(), codec, extradata)


@cache
def encode_audio(codec: str = "aac", *, sample_rate: int = 48_000, layout: str = "mono", seconds: float = 1.0) -> Encoded:
    """A rough tone as "aac", "opus", "pcm_alaw", "pcm_mulaw", "g726" or "pcm_s16le"."""
    encoder: Any = av.CodecContext.create("libopus" if codec == "opus" else codec, "w")
    encoder.sample_rate = sample_rate
    encoder.layout = layout
    encoder.format = encoder.codec.audio_formats[0]
    encoder.time_base = Fraction(1, sample_rate)
    if codec == "g726":
        encoder.bit_rate = 32_000
    encoder.open()
    size = encoder.frame_size or sample_rate // 50
    resampler = av.AudioResampler(format=encoder.format.name, layout=layout, rate=sample_rate)
    wave = struct.pack("<64h", *(round(8000 * math.sin(2 * math.pi * i / 64)) for i in range(64)))

    def tones() -> Iterator[av.AudioFrame]:
        for number in range(int(seconds * sample_rate) // size):
            frame = av.AudioFrame("s16", "mono", size)
            frame.planes[0].update((wave * (size // 64 + 1)).ljust(frame.planes[0].buffer_size, b"\0")[: frame.planes[0].buffer_size])
            frame.sample_rate, frame.pts, frame.time_base = sample_rate, number * size, Fraction(1, sample_rate)
            yield from resampler.resample(frame)

    return _encode(encoder, tones(), codec)


def demuxed(data: bytes) -> dict[int, list[tuple[int, int, bytes, bool]]]:
    """Every packet of an MP4 as libav reads it: stream index to (pts, dts, data, keyframe)."""
    found: dict[int, list[tuple[int, int, bytes, bool]]] = {}
    with av.open(io.BytesIO(data), "r") as container:
        for packet in container.demux():
            if packet.size:
                line = (int(packet.pts or 0), int(packet.dts or 0), bytes(packet), bool(packet.is_keyframe))
                found.setdefault(packet.stream.index, []).append(line)
    return found
