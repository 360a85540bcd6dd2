"""From access units to samples: DTS from the order of arrival, keyframes with their parameter sets, the camera's clock."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.encoded import encode_video
from tests.support.ingest import Ear

from nvrstore.ingest.lean.rtp import SenderReport
from nvrstore.ingest.lean.video import Pictures, is_b_picture
from nvrstore.media.nal import ParameterSets, is_keyframe, join_lengths, nal_type, split_annexb, split_lengths
from nvrstore.media.sps import reorder_depth
from nvrstore.model import Media

B_FRAMES = (("bf", "2"), ("tune", "ssim"))
PYRAMID = (("bf", "3"), ("tune", "psnr"), ("preset", "medium"), ("b-pyramid", "strict"))


def fed(codec: str, packets: list[tuple[bytes, int]], described: list[bytes] | None = None, wrap: int = 0) -> tuple[Ear, Pictures]:
    """Pictures made of (Annex B, PTS)."""
    ear = Ear()
    pictures = Pictures(codec, described or [], ear)
    for number, (data, pts) in enumerate(packets):
        nals = split_annexb(data)
        kinds = sum(1 << kind for kind in {nal_type(codec, nal) for nal in nals})
        pictures.unit(join_lengths(nals), kinds, pts + wrap & 0xFFFF_FFFF, False, number * 1000, number * 0.04)
    pictures.flush()
    return ear, pictures


@pytest.mark.parametrize("options", [(), B_FRAMES, PYRAMID])
@pytest.mark.parametrize("wrap", [0, 2**32 - 50_000])
def test_dts_are_those_of_the_encoder(options: tuple[tuple[str, str], ...], wrap: int) -> None:
    """With and without B-frames, also pyramids of them, and across the wrap of timestamps: to the tick."""
    encoded = encode_video("h264", options=options, frames=50)
    ear, _ = fed("h264", [(data, pts) for data, pts, _, _ in encoded.packets], wrap=wrap)
    samples = ear.of()
    assert [sample.pts for sample in samples] == [pts + wrap for _, pts, _, _ in encoded.packets]
    shift = samples[0].dts - encoded.packets[0][2]
    assert [sample.dts - shift for sample in samples] == [dts for _, _, dts, _ in encoded.packets]
    assert all(sample.dts <= sample.pts for sample in samples)
    assert [sample.keyframe for sample in samples] == [key for _, _, _, key in encoded.packets]
    assert [sample.arrival_ns for sample in samples] == [number * 1000 for number in range(50)]


def test_b_frames_that_nobody_announced_are_discovered() -> None:
    """Without the depth in the parameter sets: PTS are right, DTS grow, and every duration is positive."""
    encoded = encode_video("h264", options=B_FRAMES, frames=50)
    sets = ParameterSets.of_extradata("h264", encoded.extradata)
    bare = _without_vui(sets.sps[0])
    assert reorder_depth("h264", bare) is None
    packets = [(data.replace(sets.sps[0], bare), pts) for data, pts, _, _ in encoded.packets]
    ear, _ = fed("h264", packets)
    samples = ear.of()
    assert [sample.pts for sample in samples] == [pts for _, pts in packets]
    assert all(b.dts > a.dts for a, b in pairwise(samples))
    settled = samples[10:]
    assert {b.dts - a.dts for a, b in pairwise(settled)} == {3600}


def _without_vui(sps: bytes) -> bytes:
    """An SPS of the same profile and size that says nothing about reordering (H.264 7.3.2.1.1), written bit by bit."""

    def ue(value: int) -> str:
        digits = f"{value + 1:b}"
        return "0" * (len(digits) - 1) + digits

    bits = ue(0) + ue(0) + ue(0) + ue(2) + ue(4) + "0" + ue(19) + ue(14) + "1" + "1" + "0" + "0" + "1"
    bits += "0" * (-len(bits) % 8)
    return b"\x67\x4d\x40\x1e" + int(bits, 2).to_bytes(len(bits) // 8, "big")


def test_timestamps_that_go_back_are_no_b_frames() -> None:
    """A broken clock is the timeline's business: DTS is what the camera said."""
    encoded = encode_video("h264", frames=10)
    times = [0, 3600, 7200, 3600, 14_400, 18_000, 0, 3600, 7200, 10_800]
    ear, _ = fed("h264", [(packet[0], pts) for packet, pts in zip(encoded.packets, times, strict=True)])
    assert [sample.dts for sample in ear.of()] == times


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=60), st.sampled_from([(), B_FRAMES]))
def test_no_timestamps_lose_a_picture_or_change_their_order(times: list[int], options: tuple[tuple[str, str], ...]) -> None:
    """Whatever they are: every picture comes out, in the order in which it came."""
    encoded = encode_video("h264", options=options, frames=60)
    packets = [(data, pts) for (data, _, _, _), pts in zip(encoded.packets, times, strict=False)]
    ear, _ = fed("h264", packets)
    assert [split_lengths(sample.data) for sample in ear.of()] == [split_annexb(data) for data, _ in packets]
    assert [sample.pts & 0xFFFF_FFFF for sample in ear.of()] == [pts for _, pts in packets]


