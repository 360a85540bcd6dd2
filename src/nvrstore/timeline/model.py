"""What the timeline says: places of samples, runs with both their ends, steps of the wall clock."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from nvrstore.model import Media, Record, RecordKind, Sample, TrackKey


class RunReason(StrEnum):
    """Why a run began."""

    START = "start"  # first sample after a connect
    JUMP = "jump"  # both clocks went on, samples are missing: lost on the way, or never sent
    LEAP = "leap"  # the camera's clock went forward alone
    RESET = "reset"  # the camera's clock went back
    DRIFT = "drift"  # the two clocks had come apart; nothing is missing
    CLOCK_STEP = "clock_step"  # our own wall clock was set; nothing is missing


@dataclass(frozen=True, slots=True)
class RunRecord:
    """An unbroken stretch of one track on one anchor. Open while `end_ns` is None; later records of its id replace earlier ones."""

    id: str
    track: TrackKey
    reason: RunReason
    start_ns: int
    timescale: int
    end_ns: int | None = None
    media_ticks: int | None = None  # media duration; end_ns - start_ns is the wall's
    samples: int = 0

    def record(self) -> Record:
        body = {
            "stream": self.track.stream,
            "media": str(self.track.media),
            "reason": str(self.reason),
            "start_ns": self.start_ns,
            "end_ns": self.end_ns,
            "timescale": self.timescale,
            "media_ticks": self.media_ticks,
            "samples": self.samples,
        }
        return Record(RecordKind.RUN, self.id, body)

    @classmethod
    def of(cls, record: Record) -> RunRecord:
        b = record.body
        track = TrackKey(b["stream"], Media(b["media"]))
        reason = RunReason(b["reason"])
        return cls(record.id, track, reason, b["start_ns"], b["timescale"], b["end_ns"], b["media_ticks"], b["samples"])


class Placement(NamedTuple):
    """A sample and its place in time. `sample` differs from what was given only in PTS and DTS, and only where those were broken."""

    sample: Sample
    utc_ns: int
    began: RunRecord | None = None  # this sample is the first of a run: a discontinuity
    ended: RunRecord | None = None  # the run before it, with both its ends
    lost_ns: int = 0  # time before this sample that no sample of the track covers; a gap if it is longer than a few frames


@dataclass(frozen=True, slots=True)
class ClockStep:
    """The wall clock was set: at `utc_ns` (new time) by `by_ns`."""

    utc_ns: int
    by_ns: int

    def record(self) -> Record:
        return Record(RecordKind.CLOCK_STEP, f"clock-{self.utc_ns}", {"utc_ns": self.utc_ns, "by_ns": self.by_ns})
