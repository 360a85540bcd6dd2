"""The kernel kills a worker since its group has used up its memory: another one takes its place, and no frame is missing.

Where no memory cgroup is to be had, `test_a_worker_that_is_killed_costs_no_frame` (test_kill.py) does the same with SIGKILL.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from tests.support import crash
from tests.support.crash import Footage, Watch
from tests.support.memory_limit import MemoryLimit, NoLimitError
from tests.support.recorder import Process, Site, small_farm

from nvrstore.drills.recording import workers_of
from nvrstore.limits import MIB

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(150)]


def test_workers_killed_for_memory_cost_no_frame(tmp_path: Path) -> None:
    """Both workers of one target at a moment; the recorder goes on beside them, and starts others."""
    with small_farm(2) as farm:
        site = Site(tmp_path, farm)
        process = Process(site)
        try:
            with MemoryLimit(32 * MIB) as limit, Watch(site, process) as watch:
                watch.wait_for(lambda status: crash.synced(status) and crash.recording(status))
                victims = workers_of(process.pid, site.folder / "a", "")
                assert len(victims) == 2
                for pid in victims:
                    limit.take(pid)
                limit.exhaust()
                killed_ns = crash.now_ns()
                watch.wait_for(lambda status: crash.recording_until(status, killed_ns))
                watch.wait_for(crash.synced)
                assert len(workers_of(process.pid, site.folder / "a", "")) == 2
                sent = farm.stop_sending()
                crash.drained(watch)
                assert process.end() == 0, process.errors
        except NoLimitError as error:
            pytest.skip(f"{error}; test_a_worker_that_is_killed_costs_no_frame stands for it")
        finally:
            process.end(signal.SIGKILL)
    assert [event["target"] for event in process.events if event["event"] == "TargetLost"] == ["a"]
    assert site.lost(sent) == {}
    crash.check(site, [watch.durable_ns])
    assert crash.holes(Footage.of(site.folder / "a")) == []
