"""What closes a volume."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from tests.support.volumes import Volume, header, scan, small_volume

from nvrstore.errors import FormatError
from nvrstore.journal.index import index_place, read_index, volume_index
from nvrstore.limits import BLOCK_BYTES
from nvrstore.media.boxes import find, walk
from nvrstore.model import FragmentFlag


def test_the_index_lists_every_batch_with_its_records() -> None:
    """A reader of a closed volume needs its header and its tail, and nothing in between."""
    volume = small_volume(5, closed=True)
    place = index_place(volume.data[-BLOCK_BYTES:], len(volume.data))
    assert place is not None
    assert place.offset == volume.batches[-1].end
    assert place.batches == 5
    assert read_index(volume.data[place.offset :], place.offset, volume.builder.header) == tuple(volume.batches)


def test_the_index_is_a_function_of_header_and_batches() -> None:
    """Every copy of a volume is closed with the same bytes, by whoever closes it: from memory or after a scan."""
    volume = small_volume(4)
    found = scan(volume.data)
    assert found.header is not None
    assert volume_index(found.header, found.batches) == volume.close()


def test_a_closed_volume_ends_with_mfro_on_a_whole_block() -> None:
    """MP4 tools look for `mfro` in the last bytes of a file (ISO/IEC 14496-12 8.8.11)."""
    for batches in range(1, 12):
        data = bytes(small_volume(batches, closed=True).data)
        assert len(data) % BLOCK_BYTES == 0
        mfra = list(walk(data))[-1]
        assert mfra.type == b"mfra"
        assert struct.unpack(">I4sII", data[-16:]) == (16, b"mfro", 0, mfra.end - mfra.start)


def test_random_access_entries_lead_to_their_fragments() -> None:
    """Each `tfra` names the `moof` of every fragment that begins with a keyframe, and its time."""
    volume = small_volume(4, closed=True)
    data = bytes(volume.data)
    mfra = find(data, "mfra")
    found = []
    for box in walk(data, mfra.body, mfra.end):
        if box.type != b"tfra":
            continue
        version, track, sizes, count = struct.unpack_from(">IIII", data, box.body)
        assert (version, sizes) == (1 << 24, 0)
        for n in range(count):
            time, moof, *numbers = struct.unpack_from(">QQBBB", data, box.body + 16 + 19 * n)
            assert data[moof + 4 : moof + 8] == b"moof"
            assert struct.unpack_from(">I", data, moof + 44) == (track,)
            assert struct.unpack_from(">Q", data, moof + 60) == (time,)
            assert numbers == [1, 1, 1]
            found.append((track, moof))
    wanted = {(e.track_id, b.offset + e.offset) for b in volume.batches for e in b.entries if e.flags & FragmentFlag.KEYFRAME}
    assert set(found) == wanted
    assert len(found) == len(wanted) == 10


def test_every_flipped_bit_of_an_index_is_noticed() -> None:
    """Lines, padding, tfra, mfro: each byte is under the checksum, or can have one value only."""
    volume = small_volume(2)
    start = len(volume.data)
    good = volume.close()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << (position * 3) % 8
        try:
            read_index(bad, start, volume.builder.header)
        except FormatError:
            continue
        pytest.fail(f"nobody noticed byte {position}")


def test_the_index_of_another_volume_or_place_never_passes() -> None:
    """A recycled file's old index is no index."""
    volume = small_volume(2)
    start = len(volume.data)
    index = volume.close()
    with pytest.raises(FormatError):
        read_index(index, start + BLOCK_BYTES, volume.builder.header)
    with pytest.raises(FormatError):
        read_index(index, start, header(volume_id="01" * 16))


@pytest.mark.parametrize("kept", [0, 10, 60, 100])
def test_an_index_that_was_cut_off_is_refused(kept: int) -> None:
    """Never half of the batches."""
    volume = small_volume(2)
    start = len(volume.data)
    with pytest.raises(FormatError):
        read_index(volume.close()[:kept], start, volume.builder.header)


def test_an_open_volume_has_no_place_of_an_index() -> None:
    """Zeroes, footage, a file of another length: no claim of an index is seen in them."""
    volume = small_volume(2)
    assert index_place(volume.data[-BLOCK_BYTES:], len(volume.data)) is None
    assert index_place(bytes(BLOCK_BYTES), 10 * BLOCK_BYTES) is None
    volume.close()
    assert index_place(volume.data[-BLOCK_BYTES:], len(volume.data) + 1) is None
    assert index_place(b"", 0) is None


def test_an_index_needs_every_batch() -> None:
    """What is missing is mended first; a volume is never closed over a hole."""
    volume = small_volume(3)
    head, batches = volume.builder.header, volume.batches
    for wrong in (
        batches[1:],
        [batches[0], batches[2]],
        [*batches[:2], replace(batches[2], head=b"")],
        [replace(b, previous_crc=1) for b in batches],
    ):
        with pytest.raises(ValueError, match="batch"):
            volume_index(head, wrong)


def test_a_volume_without_batches_is_closed_too() -> None:
    """A set that changed twice within a tick leaves a header and nothing behind it."""
    volume = Volume.begin()
    volume.close()
    found = scan(volume.data, deep=True)
    assert found.closed
    assert found.batches == ()
    assert found.damage == ()
