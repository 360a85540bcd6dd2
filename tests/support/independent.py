"""A reader of volumes that shares no code with nvrstore: written from docs/format.md, with struct, json and crcmod alone.

Where it and the library disagree, the page is wrong or the library is.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any

import crcmod.predefined

BLOCK = 4096
OURS = bytes.fromhex("6e767273746f80018000")
crc = crcmod.predefined.mkPredefinedCrcFun("crc-32c")


class Bad(Exception):
    """The bytes are not what the page says."""


@dataclass
class Found:
    """What was read: the header's fields, good batches as dictionaries, and where the volume ends."""

    header: dict[str, Any]
    batches: list[dict[str, Any]] = field(default_factory=list)
    damage: list[tuple[int, int]] = field(default_factory=list)  # start, end
    end: int = 0
    closed: bool = False


def number(data: bytes, at: int, form: str) -> int:
    if at < 0 or at + struct.calcsize(form) > len(data):
        raise Bad("cut off")
    value: int = struct.unpack_from(">" + form, data, at)[0]
    return value


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise Bad(what)


def ours(data: bytes, at: int, name: bytes) -> int:
    """The end of our box `name` at `at`."""
    size = number(data, at, "I")
    expect(data[at + 4 : at + 24] == b"uuid" + OURS + name.ljust(6, b"\0"), f"no {name!r} box")
    expect(at + size <= len(data), "cut off")
    return at + size


def after_padding(data: bytes, at: int) -> int:
    """Behind the padding that begins at `at`."""
    rest = -at % BLOCK
    if rest == 0:
        return at
    rest += BLOCK if rest < 8 else 0
    expect(data[at : at + rest] == struct.pack(">I4s", rest, b"free") + bytes(rest - 8), "padding")
    return at + rest


def seeded(header: dict[str, Any], offset: int, data: bytes) -> int:
    value: int = crc(bytes.fromhex(header["volume_id"]) + struct.pack(">Q", offset) + data)
    return value


def read_header(data: bytes) -> tuple[dict[str, Any], int]:
    at = 0
    for kind in (b"ftyp", b"moov"):
        expect(data[at + 4 : at + 8] == kind, "no volume")
        at += number(data, at, "I")
    end = ours(data, at, b"volume")
    expect(crc(data[: end - 4]) == number(data, end - 4, "I"), "header's checksum")
    expect(number(data, at + 24, "H") == 1, "version")
    j = number(data, at + 28, "I")
    header = json.loads(data[at + 96 : at + 96 + j])
    expect(at + 96 + j + 4 == end, "length of the JSON")
    header["volume_id"] = data[at + 32 : at + 48].hex()
    for name, place, form in (
        ("session", 48, "Q"),
        ("term", 56, "Q"),
        ("number", 64, "Q"),
        ("created_ns", 72, "q"),
        ("origin_ns", 80, "q"),
        ("set", 88, "I"),
        ("lane", 92, "I"),
    ):
        header[name] = number(data, at + place, form)
    header["crc"] = number(data, end - 4, "I")
    return header, after_padding(data, end)


