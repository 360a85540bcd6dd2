"""The boxes of an exported file: a fragmented MP4 of its own around the fragments of the archive (ISO/IEC 14496-12 8.8).

    ftyp  moov( mvhd trak x N mvex(mehd trex x N) )  { moof mdat } x n  mfra( tfra x N mfro )

Fragments stay as they were stored but for the three fields that depend on the file (model.py): sequence number, track_ID,
time. So every sample is bit-exact, and the file can be written from front to back. `mehd` tells its duration and `mvhd`
when it was captured, before the first fragment; `mfra` is for players that seek.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from nvrstore.media.boxes import box, find, full_box, walk
from nvrstore.media.moov import ftyp, moov
from nvrstore.model import MFHD_SEQUENCE_AT, NS_PER_S, TFDT_TIME_AT, TFHD_TRACK_AT, TrackConfig

MAC_EPOCH_S: Final = 2_082_844_800  # 1904 to 1970: times in MP4 headers (8.2.2)
MOVIE_TIMESCALE: Final = 1000  # that of `moov`
_TFRA_LINE: Final = struct.Struct(">QQBBB")
_U32: Final = struct.Struct(">I")
_U64: Final = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class MovieTrack:
    """A track of the file: its name for people, and what its samples are."""

    name: str
    config: TrackConfig


def movie_header(tracks: Sequence[MovieTrack], *, captured_ns: int, duration_ns: int) -> bytes:
    """`ftyp` and `moov` of a file that begins with what was captured at `captured_ns` and lasts `duration_ns`."""
    plain = moov(tracks)
    outer = find(plain, "moov")
    parts: list[bytes] = []
    for child in walk(plain, outer.body, outer.end):
        whole = plain[child.start : child.end]
        if child.type == b"mvhd":
            header = bytearray(whole)
            seconds = captured_ns // NS_PER_S + MAC_EPOCH_S
            if seconds <= 0xFFFF_FFFF:  # version 0 counts until 2040; a file without a date is better than one with a wrong one
                struct.pack_into(">II", header, child.body - child.start + 4, seconds, seconds)
            whole = bytes(header)
        elif child.type == b"mvex":
            mehd = full_box(b"mehd", 1, 0, _U64.pack(duration_ns * MOVIE_TIMESCALE // NS_PER_S))
            whole = box(b"mvex", mehd, plain[child.body : child.end])
        parts.append(whole)
    return ftyp() + box(b"moov", *parts)


def placed(fragment: bytes, *, sequence: int, track_id: int, time: int) -> bytearray:
    """A fragment with the three fields that depend on the file."""
    data = bytearray(fragment)
    _U32.pack_into(data, MFHD_SEQUENCE_AT, sequence)
    _U32.pack_into(data, TFHD_TRACK_AT, track_id)
    _U64.pack_into(data, TFDT_TIME_AT, time)
    return data


def random_access(keyframes: Sequence[Sequence[tuple[int, int]]]) -> bytes:
    """`mfra`: per track the (time, offset of the `moof`) of each fragment that begins with a sync sample."""
    tfras = b"".join(
        full_box(
            b"tfra", 1, 0, struct.pack(">III", track_id, 0, len(found)), *(_TFRA_LINE.pack(time, offset, 1, 1, 1) for time, offset in found)
        )
        for track_id, found in enumerate(keyframes, start=1)
    )
    return box(b"mfra", tfras, full_box(b"mfro", 0, 0, _U32.pack(8 + len(tfras) + 16)))
