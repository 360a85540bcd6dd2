"""Media time to UTC: what cameras' clocks do, and what runs become of it. A day passes in a second; nothing waits."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.clocks import MS, S, camera, errors_ms, offsets_us, place, runs, timeline
from tests.support.media import UTC_NS, sample

from nvrstore.model import Media, RecordKind, Sample
from nvrstore.timeline import ClockStep, ClockWatch, Placement, RunReason, RunRecord, Unwrapper


def test_a_steady_camera_is_one_run_and_every_frame_is_where_it_was_sent() -> None:
    """Half a second is held at first; then each sample comes out as it goes in."""
    made = timeline()
    frames = list(camera(10))
    assert place(made, frames[:12]) == []
    out = place(made, frames[12:])
    rest, ended = made.disconnect()
    assert rest == []
    assert [p.sample for p in out] == frames
    assert offsets_us(out) == [0] * 250
    assert runs(out) == [(0, RunReason.START)]
    (run,) = ended
    assert (run.start_ns, run.end_ns, run.media_ticks, run.samples) == (UTC_NS, UTC_NS + 10 * S, 900_000, 250)


def test_what_is_held_comes_out_by_timer_and_at_the_end() -> None:
    """A camera that sends a few frames and falls silent loses none."""
    made = timeline()
    frames = list(camera(0.2))
    assert place(made, frames) == []
    assert made.due(1000.4) == []
    assert [p.sample for p in made.due(1000.6)] == frames
    other = timeline()
    assert place(other, frames) == []
    out, ended = other.disconnect()
    assert [p.sample for p in out] == frames
    assert len(ended) == 1


def test_camera_1_a_wild_first_dts_stays_with_its_gop() -> None:
    """The first keyframe is put just before the frame that follows it: one run, nothing lost."""
    for wild in (8_589_934_592, -5_000_000, 3_000_000):
        frames = list(camera(4, start_dts=0))
        frames[0] = sample(wild, at_s=0.0, keyframe=True)
        out = place(timeline(), frames)
        assert runs(out) == [(0, RunReason.START)]
        assert [p.sample.dts for p in out] == [i * 3600 for i in range(100)]
        assert out[0].sample.keyframe
        assert max(abs(error) for error in errors_ms(out)) < 1


def test_camera_3_equal_and_decreasing_dts_are_clamped() -> None:
    """They stay in their run, in order, each later than the one before."""
    times = [0, 3600, 3600, 2000, 7200, 10_800, *range(14_400, 300_000, 3600)]
    out = place(timeline(), [sample(dts, at_s=i / 25) for i, dts in enumerate(times)])
    assert runs(out) == [(0, RunReason.START)]
    dts = [p.sample.dts for p in out]
    assert dts[:6] == [0, 3600, 3601, 3602, 7200, 10_800]
    assert [p.sample.pts for p in out] == dts  # a PTS that goes back is as wrong, where pictures come in the order in which they are shown
    assert all(a < b for a, b in itertools.pairwise(dts))
    assert all(a.utc_ns < b.utc_ns for a, b in itertools.pairwise(out))


def test_camera_3_a_dts_that_stands_still_is_replaced_by_arrival() -> None:
    """One and the same DTS for ever: after a few samples our clock tells the time, and PTS move along."""
    out = place(timeline(), [sample(0, at_s=i / 25) for i in range(250)])
    assert runs(out) == [(0, RunReason.START)]
    assert abs((out[-1].utc_ns - out[10].utc_ns) / S - 239 / 25) < 0.01
    assert out[-1].sample.pts == out[-1].sample.dts


@pytest.mark.parametrize("jump_s", [2.5, 10, 3600])
def test_camera_4_a_forward_jump_ends_the_run_and_is_what_was_lost(jump_s: float) -> None:
    """Both clocks went on: samples are missing. The run ends with its own pace, the anchor stays, the hole has both ends."""
    before, behind = camera(10), camera(10, start_dts=round((10 + jump_s) * 90_000), start_s=10 + jump_s)
    out = place(timeline(), [*before, *behind])
    assert runs(out) == [(0, RunReason.START), (250, RunReason.JUMP)]
    ended = out[250].ended
    assert ended is not None
    assert (ended.end_ns, ended.media_ticks, ended.samples) == (UTC_NS + 10 * S, 900_000, 250)
    assert out[250].lost_ns == round(jump_s * S)
    assert max(abs(error) for error in errors_ms(out)) < 1


@pytest.mark.parametrize("stall_s", [1.5, 2.5])
def test_camera_4_a_jump_behind_a_stalled_link_is_still_what_was_lost(stall_s: float) -> None:
    """The last frames before the loss were late, so the wait for the first one behind it was short: the anchor tells, not the wait."""
    late = [sample(i * 3600, at_s=max(i / 25, 10 + stall_s if i >= 240 else 0)) for i in range(250)]
    out = place(timeline(), [*late, *camera(10, start_dts=13 * 90_000, start_s=13)])
    assert runs(out) == [(0, RunReason.START), (250, RunReason.JUMP)]
    assert out[250].lost_ns == 3 * S
    assert max(abs(error) for error in errors_ms(out)) < 1


def test_camera_4_a_leap_of_the_camera_alone_loses_nothing() -> None:
    """Its clock leaps by an hour between two frames: another run, no hole."""
    out = place(timeline(), [*camera(10), *camera(10, start_dts=3610 * 90_000, start_s=10)])
    assert runs(out) == [(0, RunReason.START), (250, RunReason.LEAP)]
    assert out[250].lost_ns == 0
    assert out[250].utc_ns == UTC_NS + 10 * S


@pytest.mark.parametrize("back_s", [0.6, 5, 3600 * 12])
def test_camera_5_a_reset_begins_a_run_and_time_goes_on(back_s: float) -> None:
    """Timestamps begin again at 0, or rewind by seconds, in the middle of a session."""
    start = round(back_s * 90_000)
    out = place(timeline(), [*camera(20, start_dts=start), *camera(20, start_dts=0, start_s=20)])
    assert runs(out) == [(0, RunReason.START), (500, RunReason.RESET)]
    assert out[500].lost_ns == 0
    assert offsets_us(out) == [0] * 1000


@pytest.mark.parametrize("pictures", [1, 2, 3, 12])
def test_camera_5_a_short_way_back_to_the_beginning_is_a_reset_if_a_keyframe_leads_it(pictures: int) -> None:
    """Another client joins, the server begins again for everybody with a keyframe, 0.2 s later: every picture is where it was sent."""
    for off in (-1000, 0, 10)[: 1 + pictures]:  # the first time of a session is rounded at times, or a guess
        first = list(camera(pictures / 25))
        second = list(camera(20, start_dts=off, start_s=0.2 + pictures / 25))
        made = timeline()
        out = [*place(made, [*first, *second]), *made.disconnect()[0]]
        assert [p.sample.data for p in out] == [one.data for one in (*first, *second)]
        assert runs(out) == [(0, RunReason.START), *([(pictures, RunReason.RESET)] if pictures > 1 else [])]
        assert [round((p.utc_ns - UTC_NS) / MS) for p in out] == [round(one.arrival_s * 1000) - 1_000_000 for one in (*first, *second)]
        assert [p.sample.pts for p in out] == [p.sample.dts for p in out]


def test_camera_5_a_short_way_back_to_anywhere_else_is_clamped() -> None:
    """By jitter; at a keyframe; or without one, to where the clock began: one run, in order."""
    for at, back, keyframe in ((10, 3, False), (50, 3, True), (8, 8, False), (1, 1, False)):
        frames = list(camera(4))
        frames[at] = frames[at]._replace(pts=(at - back) * 3600, dts=(at - back) * 3600, keyframe=keyframe)
        out = place(timeline(), frames)
        assert runs(out) == [(0, RunReason.START)]
        assert all(a.sample.pts < b.sample.pts for a, b in itertools.pairwise(out))


def test_camera_5_keyframes_alone_on_a_clock_that_stands_still_are_no_resets() -> None:
    """Motion JPEG without a clock: two runs at most, and then our clock tells the time."""
    out = place(timeline(), [sample(0, at_s=i / 25, keyframe=True) for i in range(250)])
    assert len(runs(out)) == 1
    assert abs((out[-1].utc_ns - out[10].utc_ns) / S - 239 / 25) < 0.01


def test_camera_6_a_day_and_a_half_of_rtp_timestamps_wraps_unnoticed() -> None:
    """32 bits at 90 kHz wrap every 13.25 h: unwrapped, 36 h are one run."""
    unwrapper = Unwrapper()
    wrapped = list(camera(36 * 3600, fps=0.5, start_dts=2**32 - 1000))
    frames = [sample(unwrapper.unwrap(one.dts % 2**32), at_s=one.arrival_s - 1000) for one in wrapped]
    out = place(timeline(), frames)
    assert runs(out) == [(0, RunReason.START)]
    assert out[-1].sample.dts == wrapped[-1].dts
    assert max(abs(error) for error in errors_ms(out, start_dts=2**32 - 1000)) < 1


def test_camera_6_a_wrap_that_nobody_unwrapped_costs_a_run_and_no_frame() -> None:
    """The last line of defence."""
    out = place(timeline(), [*camera(10, start_dts=2**32 - 900_000), *camera(10, start_dts=0, start_s=10)])
    assert runs(out) == [(0, RunReason.START), (250, RunReason.RESET)]
    assert offsets_us(out) == [0] * 500


@given(st.integers(1, 2**32 - 1), st.lists(st.integers(-(2**30), 2**30), max_size=50))
def test_unwrapping_is_exact_for_any_steps(start: int, steps: list[int]) -> None:
    """Forward over many wraps, and back."""
    unwrapper = Unwrapper()
    value = start
    assert unwrapper.unwrap(value) == value
    for step in steps:
        value += step
        assert unwrapper.unwrap(value % 2**32) == value


@pytest.mark.parametrize("by_s", [3600.0, -3600.0, 0.7, -86_400.0])
def test_camera_10_a_step_of_our_clock_begins_a_run_on_the_new_time(by_s: float) -> None:
    """NTP after a boot without a battery-backed clock: both runs are right by the clock of their time, and nothing is lost."""
    out: list[Placement] = []
    made = timeline()
    for i, one in enumerate(camera(60)):
        if i >= 750:
            one = Sample(one.media, one.data, one.pts, one.dts, one.keyframe, one.arrival_ns + round(by_s * S), one.arrival_s)
        out += made.place([one])
    assert runs(out) == [(0, RunReason.START), (751, RunReason.CLOCK_STEP)]
    assert out[751].lost_ns == 0
    assert offsets_us(out) == [0] * 751 + [round(by_s * 1e6)] * 749


def test_camera_10_a_pause_between_two_readings_is_no_step() -> None:
    """One odd pair of readings is not believed; NTP's slewing is followed."""
    watch = ClockWatch()
    assert watch.look(UTC_NS, 100.0) is None
    assert watch.look(UTC_NS + 3 * S, 101.0) is None
    assert watch.look(UTC_NS + 2 * S, 102.0) is None
    for second in range(3, 4000):
        assert watch.look(UTC_NS + second * S + second * 500_000, 100.0 + second) is None
    assert watch.look(UTC_NS, 5000.0) is None
    assert watch.look(UTC_NS + S, 5001.0) == ClockStep(UTC_NS + S, -4900 * S - 3999 * 500_000)
    assert ClockStep(5, -3).record().kind == RecordKind.CLOCK_STEP


