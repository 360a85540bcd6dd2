"""Resync beside live writing: it lets live batches pass, never stands still for them, and keeps to its pace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.copies import MINE, make_volume, plan, store, targets_with_claim
from tests.support.engine import Rig, started
from tests.support.steps import content

from nvrstore.clock import ManualClock
from nvrstore.config import JournalConfig
from nvrstore.failover.machine import State
from nvrstore.limits import KEEPER_PIECE_BYTES, YIELD_S
from nvrstore.replicate.resync import Pace
from nvrstore.targets.contract import Call, Request, Verb
from nvrstore.upkeep.host import Runner
from nvrstore.upkeep.mending import Mending
from nvrstore.upkeep.yielding import LOOK_AGAIN_S, Yielding

PIECE = Call("b", Request(Verb.WRITE, "x", data=bytes(KEEPER_PIECE_BYTES)))


class Wait:
    """Waiting on a clock that a test moves."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock, self.stopped = clock, False

    def __call__(self, seconds: float) -> bool:
        if not self.stopped:
            self.clock.advance(seconds)
        return self.stopped


class Bench:
    """A chore of one piece after the other; `live` says whether a batch is on its way at that second."""

    def __init__(self, live: Callable[[float], bool], pace: Pace | None = None) -> None:
        self.clock = ManualClock(monotonic_s=0.0)
        self.wait = Wait(self.clock)
        self.before = Yielding(self.clock, self.wait, lambda: live(self.clock.monotonic_s()), pace)

    def piece(self, *, takes_s: float = 0.0) -> float:
        """How long it waits before a piece, in seconds."""
        began_s = self.clock.monotonic_s()
        self.before(PIECE)
        waited_s = self.clock.monotonic_s() - began_s
        self.clock.advance(takes_s)
        return waited_s


def test_without_live_batches_and_without_a_pace_nothing_is_waited_for() -> None:
    """All of an idle disk is resync's."""
    bench = Bench(lambda now_s: False)
    assert [bench.piece() for _ in range(100)] == [0.0] * 100


def test_a_piece_waits_until_the_live_batch_has_arrived_and_no_longer() -> None:
    """The batch has the disk for itself; what it leaves is used."""
    bench = Bench(lambda now_s: now_s < 0.007)
    assert 0.007 <= bench.piece() <= 0.007 + LOOK_AGAIN_S
    assert bench.piece() == 0.0


def test_where_batches_are_on_their_way_all_the_time_a_piece_goes_every_quarter_of_a_second() -> None:
    """Slow, and never starved: a hundred pieces, each after the bound, none before it."""
    bench = Bench(lambda now_s: True)
    for _ in range(100):
        assert YIELD_S <= bench.piece() <= YIELD_S + LOOK_AGAIN_S


@pytest.mark.parametrize("busy_s", [0.01, 0.1, 0.19])
def test_copying_gets_the_part_of_every_tick_that_live_batches_leave(busy_s: float) -> None:
    """Batches of `busy_s` in every tick of 0.2 s, pieces of 2 ms: no piece begins within a batch, nearly all of the rest is used."""
    bench = Bench(lambda now_s: now_s % 0.2 < busy_s)
    pieces = 0
    while bench.clock.monotonic_s() < 20.0:
        bench.piece()
        assert bench.clock.monotonic_s() % 0.2 >= busy_s
        bench.clock.advance(0.002)
        pieces += 1
    left_s = 100 * (0.2 - busy_s)
    assert left_s - 100 * 2 * LOOK_AGAIN_S <= pieces * 0.002 <= left_s + 100 * 0.002


def test_a_pace_holds_beside_live_batches_too() -> None:
    """On average it is neither faster than the pace, nor slower where the batches leave enough."""
    bench = Bench(lambda now_s: now_s % 0.2 < 0.005, Pace(10e6))
    for _ in range(1000):
        bench.piece(takes_s=0.001)
    copied = 1000 * KEEPER_PIECE_BYTES
    assert copied / 10e6 * 0.99 < bench.clock.monotonic_s() < copied / 10e6 * 1.02


@pytest.mark.parametrize("pace", [None, Pace(1.0)])
def test_a_recorder_that_stops_waits_for_nothing(pace: Pace | None) -> None:
    """Neither for a live batch nor for the pace: a piece at a byte a second would take twelve days."""
    bench = Bench(lambda now_s: True, pace)
    bench.piece()
    bench.wait.stopped = True
    assert bench.piece() == 0.0


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = started(Rig(("a", "b", "c")))
    yield made
    made.close()


