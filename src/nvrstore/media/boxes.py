"""ISO base media file format boxes: packing and walking (ISO/IEC 14496-12 4.2).

    +----------+----------+  size: u32, box header included; 1: a u64 size follows the type; 0: to the end of the file
    | size u32 | type 4s  |  type `uuid`: 16 bytes of extended type follow
    +----------+----------+

Knows no box by name but `uuid`; what is inside belongs to the modules that use it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from nvrstore.checksum import Buffer
from nvrstore.errors import FormatError

HEADER: Final = struct.Struct(">I4s")
CONTAINERS: Final = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"mvex", b"moof", b"traf", b"dinf", b"edts", b"udta", b"mfra"})


class Box(NamedTuple):
    """A box found in a buffer: `start` is where its header begins, `body` where its content begins, `end` one past it."""

    type: bytes
    start: int
    body: int
    end: int


def box(kind: bytes, *parts: Buffer) -> bytes:
    """A box of `kind` around `parts`."""
    size = 8 + sum(len(part) for part in parts)
    return b"".join((HEADER.pack(size, kind), *parts))


def full_box(kind: bytes, version: int, flags: int, *parts: Buffer) -> bytes:
    """A full box (ISO/IEC 14496-12 4.2.2): version and flags before the content."""
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def uuid_box(extended: bytes, *parts: Buffer) -> bytes:
    """A `uuid` box with its 16-byte extended type."""
    if len(extended) != 16:
        raise ValueError("an extended type has 16 bytes")
    return box(b"uuid", extended, *parts)


def free_box(size: int) -> bytes:
    """A `free` box of exactly `size` bytes (at least 8), filled with zeroes."""
    if size < 8:
        raise ValueError("a box has at least 8 bytes")
    return HEADER.pack(size, b"free") + bytes(size - 8)


def walk(data: Buffer, start: int = 0, end: int | None = None) -> Iterator[Box]:
    """The boxes that lie side by side in `data[start:end]`. Raises `FormatError` at one that does not fit."""
    limit = len(data) if end is None else end
    at = start
    while at < limit:
        if limit - at < 8:
            raise FormatError("a box header is cut off", offset=at)
        size, kind = HEADER.unpack_from(data, at)
        body = at + 8
        if size == 1:
            if limit - at < 16:
                raise FormatError("a box header is cut off", offset=at)
            (size,) = struct.unpack_from(">Q", data, body)
            body += 8
        elif size == 0:
            size = limit - at
        if size < body - at or at + size > limit:
            raise FormatError(f"box {kind!r} of {size} bytes does not fit", offset=at)
        yield Box(kind, at, body, at + size)
        at += size


def find(data: Buffer, path: str, start: int = 0, end: int | None = None) -> Box:
    """The first box at a `path` such as `"moov/trak/mdia"`. Raises `FormatError` where there is none."""
    here = Box(b"", start, start, len(data) if end is None else end)
    for name in path.split("/"):
        for candidate in walk(data, here.body, here.end):
            if candidate.type == name.encode("latin-1"):
                here = candidate
                break
        else:
            raise FormatError(f"there is no box {name!r} ({path})", offset=here.start)
    return here
