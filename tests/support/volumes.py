"""Small volumes made of invented fragments, a driver for scans, and a place to break bytes."""

from __future__ import annotations

import random
import struct
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from nvrstore.journal.batch import VolumeBuilder
from nvrstore.journal.index import volume_index
from nvrstore.journal.model import Batch, VolumeHeader, VolumeTrack
from nvrstore.journal.scan import Read, ScanResult, scan_volume
from nvrstore.media.boxes import box, full_box
from nvrstore.media.fragment import pack_moof
from nvrstore.model import Epoch, Fragment, FragmentFlag, Media, MemberRef, Record, RecordKind, Role, TrackConfig, TrackKey

T = TypeVar("T")

ORIGIN_NS = 1_795_419_850_000_000_000
SESSION = 0x9F2C41AA_01234567
# A real avcC (ISO/IEC 14496-15 5.3.3.1) of 320x240 by x264: level 1.3, one SPS, one PPS.
AVCC = bytes.fromhex("0142c00dffe100156742c00dda0507e840000003004000000ca3c50aa801000468ce0fc8")


def trak(media: Media, timescale: int, *, width: int = 320, height: int = 240) -> bytes:
    """A complete `trak` of H.264 video or PCM sound, built by hand: track_ID 1, handler name "x"."""
    matrix = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    video = media is Media.VIDEO
    size = struct.pack(">II", width << 16, height << 16) if video else bytes(8)
    volume = 0 if video else 0x0100
    tkhd = full_box(b"tkhd", 0, 3, struct.pack(">IIIII8xHHHH", 0, 0, 1, 0, 0, 0, 0, volume, 0), matrix, size)
    mdhd = full_box(b"mdhd", 0, 0, struct.pack(">IIIIHH", 0, 0, timescale, 0, 0x55C4, 0))
    hdlr = full_box(b"hdlr", 0, 0, bytes(4), b"vide" if video else b"soun", bytes(12), b"x\0")
    if video:
        entry = box(b"avc1", struct.pack(">6xH16xHHIIIH32sHh", 1, width, height, 0x480000, 0x480000, 0, 1, b"", 24, -1), box(b"avcC", AVCC))
        kind = full_box(b"vmhd", 0, 1, bytes(8))
    else:
        entry = box(b"sowt", struct.pack(">6xH8xHHHHI", 1, 1, 16, 0, 0, timescale << 16))
        kind = full_box(b"smhd", 0, 0, bytes(4))
    dinf = box(b"dinf", full_box(b"dref", 0, 0, struct.pack(">I", 1), full_box(b"url ", 0, 1)))
    tables = [full_box(name, 0, 0, bytes(4)) for name in (b"stts", b"stsc", b"stco")]
    stbl = box(b"stbl", full_box(b"stsd", 0, 0, struct.pack(">I", 1), entry), *tables, full_box(b"stsz", 0, 0, bytes(8)))
    return box(b"trak", tkhd, box(b"mdia", mdhd, hdlr, box(b"minf", kind, dinf, stbl)))


VIDEO = TrackConfig(Media.VIDEO, "h264", 90_000, trak(Media.VIDEO, 90_000), width=320, height=240)
AUDIO = TrackConfig(Media.AUDIO, "pcm_s16le", 8_000, trak(Media.AUDIO, 8_000), sample_rate=8_000, channels=1)
GATE, YARD = TrackKey("gate", Media.VIDEO), TrackKey("yard", Media.VIDEO)
SOUND = TrackKey("yard", Media.AUDIO)


def header(**changes: object) -> VolumeHeader:
    """A header with two streams, one of them with sound."""
    fields: dict[str, object] = {
        "volume_id": "00112233445566778899aabbccddeeff",
        "journal": "main",
        "journal_id": "f0" * 16,
        "recorder": "nvr-1",
        "session": SESSION,
        "epoch": Epoch(8, 3),
        "lane": 0,
        "number": 42,
        "members": (MemberRef("array-a", "a0" * 16, Role.PRIMARY), MemberRef("node-b", "b0" * 16, Role.STANDBY)),
        "created_ns": ORIGIN_NS + 60_000_000_000,
        "origin_ns": ORIGIN_NS,
        "tracks": (VolumeTrack(GATE, "Gate, north", VIDEO), VolumeTrack(YARD, "Höf", VIDEO), VolumeTrack(SOUND, "Höf", AUDIO)),
    } | changes
    return VolumeHeader(**fields)  # type: ignore[arg-type]


