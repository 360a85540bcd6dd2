"""What a volume begins with."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.encoded import encode_video
from tests.support.volumes import GATE, VIDEO, header

from nvrstore.checksum import crc32c_reference
from nvrstore.errors import DamagedError, FormatError
from nvrstore.journal.header import header_crc, header_length, pack_header, read_header
from nvrstore.journal.layout import VOLUME_UUID
from nvrstore.journal.model import VolumeHeader, VolumeTrack
from nvrstore.limits import BLOCK_BYTES, LANE_TRACKS_MAX
from nvrstore.media.boxes import walk
from nvrstore.media.init import audio_config, video_config
from nvrstore.model import Epoch, Media, MemberRef, Role, TrackKey

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
hex_ids = st.binary(min_size=16, max_size=16).map(bytes.hex)
u64 = st.integers(0, 2**64 - 1)
headers = st.builds(
    header,
    volume_id=hex_ids,
    journal=text,
    journal_id=hex_ids,
    recorder=text,
    session=u64,
    epoch=st.builds(Epoch, u64, st.integers(0, 2**32 - 1)),
    lane=st.integers(0, 2**32 - 1),
    number=u64,
    members=st.lists(st.builds(MemberRef, text, hex_ids, st.sampled_from(Role)), max_size=3).map(tuple),
    created_ns=st.integers(-(2**63), 2**63 - 1),
    origin_ns=st.integers(-(2**63), 2**63 - 1),
)


def without_traks(one: VolumeHeader) -> VolumeHeader:
    """`moov` writes track_ID and handler name into each `trak`: those bytes differ from what was handed in."""
    return replace(one, tracks=tuple(replace(track, config=replace(track.config, trak=b"")) for track in one.tracks))


@given(headers)
@settings(deadline=None, max_examples=60)
def test_a_header_comes_back_as_it_was(one: VolumeHeader) -> None:
    """Every number to its last bit, every name in any script."""
    data = pack_header(one)
    found, length = read_header(data)
    assert length == len(data)
    assert without_traks(found) == without_traks(one)
    assert pack_header(found) == data


def test_a_header_is_boxes_that_fill_whole_blocks() -> None:
    """ftyp, moov, uuid, free: a stock player skips what it does not know."""
    data = pack_header(header())
    boxes = list(walk(data))
    assert [box.type for box in boxes] == [b"ftyp", b"moov", b"uuid", b"free"]
    assert len(data) % BLOCK_BYTES == 0
    assert data[boxes[2].body :].startswith(VOLUME_UUID)


def test_its_checksum_covers_every_byte_from_the_first() -> None:
    """By an independent implementation, and it is the first link of the chain of batches."""
    data = pack_header(header())
    uuid = list(walk(data))[2]
    (crc,) = struct.unpack_from(">I", data, uuid.end - 4)
    assert crc == crc32c_reference(data[: uuid.end - 4]) == header_crc(data)


def test_every_flipped_bit_of_a_header_is_noticed() -> None:
    """moov, names, numbers, padding: each byte, each bit somewhere in it."""
    good = pack_header(header())
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << (position * 5) % 8
        try:
            read_header(bad, "v.mp4")
        except FormatError:
            continue
        pytest.fail(f"nobody noticed byte {position}")


@pytest.mark.parametrize("kept", range(0, 4096, 13))
def test_a_header_that_was_cut_off_is_refused(kept: int) -> None:
    """Never a header with half of its tracks."""
    data = pack_header(header())
    assert len(data) == BLOCK_BYTES
    with pytest.raises(FormatError, match=r"v\.mp4: byte"):
        read_header(data[:kept], "v.mp4")


def test_a_reader_learns_from_what_it_has_how_much_to_read() -> None:
    """Without knowing the number of tracks, in a few reads, none of them too long."""
    tracks = tuple(VolumeTrack(TrackKey(f"s{n}", Media.VIDEO), f"Camera {n}", VIDEO) for n in range(300))
    data = pack_header(header(tracks=tracks))
    have, reads = 0, 0
    while (need := header_length(data[:have])) > have:
        assert need <= len(data)
        have, reads = need, reads + 1
    assert have == len(data)
    assert reads <= 4
    assert len(read_header(data)[0].tracks) == 300


def test_real_tracks_of_every_kind_keep_what_decides_whether_they_continue() -> None:
    """A replayed fragment's configuration comes from the header that was read: it must still be that of its stream."""
    configs = [
        video_config("h264", encode_video("h264", frames=2).extradata, 320, 240),
        video_config("hevc", encode_video("hevc", frames=2).extradata, 320, 240),
        video_config("mjpeg", b"", 320, 240),
        audio_config("aac", 48_000, 2),
        audio_config("aac", 96_000, 2),
        audio_config("opus", 48_000, 1),
        audio_config("pcm_s16le", 8_000, 1),
    ]
    tracks = tuple(VolumeTrack(TrackKey(f"s{n}", config.media), f"Camera {n}", config) for n, config in enumerate(configs))
    found, _ = read_header(pack_header(header(tracks=tracks)))
    for was, now in zip(tracks, found.tracks, strict=True):
        assert now.config.continues(was.config)
        assert (now.track, now.name) == (was.track, was.name)


def test_what_no_volume_can_hold_is_refused() -> None:
    """A track that stands twice would give one camera's frames to another."""
    track = VolumeTrack(GATE, "Gate", VIDEO)
    with pytest.raises(ValueError, match="twice"):
        pack_header(header(tracks=(track, track)))
    many = tuple(VolumeTrack(TrackKey(f"s{n}", Media.VIDEO), "", VIDEO) for n in range(LANE_TRACKS_MAX + 1))
    with pytest.raises(ValueError, match="at most"):
        pack_header(header(tracks=many))


def resealed(data: bytearray) -> bytes:
    """`data` with a checksum that matches: what a later version, or a broken writer, would have written."""
    end = list(walk(data))[2].end
    struct.pack_into(">I", data, end - 4, crc32c_reference(data[: end - 4]))
    return bytes(data)


def test_a_volume_of_a_later_format_is_refused_with_its_number() -> None:
    """Never half-understood."""
    data = bytearray(pack_header(header()))
    struct.pack_into(">H", data, list(walk(data))[2].body + 16, 2)
    with pytest.raises(FormatError, match="a volume of format 2"):
        read_header(resealed(data))


@pytest.mark.parametrize(
    ("was", "becomes"),
    [(b'"primary"', b'"admiral"'), (b'"journal"', b'"jurnal"\t'), (b'"video"', b'"vodeo"'), (b'{"', b"{x"), (b"vide", b"text")],
)
def test_a_header_of_nonsense_is_an_error_and_no_crash(was: bytes, becomes: bytes) -> None:
    """A checksum that matches proves only that somebody wrote it."""
    data = pack_header(header())
    with pytest.raises(FormatError):
        read_header(resealed(bytearray(data.replace(was, becomes, 1))))


def test_other_files_are_no_volumes() -> None:
    """People put films of their own beside volumes; damage is told from a foreign file."""
    data = pack_header(header())
    for foreign in (b"", b"\0" * 8192, b"RIFF" * 2048, data[:28] + data[28:].replace(b"uuid", b"free", 1)):
        with pytest.raises(FormatError) as caught:
            read_header(foreign, "film.mp4")
        assert not isinstance(caught.value, DamagedError)
        assert "film.mp4" in str(caught.value)


@given(st.binary(max_size=200))
def test_garbage_is_no_header(data: bytes) -> None:
    """Whatever lies on a disk, the parser answers with an error of ours."""
    with pytest.raises(FormatError):
        read_header(data)