def test_slow_streams_are_not_broken_ones() -> None:
    """A frame every ten seconds: after the first interval is known it is one run."""
    out = place(timeline(), camera(600, fps=0.1))
    assert runs(out) == [(0, RunReason.START), (1, RunReason.JUMP)]
    assert max(abs(error) for error in errors_ms(out)) < 1


def test_a_reconnect_is_a_run_on_a_new_clock() -> None:
    """The track's time begins anywhere; what nothing covers in between is said; ids do not repeat."""
    made = timeline()
    first = place(made, camera(10))
    held, ended = made.disconnect()
    second = [*place(made, camera(10, start_dts=777, start_s=25)), *made.disconnect()[0]]
    assert (len(first) + len(held), len(ended), len(second)) == (250, 1, 250)
    assert runs(second) == [(0, RunReason.START)]
    assert abs(second[0].lost_ns - 15 * S) < 1000
    assert second[0].ended is None
    assert second[0].began is not None
    assert second[0].began.id != ended[0].id
    assert made.disconnect() == ([], [])


def test_runs_do_not_overlap_by_jitter() -> None:
    """A new anchor that is a little early begins where the last run ended."""
    made = timeline()
    first = place(made, camera(10, delay_s=0.3))
    made.disconnect()
    second = [*place(made, camera(10, start_s=10.1)), *made.disconnect()[0]]
    assert second[0].utc_ns == first[-1].utc_ns + 40 * MS


