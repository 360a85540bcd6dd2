"""What came of drills: values that JSON, table and page show alike.

    Sample, Moment --> Run (one scenario once) --> ScenarioReport (over repeats) --> DrillReport (the JSON document)

Times of a run (`t_s`) count from its first sample. `lost` are frames that were sent to the recorder, and are on no copy;
`unrecorded` are those of them that died with a recording machine before they were in a commit: stated apart, bounded by the
scenario, and no reason to fail. Everything here is pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

FORMAT: Final = 1
FRAMES_LATE: Final = 3  # more frame intervals than that later than before, and a fault of storage is felt by cameras


@dataclass(frozen=True, slots=True)
class Sample:
    """The recorder, as it was seen at one moment."""

    t_s: float
    frames: int  # accepted so far, all streams
    commits: int
    age_s: float | None  # of the newest durable footage, worst stream; None: nothing is durable yet, or nobody answers
    targets: tuple[tuple[str, str], ...]  # target, state


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that happened. `kind`: fault, healed, lost, recovered, joined, synced, note."""

    t_s: float
    kind: str
    text: str
    target: str = ""


@dataclass(frozen=True, slots=True)
class StreamResult:
    """One stream, looked up frame by frame."""

    stream: str
    sent: int
    durable: int
    lost: int
    unrecorded: int
    duplicated: int
    damaged: int
    interval_before_ms: float | None  # the longest time without a frame, before the fault
    interval_ms: float | None  # and since

    @property
    def coverage(self) -> float:
        """Share of the sent frames that are stored."""
        return self.durable / self.sent if self.sent else 1.0


@dataclass(frozen=True, slots=True)
class Wait:
    """The longest time between two frames that the recorder accepted of one stream: the worst stream's, before the fault and since."""

    before_s: float
    since_s: float
    allowed_s: float

    @classmethod
    def of(cls, streams: Iterable[StreamResult], fps: float) -> Wait | None:
        """None where it is not known of both times."""
        known = [(s.interval_before_ms, s.interval_ms) for s in streams if s.interval_before_ms is not None and s.interval_ms is not None]
        if not known:
            return None
        before_s = max(before_ms for before_ms, _ in known) / 1e3
        return cls(before_s, max(since_ms for _, since_ms in known) / 1e3, before_s + FRAMES_LATE / fps)

    @property
    def kept(self) -> bool:
        """No camera felt the fault."""
        return self.since_s <= self.allowed_s

    def as_json(self) -> dict[str, Any]:
        return {"before_ms": _ms(self.before_s), "since_ms": _ms(self.since_s), "allowed_ms": _ms(self.allowed_s), "kept": self.kept}


