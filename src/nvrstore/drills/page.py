"""The report of drills as one HTML page: nothing is loaded, nothing is scripted; light or dark as the reader's system is.

    verdict · table of scenarios · how to read it · one section a scenario: its timeline (chart.py), moments, streams

Everything on the page is in the JSON document too. Text is escaped: stream and target names are the user's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Final

from nvrstore.drills.chart import LEGEND, draw
from nvrstore.drills.report import FRAMES_LATE, DrillReport, Run, ScenarioReport, Spread, longest_wait

STYLE: Final = """
:root { color-scheme: light dark;
  --ground:#ffffff; --panel:#f4f6f8; --ink:#14202b; --soft:#4b5a68; --line:#c9d2da; --good:#0b6b3a; --bad:#b3121d;
  --fault:#b3121d; --lost:#9a4a00; --back:#0b6b3a; --other:#4b5a68; --frames:#0a5ea8; --age:#7a2f9b;
  --synced:#cfe9d8; --live:#d5e6f7; --joining:#fbe8b8; --hold:#f6d7b5; --away:#f5c6c6; --none:#e3e7ea; }
@media (prefers-color-scheme: dark) { :root {
  --ground:#10161c; --panel:#1a232c; --ink:#e8eef3; --soft:#a9b8c5; --line:#3a4753; --good:#5fd394; --bad:#ff8b8b;
  --fault:#ff8b8b; --lost:#ffb366; --back:#5fd394; --other:#a9b8c5; --frames:#7cc0ff; --age:#d9a6f5;
  --synced:#1d4a33; --live:#1d3f5e; --joining:#5a4708; --hold:#5d3c17; --away:#6b2327; --none:#2b353e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1160px; padding: 24px; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; }
h2 { font-size: 20px; margin: 36px 0 4px; }
p { margin: 4px 0 10px; }
.soft { color: var(--soft); }
.good { color: var(--good); font-weight: 600; }
.bad { color: var(--bad); font-weight: 600; }
.verdict { font-size: 18px; padding: 12px 16px; border-left: 6px solid currentColor; background: var(--panel); margin: 16px 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; margin: 8px 0; }
th, td { text-align: left; padding: 4px 10px 4px 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; white-space: normal; }
td.n, th.n { text-align: right; }
svg { display: block; width: 100%; height: auto; background: var(--panel); border-radius: 6px; margin: 8px 0; }
svg text { font: 12px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: var(--ink); }
svg .soft { fill: var(--soft); }
svg .mark { font-weight: 600; paint-order: stroke; stroke: var(--panel); stroke-width: 4px; stroke-linejoin: round; }
.key { padding: 1px 8px; border: 1px solid var(--line); border-radius: 3px; }
dt { font-weight: 600; float: left; clear: left; width: 130px; }
dd { margin: 0 0 4px 130px; }
a, summary { color: var(--frames); }
summary { cursor: pointer; }
"""


def page(report: DrillReport) -> str:
    """The whole document."""
    body = [
        f"<h1>Drill report</h1><p class=soft>{escape(report.started)} · {report.streams} cameras with {report.fps:g} frames/s · "
        f"{escape(report.machine)} · seed {report.seed}{f' · targets on {report.filesystem}' if report.filesystem else ''}</p>",
        f'<p class="verdict {mood(report.passed)}">{escape(report.verdict)}</p>',
        _summary(report),
        _explained(report),
        *(_section(scenario, report) for scenario in report.scenarios),
    ]
    return document("Drill report", body)


def document(title: str, body: Iterable[str]) -> str:
    """A self-contained page in this style. `title` is plain text, `body` is HTML."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
    head += f"<style>{STYLE}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(body) + "\n</body></html>\n"


def mood(good: bool) -> str:
    """The class of good or bad news."""
    return "good" if good else "bad"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already. Columns that begin with ">" hold numbers."""
    numbers = [column.startswith(">") for column in columns]
    head = "".join(
        f"<th{' class=n' if n else ''}>{escape(column.removeprefix('>'))}</th>" for column, n in zip(columns, numbers, strict=True)
    )
    lines = (
        "<tr>" + "".join(f"<td{' class=n' if n else ''}>{cell}</td>" for cell, n in zip(row, numbers, strict=True)) + "</tr>"
        for row in rows
    )
    return f"<div class=wide><table><tr>{head}</tr>{''.join(lines)}</table></div>"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"


def _spread(values: Iterable[float | None]) -> str:
    """In ms; the unit stands above, so that the table is no wider than a page."""
    found = Spread.of(values)
    if found is None:
        return "-"
    shown = (found.median_s,) if found.count == 1 else (found.min_s, found.median_s, found.p99_s)
    return " / ".join(f"{value * 1e3:.0f}" for value in shown)


def _word(scenario: ScenarioReport) -> str:
    if not scenario.runs:
        return "<span class=soft>not run</span>"
    return f"<span class={mood(scenario.passed)}>{'passed' if scenario.passed else 'FAILED'}</span>"


def _summary(report: DrillReport) -> str:
    def row(s: ScenarioReport) -> list[str]:
        total = {what: sum(run.total(what) for run in s.runs) for what in ("sent", "durable", "lost", "unrecorded", "duplicated")}
        unequal = any(run.copies_equal is False for run in s.runs)
        asked = any(run.copies_equal is not None for run in s.runs)
        equal = "<span class=bad>NO</span>" if unequal else "yes" if asked else "-"
        name = f'<a href="#{escape(s.name)}">{escape(s.name)}</a>'
        waits = longest_wait([r.wait for r in s.runs])
        times = [_spread(values) for values in ([r.ttd_s for r in s.runs], [r.declared_s for r in s.runs], [r.ttr_s for r in s.runs])]
        return [name, _word(s), str(len(s.runs)), *(str(count) for count in total.values()), *times, _waited(waits), equal]

    columns = [
        "scenario",
        "result",
        ">runs",
        ">sent",
        ">durable",
        ">lost",
        ">unrecorded",
        ">twice",
        ">detected, ms",
        ">after an error, ms",
        ">commits again, ms",
        ">longest wait (before), ms",
        "copies equal",
    ]
    return table(columns, map(row, report.scenarios))


def _waited(figures: Mapping[str, Any] | None) -> str:
    if figures is None:
        return "-"
    return f"<span class={mood(figures['kept'])}>{figures['since_ms']:.0f}</span> ({figures['before_ms']:.0f})"


def _explained(report: DrillReport) -> str:
    several = "Over several runs: least / median / 99th percentile." if any(len(s.runs) > 1 for s in report.scenarios) else ""
    promised = ", ".join(f"{name.removesuffix('_s').upper()} {value:g} s" for name, value in report.objectives.items() if value is not None)
    lines = [
        ("sent", "frames that the simulated cameras wrote to the recorder's sockets; each carries its number and a checksum"),
        ("durable", "frames of them that were found on the targets afterwards, whole, by reading every volume"),
        ("lost", "sent, and on no target. Must be 0"),
        ("unrecorded", "died with a recording machine before they were in a commit; bounded, and stands in the ledger as a gap"),
        ("detected", "from the moment of the fault to the declaration that the target is lost (TTD)"),
        (
            "after an error",
            "the part of that from the first call that came back with an error, by the stamp of the worker; - where none did",
        ),
        (
            "commits again",
            "from the declaration to the next commit, the first under the set without it (TTR), in real time; where the recorder dies: "
            "from its death until every camera is durable again. An RTO is held against both together: from the fault to that commit",
        ),
        (
            "longest wait",
            f"between two frames that the recorder accepted of one camera, the worst one's; {FRAMES_LATE} frame intervals more than "
            "before the fault are allowed",
        ),
    ]
    words = "".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in lines)
    objectives = f"<p>Objectives that were asked for: {escape(promised)}.</p>" if promised else ""
    several = f"<p class=soft>{several}</p>" if several else ""
    return f"<details open><summary>How to read this</summary><dl>{words}</dl>{several}{objectives}{LEGEND}</details>"


def _section(scenario: ScenarioReport, report: DrillReport) -> str:
    what = escape(scenario.what[:1].upper() + scenario.what[1:])
    parts = [
        f'<h2 id="{escape(scenario.name)}">{escape(scenario.name)} · {_word(scenario)}</h2>',
        f"<p>{what}. <span class=soft>What has to come of it: {escape(scenario.expect)}.</span></p>",
    ]
    if scenario.skipped:
        parts.append(f"<p class=soft>Not run here: {escape(scenario.skipped)}</p>")
    if scenario.runs:
        shown = next((run for run in scenario.runs if not run.passed), scenario.runs[0])
        parts.append(_run(shown, scenario.runs.index(shown) + 1, len(scenario.runs), report))
    return "\n".join(parts)


def _run(run: Run, number: int, of: int, report: DrillReport) -> str:
    which = f"Run {number} of {of}, seed" if of > 1 else "Seed"
    parts = [f"<p class=soft>{which} <code>{escape(run.seed)}</code>. How the fault was made: {escape(run.how)}.</p>"]
    parts += [f"<p class=bad>{escape(problem)}</p>" for problem in run.problems]
    parts += [
        f"<p>{escape(name.upper())}: <span class={mood(kept)}>{'met' if kept else 'MISSED'}</span></p>"
        for name, kept in run.objectives.items()
    ]
    if run.wait is not None:
        wait, word = run.wait, "kept" if run.wait.kept else "exceeded"
        parts.append(
            f"<p class=soft>Longest wait for a frame: {_ms(wait.before_s)} before the fault, {_ms(wait.since_s)} since; "
            f"{_ms(wait.allowed_s)} are allowed: <span class={mood(wait.kept)}>{word}</span>.</p>"
        )
    parts.append(draw(run, report.fps))
    parts += [f"<p class=soft>{escape(note[:1].upper() + note[1:])}.</p>" for note in run.notes]
    parts.append(table([">at", "what happened"], ([f"{moment.t_s:.2f} s", escape(moment.text)] for moment in run.moments)))
    rows = (
        [
            escape(s.stream),
            *(str(count) for count in (s.sent, s.durable, s.lost, s.unrecorded, s.duplicated)),
            f"{s.coverage * 100:.3f} %",
            "-" if s.interval_before_ms is None else f"{s.interval_before_ms:.0f} ms",
            "-" if s.interval_ms is None else f"{s.interval_ms:.0f} ms",
        ]
        for s in run.streams
    )
    columns = [
        "stream",
        ">sent",
        ">durable",
        ">lost",
        ">unrecorded",
        ">twice",
        ">coverage",
        ">longest wait for a frame, before",
        ">and since the fault",
    ]
    parts.append(f"<details><summary>Every stream</summary>{table(columns, rows)}</details>")
    return "\n".join(parts)
