"""What closes a volume: the heads of all batches in one place, and the random access boxes that MP4 tools know.

    uuid(index): version, flags, batches, volume id, { offset u64 | bytes u32 | batch header and records, verbatim } x n
    free         so that the whole ends on a multiple of 4096
    mfra         tfra per track (ISO/IEC 14496-12 8.8.10), uuid(end): index offset u64, batches u32, CRC-32C;  mfro

The CRC covers every byte from the index's first to its own place, continued from `seed(volume, index offset)`; `mfro`
behind it can have only one value. So a reader of a closed volume reads the last block, then everything from the index on.

Invariant: a pure function of the volume's header and batches, so every copy of a volume gets the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from nvrstore.checksum import Buffer, crc32c
from nvrstore.errors import DamagedError, FormatError
from nvrstore.journal.batch import parse_batch, read_records
from nvrstore.journal.header import pack_header
from nvrstore.journal.layout import CRC, END_FIXED, END_UUID, INDEX_FIXED, INDEX_LINE, INDEX_UUID, UUID_HEAD, seed
from nvrstore.journal.model import Batch, VolumeHeader
from nvrstore.limits import BLOCK_BYTES
from nvrstore.media.boxes import HEADER, free_box, full_box
from nvrstore.model import FragmentFlag

INDEX_SIGNATURE: Final = b"uuid" + INDEX_UUID  # at byte 4 of an index
_VERSION: Final = 1
_TFRA_LINE: Final = struct.Struct(">QQBBB")  # time, offset of the moof, traf, trun and sample number
_MFRO: Final = struct.Struct(">I4sII")
_END: Final = struct.Struct(UUID_HEAD.format + END_FIXED.format[1:] + "I")  # with its CRC
INDEX_HEAD_BYTES: Final = UUID_HEAD.size + INDEX_FIXED.size
INDEX_TAIL_BYTES: Final = _END.size + _MFRO.size
_KEYFRAME: Final = FragmentFlag.KEYFRAME.value
assert _END.size == 40


@dataclass(frozen=True, slots=True)
class IndexPlace:
    """Where the last block of a file says that its volume's index is. A claim, until `read_index` has checked it."""

    offset: int
    length: int  # to the end of the file
    batches: int


def volume_index(header: VolumeHeader, batches: Sequence[Batch]) -> bytes:
    """The bytes that close a volume, to be written behind the last of `batches`, which are all of them, in order.

    Raises ValueError where they are not, or were not read with their records.
    """
    for number, batch in enumerate(batches):
        before = batches[number - 1]
        if batch.number != number or (number and (batch.offset, batch.previous_crc) != (before.end, before.header_crc)):
            raise ValueError(f"batch {number} is missing")
        if not batch.head:
            raise ValueError(f"batch {number} was read without its records")
    offset = batches[-1].end if batches else len(pack_header(header))
    lines = b"".join(part for batch in batches for part in (INDEX_LINE.pack(batch.offset, len(batch.head)), batch.head))
    size = INDEX_HEAD_BYTES + len(lines)
    fixed = INDEX_FIXED.pack(_VERSION, 0, len(batches), bytes.fromhex(header.volume_id))
    index = UUID_HEAD.pack(size, b"uuid", INDEX_UUID) + fixed + lines
    tfras = _tfras(header, batches)
    mfra = HEADER.size + len(tfras) + INDEX_TAIL_BYTES
    rest = -(size + mfra) % BLOCK_BYTES
    padding = free_box(rest if rest >= 8 else rest + BLOCK_BYTES) if rest else b""
    end = UUID_HEAD.pack(_END.size, b"uuid", END_UUID) + END_FIXED.pack(offset, len(batches))
    front = b"".join((index, padding, HEADER.pack(mfra, b"mfra"), tfras, end))
    return front + CRC.pack(crc32c(front, seed(header.volume_id, offset))) + _MFRO.pack(_MFRO.size, b"mfro", 0, mfra)


