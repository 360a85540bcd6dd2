"""A recorder that stood still beside the one that took over: what it does when it wakes up harms nothing, and is not lost."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest
from tests.support import crash
from tests.support.crash import Footage, Watch
from tests.support.freezer import Freezer
from tests.support.recorder import Process, Site, small_farm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]


class Successor(Site):
    """Another recorder for the same journal on the same targets: another machine, with a state disk of its own."""

    def __post_init__(self) -> None:
        self.recorder = {"name": "nvr-next", "state": str(self.state)}
        self.write()

    @property
    def file(self) -> Path:
        return self.folder / "next.toml"

    @property
    def state(self) -> Path:
        return self.folder / "next-state"


def test_a_frozen_recorder_that_wakes_beside_its_successor_harms_nothing(tmp_path: Path) -> None:
    """Frozen with its workers, succeeded, thawed: it prunes nothing more, overwrites nothing, and what it still records is merged."""
    pause = threading.Event()
    with small_farm(2) as farm, Freezer() as freezer:
        old = Site(tmp_path, farm, journal={"takeover_s": 1, "volume_age_s": 1, "keep": {"days": 3 / 86_400}})
        new = Successor(tmp_path, farm, journal={"takeover_s": 1, "volume_age_s": 1})
        first = Process(old)
        second: Process | None = None
        try:
            with Watch(old, first) as before:
                before.wait_for(lambda status: crash.synced(status) and crash.recording(status))
                before.wait_for(lambda status: status["upkeep"]["pruned"] >= 2)  # it does prune, and soon
                freezer.take(first.pid, *first.workers())
                with freezer.stopped():
                    second = Process(new, "--take-over")
                    with Watch(new, second) as after:
                        after.wait_for(crash.recording)
                        promised = dict(before.durable_ns)
                        volumes = {path for target in old.targets for path in (tmp_path / target / "main").glob("*/*.mp4")}
                        pause.wait(4.0)  # by now all of that is older than the first one is to keep it
                woken_ns = crash.now_ns()
                with Watch(new, second) as after:
                    pause.wait(10.0)
                    assert all(path.exists() for path in volumes), "a superseded recorder prunes nothing"
                    thawed_ns = crash.now_ns()
                    after.wait_for(lambda status: crash.recording_until(status, thawed_ns))
                    first.process.send_signal(signal.SIGTERM)
                    first.process.wait(30)
                    second.process.send_signal(signal.SIGTERM)
                    second.process.wait(30)
                    latest = dict(after.durable_ns)
        finally:
            first.end(signal.SIGKILL)
            if second is not None:
                second.end(signal.SIGKILL)
        # Whose volumes were left open recovers them at once; another recorder would wait until it is sure that nobody writes them.
        del old.journal["keep"]
        old.write()
        last = Process(old)
        try:
            with Watch(old, last) as watch:
                watch.wait_for(lambda status: crash.synced(status) and crash.recording(status))
                farm.stop_sending()
                crash.drained(watch)
                assert last.end() == 0, last.errors
        finally:
            last.end(signal.SIGKILL)
        for target in old.targets:
            footage = Footage.of(tmp_path / target)
            assert footage.problems == []
            assert crash.holds(footage, promised) == []
            assert crash.holds(footage, latest) == []
            for fragments in footage.fragments.values():
                frozen = min(fragments, key=lambda fragment: fragment.utc_ns).session
                assert {fragment.session for fragment in fragments} - {frozen}, "the successor's footage is there"
                assert max(f.end_ns for f in fragments if f.session == frozen) > woken_ns, "and what the woken one still recorded"
        assert new.differences() == []
