"""The failover machine as people read it: a table and a diagram made from `TRANSITIONS` itself.

`python -m nvrstore.failover.drawing` prints both; docs/failover.md holds them, and a test compares.
"""

from __future__ import annotations

import sys

from nvrstore.failover.machine import TRANSITIONS, Event, State

_EMPTY = "·"


def table() -> str:
    """Rows are states, columns are events; a cell is the next state, a dot an event that does not concern the state."""
    lines = [
        "| state | " + " | ".join(str(event) for event in Event) + " |",
        "|---" * (len(Event) + 1) + "|",
    ]
    for state in State:
        cells = [str(TRANSITIONS[state][event][0]) if event in TRANSITIONS[state] else _EMPTY for event in Event]
        lines.append(f"| **{state}** | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def effects() -> str:
    """What the engine does on each transition, in order."""
    lines = ["| from | event | to | the engine does |", "|---|---|---|---|"]
    for state, row in TRANSITIONS.items():
        lines += [f"| {state} | {event} | {after} | {', '.join(done)} |" for event, (after, done) in row.items() if done]
    return "\n".join(lines)


def diagram() -> str:
    """The same as a mermaid state diagram, events that lead the same way on one arrow."""
    arrows: dict[tuple[State, State], list[str]] = {}
    for state, row in TRANSITIONS.items():
        for event, (after, _) in row.items():
            arrows.setdefault((state, after), []).append(str(event))
    lines = ["stateDiagram-v2", "    [*] --> away"]
    lines += [f"    {_name(before)} --> {_name(after)} : {', '.join(events)}" for (before, after), events in arrows.items()]
    return "\n".join(lines)


def _name(state: State) -> str:
    return str(state).replace("-", "_")


def page() -> str:
    """The generated part of docs/failover.md."""
    return f"```mermaid\n{diagram()}\n```\n\n{table()}\n\n{effects()}\n"


if __name__ == "__main__":
    sys.stdout.write(page())
