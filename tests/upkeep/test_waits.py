"""Age waits a day of recording with what is overdue: over restarts, over targets that are away, and once only."""

from __future__ import annotations

from collections.abc import Mapping

from nvrstore.upkeep.waits import SAVE_S, WAIT_S, Waits


def test_it_waits_a_day_of_recording_and_starts_no_new_one_at_a_restart() -> None:
    """A machine that is restarted every night would else never remove anything."""
    saved: dict[str, float] = {}
    for start_s in range(30):  # each recorder runs for an hour
        waits = Waits(saved, saved.update)
        assert waits.look({"main"}, {"main"}, 1e6 * start_s) == ["main"], "each recorder says it once"
        for look_s in range(30, 3601, 30):
            assert waits.look({"main"}, {"main"}, 1e6 * start_s + look_s) == []
            assert not waits.ripe() or start_s >= WAIT_S / 3600 - 1
    assert waits.ripe() == {"main"}
    assert saved["main"] >= 30 * 3600 - 30 * SAVE_S


def test_what_nobody_can_look_at_is_not_forgotten() -> None:
    """The target on which it lies did not answer for once."""
    waits = Waits({"main": 100.0}, lambda _: None)
    waits.look({"main"}, {"main"}, 0.0)
    waits.look((), (), 10.0)
    waits.look({"main"}, {"main"}, WAIT_S - 100.0)
    assert waits.ripe() == {"main"}


def test_when_it_has_gone_the_next_leap_waits_again() -> None:
    """Whether it went since it was ripe, or the clock was put right."""
    for waited_s, sure in ((WAIT_S, ()), (100.0, {"main"})):
        saved: list[Mapping[str, float]] = []
        waits = Waits({"main": waited_s}, saved.append)
        waits.look((), sure, 0.0)
        assert waits.ripe() == frozenset()
        assert saved == [{}]
        assert waits.look({"main"}, {"main"}, 10.0) == ["main"]
