"""Batches: built once, byte for byte as the format says, and every change of them noticed."""

from __future__ import annotations

import itertools
import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.volumes import AUDIO, GATE, ORIGIN_NS, SESSION, SOUND, VIDEO, YARD, Volume, fragment, header, small_volume

from nvrstore.checksum import crc32c_reference
from nvrstore.errors import DamagedError, FormatError
from nvrstore.journal.batch import (
    VolumeBuilder,
    batch_size,
    check_payload,
    fragment_of,
    head_length,
    lay_out,
    parse_batch,
    payload_damage,
    positions,
    read_records,
)
from nvrstore.journal.layout import padded, padding
from nvrstore.journal.model import Batch, DamageKind, VolumeTrack
from nvrstore.limits import BLOCK_BYTES
from nvrstore.media.boxes import HEADER, walk
from nvrstore.model import Fragment, FragmentFlag, Media, Record, RecordKind, TrackConfig, TrackKey


def bytes_of(volume: Volume, batch: Batch) -> memoryview:
    return memoryview(volume.data)[batch.offset : batch.end]


def test_a_batch_is_a_run_of_boxes_that_fills_whole_blocks() -> None:
    """Header, records, then prft, moof, mdat per fragment, then free: nothing that a stock player would stumble over."""
    volume = small_volume(1)
    batch = volume.batches[0]
    kinds = [box.type for box in walk(bytes_of(volume, batch))]
    assert kinds == [b"uuid", b"uuid", *[b"prft", b"moof", b"mdat"] * 3, b"free"]
    assert batch.offset % BLOCK_BYTES == batch.length % BLOCK_BYTES == 0


def test_what_was_built_is_what_is_parsed() -> None:
    """The engine's own picture of a batch and a reader's are the same, field by field, in every batch of a volume."""
    volume = small_volume(5)
    for batch in volume.batches:
        data = bytes_of(volume, batch)
        found = parse_batch(data, batch.offset, volume.builder.header)
        assert read_records(data, found) == batch
        check_payload(data, found)


def test_checksums_are_those_of_an_independent_implementation() -> None:
    """CRC-32C over the volume's id, the offset and the header; over moof and mdat; over prft: by crcmod."""
    volume = small_volume(2)
    batch = volume.batches[1]
    data = bytes(bytes_of(volume, batch))
    end = batch.head_length - 4
    place = bytes.fromhex(volume.builder.header.volume_id) + struct.pack(">Q", batch.offset)
    assert struct.unpack_from(">I", data, end)[0] == crc32c_reference(place + data[:end]) == batch.header_crc
    for entry in batch.entries:
        assert entry.crc == crc32c_reference(data[entry.offset : entry.offset + entry.length])
        assert entry.prft_crc == crc32c_reference(data[entry.offset - 32 : entry.offset])


def test_the_three_fields_are_set_and_nothing_else_is_touched() -> None:
    """A fragment depends on its volume in mfhd's sequence, the track_ID and tfdt only."""
    volume = Volume.begin()
    given_fragments = [fragment(GATE), fragment(SOUND, at_s=60.5)]
    batch = volume.add(given_fragments)
    for n, (entry, was) in enumerate(zip(batch.entries, given_fragments, strict=True)):
        now = bytearray(bytes_of(volume, batch)[entry.offset : entry.offset + entry.length])
        assert struct.unpack_from(">I", now, 20) == (n + 1,)
        assert struct.unpack_from(">I", now, 44) == (entry.track_id,)
        assert struct.unpack_from(">Q", now, 60) == (entry.tfdt,)
        now[20:24] = now[44:48] = bytes(4)
        now[60:68] = bytes(8)
        assert now == b"".join(was.parts)
    assert [entry.track_id for entry in batch.entries] == [1, 3]


def test_sequence_numbers_count_the_fragments_of_the_volume() -> None:
    """mfhd's sequence number increases in the order of the file (ISO/IEC 14496-12 8.8.5)."""
    volume = small_volume(4)
    numbers = [struct.unpack_from(">I", volume.data, b.offset + e.offset + 20)[0] for b in volume.batches for e in b.entries]
    assert numbers == list(range(1, 13))


