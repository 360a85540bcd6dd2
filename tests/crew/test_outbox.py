"""What a worker keeps while the recorder does not take it, and what it says of that which it could not keep."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import pytest

from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.crew import batcher
from nvrstore.crew import outbox as room
from nvrstore.crew.messages import Declared, LaidOut, Looked, Recorded, Report, Told, receive
from nvrstore.crew.outbox import Outbox
from nvrstore.crew.ring import DATA_AT, RingWriter
from nvrstore.extents import Extent
from nvrstore.limits import BATCH_BYTES_CUT, BLOCK_BYTES
from nvrstore.model import Cause, Fragment, FragmentFlag, Gap, Media, TrackConfig, TrackKey

TRACK = TrackKey("gate", Media.VIDEO)
CONFIG = TrackConfig(Media.VIDEO, "h264", 90_000, b"trak")
SECOND = 1_000_000_000


def fragment(number: int, length: int = 100) -> Fragment:
    """One second, whose bytes say which."""
    data = bytes([number]) * length
    return Fragment(TRACK, CONFIG, 1, 25 * number, 25, number * SECOND, 90_000, FragmentFlag.KEYFRAME, (data[:10], data[10:]), length)


@pytest.fixture
def ends() -> Iterator[tuple[Connection, Connection]]:
    ours, theirs = Pipe()
    with ours, theirs:
        yield ours, theirs


class Recorder:
    """The other end: it hears everything, looks at what lies in the window, and gives it back `late` reports later."""

    def __init__(self, pipe: Connection, ours: Connection, blocks: int = 16, *, late: int = 0) -> None:
        self.pipe, self.late = pipe, late
        self.window = bytearray(blocks * BLOCK_BYTES)
        ring = RingWriter(memoryview(bytearray(DATA_AT + 250)))
        self.outbox = Outbox(ours, ring, SYSTEM_CLOCK, lambda waiting: Looked((), waiting))
        self.outbox.batches.sit(memoryview(self.window), ())
        self.taken: deque[tuple[Extent, bytes]] = deque()

    def declare(self, track: TrackKey = TRACK) -> None:
        self.outbox.declare(track, "Gate", CONFIG, journal="main", tick_s=0.2)

    def hear(self) -> list[Report]:
        """Everything until the outbox ends. What was handed over is as it was when it is given back, whatever came meanwhile."""
        thread = threading.Thread(target=self.outbox.run)
        thread.start()
        self.outbox.end()
        found: list[Report] = []
        while thread.is_alive() or self.pipe.poll():
            heard = self.pipe.poll(0.01)
            if heard:
                for report in receive(self.pipe):
                    found.append(report)
                    if isinstance(report, LaidOut):
                        self._take(report)
            while len(self.taken) > (self.late if heard else 0):
                extent, before = self.taken.popleft()
                assert bytes(self.window[extent.offset : extent.offset + extent.length]) == before
                self.outbox.batches.freed(extent)
        thread.join()
        return [report for report in found if not isinstance(report, Looked)]

    def _take(self, report: LaidOut) -> None:
        at, end = report.extent.offset, report.extent.offset + report.extent.length
        batch = self.window[at:end]
        for put in report.puts:
            assert batch[put.position : put.position + put.length] == bytes([put.first // 25]) * put.length
        self.taken.append((report.extent, bytes(batch)))


def numbers(reports: list[Report]) -> list[int]:
    """Which fragments came, in order."""
    return [put.first // 25 for report in reports if isinstance(report, LaidOut) for put in report.puts]


@pytest.mark.parametrize("late", [0, 3])
def test_everything_comes_in_order_through_a_window_that_is_always_full(
    ends: tuple[Connection, Connection], monkeypatch: pytest.MonkeyPatch, late: int
) -> None:
    """A recorder that is slow makes its workers wait, and gets every byte in the end."""
    monkeypatch.setattr(batcher, "BATCH_BYTES_CUT", 250)
    monkeypatch.setattr(room, "BATCH_BYTES_CUT", 250)
    recorder = Recorder(*ends, blocks=2, late=late)
    recorder.declare()
    for number in range(100):
        recorder.outbox.put(fragment(number))
    reports = recorder.hear()
    assert isinstance(reports[0], Declared)
    assert numbers(reports) == list(range(100))
    assert max(len(report.puts) for report in reports if isinstance(report, LaidOut)) == 3


def test_who_waits_for_room_says_so(ends: tuple[Connection, Connection], monkeypatch: pytest.MonkeyPatch) -> None:
    """The window is full as long as no target takes anything: silence would be taken for death, and the backlog would die of it."""
    monkeypatch.setattr(room, "LOOK_S", 0.01)
    recorder = Recorder(*ends, blocks=1)
    recorder.outbox.declare(TRACK, "Gate", CONFIG, journal="main", tick_s=0.001)
    recorder.outbox.batches.sit(memoryview(recorder.window), (Extent(0, BLOCK_BYTES),))
    recorder.outbox.put(fragment(0))
    thread = threading.Thread(target=recorder.outbox.run)
    thread.start()
    heard: list[Report] = []
    while sum(isinstance(report, Looked) for report in heard) < 5 and recorder.pipe.poll(5):
        heard += receive(recorder.pipe)
    recorder.outbox.batches.freed(Extent(0, BLOCK_BYTES))
    recorder.outbox.end()
    while not numbers(heard) and recorder.pipe.poll(10):
        heard += receive(recorder.pipe)
    thread.join()
    kinds = [type(report).__name__ for report in heard]
    assert kinds[: kinds.index("LaidOut")].count("Looked") >= 5


def test_what_does_not_fit_is_dropped_and_said(ends: tuple[Connection, Connection], monkeypatch: pytest.MonkeyPatch) -> None:
    """The backlog is bounded: what comes then is a gap with both its ends, and told."""
    monkeypatch.setattr(room, "BACKLOG_BYTES_MAX", 1000)
    recorder = Recorder(*ends)
    recorder.declare()
    for number in range(15):
        recorder.outbox.put(fragment(number))
    recorder.outbox._bytes = 0  # as if the recorder had taken everything
    recorder.outbox.put(fragment(15))
    reports = recorder.hear()
    assert numbers(reports) == [*range(10), 15]
    opened, closed = [Gap.of(report.record) for report in reports if isinstance(report, Recorded)]
    assert (opened.cause, opened.start_ns, opened.end_ns) == (Cause.STORAGE, 10 * SECOND, None)
    assert (closed.id, closed.start_ns, closed.end_ns) == (opened.id, 10 * SECOND, 15 * SECOND)
    assert [type(report.event).__name__ for report in reports if isinstance(report, Told)] == ["GapOpened", "FragmentsDropped", "GapClosed"]


def test_what_is_written_down_comes_behind_the_footage_before_it(ends: tuple[Connection, Connection]) -> None:
    """A gap that begins where a worker's last fragment ended, without that fragment, would hide what died with the worker."""
    recorder = Recorder(*ends)
    recorder.declare()
    for number in (0, 1):
        recorder.outbox.put(fragment(number))
    gap = Gap("g", "gate", Cause.CAMERA, 2 * SECOND, None)
    recorder.outbox.post(Recorded("gate", gap.record()))
    recorder.outbox.put(fragment(3))
    kinds = [type(report).__name__ for report in recorder.hear()]
    assert kinds == ["Declared", "LaidOut", "Recorded", "LaidOut"]


