"""The engine of a journal, over targets in memory and on a clock that the test moves."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.support.engine import SESSION, Rig, failing, started, volumes

from nvrstore.limits import ABANDONED_WORKERS_MAX, MIB
from nvrstore.model import Cause, Gap, Record, RecordKind, Role
from nvrstore.targets.contract import Verb

pytestmark = pytest.mark.usefixtures("laid_out")


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


# --- promise 1: kept


def test_everything_handed_over_is_committed_and_the_copies_are_equal_byte_for_byte(rig: Rig) -> None:
    """The main job, without any fault."""
    started(rig, seconds=10)
    rig.finish()
    assert rig.heard.acked == rig.put
    assert volumes(rig, "a") == volumes(rig, "b")
    assert len(volumes(rig, "a")) >= 1


def test_nothing_is_acknowledged_before_both_copies_are_durable(rig: Rig) -> None:
    """Acknowledging early is the classic way to lose footage."""
    started(rig)
    before = len(rig.heard.acked)
    rig.targets["b"].hold()
    rig.run(0.6)
    assert len(rig.heard.acked) == before
    rig.targets["b"].release()
    rig.run(0.6)
    assert len(rig.heard.acked) > before
    assert rig.engine.epoch.set == 1, "a pause shorter than the deadline changes nothing"


def test_with_commit_any_one_durable_copy_is_enough_and_the_other_still_gets_it() -> None:
    """What the second copy lacks stays in the buffer until it is there."""
    rig = Rig(change=lambda spec: replace(spec, commit_any=True))
    try:
        started(rig)
        rig.targets["b"].hold()
        rig.run(0.8)
        assert rig.heard.acked
        assert rig.pool.taken_bytes > 0
        rig.targets["b"].release()
        rig.finish()
        assert rig.heard.acked == rig.put
        assert volumes(rig, "a") == volumes(rig, "b")
    finally:
        rig.close()


def test_commits_of_a_stream_are_in_order(rig: Rig) -> None:
    """acked(n) means that every m < n is acked or in the ledger."""
    started(rig, seconds=3)
    rig.targets["a"].fault = failing(Verb.APPEND)
    rig.run(5)
    rig.finish()
    for stream in ("gate", "yard"):
        indices = [index for name, _, index in rig.heard.fragments if name == stream]
        assert indices == sorted(set(indices))


# --- promise 2: uninterrupted


@pytest.mark.parametrize("victim", ["a", "b"])
@pytest.mark.parametrize("verb", [Verb.APPEND, Verb.OPEN, Verb.LOOK, Verb.PREPARE, Verb.TRUNCATE, Verb.CLOSE])
@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS, errno.ESTALE])
def test_a_member_that_errs_leaves_and_costs_no_frame(victim: str, verb: Verb, code: int) -> None:
    """Whichever call fails, with whichever hard error: the other member goes on under a new set."""
    rig = Rig(volume_bytes=MIB)
    try:
        started(rig)
        rig.targets[victim].fault = failing(verb, code=code)
        rig.run(30)
        other = "b" if victim == "a" else "a"
        assert rig.states()[victim] in ("away", "hold-down")
        assert rig.states()[other] == "synced"
        assert rig.engine.members()[0].target == other
        assert rig.engine.members()[0].role is Role.PRIMARY
        since_s = since_failure_s(rig, victim)
        assert since_s is not None
        assert 0 <= since_s <= 0.05, "declared within a round of the first call that failed"
        rig.finish()
        assert rig.heard.acked == rig.put
    finally:
        rig.close()


@pytest.mark.parametrize("tenths", range(10))
def test_a_target_that_breaks_while_nothing_has_to_be_written_is_noticed_within_a_tick(rig: Rig, tenths: int) -> None:
    """Of one camera a fragment comes once a second: in the ticks between, a look asks what a write would have."""
    started(rig, "gate")
    rig.run(tenths / 10)
    rig.targets["a"].fault = failing(*Verb)
    rig.run(rig.engine.spec.tick_s + 0.05)
    assert rig.states()["a"] == "away"
    declared_s = rig.clock.monotonic_s()
    while not rig.heard.failovers:
        rig.run(0.05)
    waited_s = rig.clock.monotonic_s() - declared_s
    assert 0 <= rig.heard.failovers[0] - waited_s <= rig.engine.spec.tick_s + 0.05, "from the declaration, though nothing had to be written"
    rig.finish()
    assert rig.heard.acked == rig.put


def test_a_target_that_is_suspected_is_looked_at_at_once(rig: Rig) -> None:
    """Upkeep met an error there: whoever is idle or busy, the next round looks."""
    started(rig, *(f"cam{i}" for i in range(30)))
    rig.targets["a"].fault = failing(Verb.LOOK)
    rig.ports["a"].suspect()
    rig.run(0.05)
    rig.round()
    assert rig.states()["a"] == "away"


def since_failure_s(rig: Rig, target: str) -> float | None:
    """What the declaration that `target` is lost said of the first call that failed."""
    lost = [
        since_s for change, since_s in zip(rig.heard.changes, rig.heard.since_failure, strict=True) if change[0] == target and change[3]
    ]
    return lost[0]


def test_a_target_that_hangs_is_lost_by_its_deadline_and_costs_no_frame(rig: Rig) -> None:
    """Nothing waits for it any longer than that."""
    started(rig)
    rig.targets["a"].hold()
    rig.run(3)
    assert rig.states()["a"] == "away"
    assert since_failure_s(rig, "a") is None, "no call came back with an error"
    assert rig.heard.failovers
    assert rig.heard.failovers[0] <= 0.3
    rig.run(2)
    assert len(rig.put - rig.heard.acked) <= 2 * 2, "at most the fragments of the present second are still on their way"
    rig.targets["a"].release()
    rig.finish()
    assert rig.heard.acked == rig.put


def test_hangs_below_the_deadline_move_nobody_however_often_they_come(rig: Rig) -> None:
    """0.3 s of every second, for two minutes: late each time, lost never; not a single change of set."""
    started(rig)
    epoch = rig.engine.epoch
    for _ in range(120):
        rig.targets["a"].hold()
        rig.run(0.3)
        rig.targets["a"].release()
        rig.run(0.7)
    assert rig.engine.epoch == epoch
    assert rig.states() == {"a": "synced", "b": "synced"}
    rig.finish()
    assert rig.heard.acked == rig.put
    assert volumes(rig, "a") == volumes(rig, "b")


def test_memory_that_a_stuck_write_may_still_read_is_not_reused(rig: Rig) -> None:
    """After a thaw the disk gets whatever is in the memory then: it must be the bytes that were submitted."""
    started(rig)
    rig.targets["a"].hold()
    rig.run(5)
    pinned = rig.pool.taken_bytes
    assert pinned > 0, "the abandoned appender pins its extents"
    rig.run(10)
    rig.targets["a"].release()
    rig.run(1)
    rig.finish()
    assert rig.pool.taken_bytes == 0
    for path, content in volumes(rig, "a").items():
        other = volumes(rig, "b").get(path, b"")
        batches = content.rstrip(b"\0")
        assert other.startswith(batches[: len(batches) // 4096 * 4096]), "what thawed is a prefix of what the peer has"


def test_status_says_how_many_workers_are_stuck_and_what_they_pin(rig: Rig) -> None:
    """What nobody may use before they are gone: all that the abandoned appender was given, and nothing of the other target's."""

    def said(name: str) -> tuple[int, int]:
        [target] = [target for target in rig.engine.status()["targets"] if target["target"] == name]  # type: ignore[attr-defined]
        return target["workers_stuck"], target["pinned_bytes"]

    started(rig)
    assert said("a") == (0, 0)
    rig.targets["a"].hold()
    rig.run(10)
    rig.run(1, record=False)
    stuck, pinned = said("a")
    assert stuck == ABANDONED_WORKERS_MAX
    assert pinned > 0
    assert said("b") == (0, 0)
    before = rig.buffer.bytes
    rig.targets["a"].release()
    rig.run(0.1, record=False)
    assert said("a") == (0, 0)
    assert rig.buffer.bytes == before - pinned, "free again"


