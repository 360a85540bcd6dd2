"""NAL units of H.264 and H.265, as far as cutting, naming and checking them needs.

    Annex B           00 00 [00] 01 nal  00 00 [00] 01 nal ...      (Rec. ITU-T H.264 B.1, H.265 B.2)
    length-prefixed   u32 length nal  u32 length nal ...            (ISO/IEC 14496-15, as in `mdat`)

    H.264 header, 1 byte:  F(1) NRI(2) type(5)              H.265 header, 2 bytes:  F(1) type(6) layer(6) tid+1(3)

Knows nothing of what is inside a slice. Shares no code with the recorder's own NAL parser on purpose:
it is what the recorder is checked with.
"""

from __future__ import annotations

import re
import struct
from enum import StrEnum
from typing import Final

from nvrstore.checksum import Buffer, crc32c

_START_CODE: Final = re.compile(rb"\x00\x00\x01")
_EMULATION: Final = re.compile(rb"\x00\x00(?=[\x00-\x03])")
_LENGTH: Final = struct.Struct(">I")


class Codec(StrEnum):
    """Video codecs that the simulated cameras speak, by libav's short names."""

    H264 = "h264"
    H265 = "h265"


# Types (H.264 table 7-1, H.265 table 7-1)
H264_IDR: Final = 5
H264_SEI: Final = 6
H264_SPS: Final = 7
H264_PPS: Final = 8
H264_AUD: Final = 9
H265_VPS: Final = 32
H265_SPS: Final = 33
H265_PPS: Final = 34
H265_AUD: Final = 35
H265_SEI: Final = 39

_SLICES: Final = {Codec.H264: range(1, 6), Codec.H265: range(32)}
_KEYS: Final = {Codec.H264: range(5, 6), Codec.H265: range(16, 24)}
_SETS: Final = {Codec.H264: range(7, 9), Codec.H265: range(32, 35)}


def nal_type(codec: Codec, nal: Buffer) -> int:
    """The type field of the NAL unit header."""
    return nal[0] & 31 if codec is Codec.H264 else nal[0] >> 1 & 63


def is_slice(codec: Codec, nal: Buffer) -> bool:
    """Whether it carries coded picture data (a VCL NAL unit)."""
    return nal_type(codec, nal) in _SLICES[codec]


def is_key_slice(codec: Codec, nal: Buffer) -> bool:
    """Whether it belongs to a picture at which decoding can begin: IDR, or IRAP in H.265."""
    return nal_type(codec, nal) in _KEYS[codec]


def is_parameter_set(codec: Codec, nal: Buffer) -> bool:
    """Whether it is a VPS, SPS or PPS."""
    return nal_type(codec, nal) in _SETS[codec]


def split_annex_b(data: Buffer) -> list[bytes]:
    """The NAL units of an Annex B byte stream, without start codes and trailing zeroes."""
    view = bytes(data)
    marks = [match.end() for match in _START_CODE.finditer(view)]
    ends = [*(mark - 3 for mark in marks[1:]), len(view)][: len(marks)]
    # trailing_zero_8bits and the zero_byte of the next start code belong to no NAL unit, and no NAL unit ends in 00 (H.264 7.4.1)
    nals = (view[start:end].rstrip(b"\x00") for start, end in zip(marks, ends, strict=True))
    return [nal for nal in nals if nal]


def split_length_prefixed(data: Buffer) -> list[bytes] | None:
    """The NAL units of a sample with 4-byte lengths, or None where the lengths do not fit its size exactly.

    Zeroes at a unit's end are left out: no NAL unit ends in 00, but libav's parser of H.265 counts the first byte of the next
    start code to the unit before it, and stores it.
    """
    view = memoryview(data)
    nals = []
    at, end = 0, len(view)
    while end - at > 4:
        (length,) = _LENGTH.unpack_from(view, at)
        at += 4
        if not 0 < length <= end - at:
            return None
        nals.append(bytes(view[at : at + length]).rstrip(b"\x00"))
        at += length
    return [nal for nal in nals if nal] if at == end and nals else None


def split(data: Buffer) -> list[bytes]:
    """The NAL units of an access unit in either form; an empty list where it is neither."""
    nals = split_length_prefixed(data)  # first: lengths of 256 to 511 look like a start code, while start codes hardly ever fit as lengths
    return split_annex_b(data) if nals is None else nals


def escape(payload: bytes) -> bytes:
    """`payload` with emulation prevention bytes (H.264 7.4.1.1): no start code can occur inside."""
    return _EMULATION.sub(b"\x00\x00\x03", payload)


def unescape(nal: bytes) -> bytes:
    """`nal` without its emulation prevention bytes."""
    return nal.replace(b"\x00\x00\x03", b"\x00\x00")


def slices_crc(codec: Codec, nals: list[bytes] | tuple[bytes, ...]) -> int:
    """CRC-32C over the slice NAL units, headers included, one after the other; all other NAL units are left out."""
    crc = 0
    for nal in nals:
        if is_slice(codec, nal):
            crc = crc32c(nal, crc)
    return int(crc)
