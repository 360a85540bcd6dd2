"""The account of a span of time: recorded, explained, unexplained, outside."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nvrstore.catalog.coverage import HoleReason, Stretch, coverage, holes_between
from nvrstore.model import NS_PER_S, Cause, Gap


def stretch(start: float, end: float, *, session: int = 1, index: int | None = None, samples: int | None = None) -> Stretch:
    first = round(start * 25) if index is None else index
    return Stretch(
        round(start * NS_PER_S), round(end * NS_PER_S), session, first, first + (round((end - start) * 25) if samples is None else samples)
    )


def gap(start: float, end: float | None, cause: Cause = Cause.CAMERA) -> Gap:
    return Gap(f"{start}", "gate", cause, round(start * NS_PER_S), None if end is None else round(end * NS_PER_S))


def account(
    stretches: list[Stretch], gaps: list[Gap], start: float, end: float, known: tuple[float, float] | None
) -> tuple[int, dict[str, int], int, int]:
    bounds = None if known is None else (round(known[0] * NS_PER_S), round(known[1] * NS_PER_S))
    c = coverage("gate", stretches, gaps, round(start * NS_PER_S), round(end * NS_PER_S), bounds)
    return c.recorded_ms, c.gaps_ms, c.unexplained_ms, c.outside_ms


def test_a_stretch_without_a_hole_is_all_recorded() -> None:
    """Recorded time is the time asked for."""
    assert account([stretch(0, 5), stretch(5, 10)], [], 2, 8, (0, 10)) == (6000, {}, 0, 0)


def test_gaps_count_by_cause_and_only_where_nothing_is_stored() -> None:
    """Time that is recorded after all counts as recorded; time in two gaps counts once."""
    gaps = [gap(5, 7), gap(6, 8, Cause.NETWORK), gap(20, None, Cause.RECORDER)]
    assert account([stretch(0, 5.5), stretch(8, 20)], gaps, 0, 30, (0, 20)) == (
        17_500,
        {"camera": 1500, "network": 1000, "recorder": 10_000},
        0,
        0,
    )


def test_what_nothing_explains_is_said() -> None:
    """A hole between footage that the ledger does not cover is unexplained, with both ends."""
    found = holes_between("gate", [stretch(0, 5), stretch(8, 10)], [gap(5, 6)], 0, 10 * NS_PER_S, (0, 10 * NS_PER_S))
    assert [(h.reason, h.start_ns, h.end_ns) for h in found] == [(HoleReason.UNEXPLAINED, 6 * NS_PER_S, 8 * NS_PER_S)]
    assert account([stretch(0, 5), stretch(8, 10)], [gap(5, 6)], 0, 10, (0, 10)) == (7000, {"camera": 1000}, 2000, 0)


def test_before_the_first_and_behind_the_last_is_outside() -> None:
    """Nothing is promised for a time at which the stream was not known."""
    assert account([stretch(3, 5)], [], 0, 10, (3, 5)) == (2000, {}, 0, 8000)
    assert account([], [], 0, 10, None) == (0, {}, 0, 10_000)
    assert account([], [], 4, 6, (0, 10)) == (0, {}, 2000, 0), "inside of a hole there is no footage, yet it is no outside"
    assert account([], [], 8, 12, (0, 10)) == (0, {}, 2000, 2000)


def test_missing_samples_show_even_where_time_hides_them() -> None:
    """Two frames lost inside one session leave a hole of 80 ms: their indices tell, unless the ledger does."""
    two = [stretch(0, 5), stretch(5.08, 10, index=127)]
    (hole,) = holes_between("gate", two, [], 0, 10 * NS_PER_S, (0, 10 * NS_PER_S))
    assert (hole.reason, hole.samples) == (HoleReason.UNEXPLAINED, 2)
    assert holes_between("gate", two, [gap(5, 5.08, Cause.NETWORK)], 0, 10 * NS_PER_S, (0, 10 * NS_PER_S)) == []


def test_sessions_that_overlap_are_no_holes() -> None:
    """Two writers, or a clock stepped back: both are footage, and duplicates hide nothing."""
    both = [stretch(0, 6), stretch(4, 10, session=2), stretch(0, 6)]
    assert account(both, [], 0, 10, (0, 10)) == (10_000, {}, 0, 0)


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(1, 60), st.integers(1, 3)), max_size=8),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 60)), max_size=5),
    st.integers(0, 150),
    st.integers(1, 120),
)
def test_the_account_always_adds_up(stretches: list[tuple[int, int, int]], gaps: list[tuple[int, int]], start: int, length: int) -> None:
    """Recorded + explained + unexplained + outside is the time asked for, whatever overlaps; nothing is negative."""
    known = [stretch(a, a + n, session=s) for a, n, s in stretches]
    told = [gap(a, a + n) for a, n in gaps]
    ends = [(s.start_ns, s.end_ns) for s in known] + [(g.start_ns, g.end_ns or 0) for g in told]
    bounds = (min(a for a, _ in ends), max(b for _, b in ends)) if ends else None
    c = coverage("gate", known, told, start * NS_PER_S, (start + length) * NS_PER_S, bounds)
    parts = [c.recorded_ms, c.unexplained_ms, c.outside_ms, *c.gaps_ms.values()]
    assert min(parts) >= 0
    assert sum(parts) == length * 1000
    second = {n for s in known for n in range(s.start_ns // NS_PER_S, s.end_ns // NS_PER_S)}
    assert c.recorded_ms == 1000 * len(second & set(range(start, start + length)))
