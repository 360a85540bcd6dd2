"""Access units of H.264 and H.265 as MP4 wants them: NAL units behind 4-byte lengths (ISO/IEC 14496-15 5.3.4.2).

    Annex B    00 00 00 01 | NAL | 00 00 01 | NAL ...      from RTSP, MPEG-TS (ITU-T H.264 / H.265 Annex B)
    lengths    u32 length  | NAL | u32 length | NAL ...    from MP4 and Matroska, and what `Sample.data` holds

`AccessUnits` does that for one stream. It keeps the parameter sets in force, from the description or in-band, and puts
them in front of keyframes that come without: every keyframe can be decoded by itself.

Invariant: no NAL unit is lost or reordered, except those no decoder wants: empty ones, and parameter sets that are repeated
between the slices of a picture, where they would begin another one (H.264 7.4.1.2.3). What a camera sends without a picture (a
marker bit on an SEI) travels with the next picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

from nvrstore.media.sps import picture_size, set_id

NAL_CODECS: Final = frozenset({"h264", "hevc"})
PENDING_BYTES_MAX: Final = 1 << 18  # of NAL units that wait for a picture; a camera that sends more of them sends no video

SET_BYTES_MAX: Final = 4096  # of one parameter set that is remembered; real ones have a few dozen bytes

START_CODE: Final = b"\x00\x00\x01"
_find_start_codes: Final = re.compile(START_CODE).finditer
_SEI_RECOVERY_POINT: Final = 6  # payload type, H.264 D.1, H.265 D.2


class _Types(NamedTuple):
    """NAL unit types of one codec (H.264 table 7-1, H.265 table 7-1)."""

    shift: int  # type = first byte >> shift & mask
    mask: int
    header: int  # bytes
    pictures: frozenset[int]  # slices
    keys: frozenset[int]  # slices at which decoding can begin
    sei: int
    delimiter: int
    sets: dict[int, str]


_TYPES: Final = {
    "h264": _Types(0, 31, 1, frozenset(range(1, 6)), frozenset({5}), 6, 9, {7: "sps", 8: "pps"}),
    "hevc": _Types(1, 63, 2, frozenset(range(32)), frozenset(range(16, 24)), 39, 35, {32: "vps", 33: "sps", 34: "pps"}),
}


def split_annexb(data: bytes) -> list[bytes]:
    """The NAL units between start codes, without trailing zeroes."""
    # Most of what an access unit costs is this search: `re` does it in two thirds of the time of `bytes.split`.
    starts = [found.start() for found in _find_start_codes(data)]
    return [nal for start, end in pairwise([*starts, len(data)]) if (nal := data[start + 3 : end].rstrip(b"\x00"))]


def split_lengths(data: bytes, length_bytes: int = 4) -> list[bytes]:
    """The NAL units behind lengths; of one that is cut off, what is there."""
    found, at = [], 0
    while at + length_bytes < len(data):
        size = int.from_bytes(data[at : at + length_bytes], "big")
        at += length_bytes
        if size:
            found.append(data[at : at + size])
        at += size
    return found


def join_lengths(nals: Iterable[bytes]) -> bytes:
    """NAL units behind 4-byte lengths."""
    parts: list[bytes] = []
    for nal in nals:
        parts += (len(nal).to_bytes(4, "big"), nal)
    return b"".join(parts)


def join_annexb(nals: Iterable[bytes]) -> bytes:
    """NAL units behind 4-byte start codes."""
    return b"".join(b"\x00" + START_CODE + nal for nal in nals)


def nal_type(codec: str, nal: bytes) -> int:
    """Type of a NAL unit of `codec` ("h264" or "hevc")."""
    types = _TYPES[codec]
    return nal[0] >> types.shift & types.mask


def rest_of_picture(codec: str, packet: bytes) -> list[bytes]:
    """The slices in an Annex B packet that begins in the middle of a picture; none where it begins with a picture of its own.

    By first_mb_in_slice (H.264 7.4.3: 0, one bit 1, in the first slice) or first_slice_segment_in_pic_flag (H.265 7.4.7.1).
    """
    types = _TYPES[codec]
    slices = [nal for nal in split_annexb(packet) if nal[0] >> types.shift & types.mask in types.pictures]
    begins = not slices or len(slices[0]) <= types.header or slices[0][types.header] & 0x80
    return [] if begins else slices


def is_keyframe(codec: str, nals: Iterable[bytes]) -> bool:
    """Whether decoding can begin here: IDR, CRA, BLA, or a recovery point, which is all that intra refresh has."""
    types = _TYPES[codec]
    recovery = False
    for nal in nals:
        kind = nal[0] >> types.shift & types.mask
        if kind in types.keys:
            return True
        if kind == types.sei and not recovery:
            recovery = has_recovery_point(nal, types.header)
    return recovery


def has_recovery_point(sei: bytes | bytearray, at: int) -> bool:
    """Whether a recovery point is among the messages of an SEI (H.264 7.3.2.3.1)."""
    end = len(sei)
    while at + 2 < end:
        kind = size = 0
        while at < end and sei[at] == 0xFF:
            kind, at = kind + 255, at + 1
        if at >= end:
            break
        kind, at = kind + sei[at], at + 1
        if kind == _SEI_RECOVERY_POINT:
            return True
        while at < end and sei[at] == 0xFF:
            size, at = size + 255, at + 1
        if at >= end:
            break
        at += 1 + size + sei[at]
    return False


@dataclass(frozen=True, slots=True)
class ParameterSets:
    """The parameter sets in force, each kind in the order in which its numbers first came."""

    codec: str
    vps: tuple[bytes, ...] = ()
    sps: tuple[bytes, ...] = ()
    pps: tuple[bytes, ...] = ()

    @classmethod
    def of_extradata(cls, codec: str, extradata: bytes) -> ParameterSets:
        """From `avcC`, `hvcC` or Annex B; what cannot be read gives none: they come in-band."""
        try:
            if extradata[:1] == b"\x01":
                nals = _of_avcc(extradata) if codec == "h264" else _of_hvcc(extradata)
            else:
                nals = split_annexb(extradata)
        except IndexError:
            nals = []
        return cls(codec).updated(nal for nal in nals if nal)

    @property
    def complete(self) -> bool:
        """Whether a decoder could begin with them."""
        return bool(self.sps and self.pps and (self.vps or self.codec == "h264"))

    def all(self) -> tuple[bytes, ...]:
        return (*self.vps, *self.sps, *self.pps)

    def annexb(self) -> bytes:
        """As a codec's extradata in Annex B: what muxers take."""
        return join_annexb(self.all())

    def size(self) -> tuple[int, int] | None:
        """Width and height of the picture, or None where no set says it."""
        return picture_size(self.codec, self.sps[-1]) if self.sps else None

    def updated(self, nals: Iterable[bytes]) -> ParameterSets:
        """With those among `nals` taken over, under their numbers; the same object when there is nothing new."""
        types = _TYPES[self.codec]
        known = {"vps": self.vps, "sps": self.sps, "pps": self.pps}
        changed = False
        for nal in nals:
            kind = types.sets.get(nal[0] >> types.shift & types.mask)
            if kind is None or len(nal) > SET_BYTES_MAX or nal in known[kind]:
                continue
            number = set_id(self.codec, kind, nal)
            kept = (other for other in known[kind] if set_id(self.codec, kind, other) != number)
            known[kind] = (*kept, nal)
            changed = True
        return ParameterSets(self.codec, **known) if changed else self


