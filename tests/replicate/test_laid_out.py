"""Batches that another process laid out: written where they lie, given back when nobody can need or touch them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count as counting
from types import SimpleNamespace

import pytest
from tests.support.engine import CONFIG, Camera, Heard, Rig, failing, started, volumes
from tests.support.laid_out import Worker

from nvrstore.crew import batcher
from nvrstore.extents import Extent, Window
from nvrstore.journal.batch import VolumeBuilder
from nvrstore.limits import BLOCK_BYTES, GIB, MIB
from nvrstore.model import Record, RecordKind
from nvrstore.replicate.engine import JournalEngine
from nvrstore.replicate.hub import Hub
from nvrstore.replicate.intake import Intake
from nvrstore.targets.contract import Verb
from nvrstore.targets.memory_appender import MemoryAppender
from nvrstore.targets.pool import Pool


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(Rig, "laid_out", True)
    made = Rig()
    yield made
    made.close()


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, int]]:
    """Of every batch: whether it was built in place, and of how many fragments."""
    seen: list[tuple[bool, int]] = []
    build = VolumeBuilder.build

    def watched(
        self: VolumeBuilder, view: memoryview, fragments: list[object], records: object, *, in_place: bool, **rest: object
    ) -> object:
        seen.append((in_place, len(fragments)))
        return build(self, view, fragments, records, in_place=in_place, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(VolumeBuilder, "build", watched)
    return seen


def worker(rig: Rig) -> Worker:
    assert rig.worker is not None
    return rig.worker


def window(rig: Rig) -> Window:
    return rig.pool.windows[0]


def test_a_batch_is_written_where_it_lies(rig: Rig, built: list[tuple[bool, int]]) -> None:
    """Nothing of it is copied in the recorder; afterwards its place is free, and whatever is written there then harms nothing."""
    started(rig, seconds=10)
    rig.finish()
    assert rig.heard.acked == rig.put
    assert volumes(rig, "a") == volumes(rig, "b")
    assert [in_place for in_place, count in built if count] == [True] * len(built)
    assert len(built) >= 10
    assert window(rig).taken_bytes == 0
    assert worker(rig).freed == len(built)
    assert rig.buffer.bytes == 0


def test_records_make_a_copy_of_it(rig: Rig, built: list[tuple[bool, int]]) -> None:
    """They stand in front of the fragments, where no place was left for them."""
    started(rig)
    for number in range(20):
        rig.intake.record(Record(RecordKind.MARK, str(number), {"stream": "gate"}))
        rig.run(0.05)
    rig.finish()
    assert (False, 2) in built
    assert [record.id for record in rig.heard.records if record.kind == RecordKind.MARK] == [str(number) for number in range(20)]
    assert rig.heard.acked == rig.put
    assert window(rig).taken_bytes == 0


def test_its_place_is_not_free_before_every_member_has_it(rig: Rig) -> None:
    """A write that hangs may still read it."""
    started(rig)
    rig.targets["b"].hold()
    freed = worker(rig).freed
    rig.run(0.9)
    assert worker(rig).freed == freed
    assert window(rig).taken_bytes > 0
    assert rig.buffer.bytes >= window(rig).taken_bytes  # it counts where the bound is watched
    rig.targets["b"].release()
    rig.run(0.3)
    assert worker(rig).freed > freed
    rig.finish()
    assert volumes(rig, "a") == volumes(rig, "b")


def test_what_an_abandoned_worker_may_still_read_is_not_free(rig: Rig) -> None:
    """Late writes of a target that hung put on its disk what was meant to be there, however long it took."""
    started(rig)
    rig.targets["b"].hold()
    rig.run(8.0)
    assert "b" not in {m.target for m in rig.engine.members()}
    pinned = window(rig).taken_bytes
    assert pinned > 0
    before = {path: data for path, data in volumes(rig, "b").items() if data}
    rig.targets["b"].release()
    rig.run(5.0)
    assert window(rig).taken_bytes < pinned
    after, whole = volumes(rig, "b"), volumes(rig, "a")
    for path in before:
        assert b"\xee" * BLOCK_BYTES not in after[path]
        assert whole[path].startswith(after[path].rstrip(b"\0"))


def test_many_that_wait_become_one_batch(rig: Rig, built: list[tuple[bool, int]]) -> None:
    """While no target takes anything they wait where they lie; then they are gathered by copying them."""
    started(rig)
    for target in rig.targets.values():
        target.fault = failing(Verb.APPEND, Verb.OPEN)
    rig.run(5.0)
    assert window(rig).taken_bytes > 0
    for target in rig.targets.values():
        target.fault = failing()
    built.clear()
    rig.run(60.0, record=False)
    rig.finish()
    assert rig.heard.acked >= rig.put
    assert max(count for _, count in built) > 2
    assert window(rig).taken_bytes == 0


def test_at_the_bound_the_oldest_goes_and_its_place_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is the buffer's, whoever holds the bytes; what was dropped is in the ledger, and frees what it lay in."""
    monkeypatch.setattr(Rig, "laid_out", True)
    rig = Rig(pool_bytes=MIB)
    try:
        started(rig)
        for target in rig.targets.values():
            target.fault = failing(Verb.APPEND, Verb.OPEN)
        rig.run(60.0)
        assert rig.buffer.bytes <= rig.buffer.bytes_max + 64 * BLOCK_BYTES
        assert window(rig).taken_bytes <= rig.buffer.bytes_max + 64 * BLOCK_BYTES
        for target in rig.targets.values():
            target.fault = failing()
        rig.run(60.0)
        rig.finish()
        assert len(rig.heard.acked) < len(rig.put)
        assert any(record.kind == RecordKind.GAP for record in rig.heard.records)
        assert window(rig).taken_bytes == 0
    finally:
        rig.close()


