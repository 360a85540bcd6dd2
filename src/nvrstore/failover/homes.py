"""Where a journal's batches go: to the members of its set, or, while there is none, to memory and then to the refuge. Pure, one table.

    MEMORY --joined--> MEMBERS --left--> MEMORY --waited--> REFUGE --joined--> MEMBERS
                                            ^                  |
                                            +------ lost ------+

MEMORY is where a journal begins: the replay buffer takes everything. What the refuge, a directory on the state disk, has taken is no
commit: it is copied to the members when there are some.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

REFUGE_S: Final = 2.0  # without any member for this long, or with half the buffer full: the state disk takes over


class Home(StrEnum):
    """Where the batches go."""

    MEMORY = "memory"
    MEMBERS = "members"
    REFUGE = "refuge"


class Turn(StrEnum):
    """What can change it."""

    JOINED = "joined"  # the set has a member
    LEFT = "left"  # the set has none
    WAITED = "waited"  # nobody came for long enough, and the refuge answers
    LOST = "lost"  # the refuge failed


# A turn without an entry is ignored there: a set that changes and still has a member, or still has none.
HOMES: Final[Mapping[Home, Mapping[Turn, Home]]] = {
    Home.MEMORY: {Turn.JOINED: Home.MEMBERS, Turn.WAITED: Home.REFUGE},
    Home.MEMBERS: {Turn.LEFT: Home.MEMORY},
    Home.REFUGE: {Turn.JOINED: Home.MEMBERS, Turn.LOST: Home.MEMORY},
}
if set(HOMES) != set(Home):
    raise AssertionError("every home has a row")


def move(home: Home, turn: Turn) -> Home:
    """The next home; the same for a turn that does not concern it."""
    return HOMES[home].get(turn, home)


def waited(alone_s: float, buffered: float) -> bool:
    """Whether it is time for the refuge. `alone_s`: since the last member left; `buffered`: the part of the buffer that is full."""
    return alone_s >= REFUGE_S or buffered >= 0.5
