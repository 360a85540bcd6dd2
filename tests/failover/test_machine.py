"""The failover machine: every state x event pair is a decision."""

import pytest

from nvrstore.failover.machine import MEMBER, TRANSITIONS, Effect, Event, State, step

# What each event leads to, per state; "-" means that it concerns the state not at all. Written out by hand: a change of
# the table has to be made twice, on purpose.
EXPECTED = {
    #                 answered    held     recruited  opened  synced    stale   released lost    drained    returned
    State.AWAY:      ("hold-down", "-",     "-",       "-",    "-",      "-",    "-",     "-",    "drained", "-"),
    State.HOLD_DOWN: ("-",         "ready", "-",       "-",    "-",      "-",    "-",     "away", "drained", "-"),
    State.READY:     ("-",         "-",     "joining", "-",    "-",      "-",    "-",     "away", "drained", "-"),
    State.JOINING:   ("-",         "-",     "-",       "live", "-",      "-",    "ready", "away", "drained", "-"),
    State.LIVE:      ("-",         "-",     "-",       "-",    "synced", "-",    "ready", "away", "drained", "-"),
    State.SYNCED:    ("-",         "-",     "-",       "-",    "-",      "live", "ready", "away", "drained", "-"),
    State.DRAINED:   ("-",         "-",     "-",       "-",    "-",      "-",    "-",     "-",    "-",       "away"),
}  # fmt: skip


# What the engine does then, in this order; a letter each.
LETTERS = {
    "W": Effect.START_WORKERS,
    "A": Effect.ABANDON_WORKERS,
    "C": Effect.CLOSE_WORKERS,
    "G": Effect.GROW_SET,
    "S": Effect.SHRINK_SET,
    "R": Effect.START_RESYNC,
    "N": Effect.STOP_RESYNC,
    "L": Effect.LOOK_AGAIN,
}
EFFECTS = {
    #                 answered held recruited opened synced stale released lost   drained returned
    State.AWAY:      ("",      "",  "",       "",    "",    "",   "",      "",    "C",    ""),
    State.HOLD_DOWN: ("",      "W", "",       "",    "",    "",   "",      "",    "C",    ""),
    State.READY:     ("",      "",  "G",      "",    "",    "",   "",      "A",   "C",    ""),
    State.JOINING:   ("",      "",  "",       "R",   "",    "",   "S",     "AS",  "SC",   ""),
    State.LIVE:      ("",      "",  "",       "",    "",    "",   "NS",    "NAS", "NSC",  ""),
    State.SYNCED:    ("",      "",  "",       "",    "",    "R",  "S",     "AS",  "SC",   ""),
    State.DRAINED:   ("",      "",  "",       "",    "",    "",   "",      "",    "",     "L"),
}  # fmt: skip


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_every_pair_of_state_and_event_has_its_effects_in_their_order(state: State, event: Event) -> None:
    """Neither one too few nor one too many, and none before its turn."""
    assert step(state, event)[1] == tuple(LETTERS[letter] for letter in EFFECTS[state][list(Event).index(event)])


def test_every_effect_stands_in_the_table_that_was_written_by_hand() -> None:
    """A new effect needs its letter, and its places."""
    assert set(LETTERS.values()) == set(Effect)
    assert {letter for row in EFFECTS.values() for cell in row for letter in cell} == set(LETTERS)
    assert all(len(row) == len(Event) for table in (EXPECTED, EFFECTS) for row in table.values())


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_every_pair_of_state_and_event_is_decided(state: State, event: Event) -> None:
    """A pair without a transition leaves the state as it is and does nothing."""
    expected = EXPECTED[state][list(Event).index(event)]
    after, effects = step(state, event)
    if expected == "-":
        assert (after, effects) == (state, ())
    else:
        assert after == State(expected)


@pytest.mark.parametrize(("state", "event"), [(s, e) for s, row in TRANSITIONS.items() for e in row])
def test_the_set_shrinks_exactly_when_a_member_leaves_it(state: State, event: Event) -> None:
    """Leaving without a new set number would let a lost member's acknowledgements count."""
    after, effects = step(state, event)
    left = state in MEMBER and after not in MEMBER
    assert (Effect.SHRINK_SET in effects) == left


@pytest.mark.parametrize("state", [s for s in State if Event.LOST in TRANSITIONS[s]])
def test_a_lost_target_is_away_and_its_workers_are_abandoned(state: State) -> None:
    """Whatever it was: nothing waits for it any more."""
    after, effects = step(state, Event.LOST)
    assert after is State.AWAY
    assert (Effect.ABANDON_WORKERS in effects) == (state in MEMBER or state is State.READY)


def test_a_drained_target_comes_back_only_when_the_operator_says_so() -> None:
    """Maintenance is not ended by a target that happens to answer."""
    assert set(TRANSITIONS[State.DRAINED]) == {Event.RETURNED}


def test_workers_are_abandoned_before_the_set_shrinks() -> None:
    """A completion of an abandoned worker cannot arrive between."""
    for row in TRANSITIONS.values():
        for _, effects in row.values():
            if Effect.ABANDON_WORKERS in effects and Effect.SHRINK_SET in effects:
                assert effects.index(Effect.ABANDON_WORKERS) < effects.index(Effect.SHRINK_SET)