def test_an_acknowledgement_that_arrives_after_its_member_left_never_counts(rig: Rig) -> None:
    """The set without it is durable first; its late answers are nobody's."""
    started(rig)
    rig.targets["a"].hold()
    rig.run(2)
    assert rig.states()["a"] == "away"
    rig.targets["a"].release()
    rig.run(1)
    for _, _, targets, commit in rig.heard.stored:
        if commit is not None and commit.epoch.set >= 2:
            assert "a" not in targets


def test_what_a_lost_member_should_have_had_is_acknowledged_only_under_the_new_set(rig: Rig) -> None:
    """Else the old set could come back and know nothing of the loss."""
    started(rig)
    rig.targets["a"].hold()
    rig.targets["b"].fault = failing(Verb.OPEN, code=errno.ENOSPC)  # the new set's header cannot become durable
    before = len(rig.heard.acked)
    rig.run(2.5)
    assert rig.states()["a"] == "away"
    assert len(rig.heard.acked) == before
    rig.targets["b"].fault = None
    rig.targets["a"].release()
    rig.run(3)
    assert len(rig.heard.acked) > before
    rig.finish()
    assert rig.heard.acked == rig.put


def test_both_targets_gone_and_back_costs_nothing_while_the_buffer_holds(rig: Rig) -> None:
    """The buffer bridges it; what was never acknowledged is replayed into new volumes."""
    started(rig)
    for target in rig.targets.values():
        target.fault = failing(Verb.APPEND, Verb.LOOK, Verb.OPEN)
    rig.run(10)
    assert rig.engine.members() == []
    for target in rig.targets.values():
        target.fault = None
    rig.run(5)
    rig.finish()
    assert rig.heard.acked == rig.put