def test_b_pictures_are_told_by_their_slices() -> None:
    """The encoder's own choice: reordered pictures are B."""
    encoded = encode_video("h264", options=B_FRAMES, frames=50)
    shown_before = [False]
    highest = encoded.packets[0][1]
    for _, pts, _, _ in encoded.packets[1:]:
        shown_before.append(pts < highest)
        highest = max(highest, pts)
    found = [is_b_picture("h264", join_lengths(split_annexb(data))) for data, _, _, _ in encoded.packets]
    assert found == shown_before
    assert any(found)
    assert not is_b_picture("h264", b"\0\0\0\1\x41")
    assert not is_b_picture("h264", b"")
    assert not is_b_picture("h264", b"\0\0\0\x11\x41" + bytes(16))


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_pictures_before_the_parameter_sets_are_left_out(codec: str) -> None:
    """Nothing can be decoded; from the first keyframe that brings them on, everything is there."""
    encoded = encode_video(codec, frames=60)
    keys = [number for number, packet in enumerate(encoded.packets) if packet[3]]
    ear, _ = fed(codec, [(data, pts) for data, pts, _, _ in encoded.packets[1:]])
    assert len(ear.of()) == 60 - keys[1]
    assert is_keyframe(codec, split_lengths(ear.of()[0].data))


def test_sets_from_the_description_stand_in_front_of_keyframes_that_come_without() -> None:
    """So every keyframe can be decoded by itself."""
    encoded = encode_video("h264", frames=30)
    sets = ParameterSets.of_extradata("h264", encoded.extradata)
    bare = [
        (b"".join(b"\0\0\0\1" + nal for nal in split_annexb(data) if nal[0] & 31 not in (7, 8)), pts) for data, pts, _, _ in encoded.packets
    ]
    ear, _ = fed("h264", bare, list(sets.all()))
    assert [nal[0] & 31 for nal in split_lengths(ear.of()[0].data)][:2] == [7, 8]
    assert (ear.configs[0].width, ear.configs[0].height) == (320, 240)


def test_camera_17_what_has_no_picture_travels_with_the_next_one() -> None:
    """An SEI with a marker of its own; damage to it is told with the picture."""
    encoded = encode_video("h264", frames=3)
    ear = Ear()
    pictures = Pictures("h264", [], ear)
    for number, (data, pts, _, _) in enumerate(encoded.packets):
        nals = split_annexb(data)
        sei = b"\x06\x05\x01\x01\x80"
        pictures.unit(join_lengths([sei]), 1 << 6, pts, number == 1, 0, 0.0)
        pictures.unit(join_lengths(nals), sum(1 << kind for kind in {nal[0] & 31 for nal in nals}), pts, False, 0, 0.0)
    pictures.deliver()
    assert [split_lengths(sample.data).count(sei) for sample in ear.of()] == [1, 1, 1]
    assert [sample.damaged for sample in ear.of()] == [False, True, False]


def test_the_camera_s_clock_is_told_with_the_next_picture() -> None:
    """Its report speaks of a timestamp that no picture has: the UTC is counted to one that has, across the wrap."""
    encoded = encode_video("h264", frames=3)
    ear = Ear()
    pictures = Pictures("h264", [], ear)
    for number, (data, _, _, _) in enumerate(encoded.packets):
        nals = split_annexb(data)
        if number == 1:
            pictures.report(SenderReport(7, 1_000_000_000_000, 2**32 - 900, 0))
        timestamp = (2**32 - 3600 + number * 3600) & 0xFFFF_FFFF
        pictures.unit(join_lengths(nals), sum(1 << kind for kind in {nal[0] & 31 for nal in nals}), timestamp, False, 0, 0.0)
    assert ear.references == [(Media.VIDEO, 2**32, 1_000_010_000_000)]


@pytest.mark.slow
def test_sets_that_flap_change_nothing_and_sets_without_end_are_forgotten() -> None:
    """Another number of a set with every keyframe: what is remembered has the codec's own bound."""
    encoded = encode_video("h264", frames=1)
    nals = split_annexb(encoded.packets[0][0])
    ear = Ear()
    pictures = Pictures("h264", [], ear)
    for number in range(600):
        digits = f"{number + 1:b}"
        bits = "0" * (len(digits) - 1) + digits + "1"
        bits += "0" * (-len(bits) % 8)
        junk = b"\x68" + int(bits, 2).to_bytes(len(bits) // 8, "big") + number.to_bytes(4, "big")
        big = b"\x68\x80" + bytes(100_000)
        pictures.unit(join_lengths([*nals, junk, big]), 1 << 5 | 1 << 7 | 1 << 8, number * 3600, False, 0, 0.0)
    assert len(pictures._units.sets.pps) <= 258
    assert len(ear.configs) == 1
