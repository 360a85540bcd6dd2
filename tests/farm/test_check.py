"""The checker: what it calls intact, missing, duplicated, damaged."""

from __future__ import annotations

import struct
from fractions import Fraction

import pytest

from nvrstore.farm import FrameRange, SentFrames, check_access_units, is_intact, parse_sei
from nvrstore.farm.nal import Codec, escape, split, unescape
from nvrstore.farm.reels import VideoSpec, video_reel
from nvrstore.farm.stamp import FrameStamp, build_stamp, parse_stamp

CODECS = [Codec.H264, Codec.H265]
SENT_NS = 1_795_420_800_123_456_789


def access_unit(codec: Codec, number: int, *, stream: int = 3, annex_b: bool = False) -> bytes:
    """A stamped access unit of the reel, as a recorder stores it or as libav hands it out."""
    reel = video_reel(VideoSpec(codec, 64, 64, Fraction(25), 100_000, 10))
    unit = reel.units[number % len(reel.units)]
    nals = (*unit.sets, build_stamp(codec, stream, number, SENT_NS, unit.crc), *unit.slices)
    return b"".join((b"\x00\x00\x00\x01" if annex_b else struct.pack(">I", len(nal))) + nal for nal in nals)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("annex_b", [False, True])
def test_a_stamp_is_found_in_both_forms_of_an_access_unit(codec: Codec, annex_b: bool) -> None:
    """Length-prefixed or Annex B: stream, number, time and checksum come back."""
    au = access_unit(codec, 12, annex_b=annex_b)
    stamp = parse_sei(au)
    assert stamp is not None
    assert (stamp.stream, stamp.number, stamp.sent_ns) == (3, 12, SENT_NS)
    assert is_intact(au)


@pytest.mark.parametrize("codec", CODECS)
def test_frames_that_are_there_once_and_intact_make_a_whole_report(codec: Codec) -> None:
    """A run of frames without a hole is whole, and nothing that was sent is lost."""
    report = check_access_units(access_unit(codec, number) for number in range(5, 30))
    assert report.whole
    assert report.frames == 25
    assert report.ranges == (FrameRange(5, 29),)
    assert report.lost(SentFrames(3, (FrameRange(5, 29),), 30)) == ()


def test_missing_duplicated_and_disordered_frames_are_named() -> None:
    """Holes as ranges, duplicates by number, disorder counted; what was sent and is not there is lost."""
    report = check_access_units(access_unit(Codec.H264, number) for number in (0, 1, 2, 2, 6, 7, 5, 9))
    assert report.missing == (FrameRange(3, 4), FrameRange(8, 8))
    assert report.duplicated == (2,)
    assert report.disordered == 1
    assert report.lost(SentFrames(3, (FrameRange(0, 3), FrameRange(7, 11)), 12)) == (FrameRange(3, 3), FrameRange(8, 8), FrameRange(10, 11))


@pytest.mark.parametrize("codec", CODECS)
def test_no_flipped_bit_in_slices_or_stamp_passes_for_an_intact_frame(codec: Codec) -> None:
    """Every bit of the stamp, and a bit of every byte of the slices, is covered by a checksum."""
    au = access_unit(codec, 4)
    slices = len(video_reel(VideoSpec(codec, 64, 64, Fraction(25), 100_000, 10)).units[4].slices[0])
    stamp_end = len(au) - slices - 4
    places = [(at, bit) for at in range(4, stamp_end - 1) for bit in range(8)] + [(at, at % 8) for at in range(len(au) - slices, len(au))]
    for at, bit in places:
        broken = bytearray(au)
        broken[at] ^= 1 << bit
        assert not is_intact(broken), f"bit {bit} of byte {at}"
        report = check_access_units([broken])
        assert report.frames == 0
        assert report.unstamped + len(report.damaged) == 1


def test_a_frame_cut_short_is_damaged_or_unstamped_and_never_intact() -> None:
    """Whatever was cut off, the frame does not count."""
    au = access_unit(Codec.H264, 4)
    for kept in range(len(au)):
        assert check_access_units([au[:kept]]).frames == 0


def test_two_streams_in_one_report_are_refused() -> None:
    """A report is about one stream: footage of another in its place is an error of whoever stored it."""
    with pytest.raises(ValueError, match="streams 1 and 2 are mixed"):
        check_access_units([access_unit(Codec.H264, 0, stream=1), access_unit(Codec.H264, 1, stream=2)])


def test_a_short_first_nal_unit_is_not_taken_for_a_start_code() -> None:
    """A length of 256 to 511 reads 00 00 01 xx, like a start code."""
    au = struct.pack(">I", 0x142) + b"\x41" * 0x142
    assert split(au) == [b"\x41" * 0x142]


@pytest.mark.parametrize("codec", CODECS)
def test_zeroes_behind_a_nal_unit_are_not_part_of_it(codec: Codec) -> None:
    """A parser may count the zero byte of the next start code to the unit before it: the frame is intact all the same."""
    nals = split(access_unit(codec, 4))
    assert is_intact(b"".join(struct.pack(">I", len(nal) + 1) + nal + b"\x00" for nal in nals))


@pytest.mark.parametrize("payload", [b"\x00\x00\x00\x00\x80", b"\x00\x00\x01\x80", b"\x00\x00\x03\x80", b"a\x00\x00\x02\x00\x00\x00\x80"])
def test_emulation_prevention_is_put_in_and_taken_out(payload: bytes) -> None:
    """No start code can occur inside, and the payload comes back (Rec. ITU-T H.264 7.4.1.1)."""
    escaped = escape(payload)
    assert b"\x00\x00\x00" not in escaped
    assert b"\x00\x00\x01" not in escaped
    assert unescape(escaped) == payload


@pytest.mark.parametrize("codec", CODECS)
def test_the_bytes_of_a_stamp_are_frozen(codec: Codec) -> None:
    """Archives outlive releases: this is what version 1 writes, byte for byte."""
    nal = build_stamp(codec, 7, 1234, SENT_NS, 0x9F2C41AA)
    header = {Codec.H264: "06", Codec.H265: "4e01"}[codec]
    assert (
        nal
        == bytes.fromhex(f"{header}05466e76722d6661726d9d41b8c2e57a1f36") + b"00007 0000001234 1795420800123456789 9f2c41aa a4d86f7f\x80"
    )
    assert parse_stamp(nal) == (codec, FrameStamp(7, 1234, SENT_NS, 0x9F2C41AA))
