"""Where the batches go: every home x turn pair is a decision."""

import pytest

from nvrstore.failover.homes import REFUGE_S, Home, Turn, move, waited

# Written out by hand; "-" means that the turn changes nothing there.
EXPECTED = {
    #              joined     left      waited    lost
    Home.MEMORY:  ("members", "-",      "refuge", "-"),
    Home.MEMBERS: ("-",       "memory", "-",      "-"),
    Home.REFUGE:  ("members", "-",      "-",      "memory"),
}  # fmt: skip


@pytest.mark.parametrize("home", Home)
@pytest.mark.parametrize("turn", Turn)
def test_every_pair_of_home_and_turn_is_decided(home: Home, turn: Turn) -> None:
    """A change of a set without members leaves the refuge as it is; members always come first."""
    expected = EXPECTED[home][list(Turn).index(turn)]
    assert move(home, turn) is (home if expected == "-" else Home(expected))


@pytest.mark.parametrize(
    ("alone_s", "buffered", "expected"),
    [(0.0, 0.0, False), (REFUGE_S - 0.1, 0.49, False), (REFUGE_S, 0.0, True), (0.0, 0.5, True)],
)
def test_the_refuge_waits_for_a_member_as_long_as_memory_has_room(alone_s: float, buffered: float, expected: bool) -> None:
    """A target that is back in a moment needs no refuge; a buffer that fills cannot wait."""
    assert waited(alone_s, buffered) is expected
