"""Ledger records as bytes: the `uuid(records)` box that travels in a batch beside its fragments.

    uuid box, extended type RECORDS
    { kind u16 | reserved u16, zero | length u32 | length bytes of UTF-8 JSON: [id, {...}] } x n

Big endian. A reader skips a kind that it does not know by its length, and never looks inside. The box has no checksum
of its own: the batch header holds it. What the records mean is no matter of this module.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from typing import Final

from nvrstore.checksum import Buffer
from nvrstore.errors import FormatError
from nvrstore.journal.layout import RECORDS_UUID, UUID_HEAD
from nvrstore.limits import RECORD_BYTES_MAX, RECORDS_BYTES_MAX
from nvrstore.media.boxes import uuid_box
from nvrstore.model import Record, RecordKind

_HEAD: Final = struct.Struct(">HHI")
_KNOWN: Final = frozenset(int(kind) for kind in RecordKind)
assert _HEAD.size == 8


def pack_record(record: Record) -> bytes:
    """One record as it stands in the box. Raises ValueError where it is too large, or no JSON (NaN, lone surrogates)."""
    body = json.dumps([record.id, dict(record.body)], ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")
    if not 0 <= record.kind <= 0xFFFF:
        raise ValueError(f"a record's kind is a 16-bit number, not {record.kind}")
    if _HEAD.size + len(body) > RECORD_BYTES_MAX:
        raise ValueError(f"a record of {len(body)} bytes is larger than {RECORD_BYTES_MAX - _HEAD.size}")
    return _HEAD.pack(record.kind, 0, len(body)) + body


def pack_records(records: Iterable[Record]) -> bytes:
    """The whole box; empty where there are no records. Raises ValueError where they exceed RECORDS_BYTES_MAX together."""
    packed = [pack_record(record) for record in records]
    if not packed:
        return b""
    box = uuid_box(RECORDS_UUID, *packed)
    if len(box) > RECORDS_BYTES_MAX:
        raise ValueError(f"records of {len(box)} bytes do not fit into one batch ({RECORDS_BYTES_MAX})")
    return box


def parse_records(box: Buffer, *, path: str = "", offset: int = 0) -> tuple[Record, ...]:
    """The records of known kinds in a whole box, in order. `offset` is the box's place in the file, for errors.

    Raises FormatError where the box is not what the format says; check its CRC first to tell damage from a foreign writer.
    """
    view = memoryview(box)
    if len(view) < UUID_HEAD.size:
        raise FormatError("a records box is cut off", path=path, offset=offset)
    size, kind, extended = UUID_HEAD.unpack_from(view)
    if size != len(view) or kind != b"uuid" or extended != RECORDS_UUID or size > RECORDS_BYTES_MAX:
        raise FormatError("this is not a records box", path=path, offset=offset)
    records: list[Record] = []
    at = UUID_HEAD.size
    while at < size:
        if size - at < _HEAD.size:
            raise FormatError("a record is cut off", path=path, offset=offset + at)
        number, _, length = _HEAD.unpack_from(view, at)
        body = at + _HEAD.size
        if length > size - body:
            raise FormatError(f"a record of {length} bytes does not fit", path=path, offset=offset + at)
        if number in _KNOWN:
            records.append(_record(number, view[body : body + length], path, offset + at))
        at = body + length
    return tuple(records)


def _record(kind: int, body: memoryview, path: str, offset: int) -> Record:
    try:
        value = json.loads(bytes(body).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"a record is not JSON: {error}", path=path, offset=offset) from error
    match value:
        case [str(name), dict(fields)]:
            return Record(kind, name, fields)
        case _:
            raise FormatError("a record is not [id, {...}]", path=path, offset=offset)
