"""Packets of H.264 and H.265 become access units that can be stored, and decoded from every keyframe."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.encoded import encode_video

from nvrstore.media.boxes import find
from nvrstore.media.init import video_config
from nvrstore.media.nal import (
    AccessUnits,
    ParameterSets,
    ensure_parameter_sets,
    is_keyframe,
    join_annexb,
    join_lengths,
    length_bytes,
    nal_type,
    split_annexb,
    split_lengths,
)
from nvrstore.media.sps import picture_size, unescape

AUD = b"\x09\xf0"
IDR, SLICE, SEI = b"\x65picture", b"\x41picture", b"\x06\x05\x01\xaa\x80"
RECOVERY = b"\x06\x05\x01\xaa\x06\x01\x84\x80"
SPS, PPS = b"\x67\x42\xc0\x0d\xda\x05", b"\x68\xce\x0f\xc8"

nals = st.lists(
    st.binary(min_size=1, max_size=40).filter(lambda b: b"\0\0\0" not in b and b"\0\0\1" not in b and b[-1]), min_size=1, max_size=8
)


@given(nals, st.lists(st.booleans(), min_size=8, max_size=8))
def test_annexb_is_split_at_both_kinds_of_start_code(units: list[bytes], long: list[bool]) -> None:
    """Three or four bytes of start code, trailing zeroes: the NAL units come out as they went in."""
    stream = b"".join((b"\0\0\0\1" if four else b"\0\0\1") + unit for unit, four in zip(units, long, strict=False))
    assert split_annexb(stream + b"\0\0") == units
    assert split_annexb(join_annexb(units)) == units


@given(nals)
def test_lengths_are_the_same_units(units: list[bytes]) -> None:
    """Joining and splitting are inverse; a tail that is cut off costs its own unit alone."""
    data = join_lengths(units)
    assert split_lengths(data) == units
    assert split_lengths(data[:-1])[: len(units) - 1] == units[:-1]


@given(st.binary(max_size=80), st.sampled_from(["h264", "hevc"]), st.binary(max_size=60))
def test_no_bytes_make_it_raise(packet: bytes, codec: str, extradata: bytes) -> None:
    """Cameras send anything; parsing survives it."""
    units = AccessUnits(codec, extradata)
    for data in (packet, b"\0\0\1" + packet, b"\1" + packet):
        unit = units.convert(data)
        assert unit is None or unit.data
    assert units.sets.size() is None or units.sets.size() != (0, 0)
    ParameterSets.of_extradata(codec, b"\1" + packet)


@pytest.mark.parametrize(
    ("codec", "width", "height"),
    [
        ("h264", 320, 240),
        ("h264", 1920, 1080),
        ("h264", 322, 182),
        ("h264", 16, 16),
        ("h264", 3840, 2160),
        ("hevc", 320, 240),
        ("hevc", 1920, 1080),
        ("hevc", 322, 182),
    ],
)
def test_the_size_of_the_picture_is_read_from_its_sps(codec: str, width: int, height: int) -> None:
    """Cropped, as libx264 and libx265 write it."""
    encoded = encode_video(codec, width=width, height=height, frames=1)
    assert ParameterSets.of_extradata(codec, encoded.extradata).size() == (width, height)
    units = AccessUnits(codec)
    assert units.convert(encoded.packets[0][0]) is not None
    assert units.sets.size() == (width, height)
    assert units.sets.complete


@pytest.mark.parametrize(
    "options", [(("profile", "high"), ("bf", "2")), (("x264-params", "interlaced=1:cqm=jvt"),), (("profile", "baseline"),)]
)
def test_the_size_is_read_in_every_profile(options: tuple[tuple[str, str], ...]) -> None:
    """Interlaced with scaling lists, High with B-frames, Baseline."""
    encoded = encode_video("h264", width=320, height=176, frames=1, options=options)
    assert ParameterSets.of_extradata("h264", encoded.extradata).size() == (320, 176)


def test_an_unreadable_sps_has_no_size() -> None:
    """What is cut off, or would be larger than any picture, is not believed."""
    assert picture_size("h264", b"\x67\x42") is None
    assert picture_size("hevc", b"\x42\x01" + bytes(40)) is None


def test_emulation_prevention_is_taken_out() -> None:
    """Only behind two zeroes, and counted anew behind each."""
    assert unescape(b"\x00\x00\x03\x01\x00\x00\x03\x00\x00\x03\x03") == b"\x00\x00\x01\x00\x00\x00\x00\x03"


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_keyframes_are_told_as_libav_tells_them(codec: str) -> None:
    """IDR is a keyframe, every other picture is none."""
    encoded = encode_video(codec, frames=60)
    assert [is_keyframe(codec, split_annexb(data)) for data, _, _, _ in encoded.packets] == [key for *_, key in encoded.packets]
    assert sum(key for *_, key in encoded.packets) >= 2


def test_camera_15_intra_refresh_has_keyframes_at_its_recovery_points() -> None:
    """No IDR after the first: decoding can begin at a recovery point SEI, wherever it stands among the messages."""
    encoded = encode_video("h264", frames=100, options=(("x264-params", "intra-refresh=1:keyint=25"), ("bf", "0")))
    found = [split_annexb(data) for data, *_ in encoded.packets]
    assert [any(nal_type("h264", nal) == 5 for nal in units) for units in found].count(True) == 1
    assert [i for i, units in enumerate(found) if is_keyframe("h264", units)] == [i for i, (*_, key) in enumerate(encoded.packets) if key]
    assert sum(is_keyframe("h264", units) for units in found) >= 3
    assert is_keyframe("h264", [RECOVERY, SLICE])
    assert not is_keyframe("h264", [SEI, SLICE])


def test_hevc_clean_random_access_is_a_keyframe() -> None:
    """CRA (21) and BLA (16) begin a sequence as IDR does; trailing pictures do not."""
    assert [is_keyframe("hevc", [bytes([kind << 1, 1, 9])]) for kind in (21, 16, 19, 20, 1, 0)] == [True, True, True, True, False, False]


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_camera_12_sets_are_taken_in_band_when_the_description_has_none(codec: str) -> None:
    """No extradata, or nonsense there: the first keyframe brings them."""
    packets = encode_video(codec).packets
    for extradata in (b"", b"\x01\x02", b"\x01" * 23, b"not parameter sets"):
        units = AccessUnits(codec, extradata if extradata[:1] != b"\x01" else b"")
        assert not ParameterSets.of_extradata(codec, extradata).complete
        assert units.convert(packets[0][0]) is not None
        assert units.sets.complete


def test_camera_12_annexb_in_the_description_is_understood() -> None:
    """Parameter sets with start codes where `avcC` should be."""
    encoded = encode_video("h264")
    assert length_bytes("h264", encoded.extradata) == 0
    assert ParameterSets.of_extradata("h264", encoded.extradata).complete


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_the_boxes_of_mp4_are_understood(codec: str) -> None:
    """`avcC` and `hvcC` as libav's muxer writes them give the same sets, and packets with lengths the same units."""
    encoded = encode_video(codec)
    config = video_config(codec, encoded.extradata, 320, 240)
    kind = "avcC" if codec == "h264" else "hvcC"
    stsd = find(config.trak, "trak/mdia/minf/stbl/stsd").body + 8
    box = find(config.trak, kind, stsd + 8 + 78)
    extradata = config.trak[box.body : box.end]
    stored = [join_lengths(split_annexb(data)) for data, *_ in encoded.packets]
    assert extradata[0] == 1
    assert length_bytes(codec, extradata) == 4
    assert ParameterSets.of_extradata(codec, extradata).all() == ParameterSets.of_extradata(codec, encoded.extradata).all()
    boxed, plain = AccessUnits(codec, extradata), AccessUnits(codec)
    ours = [boxed.convert(data) for data in stored]
    assert [unit and unit.keyframe for unit in ours] == [key for *_, key in encoded.packets]
    theirs = [plain.convert(data) for data, *_ in encoded.packets]
    kinds = {7, 8} if codec == "h264" else {32, 33, 34}
    for ours_unit, theirs_unit in zip(ours, theirs, strict=True):
        assert ours_unit is not None
        assert theirs_unit is not None
        bare = [[nal for nal in split_lengths(unit.data) if nal_type(codec, nal) not in kinds] for unit in (ours_unit, theirs_unit)]
        assert bare[0] == bare[1]


