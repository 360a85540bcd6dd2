"""The retention floor: what expired stays away, counted in volumes, merged in any order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nvrstore.journal.names import VolumeName
from nvrstore.replicate.floor import JOURNAL, WRITERS_MAX, Floor, floors_of


def name(number: int, *, term: int = 1, journal: str = "main", tag: str = "9f2c41aa") -> VolumeName:
    path = f"{journal}/2026-11-23/07-45-10Z.t{term:04d}-{tag}.l0.v{number:06d}.mp4"
    return VolumeName(path, journal, "2026-11-23", "07-45-10", term, tag, 0, number)


def test_a_floor_says_the_same_after_its_record() -> None:
    """What stands in the ledger is the floor, whatever else a record of a later version says."""
    floor = Floor().raised([name(5), name(3), name(9, term=2)])
    assert Floor.of(floor.record("b")) == floor == Floor({"t0001-9f2c41aa.l0": 5, "t0002-9f2c41aa.l0": 9})
    assert floors_of([floor.record("b"), Floor().raised([name(7)]).record("b")])["b"].covers(name(7))
    assert floors_of([name_record := floor.record()]) == {JOURNAL: Floor.of(name_record)}


def test_floors_of_several_journals_are_kept_apart() -> None:
    """One recorder writes them all: their volumes have the same numbers, and one catalog holds all their records."""
    main, audit = Floor().raised([name(5)]), Floor().raised([name(2, journal="audit")])
    records = [main.record(journal="main"), audit.record(journal="audit"), main.record("b", journal="main")]
    assert len({record.id for record in records}) == 3
    assert floors_of(records, "main") == {JOURNAL: main, "b": main}
    assert floors_of(records, "audit") == {JOURNAL: audit}


@given(st.lists(st.integers(0, 50)), st.lists(st.integers(0, 50)))
def test_floors_only_grow_and_merge_in_any_order(a: list[int], b: list[int]) -> None:
    """Two sides that recorded apart agree on what has expired."""
    one, two = Floor().raised(map(name, a)), Floor().raised(map(name, b))
    assert one.merged(two) == two.merged(one) == Floor().raised(map(name, a + b))
    assert all(one.merged(two).covers(name(n)) for n in a + b)


def test_a_floor_of_one_writer_says_nothing_about_another() -> None:
    """Equal terms of two writers after a partition: the numbers of one must not expire the other's footage."""
    floor = Floor().raised([name(100)])
    assert not floor.covers(name(5, tag="0badcafe"))
    assert not floor.covers(name(5, term=2))


def test_a_floor_stays_bounded() -> None:
    """A recorder that starts every minute for a year does not make a record too large to be written; the oldest writers go."""
    floor = Floor()
    for term in range(1, WRITERS_MAX + 50):
        floor = floor.raised([name(1, term=term)])
    assert len(floor.gone) == WRITERS_MAX
    assert floor.covers(name(1, term=WRITERS_MAX + 49))
    assert not floor.covers(name(1, term=1))


def test_a_floor_from_a_broken_record_is_too_low_never_too_high() -> None:
    """Unknown forms are passed over."""
    for body in ({}, {"gone": 5}, {"gone": {"t0001-9f2c41aa.l0": "x"}}, {"gone": {"t0001-9f2c41aa.l0": -4}}):
        record = Floor().record()
        assert Floor.of(type(record)(record.kind, record.id, body)) == Floor()