def test_a_window_is_never_full_before_the_bound_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small batches lie in whole blocks: what counts is the memory that they take, or their worker would wait where the oldest can go."""
    monkeypatch.setattr(Rig, "laid_out", True)
    rig = Rig(pool_bytes=MIB)
    try:
        for number in range(4):
            rig.camera(f"cam{number}", size=10, fps=2)
            rig.run(0.25)
        rig.run(3.0)
        rig.sync()
        for target in rig.targets.values():
            target.fault = failing(Verb.APPEND, Verb.OPEN)
        rig.run(150.0)
        assert window(rig).taken_bytes <= rig.buffer.bytes <= rig.buffer.bytes_max + 64 * BLOCK_BYTES
        for target in rig.targets.values():
            target.fault = failing()
        rig.run(60.0)
        rig.finish()
        assert any(record.kind == RecordKind.GAP for record in rig.heard.records)
        assert window(rig).taken_bytes == rig.buffer.bytes == 0
    finally:
        rig.close()


def test_what_was_laid_out_while_the_recorder_stood_still_is_not_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the buffer's bound at once, and targets that could take it: they get it, and nobody lags behind for that."""
    monkeypatch.setattr(Rig, "laid_out", True)
    rig = Rig(pool_bytes=8 * MIB)
    rig.buffer.bytes_max = MIB
    try:
        for name in ("gate", "yard"):
            rig.camera(name, size=20_000)
        rig.run(3.0)
        rig.sync()
        for _ in range(40):
            rig.clock.advance(0.05)
            for camera in rig._cameras.values():
                camera.film(rig)
            worker(rig).hand_over()
        assert rig.buffer.bytes > rig.buffer.bytes_max
        rig.run(5.0)
        rig.finish()
        assert rig.heard.acked == rig.put
        assert [change for change in rig.heard.changes if "lags behind" in change[3]] == []
    finally:
        rig.close()


def test_another_process_writes_over_nothing_that_is_still_needed(rig: Rig) -> None:
    """The one before died while its batches were on their way."""
    started(rig)
    for target in rig.targets.values():
        target.hold()
    rig.run(0.9)
    taken = window(rig).taken_bytes
    assert taken > 0
    worker(rig).sit()
    rig.run(0.1)
    for target in rig.targets.values():
        target.release()
    rig.run(2.0)
    rig.finish()
    assert rig.heard.acked == rig.put
    assert volumes(rig, "a") == volumes(rig, "b")
    assert window(rig).taken_bytes == 0