def test_prft_tells_other_tools_the_wall_clock() -> None:
    """NTP time since 1900 with a 32-bit fraction, and the media time that it belongs to (ISO/IEC 14496-12 8.16.5)."""
    volume = Volume.begin()
    entry = volume.add([fragment(GATE, at_s=60.5)]).entries[0]
    at = volume.batches[0].offset + entry.offset - 32
    size, kind, flags, track, ntp, time = struct.unpack_from(">I4sIIQQ", volume.data, at)
    assert (size, kind, flags, track, time) == (32, b"prft", 0x0100_0018, 1, entry.tfdt)
    seconds = ORIGIN_NS // 10**9 + 60 + 2_208_988_800
    assert ntp == (seconds & 0xFFFFFFFF) << 32 | 1 << 31


# --- tfdt ------------------------------------------------------------------------------------------------------


def tfdts(*fragments: Fragment) -> list[int]:
    volume = Volume.begin()
    for one in fragments:
        volume.add([one])
    return [batch.entries[0].tfdt for batch in volume.batches]


def test_a_run_begins_at_its_utc_and_goes_on_by_media_durations() -> None:
    """Inside a run, track time is media time: the wall clock's jitter never reaches a player."""
    first = fragment(at_s=61.0, index=0, samples=5)
    second = fragment(at_s=61.23, index=5, samples=5)  # 5 samples are 0.2 s; it came 30 ms late
    assert tfdts(first, second) == [61 * 90_000, 61 * 90_000 + 5 * 3600]


def test_a_discontinuity_goes_back_to_utc() -> None:
    """After a gap the track is where the clock is."""
    after = fragment(at_s=75.0, index=5, flags=FragmentFlag.KEYFRAME | FragmentFlag.DISCONTINUITY)
    assert tfdts(fragment(at_s=61.0), after) == [61 * 90_000, 75 * 90_000]


def test_a_run_never_begins_before_the_end_of_the_one_before_it() -> None:
    """Media time that runs ahead of the wall clock, or a clock that stepped back: tfdt never decreases within a track."""
    after = fragment(at_s=60.1, index=5, flags=FragmentFlag.DISCONTINUITY)
    assert tfdts(fragment(at_s=61.0), after) == [61 * 90_000, 61 * 90_000 + 5 * 3600]


def test_a_hole_in_the_indices_or_another_session_begins_a_run() -> None:
    """Fragments that were dropped, or come from another recorder's start, do not pull the rest of the track forward."""
    assert tfdts(fragment(at_s=61.0), fragment(at_s=70.0, index=10)) == [61 * 90_000, 70 * 90_000]
    assert tfdts(fragment(at_s=61.0), fragment(at_s=70.0, index=5, session=7)) == [61 * 90_000, 70 * 90_000]


def test_two_fragments_of_one_track_in_one_batch_follow_each_other() -> None:
    """A batch behind a stall holds several seconds of every stream."""
    volume = Volume.begin()
    batch = volume.add([fragment(index=0), fragment(index=5, at_s=60.2), fragment(index=10, at_s=60.4)])
    assert [entry.tfdt for entry in batch.entries] == [60 * 90_000 + n * 5 * 3600 for n in range(3)]


