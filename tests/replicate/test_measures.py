"""What is measured of a target, and what is left out."""

from __future__ import annotations

from nvrstore.limits import IN_FLIGHT_MAX
from nvrstore.replicate.measures import Latencies


def test_one_standstill_is_not_a_targets_usual_latency() -> None:
    """What was on its way when it hung for a moment came back late, and would have excused the next hang for a minute."""
    latencies = Latencies()
    for _ in range(50):
        latencies.add(0.005)
    for _ in range(IN_FLIGHT_MAX):
        latencies.add(0.8)
    assert latencies.quantile(0.99) == 0.8
    assert latencies.quantile(0.99, without=IN_FLIGHT_MAX) == 0.005
    for _ in range(10):
        latencies.add(0.4)
    assert latencies.quantile(0.99, without=IN_FLIGHT_MAX) == 0.4, "a slow one is measured against itself"


def test_nothing_measured_is_no_latency() -> None:
    """Nor what is left of too little."""
    latencies = Latencies()
    assert latencies.quantile(0.99) == 0.0
    latencies.add(1.0)
    assert latencies.quantile(0.99, without=2) == 0.0
    assert latencies.quantile(0.5) == 1.0
