"""A thousand failovers in a row cost a recorder nothing that it does not get back: memory, descriptors, threads, entries."""

from __future__ import annotations

import errno
import gc
import os
import threading
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace

import pytest
from tests.support.engine import Heard, Rig
from tests.support.prove import note

from nvrstore.failover.machine import State
from nvrstore.journal.model import Batch, VolumeHeader
from nvrstore.model import Commit, Epoch, MemberRef
from nvrstore.replicate.hub import Hub
from nvrstore.targets.contract import Request, Verb

FAILOVERS = 1000
WARM = 200  # rings and caches are full by then
GROWTH_BYTES = 64 * 1024  # over 800 failovers: less than what one entry of each would leave


class Forgetful(Heard):
    """Counts what it hears, and keeps nothing."""

    commits = 0

    def batch_stored(self, header: VolumeHeader, path: str, batch: Batch, targets: Sequence[str], commit: Commit | None) -> None:
        self.commits += commit is not None

    def volume_closed(self, header: VolumeHeader, path: str, length: int, batches: int, targets: Sequence[str]) -> None: ...

    def volume_left(self, header: VolumeHeader, path: str) -> None: ...

    def target_changed(
        self, journal: str, target: str, before: State, after: State, reason: str, since_failure_s: float | None
    ) -> None: ...

    def set_changed(self, journal: str, epoch: Epoch, members: Sequence[MemberRef]) -> None: ...

    def first_commit(self, journal: str, since_lost_s: float) -> None:
        if not self.failovers:
            self.failovers.append(0.0)
        self.failovers[0] += 1

    def resync_wanted(self, journal: str, target: str) -> None: ...


def once(verb: Verb, rig: Rig, name: str) -> None:
    target = rig.targets[name]

    def fault(request: Request) -> int:
        if request.verb is not verb:
            return 0
        target.fault = None
        return errno.EIO

    target.fault = fault


def settle(rig: Rig, hub: Hub, name: str, generation: int) -> None:
    """Until `name`, whose workers were of that generation, was replaced, and both targets record again."""
    for _ in range(200):
        rig.clock.advance(0.1)
        for camera in rig._cameras.values():
            camera.film(rig)
            camera.put.clear()
        while rig._posted:
            rig._posted.popleft()()
        hub.round()
        hub._register()
        states = rig.engine.states()
        for live in [n for n, state in states.items() if state is State.LIVE]:
            rig.engine.synced(live)
        if rig.ports[name].generation > generation and all(state is State.SYNCED for state in rig.engine.states().values()):
            return
    raise AssertionError(f"{name} does not come back: {rig.states()}")


def forget_files(rig: Rig) -> None:
    """What retention, and the clearing of leftovers, would do."""
    busy = rig.engine.paths_in_use()
    for name, target in rig.targets.items():
        mine = f"-{rig.ports[name].generation}-"
        for path in list(target.files.files):
            if (path.endswith(".mp4") and path not in busy) or ("/.next/" in path and mine not in path):
                del target.files.files[path]


def entries(rig: Rig, hub: Hub) -> dict[str, int]:
    """Sizes of everything that is kept by the engine, its lanes, ports and thread."""
    found = {}
    things = {"engine": rig.engine, "watch": rig.engine.watch, "hub": hub, "standing": rig.engine.standing_state}
    things |= {f"port {name}": port for name, port in rig.ports.items()}
    things |= {f"target {name}": target for name, target in rig.targets.items()}
    things |= {f"lane {lane.number}": lane for lane in rig.engine.lanes}
    for name, thing in things.items():
        for field, value in vars(thing).items():
            if isinstance(value, (dict, list, set)):
                found[f"{name}.{field}"] = len(value)
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_thousand_failovers_leave_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    """Errors and hangs in turn, on one target and on the other; all is as after the first two hundred."""
    caplog.set_level("CRITICAL", "nvrstore")
    rig = Rig("ab", pool_bytes=8 << 20, change=lambda spec: replace(spec, hold_down_s=0.1, hold_down_s_max=0.2))
    rig.heard = rig.engine.observer = Forgetful()
    hub = Hub(rig.clock, on_failure=lambda error: None)
    hub.add(list(rig.ports.values()), [rig.engine])
    tracemalloc.start()
    try:
        rig.camera("gate", size=300)
        rig.run(2.0)
        rig.sync("a", "b")
        seen = []
        for n in range(FAILOVERS):
            name = "ab"[n % 2]
            generation = rig.ports[name].generation
            if n % 5 == 4:
                rig.targets[name].hold()
                for _ in range(25):
                    rig.clock.advance(0.1)
                    while rig._posted:
                        rig._posted.popleft()()
                    hub.round()
                rig.targets[name].release()
            else:
                once(Verb.APPEND, rig, name)
            settle(rig, hub, name, generation)
            forget_files(rig)
            if n + 1 in (WARM, FAILOVERS):
                gc.collect()
                size, _ = tracemalloc.get_traced_memory()
                seen.append((size, len(os.listdir("/proc/self/fd")), threading.active_count(), rig.pool.taken_bytes, entries(rig, hub)))
        before, after = seen
        note("thousand-failovers", failovers=FAILOVERS, growth_bytes=after[0] - before[0], commits=rig.heard.commits)
        assert sum(port.generation for port in rig.ports.values()) >= FAILOVERS, "each of them was one"
        grown = {name: (before[4].get(name, 0), size) for name, size in after[4].items() if size > before[4].get(name, 0) + 8}
        assert not grown, "nothing is entered that is never taken out"
        assert after[1:3] == before[1:3], "descriptors and threads"
        assert after[3] <= before[3] + (1 << 20), "the pool"
        assert after[0] - before[0] < GROWTH_BYTES, f"{after[0] - before[0]} bytes in {FAILOVERS - WARM} failovers"
    finally:
        tracemalloc.stop()
        hub.stop(0.0)
        rig.close()