@given(st.lists(st.tuples(st.integers(0, 120_000), st.integers(1, 30), st.booleans(), st.integers(0, 2)), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_track_time_never_runs_backwards(moves: list[tuple[int, int, bool, int]]) -> None:
    """Whatever the clocks and the losses are: within a track, every fragment begins at or behind the end of the one before."""
    volume, index = Volume.begin(), 0
    for at_ms, samples, again, skipped in moves:
        flags = FragmentFlag.DISCONTINUITY if again else FragmentFlag(0)
        index += skipped
        volume.add([fragment(at_s=at_ms / 1000, index=index, samples=samples, flags=flags, sizes=1)])
        index += samples
    entries = [batch.entries[0] for batch in volume.batches]
    for before, after in itertools.pairwise(entries):
        assert after.tfdt >= before.tfdt + before.duration


# --- what fits -------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_said_before_it_is_built() -> None:
    """Unknown tracks, other pictures and fragments older than the origin cut the volume; parameter sets in-band do not."""
    builder = VolumeBuilder(header(tracks=(VolumeTrack(GATE, "Gate", VIDEO),)))
    assert builder.fits(fragment(GATE))
    assert builder.fits(fragment(GATE, config=replace(VIDEO, trak=b"other parameter sets")))
    assert builder.fits(fragment(GATE, at_s=0.0))
    assert not builder.fits(fragment(GATE, at_s=-0.001))
    assert not builder.fits(fragment(YARD))
    assert not builder.fits(fragment(GATE, config=replace(VIDEO, width=640)))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (fragment(GATE, at_s=-1.0), "origin"),
        (fragment(TrackKey("cellar", Media.VIDEO)), "no track"),
        (replace(fragment(GATE), length=fragment(GATE).length + 4096), "parts"),
    ],
)
def test_a_failed_build_leaves_the_builder_as_it_was(wrong: Fragment, words: str) -> None:
    """One bad fragment must cost neither the chain nor another track's time."""
    volume = small_volume(2)
    state = volume.builder.number, volume.builder.offset
    good = fragment(YARD, at_s=62.2, index=10)
    extent = memoryview(bytearray(volume.builder.size([good, wrong])))
    with pytest.raises(ValueError, match=words):
        volume.builder.build(extent, [good, wrong], (), last_committed=-1, utc_now_ns=0)
    assert (volume.builder.number, volume.builder.offset) == state
    volume.add([good])
    whole = small_volume(2)
    whole.add([good])
    assert volume.data == whole.data


@pytest.mark.parametrize("length", [0, 4096, 12288])
def test_an_extent_of_another_size_is_refused(length: int) -> None:
    """A batch fills its extent exactly: nothing of what the memory held before reaches a disk."""
    volume = Volume.begin()
    one = fragment(sizes=500)
    assert volume.builder.size([one]) == 8192 or length != 8192
    with pytest.raises((ValueError, struct.error)):
        volume.builder.build(memoryview(bytearray(length)), [one] * 2, (), last_committed=-1, utc_now_ns=0)


def test_a_batch_cannot_know_itself_committed() -> None:
    """The last committed batch is one before it: trusting more would trust a torn write."""
    volume = small_volume(1)
    with pytest.raises(ValueError, match="committed"):
        volume.add([fragment(index=5)], last_committed=1)


def test_a_batch_of_records_alone_and_an_empty_one_are_batches() -> None:
    """The ledger goes on when no camera sends anything."""
    volume = Volume.begin()
    volume.add([], [Record(RecordKind.GAP, "g", {})])
    volume.add([])
    for batch in volume.batches:
        assert batch.length == BLOCK_BYTES
        check_payload(bytes_of(volume, batch), parse_batch(bytes_of(volume, batch), batch.offset, volume.builder.header))


@given(st.integers(0, 5 * BLOCK_BYTES))
def test_padding_is_one_free_box_of_zeroes(length: int) -> None:
    """A remainder under 8 bytes takes one more block, since no box fits into it."""
    whole = length + len(padding(length))
    assert whole == padded(length)
    assert whole % BLOCK_BYTES == 0
    assert whole - length < BLOCK_BYTES + 8
    if whole > length:
        assert padding(length) == HEADER.pack(whole - length, b"free") + bytes(whole - length - 8)


