"""docs/format.md is enough to write a reader: here is one, and it agrees with the library, on frozen bytes and on broken ones."""

from __future__ import annotations

import hashlib
import random
import re
from pathlib import Path

import pytest
from tests.support import independent
from tests.support.volumes import GATE, Volume, fragment, scan, small_volume

from nvrstore.journal.batch import VolumeBuilder, fragment_of
from nvrstore.journal.header import pack_header
from nvrstore.journal.index import volume_index
from nvrstore.journal.model import Batch, VolumeHeader
from nvrstore.journal.scan import ScanResult
from nvrstore.model import Record, RecordKind

GOLDEN = Path(__file__).parent / "golden" / "volume-1.mp4"
GOLDEN_SHA256 = "a75c6bef199a5863fae371b95c857164b6b5c5570146c5958d9c810ce8ca535e"
PAGE = Path(__file__).parents[2] / "docs" / "format.md"


def summary(batch: Batch) -> tuple[object, ...]:
    lines = [
        (e.track_id, e.offset, e.length, e.samples, e.utc_ns, e.tfdt, e.duration, e.session, e.index, int(e.flags), e.crc, e.prft_crc)
        for e in batch.entries
    ]
    records = [(r.kind, r.id, dict(r.body)) for r in batch.records]
    numbers = (batch.offset, batch.number, batch.last_committed, batch.built_ns, batch.length, batch.previous_crc, batch.header_crc)
    return (*numbers, lines, records)


def independent_summary(batch: dict[str, object]) -> tuple[object, ...]:
    lines = [tuple(one.values()) for one in batch["fragments"]]  # type: ignore[attr-defined]
    numbers = ("offset", "number", "last_committed", "built_ns", "length", "previous_crc", "crc")
    return (*(batch[name] for name in numbers), lines, batch["records"])


def assert_same(mine: independent.Found, theirs: ScanResult) -> None:
    assert [independent_summary(batch) for batch in mine.batches] == [summary(batch) for batch in theirs.batches]
    assert (mine.end, mine.closed) == (theirs.valid_length, theirs.closed)
    assert sorted(mine.damage) == [(d.offset, d.offset + d.length) for d in theirs.damage]


# --- frozen bytes ----------------------------------------------------------------------------------------------


def test_the_golden_volume_is_never_changed() -> None:
    """Version 1 is frozen: this file must be read, as it is, by every version of nvrstore there will be."""
    assert hashlib.sha256(GOLDEN.read_bytes()).hexdigest() == GOLDEN_SHA256


def test_the_golden_volume_is_read_field_by_field() -> None:
    """What stands in it, written down here: neither the reader nor the writer can drift together unnoticed."""
    found = scan(GOLDEN.read_bytes(), deep=True)
    assert found.closed
    assert found.damage == ()
    head = found.header
    assert head is not None
    assert (head.volume_id, head.journal, head.recorder, head.number, head.lane) == (
        "00112233445566778899aabbccddeeff",
        "main",
        "nvr-1",
        42,
        0,
    )
    assert (str(head.epoch), head.session, head.origin_ns) == ("8.3", 0x9F2C41AA_01234567, 1_795_419_850_000_000_000)
    assert [(str(t.track), t.name, t.config.codec, t.config.timescale) for t in head.tracks] == [
        ("gate/video", "Gate, north", "h264", 90_000),
        ("yard/video", "Höf", "h264", 90_000),
        ("yard/audio", "Höf", "pcm_s16le", 8_000),
    ]
    assert [(m.target, m.role.value) for m in head.members] == [("array-a", "primary"), ("node-b", "standby")]
    assert [(b.number, b.offset, b.length, b.last_committed) for b in found.batches] == [
        (0, 4096, 4096, -1),
        (1, 8192, 4096, 0),
        (2, 12288, 4096, 1),
    ]
    entry = found.batches[1].entries[2]
    assert (entry.track_id, entry.samples, entry.index, entry.tfdt, entry.duration) == (3, 5, 5, 60 * 8_000 + 800 + 1_600, 1_600)
    assert found.batches[2].records == (
        Record(RecordKind.GAP, "gap-2", {"stream": "gate", "cause": "camera", "start_ns": 2, "end_ns": None}),
    )


