"""What a run is anchored to: the least delayed arrival, the camera's own clock, the other track; and how the anchor moves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from tests.support.clocks import MS, S, camera, errors_ms, offsets_us, place, runs, timeline
from tests.support.media import UTC_NS, sample

from nvrstore.limits import SLEW_PPM_MAX
from nvrstore.model import Media, Sample
from nvrstore.timeline import Placement, RunReason


def test_the_least_delayed_sample_wins() -> None:
    """Jitter of 300 ms at the start and for an hour: the error is that of the luckiest packet of half a second, then less."""
    out = place(timeline(), camera(3600, fps=5, jitter_s=0.3))
    found = errors_ms(out)
    assert runs(out) == [(0, RunReason.START)]
    assert 0 <= max(found) <= 300
    assert abs(found[-1]) < 60


def test_utc_never_slews_faster_than_the_limit() -> None:
    """However arrivals jitter: from frame to frame UTC and media time differ by 500 ppm at most."""
    out = place(timeline(), camera(600, jitter_s=0.4, seed=3))
    for before, after in itertools.pairwise(out):
        media_ns = (after.sample.dts - before.sample.dts) * S // 90_000
        assert abs(after.utc_ns - before.utc_ns - media_ns) <= media_ns * SLEW_PPM_MAX // 1_000_000 + 1


@pytest.mark.parametrize("ppm", [pytest.param(-100, marks=pytest.mark.slow), pytest.param(30, marks=pytest.mark.slow), 300])
def test_a_day_of_a_clock_that_is_a_little_off_is_one_run(ppm: int) -> None:
    """24 h in fast forward: a quartz is followed by slewing, to within the jitter."""
    rate = 1 + ppm / 1e6
    out = place(timeline(), camera(86_400, fps=1, rate=rate, jitter_s=0.05))
    assert runs(out) == [(0, RunReason.START)]
    assert max(abs(error) for error in errors_ms(out, rate=rate)) < 150


@pytest.mark.parametrize("sent", [21, 29])
def test_camera_7_a_false_frame_rate_makes_no_gaps(sent: int) -> None:
    """Declared 25, sent 21 (or 29): one run; media time is kept, UTC follows the wall clock, both durations are stored."""
    rate = sent / 25
    made = timeline()
    out = place(made, camera(3600, fps=sent, rate=rate, jitter_s=0.02))
    assert runs(out) == [(0, RunReason.START)]
    assert sum(p.lost_ns for p in out) == 0
    assert {after.sample.dts - before.sample.dts for before, after in itertools.pairwise(out)} == {3600}
    found = errors_ms(out, rate=rate)
    assert max(map(abs, found)) < 6000
    assert max(map(abs, found[sent * 120 :])) < 400
    _, (run,) = made.disconnect()
    assert run.media_ticks == 3600 * sent * 3600
    assert run.end_ns is not None
    assert abs((run.end_ns - run.start_ns) / S - 3600) < 0.5


@pytest.mark.parametrize("burst_s", [0.1, 0.5, 1.5, 2.5])
def test_camera_8_a_burst_of_old_frames_is_placed_in_the_past(burst_s: float) -> None:
    """Five seconds of prebuffer arrive at once, or in a while: nothing lies in the future, and live frames are on time."""
    burst = [sample(i * 3600, at_s=i / 125 * burst_s) for i in range(125)]
    live = [sample((125 + i) * 3600, at_s=burst_s + i / 25) for i in range(500)]
    out = place(timeline(), [*burst, *live])
    assert runs(out) == [(0, RunReason.START)]
    assert len(out) == 625
    assert all(p.utc_ns <= p.sample.arrival_ns + 20 * MS for p in out)
    assert abs(out[0].utc_ns - (UTC_NS - round((5 - burst_s) * S))) < 20 * MS
    assert abs(out[-1].utc_ns - out[-1].sample.arrival_ns) < 20 * MS


def test_camera_8_a_slow_burst_is_put_right_by_a_new_run() -> None:
    """Ten seconds of prebuffer at twice the speed: longer than samples can be held, so the anchor is set again."""
    burst = [sample(i * 3600, at_s=i / 50) for i in range(500)]
    live = [sample((500 + i) * 3600, at_s=10 + i / 25) for i in range(1500)]
    out = place(timeline(), [*burst, *live])
    assert len(out) == 2000
    assert abs(out[-1].utc_ns - out[-1].sample.arrival_ns) < 50 * MS
    assert sum(p.lost_ns for p in out) == 0
    assert {reason for _, reason in runs(out)[1:]} == {RunReason.DRIFT}
    for placement in out:
        if placement.ended is not None and placement.began is not None:
            assert placement.ended.end_ns == max(placement.ended.start_ns, placement.began.start_ns)


def congested(ramp_s: float) -> Iterator[Sample]:
    """Ten minutes, in the second of which the link falls behind by 200 ms per second, and then delivers all at once."""
    for i in range(600 * 25):
        sent_s = i / 25
        late_s = 0.2 * max(0.0, sent_s - 60) if sent_s < 60 + ramp_s else 0.0
        arrival_s = min(sent_s + late_s, max(sent_s, 60 + ramp_s))
        yield sample(i * 3600, at_s=arrival_s)


def test_a_congested_link_moves_nothing() -> None:
    """Frames that arrive two seconds late for a while were still taken when their media time says."""
    out = place(timeline(), congested(12))
    assert runs(out) == [(0, RunReason.START)]
    assert max(abs(error) for error in errors_ms(out)) < 10


def test_a_link_that_degrades_evenly_for_long_is_taken_for_a_slow_clock_and_put_right() -> None:
    """The two cannot be told apart before it recovers: no frame is lost, and the UTC is right again soon after."""
    out = place(timeline(), congested(40))
    assert len(out) == 15_000
    assert sum(p.lost_ns for p in out) == 0
    assert max(abs(error) for error in errors_ms(out)[103 * 25 :]) < 500


def test_camera_9_an_untrusted_camera_clock_changes_nothing() -> None:
    """Arrival time by default: no sender arbitrarily changes recording dates."""
    made = timeline()
    out: list[Placement] = []
    for i, one in enumerate(camera(60)):
        if i % 100 == 0:
            made.reference(Media.VIDEO, one.pts, one.arrival_ns - 80 * MS)
        out += made.place([one])
    assert offsets_us(out) == [0] * 1500


@pytest.mark.parametrize(
    ("reports_ns", "believed"),
    [
        ([-80 * MS] * 30, True),
        ([-3600 * S] * 30, False),
        ([-2_208_988_800 * S] * 30, False),
        ([(-1) ** i * 500 * MS for i in range(30)], False),
        ([], False),
    ],
)
def test_camera_9_a_trusted_camera_clock_counts_where_it_is_plausible(reports_ns: list[int], believed: bool) -> None:
    """Not an hour off, not 1900, not one that changes its mind, not one that never reports."""
    made = timeline(trust_camera_clock=True)
    out: list[Placement] = []
    for i, one in enumerate(camera(600, fps=5)):
        if i % 100 == 3 and i // 100 < len(reports_ns):
            made.reference(Media.VIDEO, one.pts, one.arrival_ns + reports_ns[i // 100])
        out += made.place([one])
    made.reference(Media.AUDIO, 0, UTC_NS)
    assert runs(out) == [(0, RunReason.START)]
    assert abs(errors_ms(out)[-1] - (-80 if believed else 0)) < 1


@pytest.mark.parametrize(("video_s", "audio_s", "early"), [(0.09, 0.01, 0), (0.02, 0.3, 0), (0.02, 0.3, 20)])
def test_camera_21_sound_and_picture_share_one_anchor(video_s: float, audio_s: float, early: int) -> None:
    """One of them is late on the way: on one camera clock their sync is the camera's from the first frame on, whichever began."""
    made = timeline()
    merged = sorted(
        [
            *camera(30, delay_s=video_s, jitter_s=0.03),
            *(sample(i * 160, media=Media.AUDIO, at_s=i / 50 + audio_s, timescale=8000) for i in range(-early, 1500)),
        ],
        key=lambda one: one.arrival_s,
    )
    out = place(made, merged)
    audio = {p.sample.dts / 8_000: p.utc_ns for p in out if p.sample.media is Media.AUDIO}
    video = {p.sample.dts / 90_000: p.utc_ns for p in out if p.sample.media is Media.VIDEO}
    common = sorted(set(audio) & set(video))
    assert len(common) > 500
    assert video[0.0] - UTC_NS < 40 * MS
    assert max(abs(audio[second] - video[second]) for second in common) < MS


