"""A target that is drained is left alone: nothing is asked of it, and nothing of ours stays open there."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterator

import pytest
from tests.support.engine import RECORDER, SESSION, Rig, started

from nvrstore.clock import ManualClock
from nvrstore.failover.machine import Event
from nvrstore.failover.terms import ClaimKey
from nvrstore.limits import LOOK_S, MIB
from nvrstore.replicate.port import Port
from nvrstore.targets.contract import UNAVAILABLE, Request, Verb
from nvrstore.targets.memory import MemoryTarget
from nvrstore.targets.memory_appender import MemoryAppender
from nvrstore.targets.pool import Pool

pytestmark = pytest.mark.usefixtures("laid_out")


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = started(Rig())
    yield made
    made.close()


def overheard(target: MemoryTarget) -> list[Verb]:
    """What is asked of a target from now on."""
    asked: list[Verb] = []

    def note(request: Request) -> int:
        asked.append(request.verb)
        return 0

    target.fault = note
    return asked


def test_nothing_is_asked_of_a_drained_target(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """No look, however long it takes: a look writes a block. The other one gets its looks, and everything."""
    rig.engine.drain("a")
    rig.run(0.2)
    port = rig.ports["a"]
    assert rig.states() == {"a": "drained", "b": "synced"}
    assert port.at_rest
    assert not port.answering
    asked, others = overheard(rig.targets["a"]), overheard(rig.targets["b"])
    keeper = rig.targets["a"].keeper
    assert keeper.submit(Request(Verb.SPACE)).result().errno == UNAVAILABLE, "nor by anybody else"
    tried: list[Request] = []
    monkeypatch.setattr(keeper, "submit", tried.append)
    port.suspect()  # as upkeep does when something failed there
    rig.run(30.0)
    assert tried == []
    assert asked == []
    assert others.count(Verb.LOOK) >= 30
    rig.finish()
    assert rig.heard.acked == rig.put


def test_a_target_that_is_away_is_left_alone_as_well(rig: Rig) -> None:
    """It may be drained because it failed: a look at an empty mount point would keep nobody from mounting, and help nobody."""
    rig.targets["a"].fault = lambda request: errno.EIO
    rig.run(1.0)
    assert rig.states()["a"] == "away"
    rig.engine.drain("a")
    rig.run(0.2)
    assert rig.ports["a"].at_rest
    asked = overheard(rig.targets["a"])
    rig.run(10.0)
    assert asked == []
    rig.engine.take_back("a")
    rig.run(rig.engine.spec.hold_down_s + 3.0)
    assert Verb.LOOK in asked
    assert rig.states()["a"] == "live"


def test_what_was_submitted_finishes_before_its_workers_end(rig: Rig) -> None:
    """In order: no append is cut off, every volume is closed, nobody is killed."""
    target, port = rig.targets["a"], rig.ports["a"]
    appender = port.appender
    assert isinstance(appender, MemoryAppender)
    asked = overheard(target)
    while asked[-1:] != [Verb.APPEND]:  # the next one comes in a second
        rig.run(0.05)
    rig.run(0.7)
    target.hold()
    while not appender.line:
        rig.run(0.05)
    rig.engine.drain("a")
    rig.run(0.1)
    assert not port.at_rest, "something is under way"
    assert not appender.abandoned
    asked.clear()
    target.release()
    rig.run(0.2)
    assert port.at_rest
    assert [verb for verb in asked if verb is not Verb.LOOK] == [Verb.APPEND, Verb.CLOSE]
    assert port.reason == "drained", "and not lost"
    assert target.workers_stuck() == 0


@pytest.mark.parametrize("event", [Event.DRAINED, Event.RELEASED])
def test_who_leaves_in_order_while_a_volume_is_being_closed_there_is_not_lost(rig: Rig, event: Event) -> None:
    """Its file is closed once: a second time would fail, and be taken for a failure of the target."""
    target = rig.targets["a"]
    asked = overheard(target)
    while asked[-1:] != [Verb.APPEND]:  # nothing else is under way now, for most of a second
        rig.run(0.05)
    rig.run(0.2)
    target.hold()
    for lane in rig.engine.lanes:
        lane.cut()
    rig.run(0.1)
    assert Verb.APPEND in [pending.request.verb for pending in rig.ports["a"].appender.line]  # type: ignore[union-attr]
    rig.engine.watch.happen("a", event, "in order")
    target.release()
    rig.run(0.5)
    assert "away" not in [str(after) for _, _, after, _ in rig.heard.changes]
    assert rig.ports["a"].reason == ("drained" if event is Event.DRAINED else "")
    rig.finish()
    assert rig.heard.acked == rig.put


def test_a_target_that_hangs_is_given_up_and_is_not_at_rest_before_it_thaws(rig: Rig) -> None:
    """Draining it ends all the same; that it cannot be unmounted yet is said, not hidden."""
    target, port = rig.targets["a"], rig.ports["a"]
    target.hold()
    rig.run(0.3)
    rig.engine.drain("a")
    rig.run(port.deadlines.lost_s + LOOK_S)
    assert rig.states()["a"] == "drained"
    assert port.appender is None
    assert not port.at_rest
    assert target.workers_stuck() > 0
    target.release()
    rig.run(0.2)
    assert port.at_rest
    rig.finish()
    assert rig.heard.acked == rig.put


def test_who_returns_comes_back_by_other_workers_and_gets_what_comes(rig: Rig) -> None:
    """Also where it is told at once, while the earlier ones are still ending: what those had open is recovered only then."""
    port = rig.ports["a"]
    for wait_s in (0.0, 5.0):
        generation = port.generation
        rig.engine.drain("a")
        rig.run(wait_s)
        rig.engine.take_back("a")
        rig.run(3.0)
        assert rig.states()["a"] == "live"
        assert port.generation > generation
        assert not port.haunted
        rig.sync("a")
        rig.run(0.5)
        assert rig.states() == {"a": "synced", "b": "synced"}
    rig.finish()
    assert rig.heard.acked == rig.put


def test_no_claim_is_asked_for_while_it_is_drained(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A higher term is claimed on the others at once, on this one when it returns."""
    claims: list[str] = []
    monkeypatch.setattr(rig.heard, "claim_wanted", lambda journal, target: claims.append(target))
    rig.engine.drain("a")
    rig.run(0.2)
    rig.engine.reclaimed(ClaimKey(2, RECORDER, SESSION), frozenset())
    rig.run(5.0)
    assert set(claims) == {"b"}
    rig.engine.take_back("a")
    rig.run(2.0)
    assert set(claims) == {"a", "b"}