@pytest.mark.parametrize("missing", range(10))
def test_a_batch_that_nearly_fills_its_block_takes_one_more(missing: int) -> None:
    """All remainders around the edge, built and read."""
    volume = Volume.begin()
    empty = fragment(sizes=0, samples=1)
    body = volume.builder.size([fragment(sizes=2000, samples=1)])
    one = fragment(sizes=BLOCK_BYTES - 108 - 72 - 32 - empty.length - missing, samples=1)
    batch = volume.add([one])
    assert body == BLOCK_BYTES
    assert batch.length == (BLOCK_BYTES if missing in (0, 8, 9) else 2 * BLOCK_BYTES)
    check_payload(bytes_of(volume, batch), batch)


# --- replay ----------------------------------------------------------------------------------------------------


def test_a_fragment_is_replayed_from_its_extent_into_another_volume() -> None:
    """What a lost set left unfinished goes into the next volume: the same identity, the same media bytes, its own place in time."""
    old = small_volume(2)
    new = Volume.begin(header(volume_id="77" * 16, origin_ns=ORIGIN_NS + 50_000_000_000, tracks=old.builder.header.tracks[::-1]))
    wanted = []
    for batch in old.batches:
        wanted += [fragment_of(entry, bytes_of(old, batch), old.builder.header) for entry in batch.entries]
    batch = new.add(wanted)
    check_payload(bytes_of(new, batch), batch)
    for one, entry in zip(wanted, batch.entries, strict=True):
        again = fragment_of(entry, bytes_of(new, batch), new.builder.header)
        assert replace(again, parts=()) == replace(one, parts=())
        assert bytes(again.parts[0])[68:] == bytes(one.parts[0])[68:]
    assert batch.entries[0].tfdt == 10 * 90_000
    assert [entry.track_id for entry in batch.entries] == [3, 2, 1] * 2


def test_replay_and_first_writing_make_the_same_bytes() -> None:
    """A batch is a function of its volume and its fragments, wherever their bytes come from."""
    old, first, again = small_volume(1), Volume.begin(header(volume_id="66" * 16)), Volume.begin(header(volume_id="66" * 16))
    entries = old.batches[0].entries
    first.add([fragment(GATE), fragment(YARD, at_s=60.2, flags=entries[1].flags), fragment(SOUND, at_s=60.1)])
    again.add([fragment_of(entry, bytes_of(old, old.batches[0]), old.builder.header) for entry in entries])
    assert first.data == again.data


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9000)), max_size=9))
@settings(max_examples=60, deadline=None)
def test_what_another_process_laid_out_becomes_the_same_batch_in_place(wanted: list[tuple[int, int]]) -> None:
    """Byte for byte, though nothing is copied where it is built."""
    fragments = []
    for number, (track, size) in enumerate(wanted):
        one = fragment((GATE, YARD, SOUND)[track], at_s=60 + number)
        fragments.append(replace(one, parts=(*one.parts, bytes([number]) * size), length=one.length + size))
    here, there = VolumeBuilder(header()), VolumeBuilder(header())
    assert batch_size(fragments) == here.size(fragments)
    copied, laid_out = bytearray(here.size(fragments)), bytearray(b"\xee" * here.size(fragments))
    lay_out(memoryview(laid_out), fragments)
    offsets = positions([one.length for one in fragments])
    lying = [replace(one, parts=(memoryview(laid_out)[at : at + one.length],)) for one, at in zip(fragments, offsets, strict=True)]
    first = here.build(memoryview(copied), fragments, (), last_committed=-1, utc_now_ns=ORIGIN_NS)
    second = there.build(memoryview(laid_out), lying, (), last_committed=-1, utc_now_ns=ORIGIN_NS, in_place=True)
    assert laid_out == copied
    assert second == first
    with pytest.raises(ValueError, match="no place was left"):
        there.build(memoryview(laid_out), lying, [Record(RecordKind.MARK, "m", {})], last_committed=-1, utc_now_ns=0, in_place=True)


# --- damage ----------------------------------------------------------------------------------------------------


