"""The frozen numbers of the volume format: extended types, structs, seeds, padding. Everything is big endian.

    volume   ftyp moov uuid(VOLUME) free…4096   { batch } x n   [ uuid(INDEX) free mfra(tfra x tracks, uuid(END), mfro) ]
    batch    uuid(BATCH)  [uuid(RECORDS)]  { prft moof mdat } x n  free…4096

    uuid(BATCH): box 8 | BATCH 16 | FIXED 80 | ENTRY 72 x n | CRC-32C u32 of all that, continued from `seed(volume, offset)`

The extended types are UUIDs of version 8 (RFC 9562 5.8), so that a hexdump shows their names. A structure's size is
asserted beside it; what the fields mean is told where they are packed, and in docs/format.md.
"""

from __future__ import annotations

import struct
from typing import Final

from nvrstore.checksum import crc32c
from nvrstore.limits import BLOCK_BYTES
from nvrstore.media.boxes import free_box

FORMAT_VERSION: Final = 1  # of the volume; a reader refuses a greater one

_UUID: Final = bytes.fromhex("6e767273746f80018000")  # "nvrsto", version 8, variant 10
VOLUME_UUID: Final = _UUID + b"volume"
BATCH_UUID: Final = _UUID + b"batch\0"
RECORDS_UUID: Final = _UUID + b"record"
INDEX_UUID: Final = _UUID + b"index\0"
END_UUID: Final = _UUID + b"end\0\0\0"

UUID_HEAD: Final = struct.Struct(">I4s16s")  # box size, "uuid", extended type
CRC: Final = struct.Struct(">I")

# Volume header, behind the box head: version, flags, bytes of JSON, volume id, session, term, number, created_ns,
# origin_ns, set, lane; then the JSON; then the CRC.
VOLUME_FIXED: Final = struct.Struct(">HHI16sQQQqqII")

# Batch header, behind the box head: version, flags, entries, number, last committed (-1: none), built_ns (UTC), bytes of
# the batch, CRC of the previous header, bytes of the records box, its CRC, 32 bytes reserved for SHA-256 (zero).
BATCH_FIXED: Final = struct.Struct(">HHIQqqIIII32s")

# One fragment in the batch's directory: track_ID, offset in the batch, length, samples, utc_ns, tfdt, duration, session,
# index, flags, CRC of moof+mdat, CRC of prft (0: there is none), reserved (zero).
ENTRY: Final = struct.Struct(">IIIIqQQQQIIII")

INDEX_FIXED: Final = struct.Struct(">HHI16s")  # version, flags, batches, volume id
INDEX_LINE: Final = struct.Struct(">QI")  # a batch's offset, bytes of its head that follow: header box and records box, verbatim
END_FIXED: Final = struct.Struct(">QI")  # offset of the index, batches; then the CRC
PRFT: Final = struct.Struct(">I4sIIQQ")  # ISO/IEC 14496-12 8.16.5, version 1

BATCH_HEAD_MIN: Final = UUID_HEAD.size + BATCH_FIXED.size + CRC.size
assert UUID_HEAD.size == 24
assert VOLUME_FIXED.size == 72
assert BATCH_FIXED.size == 80
assert ENTRY.size == 72
assert PRFT.size == 32


def seed(volume_id: str, offset: int) -> int:
    """What the CRC of a structure at `offset` of a volume continues from: the CRC of the volume's id and the offset.

    So a misdirected write, a stale block or a recycled file never passes for footage.
    """
    return crc32c(bytes.fromhex(volume_id) + struct.pack(">Q", offset))


def padded(length: int) -> int:
    """`length` with its padding: up to the next multiple of 4096, one block more where no `free` box fits into the remainder."""
    rest = -length % BLOCK_BYTES
    return length + (rest if rest == 0 or rest >= 8 else rest + BLOCK_BYTES)


def padding(length: int) -> bytes:
    """The `free` box of zeroes that fills `length` up to `padded(length)`; empty where nothing is missing."""
    rest = padded(length) - length
    return free_box(rest) if rest else b""
