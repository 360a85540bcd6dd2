"""The failover machine as people read it: tables and diagrams, made from `TRANSITIONS`, `choose_primary` and `HOMES` themselves.

`python -m nvrstore.failover.drawing` prints them; docs/failover.md holds them, and a test compares.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Final

from nvrstore.failover.homes import HOMES, REFUGE_S, Home
from nvrstore.failover.machine import MEMBER, TRANSITIONS, Event, State
from nvrstore.failover.members import RANKS, choose_primary

_EMPTY: Final = "·"
_PAIR: Final = ("first", "second")
_NOBODY: Final = "nobody"
_AUTO: Final = " (auto)"


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


def roles() -> str:
    """Who is primary of two targets, as a mermaid state diagram: every way that the machine and `choose_primary` know."""
    arrows: dict[tuple[str | None, str | None], dict[str, set[bool]]] = {}
    for failback in (True, False):
        for before, after, cause in _handovers(failback):
            arrows.setdefault((before, after), {}).setdefault(cause, set()).add(failback)
    lines = ["stateDiagram-v2", f"    [*] --> {_NOBODY}"]
    for (before, after), causes in arrows.items():
        told = sorted(cause + ("" if False in when else _AUTO) for cause, when in causes.items())
        lines.append(f"    {before or _NOBODY} --> {after or _NOBODY} : {', '.join(told)}")
    return "\n".join(lines)


def _handovers(failback: bool) -> Iterator[tuple[str | None, str | None, str]]:
    """Every change of the primary (before, after, cause) that can be reached from two targets that are away."""
    seen: set[tuple[State, State, str | None]] = set()
    todo: list[tuple[State, State, str | None]] = [(State.AWAY, State.AWAY, None)]
    while todo:
        at = todo.pop()
        if at in seen:
            continue
        seen.add(at)
        for name, state in zip(_PAIR, at[:2], strict=True):
            for event, (after, _) in TRANSITIONS[state].items():
                states = dict(zip(_PAIR, at[:2], strict=True)) | {name: after}
                primary = choose_primary(_PAIR, states, at[2], failback=failback)
                todo.append((states[_PAIR[0]], states[_PAIR[1]], primary))
                if primary != at[2]:
                    yield at[2], primary, f"{name} {event}"


def primaries() -> str:
    """Who is primary, by the states of two targets of which the second one has the role now."""
    outside = State.AWAY  # for every state outside the set
    shown = (*RANKS, outside)
    lines = ["| | " + " | ".join(f"second {_or_outside(state)}" for state in shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for first in shown:
        cells = []
        for second in shown:
            states = dict(zip(_PAIR, (first, second), strict=True))
            auto, manual = (choose_primary(_PAIR, states, "second", failback=failback) or _NOBODY for failback in (True, False))
            cells.append(auto if auto == manual else f"{auto}{_AUTO}, else {manual}")
        lines.append(f"| **first {_or_outside(first)}** | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _or_outside(state: State) -> str:
    return str(state) if state in MEMBER else "no member"


def homes() -> str:
    """Where the batches go, as a mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {Home.MEMORY}"]
    lines += [f"    {home} --> {after} : {turn}" for home, row in HOMES.items() for turn, after in row.items()]
    return "\n".join(lines)


_ROLES = """\
## Who is primary

Of two targets in their configured order, the first one preferred. `(auto)` stands for `failback = "auto"`.
"""
_PRIMARIES = "While the second one has the role, it goes by these states:"
_HOMES = f"""\
## Without any member

Where the batches go. *joined*: the set has a member; *left*: it has none; *waited*: there has been none for {REFUGE_S:.0f} s, or half the
buffer is full, and the refuge answers; *lost*: the refuge failed.
"""


def page() -> str:
    """The generated part of docs/failover.md."""
    machine = f"{_drawn(diagram())}\n{table()}\n\n{effects()}\n"
    return f"{machine}\n{_ROLES}\n{_drawn(roles())}\n{_PRIMARIES}\n\n{primaries()}\n\n{_HOMES}\n{_drawn(homes())}"


def _drawn(mermaid: str) -> str:
    return f"```mermaid\n{mermaid}\n```\n"


if __name__ == "__main__":
    sys.stdout.write(page())