def test_journals_and_more_tracks_than_a_lane_takes_are_batched_apart(
    ends: tuple[Connection, Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is of one lane of one journal; audio lies beside its video where there is room."""
    monkeypatch.setattr(batcher, "LANE_TRACKS_MAX", 3)
    batches = batcher.Batcher()

    def lane(stream: str, media: Media = Media.VIDEO, journal: str = "main") -> int:
        return batches.lane(TrackKey(stream, media), journal, 0.2).number

    assert [lane("a"), lane("b"), lane("x", journal="other"), lane("a", Media.AUDIO), lane("c"), lane("b", Media.AUDIO)] == [
        0,
        0,
        1,
        0,
        2,
        2,
    ]
    assert lane("a") == 0
    assert lane("a", journal="other") == 1, "removed there, and added here: it must not lie between what others record"
    assert lane("a", Media.AUDIO, journal="other") == 1
    assert lane("a") == 2  # back again: its lane is full by then


def test_who_sits_down_in_its_place_batches_what_its_predecessor_did() -> None:
    """The recorder's lanes outlive a worker: mixed otherwise, every batch would have to be copied apart."""
    batches = batcher.Batcher()
    for stream, number in (("a", 3), ("b", 1), ("c", 3)):
        batches.assign(TrackKey(stream, Media.VIDEO), number, "main", 0.2)
    lanes = [batches.lane(TrackKey(stream, Media.VIDEO), "main", 0.2) for stream in "abcd"]
    assert [lane.number for lane in lanes] == [3, 1, 3, 3]
    assert (lanes[0].tracks, lanes[1].tracks) == (3, 1)
    assert batches.lane(TrackKey("e", Media.VIDEO), "other", 0.2).number == 4


def test_a_batch_waits_for_its_tick(ends: tuple[Connection, Connection]) -> None:
    """Ticks go on, whatever comes; a full one does not wait."""
    batches = batcher.Batcher()
    batches.lane(TRACK, "main", 0.5)
    assert batches.due_s == math.inf
    lane = batches.add(0, fragment(0), 10.3)
    batches.add(0, fragment(1), 10.4)
    assert (batches.due_s, batches.due(10.4), batches.due(10.5)) == (10.5, [], [lane])
    batches.add(0, fragment(2, BATCH_BYTES_CUT), 10.45)
    assert batches.due(10.45) == [lane]
    assert batches.lay_out(lane) is None  # there is no window yet
    window = bytearray(2 * BATCH_BYTES_CUT)
    batches.sit(memoryview(window), (Extent(0, BLOCK_BYTES),))
    laid_out = batches.lay_out(lane)
    assert laid_out is not None
    assert laid_out.extent.offset == BLOCK_BYTES  # what is still needed is not touched
    assert not any(window[:BLOCK_BYTES])
    assert (batches.due(math.inf), batches.due_s) == ([], math.inf)


def test_who_has_nobody_to_talk_to_ends(ends: tuple[Connection, Connection]) -> None:
    """The recorder is gone: there is nothing to record for."""
    recorder = Recorder(*ends)
    ends[0].close()
    with pytest.raises(OSError, match="pipe"):
        recorder.outbox.run()
