"""What a `moov` says about a track, made by libav's own muxer: the one place where PyAV muxes.

    codec, extradata, size ──▶ a Matroska header, 200 bytes ──demux──▶ codec parameters ──mux──▶ ftyp moov(trak) ──▶ trak

libav takes a codec's private data only from a file, so it is handed one in memory. Nothing here touches a disk, and one
configuration is muxed once: about a millisecond, then it comes from a cache.

Invariant: the `trak` depends on the arguments alone. Its timescale is 90,000 for video, the sample rate for sound.
Parameter sets stand in it for players' sake; the ones that count are in-band (nal.py).
"""

from __future__ import annotations

import io
import struct
from functools import lru_cache
from typing import Final

import av
import av.error

from nvrstore.errors import SourceNotVideoError
from nvrstore.media.boxes import find
from nvrstore.media.nal import NAL_CODECS, ParameterSets
from nvrstore.model import Media, TrackConfig

VIDEO_TIMESCALE: Final = 90_000  # of RTP video (RFC 3551 5); MPEG's too
OPUS_RATE: Final = 48_000  # Opus in MP4 always counts 48 kHz, whatever was encoded

# libav's codec names and what Matroska calls them (RFC 9559 and the Matroska codec registry).
_VIDEO_CODECS: Final = {"h264": b"V_MPEG4/ISO/AVC", "hevc": b"V_MPEGH/ISO/HEVC", "mjpeg": b"V_MJPEG"}
_AUDIO_CODECS: Final = {
    "aac": b"A_AAC",
    "opus": b"A_OPUS",
    "mp3": b"A_MPEG/L3",
    "pcm_s16le": b"A_PCM/INT/LIT",
    "pcm_s16be": b"A_PCM/INT/BIG",
}
# Parameter sets have a few dozen bytes. A camera that sends hundreds of large ones, always others, must not fill the cache: with 288 of
# 4 KiB each, 1,024 configurations would hold 2.4 GB.
CACHED_BYTES_MAX: Final = 4096
STORED_VIDEO: Final = frozenset(_VIDEO_CODECS)
STORED_AUDIO: Final = frozenset(_AUDIO_CODECS)

# ISO/IEC 14496-3 table 1.18: sampling frequencies by index.
AAC_RATES: Final = (96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350)


def video_config(codec: str, extradata: bytes, width: int, height: int) -> TrackConfig:
    """The configuration of a video track: "h264", "hevc" or "mjpeg".

    `extradata`: `avcC`, `hvcC` or Annex B parameter sets; ignored for MJPEG. The picture's size is taken from the parameter sets where
    they say it. Raises `SourceNotVideoError` for a codec that MP4 does not carry, or without the sets that it needs.
    """
    if codec in NAL_CODECS:
        sets = ParameterSets.of_extradata(codec, extradata)
        if not sets.complete:
            raise SourceNotVideoError(f"the camera has not sent the parameter sets of its {codec} video")
        extradata = sets.annexb()
        width, height = sets.size() or (width, height)
    else:
        extradata = b""
    if width <= 0 or height <= 0:
        raise SourceNotVideoError(f"the size of the {codec} picture is not known")
    make = _video if len(extradata) <= CACHED_BYTES_MAX else _video.__wrapped__
    return make(codec, extradata, width, height)


@lru_cache(maxsize=1024)
def _video(codec: str, extradata: bytes, width: int, height: int) -> TrackConfig:
    name = _VIDEO_CODECS.get(codec)
    if name is None:
        raise SourceNotVideoError(f"{codec} video cannot be recorded", hint="set the camera to H.264 or H.265")
    track = _matroska(1, name, extradata, _element(0xE0, _number(0xB0, width), _number(0xBA, height)))
    trak = _trak(codec, track, VIDEO_TIMESCALE)
    return TrackConfig(Media.VIDEO, codec, VIDEO_TIMESCALE, trak, width, height)


