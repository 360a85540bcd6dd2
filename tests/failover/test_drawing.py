"""The page about the failover machine shows the machine that runs."""

from pathlib import Path

from nvrstore.failover.drawing import page
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
