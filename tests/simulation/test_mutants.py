"""The checks of the simulation find a recorder that breaks a promise: one mutation of the code for each, caught within a few seeds."""

from __future__ import annotations

import pytest
from tests.support.prove import note
from tests.support.simulation_checks import Violation
from tests.support.simulation_mutants import MUTANTS
from tests.support.simulation_world import World

SEEDS_MAX = 100  # three times what the slowest one needed


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", "nvrstore")


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_recorder_that_breaks_a_promise_is_found(name: str) -> None:
    """And for the right reason: the violation names the invariant."""
    mutated, expected, changes = MUTANTS[name]
    others = []
    for seed in range(SEEDS_MAX):
        with mutated(), World(seed, **changes) as world:
            try:
                world.run()
            except Violation as violation:
                if any(f"[{tag}" in str(violation) for tag in expected):
                    note(f"mutant-{name.replace(' ', '-')}", seeds=seed + 1)
                    return
                others.append(str(violation))
    pytest.fail(f"{SEEDS_MAX} schedules, and nobody noticed; {others[:3]}")
