"""What a step measured, as values that table, JSON and page show alike. Pure.

Usage (CPU of processes and threads, over the measured time) --> Step (one number of streams) --> Result
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

COMMIT_P99_MS_MAX: Final = 500.0  # from the hand-over of a batch until it is durable on all members
TOO_SMALL: Final = "the targets were too small: footage of this very run was removed to make room"
LATE_MS_MAX: Final = 1000.0  # cameras that send later than this are no cameras any more: the step says nothing of the recorder


class Bottleneck(StrEnum):
    """What a failing step ran into."""

    NONE = "none"  # no step failed
    CPU = "cpu"
    GIL = "gil"
    DISK = "disk"
    NETWORK = "network"
    FARM = "farm"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU in cores (1.0: one core, all the time), averaged over the measured time."""

    cores: int  # of the machine
    machine: float  # all that was busy, simulated cameras included
    farm: float
    farm_thread: float  # its busiest thread
    recorder: float  # the whole process tree
    recorder_process: float  # its main process, where the interpreter lock is
    thread: float  # the busiest thread of that process
    thread_name: str = ""
    others: float = 0.0  # programs that have nothing to do with this

    @property
    def recording(self) -> float:
        """What recording costs the machine: write-back runs in kernel threads, which are nobody's."""
        return max(self.recorder, self.machine - self.farm - self.others)


@dataclass(frozen=True, slots=True)
class Step:
    """One number of streams, recorded, looked up, judged."""

    streams: int
    seconds: float  # measured; connecting and settling come before
    usage: Usage | None  # None: it did not come so far
    pss_mb: float = 0.0
    commit_ms_p50: float = 0.0
    commit_ms_p99: float = 0.0
    commits: int = 0
    connected_s: float = 0.0
    frames_sent: int = 0
    frames_lost: int = 0
    frames_dropped: int = 0  # made, and not taken by the recorder's socket
    late_ms_max: float = 0.0  # of the simulated cameras
    target_mb_s: float = 0.0  # written to each target
    targets_lost: tuple[str, ...] = ()
    problem: str = ""  # what the verification or the run itself found

    @property
    def reason(self) -> str:
        """Why it does not count; empty: every frame durable on both targets, in time."""
        if self.frames_lost:
            return f"{self.frames_lost} of {self.frames_sent} frames lost"
        if self.targets_lost:
            return f"target {', '.join(self.targets_lost)} left the set"
        if self.problem:
            return self.problem
        if self.frames_dropped:
            return f"{self.frames_dropped} frames could not be sent: the recorder's sockets were full"
        if self.late_ms_max > LATE_MS_MAX:
            return f"the simulated cameras sent up to {self.late_ms_max:.0f} ms late"
        if not self.commits or not self.frames_sent:
            return "nothing was committed while it was measured"
        if self.commit_ms_p99 >= COMMIT_P99_MS_MAX:
            return f"commit p99 is {self.commit_ms_p99:.0f} ms; at most {COMMIT_P99_MS_MAX:.0f} ms are allowed"
        return ""

    @property
    def passed(self) -> bool:
        return not self.reason
