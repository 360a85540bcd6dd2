"""Chores that read and write in bulk go beside live writing: they keep to their pace, and let live batches pass.

    piece ── pace (`resync_bps`) ── is a live batch on its way to one of its targets? ──no──▶ next piece
                                        `── yes: wait until it has arrived, YIELD_S at most

A batch takes milliseconds of a tick, so a chore that waits for it gets what live writing leaves: all but those. Where batches are on
their way all the time, a piece goes every YIELD_S: a chore gets slow, and never stands still. A target that hangs ends it by itself.
What was begun early (`Call.ahead`) is under way already: a few pieces at the most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from nvrstore.clock import Clock
from nvrstore.limits import YIELD_S
from nvrstore.replicate.resync import Pace
from nvrstore.targets.contract import Call, Steps

T = TypeVar("T")

BULK_BYTES: Final = 64 << 10
LOOK_AGAIN_S: Final = 0.002  # a batch takes about so long on a fast disk


class Yielding:
    """What `yielding` calls before every call of one piece of work.

    `live`: whether a live batch is on its way now to a target that this work reads or writes. `wait` passes the given seconds; True
    ends all waiting (the recorder stops).
    """

    def __init__(self, clock: Clock, wait: Callable[[float], bool], live: Callable[[], bool], pace: Pace | None = None) -> None:
        self._clock, self._wait, self._live, self._pace = clock, wait, live, pace
        self._last: Call | None = None

    def __call__(self, call: Call) -> None:
        """Wait as long as is due before `call`."""
        last, self._last = self._last, call
        if self._pace is not None and last is not None:
            delay_s = self._pace.delay_s(last, self._clock.monotonic_s())
            if delay_s > 0 and self._wait(delay_s):
                return
        if max(call.request.length, len(call.request.data)) < BULK_BYTES:
            return  # a look into a folder takes no time from anybody; a survey is tens of thousands of them
        until_s = self._clock.monotonic_s() + YIELD_S
        while self._live() and self._clock.monotonic_s() < until_s:
            if self._wait(LOOK_AGAIN_S):
                return


def yielding(steps: Steps[T], before: Callable[[Call], object]) -> Steps[T]:
    """The same steps; `before` is called before every call, and may wait."""
    try:
        call = next(steps)
        while True:
            before(call)
            call = steps.send((yield call))
    except StopIteration as stop:
        value: T = stop.value
        return value
    finally:
        steps.close()
