"""Retention at work: what the catalog or the targets show becomes a plan, and files go."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.engine import SESSION
from tests.support.steps import put
from tests.support.upkeep import UpkeepRig

from nvrstore.config import KeepConfig
from nvrstore.events import VolumePruned
from nvrstore.limits import MIB
from nvrstore.model import Cause, Epoch, Gap, MemberRef, RecordKind, Role
from nvrstore.recorder.bus import Bus
from nvrstore.recorder.durable import Durability
from nvrstore.recorder.observer import RecorderObserver
from nvrstore.replicate.floor import floors_of
from nvrstore.targets.contract import Verb
from nvrstore.upkeep.chores import Chores
from nvrstore.upkeep.host import Work
from nvrstore.upkeep.retention import RETENTION_GAP, Removal

SMALL = 24 * MIB


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[UpkeepRig]:
    rig = UpkeepRig(tmp_path, capacity_bytes={"a": SMALL, "b": SMALL}, keep={"days": 30}, volume_bytes=MIB)
    yield rig
    rig.close()


def begin(rig: UpkeepRig) -> None:
    """A camera of a megabyte a second: a target is full after twenty-four."""
    rig.camera("gate", size=50_000)
    rig.run(3.0)
    rig.sync()


def check_nothing_was_lost(rig: UpkeepRig) -> None:
    """Every fragment was committed on both targets, nobody left, and what went is in the ledger to the frame."""
    rig.finish()
    assert rig.put <= rig.heard.acked
    assert rig.heard.changes[-1][2] == "synced", "nobody left"
    assert all(commit is not None and commit.copies == 2 for *_, commit in rig.heard.stored[-20:])
    gaps = [Gap.of(r) for r in rig.heard.records if r.kind == RecordKind.GAP and r.id.startswith(RETENTION_GAP)]
    assert gaps[-1].cause is Cause.STORAGE
    kept = {path for target in "ab" for path in rig.stored(target)}
    first_ns = min(e.utc_ns for path, batch, *_ in rig.heard.stored if path in kept for e in batch.entries)
    assert gaps[-1].end_ns == first_ns, "it ends where what is left begins"
    floors = floors_of(r for r in rig.heard.records if r.kind == RecordKind.RETENTION_FLOOR)
    assert floors


@pytest.mark.parametrize("broken", ["read-only", "unreadable", "well"])
def test_a_state_disk_that_is_dead_stops_neither_retention_nor_recording(rig: UpkeepRig, broken: str) -> None:
    """Both targets are filled five times over: the oldest goes on both alike, and only what went is counted."""
    begin(rig)
    rig.record(10.0)
    assert rig.catalog.flush()
    if broken != "well":
        rig.break_state_disk()
    if broken == "unreadable":
        rig.catalog.path.unlink()
    went_before = len(rig.pruned)
    rig.record(5 * SMALL / 1e6)
    assert rig.catalog.flush() == (broken == "well")
    went = rig.pruned[went_before:]
    assert len(went) > 2 * 4 * 20
    assert len(set(rig.pruned)) == len(rig.pruned) == rig.pruning.removed, "nothing goes twice"
    assert not set(rig.pruned) & {(path, target) for target in "ab" for path in rig.stored(target)}
    check_nothing_was_lost(rig)


def test_rows_that_stayed_are_not_planned_for_again(rig: UpkeepRig) -> None:
    """The state disk writes again, and what was told meanwhile was dropped: what went is known all the same."""
    begin(rig)
    rig.catalog.volume_removed = lambda *_: None  # type: ignore[method-assign]
    rig.record(3 * SMALL / 1e6)
    assert rig.catalog.flush()
    assert set(rig.pruned) <= rig.rows()
    assert len(set(rig.pruned)) == len(rig.pruned) == rig.pruning.removed > 60
    check_nothing_was_lost(rig)


def test_what_somebody_else_removed_is_no_removal(rig: UpkeepRig) -> None:
    """It freed nothing: neither counted nor told, and room is made by what is there."""
    begin(rig)
    rig.record(12.0)
    missing = rig.stored("a")[:3]
    for path in missing:
        del rig.targets["a"].files.files[path]
    rig.record(2 * SMALL / 1e6)
    assert not {(path, "a") for path in missing} & set(rig.pruned)
    assert {(path, "b") for path in missing} <= set(rig.pruned)
    assert rig.pruning.removed == len(rig.pruned)
    check_nothing_was_lost(rig)


class Wishes:
    """Remembers whose leftovers are to be cleared."""

    def __init__(self) -> None:
        self.cleared: list[tuple[str, str]] = []

    def leftovers(self, journal: str, target: str) -> None:
        self.cleared.append((journal, target))


def test_what_was_prepared_in_the_refuge_is_cleared_at_the_start_and_when_it_is_entered(tmp_path: Path) -> None:
    """Each recorder that was killed in it left a volume's room per lane."""
    rig = UpkeepRig(tmp_path, capacity_bytes={"a": SMALL}, copies=1, refuge=True)
    chores = Chores(rig, "refuge")  # type: ignore[arg-type]
    try:
        own = f"main/.next/{SESSION:016x}-1-own"
        put(rig.targets["refuge"], "main/.next/00000000000000aa-1-killed", b"x")
        put(rig.targets["refuge"], own, b"x")
        chores.start()
        pause = threading.Event()
        while len([path for path in rig.targets["refuge"].files.files if "/.next/" in path]) > 1:
            pause.wait(0.02)
        assert own in rig.targets["refuge"].files.files
    finally:
        assert chores.stop()
        rig.close()
    wishes = Wishes()
    observer = RecorderObserver(rig.catalog, Durability(1), Bus(), wishes, rig.clock, lambda _: 1)  # type: ignore[arg-type]
    observer.set_changed("main", Epoch(1, 2), [MemberRef("refuge", "ab" * 16, Role.REFUGE)])
    observer.set_changed("main", Epoch(1, 3), [MemberRef("a", "ab" * 16, Role.PRIMARY)])
    assert wishes.cleared == [("main", "refuge")]