def test_without_any_member_footage_goes_to_the_refuge_and_is_not_counted_as_committed() -> None:
    """The state disk keeps it; promises are made only when a target has it."""
    rig = Rig(refuge=True)
    try:
        started(rig)
        acked = set(rig.heard.acked)
        for name in ("a", "b"):
            rig.targets[name].fault = failing(Verb.APPEND, Verb.LOOK, Verb.OPEN)
        rig.run(10)
        assert [m.role for m in rig.engine.members()] == [Role.REFUGE]
        assert volumes(rig, "refuge")
        assert rig.heard.acked - acked == set()
        kept = {entry.index for path, batch, targets, commit in rig.heard.stored if commit is None for entry in batch.entries}
        assert kept
        for name in ("a", "b"):
            rig.targets[name].fault = None
        rig.run(5)
        assert [m.target for m in rig.engine.members()] == ["a"], "the first is taken at once, hold-down or not"
        rig.run(40)
        assert {m.target for m in rig.engine.members()} == {"a", "b"}
        rig.finish()
        in_refuge = {("gate", SESSION, e.index) for _, b, _, c in rig.heard.stored if c is None for e in b.entries} | {
            ("yard", SESSION, e.index) for _, b, _, c in rig.heard.stored if c is None for e in b.entries
        }
        assert rig.put <= rig.heard.acked | in_refuge
    finally:
        rig.close()


def test_a_laggard_leaves_at_the_buffers_bound() -> None:
    """A target that is slow but never stuck may not fill the memory."""
    rig = Rig(pool_bytes=2 * MIB, change=lambda spec: replace(spec, commit_any=True))
    try:
        rig.ports["b"]._lost_s = 1e9  # the deadline shall not be what finds it
        started(rig)
        rig.targets["b"].hold()
        rig.run(40)
        assert rig.states()["b"] == "away"
        reason = [r for t, _, after, r in rig.heard.changes if t == "b" and str(after) == "away"][-1]
        assert "lags behind" in reason
        rig.finish()
        assert rig.heard.acked == rig.put
    finally:
        rig.targets["b"].release()
        rig.close()


def test_dead_workers_are_a_loss_of_their_target_and_of_nothing_else(rig: Rig) -> None:
    """A worker that is killed takes at most its own requests along."""
    started(rig)
    rig.targets["a"].kill_workers()
    rig.run(2)
    assert rig.states()["a"] != "synced"
    rig.run(40)
    assert rig.states()["a"] in ("live", "synced")
    rig.finish()
    assert rig.heard.acked == rig.put


# --- promise 3: honest


def test_when_nothing_can_take_it_the_oldest_is_dropped_into_the_ledger_with_both_ends() -> None:
    """No silent loss, and no memory without bound."""
    rig = Rig(pool_bytes=MIB)
    try:
        started(rig, "gate")
        for target in rig.targets.values():
            target.fault = failing(Verb.APPEND, Verb.LOOK, Verb.OPEN)
        rig.run(60)
        burst = MIB // 4 if rig.laid_out else 0  # seconds of what another process lays out
        assert rig.buffer.bytes <= rig.buffer.bytes_max + burst
        for target in rig.targets.values():
            target.fault = None
        rig.run(30)
        rig.finish()
        lost = rig.put - rig.heard.acked
        assert lost
        gaps = {}
        for record in rig.heard.records:
            if record.kind == RecordKind.GAP:
                gaps[record.id] = Gap.of(record)
        closed = [gap for gap in gaps.values() if gap.cause is Cause.STORAGE]
        assert closed
        assert all(gap.end_ns is not None and gap.end_ns > gap.start_ns for gap in closed)
    finally:
        rig.close()


def test_every_volume_repeats_the_standing_records(rig: Rig) -> None:
    """Retention deletes whole volumes: an open gap must not go with the volume in which it was opened."""
    started(rig)
    gap = Gap("g1", "gate", Cause.CAMERA, 5, None)
    rig.intake.record(gap.record())
    rig.intake.record(Record(RecordKind.MARK, "m1", {"stream": "gate"}))
    rig.run(1)
    for lane in rig.engine.lanes:
        lane.cut()
    rig.run(2)
    firsts = [batch for _, batch, _, _ in rig.heard.stored if batch.number == 0]
    assert "g1" in [record.id for record in firsts[-1].records]
    assert "m1" not in [record.id for record in firsts[-1].records]
    rig.intake.record(replace(gap, end_ns=9).record())
    rig.run(1)
    for lane in rig.engine.lanes:
        lane.cut()
    rig.run(2)
    assert "g1" not in [record.id for record in [b for _, b, _, _ in rig.heard.stored if b.number == 0][-1].records]


def test_records_become_durable_also_before_any_camera_connects(rig: Rig) -> None:
    """A recorder whose cameras are all down has a ledger, too."""
    rig.intake.record(Gap("g1", "gate", Cause.CAMERA, 5, None).record())
    rig.run(6)
    assert "g1" in [record.id for record in rig.heard.records]
