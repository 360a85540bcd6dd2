"""Which number of streams is tried next: doubled until a step fails, then bisected. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

START: Final = 16
PRECISION: Final = 0.05  # closer than a twentieth, two runs of the same step differ more than two steps


def bounds(results: Sequence[tuple[int, bool]]) -> tuple[int, int | None]:
    """(most streams that passed below every failure, fewest that failed). Nothing passed: 0."""
    worst = min((streams for streams, passed in results if not passed), default=None)
    best = max((streams for streams, passed in results if passed and (worst is None or streams < worst)), default=0)
    return best, worst


def next_streams(results: Sequence[tuple[int, bool]], *, most: int, start: int = START) -> int | None:
    """The next number; None: the answer is known to within `PRECISION`, or `most` passed."""
    best, worst = bounds(results)
    if worst is None:
        if best >= most:
            return None
        return min(best * 2 or start, most)
    if worst - best <= max(1, int(best * PRECISION)):
        return None
    return (best + worst) // 2