def _of_avcc(data: bytes) -> list[bytes]:
    """ISO/IEC 14496-15 5.3.3.1."""
    found, at = [], 6
    for mask in (31, 255):
        count = data[at - 1] & mask
        for _ in range(count):
            size = data[at] << 8 | data[at + 1]
            found.append(data[at + 2 : at + 2 + size])
            at += 2 + size
        at += 1
    return found


def _of_hvcc(data: bytes) -> list[bytes]:
    """ISO/IEC 14496-15 8.3.3.1."""
    found, at = [], 23
    for _ in range(data[22]):
        count = data[at + 1] << 8 | data[at + 2]
        at += 3
        for _ in range(count):
            size = data[at] << 8 | data[at + 1]
            found.append(data[at + 2 : at + 2 + size])
            at += 2 + size
    return found


def length_bytes(codec: str, extradata: bytes) -> int:
    """Bytes of the lengths before NAL units, as `avcC` or `hvcC` says; 0 for Annex B."""
    at = 4 if codec == "h264" else 21
    return (extradata[at] & 3) + 1 if extradata[:1] == b"\x01" and len(extradata) > at else 0


def ensure_parameter_sets(nals: Sequence[bytes], sets: ParameterSets) -> Sequence[bytes]:
    """`nals` with each kind of parameter set that they lack put in front, behind an access unit delimiter."""
    types = _TYPES[sets.codec]
    found = [nal[0] >> types.shift & types.mask for nal in nals]
    missing = [nal for kind, name in types.sets.items() if kind not in found for nal in getattr(sets, name)]
    if not missing:
        return nals
    at = 1 if found and found[0] == types.delimiter else 0
    return [*nals[:at], *missing, *nals[at:]]


class AccessUnit(NamedTuple):
    """One picture as it goes into a sample."""

    data: bytes
    keyframe: bool


class AccessUnits:
    """Turns the packets of one H.264 or H.265 stream into access units. Used by one thread.

    `sets` are the parameter sets in force, `size` is what they say of the picture.
    """

    def __init__(self, codec: str, extradata: bytes = b"") -> None:
        self.codec: Final = codec
        self.sets = ParameterSets.of_extradata(codec, extradata)
        self._length_bytes = length_bytes(codec, extradata)
        self._types: Final = _TYPES[codec]
        self.pending: list[bytes] = []  # NAL units that wait for a picture

    def convert(self, packet: bytes) -> AccessUnit | None:
        """The access unit in `packet`, parameter sets in front of a keyframe; None when there is no picture in it."""
        if self._length_bytes:
            nals = split_lengths(packet, self._length_bytes)
        elif packet[:3] == START_CODE or packet[:4] == b"\x00\x00\x00\x01":
            nals = split_annexb(packet)
        else:
            nals = split_lengths(packet)
        return self.take(nals)

    def take(self, nals: list[bytes]) -> AccessUnit | None:
        """The same, of NAL units that are told apart already."""
        if self.pending:
            nals, self.pending = self.pending + nals, []
        types = self._types
        shift, mask = types.shift, types.mask
        kinds = {nal[0] >> shift & mask for nal in nals}
        if not kinds.isdisjoint(types.sets):
            self.sets = self.sets.updated(nals)
            nals = self._without_repeats(nals)
        if kinds.isdisjoint(types.pictures):
            if sum(map(len, nals)) <= PENDING_BYTES_MAX:
                self.pending = nals
            return None
        keyframe = not kinds.isdisjoint(types.keys) or (types.sei in kinds and is_keyframe(self.codec, nals))
        return AccessUnit(join_lengths(ensure_parameter_sets(nals, self.sets) if keyframe else nals), keyframe)

    def _without_repeats(self, nals: list[bytes]) -> list[bytes]:
        types = self._types
        kept: list[bytes] = []
        begun = False
        for nal in nals:
            kind = nal[0] >> types.shift & types.mask
            if begun and kind in types.sets and nal in kept:
                continue
            begun = begun or kind in types.pictures
            kept.append(nal)
        return kept