@dataclass(slots=True)
class Run:
    """One scenario, once."""

    scenario: str
    seed: str
    how: str = ""  # how the fault was made: real or simulated
    ttd_s: float | None = None  # first fault to the declaration
    declared_s: float | None = None  # first failed call to the declaration; None: no call failed
    ttr_s: float | None = None  # declaration to the next commit, under the set without it
    recovery_s: float | None = None  # first fault to that commit: what an RTO is held against
    wait: Wait | None = None  # None: not known
    stop_s: float | None = None  # how long the recorder took to stop
    streams: list[StreamResult] = field(default_factory=list)
    copies_equal: bool | None = None  # None: not asked of this scenario
    objectives: dict[str, bool] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)

    def total(self, what: str) -> int:
        """Sum over streams: sent, durable, lost, unrecorded, duplicated, damaged."""
        return sum(getattr(stream, what) for stream in self.streams)

    @property
    def whole(self) -> bool:
        """Nothing lost, nothing twice, nothing damaged, copies equal, no other problem."""
        clean = not (self.total("lost") or self.total("duplicated") or self.total("damaged") or self.problems)
        return clean and self.copies_equal is not False

    @property
    def passed(self) -> bool:
        """Whole, and objectives met."""
        return self.whole and all(self.objectives.values())

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        sent = self.total("sent")
        return {
            "seed": self.seed,
            "how": self.how,
            "passed": self.passed,
            "ttd_ms": _ms(self.ttd_s),
            "declared_ms": _ms(self.declared_s),
            "ttr_ms": _ms(self.ttr_s),
            "recovery_ms": _ms(self.recovery_s),
            "longest_wait": None if self.wait is None else self.wait.as_json(),
            "stop_s": None if self.stop_s is None else round(self.stop_s, 3),
            "frames": {what: self.total(what) for what in ("sent", "durable", "lost", "unrecorded", "duplicated", "damaged")},
            "coverage": round(self.total("durable") / sent, 6) if sent else 1.0,
            "copies_equal": self.copies_equal,
            "objectives": self.objectives,
            "problems": self.problems,
            "notes": self.notes,
            "streams": [
                {
                    "stream": s.stream,
                    "sent": s.sent,
                    "durable": s.durable,
                    "lost": s.lost,
                    "unrecorded": s.unrecorded,
                    "duplicated": s.duplicated,
                    "damaged": s.damaged,
                    "coverage": round(s.coverage, 6),
                    "interval_before_ms": s.interval_before_ms,
                    "interval_ms": s.interval_ms,
                }
                for s in self.streams
            ],
            "moments": [{"t_s": round(m.t_s, 4), "kind": m.kind, "target": m.target, "text": m.text} for m in self.moments],
            "samples": [
                {
                    "t_s": round(s.t_s, 3),
                    "frames": s.frames,
                    "commits": s.commits,
                    "age_s": s.age_s,
                    "targets": dict(s.targets),
                }
                for s in self.samples
            ],
        }


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over repeats, in seconds."""

    min_s: float
    median_s: float
    p99_s: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """None where there is none. The p99 of fewer than 100 values is the largest."""
        ordered = sorted(value for value in values if value is not None)
        if not ordered:
            return None
        middle = len(ordered) // 2
        median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
        return cls(ordered[0], median, ordered[min(len(ordered) - 1, -(-len(ordered) * 99 // 100) - 1)], len(ordered))

    def as_json(self) -> dict[str, Any]:
        return {"min_ms": _ms(self.min_s), "median_ms": _ms(self.median_s), "p99_ms": _ms(self.p99_s), "count": self.count}


@dataclass(slots=True)
class ScenarioReport:
    """One scenario over its repeats."""

    name: str
    what: str
    expect: str
    runs: list[Run] = field(default_factory=list)
    skipped: str = ""  # why it could not be run here

    @property
    def passed(self) -> bool:
        return bool(self.runs) and all(run.passed for run in self.runs)

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        spreads = {
            "ttd": Spread.of(run.ttd_s for run in self.runs),
            "declared": Spread.of(run.declared_s for run in self.runs),
            "ttr": Spread.of(run.ttr_s for run in self.runs),
            "recovery": Spread.of(run.recovery_s for run in self.runs),
        }
        return {
            "scenario": self.name,
            "what": self.what,
            "expect": self.expect,
            "passed": self.passed,
            "skipped": self.skipped or None,
            "longest_wait": longest_wait([run.wait for run in self.runs]),
            **{what: None if spread is None else spread.as_json() for what, spread in spreads.items()},
            "runs": [run.as_json() for run in self.runs],
        }


@dataclass(slots=True)
class DrillReport:
    """The whole document."""

    started: str  # ISO 8601
    machine: str
    streams: int
    fps: float
    seed: int
    objectives: dict[str, float | None]
    scenarios: list[ScenarioReport] = field(default_factory=list)
    filesystem: str | None = None  # that all targets lay on; None: where the sandbox was

    @property
    def ran(self) -> Sequence[ScenarioReport]:
        return [scenario for scenario in self.scenarios if scenario.runs]

    @property
    def passed(self) -> bool:
        """At least one ran, and none of those that ran failed."""
        return bool(self.ran) and all(scenario.passed for scenario in self.ran)

    @property
    def verdict(self) -> str:
        """In one sentence."""
        if not self.passed:
            return "NOT everything is as it should be."
        died = sum(run.total("unrecorded") for scenario in self.ran for run in scenario.runs)
        if died:
            return f"Every drill passed. Nothing was lost but {died} frames that died with a recording machine before their commit."
        return "Every drill passed: nothing was lost."

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "format": FORMAT,
            "started": self.started,
            "machine": self.machine,
            "streams": self.streams,
            "fps": self.fps,
            "seed": self.seed,
            "filesystem": self.filesystem,
            "objectives": self.objectives,
            "passed": self.passed,
            "scenarios": [scenario.as_json() for scenario in self.scenarios],
        }


def longest_wait(waits: Iterable[Wait | None]) -> dict[str, Any] | None:
    """Over repeats: medians of each run's worst stream, and the largest. `kept` is about the medians."""
    known = [wait for wait in waits if wait is not None]
    before, since = Spread.of(wait.before_s for wait in known), Spread.of(wait.since_s for wait in known)
    allowed = Spread.of(wait.allowed_s for wait in known)
    if before is None or since is None or allowed is None:
        return None
    return {
        "before_ms": _ms(before.median_s),
        "since_ms": _ms(since.median_s),
        "allowed_ms": _ms(allowed.median_s),
        "before_max_ms": _ms(max(wait.before_s for wait in known)),
        "since_max_ms": _ms(max(wait.since_s for wait in known)),
        "kept": since.median_s <= allowed.median_s,
        "count": since.count,
    }


def judge(
    run: Run, *, rto_s: float | None, rpo_s: float | None, fps: float, ttd_s: float | None = None, wait: bool = False
) -> dict[str, bool]:
    """What was promised, and whether this run kept it. Nothing is promised where nothing is configured.

    `ttd_s`: the longest time to the declaration; `wait`: no camera is to feel it.
    """
    kept = {}
    if ttd_s is not None and run.ttd_s is not None:
        kept["ttd"] = run.ttd_s <= ttd_s
    if wait and run.wait is not None:
        kept["wait"] = run.wait.kept
    if rto_s is not None and (run.ttd_s is not None or run.recovery_s is not None):
        kept["rto"] = run.recovery_s is not None and run.recovery_s <= rto_s
    if rpo_s is not None:
        kept["rpo"] = max((s.lost + s.unrecorded for s in run.streams), default=0) / fps <= rpo_s
    return kept


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 1)
