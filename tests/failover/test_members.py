"""Who is in the set, and who is primary."""

import pytest

from nvrstore.failover.machine import State
from nvrstore.failover.members import Told, choose_primary, next_change, when_told

A, R, J, L, S, H, D = State.AWAY, State.READY, State.JOINING, State.LIVE, State.SYNCED, State.HOLD_DOWN, State.DRAINED
ORDER = ("a", "b", "c")


@pytest.mark.parametrize(
    ("states", "copies", "recruit", "release"),
    [
        ((R, R, R), 2, ["a", "b"], []),  # the start
        ((S, S, R), 2, [], []),  # the spare waits
        ((A, S, R), 2, ["c"], []),  # the spare is recruited
        ((H, S, S), 2, [], []),  # a target that returns is held down first
        ((R, S, S), 2, ["a"], []),  # then it joins beside the spare
        ((L, S, S), 2, [], []),  # nothing is released before it is synced
        ((S, S, S), 2, [], ["c"]),
        ((S, L, S), 2, [], []),
        ((D, S, S), 2, [], []),
        ((A, A, A), 2, [], []),
        ((A, A, R), 2, ["c"], []),
        ((R, R, R), 3, ["a", "b", "c"], []),
        ((S, R, R), 1, [], []),
        ((A, S, J), 1, [], ["c"]),  # more copies than wanted, and the wanted one is synced
        ((A, L, S), 1, [], []),  # the wanted one still lacks something
    ],
)
def test_the_first_healthy_targets_are_wanted(states: tuple[State, ...], copies: int, recruit: list[str], release: list[str]) -> None:
    """Growing first; releasing only when all that are wanted lack nothing."""
    assert next_change(ORDER, dict(zip(ORDER, states, strict=True)), copies) == (recruit, release)


@pytest.mark.parametrize(
    ("states", "primary", "failback", "expected"),
    [
        ((S, S, R), None, True, "a"),
        ((A, S, R), "a", True, "b"),
        ((L, S, R), "b", True, "b"),  # one that is not synced is never preferred
        ((S, S, R), "b", True, "a"),  # failback
        ((S, S, R), "b", False, "b"),  # manual: it stays
        ((L, L, R), "b", True, "b"),  # no failback to one that lacks something
        ((L, L, R), None, True, "a"),
        ((J, A, A), None, True, "a"),
        ((A, A, A), "a", True, None),
    ],
)
def test_the_primary_is_synced_if_anybody_is(states: tuple[State, ...], primary: str | None, failback: bool, expected: str | None) -> None:
    """Read first and kept in full: that must be a copy that lacks nothing."""
    assert choose_primary(ORDER, dict(zip(ORDER, states, strict=True)), primary, failback=failback) == expected


@pytest.mark.parametrize(
    ("states", "primary", "name", "expected"),
    [
        ((D, S, R), "b", "a", Told.RETURNS),
        ((S, S, R), "b", "a", Told.PRIMARY),
        ((S, S, S), "c", "b", Told.PRIMARY),  # preferred to the present one, if not the most
        ((S, S, R), "a", "a", Told.NOTHING),  # it is
        ((S, S, R), "a", "b", Told.NOTHING),  # it is where it belongs
        ((L, A, A), "a", "a", Told.NOTHING),  # nobody is in step: it is all the same
        ((S, S, R), "a", "c", Told.NOTHING),  # a spare
        ((L, S, R), "b", "a", Told.TOO_EARLY),
        ((J, S, R), "b", "a", Told.TOO_EARLY),
        ((A, S, R), "b", "a", Told.TOO_EARLY),
    ],
)
def test_what_comes_of_the_word_that_a_target_is_back(states: tuple[State, ...], primary: str, name: str, expected: Told) -> None:
    """The role goes only to one that lacks nothing, and only up the order."""
    assert when_told(ORDER, dict(zip(ORDER, states, strict=True)), primary, name) is expected


def test_a_primary_that_keeps_its_role_until_told_is_not_released() -> None:
    """Leaving the set would take the role from it."""
    states = dict(zip(ORDER, (S, S, S), strict=True))
    assert next_change(ORDER, states, 2, kept="c") == ([], [])
    assert next_change(ORDER, states, 1, kept="c") == ([], ["b"])
    assert next_change(ORDER, states, 2, kept="a") == ([], ["c"])
