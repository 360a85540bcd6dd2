"""What real cameras do and no server can be made to do: samples played by the test, on a clock that only the test moves.

Named like test_cameras.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.support.ingest import FRAME_S, Stage
from tests.support.media import VIDEO_CONFIG

from nvrstore.errors import SourceRefusedError
from nvrstore.limits import FRAGMENT_BYTES_MAX, KEYFRAME_WAIT_S
from nvrstore.model import NS_PER_S, Cause, FragmentFlag, Media
from nvrstore.timeline import RunReason


def test_camera_10_a_step_of_our_clock_ends_a_run_and_loses_nothing() -> None:
    """NTP after boot: an hour forward. Recording goes on under the new time; the ledger says why."""
    stage = Stage()
    stage.connect()
    stage.run(4, frames=True)
    stage.clock.step(3600)
    stage.run(4, frames=True)
    stage.supervisor.stop()
    assert stage.book.samples() == 200
    assert [run.reason for run in stage.book.runs()] == [RunReason.START, RunReason.CLOCK_STEP]
    first, last = stage.book.of()[0], stage.book.of()[-1]
    assert last.end_ns - first.utc_ns == pytest.approx(3608 * NS_PER_S, abs=NS_PER_S)


def test_camera_13_frames_before_a_change_belong_to_what_was_before() -> None:
    """Also those that are still held at the start of a session, until their place in time is known."""
    stage = Stage()
    stage.connect()
    stage.run(0.2, frames=True)
    stage.source.receiver.on_track(replace(VIDEO_CONFIG, width=640, height=480))
    stage.frame(keyframe=True)
    stage.run(2, frames=True)
    stage.supervisor.stop()
    sizes = [(fragment.config.width, fragment.samples) for fragment in stage.book.of()]
    assert sizes[0] == (320, 5)
    assert {width for width, _ in sizes[1:]} == {640}
    stage.book.check()


def test_camera_15_a_stream_without_any_keyframe_is_recorded_after_a_bounded_wait() -> None:
    """Intra refresh without recovery points: the wait is a gap with both ends, and the next session does not wait again."""
    stage = Stage()
    stage.connect()
    stage.dts = 1
    stage.run(KEYFRAME_WAIT_S + 5, frames=True, keyframes=False)
    stage.source.end()
    stage.connect()
    stage.dts = 1
    stage.run(3, frames=True, keyframes=False)
    stage.supervisor.stop()
    waited, interrupted = stage.book.gaps()
    assert waited.start_ns == stage.start_ns
    assert waited.end_ns == stage.book.of()[0].utc_ns
    assert waited.end_ns - waited.start_ns == pytest.approx(KEYFRAME_WAIT_S * NS_PER_S, abs=NS_PER_S)
    assert interrupted.end_ns is not None
    begun = [fragment for fragment in stage.book.of() if fragment.flags & FragmentFlag.DISCONTINUITY]
    assert len(begun) == 2
    assert not any(fragment.flags & FragmentFlag.KEYFRAME for fragment in begun)
    assert stage.book.samples() == pytest.approx((5 + 3) / FRAME_S, abs=3)
    stage.book.check()


def test_camera_16_a_part_closes_by_bytes_and_by_silence() -> None:
    """A flood is split and never refused; the last fragment does not wait for a next picture for ever."""
    stage = Stage(silence_s=60.0)
    stage.connect()
    for _ in range(40):
        stage.clock.advance(0.001)
        stage.frame(keyframe=False, data=bytes(1 << 20)) if stage.dts else stage.frame(keyframe=True, data=bytes(1 << 20))
    stage.run(5)
    assert stage.book.samples() == 40
    assert max(fragment.length for fragment in stage.book.of()) <= FRAGMENT_BYTES_MAX + 4096
    stage.supervisor.stop()


def test_camera_19_sound_that_cannot_be_stored_costs_no_video() -> None:
    """An engine gives up a track of sound; the picture does not even notice."""
    stage = Stage()
    stage.connect()
    stage.run(3, frames=True)
    stage.supervisor.stop()
    assert [track.media for track, _, _ in stage.book.declared] == [Media.VIDEO]
    assert stage.book.samples() == 75


def test_camera_27_wrong_logins_are_rare_over_a_day() -> None:
    """At most five tries in any half hour, whatever the clock of the backoff says."""
    stage = Stage()
    tries: list[float] = []
    for _ in range(24 * 60):
        stage.run(60, step_s=10)
        if stage.puppets.made and not stage.source.ended:
            tries.append(stage.clock.monotonic_s())
            stage.source.end(SourceRefusedError("401"))
    assert all(tries[i + 5] - tries[i] > 1200 for i in range(len(tries) - 5))
    assert len(tries) > 24
    stage.supervisor.stop()


def test_camera_28_damage_is_flagged_and_in_the_ledger_with_both_ends() -> None:
    """From the first frame that came incomplete to the next keyframe that is whole; the frames are stored all the same."""
    stage = Stage()
    stage.connect()
    for number in range(200):
        stage.clock.advance(FRAME_S)
        stage.frame(keyframe=number % 50 == 0, damaged=number in (70, 71, 90))
        if number % 5 == 0:
            stage.tick()
    stage.supervisor.stop()
    assert stage.book.samples() == 200
    (gap,) = stage.book.gaps()
    assert gap.cause is Cause.NETWORK
    assert gap.end_ns is not None
    first = stage.book.of()[0].utc_ns
    assert (gap.start_ns - first) / NS_PER_S == pytest.approx(70 * FRAME_S, abs=0.05)
    assert (gap.end_ns - first) / NS_PER_S == pytest.approx(100 * FRAME_S, abs=0.05)
    flagged = [fragment for fragment in stage.book.of() if fragment.flags & FragmentFlag.DAMAGED]
    assert flagged
    assert all(fragment.end_ns > gap.start_ns and fragment.utc_ns < gap.end_ns for fragment in flagged)


def test_camera_30_an_hour_of_flapping_makes_no_hundreds_of_pieces() -> None:
    """Sessions of two seconds do not reset the backoff."""
    stage = Stage()
    end_s = stage.clock.monotonic_s() + 3600
    while stage.clock.monotonic_s() < end_s:
        stage.connect()
        stage.run(2, frames=True)
        stage.source.end()
    stage.supervisor.stop()
    assert len(stage.book.runs()) < 180
    stage.book.check()
