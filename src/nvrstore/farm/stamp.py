"""The stamp: the SEI message that names every access unit that the farm sends.

    H.264: 06          H.265: 4e 01          NAL unit header: SEI, prefix SEI
    05                                       payload type: user_data_unregistered (H.264 D.1.7, H.265 D.2.7)
    len                                      payload size, always `PAYLOAD_BYTES`
    uuid                                     16 bytes, `UUID`
    "00007 0000001234 1795420800000000000 9f2c41aa 0b1d33c7"
       |        |              |              |        '- CRC-32C of the text before it (up to the last space)
       |        |              |              '- CRC-32C of the slice NAL units of this access unit
       |        |              '- UTC in nanoseconds at which it was handed to the socket
       |        '- frame number of the stream, from 0, without holes
       '- stream number
    80                                       rbsp_trailing_bits

Text of constant width, as encoders write theirs: `strings clip.mp4` shows it, and no byte of it ever needs emulation
prevention, so a stamp has always the same size on the wire. Parsing removes emulation prevention all the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from nvrstore.checksum import crc32c
from nvrstore.farm.nal import Codec, unescape

UUID: Final = bytes.fromhex("6e76722d6661726d9d41b8c2e57a1f36")
assert len(UUID) == 16
assert b"\x00" not in UUID, "needs no emulation prevention"
STREAM_MAX: Final = 99_999
NUMBER_MAX: Final = 9_999_999_999
_TEXT: Final = re.compile(rb"((\d{5}) (\d{10}) (\d{19}) ([0-9a-f]{8})) ([0-9a-f]{8})")
_TEXT_BYTES: Final = 5 + 1 + 10 + 1 + 19 + 1 + 8 + 1 + 8
PAYLOAD_BYTES: Final = 16 + _TEXT_BYTES
assert PAYLOAD_BYTES < 255, "one byte of payload size"

_HEADER: Final = {Codec.H264: b"\x06", Codec.H265: b"\x4e\x01"}
_PREFIX: Final = {codec: header + bytes((5, PAYLOAD_BYTES)) + UUID for codec, header in _HEADER.items()}
STAMP_BYTES: Final = {codec: len(prefix) + _TEXT_BYTES + 1 for codec, prefix in _PREFIX.items()}


@dataclass(frozen=True, slots=True)
class FrameStamp:
    """What a stamp says. `crc` is that of the slices as they were sent."""

    stream: int
    number: int
    sent_ns: int  # UTC
    crc: int


def build_stamp(codec: Codec, stream: int, number: int, sent_ns: int, crc: int) -> bytes:
    """The NAL unit of a stamp, `STAMP_BYTES[codec]` long."""
    text = b"%05d %010d %019d %08x" % (stream, number, sent_ns, crc)
    return b"%b%b %08x\x80" % (_PREFIX[codec], text, crc32c(text))


def parse_stamp(nal: bytes) -> tuple[Codec, FrameStamp] | None:
    """The stamp in this NAL unit, and the codec whose header it wears; None where it is no stamp, or a damaged one."""
    for codec, prefix in _PREFIX.items():
        if not nal.startswith(prefix):
            continue
        match = _TEXT.match(unescape(nal), len(prefix))
        if match is None or crc32c(match[1]) != int(match[6], 16):
            return None
        return codec, FrameStamp(int(match[2]), int(match[3]), int(match[4]), int(match[5], 16))
    return None
