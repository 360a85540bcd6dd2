"""Samples become fragments: bounded, complete, in order, whatever the camera's clock does."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.media import (
    AUDIO,
    AUDIO_CONFIG,
    SESSION,
    UTC_NS,
    VIDEO,
    VIDEO_CONFIG,
    entries,
    joined,
    payloads,
    sample,
    total,
    video,
)

from nvrstore.limits import SAMPLE_BYTES_MAX
from nvrstore.media.boxes import find
from nvrstore.media.fragment import SAMPLES_MAX, Fragmenter
from nvrstore.model import MFHD_SEQUENCE_AT, TFDT_TIME_AT, TFHD_TRACK_AT, Fragment, FragmentFlag, Media, Sample


def fragmenter(**options: float) -> Fragmenter:
    return Fragmenter(VIDEO, VIDEO_CONFIG, SESSION, **options)  # type: ignore[arg-type]


def run(cutter: Fragmenter, samples: Iterable[Sample]) -> list[Fragment]:
    """Push all, placed in time by their arrival, and flush."""
    found: list[Fragment] = []
    for one in samples:
        found += cutter.push(one, one.arrival_ns)
    return [*found, *cutter.flush()]


def test_the_volume_dependent_fields_lie_where_the_model_says_and_are_zero() -> None:
    """The batch builder patches three fixed places: they belong to `mfhd`, `tfhd` and `tfdt` in every fragment."""
    (fragment,) = run(fragmenter(), video(5))
    data = joined(fragment)
    assert find(data, "moof/mfhd").body + 4 == MFHD_SEQUENCE_AT
    assert find(data, "moof/traf/tfhd").body + 4 == TFHD_TRACK_AT
    assert find(data, "moof/traf/tfdt").body + 4 == TFDT_TIME_AT
    assert data[find(data, "moof/traf/tfdt").body] == 1
    assert data[MFHD_SEQUENCE_AT : MFHD_SEQUENCE_AT + 4] == bytes(4)
    assert data[TFHD_TRACK_AT : TFHD_TRACK_AT + 4] == bytes(4)
    assert data[TFDT_TIME_AT : TFDT_TIME_AT + 8] == bytes(8)
    assert isinstance(fragment.parts[0], bytearray)
    assert len(fragment.parts[0]) == find(data, "moof").end + 8


def test_a_fragment_has_its_golden_bytes() -> None:
    """The format is frozen: two samples, byte for byte."""
    cutter = fragmenter()
    cutter.push(sample(0, data=b"key", keyframe=True), UTC_NS)
    cutter.push(sample(3600, pts=7200, data=b"delta"), UTC_NS)
    (fragment,) = cutter.flush()
    golden = (
        "00000078 6d6f6f66 00000010 6d666864 00000000 00000000"
        "00000060 74726166 00000010 74666864 00020000 00000000"
        "00000014 74666474 01000000 00000000 00000000"
        "00000034 7472756e 01000f01 00000002 00000080"
        "00000e10 00000003 02000000 00000000"
        "00000e10 00000005 01010000 00000e10"
        "00000010 6d646174 6b6579 64656c7461"
    )
    assert joined(fragment) == bytes.fromhex(golden.replace(" ", ""))


def test_samples_come_out_as_they_went_in_and_are_not_copied() -> None:
    """Every byte, in order, by reference."""
    samples = list(video(130))
    fragments = run(fragmenter(), samples)
    assert [data for fragment in fragments for data in payloads(fragment)] == [one.data for one in samples]
    assert all(part is samples[fragment.index + i].data for fragment in fragments for i, part in enumerate(fragment.parts[1:]))


def test_a_fragment_holds_one_second_and_the_index_counts_samples() -> None:
    """25 fps make 25 samples per fragment; index + samples is the next index."""
    fragments = run(fragmenter(), video(100))
    assert [(f.index, f.samples, f.duration) for f in fragments] == [(0, 25, 90_000), (25, 25, 90_000), (50, 25, 90_000), (75, 25, 90_000)]
    assert [f.utc_ns for f in fragments] == [UTC_NS + i * 10**9 for i in range(4)]
    assert [bool(f.flags & FragmentFlag.KEYFRAME) for f in fragments] == [True, False, True, False]
    assert [bool(f.flags & FragmentFlag.DISCONTINUITY) for f in fragments] == [True, False, False, False]


def test_the_index_goes_on_across_reconnects() -> None:
    """Identity for ever: no two samples of a session share an index."""
    cutter = fragmenter()
    first = run(cutter, video(30))
    again = [*cutter.push(sample(0, keyframe=True, at_s=60), UTC_NS, discontinuity=True), *cutter.flush()]
    assert again[0].index == total(first) == 30
    assert again[0].flags & FragmentFlag.DISCONTINUITY
    assert cutter.next_index == 31


def test_a_keyframe_begins_a_fragment() -> None:
    """GOPs of 15 frames at 25 fps: every fragment begins with a keyframe."""
    fragments = run(fragmenter(), video(150, gop=15))
    assert {f.samples for f in fragments} == {15}
    assert all(f.flags & FragmentFlag.KEYFRAME for f in fragments)


def test_all_intra_video_is_not_cut_at_every_frame() -> None:
    """MJPEG: each frame is a keyframe, and a fragment still holds a quarter of a second or more."""
    fragments = run(fragmenter(), video(100, gop=1))
    assert min(f.samples for f in fragments[:-1]) >= 6
    assert all(entry.sync for f in fragments for entry in entries(f))


def test_segments_begin_with_a_keyframe_about_every_segment_s() -> None:
    """GOPs of 2 s: a segment each 10 s."""
    fragments = run(fragmenter(), video(25 * 60))
    begins = [f for f in fragments if f.flags & FragmentFlag.SEGMENT]
    assert [f.index for f in begins] == [0, 250, 500, 750, 1000, 1250]
    assert all(f.flags & FragmentFlag.KEYFRAME for f in begins)


def test_camera_14_keyframes_ten_seconds_apart_are_accepted() -> None:
    """ "Smart" codecs: fragments stay one second long, segments as long as the GOP."""
    fragments = run(fragmenter(), video(25 * 60, gop=12 * 25))
    assert max(f.duration for f in fragments) <= 90_000
    assert [f.index for f in fragments if f.flags & FragmentFlag.SEGMENT] == [0, 300, 600, 900, 1200]


def test_camera_15_a_stream_without_any_keyframe_is_recorded() -> None:
    """Intra refresh: nothing waits for an IDR; segments begin without one after three times their length."""
    fragments = run(fragmenter(), video(25 * 100, gop=0))
    assert total(fragments) == 2500
    begins = [f.index for f in fragments if f.flags & FragmentFlag.SEGMENT]
    assert begins == [0, 750, 1500, 2250]
    assert not any(f.flags & FragmentFlag.KEYFRAME for f in fragments)


def test_the_first_keyframe_of_a_stream_that_began_without_begins_a_segment() -> None:
    """We connect in the middle of a GOP: the stump is kept, and the segment proper begins with the keyframe."""
    stump = [sample(i * 3600) for i in range(10)]
    fragments = run(fragmenter(), [*stump, *(sample(i * 3600, keyframe=i == 10) for i in range(10, 40))])
    assert [(f.index, bool(f.flags & FragmentFlag.SEGMENT), bool(f.flags & FragmentFlag.KEYFRAME)) for f in fragments[:2]] == [
        (0, True, False),
        (10, True, True),
    ]


def test_camera_16_a_byte_bound_splits_and_never_fails() -> None:
    """High bitrates make more fragments, a sample over the bound stands alone, a sample over the limit of a sample is refused."""
    samples = [sample(i * 3600, data=bytes(400), keyframe=i == 0) for i in range(10)]
    samples[5] = sample(5 * 3600, data=bytes(5000))
    fragments = run(fragmenter(fragment_bytes_max=1000), samples)
    assert [f.samples for f in fragments] == [2, 2, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="larger than"):
        fragmenter().push(sample(0, data=bytes(SAMPLE_BYTES_MAX + 1)), UTC_NS)


def test_a_refused_sample_costs_nothing_else() -> None:
    """The fragment that was open when a monster came is still there."""
    cutter = fragmenter()
    for one in video(3):
        cutter.push(one, one.arrival_ns)
    with pytest.raises(ValueError, match="larger than"):
        cutter.push(sample(4 * 3600, data=bytes(SAMPLE_BYTES_MAX + 1)), UTC_NS)
    assert total(cutter.flush()) == 3


def test_tiny_samples_cannot_grow_a_fragment_without_bound() -> None:
    """A flood of samples one tick apart is split by their number."""
    fragments = run(fragmenter(), (sample(i, data=b"", keyframe=i == 0) for i in range(2 * SAMPLES_MAX + 5)))
    assert [f.samples for f in fragments] == [SAMPLES_MAX, SAMPLES_MAX, 5]


def test_camera_3_equal_and_decreasing_dts_are_clamped() -> None:
    """DTS never stands still or goes back in the file, nothing is lost, and the PTS stays what it was."""
    times = [0, 3600, 3600, 3500, 7200, 10_800]
    (fragment,) = run(fragmenter(), [sample(t, keyframe=t == 0) for t in times])
    found = entries(fragment)
    assert [entry.duration for entry in found] == [3600, 1, 1, 3598, 3600, 3600]
    dts = 0
    for entry, time in zip(found, times, strict=True):
        assert dts + entry.offset == time
        dts += entry.duration


@pytest.mark.parametrize("jump_s", [2.5, 45, 3600, 2**32 / 90_000])
def test_camera_4_a_forward_jump_is_never_the_duration_of_a_frame(jump_s: float) -> None:
    """At a discontinuity the last sample keeps the pace of the one before it."""
    jump = round(jump_s * 90_000)
    cutter = fragmenter()
    for i in range(10):
        cutter.push(sample(i * 3600), UTC_NS)
    (before,) = cutter.push(sample(10 * 3600 + jump), UTC_NS + 1, discontinuity=True)
    (behind,) = cutter.flush()
    assert before.duration == 36_000
    assert behind.flags & FragmentFlag.DISCONTINUITY
    assert behind.utc_ns == UTC_NS + 1


def test_a_jump_that_nobody_announced_begins_time_anew() -> None:
    """Durations are 32 bits wide: the last defence is here."""
    cutter = fragmenter()
    cutter.push(sample(0), UTC_NS)
    (before,) = cutter.push(sample(2**40), UTC_NS + 5)
    assert before.duration == 3600
    assert cutter.flush()[0].flags & FragmentFlag.DISCONTINUITY


def test_b_frames_keep_their_composition_offsets() -> None:
    """Camera 11: PTS and DTS differ, in both directions."""
    order = [(0, 3600), (3600, 14_400), (7200, 7200), (10_800, 3600)]
    (fragment,) = run(fragmenter(), [sample(dts, pts=pts) for dts, pts in order])
    assert [entry.offset for entry in entries(fragment)] == [3600, 10_800, 0, -7200]


def test_a_pts_from_another_world_does_not_hide_a_frame() -> None:
    """An offset of hours is dropped: the frame is shown when it is decoded."""
    (fragment,) = run(fragmenter(), [sample(0, pts=2**33), sample(3600)])
    assert [entry.offset for entry in entries(fragment)] == [0, 0]


def test_silence_closes_a_fragment_by_timer() -> None:
    """First what is complete, then the last sample with the duration of the one before; the next one goes on if it is on time."""
    cutter = fragmenter()
    for one in video(10):
        cutter.push(one, one.arrival_ns)
    assert cutter.due(1000.5) == ()
    (complete,) = cutter.due(1001.3)
    assert (complete.samples, complete.duration) == (9, 9 * 3600)
    assert cutter.due(1001.4) == ()
    (last,) = cutter.due(1002.5)
    assert (last.samples, last.duration, last.index) == (1, 3600, 9)
    assert cutter.due(1010) == ()
    assert cutter.push(sample(10 * 3600 + 900, at_s=12), UTC_NS) == ()
    assert cutter.push(sample(11 * 3600, at_s=12), UTC_NS) == ()
    (behind,) = cutter.flush()
    assert not behind.flags & FragmentFlag.DISCONTINUITY
    assert [(entry.duration, entry.offset) for entry in entries(behind)] == [(3600, 900), (3600, 0)]


def test_a_guess_that_was_wrong_is_said() -> None:
    """The last duration was guessed on silence and the next sample is somewhere else: track time begins anew."""
    cutter = fragmenter()
    for one in video(10):
        cutter.push(one, one.arrival_ns)
    cutter.due(1002.6)
    cutter.push(sample(300_000, at_s=5), UTC_NS)
    (behind,) = cutter.flush()
    assert behind.flags & FragmentFlag.DISCONTINUITY


def test_slow_streams_wait_three_of_their_own_intervals() -> None:
    """One frame in two seconds is not silence."""
    cutter = fragmenter()
    closed = [f for i in range(4) for f in cutter.push(sample(i * 180_000), UTC_NS)]
    assert [f.duration for f in closed] == [180_000] * 3
    assert cutter.due(1006 + 5.9) == ()
    assert total(cutter.due(1006 + 6.1)) == 1


def test_slow_media_time_does_not_keep_a_fragment_open() -> None:
    """Camera 7: declared 25 fps, sent 10: the wall clock closes the fragment."""
    fragments = run(fragmenter(), (sample(i * 3600, at_s=i / 10) for i in range(40)))
    assert max(f.samples for f in fragments) <= 13


def test_damage_is_flagged_on_its_fragment_alone() -> None:
    """DAMAGED says that a sample of this very fragment is incomplete, also when the timer splits it."""
    fragments = run(fragmenter(), (sample(i * 3600, damaged=i == 30) for i in range(75)))
    assert [bool(f.flags & FragmentFlag.DAMAGED) for f in fragments] == [False, True, False]
    cutter = fragmenter()
    cutter.push(sample(0), UTC_NS)
    cutter.push(sample(3600, damaged=True), UTC_NS)
    split = [*cutter.due(1001.5), *cutter.flush()]
    assert [bool(f.flags & FragmentFlag.DAMAGED) for f in split] == [False, True]


def test_audio_is_cut_by_time_alone() -> None:
    """Every audio frame is a sync sample, and none of them cuts."""
    cutter = Fragmenter(AUDIO, AUDIO_CONFIG, SESSION)
    fragments = run(cutter, (sample(i * 1024, media=Media.AUDIO, keyframe=True, timescale=48_000) for i in range(470)))
    assert {f.samples for f in fragments[:-1]} == {46}
    assert all(f.flags & FragmentFlag.KEYFRAME for f in fragments)
    assert sum(bool(f.flags & FragmentFlag.SEGMENT) for f in fragments) == 2


def test_another_configuration_closes_what_is_open() -> None:
    """No fragment mixes two pictures; time goes on."""
    larger = VIDEO_CONFIG.__class__(Media.VIDEO, "h264", 90_000, b"", 640, 480)
    cutter = fragmenter()
    for one in video(5):
        cutter.push(one, one.arrival_ns)
    assert cutter.configure(VIDEO_CONFIG) == ()
    (old,) = cutter.configure(larger)
    for one in video(5, start=5):
        cutter.push(one, one.arrival_ns)
    (new,) = cutter.flush()
    assert (old.config, new.config) == (VIDEO_CONFIG, larger)
    assert new.flags == FragmentFlag.SEGMENT


def test_the_arrival_of_a_fragment_is_that_of_its_last_sample() -> None:
    """Lag is measured from the sample that completed it."""
    fragments = run(fragmenter(), video(50))
    assert [f.arrival_s for f in fragments] == [1000.96, 1001.96]


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.integers(-(2**34), 2**34) | st.integers(0, 200_000),  # dts
            st.integers(-(2**34), 2**34),  # pts
            st.booleans(),  # keyframe
            st.integers(0, 300),  # bytes
            st.sampled_from(["push", "run", "flush", "due"]),
        ),
        max_size=60,
    )
)
def test_no_order_of_events_loses_or_reorders_a_sample(events: list[tuple[int, int, bool, int, str]]) -> None:
    """Whatever the timestamps: every byte comes out once, in order; durations are positive and sum up; fields fit."""
    cutter = fragmenter(fragment_bytes_max=700)
    found: list[Fragment] = []
    sent: list[bytes] = []
    for number, (dts, pts, keyframe, size, what) in enumerate(events):
        data = struct.pack(">I", number) + bytes(size)
        sent.append(data)
        one = sample(dts, pts=pts, data=data, keyframe=keyframe, at_s=number / 10)
        found += cutter.push(one, UTC_NS + number, discontinuity=what == "run")
        if what == "flush":
            found += cutter.flush()
        elif what == "due":
            found += cutter.due(one.arrival_s + 10)
    found += cutter.flush()
    assert [data for fragment in found for data in payloads(fragment)] == sent
    index = 0
    for fragment in found:
        lines = entries(fragment)
        assert fragment.index == index
        assert fragment.samples == len(lines) >= 1
        assert sum(entry.duration for entry in lines) == fragment.duration
        assert min(entry.duration for entry in lines) > 0
        assert fragment.samples == 1 or fragment.length <= len(fragment.parts[0]) + 700
        assert bool(fragment.flags & FragmentFlag.KEYFRAME) == lines[0].sync
        index += fragment.samples
    assert index == len(sent)
