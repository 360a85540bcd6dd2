"""A thousand failovers in a row with real workers: whatever a recorder takes for one, it gives back.

Appenders are killed, stopped, or answered with EIO, on one target and on the other, on a tmpfs; `./run test` does a handful. Nothing
waits longer than it has to: the target is looked at again at once, and is not held down.
"""

from __future__ import annotations

import errno
import os
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from tests.support.fed import Fed
from tests.support.prove import note, proving
from tests.support.recorder import JOURNAL, init
from tests.support.soak_host import children, pss_bytes
from tests.support.volumes import scan

from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.drills.account import differences, volumes_in
from nvrstore.drills.faults import small_tmpfs
from nvrstore.limits import MIB
from nvrstore.recorder.wiring import make_target
from nvrstore.targets.contract import Verb
from nvrstore.targets.faulty import FaultyTarget

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(1500 if proving() else 120)]

FAILOVERS: Final = 1000 if proving() else 10
WARM: Final = 200 if proving() else 4  # caches, arenas and the window of retention are full by then
GROWTH_BYTES: Final = 8 * MIB  # over 800 failovers: less than 10 KiB of each; also what an allocator may do by chance
KEEP_S: Final = 30.0  # so much footage: more than what is put in between two checks would not make the copies more equal
WHOLE: Final = 5  # one in so many is waited for until both lack nothing; else, until both take what comes
QUICK: Final[dict[str, Any]] = {"hold_down_s": 0, "tick_s": 0.05, "keep": {"days": KEEP_S / 86_400}}
STOPS: Final = 20  # one in so many is a stop, which is noticed by its age alone


@pytest.fixture
def ram(tmp_path: Path) -> Iterator[Path]:
    with small_tmpfs(tmp_path / "ram", size_bytes=1024 * MIB) as path:
        yield path


@dataclass(frozen=True)
class Look:
    """What may grow."""

    threads: int
    processes: int
    descriptors: int
    pss_bytes: int
    buffer_bytes: int

    @classmethod
    def at(cls, fed: Fed) -> Look:
        threads, descriptors = len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
        return cls(threads, len(children()), descriptors, pss_bytes(), fed.core.status()["buffer"]["bytes"])


class Breaker:
    """Takes targets out."""

    def __init__(self) -> None:
        self.targets: dict[str, FaultyTarget] = {}
        self.done: Counter[str] = Counter()

    def make(self, config: Any, python: str | None, lock_fd: int | None) -> FaultyTarget:
        made = self.targets[config.name] = FaultyTarget(make_target(config, python, lock_fd))
        return made

    def strike(self, number: int, fed: Fed, name: str) -> None:
        """By turns, so that each target meets each kind."""
        kind = "stop" if number % STOPS in (STOPS // 2, STOPS - 1) and number % (2 * STOPS) < STOPS else ("kill", "error")[number // 2 % 2]
        if kind == "error":
            self.targets[name].fail(errno.EIO, verbs={Verb.APPEND}, times=1)
        else:
            appender: Any = next(port for port in fed.core.hub.ports if port.name == name).appender
            os.kill(appender.inner._worker.pid, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
        self.done[kind] += 1


def fail_over(fed: Fed, breaker: Breaker, number: int) -> None:
    """One target is lost, and returns by other workers; the other one goes on."""
    name = "ab"[number % 2]
    port = next(port for port in fed.core.hub.ports if port.name == name)
    generation = port.generation
    breaker.strike(number, fed, name)
    fed.until(lambda: port.appender is None or port.generation > generation)
    fed.core.hub.suspect(name)
    fed.until(lambda: port.generation > generation and (fed.whole() if number % WHOLE == WHOLE - 1 else fed.taking()))


def test_failovers_in_a_row_leave_nothing_behind(ram: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Threads, processes, descriptors and memory are as after the first; all is acknowledged, and the copies are equal."""
    caplog.set_level("CRITICAL", "nvrstore")
    for name in "ab":
        init(ram / name)
    breaker, looks = Breaker(), list[Look]()
    begin_s = SYSTEM_CLOCK.monotonic_s()
    with Fed(ram, {name: ram / name for name in "ab"}, make=breaker.make, **QUICK) as fed:
        fed.until(fed.whole)
        for number in range(FAILOVERS):
            fail_over(fed, breaker, number)
            if number + 1 in (WARM, FAILOVERS):
                fed.goes_on()
                fed.until(lambda: not any(target["workers_stuck"] for target in fed.targets().values()))
                looks.append(Look.at(fed))
        generations = sum(port.generation for port in fed.core.hub.ports if port.name in "ab")
        pruned = fed.core.status()["upkeep"]["pruned"]
        alarms = fed.core.status()["alarms"]
    before, after = looks
    growth_bytes = after.pss_bytes - before.pss_bytes
    took_s = SYSTEM_CLOCK.monotonic_s() - begin_s
    figures = {
        "failovers": FAILOVERS,
        "kinds": dict(breaker.done),
        "seconds": round(took_s),
        "fragments": fed.put,
        "commits": fed.committed,
    }
    note(
        "thousand-failovers-tmpfs",
        **figures,
        unacknowledged=len(fed.pending),
        pruned=pruned,
        after_warm_up=vars(before),
        at_the_end=vars(after),
        growth_bytes=growth_bytes,
    )
    assert generations >= FAILOVERS + 2, "each of them was one"
    assert alarms == []
    assert fed.pending == set(), "all was acknowledged"
    assert differences(ram / "a", ram / "b", JOURNAL) == []
    assert set(fed.last) <= stored(ram / "a"), "and what was put in last is there"
    assert (after.threads, after.processes, after.descriptors) == (before.threads, before.processes, before.descriptors)
    assert growth_bytes < GROWTH_BYTES, f"{growth_bytes} bytes in {FAILOVERS - WARM} failovers"
    assert after.buffer_bytes <= before.buffer_bytes + MIB


def stored(target: Path) -> set[tuple[str, int]]:
    """Stream and index of every fragment on a target."""
    found = set()
    for name in volumes_in(target, JOURNAL):
        result = scan((target / name).read_bytes(), deep=True)
        assert result.header is not None
        assert result.damage == ()
        found |= {(result.header.tracks[e.track_id - 1].track.stream, e.index) for batch in result.batches for e in batch.entries}
    return found
