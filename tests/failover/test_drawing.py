"""The page about the failover machine shows the machine that runs."""

from pathlib import Path

from nvrstore.failover.drawing import homes, page, primaries, roles
from nvrstore.failover.homes import HOMES
from nvrstore.failover.machine import TRANSITIONS, State

PAGE = Path(__file__).parents[2] / "docs" / "failover.md"


def test_the_page_holds_the_table_as_it_is_now() -> None:
    """After a change of the table: python -m nvrstore.failover.drawing."""
    assert PAGE.read_text().endswith(page())


def test_every_transition_is_on_the_page() -> None:
    """Nothing is left out of the drawing."""
    drawn = page()
    for state, row in TRANSITIONS.items():
        assert f"| **{state}** |" in drawn
        for event, (after, _) in row.items():
            arrow = f"{str(state).replace('-', '_')} --> {str(after).replace('-', '_')} : "
            line = next(line for line in drawn.splitlines() if line.strip().startswith(arrow))
            assert str(event) in line.split(" : ")[1].split(", ")
    assert set(TRANSITIONS) == set(State)


def test_every_way_of_the_primarys_role_is_drawn() -> None:
    """From nobody to either, from either to nobody, and from each to the other one: with the events that make it."""
    arrows = dict(line.strip().split(" : ") for line in roles().splitlines() if " : " in line)
    assert set(arrows) == {f"{a} --> {b}" for a in ("nobody", "first", "second") for b in ("nobody", "first", "second") if a != b}
    assert {"first lost", "first drained", "first stale"} <= set(arrows["first --> second"].split(", "))
    assert {"second lost", "first synced"} <= set(arrows["second --> first"].split(", "))
    assert arrows["nobody --> first"] == "first recruited"


def test_the_table_of_primaries_says_where_failback_counts() -> None:
    """Only where both are synced: everywhere else the better copy has the role, whatever is configured."""
    rows = [[cell.strip() for cell in line.split("|")[2:-1]] for line in primaries().splitlines()[2:]]
    assert rows == [
        ["first (auto), else second", "first", "first", "first"],
        ["second", "second", "first", "first"],
        ["second", "second", "second", "first"],
        ["second", "second", "second", "nobody"],
    ]


def test_every_home_of_the_batches_is_drawn() -> None:
    """Nothing is left out, and nothing invented."""
    drawn = {line.strip() for line in homes().splitlines()[2:]}
    assert drawn == {f"{home} --> {after} : {turn}" for home, row in HOMES.items() for turn, after in row.items()}
