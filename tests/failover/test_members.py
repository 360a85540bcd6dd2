"""Who is in the set, and who is primary."""

import pytest

from nvrstore.failover.machine import State
from nvrstore.failover.members import choose_primary, next_change

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
