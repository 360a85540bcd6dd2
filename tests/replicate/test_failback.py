"""Who is primary when a lost target is back: by itself, or when the operator says so."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from tests.support.engine import Rig, started, volumes

from nvrstore.failover.members import Told
from nvrstore.model import Role

pytestmark = pytest.mark.usefixtures("laid_out")


def made(names: Sequence[str], *, copies: int = 2, auto: bool = False) -> Iterator[Rig]:
    rig = Rig(names, copies=copies, change=lambda spec: replace(spec, failback_auto=auto, hold_down_s=1.0))
    yield started(rig)
    rig.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    yield from made(("a", "b"))


@pytest.fixture
def spare() -> Iterator[Rig]:
    yield from made(("a", "b"), copies=1)


@pytest.fixture
def three() -> Iterator[Rig]:
    yield from made(("a", "b", "c"), copies=3)


@pytest.fixture
def auto() -> Iterator[Rig]:
    yield from made(("a", "b"), auto=True)


def primary(rig: Rig) -> str:
    """As the present volumes' headers say."""
    members = rig.engine.members()
    assert [member.role for member in members].count(Role.PRIMARY) == 1
    return next(member.target for member in members if member.role is Role.PRIMARY)


def lose_and_mend(rig: Rig) -> None:
    """Until a is a member again that lacks nothing."""
    rig.targets["a"].fault = lambda request: errno.EIO
    rig.run(3.0)
    assert primary(rig) == "b"
    rig.sync("b")  # a spare that was recruited lacks what was before it
    rig.targets["a"].fault = None
    rig.run(5.0)
    assert rig.states()["a"] == "live"
    assert rig.engine.take_back("a") is Told.TOO_EARLY
    rig.run(1.0)
    assert primary(rig) == "b"
    rig.sync("a")
    rig.run(5.0)


def test_the_role_waits_for_the_operators_word(rig: Rig) -> None:
    """One change of set, durable as every other; no frame is lost, and the copies are the same bytes."""
    lose_and_mend(rig)
    assert rig.states() == {"a": "synced", "b": "synced"}
    assert primary(rig) == "b", "nobody said so"
    sets = len(rig.heard.sets)
    before = set(volumes(rig, "a"))
    assert rig.engine.take_back("a") is Told.PRIMARY
    rig.run(3.0)
    assert primary(rig) == "a"
    assert len(rig.heard.sets) == sets + 1
    assert rig.engine.set_durable == rig.engine.epoch.set
    rig.run(30.0)
    assert primary(rig) == "a"
    assert len(rig.heard.sets) == sets + 1
    assert rig.engine.take_back("a") is Told.NOTHING
    assert rig.engine.take_back("b") is Told.NOTHING, "it is where it belongs"
    rig.run(3.0)
    assert primary(rig) == "a"
    rig.finish()
    assert rig.heard.acked == rig.put
    assert rig.states() == {"a": "synced", "b": "synced"}
    after = {path: data for path, data in volumes(rig, "a").items() if path not in before}
    assert after
    assert {path: volumes(rig, "b")[path] for path in after} == after


def test_a_word_that_is_overtaken_by_a_loss_is_forgotten(rig: Rig) -> None:
    """The role does not jump when the target comes back at some later time."""
    lose_and_mend(rig)
    assert rig.engine.take_back("a") is Told.PRIMARY
    rig.targets["a"].fault = lambda request: errno.EIO
    rig.ports["a"].fail("lost in this moment")
    rig.run(3.0)
    assert primary(rig) == "b"
    rig.targets["a"].fault = None
    rig.run(10.0)
    rig.sync("a")
    rig.run(5.0)
    assert rig.states()["a"] == "synced"
    assert primary(rig) == "b"


def test_a_word_for_one_that_is_lost_in_this_moment_gives_the_role_to_nobody_else(three: Rig) -> None:
    """Another one that is in step too was not meant."""
    for name in ("a", "b"):
        three.targets[name].fault = lambda request: errno.EIO
    three.run(3.0)
    for name in ("a", "b"):
        three.targets[name].fault = None
    three.run(8.0)
    three.sync("a", "b")
    three.run(3.0)
    assert set(three.states().values()) == {"synced"}
    assert primary(three) == "c"
    assert three.engine.take_back("b") is Told.PRIMARY
    three.targets["b"].fault = lambda request: errno.EIO
    three.ports["b"].fail("lost in this moment")
    three.run(5.0)
    assert three.states()["b"] == "away"
    assert primary(three) == "c"


def test_a_spare_that_is_primary_stays_until_the_role_was_handed_back(spare: Rig) -> None:
    """Releasing it would hand the role back unasked."""
    lose_and_mend(spare)
    assert spare.states() == {"a": "synced", "b": "synced"}
    assert primary(spare) == "b"
    assert spare.engine.take_back("a") is Told.PRIMARY
    spare.run(3.0)
    assert primary(spare) == "a"
    assert spare.states() == {"a": "synced", "b": "ready"}
    spare.finish()
    assert spare.heard.acked == spare.put


def test_after_maintenance_the_first_word_brings_it_back_and_the_second_one_hands_it_the_role(rig: Rig) -> None:
    """What is drained has a role only once it is in step."""
    rig.engine.drain("a")
    rig.run(3.0)
    assert primary(rig) == "b"
    assert rig.engine.take_back("a") is Told.RETURNS
    rig.run(5.0)
    rig.sync("a")
    rig.run(3.0)
    assert primary(rig) == "b"
    assert rig.engine.take_back("a") is Told.PRIMARY
    rig.run(3.0)
    assert primary(rig) == "a"


def test_by_itself_it_goes_back_as_soon_as_it_lacks_nothing(auto: Rig) -> None:
    """And there is nothing left to say."""
    lose_and_mend(auto)
    assert primary(auto) == "a"
    assert auto.engine.take_back("a") is Told.NOTHING
