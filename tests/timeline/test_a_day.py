"""A whole day of a camera in a moment: its RTP clock wraps, its NTP jumps, our clock is set and slewed; no frame is lost or misplaced."""

from __future__ import annotations

import itertools

import pytest
from tests.support.clocks import S, runs, timeline
from tests.support.media import UTC_NS, sample

from nvrstore.model import Media
from nvrstore.timeline import Placement, RunReason, Unwrapper

HOURS = 24
FPS = 1
TICKS = 90_000 // FPS
FRAMES = HOURS * 3600 * FPS
REPORT_EVERY = 5 * FPS  # RTCP, every 5 s
SLEW_PPM = 20  # of our wall clock, all day long

#: Our clock is set: at this second of the day, by so many seconds.
STEPS_S = {2 * 3600: 3600.0, 9 * 3600: -0.9, 13 * 3600: -3600.0, 20 * 3600: 86_400.0}

#: The camera's clock is set, as its reports say: from this second on it is wrong by so many seconds.
CAMERA_STEPS_S = {0: 0.0, 3600: -946_684_800.0, 3 * 3600: 7200.0, 11 * 3600: 0.02, 17 * 3600: -0.4, 22 * 3600: 0.0}


def lateness_s(number: int) -> float:
    """How late a frame arrives: a pseudo-random wait of up to 60 ms, for some of them of half a second."""
    wait_s = number * 2_654_435_761 % 61 / 1000
    return wait_s + 0.5 if number % 997 == 0 else wait_s


def at_our_clock(second: float) -> float:
    """By how many seconds our wall clock was set since the day began."""
    return sum((by for at, by in STEPS_S.items() if second >= at), 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trusted", "timestamp_0"), [(False, 2**32 - 45_000), (True, 2**31)], ids=["arrival-wraps-at-once", "ntp-wraps-after-six-hours"]
)
def test_a_day_of_wraps_and_jumps_loses_no_frame_and_ends_runs_by_our_own_clock_alone(trusted: bool, timestamp_0: int) -> None:
    """One run for each time that our clock was set; 32-bit timestamps wrap every 13.25 h unseen; the camera's NTP moves nobody.

    UTC is that of our clock at its time, to the wait in the network, or as far as a trusted camera is plausibly off; media time within
    a run is exactly what was sent.
    """
    made, unwrapper = timeline(trust_camera_clock=trusted), Unwrapper()
    out: list[Placement] = []
    arrival_s = 0.0
    for number in range(FRAMES):
        second = number / FPS
        arrival_s = max(arrival_s, second + lateness_s(number))
        dts = unwrapper.unwrap((timestamp_0 + number * TICKS) % 2**32)
        ours_ns = round((at_our_clock(arrival_s) + arrival_s * SLEW_PPM / 1e6) * S)
        if number % REPORT_EVERY == 1:
            wrong_s = next(by for at, by in reversed(CAMERA_STEPS_S.items()) if second >= at)
            made.reference(Media.VIDEO, dts, UTC_NS + round((second + wrong_s) * S))
        one = sample(dts, at_s=arrival_s)
        out += made.place([one._replace(arrival_ns=one.arrival_ns + ours_ns)])
    rest, ended = made.disconnect()
    out += rest
    assert [p.sample.dts - out[0].sample.dts for p in out] == [number * TICKS for number in range(FRAMES)]
    assert [reason for _, reason in runs(out)] == [RunReason.START] + [RunReason.CLOCK_STEP] * len(STEPS_S)
    for at, (begin, _) in zip([0, *STEPS_S], runs(out), strict=True):
        assert 0 <= begin / FPS - at <= 3
    for before, after in itertools.pairwise(out):
        assert after.lost_ns == 0
        assert after.began is not None or after.utc_ns > before.utc_ns
    begins = [begin for begin, _ in runs(out)]
    bounds = [*begins, FRAMES]
    for begin, end in itertools.pairwise(bounds):
        set_s = at_our_clock(begin / FPS)
        errors_s = [(out[number].utc_ns - UTC_NS) / S - (number / FPS * (1 + SLEW_PPM / 1e6) + set_s) for number in range(begin, end)]
        assert max(abs(error) for error in errors_s) < (1.0 if trusted else 0.1)
    closed = [p.ended for p in out if p.ended is not None] + ended
    assert sum(run.samples for run in closed) == FRAMES
