"""The tables of `record` and `status`: streams, targets, and what happened last. Made from `Recorder.statistics()` alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nvrstore.cli.common import console, human_bytes
from nvrstore.errors import redact
from nvrstore.events import Event, StreamChanged, VolumeClosed
from nvrstore.times import iso

ROWS_MAX = 60  # streams shown; the rest is counted
EVENTS_SHOWN = 6
_GOOD = {"recording", "synced", "live"}


def streams_table(status: Mapping[str, Any]) -> Table:
    """One row per stream: what is durable, never what is intended."""
    table = _table("stream", "state", "codec", ">fps", ">bitrate", ">durable up to", ">stored", "gap")
    streams = status["streams"]
    for s in streams[:ROWS_MAX]:
        age = s["durable_age_s"]
        codec = f"{s['codec']} {s['width']}x{s['height']}" if s["codec"] else "-"
        gap = f"{s['gap']['cause']}: {s['gap']['detail']}" if s["gap"] else ""
        table.add_row(
            s["stream"] if s["name"] == s["stream"] else f"{s['stream']} ({s['name']})",
            Text(s["state"], style="" if s["state"] in _GOOD else "yellow"),
            codec,
            f"{s['fps']:.1f}" if s["fps"] else "-",
            f"{s['bitrate_bps'] / 1e6:.2f} Mbit/s" if s["bitrate_bps"] else "-",
            "-" if age is None else f"{age:.1f} s ago",
            human_bytes(s["stored_bytes"]),
            Text(redact(gap), style="yellow"),
        )
    if len(streams) > ROWS_MAX:
        table.add_row(f"... and {len(streams) - ROWS_MAX} more")
    return table


def targets_table(status: Mapping[str, Any]) -> Table:
    """One row per journal and target."""
    table = _table("journal", "epoch", "target", "role", "state", ">write p50/p99", ">free", "why")
    for journal in status["journals"]:
        for i, t in enumerate(journal["targets"]):
            free = "-" if t["free_bytes"] is None else f"{human_bytes(t['free_bytes'])} of {human_bytes(t['total_bytes'])}"
            state = f"{t['state']}, late" if t["late"] else t["state"]
            table.add_row(
                journal["journal"] if i == 0 else "",
                journal["epoch"] if i == 0 else "",
                t["target"],
                t["role"],
                Text(state, style="" if t["state"] in _GOOD and not t["late"] else "yellow"),
                f"{t['latency_ms_p50']:.1f} / {t['latency_ms_p99']:.1f} ms",
                free,
                Text(redact(t["reason"]), style="yellow"),
            )
    return table


def summary(status: Mapping[str, Any]) -> str:
    """One line: what matters most."""
    streams = status["streams"]
    recording = sum(s["state"] == "recording" for s in streams)
    copies = ", ".join(f"{j['journal']} {j['copies']} of {j['wanted']} copies" for j in status["journals"])
    refuge = "; NO TARGET LIVES, recording to the state disk" if any(j["refuge"] for j in status["journals"]) else ""
    resync = "".join(
        f"; resync of {name}: {human_bytes(p['bytes_done'])} of {human_bytes(p['bytes_total'])}"
        for name, p in status["upkeep"]["resync"].items()
    )
    buffer = f"buffer {human_bytes(status['buffer']['bytes'])} of {human_bytes(status['buffer']['bytes_max'])}"
    return f"{status['recorder']}: {recording} of {len(streams)} streams recording; {copies}; {buffer}{resync}{refuge}"


class Screen:
    """The live view of `record`."""

    def __init__(self) -> None:
        self._live = Live(console=console(), auto_refresh=False, screen=False, transient=False)
        self._last: deque[str] = deque(maxlen=EVENTS_SHOWN)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """While the recorder runs."""
        with self._live:
            yield

    def note(self, event: Event) -> None:
        """Remember an event for the foot of the view."""
        if not isinstance(event, VolumeClosed | StreamChanged):
            figures = event.as_json()
            name, utc_ns = figures.pop("event"), figures.pop("utc_ns")
            facts = " ".join(f"{key}={value}" for key, value in figures.items() if not isinstance(value, dict | list) and value != "")
            self._last.append(redact(f"{iso(utc_ns)} {name} {facts}"))

    def show(self, status: Mapping[str, Any]) -> None:
        """Draw."""
        lines = Text("\n".join(self._last), style="dim", no_wrap=True, overflow="ellipsis")
        self._live.update(Group(Text(summary(status), style="bold"), targets_table(status), streams_table(status), lines), refresh=True)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left", no_wrap=True, overflow="ellipsis")
    return table
