"""Which power cuts the replay takes from a log."""

from __future__ import annotations

from itertools import product
from random import Random

from tests.support.crash_replay import CrashState, Entry, crash_states

KINDS = b"WWFWMWWWFMFWWM"
LOG = [Entry(bytes([kind]), KINDS[:i].count(b"M") if kind == ord("M") else 0) for i, kind in enumerate(KINDS)]
FIRST = KINDS.index(b"M") + 1


def test_every_prefix_from_the_first_acknowledgement_on_is_a_state_once() -> None:
    """Behind each entry the power may go; what was acknowledged by then is known."""
    states = list(crash_states(LOG, None, Random(1)))
    assert [state.cut for state in states] == list(range(FIRST, len(LOG) + 1))
    assert [state.marks for state in states] == [KINDS[: state.cut].count(b"M") - 1 for state in states]


def test_a_state_keeps_only_writes_behind_its_last_flush_and_all_subsets_come() -> None:
    """What was flushed stays, what came later may be there or not: over some seeds, in every combination."""
    at: dict[int, set[tuple[int, ...]]] = {}
    for seed in range(200):
        for state in crash_states(LOG, None, Random(seed)):
            at.setdefault(state.cut, set()).add(state.kept)
    for cut, kept in at.items():
        loose = [i for i in range(KINDS.rfind(b"F", 0, cut) + 1, cut) if KINDS[i : i + 1] == b"W"]
        assert kept == {tuple(i for i, there in zip(loose, bits, strict=True) if there) for bits in product([0, 1], repeat=len(loose))}


def test_a_sample_has_as_many_states_as_were_asked_for_in_the_order_of_the_log() -> None:
    """Replaying goes forward only."""
    states: list[CrashState] = list(crash_states(LOG, 6, Random(1)))
    assert len(states) == 6
    assert [state.cut for state in states] == sorted(state.cut for state in states)
    assert all(FIRST <= state.cut <= len(LOG) for state in states)
