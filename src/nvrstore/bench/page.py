"""A bench as one HTML page: nothing is loaded, nothing is scripted. Curves of CPU, memory and commit latency against the streams.

verdict · what stopped it · sizing · curves · table of steps; everything on it is in the JSON document too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Final

from nvrstore.bench.model import COMMIT_P99_MS_MAX, Step
from nvrstore.bench.sizing import Sizing
from nvrstore.drills.page import document, mood, table

WIDTH: Final = 1032
HEIGHT: Final = 220
LEFT, RIGHT, TOP, BOTTOM = 70, 24, 34, 34

#: What is drawn: title, unit, and lines of (word, colour, value of a step).
_Line = tuple[str, str, Callable[[Step], float]]
CURVES: Final[tuple[tuple[str, str, tuple[_Line, ...]], ...]] = (
    (
        "CPU",
        "% of a core",
        (
            ("recorder", "var(--frames)", lambda step: step.usage.recorder * 100 if step.usage else 0.0),
            ("with the kernel's part", "var(--age)", lambda step: step.usage.recording * 100 if step.usage else 0.0),
        ),
    ),
    ("Memory", "MiB (PSS)", (("recorder", "var(--frames)", lambda step: step.pss_mb),)),
    (
        "Commit latency",
        "ms",
        (
            ("median", "var(--frames)", lambda step: step.commit_ms_p50),
            ("p99", "var(--age)", lambda step: step.commit_ms_p99),
        ),
    ),
)


def page(steps: Sequence[Step], *, streams: int, bottleneck: str, sizing: Sizing | None, about: str) -> str:
    """The whole document. `streams` is the answer, `about` says machine, targets and cameras."""
    measured = sorted((step for step in steps if step.usage is not None), key=lambda step: step.streams)
    answer = f"{streams} cameras are recorded with every frame on both targets" if streams else "no camera was recorded without loss"
    body = [
        f"<h1>Bench report</h1><p class=soft>{escape(about)}</p>",
        f'<p class="verdict {mood(bool(streams))}">{answer}</p>',
        f"<p>What stops it: {escape(bottleneck)}.</p>",
        f"<p>Sizing: {escape(sizing.sentence)}.</p>" if sizing else "",
        "<p class=soft>A filled dot is a step that passed: every frame that was sent was looked up on both targets, commits took less than "
        f"{COMMIT_P99_MS_MAX:.0f} ms (p99). A ring is one that failed.</p>",
        *(_picture(title, unit, lines, measured) for title, unit, lines in CURVES if len(measured) > 1),
        _steps(steps),
    ]
    return document("Bench report", body)


def _picture(title: str, unit: str, lines: Sequence[_Line], steps: Sequence[Step]) -> str:
    """One diagram: streams to the right, the lines named where they end."""
    most = max([1.0, *(value(step) for _, _, value in lines for step in steps)]) * 1.1
    last = steps[-1].streams

    def x(streams: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * streams / last

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / most

    told = f"{title} in {unit} against streams: " + "; ".join(
        f"{word} " + ", ".join(f"{step.streams}: {value(step):.0f}" for step in steps) for word, _, value in lines
    )
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(told)}"><title>{escape(told)}</title>']
    parts.append(f'<text class="mark" x="10" y="20">{escape(title)}, {escape(unit)}</text>')
    for share in (0.0, 0.5, 1.0):
        value = most / 1.1 * share
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="var(--line)"/>')
        parts.append(f'<text class="soft" x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.0f}</text>')
    ends = -40.0
    for step in steps:
        if x(step.streams) - ends >= 36:  # labels do not touch
            ends = x(step.streams)
            parts.append(f'<text class="soft" x="{ends:.1f}" y="{HEIGHT - 12}" text-anchor="middle">{step.streams}</text>')
    for i, (word, colour, value_of) in enumerate(lines):
        points = " ".join(f"{x(step.streams):.1f},{y(value_of(step)):.1f}" for step in steps)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>')
        for step in steps:
            fill = colour if step.passed else "var(--panel)"
            parts.append(
                f'<circle cx="{x(step.streams):.1f}" cy="{y(value_of(step)):.1f}" r="4" fill="{fill}" stroke="{colour}" stroke-width="2">'
                f"<title>{step.streams} streams, {escape(word)}: {value_of(step):.1f} {escape(unit)}</title></circle>"
            )
        if len(lines) > 1:
            parts.append(f'<text class="mark" x="{220 + 260 * i}" y="20" style="fill:{colour}">{escape(word)}</text>')
    return "".join(parts) + "</svg>"


def _steps(steps: Sequence[Step]) -> str:
    columns = [
        ">streams",
        ">CPU, recorder",
        ">with the kernel's part",
        ">PSS",
        ">commit p50",
        ">p99",
        ">connecting",
        ">sent",
        ">lost",
        ">each target",
        "verdict",
    ]
    rows = []
    for step in sorted(steps, key=lambda step: step.streams):
        usage = step.usage
        verdict = f"<span class={mood(step.passed)}>{'passed' if step.passed else 'FAILED: ' + escape(step.reason)}</span>"
        rows.append(
            [
                str(step.streams),
                f"{usage.recorder * 100:.0f} %" if usage else "-",
                f"{usage.recording * 100:.0f} %" if usage else "-",
                f"{step.pss_mb:.0f} MiB",
                f"{step.commit_ms_p50:.0f} ms",
                f"{step.commit_ms_p99:.0f} ms",
                f"{step.connected_s:.1f} s",
                str(step.frames_sent),
                str(step.frames_lost),
                f"{step.target_mb_s:.1f} MB/s",
                verdict,
            ]
        )
    return table(columns, rows)
