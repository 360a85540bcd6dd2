"""Samples without a camera, and a reading of fragments that shares no code with the writer."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nvrstore.model import MFHD_SEQUENCE_AT, TFDT_TIME_AT, TFHD_TRACK_AT, Fragment, Media, Sample, TrackConfig, TrackKey

UTC_NS = 1_700_000_000_000_000_000
SESSION = 0x1122334455667788
VIDEO = TrackKey("gate", Media.VIDEO)
AUDIO = TrackKey("gate", Media.AUDIO)
VIDEO_CONFIG = TrackConfig(Media.VIDEO, "h264", 90_000, b"", 320, 240)
AUDIO_CONFIG = TrackConfig(Media.AUDIO, "aac", 48_000, b"", sample_rate=48_000, channels=2)


def sample(
    dts: int,
    *,
    pts: int | None = None,
    data: bytes = b"frame",
    keyframe: bool = False,
    media: Media = Media.VIDEO,
    at_s: float | None = None,
    timescale: int = 90_000,
    damaged: bool = False,
) -> Sample:
    """A sample that arrives when its DTS says so (or at `at_s`), seconds counted from UTC_NS and from 1000 s monotonic."""
    since_s = dts / timescale if at_s is None else at_s
    return Sample(media, data, dts if pts is None else pts, dts, keyframe, UTC_NS + round(since_s * 1e9), 1000.0 + since_s, damaged)


def video(frames: int, *, fps: int = 25, gop: int = 50, size: int = 100, start: int = 0) -> Iterator[Sample]:
    """`frames` steady video samples whose bytes all differ."""
    for i in range(start, start + frames):
        yield sample(i * 90_000 // fps, data=struct.pack(">I", i) * (size // 4), keyframe=gop > 0 and i % gop == 0)


@dataclass(frozen=True)
class Named:
    """A track as `moov` takes it."""

    name: str
    config: TrackConfig


@dataclass(frozen=True)
class Entry:
    """One line of a `trun`."""

    duration: int
    size: int
    flags: int
    offset: int

    @property
    def sync(self) -> bool:
        return not self.flags & 0x10000


def joined(fragment: Fragment) -> bytes:
    """The bytes of a fragment as they go into a volume, volume-dependent fields still zero."""
    return b"".join(fragment.parts)


def placed(fragment: Fragment, *, sequence: int, track_id: int, tfdt: int) -> bytes:
    """The bytes of a fragment with the three fields that depend on its volume."""
    data = bytearray(joined(fragment))
    struct.pack_into(">I", data, MFHD_SEQUENCE_AT, sequence)
    struct.pack_into(">I", data, TFHD_TRACK_AT, track_id)
    struct.pack_into(">Q", data, TFDT_TIME_AT, tfdt)
    return bytes(data)


def entries(fragment: Fragment) -> list[Entry]:
    """The `trun` of a fragment, read field by field."""
    data = joined(fragment)
    (moof,) = struct.unpack_from(">I", data, 0)
    assert data[4:8] == b"moof"
    at = data.index(b"trun", 0, moof) + 4
    flags, count, offset = struct.unpack_from(">IIi", data, at)
    assert flags == 0x0100_0F01
    assert offset == moof + 8
    at += 12
    return [Entry(*struct.unpack_from(">IIIi", data, at + 16 * i)) for i in range(count)]


def payloads(fragment: Fragment) -> list[bytes]:
    """The samples' bytes, cut out of `mdat` by the sizes in `trun`."""
    data = joined(fragment)
    (at,) = struct.unpack_from(">I", data, 0)
    (size,) = struct.unpack_from(">I", data, at)
    assert data[at + 4 : at + 8] == b"mdat"
    assert at + size == len(data) == fragment.length
    at += 8
    found = []
    for entry in entries(fragment):
        found.append(data[at : at + entry.size])
        at += entry.size
    assert at == len(data)
    return found


def total(fragments: Iterable[Fragment]) -> int:
    """Samples in `fragments`."""
    return sum(fragment.samples for fragment in fragments)
