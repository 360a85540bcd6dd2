"""What becomes of one target in one journal: state x event -> state, effects. Pure, one table.

    AWAY --answered--> HOLD_DOWN --held--> READY --recruited--> JOINING --opened--> LIVE --synced--> SYNCED
      ^                    |                 |                      |                 |                |
      +---------------- lost ----------------+----------------------+-----------------+----------------+
    any --drained--> DRAINED --returned--> AWAY

AWAY is also where every target starts. LIVE gets new batches but lacks history; SYNCED lacks nothing, and that was
checked. READY is a healthy target outside the set: a spare, or one that is about to join.
Which READY target is recruited, and who is primary, is decided in `members.py`; this table only says what is legal.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class State(StrEnum):
    """Where a target stands in a journal."""

    AWAY = "away"
    HOLD_DOWN = "hold-down"
    READY = "ready"
    JOINING = "joining"
    LIVE = "live"
    SYNCED = "synced"
    DRAINED = "drained"


class Event(StrEnum):
    """What can happen to it."""

    ANSWERED = "answered"  # a look succeeded: the right directory, readable, writable
    HELD = "held"  # it stayed good for the hold-down, or is needed at once because no member lives
    RECRUITED = "recruited"  # it shall be a member
    OPENED = "opened"  # its volume of the new set is open and durable
    SYNCED = "synced"  # it lacks nothing, checked
    STALE = "stale"  # a volume was abandoned on it: it lacks something again
    RELEASED = "released"  # it is no longer wanted in the set
    LOST = "lost"  # an error, a hang, a wrong identity, a laggard at the buffer's bound, a higher term
    DRAINED = "drained"  # maintenance asked for
    RETURNED = "returned"  # maintenance is over


class Effect(StrEnum):
    """What the engine must do, in this order."""

    START_WORKERS = "start workers"
    ABANDON_WORKERS = "abandon workers"
    GROW_SET = "grow set"  # set number + 1, with it; volumes cut
    SHRINK_SET = "shrink set"  # set number + 1, without it; volumes cut; what only it acknowledged is owed again
    CLOSE_WORKERS = "close workers"  # in order: everything submitted finishes; where no journal uses it any more, it is left alone
    LOOK_AGAIN = "look again"
    START_RESYNC = "start resync"
    STOP_RESYNC = "stop resync"


_S, _E, _X = State, Event, Effect
_Row = Mapping[Event, tuple[State, tuple[Effect, ...]]]

# An event without an entry is ignored in that state: it came late (a completion of an abandoned worker, a second error
# of the same cause). `tests/failover/test_machine.py` lists every pair, so that an omission is a decision.
TRANSITIONS: Final[Mapping[State, _Row]] = {
    _S.AWAY: {
        _E.ANSWERED: (_S.HOLD_DOWN, ()),
        _E.DRAINED: (_S.DRAINED, (_X.CLOSE_WORKERS,)),
    },
    _S.HOLD_DOWN: {
        _E.HELD: (_S.READY, (_X.START_WORKERS,)),
        _E.LOST: (_S.AWAY, ()),
        _E.DRAINED: (_S.DRAINED, (_X.CLOSE_WORKERS,)),
    },
    _S.READY: {
        _E.RECRUITED: (_S.JOINING, (_X.GROW_SET,)),
        _E.LOST: (_S.AWAY, (_X.ABANDON_WORKERS,)),
        _E.DRAINED: (_S.DRAINED, (_X.CLOSE_WORKERS,)),
    },
    _S.JOINING: {
        _E.OPENED: (_S.LIVE, (_X.START_RESYNC,)),
        _E.RELEASED: (_S.READY, (_X.SHRINK_SET,)),
        _E.LOST: (_S.AWAY, (_X.ABANDON_WORKERS, _X.SHRINK_SET)),
        _E.DRAINED: (_S.DRAINED, (_X.SHRINK_SET, _X.CLOSE_WORKERS)),
    },
    _S.LIVE: {
        _E.SYNCED: (_S.SYNCED, ()),
        _E.RELEASED: (_S.READY, (_X.STOP_RESYNC, _X.SHRINK_SET)),
        _E.LOST: (_S.AWAY, (_X.STOP_RESYNC, _X.ABANDON_WORKERS, _X.SHRINK_SET)),
        _E.DRAINED: (_S.DRAINED, (_X.STOP_RESYNC, _X.SHRINK_SET, _X.CLOSE_WORKERS)),
    },
    _S.SYNCED: {
        _E.STALE: (_S.LIVE, (_X.START_RESYNC,)),
        _E.RELEASED: (_S.READY, (_X.SHRINK_SET,)),
        _E.LOST: (_S.AWAY, (_X.ABANDON_WORKERS, _X.SHRINK_SET)),
        _E.DRAINED: (_S.DRAINED, (_X.SHRINK_SET, _X.CLOSE_WORKERS)),
    },
    _S.DRAINED: {
        _E.RETURNED: (_S.AWAY, (_X.LOOK_AGAIN,)),
    },
}
if set(TRANSITIONS) != set(State):
    raise AssertionError("every state has a row")

#: States in which a target is in the set.
MEMBER: Final = frozenset({State.JOINING, State.LIVE, State.SYNCED})


def step(state: State, event: Event) -> tuple[State, tuple[Effect, ...]]:
    """The next state and what to do about it; the same state and nothing for an event that does not concern it."""
    return TRANSITIONS[state].get(event, (state, ()))
