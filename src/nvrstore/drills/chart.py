"""The timeline of one run as SVG: what the cameras, the commits and the targets did, and when it was broken and mended.

    frames per second accepted       ‾‾‾‾‾‾‾‾|‾‾‾‾‾‾‾‾‾
    age of the newest durable footage ....../|\\........     vertical marks: fault, detection, recovery, joined, synced
    commits, each a stroke           | | | |     || | | |
    a  [ synced    ][ away ][ live ][ synced ]
    b  [ synced                              ]

Pure: samples and moments in, text out. No meaning is in colour alone: every band and every mark has its word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from itertools import groupby
from typing import Final

from nvrstore.drills.report import Moment, Run, Sample

WIDTH: Final = 1032
LEFT, RIGHT, TOP = 150, 20, 92
PLOT: Final = 84  # height of a curve
BAND: Final = 26
STROKE: Final = 16  # height of a commit's stroke
WINDOW_S: Final = 0.5  # over which frames per second are counted
LABEL_PX: Final = 6.6  # a letter is about so wide
ROWS: Final = 5  # of labels above the plots

_MARKS: Final = {
    "fault": ("var(--fault)", "fault", ""),
    "healed": ("var(--back)", "healed", "6 4"),
    "lost": ("var(--lost)", "detected", ""),
    "recovered": ("var(--back)", "commits again", ""),
    "joined": ("var(--other)", "joined", "2 3"),
    "synced": ("var(--other)", "in step", "2 3"),
}
_BANDS: Final = {
    "synced": "var(--synced)",
    "live": "var(--live)",
    "joining": "var(--joining)",
    "ready": "var(--none)",
    "hold-down": "var(--hold)",
    "away": "var(--away)",
}

_WORDS: Final = {
    "synced": "lacks nothing",
    "live": "takes new footage, and is being given what it missed",
    "joining": "is about to",
    "hold-down": "works again, and is watched for a while",
    "away": "is lost",
    "ready": "is a spare that waits",
}
LEGEND: Final = (
    """<p>In each picture time runs to the right. The upper curve: frames that the recorder accepted per second, of all cameras; it must