def index_place(last_block: Buffer, size: int) -> IndexPlace | None:
    """Where the index of a file of `size` bytes is, as its last block (4096 bytes) says; None where the volume was not closed."""
    if size % BLOCK_BYTES or len(last_block) < INDEX_TAIL_BYTES:
        return None
    box_size, kind, flags, mfra = _MFRO.unpack_from(last_block, len(last_block) - _MFRO.size)
    end_size, end_kind, extended, offset, batches, _ = _END.unpack_from(last_block, len(last_block) - INDEX_TAIL_BYTES)
    if (box_size, kind, flags) != (_MFRO.size, b"mfro", 0) or (end_size, end_kind, extended) != (_END.size, b"uuid", END_UUID):
        return None
    if offset % BLOCK_BYTES or not 0 < offset <= size - mfra:
        return None
    return IndexPlace(offset, size - offset, batches)


def index_length(uuid_bytes: int, behind: Buffer, at: int) -> int | None:
    """Bytes of a whole index whose `uuid` box has `uuid_bytes`; `behind[at:]` holds what follows that box. None where that is no `mfra`."""
    total = uuid_bytes
    for kind in (b"free", b"mfra"):
        if len(behind) < at + HEADER.size:
            return None
        size, found = HEADER.unpack_from(behind, at)
        if found == kind:
            total, at = total + size, at + size
        elif kind == b"mfra":
            return None
    return total


def read_index(buffer: Buffer, offset: int, header: VolumeHeader, *, path: str = "") -> tuple[Batch, ...]:
    """All batches of a closed volume with their records, from the bytes from `offset` (see `index_place`) to its end.

    Raises DamagedError where a checksum does not match, FormatError where there is no index.
    """
    view = memoryview(buffer)
    if len(view) < INDEX_HEAD_BYTES + INDEX_TAIL_BYTES:
        raise FormatError("a volume's index is cut off", path=path, offset=offset)
    crc_at = len(view) - _MFRO.size - CRC.size
    if crc32c(view[:crc_at], seed(header.volume_id, offset)) != CRC.unpack_from(view, crc_at)[0]:
        raise DamagedError("the index of the volume does not match its checksum", path=path, offset=offset)
    size, kind, extended = UUID_HEAD.unpack_from(view)
    version, _, count, volume_id = INDEX_FIXED.unpack_from(view, UUID_HEAD.size)
    if kind != b"uuid" or extended != INDEX_UUID or volume_id.hex() != header.volume_id:
        raise FormatError("this is not the index of this volume", path=path, offset=offset)
    if version != _VERSION:
        raise FormatError(f"an index of version {version}: this program reads version {_VERSION}", path=path, offset=offset)
    batches: list[Batch] = []
    at = INDEX_HEAD_BYTES
    while at < size:
        if size > crc_at or size - at < INDEX_LINE.size:
            raise FormatError("an index has another length than its lines", path=path, offset=offset)
        place, length = INDEX_LINE.unpack_from(view, at)
        at += INDEX_LINE.size
        head = view[at : at + length]
        batches.append(read_records(head, parse_batch(head, place, header, path=path), path=path))
        at += length
    # The pair check: it must be what would be written now, mfra, padding and mfro included.
    if len(batches) != count or volume_index(header, batches) != view:
        raise DamagedError("the index of the volume is not that of its batches", path=path, offset=offset)
    return tuple(batches)


def _tfras(header: VolumeHeader, batches: Sequence[Batch]) -> bytes:
    """One `tfra` per track: every fragment that begins with a sync sample."""
    lines: list[list[bytes]] = [[] for _ in header.tracks]
    for batch in batches:
        for entry in batch.entries:
            if entry.flags.value & _KEYFRAME:
                lines[entry.track_id - 1].append(_TFRA_LINE.pack(entry.tfdt, batch.offset + entry.offset, 1, 1, 1))
    return b"".join(
        full_box(b"tfra", 1, 0, struct.pack(">III", track_id, 0, len(found)), *found) for track_id, found in enumerate(lines, start=1)
    )
