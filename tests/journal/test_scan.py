"""The scan: what of a volume is there, what is torn, what is damaged."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.volumes import GATE, Volume, drive, fragment, header, scan, small_volume

from nvrstore.journal.header import pack_header
from nvrstore.journal.index import volume_index
from nvrstore.journal.model import DamageKind
from nvrstore.journal.scan import Read, ScanResult, scan_volume
from nvrstore.model import Record, RecordKind

STEP = 1 if os.environ.get("NVRSTORE_PROVE") == "1" else 11  # of the bytes that are flipped one by one


def kinds(found: ScanResult) -> list[DamageKind]:
    return [damage.kind for damage in found.damage]


def assert_whole(found: ScanResult, volume: Volume, *, closed: bool) -> None:
    assert found.batches == tuple(volume.batches)
    assert (found.closed, found.torn, found.damage, found.unreadable, found.problem) == (closed, False, (), (), "")


# --- what is as it should be -----------------------------------------------------------------------------------


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("batches", [0, 1, 2, 7])
def test_an_open_volume_is_read_from_header_to_header(batches: int, deep: bool) -> None:
    """Nothing is torn, nothing damaged, and the end is where the next batch would go."""
    volume = small_volume(batches)
    found = scan(volume.data, deep=deep)
    assert_whole(found, volume, closed=False)
    assert found.valid_length == found.whole_length == len(volume.data) == volume.builder.offset
    assert found.last_committed == batches - 2 if batches else -1


@pytest.mark.parametrize("deep", [False, True])
def test_a_closed_volume_is_read_from_its_index(deep: bool) -> None:
    """The same batches, records included."""
    volume = small_volume(5, closed=True)
    found = scan(volume.data, deep=deep)
    assert_whole(found, volume, closed=True)
    assert found.valid_length == found.size == len(volume.data)
    assert found.last_committed == 4


def test_a_closed_volume_costs_its_header_and_its_tail() -> None:
    """Opening an archive of thousands of volumes must not read them."""
    volume = Volume.begin()
    for n in range(10):
        volume.add([fragment(GATE, at_s=60 + n, index=5 * n, sizes=50_000)])
    volume.close()
    total = 0

    def counted() -> ScanResult:
        nonlocal total
        steps = scan_volume(len(volume.data))
        wish: Read | None = next(steps)
        try:
            while wish is not None:
                total += wish.length
                wish = steps.send(bytes(volume.data[wish.offset : wish.offset + wish.length]))
        except StopIteration as done:
            result: ScanResult = done.value
            return result
        raise AssertionError

    assert counted().closed
    assert total < len(volume.data) / 20


@pytest.mark.parametrize("fresh", [True, False])
def test_reads_past_the_page_cache_where_asked(fresh: bool) -> None:
    """After a failed sync the cache shows bytes that the disk does not have."""
    assert next(scan_volume(8192, fresh=fresh)).fresh is fresh


@pytest.mark.parametrize("zeroes", [1, 512, 4096, 4096 * 300])
def test_a_preallocated_tail_is_no_damage(zeroes: int) -> None:
    """Volumes are preallocated: zeroes behind the last batch are what an open one looks like."""
    volume = small_volume(3)
    found = scan(volume.data + bytes(zeroes))
    assert_whole(found, volume, closed=False)
    assert found.valid_length == len(volume.data) < found.size


def test_a_closed_volume_that_was_not_truncated_yet_is_closed() -> None:
    """The index was written, then the machine died: its tail of zeroes can be cut."""
    volume = small_volume(3, closed=True)
    found = scan(volume.data + bytes(1 << 20))
    assert_whole(found, volume, closed=True)
    assert found.valid_length == len(volume.data) < found.size


def test_a_batch_of_many_fragments_and_records_is_read_whole() -> None:
    """A header larger than one read, records larger than one read."""
    volume = Volume.begin()
    for n in range(2):
        many = [fragment(GATE, at_s=60 + n, index=1000 * n + i, samples=1, sizes=1) for i in range(1000)]
        volume.add(many, [Record(RecordKind.MARK, f"{n}.{i}", {"data": "x" * 60_000}) for i in range(20)])
    assert_whole(scan(volume.data), volume, closed=False)
    volume.close()
    assert_whole(scan(volume.data, deep=True), volume, closed=True)


# --- torn tails ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", [0, 8192])
def test_every_cut_is_torn_and_never_damage(tail: int) -> None:
    """A power cut is told from bit rot: whatever the length that was written, cut there, nothing is accused."""
    volume = small_volume(2)
    last = volume.batches[-1]
    for kept in range(last.offset, last.end):
        data = volume.data[:kept] + bytes(tail)
        if data[: last.end] == volume.data:
            continue  # only zeroes of its padding were cut, and zeroes came behind them
        found = scan(data)
        assert found.damage == (), kept
        assert found.valid_length == last.offset, kept
        assert found.batches == tuple(volume.batches[:1]), kept
        assert found.torn == any(volume.data[last.offset : kept]), kept


@pytest.mark.parametrize("seed", range(40))
def test_a_write_of_which_only_some_sectors_arrived_is_torn(seed: int) -> None:
    """A batch write is not atomic, and sectors arrive in any order: what was never acknowledged is cut as a whole."""
    chance = random.Random(seed)
    volume = small_volume(2)
    last = volume.add([fragment(GATE, at_s=70, index=10, sizes=9000)], last_committed=0)
    data = bytearray(volume.data)
    lost = [at for at in range(last.offset, last.end, 512) if chance.random() < 0.3] or [last.offset]
    for at in lost:
        data[at : at + 512] = bytes(512)
    if data == volume.data:
        return
    found = scan(data)
    assert found.damage == ()
    assert found.torn
    assert found.valid_length == last.offset
    assert found.batches == tuple(volume.batches[:2])


def test_what_another_file_left_behind_never_passes_for_footage() -> None:
    """Some file systems hand out old blocks: batches of another volume at the very same place, and an old index, are foreign."""
    mine = small_volume(2)
    other = Volume.begin(header(volume_id="ee" * 16))
    for n in range(4):
        other.add([fragment(GATE, at_s=60 + n, index=5 * n)])
    other.data += volume_index(other.builder.header, other.batches)
    stale = mine.data + other.data[len(mine.data) :]
    assert len(stale) > len(mine.data)
    found = scan(stale, deep=True)
    assert found.batches == tuple(mine.batches)
    assert (found.valid_length, found.torn, found.closed, found.damage) == (len(mine.data), True, False, ())


def test_a_half_written_index_is_torn() -> None:
    """The machine died while it closed the volume: the index is cut, and can be written again."""
    volume = small_volume(3)
    end = len(volume.data)
    index = volume.close()
    for kept in range(1, len(index), 97):
        found = scan(volume.data[: end + kept])
        assert (found.valid_length, found.closed, found.damage) == (end, False, ())
        assert found.torn == (kept >= 4)
        assert found.batches == tuple(volume.batches)


# --- anything at all -------------------------------------------------------------------------------------------


@given(
    closed=st.booleans(),
    breaks=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 9000), st.sampled_from(["zero", "flip", "stale"])), min_size=1, max_size=3),
    cut=st.none() | st.floats(0, 1),
)
@settings(deadline=None, max_examples=150)
def test_whatever_happens_to_a_volume_no_false_batch_comes_out_of_it(
    closed: bool, breaks: list[tuple[float, int, str]], cut: float | None
) -> None:
    """Zeroed, flipped, overwritten, truncated: only what was written is reported, and a change is never passed over in silence."""
    volume = small_volume(4, closed=closed)
    data = bytearray(volume.data)
    for place, length, how in breaks:
        at = int(place * (len(data) - 1))
        end = min(at + length, len(data))
        match how:
            case "zero":
                data[at:end] = bytes(end - at)
            case "flip":
                data[at] ^= 1 << length % 8
            case _:
                data[at:end] = volume.data[: end - at]
    if cut is not None:
        del data[int(cut * len(data)) :]
    found = scan(data, deep=True, header=volume.builder.header)
    wanted = {batch.number: batch for batch in volume.batches}
    for batch in found.batches:
        assert batch.header_crc == wanted[batch.number].header_crc
        assert batch.entries == wanted[batch.number].entries
        assert batch.records in ((), wanted[batch.number].records)
    assert [b.number for b in found.batches] == sorted({b.number for b in found.batches})
    if data[: len(volume.data)] != volume.data[: len(data)] and not found.torn:
        lost = volume.data[found.valid_length : len(data)] if found.valid_length < len(data) else b""
        assert found.damage or any(lost)
    for batch in volume.batches:  # what is whole, and lies in front of something good, is found
        if data[batch.offset : batch.end] == volume.data[batch.offset : batch.end] and batch.end <= found.whole_length:
            assert batch in found.batches


@given(st.binary(max_size=20_000))
@settings(deadline=None, max_examples=50)
def test_garbage_behind_a_header_is_torn(data: bytes) -> None:
    """Any bytes at all: an answer, and no batch."""
    head = pack_header(header())
    found = drive(scan_volume(len(head) + len(data), deep=True), head + data)
    assert found.batches == ()
    assert found.torn == any(data)
    assert found.valid_length == len(head)
