"""The scan finds damage wherever it is: flipped bits, vanished batches, what the device does not give."""

from __future__ import annotations

import os

import pytest
from tests.support.volumes import GATE, Volume, fragment, header, scan, small_volume

from nvrstore.journal.header import pack_header
from nvrstore.journal.model import DamageKind
from nvrstore.journal.scan import SEARCH_BYTES, ScanResult
from nvrstore.limits import BLOCK_BYTES
from nvrstore.media.boxes import HEADER

STEP = 1 if os.environ.get("NVRSTORE_PROVE") == "1" else 11  # of the bytes that are flipped one by one


def kinds(found: ScanResult) -> list[DamageKind]:
    return [damage.kind for damage in found.damage]


def assert_whole(found: ScanResult, volume: Volume, *, closed: bool) -> None:
    assert found.batches == tuple(volume.batches)
    assert (found.closed, found.torn, found.damage, found.unreadable, found.problem) == (closed, False, (), (), "")


# --- damage ----------------------------------------------------------------------------------------------------


def test_every_flipped_bit_of_an_open_volume_is_noticed() -> None:
    """Wherever it is: in the last batch, which nobody knows committed, it tears; everywhere else it is damage, never a tail to cut."""
    volume = small_volume(3)
    last = volume.batches[-1]
    for position in range(0, len(volume.data), STEP):
        data = bytearray(volume.data)
        data[position] ^= 1 << position % 8
        found = scan(data, deep=True, header=volume.builder.header)
        if position < last.offset:
            assert found.damage, position
            assert not found.torn, position
            assert found.valid_length == len(data), position
            assert any(d.offset <= position < d.offset + d.length for d in found.damage), position
        else:
            assert found.torn, position
            assert found.valid_length == last.offset, position
            assert found.damage == (), position


def test_every_flipped_bit_of_a_closed_volume_is_noticed() -> None:
    """A closed volume has no tail to cut: every change is damage, with its place."""
    volume = small_volume(3, closed=True)
    for position in range(0, len(volume.data), STEP):
        data = bytearray(volume.data)
        data[position] ^= 1 << position % 8
        found = scan(data, deep=True, header=volume.builder.header)
        assert found.closed, position
        assert not found.torn, position
        assert any(d.offset <= position < d.offset + d.length for d in found.damage), position
        assert [b.number for b in found.batches] == [0, 1, 2], position
        assert found.whole_length <= position


def test_headers_alone_are_trusted_up_to_the_last_committed_batch() -> None:
    """Recovery reads a fraction of a volume; scrub, with `deep`, reads all of it."""
    volume = small_volume(4)
    data = bytearray(volume.data)
    early, late = volume.batches[0], volume.batches[2]
    data[early.offset + early.entries[0].offset + 100] ^= 1
    assert scan(data).damage == ()
    assert kinds(scan(data, deep=True)) == [DamageKind.FRAGMENT]
    data[late.offset + late.entries[0].offset + 100] ^= 1  # batch 3 knows batch 2 committed
    assert scan(data).damage == ()


def test_the_payload_behind_the_last_committed_batch_is_always_checked() -> None:
    """With a commit that lags, several batches are behind it: a bad one before a good one is damage, the last one is torn."""
    volume = small_volume(4, lag=3)
    assert [batch.last_committed for batch in volume.batches] == [-1, -1, -1, 0]
    for number in range(4):
        data = bytearray(volume.data)
        batch = volume.batches[number]
        data[batch.offset + batch.entries[1].offset + 100] ^= 1
        found = scan(data)
        if number == 0:
            assert (found.damage, found.torn) == ((), False)
        elif number == 3:
            assert (found.damage, found.torn, found.valid_length) == ((), True, batch.offset)
        else:
            assert (kinds(found), found.torn, found.valid_length) == ([DamageKind.FRAGMENT], False, len(data))


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("gone", [(0, 1), (1, 2), (1, 3), (0, 3)])
def test_batches_that_vanished_before_a_good_one_are_damage(gone: tuple[int, int], closed: bool) -> None:
    """Zeroed, as a lost write leaves them: the good batch behind proves that they were durable once."""
    volume = small_volume(4, closed=closed)
    data = bytearray(volume.data)
    start, end = volume.batches[gone[0]].offset, volume.batches[gone[1] - 1].end
    data[start:end] = bytes(end - start)
    found = scan(data, deep=True)
    assert not found.torn
    assert found.valid_length == len(data)
    assert found.whole_length == start
    if closed:
        assert found.batches == tuple(volume.batches)
    else:
        assert [(d.kind, d.offset, d.length, d.batch) for d in found.damage] == [(DamageKind.BATCHES, start, end - start, gone[0])]
        assert found.batches == tuple(volume.batches[: gone[0]] + volume.batches[gone[1] :])