def test_camera_21_sound_that_begins_later_takes_the_anchor_that_is_there() -> None:
    """The picture's first second was late by 150 ms and its anchor still moves: sound joins it there, not where it should be."""
    made = timeline()
    merged = sorted(
        [
            *(sample(i * 3600, at_s=max(i / 25, min(i / 25 + 0.15, 1.15))) for i in range(500)),
            *(sample(i * 160, media=Media.AUDIO, at_s=i / 50, timescale=8000) for i in range(250, 1000)),
        ],
        key=lambda one: one.arrival_s,
    )
    out = place(made, merged)
    audio = {p.sample.dts / 8_000: p.utc_ns for p in out if p.sample.media is Media.AUDIO}
    video = {p.sample.dts / 90_000: p.utc_ns for p in out if p.sample.media is Media.VIDEO}
    common = sorted(set(audio) & set(video))
    assert len(common) > 300
    assert 100 * MS < video[common[0]] - UTC_NS - common[0] * S < 150 * MS
    assert max(abs(audio[second] - video[second]) for second in common) < MS


def test_camera_21_tracks_on_clocks_of_their_own_are_placed_each_by_its_arrivals() -> None:
    """RTP timestamps begin anywhere: no anchor is shared by mistake."""
    made = timeline()
    merged = sorted(
        [*camera(10, start_dts=10**9), *(sample(i * 160, media=Media.AUDIO, at_s=i / 50, timescale=8000) for i in range(500))],
        key=lambda one: one.arrival_s,
    )
    out = place(made, merged)
    assert all(abs(p.utc_ns - p.sample.arrival_ns) < MS for p in out)
