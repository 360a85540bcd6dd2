"""The tables of `record` and `status`: streams, targets, what is wrong, what happened last.

    nvr-1: 62 of 64 streams recording; main 2 of 2 copies; buffer 37 kB of 537 MB
    journal  epoch  target  role     state   write p50/p99   free
    stream   state  codec   fps      bitrate durable         stored   gap        those in trouble first
    dead: camera: rtsp://10.0.0.5/main: Connection refused                       sentences have a line of their own
    12:04:15Z target a is lost: Input/output error

Made from `Recorder.statistics()` alone: what is durable, never what is intended. Fits into any terminal: what matters least
leaves its column first, names are cut last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from rich.cells import cell_len
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nvrstore.cli.common import console, human_bytes, human_s
from nvrstore.cli.told import told
from nvrstore.errors import redact
from nvrstore.events import Event
from nvrstore.model import NS_PER_S

EVENTS_SHOWN: Final = 6
TROUBLES_SHOWN: Final = 5
ROWS_MIN: Final = 3  # streams that are shown on the smallest screen
NAME_MIN: Final = 12
_GOOD: Final = frozenset({"recording", "synced", "live"})
_PADDING: Final = 2  # blanks between columns


class _Column(NamedTuple):
    """`leaves`: columns leave a screen that is too narrow in this order, 0 never."""

    head: str
    right: bool = False
    leaves: int = 0


_STREAMS: Final = (
    _Column("stream"),
    _Column("state"),
    _Column("codec", leaves=4),
    _Column("fps", right=True, leaves=2),
    _Column("bitrate", right=True, leaves=3),
    _Column("durable", right=True),
    _Column("stored", right=True, leaves=1),
    _Column("gap"),
)
_TARGETS: Final = (
    _Column("target"),
    _Column("journal", leaves=4),
    _Column("epoch", leaves=2),
    _Column("role", leaves=3),
    _Column("state"),
    _Column("write p50/p99", right=True, leaves=1),
    _Column("free", right=True),
)


def streams_view(status: Mapping[str, Any], width: int, rows_max: int | None = None) -> Group:
    """One row per stream, those in trouble first; what does not fit into `rows_max` is counted."""
    streams = sorted(status["streams"], key=lambda s: s["state"] == "recording" and not s["gap"])
    shown = streams if rows_max is None or len(streams) <= rows_max else streams[: rows_max - 1]
    if not streams:
        return Group(*_lines(["no stream is configured"], "dim"))
    table = _table(_STREAMS, [_stream_row(s, status["utc_ns"]) for s in shown], width)
    rest = streams[len(shown) :]
    if not rest:
        return Group(table)
    stopped = sum(s["state"] != "recording" for s in rest)
    return Group(table, *_lines([f"... and {len(rest)} more" + (f", {stopped} of them not recording" if stopped else "")], "dim"))


def _stream_row(s: Mapping[str, Any], utc_ns: int) -> list[Text]:
    age, gap = s["durable_age_s"], s["gap"]
    return [
        Text(s["stream"] if s["name"] == s["stream"] else f"{s['stream']} ({s['name']})"),
        _judged(s["state"], good=s["state"] in _GOOD),
        Text(f"{s['codec']} {s['width']}x{s['height']}" if s["codec"] else "-"),
        Text(f"{s['fps']:.1f}" if s["fps"] else "-"),
        Text(f"{s['bitrate_bps'] / 1e6:.2f} Mbit/s" if s["bitrate_bps"] else "-"),
        Text("-" if age is None else f"{age:.1f} s ago" if age < 60 else f"{human_s(age)} ago"),
        Text(human_bytes(s["stored_bytes"])),
        _judged(f"{gap['cause']} {human_s(max(0, utc_ns - gap['start_ns']) // NS_PER_S)}" if gap else "", good=False),
    ]


def targets_table(status: Mapping[str, Any], width: int) -> Table:
    """One row per journal and target."""
    return _table(_TARGETS, [_target_row(journal, t) for journal in status["journals"] for t in journal["targets"]], width)


def _target_row(journal: Mapping[str, Any], t: Mapping[str, Any]) -> list[Text]:
    free = "-" if t["free_bytes"] is None else f"{human_bytes(t['free_bytes'])} ({t['free_bytes'] / max(1, t['total_bytes']):.0%})"
    return [
        Text(t["target"]),
        Text(journal["journal"]),
        Text(journal["epoch"]),
        Text(t["role"]),
        _judged(
            t["state"] + ", late" * t["late"] + (f", {t['workers_stuck']} stuck" if t["workers_stuck"] else ""),
            good=t["state"] in _GOOD and not t["late"] and not t["workers_stuck"],
        ),
        Text(f"{t['latency_ms_p50']:.1f} / {t['latency_ms_p99']:.1f} ms"),
        Text(free),
    ]


def troubles(status: Mapping[str, Any]) -> list[str]:
    """What is wrong now, one sentence each: alarms, targets, streams."""
    found = [f"ALARM, {alarm['what']}: {alarm['sentence']}" for alarm in status["alarms"]]
    found += [f"target {t['target']}: {t['reason']}" for journal in status["journals"] for t in journal["targets"] if t["reason"]]
    found += [_stuck(t) for journal in status["journals"] for t in journal["targets"] if t["workers_stuck"]]
    for s in status["streams"]:
        if s["gap"]:
            found.append(f"{s['stream']}: {s['gap']['cause']}: {s['gap']['detail'] or s['reason']}")
        elif s["reason"]:
            found.append(f"{s['stream']}: {s['reason']}")
    return [redact(sentence) for sentence in dict.fromkeys(found)]


def _stuck(t: Mapping[str, Any]) -> str:
    workers = "1 worker is" if t["workers_stuck"] == 1 else f"{t['workers_stuck']} workers are"
    pinned = f", with {human_bytes(t['pinned_bytes'])} of the buffer" if t["pinned_bytes"] else ""
    return f"target {t['target']}: {workers} stuck in the kernel{pinned}"


def summary(status: Mapping[str, Any]) -> str:
    """One line: what matters most."""
    streams = status["streams"]
    recording = sum(s["state"] == "recording" for s in streams)
    copies = ", ".join(f"{j['journal']} {j['copies']} of {j['wanted']} copies" for j in status["journals"])
    refuge = "; NO TARGET LIVES, recording to the state disk" if any(j["refuge"] for j in status["journals"]) else ""
    resync = "".join(
        f"; resync of {name}: {human_bytes(p['bytes_done'])} of {human_bytes(p['bytes_total'])}{_left(p['seconds_left'])}"
        for name, p in status["upkeep"]["resync"].items()
    )
    buffer = f"buffer {human_bytes(status['buffer']['bytes'])} of {human_bytes(status['buffer']['bytes_max'])}"
    return f"{status['recorder']}: {recording} of {len(streams)} streams recording; {copies}; {buffer}{resync}{refuge}"


def _left(seconds: int | None) -> str:
    return "" if seconds is None else f", {seconds // 60} min left" if seconds >= 120 else f", {seconds} s left"


class Screen:
    """The live view of `record`."""

    def __init__(self) -> None:
        self._console = console()
        self._live = Live(console=self._console, auto_refresh=False, screen=False, transient=False)
        self._last: deque[str] = deque(maxlen=EVENTS_SHOWN)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """While the recorder runs."""
        with self._live:
            yield

    def note(self, event: Event) -> None:
        """Remember an event for the foot of the view."""
        if sentence := told(event):
            self._last.append(sentence)

    def show(self, status: Mapping[str, Any]) -> None:
        """Draw."""
        self._live.update(self.view(status, *self._console.size), refresh=True)

    def view(self, status: Mapping[str, Any], width: int, height: int) -> Group:
        """What is drawn on a terminal of that size; never more lines than it has."""
        head = Text(summary(status), style="bold")
        targets = targets_table(status, width)
        wrong = troubles(status)
        if len(wrong) > TROUBLES_SHOWN:
            wrong = [*wrong[: TROUBLES_SHOWN - 1], f"... and {len(wrong) - TROUBLES_SHOWN + 1} more: `nvrstore status` shows all"]
        used = len(head.wrap(self._console, width)) + targets.row_count + len(wrong) + len(self._last) + 3  # two headers and the last line
        streams = streams_view(status, width, max(ROWS_MIN, height - used))
        # The empty last line is the cursor's: where a terminal shows ^C behind a full line, everything moves by one.
        return Group(head, targets, streams, *_lines(wrong, "yellow"), *_lines(self._last, "dim"), Text())


def _lines(sentences: Sequence[str] | deque[str], style: str) -> list[Text]:
    return [Text(sentence, style=style, no_wrap=True, overflow="ellipsis") for sentence in sentences]


def _judged(text: str, *, good: bool) -> Text:
    return Text(redact(text), style="" if good else "yellow")


def _table(columns: Sequence[_Column], rows: Sequence[Sequence[Text]], width: int) -> Table:
    """As many columns as fit; the first one, which holds names, is cut at last."""
    widths = [max([cell_len(column.head), *(cell_len(row[i].plain) for row in rows)]) for i, column in enumerate(columns)]
    kept = list(range(len(columns)))

    def used() -> int:
        return sum(widths[i] for i in kept) + _PADDING * (len(kept) - 1)

    names = min(widths[0], max(NAME_MIN, width // 3))  # so many cells they keep while others leave
    for i in sorted((i for i in kept if columns[i].leaves), key=lambda i: columns[i].leaves):
        if used() - widths[0] + names > width:
            kept.remove(i)
    first = min(widths[0], max(NAME_MIN, width - (used() - widths[0])))
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _PADDING, 0, 0))
    for i in kept:
        size = first if i == 0 else widths[i]
        justify = "right" if columns[i].right else "left"
        table.add_column(columns[i].head, justify=justify, no_wrap=True, overflow="ellipsis", width=size)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(row[i] for i in kept))
    return table