def test_another_timescale_ends_the_run() -> None:
    """The sound of a camera changes from 8 to 16 kHz."""
    made = timeline()
    first = place(made, (sample(i * 160, media=Media.AUDIO, at_s=i / 50, timescale=8000) for i in range(100)))
    assert made.declare(Media.AUDIO, 8_000) == []
    assert made.declare(Media.AUDIO, 16_000) == []
    second = place(made, (sample(i * 320, media=Media.AUDIO, at_s=2 + i / 50, timescale=16_000) for i in range(100)))
    assert len(first) == len(second) == 100
    ended, began = second[0].ended, second[0].began
    assert ended is not None
    assert began is not None
    assert (ended.timescale, began.timescale) == (8_000, 16_000)
    assert ended.id != began.id
    assert second[0].lost_ns == 0


def test_a_run_survives_the_ledger() -> None:
    """Its record reads back as the run it was."""
    made = timeline()
    place(made, camera(2))
    _, (run,) = made.disconnect()
    assert run.record().kind == RecordKind.RUN
    assert RunRecord.of(run.record()) == run


ticks = st.integers(-(2**34), 2**34) | st.integers(-10_000, 400_000) | st.just(3600)


@settings(max_examples=80)
@given(
    st.lists(
        st.tuples(ticks, st.floats(0, 3), st.sampled_from([0, 0, 0, 0, 3600 * S, -5 * S]), st.sampled_from(["", "", "", "due", "end"])),
        max_size=60,
    )
)
def test_whatever_the_clocks_do_no_sample_is_lost_and_time_is_in_order(events: list[tuple[int, float, int, str]]) -> None:
    """Jumps of either clock, resets, silence, reconnects: every sample once, in order; DTS and UTC grow within each run; runs close."""
    made = timeline()
    out: list[Placement] = []
    closed: list[RunRecord] = []
    dts, now_s, wall_ns = 0, 0.0, 0
    for number, (step, wait_s, set_ns, what) in enumerate(events):
        dts, now_s, wall_ns = dts + step, now_s + wait_s, wall_ns + set_ns
        one = sample(dts, data=number.to_bytes(2, "big"), at_s=now_s)
        out += made.place([Sample(one.media, one.data, one.pts, one.dts, False, one.arrival_ns + wall_ns, one.arrival_s)])
        if what == "due":
            out += made.due(one.arrival_s + 1)
        elif what == "end":
            placements, ended = made.disconnect()
            out += placements
            closed += ended
    placements, ended = made.disconnect()
    out += placements
    closed += ended
    assert [int.from_bytes(p.sample.data, "big") for p in out] == list(range(len(events)))
    assert not out or out[0].began is not None
    for before, after in itertools.pairwise(out):
        if after.began is None:
            assert before.sample.dts < after.sample.dts
            assert before.utc_ns < after.utc_ns
    closed += [p.ended for p in out if p.ended is not None]
    began = [p.began.id for p in out if p.began is not None]
    assert sorted(run.id for run in closed) == sorted(began)
    assert sum(run.samples for run in closed) == len(events)
    assert all(run.end_ns is not None and run.media_ticks is not None and run.media_ticks > 0 for run in closed)