def test_an_index_that_was_not_truncated_yet_still_proves_the_batches_before_it() -> None:
    """The last batch's header is damaged, and the file's last block is zero: it is damage, since the volume was closed behind it."""
    volume = small_volume(3, closed=True)
    last = volume.batches[-1]
    data = volume.data + bytes(1 << 16)
    data[last.offset + 50] ^= 1
    found = scan(data)
    assert found.closed
    assert (kinds(found), found.torn, found.valid_length) == ([DamageKind.BATCH_HEADER], False, len(volume.data))


def test_what_the_caller_knows_committed_is_never_a_tail_to_cut() -> None:
    """A peer, or the catalog, has seen batch 2 committed: its loss here is damage."""
    volume = small_volume(3)
    last = volume.batches[-1]
    torn = bytearray(volume.data)
    torn[last.offset + last.entries[1].offset + 100] ^= 1
    assert scan(torn).torn
    found = scan(torn, committed=2)
    assert (found.torn, found.valid_length, len(found.damage)) == (False, len(torn), 0)  # trusted; deep names it
    assert kinds(scan(torn, committed=2, deep=True)) == [DamageKind.FRAGMENT]

    for rest in (bytes(last.length), b"", b"x" * last.length):
        found = scan(volume.data[: last.offset] + rest, committed=2, known_end=last.end)
        assert [(d.kind, d.offset, d.length, d.batch) for d in found.damage] == [(DamageKind.BATCHES, last.offset, last.length, 2)]
        assert not found.torn


def test_a_volume_shorter_than_its_committed_batches_is_damaged() -> None:
    """Truncated by accident in the middle of what was committed."""
    volume = small_volume(3)
    last = volume.batches[-1]
    found = scan(volume.data[: last.offset + 2048], committed=2, deep=True)
    assert DamageKind.PADDING in kinds(found) or DamageKind.FRAGMENT in kinds(found)
    assert not found.torn
    assert found.valid_length == last.end > found.size >= found.whole_length


def test_the_search_ends_where_no_batch_can_be() -> None:
    """Behind a bad batch only what the pipeline can have written is searched, unless a peer has more, or everything is wanted."""
    volume = small_volume(1)
    start = len(volume.data)
    far = start + SEARCH_BYTES + BLOCK_BYTES
    volume.builder.offset = far
    volume.data += bytes(far - start)
    volume.add([fragment(GATE, at_s=61, index=5)])
    assert scan(volume.data).batches == tuple(volume.batches[:1])
    assert scan(volume.data, known_end=len(volume.data)).batches == tuple(volume.batches)
    found = scan(volume.data, deep=True)
    assert found.batches == tuple(volume.batches)
    assert [(d.kind, d.offset, d.length) for d in found.damage] == [(DamageKind.BATCHES, start, far - start)]


def test_a_whole_header_that_its_successor_was_not_built_on_breaks_the_chain() -> None:
    """Two batches of one number, each good by itself: the chain tells which one the volume goes on from."""
    volume, other = small_volume(3), Volume.begin()
    other.add([fragment(GATE, at_s=60, index=7)])
    swapped = volume.batches[0]
    assert other.batches[0].length == swapped.length
    data = bytearray(volume.data)
    data[swapped.offset : swapped.end] = other.data[swapped.offset :]
    found = scan(data)
    assert [(d.kind, d.batch) for d in found.damage] == [(DamageKind.CHAIN, 0)]


