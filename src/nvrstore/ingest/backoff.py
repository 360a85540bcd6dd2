"""When to try a camera again (pure).

    delay of try n = uniform(1/2, 1) x min(max, min x 2^n)        after a refused login: from BACKOFF_REFUSED_S_MIN on

The doubling ends only after a session that lasted: a camera that flaps is reconnected ever more rarely, and makes a few
long holes instead of hundreds of tiny pieces. The jitter spreads the herd that a rebooting switch would make; the first
try after a long session is spread over the whole first interval for the same reason.
"""

from __future__ import annotations

from random import Random
from typing import Final

from nvrstore.errors import SourceError, SourceRefusedError
from nvrstore.limits import BACKOFF_REFUSED_S_MAX, BACKOFF_REFUSED_S_MIN, BACKOFF_S_MAX, BACKOFF_S_MIN, SESSION_STEADY_S

_EXPONENT_MAX: Final = 16  # 2^16 x the smallest delay is far above the largest: the power stays a small number


class Backoff:
    """The delays of one stream."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._tries = 0
        self._refusals = 0

    def ended(self, error: SourceError, lasted_s: float) -> float:
        """Seconds to wait after a session that delivered samples for `lasted_s` (0: none) and ended with `error`."""
        if lasted_s >= SESSION_STEADY_S:
            self._tries = 0
        if lasted_s > 0:
            self._refusals = 0
        if isinstance(error, SourceRefusedError):
            delay_s = _grown(BACKOFF_REFUSED_S_MIN, BACKOFF_REFUSED_S_MAX, self._refusals)
            self._refusals += 1
            return delay_s * self._random.uniform(1.0, 1.25)  # never sooner than the pause that keeps the account open
        delay_s = _grown(BACKOFF_S_MIN, BACKOFF_S_MAX, self._tries)
        self._tries += 1
        return delay_s * self._random.uniform(0.5, 1.0)

    def forget(self) -> None:
        """Begin anew: somebody changed the configuration, or says that the camera is back."""
        self._tries = self._refusals = 0


def _grown(least_s: float, most_s: float, times: int) -> float:
    return float(min(most_s, least_s * 2.0 ** min(times, _EXPONENT_MAX)))
