"""The machine loses its power: what was not synced is gone, what was reported committed is not.

Targets and the state directory lie on file systems of their own, which are shut down at a random moment: whatever was not
synced by then is thrown away, as by a power cut. Then the recorder is killed, the file systems are mounted again, and the
next recorder has to make the best of it.
"""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random

import pytest
from tests.support import crash
from tests.support.crash import Footage, Watch
from tests.support.prove import proving, seeds, tally
from tests.support.recorder import Process, Site, small_farm

from nvrstore.drills.faults import LoopDisk
from nvrstore.limits import MIB

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(600)]

CUTS = 12 if proving() else 3  # in a row


@contextmanager
def disks(folder: Path, kinds: dict[str, str]) -> Iterator[list[LoopDisk]]:
    """A file system of its own for each place below `folder`."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(LoopDisk.mounted(kind, folder / f"{place}.img", folder / place, size_bytes=96 * MIB))
            for place, kind in kinds.items()
        ]


def lose_power(process: Process, machine: list[LoopDisk], random: Random) -> None:
    """All disks at once; then the processes, which saw some milliseconds of errors at most; then the machine starts again."""
    workers = process.workers()
    for disk in random.sample(machine, len(machine)):
        disk.shut_down()
    crash.kill(process)
    crash.wait_gone(workers)
    for disk in machine:
        subprocess.run(["umount", disk.path], check=True)
        disk.mount()


@pytest.mark.parametrize("seed", seeds(usual=1, proving=5))
@pytest.mark.parametrize("other", ["ext4", "xfs"])
def test_what_was_reported_committed_survives_a_power_cut(tmp_path: Path, other: str, seed: int) -> None:
    """At random moments, also while the recorder starts and recovers from the cut before."""
    random = Random(f"power {other} {seed}")
    pause = threading.Event()
    promises = []
    with disks(tmp_path, {"a": "ext4", "b": other, "state": "ext4"}) as machine, small_farm(2) as farm:
        site = Site(tmp_path, farm)
        for moment in ["recording", *(random.choice(("starting", "recovering", "recording")) for _ in range(CUTS - 1))]:
            process = Process(site)
            try:
                with Watch(site, process) as watch:
                    if moment == "starting":
                        pause.wait(random.uniform(0.0, 1.2))
                    else:
                        watch.wait_for(crash.recording if moment == "recording" else bool)
                        pause.wait(random.uniform(0.0, 2.0 if moment == "recording" else 0.6))
                    lose_power(process, machine, random)
                    promises.append(dict(watch.durable_ns))
            finally:
                process.end(signal.SIGKILL)
            stored = [Footage.of(site.folder / target) for target in site.targets]
            broken = [crash.holds(footage, promises[-1]) for footage in stored]
            assert not all(broken), f"power was cut while {moment}: {broken}"
        footage = crash.live_on(site, farm, promises)
    frames = len(footage.numbers("cam0"))
    tally("power-cut", f"{other}, seed {seed}", cuts=CUTS, promises=sum(map(bool, promises)), lost=0, frames_stored=frames)