def rebuilt(head: VolumeHeader, batches: tuple[Batch, ...], data: bytes) -> bytes:
    builder = VolumeBuilder(head)
    parts, again = [builder.header_bytes], []
    for batch in batches:
        view = memoryview(data)[batch.offset : batch.end]
        fragments = [fragment_of(entry, view, head) for entry in batch.entries]
        extent = memoryview(bytearray(builder.size(fragments, batch.records)))
        again.append(builder.build(extent, fragments, batch.records, last_committed=batch.last_committed, utc_now_ns=batch.built_ns))
        parts.append(bytes(extent))
    return b"".join((*parts, volume_index(head, again)))


def test_the_golden_volume_is_written_again_byte_for_byte() -> None:
    """The writer of today makes what the writer of version 1 made: header, batches, padding, index."""
    data = GOLDEN.read_bytes()
    found = scan(data)
    assert found.header is not None
    assert pack_header(found.header) == data[: found.header_length]
    assert rebuilt(found.header, found.batches, data) == data


# --- the page --------------------------------------------------------------------------------------------------


def test_the_examples_on_the_page_are_bytes_of_the_golden_volume() -> None:
    """A page that shows other bytes than the files have would be worse than none."""
    data, lines = GOLDEN.read_bytes(), 0
    for place, dump in re.findall(r"^([0-9a-f]{6})  ((?:[0-9a-f]{2} ){1,15}[0-9a-f]{2}) ", PAGE.read_text(), re.MULTILINE):
        shown = bytes.fromhex(dump)
        assert data[int(place, 16) :].startswith(shown)
        lines += 1
    assert lines == 6 + 21 + 4


def test_the_checksum_of_the_page_is_the_checksum() -> None:
    """The usual check value of CRC-32C."""
    assert "0xE3069283" in PAGE.read_text()
    assert independent.crc(b"123456789") == 0xE3069283


@pytest.mark.parametrize("closed", [False, True])
def test_a_reader_written_from_the_page_agrees_with_the_library(closed: bool) -> None:
    """Every field of every batch, fragment and record."""
    volume = small_volume(6, closed=closed)
    volume_of_many = Volume.begin()
    volume_of_many.add(
        [fragment(GATE, index=n, samples=1, sizes=n % 90, at_s=60 + n / 10) for n in range(300)], [Record(200, "from the future", {})]
    )
    for one in (volume, volume_of_many):
        data = bytes(one.data)
        mine = independent.read_volume(data)
        assert_same(mine, scan(data))
        head = one.builder.header
        assert (mine.header["volume_id"], mine.header["origin_ns"], mine.header["term"]) == (
            head.volume_id,
            head.origin_ns,
            head.epoch.term,
        )
        assert [line[:3] for line in mine.header["tracks"]] == [[t.track.stream, t.track.media.value, t.config.codec] for t in head.tracks]
        assert all(not independent.broken(data, batch) for batch in mine.batches)


@pytest.mark.parametrize("seed", range(60))
def test_both_readers_see_the_same_in_a_broken_volume(seed: int) -> None:
    """Cut, zeroed, flipped: the algorithm on the page is the one that recovery uses."""
    chance = random.Random(seed)
    volume = small_volume(5, lag=chance.randrange(1, 4))
    data = bytearray(volume.data)
    start = volume.batches[0].offset
    for _ in range(chance.randrange(1, 3)):
        at = chance.randrange(start, len(data))
        match chance.randrange(3):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at : at + 2000] = bytes(len(data[at : at + 2000]))
            case _:
                data[at:] = bytes(len(data) - at)
    assert_same(independent.read_volume(bytes(data)), scan(data))