@lru_cache(maxsize=1024)
def audio_config(codec: str, sample_rate: int, channels: int, extradata: bytes = b"") -> TrackConfig:
    """The configuration of an audio track that MP4 carries: "aac", "opus", "mp3", "pcm_s16le", "pcm_s16be".

    `extradata`: AAC's AudioSpecificConfig or Opus' identification header; made from rate and channels where it is missing.
    Raises `SourceNotVideoError` for any other codec: transcode it (audio.py) or leave it out.
    """
    name = _AUDIO_CODECS.get(codec)
    if name is None:
        raise SourceNotVideoError(f"{codec} sound cannot be stored as it is", hint='set `audio = "aac"` for this stream')
    if not 0 < channels <= 8 or not 0 < sample_rate <= 384_000:
        raise SourceNotVideoError(f"{codec} sound with {channels} channels at {sample_rate} Hz cannot be stored")
    if codec == "aac" and not extradata:
        extradata = audio_specific_config(sample_rate, channels)
    if codec == "opus":
        extradata = extradata or struct.pack("<8sBBHIhB", b"OpusHead", 1, channels, 312, sample_rate, 0, 0)
        sample_rate = OPUS_RATE
    depth = _number(0x6264, 16) if codec.startswith("pcm") else b""
    shape = _element(0xE1, _element(0xB5, struct.pack(">d", sample_rate)), _number(0x9F, channels), depth)
    trak = _trak(codec, _matroska(2, name, extradata, shape), sample_rate)
    return TrackConfig(Media.AUDIO, codec, sample_rate, trak, sample_rate=sample_rate, channels=channels)


def audio_specific_config(sample_rate: int, channels: int) -> bytes:
    """AAC-LC's AudioSpecificConfig (ISO/IEC 14496-3 1.6.2.1). Raises `SourceNotVideoError` for a rate that AAC does not have."""
    if sample_rate not in AAC_RATES:
        raise SourceNotVideoError(f"AAC at {sample_rate} Hz, without a description, cannot be stored")
    return (2 << 11 | AAC_RATES.index(sample_rate) << 7 | channels << 3).to_bytes(2, "big")


def _trak(codec: str, matroska: bytes, timescale: int) -> bytes:
    """The `trak` that libav's muxer writes for the only track of a Matroska file, counting in `timescale`."""
    sink = io.BytesIO()
    try:
        with (
            av.open(io.BytesIO(matroska), "r", format="matroska") as described,
            av.open(sink, "w", format="mp4", options=_MOVFLAGS) as muxer,
        ):
            muxer.add_stream_from_template(described.streams[0], opaque=True)
            muxer.start_encoding()
            moov = sink.getvalue()
    except (av.error.FFmpegError, ValueError) as error:
        raise SourceNotVideoError(f"{codec} with this configuration cannot be stored in MP4: {error}") from error
    found = find(moov, "moov/trak")
    trak = bytearray(moov[found.start : found.end])
    clock = find(trak, "trak/mdia/mdhd")
    struct.pack_into(">I", trak, clock.body + (20 if trak[clock.body] else 12), timescale)
    return bytes(trak)


_MOVFLAGS: Final = {"movflags": "empty_moov+default_base_moof+frag_custom", "fflags": "+bitexact"}


def _matroska(kind: int, codec: bytes, extradata: bytes, shape: bytes) -> bytes:
    """A Matroska file (RFC 9559) with one track and an empty cluster, which is where libav stops to look for tracks."""
    private = _element(0x63A2, extradata) if extradata else b""
    track = _element(0xAE, _number(0xD7, 1), _number(0x73C5, 1), _number(0x83, kind), _element(0x86, codec), private, shape)
    header = _element(0x1A45DFA3, _element(0x4282, b"matroska"), _number(0x4287, 4), _number(0x4285, 2))
    segment = _element(0x18538067, _element(0x1549A966), _element(0x1654AE6B, track), _element(0x1F43B675, _number(0xE7, 0)))
    return header + segment


def _element(identity: int, *parts: bytes) -> bytes:
    """An EBML element (RFC 8794) with its size in eight bytes."""
    body = b"".join(parts)
    return identity.to_bytes((identity.bit_length() + 7) // 8, "big") + (1 << 56 | len(body)).to_bytes(8, "big") + body


def _number(identity: int, value: int) -> bytes:
    return _element(identity, value.to_bytes(4, "big"))