def test_every_flipped_bit_of_a_batch_is_noticed() -> None:
    """Header, directory, records, prft, fragments, padding: no byte of a batch is without a check."""
    volume = small_volume(2)
    batch = volume.batches[0]
    good = bytes(bytes_of(volume, batch))
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << position % 8
        try:
            found = parse_batch(bad, batch.offset, volume.builder.header)
            read_records(bad, found)
            check_payload(bad, found)
        except FormatError:
            continue
        pytest.fail(f"nobody noticed byte {position}")


@pytest.mark.parametrize(
    ("kind", "offset"),
    [
        (DamageKind.RECORDS, lambda batch: batch.head_length + 30),
        (DamageKind.PRFT, lambda batch: batch.entries[1].offset - 1),
        (DamageKind.FRAGMENT, lambda batch: batch.entries[2].offset + 100),
        (DamageKind.PADDING, lambda batch: batch.length - 1),
    ],
)
def test_damage_is_named_with_its_place(kind: DamageKind, offset: object) -> None:
    """A mend copies just these bytes from another copy."""
    volume = small_volume(1)
    batch = volume.batches[0]
    data = bytearray(bytes_of(volume, batch))
    at = offset(batch)  # type: ignore[operator]
    data[at] ^= 0x10
    (damage,) = payload_damage(data, batch)
    assert damage.kind is kind
    assert damage.offset <= batch.offset + at < damage.offset + damage.length
    assert damage.batch == 0


def test_an_erased_fragment_is_told_from_a_damaged_one() -> None:
    """A free box over the whole fragment is no bit rot; whether it is lawful, the erasure records tell."""
    volume = small_volume(1)
    batch = volume.batches[0]
    data = bytearray(bytes_of(volume, batch))
    entry = batch.entries[1]
    data[entry.offset : entry.offset + entry.length] = HEADER.pack(entry.length, b"free") + bytes(entry.length - 8)
    (damage,) = payload_damage(data, batch)
    assert (damage.kind, damage.offset, damage.length) == (DamageKind.ERASED, batch.offset + entry.offset, entry.length)


@pytest.mark.parametrize("kept", [*range(0, 4096, 37), 4095])
def test_a_batch_that_was_cut_off_is_noticed(kept: int) -> None:
    """Whatever is missing at the end, something says so."""
    volume = small_volume(1)
    batch = volume.batches[0]
    assert batch.length == BLOCK_BYTES
    data = bytes_of(volume, batch)[:kept]
    with pytest.raises(FormatError):
        check_payload(data, parse_batch(data, batch.offset, volume.builder.header))


def test_a_batch_at_another_place_or_of_another_volume_never_passes() -> None:
    """A misdirected write, a stale block, a recycled file: the checksum knows the volume's id and the offset."""
    volume = small_volume(1)
    batch = volume.batches[0]
    data = bytes_of(volume, batch)
    with pytest.raises(DamagedError):
        parse_batch(data, batch.offset + BLOCK_BYTES, volume.builder.header)
    with pytest.raises(DamagedError):
        parse_batch(data, batch.offset, header(volume_id="01" * 16))
    assert parse_batch(data, batch.offset, volume.builder.header).number == 0


@given(st.binary(max_size=300))
def test_garbage_is_no_batch(data: bytes) -> None:
    """Whatever lies on a disk, the parser answers with an error of ours."""
    with pytest.raises(FormatError):
        parse_batch(data, 4096, header())
    assert head_length(data) is None


def test_a_track_of_a_timescale_that_does_not_divide_seconds_stays_exact() -> None:
    """11,025 Hz sound: ticks are counted, never rounded twice."""
    config = TrackConfig(AUDIO.media, "pcm_s16le", 11_025, AUDIO.trak, sample_rate=11_025, channels=1)
    volume = Volume.begin(header(tracks=(VolumeTrack(SOUND, "x", config),)))
    for n in range(3):
        volume.add([fragment(SOUND, config=config, index=1000 * n, samples=1000, duration=11_000, at_s=60 + n, sizes=0, session=SESSION)])
    assert [batch.entries[0].tfdt for batch in volume.batches] == [60 * 11_025 + 11_000 * n for n in range(3)]