@pytest.fixture
def uneven(tmp_path: Path) -> Iterator[UpkeepRig]:
    """A small target, and one that keeps everything."""
    rig = UpkeepRig(tmp_path, capacity_bytes={"a": SMALL, "b": 8 * SMALL}, keep={"days": 30}, volume_bytes=MIB)
    yield rig
    rig.close()


def flip(rig: UpkeepRig, target: str, path: str) -> bytes:
    """Silent damage: a bit of a payload is another one. What the file held before."""
    file = rig.targets[target].files.files[path]
    before = file.read(0, file.seen_size, fresh=True)
    at = file.seen_size // 2
    file.write_through(at, bytes([before[at] ^ 1]))
    return before


def content_of(rig: UpkeepRig, target: str, path: str) -> bytes:
    file = rig.targets[target].files.files[path]
    return file.read(0, file.seen_size, fresh=True)


@pytest.mark.parametrize("state_disk", ["well", "dead"])
def test_a_copy_goes_for_the_sake_of_another_only_when_that_one_is_whole_now(uneven: UpkeepRig, state_disk: str) -> None:
    """The catalog says that b has it, and b's disk has forgotten a bit: it is mended from a's copy before that one goes."""
    rig = uneven
    begin(rig)
    rig.record(8.0)
    first, second = rig.stored("b")[:2]
    whole = flip(rig, "b", first)
    assert (first, "a") not in rig.pruned
    if state_disk == "dead":
        assert rig.catalog.flush()
        rig.break_state_disk()
    rig.record(2 * SMALL / 1e6)
    assert (second, "a") in rig.pruned
    assert (first, "a") in rig.pruned, "once b's copy was mended"
    assert content_of(rig, "b", first) == whole
    assert rig.pruned[0] != (first, "a")
    assert {target for _, target in rig.pruned} == {"a"}
    assert {str(e.reason) for e in rig.events if isinstance(e, VolumePruned)} == {"redundant"}


def test_what_cannot_be_mended_stays_where_it_is_whole(uneven: UpkeepRig) -> None:
    """b does not let anything be replaced: a keeps its good copy, and gives up others."""
    rig = uneven
    begin(rig)
    rig.record(8.0)
    first = rig.stored("b")[0]
    flip(rig, "b", first)
    rig.targets["b"].fault = lambda request: errno.EIO if request.verb is Verb.RENAME and request.path2 == first else 0
    rig.record(2 * SMALL / 1e6)
    assert len(rig.pruned) > 20
    assert (first, "a") not in rig.pruned
    assert first in rig.stored("a")


@pytest.fixture
def windowed(tmp_path: Path) -> Iterator[UpkeepRig]:
    """b keeps 4 MiB of what a keeps for good; eight are recorded."""
    rig = UpkeepRig(tmp_path, capacity_bytes={"a": 8 * SMALL, "b": 8 * SMALL}, keep={"days": 30}, volume_bytes=MIB)
    begin(rig)
    rig.record(8.0)
    window = KeepConfig.model_validate({"bytes": "4MiB"})
    journals = tuple(journal.model_copy(update={"standby_keep": window}) for journal in rig.config.journals)
    rig.config = rig.config.model_copy(update={"journals": journals})
    yield rig
    rig.close()


def test_the_window_of_a_standby_waits_for_a_whole_copy_too(windowed: UpkeepRig) -> None:
    """`standby_keep` gives up what the primary has: what it has indeed."""
    rig = windowed
    first, second = rig.stored("a")[:2]
    whole = flip(rig, "a", first)
    rig.prune()
    assert (second, "b") in rig.pruned
    assert (first, "b") not in rig.pruned
    assert content_of(rig, "a", first) == content_of(rig, "b", first) == whole


def test_nothing_goes_when_somebody_took_over_while_the_other_copy_was_read(windowed: UpkeepRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading takes seconds: what was lawful before need not be any more."""
    stays = windowed.pruning._trust.stays_elsewhere

    def read(removal: Removal) -> Work[bool]:
        whole = yield from stays(removal)
        windowed.engine.watch.fenced_by = "another"
        return whole

    monkeypatch.setattr(windowed.pruning._trust, "stays_elsewhere", read)
    assert windowed.prune() == 0
    assert windowed.pruned == []


def test_what_recovery_mends_is_not_mended_by_retention_at_the_same_time(windowed: UpkeepRig) -> None:
    """Both would write into one unfinished file, and the later name a half of it."""
    first = windowed.stored("a")[0]
    flip(windowed, "a", first)
    damaged = content_of(windowed, "a", first)
    windowed.pruning._trust._recovering = lambda: {first}
    windowed.prune()
    assert (first, "b") not in windowed.pruned
    assert content_of(windowed, "a", first) == damaged


def test_who_waits_for_room_does_not_wait_until_copies_are_read(windowed: UpkeepRig) -> None:
    """What has to be read first goes in a later round."""
    windowed.pruning.hurried = lambda: True
    assert windowed.prune() == 0
    windowed.pruning.hurried = lambda: False
    windowed.pruning._plan_next_s = 0.0
    assert windowed.prune() > 0