def test_a_keyframe_without_sets_gets_them_behind_the_delimiter() -> None:
    """Only the kinds that are missing; other pictures get none."""
    sets = ParameterSets("h264").updated([SPS, PPS])
    assert ensure_parameter_sets([AUD, IDR], sets) == [AUD, SPS, PPS, IDR]
    assert ensure_parameter_sets([SPS, IDR], sets) == [PPS, SPS, IDR]
    assert ensure_parameter_sets([SPS, PPS, IDR], sets) == [SPS, PPS, IDR]
    units = AccessUnits("h264", join_annexb([SPS, PPS]))
    first, second = units.convert(join_annexb([IDR])), units.convert(join_annexb([SLICE]))
    assert first == (join_lengths([SPS, PPS, IDR]), True)
    assert second == (join_lengths([SLICE]), False)


def test_camera_13_flapping_sets_replace_each_other_by_their_number() -> None:
    """The same number: the newest counts. Another number: both are in force."""
    sets = ParameterSets("h264").updated([SPS, PPS])
    assert sets.updated([SPS, PPS, IDR]) is sets
    other = SPS + b"\x01"
    assert sets.updated([other]).sps == (other,)
    second = b"\x68\x4e\x0f\xc8"  # number 1
    assert sets.updated([second]).pps == (PPS, second)


def test_camera_17_what_comes_without_a_picture_travels_with_the_next_one() -> None:
    """A marker bit on an SEI ends no picture; empty fragments are nothing; nothing is lost."""
    units = AccessUnits("h264")
    assert units.convert(join_annexb([SPS, PPS])) is None
    assert units.convert(join_annexb([SEI])) is None
    assert units.convert(b"") is None
    assert units.convert(b"\0\0\1") is None
    assert units.convert(join_annexb([IDR])) == (join_lengths([SPS, PPS, SEI, IDR]), True)
    assert units.convert(join_annexb([SLICE])) == (join_lengths([SLICE]), False)


def test_what_never_becomes_a_picture_does_not_grow_without_bound() -> None:
    """A stream of SEI alone is dropped at a quarter of a megabyte."""
    units = AccessUnits("h264")
    for _ in range(100):
        assert units.convert(join_annexb([SEI + b"\xaa" * 10_000])) is None
    unit = units.convert(join_annexb([SLICE]))
    assert unit is not None
    assert len(unit.data) < 300_000