not dip. The lower one: how old the newest footage is that is durable, of the worst camera; it falls with each commit, and rises while none
can be made. Below it each stroke is a commit: the recorder's word that footage is durable on every target that takes part. Vertical lines
mark what was done and what came of it, with their words above. The bands say what each target was:</p><p>"""
    + " ".join(f'<span class=key style="background:{_BANDS[state]}">{state}</span> {words}.' for state, words in _WORDS.items())
    + "</p>"
)


def draw(run: Run, fps: float) -> str:
    """The picture; empty where nothing was seen."""
    samples = run.samples
    if len(samples) < 2:
        return ""
    names = sorted({name for sample in samples for name, _ in sample.targets})
    end_s = max(samples[-1].t_s, *(moment.t_s for moment in run.moments), 1.0) if run.moments else samples[-1].t_s
    strokes_y = TOP + 2 * (PLOT + 26) - 6
    bands_y = strokes_y + STROKE + 14
    height = bands_y + len(names) * (BAND + 6) + 30

    def x(t_s: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * t_s / end_s

    full = fps * max(1, len(run.streams))
    rates = _rates(samples)
    ages = [(sample.t_s, sample.age_s) for sample in samples]
    age_max = max([1.5, *(abs(age) for _, age in ages if age is not None and abs(age) < 600)])
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(_told(run))}"><title>{escape(_told(run))}</title>',
        _axis(x, end_s, height),
        _curve(rates, x, TOP, full * 1.25, "var(--frames)", "frames accepted|per second", f"{full:.0f}", full),
        _curve(ages, x, TOP + PLOT + 26, age_max, "var(--age)", "age of the newest|durable frame, s", f"{age_max:.1f}", age_max),
    ]
    parts.append(_strokes(samples, x, strokes_y))
    for i, name in enumerate(names):
        parts.append(_bands(name, samples, x, end_s, bands_y + i * (BAND + 6)))
    parts.append(_marks(run.moments, x, height - 24))
    return "".join(parts) + "</svg>"


def _told(run: Run) -> str:
    """The picture in words, for those who cannot see it."""
    return f"Timeline of {run.scenario}: " + "; ".join(f"{moment.t_s:.1f} s {moment.text}" for moment in run.moments)


def _rates(samples: Sequence[Sample]) -> list[tuple[float, float | None]]:
    """Frames per second over the last half second, at each sample."""
    found: list[tuple[float, float | None]] = []
    first = 0
    for i, sample in enumerate(samples):
        while first < i and sample.t_s - samples[first].t_s > WINDOW_S:
            first += 1
        passed_s = sample.t_s - samples[first].t_s
        if passed_s >= WINDOW_S * 0.6:
            found.append((sample.t_s, max(0.0, (sample.frames - samples[first].frames) / passed_s)))
    return found


def _axis(x: Callable[[float], float], end_s: float, height: int) -> str:
    step = next(step for step in (1, 2, 5, 10, 20, 60, 300, 3600) if end_s / step <= 16 or step == 3600)
    parts = []
    for t_s in range(0, int(end_s) + 1, step):
        parts.append(f'<line x1="{x(t_s):.1f}" x2="{x(t_s):.1f}" y1="{TOP}" y2="{height - 24}" stroke="var(--line)" stroke-width="1"/>')
        parts.append(f'<text class="soft" x="{x(t_s):.1f}" y="{height - 8}" text-anchor="middle">{t_s} s</text>')
    return "".join(parts)


def _curve(
    points: Sequence[tuple[float, float | None]],
    x: Callable[[float], float],
    top: int,
    most: float,
    colour: str,
    title: str,
    label: str,
    at: float,
) -> str:
    def y(value: float) -> float:
        return top + PLOT - PLOT * min(max(value, 0.0), most) / most

    parts = [
        *(f'<text x="10" y="{top + 30 + 16 * i}">{escape(line)}</text>' for i, line in enumerate(title.split("|"))),
        f'<text class="soft" x="{LEFT - 8}" y="{y(at) + 4:.1f}" text-anchor="end">{label}</text>',
        f'<text class="soft" x="{LEFT - 8}" y="{top + PLOT + 4}" text-anchor="end">0</text>',
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{top + PLOT}" y2="{top + PLOT}" stroke="var(--line)"/>',
    ]
    # Where nothing is known (nobody answered), the line is broken.
    for known, group in groupby(points, key=lambda point: point[1] is not None):
        line = [f"{x(t_s):.1f},{y(value):.1f}" for t_s, value in group if value is not None]
        if known and len(line) > 1:
            parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round" points="{" ".join(line)}"/>')
    return "".join(parts)


def _strokes(samples: Sequence[Sample], x: Callable[[float], float], y: int) -> str:
    """One stroke for each look at which there were commits that were not there at the one before; of one pixel, one."""
    places: dict[int, None] = {}
    before = 0
    for sample in samples:
        if sample.commits > before:
            places[round(x(sample.t_s))] = None
        before = sample.commits  # less than before: another recorder counts from nought
    path = "".join(f"M{place} {y}v{STROKE}" for place in places)
    return (
        f'<text x="10" y="{y + 12}">commits</text><path class="commits" d="{path}" stroke="var(--back)" stroke-width="1.5" fill="none">'
        f"<title>{len(places)} looks at which there were new commits</title></path>"
    )


def _bands(name: str, samples: Sequence[Sample], x: Callable[[float], float], end_s: float, y: int) -> str:
    parts = [f'<text x="10" y="{y + 17}">target {escape(name)}</text>']
    states = [(sample.t_s, dict(sample.targets).get(name, "")) for sample in samples]
    pieces = [(state, next(group)[0]) for state, group in groupby(states, key=lambda pair: pair[1])]
    for i, (state, start_s) in enumerate(pieces):
        stop_s = pieces[i + 1][1] if i + 1 < len(pieces) else end_s
        width = x(stop_s) - x(start_s)
        if state:
            colour = _BANDS.get(state, "var(--none)")
            title = f"{name}: {state} from {start_s:.2f} s to {stop_s:.2f} s"
            parts.append(
                f'<rect x="{x(start_s):.1f}" y="{y}" width="{max(width, 1):.1f}" height="{BAND}" fill="{colour}" stroke="var(--line)">'
                f"<title>{escape(title)}</title></rect>"
            )
            if width > len(state) * LABEL_PX + 8:
                parts.append(f'<text x="{x(start_s) + 5:.1f}" y="{y + 17}">{escape(state)}</text>')
    return "".join(parts)


def _marks(moments: Sequence[Moment], x: Callable[[float], float], bottom: int) -> str:
    parts, words = [], []  # words come last, so that no line crosses them out
    ends = [0.0] * ROWS  # where the last label of each row ends
    for moment in moments:
        if moment.kind not in _MARKS:
            continue
        colour, word, dash = _MARKS[moment.kind]
        word = f"{word}: {moment.target}" if moment.target else word
        at, wide = x(moment.t_s), len(word) * LABEL_PX
        row = next((row for row in range(ROWS) if ends[row] < at - 2), ROWS - 1)
        flip = at + wide > WIDTH - 4
        ends[row] = at + 6 + (0 if flip else wide)
        y = 14 + row * 16
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y - 9}" y2="{bottom}" stroke="{colour}" stroke-width="1.5"{dashes}>'
            f"<title>{escape(f'{moment.t_s:.2f} s: {moment.text}')}</title></line>"
        )
        side = f'x="{at - 4:.1f}" text-anchor="end"' if flip else f'x="{at + 4:.1f}"'
        words.append(f'<text {side} y="{y}" class="mark" style="fill:{colour}">{escape(word)}</text>')
    return "".join([*parts, *words])
