"""What is durable, as waiters are told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests.support.engine import Heard, Rig, failing, started

from nvrstore.catalog.store import Catalog
from nvrstore.failover.machine import State
from nvrstore.failover.terms import ClaimKey
from nvrstore.journal.model import Batch, VolumeHeader
from nvrstore.model import Commit, Epoch, Mark, MemberRef
from nvrstore.recorder.bus import Bus
from nvrstore.recorder.durable import Durability
from nvrstore.recorder.observer import RecorderObserver
from nvrstore.targets.contract import Verb


def test_more_targets_in_step_than_copies_are_wanted_is_no_mistake() -> None:
    """Right after a spare helped out, it and both preferred targets lack nothing: three, where two are wanted."""
    durability = Durability(2)
    waiting = durability.wait_footage("gate", 0, 2)
    durability.synced("main", ["gate"], 3)
    assert waiting.done()


class Idle:
    """Upkeep that does nothing: what the refuge holds stays there alone."""

    def claim(self, journal: str, target: str) -> None: ...
    def claim_again(self, journal: str, seen: ClaimKey | None) -> None: ...
    def mend(self, journal: str) -> None: ...
    def leftovers(self, journal: str, target: str) -> None: ...
    def space(self, journal: str, target: str) -> None: ...


class Told(Heard):
    """Remembers what happened, and tells it on as a recorder does."""

    def __init__(self, observer: RecorderObserver) -> None:
        super().__init__()
        self._observer = observer
        self.in_refuge: list[str] = []  # ids of volumes, in the order in which they were begun

    def batch_stored(self, header: VolumeHeader, path: str, batch: Batch, targets: Sequence[str], commit: Commit | None) -> None:
        super().batch_stored(header, path, batch, targets, commit)
        if commit is None and header.volume_id not in self.in_refuge:
            self.in_refuge.append(header.volume_id)
        self._observer.batch_stored(header, path, batch, targets, commit)

    def target_changed(self, journal: str, target: str, before: State, after: State, reason: str, since_failure_s: float | None) -> None:
        super().target_changed(journal, target, before, after, reason, since_failure_s)
        self._observer.target_changed(journal, target, before, after, reason, since_failure_s)

    def set_changed(self, journal: str, epoch: Epoch, members: Sequence[MemberRef]) -> None:
        super().set_changed(journal, epoch, members)
        self._observer.set_changed(journal, epoch, members)


@pytest.fixture
def durability() -> Durability:
    return Durability(2)


@pytest.fixture
def rig(tmp_path: Path, durability: Durability) -> Iterator[Rig]:
    """A journal that tells `durability` as a recorder's does."""
    made = Rig(refuge=True)
    catalog = Catalog(tmp_path / "catalog.sqlite")
    made.heard = made.engine.observer = Told(RecorderObserver(catalog, durability, Bus(), Idle(), made.clock, lambda _: 2))
    yield made
    made.close()
    catalog.close()


def away(rig: Rig, seconds: float) -> int:
    """Every target is lost for so long, and back; returns a moment of that time, UTC ns."""
    for name in ("a", "b"):
        rig.targets[name].fault = failing(Verb.APPEND, Verb.LOOK, Verb.OPEN)
    rig.run(seconds / 2)
    middle_ns = rig.clock.utc_ns()
    rig.run(seconds / 2)
    for name in ("a", "b"):
        rig.targets[name].fault = None
    rig.run(45)
    assert set(rig.states().values()) == {"live"}, "they take part again, and nobody has copied anything"
    return middle_ns


def test_what_only_the_refuge_holds_is_durable_on_no_copy_until_it_was_copied(rig: Rig, durability: Durability) -> None:
    """New commits on both targets say nothing about the footage before them."""
    started(rig, "gate")
    before_ns = durability.durable_ns("gate", 1)
    inside_ns = away(rig, 20)
    waiting = {copies: durability.wait_footage("gate", inside_ns, copies) for copies in (1, 2)}
    assert not waiting[1].done()
    assert not waiting[2].done()
    assert before_ns <= durability.durable_ns("gate", 1) < inside_ns
    told: Told = rig.heard  # type: ignore[assignment]
    *first, last = told.in_refuge
    for volume_id in first:
        durability.copied("main", ["gate"], volume_id)
        assert not waiting[1].done()
    durability.copied("main", ["gate"], last)
    assert waiting[1].done()
    assert not waiting[2].done(), "resync brought it to one of them"
    newest_ns = durability.durable_ns("gate", 1)
    durability.synced("main", ["gate"], 2)
    assert waiting[2].done()
    assert durability.durable_ns("gate", 2) == newest_ns
    rig.run(2)
    assert durability.durable_ns("gate", 2) > newest_ns, "the line goes on with the next commit"


def test_a_mark_made_while_only_the_refuge_took_it_is_durable_when_it_was_copied(rig: Rig, durability: Durability) -> None:
    """Whoever waits for it is told then: its batch is written only once."""
    started(rig, "gate")
    record = Mark("m1", "gate", "person", 0, 1, {}).record()
    waiting = [durability.wait_record(record, copies) for copies in (1, 2)]
    for name in ("a", "b"):
        rig.targets[name].fault = failing(Verb.APPEND, Verb.LOOK, Verb.OPEN)
    rig.run(8)
    rig.intake.record(record)
    away(rig, 4)
    assert [future.done() for future in waiting] == [False, False]
    durability.synced("main", ["gate"], 1)
    assert [future.done() for future in waiting] == [True, False]
    durability.synced("main", ["gate"], 2)
    assert waiting[1].done()
