"""The loop of the lean engine when it is late: nobody is forgotten, and nothing piles up."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence

from nvrstore.clock import SYSTEM_CLOCK, ManualClock
from nvrstore.errors import SourceError
from nvrstore.ingest.contract import Endpoint, SourceRequest
from nvrstore.ingest.lean import LeanEngine
from nvrstore.ingest.lean.loop import TURN, Loop
from nvrstore.ingest.lean.rtp import Sequence as Numbers
from nvrstore.ingest.lean.rtp import receiver_report
from nvrstore.model import Media, Sample, TrackConfig


class Flood:
    """A connection from which more comes than can be read: every read takes longer than reads are apart."""

    def __init__(self, clock: ManualClock) -> None:
        self.sock, self.other = socket.socketpair()
        self.other.sendall(b"more")
        self.clock, self.reads = clock, 0

    def readable(self, buffer: bytearray, view: memoryview) -> bool:
        self.reads += 1
        self.clock.advance(1.0)
        return True

    def writable(self) -> None:
        """Nothing is written."""

    def due(self, now_s: float) -> None:
        """Nothing is."""

    def broke(self, error: Exception) -> None:
        raise AssertionError from error

    def close(self) -> None:
        self.sock.close()
        self.other.close()


def test_a_loop_that_is_late_with_every_sweep_still_hears_calls_and_new_connections() -> None:
    """Else an overloaded recorder could connect to nobody any more, and could not be stopped."""
    clock = ManualClock()
    loop, flood = Loop(clock), Flood(clock)
    heard: list[str] = []
    try:
        loop.add(flood)
        loop.watch(flood, playing=True, writing=False)

        def goes_on() -> bool:
            if flood.reads == 3:
                loop.call(lambda: heard.append("called"))
            return flood.reads < 10 and not heard

        loop.run(goes_on)
    finally:
        flood.close()
    assert heard


def test_within_one_sweep_the_urgent_ones_have_their_turns() -> None:
    """Setting up a session takes five answers: one in each sweep of a second or two, and cameras are given up before they play."""
    clock = ManualClock()
    loop = Loop(clock)
    floods = [Flood(clock) for _ in range(3 * TURN)]
    reads: list[int] = []
    try:
        for flood in floods:
            loop.add(flood)
            loop.watch(flood, playing=True, writing=False)

        def again() -> None:
            reads.append(sum(flood.reads for flood in floods))
            if len(reads) < 4:
                loop.call(again)

        loop.call(again)
        loop.run(lambda: len(reads) < 4)
    finally:
        for flood in floods:
            flood.close()
    assert reads[-1] - reads[0] <= 3 * TURN


class Deaf:
    """A receiver that only knows when it is over."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def on_track(self, config: TrackConfig) -> None: ...

    def on_samples(self, samples: Sequence[Sample]) -> None: ...

    def on_reference(self, media: Media, pts: int, utc_ns: int) -> None: ...

    def on_ended(self, error: SourceError) -> None:
        self.over.set()


def test_a_source_that_is_told_again_and_again_to_stop_tells_its_loop_once() -> None:
    """A supervisor asks with every tick for as long as a source does not end: a loop that stands still must not collect that."""
    engine, receiver = LeanEngine(), Deaf()
    gate, stands = threading.Event(), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"rtsp://127.0.0.1:{server.getsockname()[1]}/main"
        source = engine(SourceRequest("gate", lambda: Endpoint(url)), receiver, SYSTEM_CLOCK)
        source.start()
        loop = source._loop
        assert loop is not None

        def stand() -> None:
            stands.set()
            gate.wait(30)

        assert loop.call(stand)
        assert stands.wait(30)
        waiting = len(loop._calls)
        for _ in range(1000):
            source.stop()
        assert len(loop._calls) <= waiting + 2  # one stop, and the connection that a thread may have looked up meanwhile
        gate.set()
        assert receiver.over.wait(30)
        assert source.join(30)


def test_a_report_that_was_heard_a_moment_ago_is_answered_however_late_the_round_is() -> None:
    """A round's `now` is older than what was read in it: the delay since the last report is 0 then, and no session ends by it."""
    sequence = Numbers()
    assert sequence.accept(7, 0x1234)
    sequence.expected = 8
    late, punctual = (receiver_report(1, sequence, 0xABCD, delay_s) for delay_s in (-5.0, 0.0))
    assert late == punctual


def test_a_loop_that_is_late_does_not_say_that_it_has_heard_everything() -> None:
    """Else a machine that is behind would end the sessions of cameras whose pictures it has not read yet."""
    clock = ManualClock()
    loop, flood = Loop(clock), Flood(clock)
    said: list[tuple[float, float]] = []  # while a read lasts: how late it is, how late the loop says that it is
    try:
        loop.add(flood)
        loop.watch(flood, playing=True, writing=False)
        read = flood.readable

        def readable(buffer: bytearray, view: memoryview) -> bool:
            began_s = clock.monotonic_s()
            read(buffer, view)
            said.append((clock.monotonic_s() - began_s, clock.monotonic_s() - loop.swept_s))
            return True

        flood.readable = readable  # type: ignore[method-assign]
        loop.run(lambda: len(said) < 5)
    finally:
        flood.close()
    assert all(claimed >= late == 1.0 for late, claimed in said)
