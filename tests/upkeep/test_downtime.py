"""When no recorder ran: found from the sessions of what is stored, exact at both ends."""

from __future__ import annotations

from nvrstore.catalog.query import Footage
from nvrstore.model import Cause, Gap
from nvrstore.upkeep.downtime import Boundary, boundaries, taken_over_ns

A, B, C, OWN = 11, 22, 33, 44


def never(_: int) -> bool:
    return False


def camera(start_ns: int, end_ns: int | None) -> Gap:
    return Gap(f"camera-{start_ns}", "gate", Cause.CAMERA, start_ns, end_ns)


def test_every_change_of_session_is_a_boundary() -> None:
    """Oldest first, so that the newest that is written down vouches for those before it."""
    spans = [Footage(90, 95, OWN), Footage(80, 85, OWN), Footage(60, 70, B), Footage(50, 60, B), Footage(10, 20, A)]
    assert boundaries(spans, OWN, never) == [Boundary(B, 20, 50), Boundary(OWN, 70, 80)]


def test_a_session_without_footage_begins_nowhere_yet() -> None:
    """Its cameras do not answer: its gaps say from when on it accounts."""
    assert boundaries([Footage(50, 60, B)], OWN, never) == [Boundary(OWN, 60, None)]
    assert boundaries([], OWN, never) == []


def test_what_an_earlier_session_wrote_down_is_not_looked_for_again() -> None:
    """Else every start would read all that was ever stored."""
    spans = [Footage(80, 85, OWN), Footage(60, 70, C), Footage(40, 50, B), Footage(10, 20, A)]
    assert boundaries(spans, OWN, {B}.__contains__) == [Boundary(C, 50, 60), Boundary(OWN, 70, 80)]
    assert boundaries(iter(spans), OWN, {C}.__contains__) == [Boundary(OWN, 70, 80)]


def test_the_gap_reaches_to_the_first_footage() -> None:
    """Starting and connecting are the recorder's time too."""
    assert taken_over_ns(Boundary(OWN, 100, 150), [], 120) == 150


def test_another_gap_takes_over_where_it_begins() -> None:
    """The recorder was up again, the camera was not."""
    assert taken_over_ns(Boundary(OWN, 100, 190), [camera(125, 190)], 120) == 125
    assert taken_over_ns(Boundary(OWN, 100, 190), [camera(125, 160), camera(160, 190)], 120) == 125
    assert taken_over_ns(Boundary(OWN, 100, None), [camera(125, None)], 120) == 125


def test_a_gap_that_does_not_reach_the_footage_takes_nothing_over() -> None:
    """The rest would be unexplained."""
    assert taken_over_ns(Boundary(OWN, 100, 190), [camera(105, 120)], 120) == 190


def test_a_gap_that_was_open_when_the_recorder_died_takes_nothing_over() -> None:
    """It begins with the end of the footage, as the recorder's own does: nobody knows when the camera came back."""
    assert taken_over_ns(Boundary(OWN, 100, 190), [camera(100, 190)], 120) == 190


def test_without_footage_or_gap_of_this_session_there_is_nothing_to_tell_yet() -> None:
    """Both ends or none."""
    assert taken_over_ns(Boundary(OWN, 100, None), [camera(50, 110)], 120) is None
