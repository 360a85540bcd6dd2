"""Retries are jittered, grow, and treat a refused login with care."""

from __future__ import annotations

from random import Random

import pytest

from nvrstore.errors import SourceEndedError, SourceError, SourceRefusedError, SourceSilentError
from nvrstore.ingest.backoff import Backoff
from nvrstore.limits import BACKOFF_REFUSED_S_MAX, BACKOFF_REFUSED_S_MIN, BACKOFF_S_MAX, BACKOFF_S_MIN, SESSION_STEADY_S

GONE = SourceEndedError("gone")
REFUSED = SourceRefusedError("no")


def delays(error: SourceError, lasted_s: float, times: int, seed: int = 1) -> list[float]:
    backoff = Backoff(Random(seed))
    return [backoff.ended(error, lasted_s) for _ in range(times)]


def test_delays_double_from_the_least_to_the_most() -> None:
    """Each delay lies between half of its step and the step."""
    for number, delay_s in enumerate(delays(GONE, 0, 12)):
        step_s = min(BACKOFF_S_MAX, BACKOFF_S_MIN * 2**number)
        assert step_s / 2 <= delay_s <= step_s


def test_a_steady_session_begins_the_delays_anew() -> None:
    """A camera that worked for a while is tried again at once."""
    backoff = Backoff(Random(1))
    for _ in range(8):
        backoff.ended(GONE, 0)
    assert backoff.ended(GONE, SESSION_STEADY_S) <= BACKOFF_S_MIN


@pytest.mark.parametrize("lasted_s", [0.1, 2, SESSION_STEADY_S - 0.1])
def test_a_flapping_camera_is_tried_ever_more_rarely(lasted_s: float) -> None:
    """Sessions that end soon do not reset the delay: otherwise a flapping camera makes hundreds of tiny pieces."""
    assert delays(GONE, lasted_s, 10)[-1] >= BACKOFF_S_MAX / 2


def test_a_switch_that_reboots_makes_no_herd() -> None:
    """Three hundred cameras that are lost together do not come back together."""
    firsts = sorted(delays(GONE, SESSION_STEADY_S, 1, seed)[0] for seed in range(300))
    assert firsts[-1] - firsts[0] > BACKOFF_S_MIN / 4
    assert len({round(delay_s, 3) for delay_s in firsts}) > 100


def test_a_refused_login_is_tried_after_a_long_pause_only() -> None:
    """Five tries in five minutes lock many cameras for half an hour: even the first pause is a minute, and it doubles."""
    found = delays(REFUSED, 0, 8)
    assert found[0] >= BACKOFF_REFUSED_S_MIN
    assert sum(found[:4]) > 300
    assert BACKOFF_REFUSED_S_MAX <= found[-1] <= 1.25 * BACKOFF_REFUSED_S_MAX


def test_refusals_and_losses_are_counted_apart() -> None:
    """A camera that is unreachable for an hour and then refuses the login is not tried again within a minute."""
    backoff = Backoff(Random(1))
    for _ in range(10):
        backoff.ended(SourceSilentError("mute"), 0)
    assert backoff.ended(REFUSED, 0) >= BACKOFF_REFUSED_S_MIN
    backoff.forget()
    assert backoff.ended(GONE, 0) <= BACKOFF_S_MIN