def read_batch_header(data: bytes, header: dict[str, Any], offset: int) -> dict[str, Any]:
    """The batch header with which `data` begins, and which lies at `offset` of the file; with its records."""
    end = ours(data, 0, b"batch")
    expect(seeded(header, offset, data[: end - 4]) == number(data, end - 4, "I"), "batch header's checksum")
    expect(number(data, 24, "H") == 1, "version")
    n, r = number(data, 28, "I"), number(data, 64, "I")
    expect(end == 104 + 72 * n + 4, "length of the directory")
    batch: dict[str, Any] = {
        "offset": offset,
        "number": number(data, 32, "Q"),
        "last_committed": number(data, 40, "q"),
        "built_ns": number(data, 48, "q"),
        "length": number(data, 56, "I"),
        "previous_crc": number(data, 60, "I"),
        "crc": number(data, end - 4, "I"),
        "head": end + r,
        "fragments": [],
        "records": [],
    }
    for line in range(104, 104 + 72 * n, 72):
        fields = zip(
            ("track", "offset", "length", "samples", "utc_ns", "tfdt", "duration", "session", "index", "flags", "crc", "prft_crc"),
            struct.unpack_from(">IIIIqQQQQIII", data, line),
            strict=True,
        )
        batch["fragments"].append(dict(fields))
    records = data[end : end + r]
    expect(crc(records) == number(data, 68, "I"), "records' checksum")
    if r:
        at = 24
        expect(ours(records, 0, b"record") == r, "records box")
        while at < r:
            kind, length = number(records, at, "H"), number(records, at + 4, "I")
            if kind <= 8:
                batch["records"].append((kind, *json.loads(records[at + 8 : at + 8 + length])))
            at += 8 + length
    return batch


def broken(data: bytes, batch: dict[str, Any]) -> list[tuple[int, int]]:
    """What is not as it was written behind the header of a batch."""
    start, found = batch["offset"], []
    at = start + batch["head"]
    for one in batch["fragments"]:
        moof = start + one["offset"]
        expect(moof - at in (0, 32), "a hole")
        if moof > at and crc(data[at:moof]) != one["prft_crc"]:
            found.append((at, moof))
        at = moof + one["length"]
        if crc(data[moof:at]) != one["crc"]:
            found.append((moof, at))
    try:
        expect(after_padding(data, at) == start + batch["length"], "length")
    except Bad:
        found.append((at, start + batch["length"]))
    return found


def read_index(data: bytes, header: dict[str, Any]) -> tuple[int, list[dict[str, Any]]]:
    """Section 4: the place of the index, and all batches from it."""
    size = len(data)
    end = size - 56
    expect(end > 0 and ours(data, end, b"end") == size - 16, "no end of an index")
    expect(data[size - 16 : size - 4] == struct.pack(">I4sI", 16, b"mfro", 0), "mfro")
    place = number(data, end + 24, "Q")
    expect(place < size, "place")
    expect(seeded(header, place, data[place : size - 20]) == number(data, size - 20, "I"), "index's checksum")
    stop = ours(data, place, b"index")
    expect(data[place + 32 : place + 48].hex() == header["volume_id"], "another volume's")
    batches, at = [], place + 48
    while at < stop:
        offset, length = number(data, at, "Q"), number(data, at + 8, "I")
        batches.append(read_batch_header(data[at + 12 : at + 12 + length], header, offset))
        at += 12 + length
    expect(len(batches) == number(data, place + 28, "I") == number(data, end + 32, "I"), "number of batches")
    mfra = number(data, size - 4, "I")
    expect(data[size - mfra + 4 : size - mfra + 8] == b"mfra", "mfra")
    return place, batches


def read_volume(data: bytes) -> Found:
    """Section 5, step by step."""
    header, at = read_header(data)  # 1
    found = Found(header)
    try:  # 2
        _, found.batches = read_index(data, header)
        found.closed, found.end = True, len(data)
        return found
    except Bad:
        pass
    hole: int | None = None
    end = at
    while at < len(data):  # 3 and 4
        try:
            batch = read_batch_header(data[at:], header, at)
            expect(batch["number"] >= (found.batches[-1]["number"] + 1 if found.batches else 0), "older")
        except Bad:
            hole = at if hole is None else hole
            at += BLOCK
            continue
        if hole is not None:
            found.damage.append((hole, at))
            hole = None
        found.batches.append(batch)
        end = at = at + batch["length"]
    found.end = end
    known = max((batch["last_committed"] for batch in found.batches), default=-1)  # 5
    for batch in list(found.batches):
        if batch["number"] > known and (bad := broken(data, batch)):
            if batch is found.batches[-1]:
                found.end = batch["offset"]
                found.batches.pop()
            else:
                found.damage += bad
    return found
