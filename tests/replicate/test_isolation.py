"""A target that hangs is nobody else's trouble: what a healthy one writes is written as soon as it always was."""

from __future__ import annotations

from itertools import pairwise

import pytest
from tests.support.engine import Rig, started

from nvrstore.replicate.measures import Latencies
from nvrstore.targets.contract import Request, Verb

STEP_S = 0.01
SERVICE_S = 0.05  # a disk of this test carries out one call in so much time


def pace_s(rig: Rig, *working: str, seconds: float) -> tuple[float, float]:
    """While these disks work: the p99 of the writes to "a", from being handed over, and the longest time between two of them."""
    rig.ports["a"].latencies = latencies = Latencies(10_000)
    written_s: list[float] = []

    def note(request: Request) -> int:
        if request.verb is Verb.APPEND:
            written_s.append(rig.clock.monotonic_s())
        return 0

    rig.targets["a"].fault = note
    for n in range(round(seconds / STEP_S)):
        rig.run(STEP_S, step_s=STEP_S)
        if n % round(SERVICE_S / STEP_S) == 0:
            for name in working:
                rig.targets[name].step()
    return latencies.quantile(0.99), max(later - earlier for earlier, later in pairwise(written_s))


@pytest.mark.parametrize("seconds", [0.9, 30.0])  # before it is found out, and in all
def test_beside_a_hung_target_the_healthy_one_writes_as_fast_as_ever(seconds: float) -> None:
    """Twice its usual latency at most, also when it takes in what had waited for the hung one; and no pause either."""
    rig = Rig("ab")
    try:
        for n in range(5):  # there is something to write in every tick
            started(rig, f"camera {n}", seconds=1.2)
        for target in rig.targets.values():
            target.hold()
        usual_s, usual_pause_s = pace_s(rig, "a", "b", seconds=30.0)
        assert usual_s > 0
        commits = len(rig.heard.acked)
        beside_s, pause_s = pace_s(rig, "a", seconds=seconds)
        assert beside_s <= 2 * usual_s
        assert pause_s <= 2 * usual_pause_s
        lost = rig.states()["b"] == "away"
        assert lost == (seconds > 2.0)
        assert len(rig.heard.acked) > commits or not lost, "it is the only one now, and records"
    finally:
        for target in rig.targets.values():
            target.release()
        rig.close()