@pytest.fixture
def slow(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets time pass with targets whose appends take a quarter of a second, and a worker that hands over every 0.2 s."""
    hand_over, rounds = worker(rig).hand_over, counting()

    def run(seconds: float) -> None:
        monkeypatch.setattr(rig.worker, "hand_over", lambda: hand_over() if next(rounds) % 4 == 0 else [])
        for target in rig.targets.values():
            target.hold()
        for number in range(round(seconds / 0.05)):
            rig.run(0.05)
            for line in [line for target in rig.targets.values() for line in target._workers]:
                answers = line.finish(int(number % 5 == 0) if isinstance(line, MemoryAppender) else len(line.line))
                for deliver, answer in answers:
                    deliver(answer)
        for target in rig.targets.values():
            target.release()
        monkeypatch.setattr(rig.worker, "hand_over", hand_over)

    return run


def steady(rig: Rig, cameras: list[str]) -> None:
    """With five of them each tick brings a fragment of one."""
    for name in cameras:
        rig.camera(name)
        rig.run(0.2)
    rig.run(3.0)
    rig.sync()
    rig.run(0.2)


def test_no_lane_has_to_wait_for_ever_while_a_target_is_slow(
    rig: Rig, slow: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is laid out is due at once: the first lane always has something, and would take every place that gets free."""
    monkeypatch.setattr(batcher, "LANE_TRACKS_MAX", 5)
    cameras = [f"cam{number}" for number in range(10)]
    steady(rig, cameras)
    assert len(rig.engine.lanes) == 2
    slow(20.0)
    missing = {name: sum(identity[0] == name for identity in rig.put - rig.heard.acked) for name in cameras}
    assert max(missing.values()) <= 3, missing
    assert set(rig.states().values()) == {"synced"}
    rig.finish()
    assert rig.heard.acked == rig.put


def test_many_lanes_leave_room_for_footage_on_a_small_disk(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each lane has a volume and the next one prepared: a worker more must not mean that nothing but empty files fits there."""
    monkeypatch.setattr(batcher, "LANE_TRACKS_MAX", 1)
    for target in rig.targets.values():
        target.files.capacity_bytes = 8 * GIB
    rig.engine.spec = replace(rig.engine.spec, volume_bytes=None)
    cameras = [f"cam{number}" for number in range(20)]
    started(rig, *cameras, seconds=10.0)
    assert len(rig.engine.lanes) == 20
    assert all(target.files.used_bytes < 4 * GIB for target in rig.targets.values())
    rig.finish()
    assert rig.heard.acked == rig.put


@pytest.mark.parametrize("rounds", range(5))
def test_no_journal_has_to_wait_for_ever_while_a_target_is_slow(
    rig: Rig, slow: Callable[[float], None], monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    """The same of two that keep their volumes on the same targets."""
    intake, heard = Intake(), Heard()
    spec = replace(rig.engine.spec, name="other", journal_id="ef" * 16)
    other = JournalEngine(spec, rig.ports, rig.buffer, intake, rig.clock, heard, rig.engine.post)
    hub = Hub(rig.clock, on_failure=lambda error: None)
    hub.add(list(rig.ports.values()), [rig.engine, other])

    camera = Camera("far", 20, 2000, CONFIG, rig.clock.monotonic_s())
    intake.declare(camera.track, "far", CONFIG)

    def turn() -> None:
        camera.film(SimpleNamespace(clock=rig.clock, worker=None, intake=intake))  # type: ignore[arg-type]
        while rig._posted:
            rig._posted.popleft()()
        hub.round()

    monkeypatch.setattr(rig, "round", turn)
    steady(rig, [f"cam{number}" for number in range(5)])
    rig.run(0.05 * rounds)  # its ticks, and when a place gets free
    slow(20.0)
    assert len(camera.put) >= 20
    assert len(camera.put - heard.acked) <= 3
    rig.finish()
    hub.stop(0)


def test_what_a_process_says_of_its_window_is_not_believed() -> None:
    """Outside of it, not in blocks, twice: refused."""
    pool = Pool(BLOCK_BYTES, windows=2, window_bytes=4 * BLOCK_BYTES)
    try:
        first, second = pool.windows
        assert (first.offset, second.offset) == (BLOCK_BYTES, 5 * BLOCK_BYTES)
        extent = second.take(BLOCK_BYTES, 2 * BLOCK_BYTES)
        assert extent == Extent(6 * BLOCK_BYTES, 2 * BLOCK_BYTES)
        for offset, length in ((-BLOCK_BYTES, BLOCK_BYTES), (0, 5 * BLOCK_BYTES), (4 * BLOCK_BYTES, BLOCK_BYTES), (0, 0), (1, BLOCK_BYTES)):
            with pytest.raises(ValueError, match="there is no extent"):
                second.take(offset, length)
        for offset, length in ((0, 2 * BLOCK_BYTES), (BLOCK_BYTES, BLOCK_BYTES), (2 * BLOCK_BYTES, 2 * BLOCK_BYTES)):
            with pytest.raises(ValueError, match="handed over twice"):
                second.take(offset, length)
        told: list[object] = []
        second.open(lambda taken: told.extend(taken), told.append)
        second.free(extent)
        assert told == [Extent(BLOCK_BYTES, 2 * BLOCK_BYTES)] * 2
        with pytest.raises(KeyError):
            second.free(extent)
        second.take(0, 4 * BLOCK_BYTES)
    finally:
        pool.close()