@pytest.mark.parametrize("seed", range(20))
def test_samples_that_came_together_are_placed_as_if_they_had_come_one_by_one(seed: int) -> None:
    """Reads of any size, across jumps, resets, stamps that stand still, drift and jitter: the same samples, the same runs, the same UTC."""
    chance = random.Random(seed)
    sent: list[Sample] = []
    dts, at_s, way = 0, 0.0, 1.0 + chance.choice((0, 40, -40)) / 1e6
    for _ in range(2500):
        at_s += 0.04
        dts += round(3600 * way)
        if chance.random() < 0.003:
            step = chance.choice(("hole", "leap", "reset", "stuck"))
            at_s += 7.0 if step == "hole" else 0.0
            dts += {"hole": 630_000, "leap": 9_000_000, "reset": -dts, "stuck": -3600}[step]
        sent.append(sample(dts, at_s=at_s + chance.random() * 0.03))
    reads: list[list[Sample]] = []
    while sent:
        count = chance.randint(1, 6)
        read, sent = sent[:count], sent[count:]
        last = read[-1]
        reads.append([one._replace(arrival_ns=last.arrival_ns, arrival_s=last.arrival_s) for one in read])
    singly, together = timeline(), timeline()
    one_by_one = place(singly, (one for read in reads for one in read))
    at_once = [placement for read in reads for placement in together.place(read)]
    for out, made in ((one_by_one, singly), (at_once, together)):
        out += made.disconnect()[0]
    assert [p.sample for p in at_once] == [p.sample for p in one_by_one]
    assert runs(at_once) == runs(one_by_one)
    assert len(runs(at_once)) > 1
    assert max(abs(a.utc_ns - b.utc_ns) for a, b in zip(at_once, one_by_one, strict=True)) < 1 * MS
    assert all(a.utc_ns < b.utc_ns for a, b in itertools.pairwise(at_once) if b.began is None)
