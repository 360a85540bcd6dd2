"""How a journal ends: everything that was handed over is committed, every volume is closed, nothing is left behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.engine import Rig, started, volumes

from nvrstore.model import Cause, Gap
from nvrstore.targets.contract import Request, Verb

GAP = Gap("g1", "gate", Cause.CAMERA, 5, None)

pytestmark = pytest.mark.usefixtures("laid_out")


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


def prepared(rig: Rig) -> list[object]:
    """Files that wait to become volumes."""
    found: list[object] = []
    for name in ("a", "b"):
        answer = rig.targets[name].keeper.call(Request(Verb.LIST, "main/.next"), 1.0)
        found += answer.json() if answer.ok else []
    return found


def test_what_is_handed_over_last_is_committed(rig: Rig) -> None:
    """Ingest ends first, and hands on what it held: the engine may not have looked at it yet."""
    started(rig)
    rig.intake.record(GAP.record())
    rig.engine.stop()
    assert not rig.engine.idle
    rig.finish()
    assert rig.engine.idle
    assert "g1" in [record.id for record in rig.heard.records]
    assert rig.heard.acked == rig.put


def test_a_recorder_that_is_stopped_before_any_camera_came_writes_down_what_it_knows_at_once(rig: Rig) -> None:
    """It does not wait for a camera as it would otherwise, and leaves no prepared file behind."""
    rig.run(1.5)
    rig.intake.record(GAP.record())
    rig.engine.stop()
    assert not rig.engine.idle
    rig.finish(2.0)
    assert rig.engine.idle
    assert "g1" in [record.id for record in rig.heard.records]
    assert [len(volumes(rig, name)) for name in ("a", "b")] == [1, 1]
    assert prepared(rig) == []


def test_a_file_that_is_being_prepared_when_the_recorder_stops_is_removed_too(rig: Rig) -> None:
    """The keeper does one after the other: the removal comes behind."""
    started(rig)
    rig.finish()
    for lane in rig.engine.lanes:
        assert lane.volume is None
    assert prepared(rig) == []


def test_what_upkeep_hands_over_behind_the_end_opens_nothing(rig: Rig) -> None:
    """The next recorder finds the same and writes it down."""
    rig.run(1.5)
    rig.engine.stop()
    assert rig.engine.idle
    rig.intake.record(GAP.record())
    rig.run(5)
    assert rig.engine.idle
    assert prepared(rig) == []
