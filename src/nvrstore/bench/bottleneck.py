"""What a failing step ran into, from measured CPU times alone. Pure.

Asked in this order, since each hides those after it: the farm's own thread, the machine's cores, the recorder's busiest
thread, the disk, the sockets. A failure that shows in none of them is called unknown, not guessed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from nvrstore.bench.model import COMMIT_P99_MS_MAX, TOO_SMALL, Bottleneck, Step

FULL: Final = 0.90  # of a core: a thread that waits for its turn a tenth of the time is full
OTHERS_MIN: Final = 0.1  # cores of other programs that are worth a word
FARM_SHARE: Final = 0.25  # of the machine: from here on the cameras decide the answer, not the recorder


def disturbed(steps: Iterable[Step]) -> str:
    """A sentence on other programs that ran meanwhile; empty where they did not matter."""
    others = max((step.usage.others for step in steps if step.usage is not None), default=0.0)
    return f"other programs used up to {others:.2f} cores meanwhile: alone this machine does more" if others >= OTHERS_MIN else ""


def bottleneck_of(step: Step) -> tuple[Bottleneck, str]:
    """The bottleneck and its sentence."""
    if step.passed:
        return Bottleneck.NONE, "no step failed: this machine records more than was asked for"
    if step.problem.startswith(TOO_SMALL):
        return Bottleneck.DISK, TOO_SMALL
    usage = step.usage
    if usage is None:
        return Bottleneck.UNKNOWN, "the step ended before anything was measured"
    elsewhere = "run them on another machine to see what the recorder can do alone"
    if usage.farm_thread >= FULL:
        return Bottleneck.FARM, f"the simulated cameras filled their one thread ({usage.farm_thread * 100:.0f} % of a core); {elsewhere}"
    if usage.machine >= FULL * usage.cores:
        busy = f"{usage.machine:.2f} of {usage.cores} cores were busy, {usage.farm:.2f} of them with simulated cameras"
        if usage.farm >= FARM_SHARE * usage.cores:
            return Bottleneck.FARM, f"the simulated cameras took what was left: {busy}; {elsewhere}"
        if usage.others >= OTHERS_MIN:
            busy += f", {usage.others:.2f} with other programs"
        return Bottleneck.CPU, f"the machine had no CPU left: {busy}"
    if usage.thread >= FULL:
        left = usage.cores - usage.machine
        what = f"the recorder's thread {usage.thread_name} stood at {usage.thread * 100:.0f} % of a core"
        return Bottleneck.GIL, f"{what} while {left:.2f} cores were idle"
    if usage.recorder_process >= 1.0:
        left = usage.cores - usage.machine
        what = f"the threads of the recorder's main process used {usage.recorder_process:.2f} cores together, which share one interpreter"
        return Bottleneck.GIL, f"{what}, while {left:.2f} cores were idle"
    if step.targets_lost or step.commit_ms_p99 >= COMMIT_P99_MS_MAX:
        why = f"commits took {step.commit_ms_p99:.0f} ms (p99) at {step.target_mb_s:.1f} MB/s to each target, with CPU left"
        return Bottleneck.DISK, why
    if step.frames_dropped:
        return Bottleneck.NETWORK, "the cameras could not send although CPU was left: the receive queues were full"
    return Bottleneck.UNKNOWN, "neither CPU, a full thread, the disk nor a socket explains it"
