"""The whole control plane on a virtual clock: thousands of schedules of faults, and the invariants hold in every one of them.

Each seed draws targets, policies and a few kinds of faults; see tests/support/simulation_world.py for a run, and
simulation_checks.py for what is watched. A seed that showed a bug stays here under a name of its own.
"""

from __future__ import annotations

import traceback
from collections import Counter
from typing import Any

import pytest
from tests.support.prove import proving, seeds, tally
from tests.support.simulation_world import World

PIECES = 20
SEEDS = seeds(usual=500, proving=20_000)


@pytest.mark.slow
@pytest.mark.timeout(3600 if proving() else 120)
@pytest.mark.parametrize("piece", range(PIECES))
def test_no_schedule_of_faults_breaks_an_invariant(piece: int) -> None:
    """Whatever fails, in whatever order: what was committed is kept, nothing vanishes unsaid, nobody who was superseded destroys."""
    sums, faults = Counter[str](), Counter[str]()
    broken: dict[int, str] = {}
    seeds = SEEDS[piece::PIECES]
    for seed in seeds:
        with World(seed) as world:
            try:
                world.run()
            except AssertionError as violation:  # the others are run all the same: one answer about all of them
                broken[seed] = "".join(traceback.format_exception(violation, limit=-6))
        sums["commits"] += world.checks.acks
        sums["steps"] += world.checks.steps
        faults += world.faults.injected
    tally("simulation", f"{piece:02d}", schedules=len(seeds), violations=len(broken), failing_seeds=list(broken), faults=faults, **sums)
    assert not broken, "\n".join([f"an invariant does not hold in seeds {list(broken)}", *broken.values()])
    assert sums["commits"] > len(seeds) // PIECES, "the runs recorded something"


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Half a million lines that nobody reads take as long as the runs."""
    caplog.set_level("CRITICAL", "nvrstore")


def run(seed: int, **changes: Any) -> None:
    with World(seed, **changes) as world:
        world.run()


@pytest.mark.parametrize("seed", [4021, 7653, 11394])
def test_seeds_4021_and_others_a_moments_standstill_is_not_a_targets_usual_latency(seed: int) -> None:
    """Eight times of it was waited for, when the target hung again."""
    run(seed)


def test_seed_19251_what_was_dropped_last_has_its_end_in_the_ledger() -> None:
    """The recorder was stopped before another frame of that camera came."""
    run(19251)


def test_seed_1111_what_is_out_of_a_standbys_window_is_not_copied_there() -> None:
    """It was a spare when that was recorded, and the primary keeps it: nothing is missing."""
    run(1111)


def test_the_same_seed_runs_the_same_schedule_twice() -> None:
    """A failure can be repeated."""
    seen = []
    for _ in range(2):
        with World(8) as world:
            world.run()
            seen.append((world.history, world.checks.acks, world.volumes("a")))
    assert seen[0] == seen[1]


def test_seed_20_a_volume_that_could_not_be_closed_once_is_tried_again() -> None:
    """An error of a moment kept a target from ever being synced."""
    run(20)


@pytest.mark.parametrize("seed", [4286, 8832, 11941, 18608])
def test_seeds_4286_and_others_what_was_laid_out_meanwhile_is_not_dropped(seed: int) -> None:
    """A recorder thawed: more than its buffer's bound came at once, and was given up though targets could take it."""
    run(seed)


def test_seed_51_a_refuge_that_is_lost_does_not_stop_all_commits() -> None:
    """What it had not answered was waited for, for ever."""
    run(51)


def test_seed_112_a_volume_that_was_being_opened_in_a_lost_refuge_is_given_up() -> None:
    """It was in use for ever, so that nobody was synced again."""
    run(112)


def test_seed_162_a_claim_that_a_full_target_refused_is_brought_again() -> None:
    """It was asked for once; the target stayed in its hold-down for ever."""
    run(162)


def test_seed_314_what_is_owed_again_is_committed_before_what_was_built_after_it() -> None:
    """A crash in between would have left a hole inside a session that nothing explains."""
    run(314)


def test_seed_530_what_only_a_lost_target_had_comes_before_newer_batches_of_the_others() -> None:
    """The same across volumes."""
    run(530)


def test_seed_538_a_volume_that_is_opened_during_a_survey_is_not_recovered_while_it_is_written() -> None:
    """It was taken for a leftover, replaced by a shorter copy, and cut."""
    run(538)


def test_seed_3337_what_was_meant_for_a_full_refuge_goes_to_the_members() -> None:
    """It waited for a file that nobody prepared any more, and all commits behind it."""
    run(3337)


def test_seed_4912_what_is_owed_again_waits_for_what_was_built_before_it() -> None:
    """It was committed in front of older footage that was owed already, and on its way once more in another volume."""
    run(4912)


def test_seed_8202_what_is_owed_twice_keeps_its_order() -> None:
    """It had been built once more behind newer fragments, and came back behind them."""
    run(8202)


def test_seed_13804_a_volume_that_lived_and_ended_during_a_survey_is_left_for_the_next_one() -> None:
    """The copy on a member that had left passed for the only one, and was closed without a committed batch."""
    run(13804)


@pytest.mark.parametrize("seed", [54, 93, 95])
def test_seeds_54_and_others_who_is_about_to_be_primary_again_keeps_everything(seed: int) -> None:
    """It was a standby for one more moment, and its history went out of a standby's window."""
    run(seed)


SMALL: dict[str, Any] = {"volume_age_s": 1.5, "kinds": ("full-once", "hang", "unmount"), "fault_every_s": 0.7}


@pytest.mark.parametrize("seed", [0, 17])
def test_seeds_0_and_17_what_several_volumes_owe_goes_on_in_its_order(seed: int) -> None:
    """It was put back volume by volume, each in front: the newest came first."""
    run(seed, **SMALL)


def test_seed_146_no_copy_with_a_hole_is_made_because_its_source_is_away_for_a_moment() -> None:
    """The hole was closed over, and nobody looked again."""
    run(146, **SMALL)