@pytest.fixture
def shared() -> Iterator[Callable[[], Port]]:
    """A port that two journals use; each call is a second later."""
    clock, pool = ManualClock(), Pool(4 * MIB)
    target = MemoryTarget("t", clock=clock)
    posted: deque[Callable[[], None]] = deque()
    journals = ["main", "other"]
    port = Port(target, pool, clock, target_id=target.id, look_id=RECORDER, journals=journals, post=posted.append)

    def step() -> Port:
        clock.advance(LOOK_S)
        port.pump()
        port.tick()
        while posted:
            posted.popleft()()
        return port

    yield step
    port.close(0.0)
    target.close(0.0)
    pool.close()


def test_a_target_of_two_journals_is_left_alone_when_both_have_let_go(shared: Callable[[], Port]) -> None:
    """One that still records there needs its looks; the first that wants it back gets them again."""
    port = shared()
    assert port.start()
    asked = overheard(port.target)  # type: ignore[arg-type]
    port.drained("main", "maintenance")
    shared()
    assert asked == [Verb.LOOK]
    assert port.up
    assert not port.resting
    port.drained("other", "maintenance")
    asked.clear()
    shared()
    assert shared().at_rest
    assert not port.start(), "nobody starts workers there"
    assert asked == []
    port.returned("other")
    shared()
    assert asked == [Verb.LOOK]
    assert port.answering