def test_a_port_is_busy_from_the_batch_to_its_answer(rig: Rig) -> None:
    """That is what a copy asks for."""
    while rig.heard.acked != rig.put:  # fragments of a second: the next one comes soon, and is on its way within a tick or two
        rig.run(0.05)
    rig.run(0.7)
    rig.targets["b"].hold()
    rig.run(0.6)
    assert {name: port.busy for name, port in rig.ports.items()} == {"a": False, "b": True, "c": False}
    rig.targets["b"].release()
    rig.run(0.1, record=False)
    assert not rig.ports["b"].busy


class Site:
    """Mending over targets in memory, as far as copying goes; `busy` says which targets have a live batch on their way."""

    def __init__(self, resync_bps: int | None, busy: Callable[[str, float], bool]) -> None:
        self.clock = ManualClock(monotonic_s=0.0)
        self.targets = targets_with_claim("abc")
        self.began_s: list[tuple[float, Verb]] = []  # of each call
        for target in self.targets.values():
            target.fault = self._note
        clock = self.clock
        ports = {name: SimpleNamespace(busy=False) for name in self.targets}
        journal = JournalConfig(name="main", targets=("a", "b", "c"), resync_bps=resync_bps)
        host: Any = SimpleNamespace(
            clock=clock,
            config=SimpleNamespace(journal=lambda name: journal),
            catalog=SimpleNamespace(copy_changed=lambda *_: None),
            publish=lambda event: None,
            copied=lambda journal, volume_id: None,
        )
        self.engine: Any = SimpleNamespace(
            spec=SimpleNamespace(name="main", claim=MINE.key), ports=ports, states=lambda: dict.fromkeys("abc", State.LIVE)
        )

        def wait(seconds: float) -> bool:
            clock.advance(seconds)
            for name, port in ports.items():
                port.busy = busy(name, clock.monotonic_s())
            return False

        wait(0.0)
        self.runner = Runner(self.targets, lambda target: None)
        self.runner.stopping = SimpleNamespace(is_set=lambda: False, wait=wait)  # type: ignore[assignment]
        self.mending = Mending(host, "refuge", SimpleNamespace(floors={}), wait)  # type: ignore[arg-type]

    def _note(self, request: Request) -> int:
        self.began_s.append((self.clock.monotonic_s(), request.verb))
        return 0

    def copy(self) -> None:
        """A closed volume from a to b."""
        volume = make_volume(self.targets, "ab", batches=3, closed=True, sizes=200_000)
        path = store(self.targets, volume, a=volume.data)
        jobs = plan(self.targets, "ab").copies
        self.began_s.clear()
        self.runner.work(self.mending._copy(self.engine, jobs))
        assert content(self.targets["b"], path) == volume.data


@pytest.mark.parametrize(("busy", "first_s"), [("a", 0.1), ("b", 0.1), ("c", 0.0), ("", 0.0)])
def test_a_copy_lets_batches_pass_on_the_targets_that_it_reads_and_writes(busy: str, first_s: float) -> None:
    """From a to b, without `resync_bps`: batches to a and to b come first, one to c has a disk of its own."""
    site = Site(None, lambda name, now_s: name == busy and now_s < 0.1)
    site.copy()
    assert first_s <= site.began_s[0][0] <= first_s + LOOK_AGAIN_S
    assert site.clock.monotonic_s() <= first_s + LOOK_AGAIN_S, "behind it nothing waits"


def test_a_copy_beside_a_target_that_is_always_busy_comes_to_its_end() -> None:
    """A piece at a time; what was begun early had its turn then."""
    site = Site(None, lambda name, now_s: True)
    site.copy()
    assert site.clock.monotonic_s() <= (YIELD_S + LOOK_AGAIN_S) * len(site.began_s)
    assert len({at_s for at_s, verb in site.began_s if verb is Verb.WRITE}) >= 3, "they do not go all at once"


def test_a_copy_keeps_to_the_configured_pace() -> None:
    """Bits in the configuration, bytes on the disk: 3 MB at 8 Mbit/s take three seconds, less what may go at once."""
    site = Site(8_000_000, lambda name, now_s: False)
    site.copy()
    written = sum(len(file.data) for path, file in site.targets["b"].files.files.items() if path.endswith(".mp4"))
    assert (written - 2e6) / 1e6 - 0.1 <= site.clock.monotonic_s() <= written / 1e6
