"""Nobody is accused who is well: a host that burns the interpreter's lock, a machine that stands still, are no target's fault.

`./run test` looks on for seconds, `./run prove` for ten minutes each. Not one frame is lost either.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest
from tests.support import burning_host, crash
from tests.support.crash import Watch
from tests.support.freezer import Freezer
from tests.support.prove import note, proving
from tests.support.recorder import Process, Site, small_farm

from nvrstore.bench.proc import cpu_s

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SECONDS: Final = 600.0 if proving() else 6.0
CAMERAS: Final = 8 if proving() else 3
BURNERS: Final = 4
STOPPED_S: Final = 0.4
BETWEEN_S: Final = (0.2, 3.0)  # from one stop to the next
SEED: Final = 1


class Burning(Process):
    """A recorder in a host that burns."""

    @staticmethod
    def command(site: Site) -> list[str]:
        return [sys.executable, burning_host.__file__, str(site.file), str(BURNERS)]


def undisturbed(folder: Path, start: Callable[[Site], Process], disturb: Callable[[Process, Freezer], dict[str, Any]]) -> dict[str, Any]:
    """Record while `disturb` goes on: what it says, and what was seen. Nothing may have been noticed, and nothing be missing."""
    with small_farm(CAMERAS) as farm, Freezer() as freezer:
        site = Site(folder, farm)
        process = start(site)
        try:
            with Watch(site, process, poll_s=0.2) as watch:
                epoch = watch.wait_for(lambda status: crash.synced(status) and crash.recording(status))["journals"][0]["epoch"]
                figures = disturb(process, freezer)
                over_ns = crash.now_ns()
                watch.wait_for(lambda status: crash.recording_until(status, over_ns))
                sent = farm.stop_sending()
                crash.drained(watch)
                status = watch.status
            assert process.end(signal.SIGTERM) == 0, process.errors
        finally:
            if process.process.poll() is None:
                process.end(signal.SIGKILL)
    alarms = [event for event in process.events if event["event"] in ("TargetLost", "Alarm", "FragmentsDropped")]
    assert alarms == []
    assert status["journals"][0]["epoch"] == epoch, "nobody was taken out of the set"
    assert site.lost(sent) == {}
    assert site.differences() == []
    return {
        **figures,
        "cameras": CAMERAS,
        "seconds": SECONDS,
        "targets_lost": 0,
        "frames_sent": sum(frames.count for frames in sent),
        "frames_lost": 0,
        "engine_late_s_max": status["late_s_max"],
        "commit_ms_p99": status["journals"][0]["commit_ms_p99"],
    }


def test_threads_that_burn_the_interpreters_lock_make_nobody_late(tmp_path: Path) -> None:
    """Four of them in the recorder's own process: it is slower to notice, and does not take that for a slow target."""

    def burn(process: Process, _: Freezer) -> dict[str, Any]:
        process.process.send_signal(signal.SIGUSR1)
        before_s = cpu_s([process.pid])
        threading.Event().wait(SECONDS)
        share = (cpu_s([process.pid]) - before_s) / SECONDS
        process.process.send_signal(signal.SIGUSR1)
        return {"burners": BURNERS, "cpu_share": round(share, 2)}

    note("false-alarm-burners", **undisturbed(tmp_path, Burning, burn))


def test_a_machine_that_stands_still_for_moments_accuses_nobody(tmp_path: Path) -> None:
    """Recorder and workers stop for 400 ms at random moments, in the middle of writes, looks and answers, also twice in a second."""
    random, pause = Random(SEED), threading.Event()

    def stop(process: Process, freezer: Freezer) -> dict[str, Any]:
        freezer.take(process.pid, *process.workers())
        over_s, stops = crash.now_s() + SECONDS, 0
        while crash.now_s() < over_s:
            pause.wait(random.uniform(*BETWEEN_S))
            with freezer.stopped():
                pause.wait(STOPPED_S)
            stops += 1
        return {"stops": stops, "stopped_s": STOPPED_S, "how": freezer.how, "seed": SEED}

    note("false-alarm-stops", **undisturbed(tmp_path, Process, stop))
