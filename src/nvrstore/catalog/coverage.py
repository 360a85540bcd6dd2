"""How much of a span of time is stored, what the ledger says about the rest, and what nothing explains. Pure.

    |--recorded--|##gap: camera##|--recorded--|??unexplained??|--recorded--|....outside....

One answer for one stream. Recorded time counts the stream's leading track (video, or audio where there is no video).
A hole is *unexplained* when no ledger gap covers it: longer than `HOLE_NS_MIN`, or any length when the indices say that
samples are missing. What lies before the first or behind the last thing that is known about the stream is *outside*.

Invariant: recorded + gaps + unexplained + outside = end - start; holes too short to be told from jitter count as recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from nvrstore.limits import HOLE_NS_MIN
from nvrstore.model import Gap


class HoleReason(StrEnum):
    """Why the archive has no footage where the ledger has no gap."""

    UNEXPLAINED = "unexplained"  # between two things that are stored, and no ledger entry says why
    OUTSIDE = "outside"  # before the first or behind the last thing that is known about the stream
    DAMAGED = "damaged"  # it was stored, and every copy that can be read is damaged
    UNREACHABLE = "unreachable"  # it is stored, and no target that holds it answers
    ERASED = "erased"  # it was stored, and was erased on purpose


@dataclass(frozen=True, slots=True)
class Hole:
    """Time of a stream without footage that the gap ledger does not explain. `samples` is how many are missing, where that is known."""

    stream: str
    reason: HoleReason
    start_ns: int
    end_ns: int
    samples: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Footage without a hole: of one session, all samples from `index` to `next_index`."""

    start_ns: int
    end_ns: int
    session: int
    index: int
    next_index: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """What `coverage` answers. Times in milliseconds, rounded; `holes` are the unexplained and the outside ones, in order."""

    stream: str
    start_ns: int
    end_ns: int
    recorded_ms: int
    gaps_ms: dict[str, int]  # per cause
    unexplained_ms: int
    outside_ms: int
    gaps: tuple[Gap, ...]
    holes: tuple[Hole, ...]

    @property
    def unexplained(self) -> tuple[Hole, ...]:
        return tuple(hole for hole in self.holes if hole.reason is HoleReason.UNEXPLAINED)


Span = tuple[int, int]


def holes_between(
    stream: str, stretches: Sequence[Stretch], gaps: Sequence[Gap], start_ns: int, end_ns: int, known: Span | None
) -> list[Hole]:
    """The unexplained and outside holes of [start_ns, end_ns), in order. `stretches` and `gaps` may overlap and need no order.

    `known` is from when until when anything at all is known about the stream, also beyond [start_ns, end_ns); None: nothing is.
    """
    explained = _union((gap.start_ns, end_ns if gap.end_ns is None else gap.end_ns) for gap in gaps)
    covered = _union([*((stretch.start_ns, stretch.end_ns) for stretch in stretches), *explained])
    holes = _missing_samples(stream, stretches, explained, start_ns, end_ns)
    first, last = known or (end_ns, end_ns)
    at = start_ns
    for begin, end in [*covered, (end_ns, end_ns)]:
        begin = min(begin, end_ns)
        parts = (
            (HoleReason.OUTSIDE, at, min(begin, first)),
            (HoleReason.UNEXPLAINED, max(at, first), min(begin, last)),
            (HoleReason.OUTSIDE, max(at, first, last), begin),
        )
        holes += [Hole(stream, reason, a, b) for reason, a, b in parts if b - a >= HOLE_NS_MIN]
        at = max(at, end)
    return sorted(holes, key=lambda hole: (hole.start_ns, hole.end_ns))


def coverage(stream: str, stretches: Sequence[Stretch], gaps: Sequence[Gap], start_ns: int, end_ns: int, known: Span | None) -> Coverage:
    """The account of [start_ns, end_ns) of one stream; `known` as in `holes_between`."""
    holes = holes_between(stream, stretches, gaps, start_ns, end_ns, known)
    left = _cut(_union((s.start_ns, s.end_ns) for s in stretches), start_ns, end_ns)
    taken, gaps_ns = left, dict[str, int]()
    for gap in sorted(gaps, key=lambda g: g.start_ns):
        span = _cut([(gap.start_ns, end_ns if gap.end_ns is None else gap.end_ns)], start_ns, end_ns)
        alone = _length(_union([*taken, *span])) - _length(
            taken
        )  # time that is recorded after all, or counted for another gap, counts once
        taken = _union([*taken, *span])
        gaps_ns[str(gap.cause)] = gaps_ns.get(str(gap.cause), 0) + alone
    unexplained = sum(h.end_ns - h.start_ns for h in holes if h.reason is HoleReason.UNEXPLAINED and h.end_ns - h.start_ns >= HOLE_NS_MIN)
    outside = sum(h.end_ns - h.start_ns for h in holes if h.reason is HoleReason.OUTSIDE)
    recorded = end_ns - start_ns - sum(gaps_ns.values()) - unexplained - outside
    return Coverage(
        stream=stream,
        start_ns=start_ns,
        end_ns=end_ns,
        recorded_ms=_ms(recorded),
        gaps_ms={cause: _ms(length) for cause, length in sorted(gaps_ns.items())},
        unexplained_ms=_ms(unexplained),
        outside_ms=_ms(outside),
        gaps=tuple(sorted(gaps, key=lambda g: (g.start_ns, g.id))),
        holes=tuple(holes),
    )


def _missing_samples(stream: str, stretches: Sequence[Stretch], explained: Sequence[Span], start_ns: int, end_ns: int) -> list[Hole]:
    """Holes too short to show in time, which the indices of one session show."""
    sessions: dict[int, list[Stretch]] = {}
    for stretch in stretches:
        sessions.setdefault(stretch.session, []).append(stretch)
    holes: list[Hole] = []
    for known in sessions.values():
        known.sort(key=lambda s: s.index)
        next_index, at = known[0].index, known[0].end_ns
        for stretch in known:
            missing = stretch.index - next_index
            first, last = sorted((at, stretch.start_ns))
            inside = first < end_ns and last > start_ns
            told = any(begin <= last + HOLE_NS_MIN and end >= first - HOLE_NS_MIN for begin, end in explained)
            if missing > 0 and inside and not told and last - first < HOLE_NS_MIN:
                holes.append(Hole(stream, HoleReason.UNEXPLAINED, first, last, missing, f"{missing} samples are missing"))
            if stretch.next_index >= next_index:
                next_index, at = stretch.next_index, stretch.end_ns
    return holes


def _union(spans: Iterable[Span]) -> list[Span]:
    merged: list[Span] = []
    for start, end in sorted(span for span in spans if span[1] >= span[0]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def _cut(spans: Iterable[Span], start_ns: int, end_ns: int) -> list[Span]:
    return [(max(start, start_ns), min(end, end_ns)) for start, end in spans if end > start_ns and start < end_ns]


def _length(spans: Iterable[Span]) -> int:
    return sum(end - start for start, end in spans)


def _ms(length_ns: int) -> int:
    return round(length_ns / 1_000_000)