def fragment(
    track: TrackKey = GATE,
    *,
    at_s: float = 60.0,
    index: int = 0,
    samples: int = 5,
    flags: FragmentFlag = FragmentFlag.KEYFRAME,
    sizes: int = 40,
    session: int = SESSION,
    config: TrackConfig | None = None,
    duration: int | None = None,
) -> Fragment:
    """A fragment of invented samples, captured `at_s` behind the volume's origin; its bytes tell which one it is."""
    config = config or (VIDEO if track.media is Media.VIDEO else AUDIO)
    noise = random.Random(f"{track} {index} {session}")
    data = [noise.randbytes(sizes + n) for n in range(samples)]
    tick = config.timescale // 25 if duration is None else duration // samples
    entries = [value for n, part in enumerate(data) for value in (tick, len(part), 0x0200_0000 if n == 0 else 0x0101_0000, 0)]
    moof = pack_moof(entries, sum(map(len, data)))
    parts: tuple[bytes | bytearray, ...] = (moof, *data)
    total = sum(len(part) for part in parts)
    utc_ns = ORIGIN_NS + round(at_s * 1e9)
    return Fragment(track, config, session, index, samples, utc_ns, tick * samples, flags, parts, total)


@dataclass
class Volume:
    """A volume in memory: its builder, its bytes, its batches."""

    builder: VolumeBuilder
    data: bytearray
    batches: list[Batch] = field(default_factory=list)

    @classmethod
    def begin(cls, head: VolumeHeader | None = None) -> Volume:
        builder = VolumeBuilder(head or header())
        return cls(builder, bytearray(builder.header_bytes))

    def add(self, fragments: Sequence[Fragment], records: Sequence[Record] = (), *, last_committed: int | None = None) -> Batch:
        """Build the next batch and append it; by default all batches before it are known committed."""
        extent = bytearray(b"\xaa" * self.builder.size(fragments, records))  # an extent of the pool is not empty either
        known = self.builder.number - 1 if last_committed is None else last_committed
        batch = self.builder.build(memoryview(extent), fragments, records, last_committed=known, utc_now_ns=ORIGIN_NS + 61_000_000_000)
        if batch.offset != len(self.data):
            raise AssertionError("a batch goes behind the one before it")
        self.data += extent
        self.batches.append(batch)
        return batch

    def close(self) -> bytes:
        """Append the index; returns it."""
        index = volume_index(self.builder.header, self.batches)
        self.data += index
        return index


def small_volume(batches: int = 3, *, closed: bool = False, lag: int = 1) -> Volume:
    """A volume of a few batches with video, sound and records; each batch knows those before it as committed, `lag` behind."""
    volume = Volume.begin()
    for n in range(batches):
        fragments = [
            fragment(GATE, at_s=60 + n, index=5 * n),
            fragment(YARD, at_s=60.2 + n, index=5 * n, flags=FragmentFlag(0) if n % 2 else FragmentFlag.KEYFRAME | FragmentFlag.SEGMENT),
            fragment(SOUND, at_s=60.1 + n, index=5 * n),
        ]
        records = [Record(RecordKind.GAP, f"gap-{n}", {"stream": "gate", "cause": "camera", "start_ns": n, "end_ns": None})]
        volume.add(fragments, records if n % 2 == 0 else (), last_committed=max(-1, n - lag))
    if closed:
        volume.close()
    return volume


def drive(steps: Generator[Read, bytes | None, T], data: bytes | bytearray, *, unreadable: Sequence[range] = ()) -> T:
    """Answer a scan's wishes from memory; `unreadable` are ranges of bytes that the device does not give."""
    answer: bytes | None = None
    try:
        wish = next(steps)
        while True:
            if wish.offset % 4096 or wish.length % 4096 or not 0 < wish.length <= 1 << 20:
                raise AssertionError(f"no keeper reads {wish}")
            end = wish.offset + wish.length
            hit = any(bad.start < end and wish.offset < bad.stop for bad in unreadable)
            answer = None if hit else bytes(data[wish.offset : end])
            wish = steps.send(answer)
    except StopIteration as done:
        result: T = done.value
        return result


def scan(data: bytes | bytearray, *, deep: bool = False, **hints: object) -> ScanResult:
    """Scan bytes in memory."""
    unreadable = hints.pop("unreadable", ())
    steps = scan_volume(len(data), deep=deep, **hints)  # type: ignore[arg-type]
    return drive(steps, data, unreadable=unreadable)  # type: ignore[arg-type]
