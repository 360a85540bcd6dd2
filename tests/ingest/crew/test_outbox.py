"""What a worker keeps while the recorder does not take it, and what it says of that which it could not keep."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import pytest

from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.ingest.crew import outbox as room
from nvrstore.ingest.crew.messages import Declared, Looked, Put, Recorded, Report, Told, receive
from nvrstore.ingest.crew.outbox import Outbox
from nvrstore.ingest.crew.ring import DATA_AT, RingReader, RingWriter
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


def heard(pipe: Connection, reader: RingReader, outbox: Outbox) -> list[Report]:
    """Everything until the outbox ends; fragments as they are copied."""
    thread = threading.Thread(target=outbox.run)
    thread.start()
    outbox.end()
    found: list[Report] = []
    while thread.is_alive() or pipe.poll():
        if pipe.poll(0.01):
            for report in receive(pipe):
                found.append(report)
                if isinstance(report, Put):
                    assert reader.copy(report.position, report.length) == bytes([report.first // 25]) * report.length
                    reader.release(report.position + report.length)
    thread.join()
    return [report for report in found if not isinstance(report, Looked)]


def test_everything_comes_in_order_through_a_ring_that_is_always_full(ends: tuple[Connection, Connection]) -> None:
    """A recorder that is slow makes its workers wait, and gets every byte in the end."""
    memory = memoryview(bytearray(DATA_AT + 250))
    outbox = Outbox(ends[1], RingWriter(memory), SYSTEM_CLOCK, lambda waiting: Looked((), waiting))
    outbox.declare(TRACK, "Gate", CONFIG)
    for number in range(100):
        outbox.put(fragment(number))
    reports = heard(ends[0], RingReader(memory), outbox)
    assert isinstance(reports[0], Declared)
    assert [report.first for report in reports[1:] if isinstance(report, Put)] == [25 * number for number in range(100)]


def test_what_does_not_fit_is_dropped_and_said(ends: tuple[Connection, Connection], monkeypatch: pytest.MonkeyPatch) -> None:
    """The backlog is bounded: what comes then is a gap with both its ends, and told."""
    monkeypatch.setattr(room, "BACKLOG_BYTES_MAX", 1000)
    memory = memoryview(bytearray(DATA_AT + 250))
    outbox = Outbox(ends[1], RingWriter(memory), SYSTEM_CLOCK, lambda waiting: Looked((), waiting))
    outbox.declare(TRACK, "Gate", CONFIG)
    for number in range(15):
        outbox.put(fragment(number))
    outbox._bytes = 0  # as if the recorder had taken everything
    outbox.put(fragment(15))
    reports = heard(ends[0], RingReader(memory), outbox)
    assert [report.first // 25 for report in reports if isinstance(report, Put)] == [*range(10), 15]
    opened, closed = [Gap.of(report.record) for report in reports if isinstance(report, Recorded)]
    assert (opened.cause, opened.start_ns, opened.end_ns) == (Cause.STORAGE, 10 * SECOND, None)
    assert (closed.id, closed.start_ns, closed.end_ns) == (opened.id, 10 * SECOND, 15 * SECOND)
    assert [type(report.event).__name__ for report in reports if isinstance(report, Told)] == ["GapOpened", "FragmentsDropped", "GapClosed"]


def test_who_has_nobody_to_talk_to_ends(ends: tuple[Connection, Connection]) -> None:
    """The recorder is gone: there is nothing to record for."""
    outbox = Outbox(ends[1], RingWriter(memoryview(bytearray(DATA_AT + 250))), SYSTEM_CLOCK, lambda waiting: Looked((), waiting))
    ends[0].close()
    with pytest.raises(OSError, match="pipe"):
        outbox.run()