def test_a_batch_that_is_older_than_the_one_in_front_of_it_is_not_taken() -> None:
    """Of this volume, at this place, its checksum right: still no writer of one volume can have written it there."""
    volume, other = small_volume(2), Volume.begin()
    other.builder.offset = len(volume.data)
    extent = bytearray(other.builder.size([fragment(GATE)]))
    other.builder.build(memoryview(extent), [fragment(GATE)], (), last_committed=-1, utc_now_ns=0)
    found = scan(volume.data + extent)
    assert found.batches == tuple(volume.batches)
    assert (found.torn, found.valid_length) == (True, len(volume.data))


def test_a_closed_volume_under_another_header_breaks_the_chain() -> None:
    """A whole header of the same volume id, but not the one that the first batch was built on."""
    volume = small_volume(2, closed=True)
    foreign = pack_header(header(recorder="nvr-2"))
    data = foreign + volume.data[len(foreign) :]
    found = scan(data)
    assert [(d.kind, d.offset, d.length) for d in found.damage] == [(DamageKind.CHAIN, 0, len(foreign))]


def test_a_damaged_volume_header_is_read_with_a_peers() -> None:
    """Nothing can be checked without the volume's id; any other copy has it."""
    volume = small_volume(3)
    data = bytearray(volume.data)
    data[100] ^= 1
    blind = scan(data)
    assert blind.header is None
    assert blind.batches == ()
    assert blind.problem
    found = scan(data, header=volume.builder.header)
    assert found.batches == tuple(volume.batches)
    assert [(d.kind, d.offset, d.length) for d in found.damage] == [(DamageKind.VOLUME_HEADER, 0, len(pack_header(volume.builder.header)))]
    assert found.problem


@pytest.mark.parametrize("size", [0, 1, 100, 4095, 8192])
def test_what_is_no_volume_has_no_header(size: int) -> None:
    """Empty files, zeroes: a sentence, no crash."""
    found = scan(bytes(size))
    assert found.header is None
    assert found.problem
    assert found.valid_length == 0


def test_a_volume_of_another_header_is_not_the_peers() -> None:
    """A copy with a good header of its own is read with it, whatever the caller thinks."""
    volume = small_volume(2)
    found = scan(volume.data, header=header(volume_id="01" * 16))
    assert found.header is not None
    assert found.header.volume_id == volume.builder.header.volume_id
    assert found.batches == tuple(volume.batches)


def test_an_erased_fragment_is_reported_as_erased_and_costs_nothing_else() -> None:
    """Headers, chain and index stand; the rest of the batch is read."""
    volume = small_volume(3, closed=True)
    batch = volume.batches[1]
    entry = batch.entries[1]
    data = bytearray(volume.data)
    at = batch.offset + entry.offset
    data[at : at + entry.length] = HEADER.pack(entry.length, b"free") + bytes(entry.length - 8)
    found = scan(data, deep=True)
    assert [(d.kind, d.offset, d.length) for d in found.damage] == [(DamageKind.ERASED, at, entry.length)]
    assert found.whole_length == len(data)


# --- what the device does not give -----------------------------------------------------------------------------


def test_a_place_that_cannot_be_read_is_named_and_the_rest_is_read() -> None:
    """A latent sector error in committed footage: known as unreadable, everything else is there."""
    volume = Volume.begin()
    for n in range(4):
        volume.add([fragment(GATE, at_s=60 + n, index=5 * n, sizes=100_000)])
    bad = volume.batches[1].offset + 200_000
    found = scan(volume.data, deep=True, unreadable=[range(bad, bad + 512)])
    assert found.batches == tuple(volume.batches)
    assert kinds(found) == [DamageKind.FRAGMENT]
    ((at, length),) = found.unreadable
    assert at <= bad < at + length <= at + 64 * 1024
    assert not found.torn


def test_an_unreadable_header_is_damage() -> None:
    """The batch behind it proves that it was there."""
    volume = small_volume(3)
    batch = volume.batches[1]
    far = Volume.begin()
    for n in range(3):
        far.add([fragment(GATE, at_s=60 + n, index=5 * n, sizes=50_000)])
    batch = far.batches[1]
    found = scan(far.data, unreadable=[range(batch.offset, batch.offset + 1)])
    assert found.unreadable
    assert not found.torn
    assert found.valid_length == len(far.data)
