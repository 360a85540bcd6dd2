"""The thread in which all engines run: it waits for answers and ticks, steps every engine, and serves calls from outside.

    answers of appenders (epoll) --+
    posted callables (eventfd) ----+--> pump ports --> step engines --> pump ports --> wait until the next tick
    ticks -------------------------+

Never the host's loop: a host that blocks for ten seconds loses nothing, and a failover does not wait for it.
Nothing in here may block: ports talk to workers, observers only queue.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final, TypeVar

from nvrstore.clock import Clock
from nvrstore.errors import ClosedError
from nvrstore.replicate.engine import JournalEngine
from nvrstore.replicate.port import Port
from nvrstore.telemetry import get_logger

log = get_logger("replicate.hub")

T = TypeVar("T")

PAUSE_S: Final = 0.25  # a longer time between two rounds is the thread's own lateness, not the targets'
WAIT_S_MIN: Final = 0.005  # let a few answers and fragments gather
WAIT_S_MAX: Final = 0.1
ASK_S: Final = 0.1  # how often who asked looks whether the thread has ended
CLOCK_STEP_S: Final = 0.5  # a wall clock that moves by more than this against the monotonic one has stepped


class Hub:
    """Ports and engines of one recorder, and their thread."""

    def __init__(self, clock: Clock, *, on_failure: Callable[[BaseException], None]) -> None:
        """`on_failure` is told, in the thread, when a bug ends it: the recorder has failed then."""
        self._clock, self._on_failure = clock, on_failure
        self.ports: list[Port] = []
        self.engines: list[JournalEngine] = []
        self._posted: deque[Callable[[], None]] = deque()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.epoll()
        self._poll.register(self._wake_fd, select.EPOLLIN)
        self._registered: dict[Port, tuple[int, int]] = {}  # generation, descriptor
        self._thread = threading.Thread(target=self._run, name="nvrstore-hub", daemon=True)
        self._stop = False
        self._closed = False
        self._lock = threading.Lock()  # nobody writes to the descriptor of an event that was closed
        self._utc_offset_s = clock.utc_ns() / 1e9 - clock.monotonic_s()
        self._heard = False  # answers came at the end of the round
        self.resumed_s = 0.0
        self.late_s_max = 0.0
        self.rounds = 0

    def add(self, ports: Sequence[Port], engines: Sequence[JournalEngine]) -> None:
        """Before `start`."""
        self.ports.extend(ports)
        self.engines.extend(engines)

    def start(self) -> None:
        self._thread.start()

    # --- from any thread

    def wake(self) -> None:
        """Have a round soon."""
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._wake_fd, 1)

    def post(self, call: Callable[[], None]) -> None:
        """Run `call` in the thread, in order."""
        self._posted.append(call)
        self.wake()

    def suspect(self, target: str) -> None:
        """Something beside recording found `target` broken: look at once, and let that decide."""

        def look() -> None:
            for port in self.ports:
                if port.name == target:
                    port.suspect()

        self.post(look)

    def ask(self, call: Callable[[], T], timeout_s: float = 5.0) -> T:
        """Run `call` in the thread and return what it returns. Raises ClosedError when the hub has ended."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - it belongs to the caller
                future.set_exception(error)

        if self._closed:
            raise ClosedError("the recorder has ended")
        self.post(run)
        deadline_s = self._clock.monotonic_s() + timeout_s
        while not future.done():
            if self._closed:
                raise ClosedError("the recorder has ended")
            try:
                return future.result(min(ASK_S, max(0.0, deadline_s - self._clock.monotonic_s())))
            except TimeoutError:
                if not future.done() and self._clock.monotonic_s() >= deadline_s:
                    raise
        return future.result()

    def stop(self, timeout_s: float) -> bool:
        """End the thread after its present round; False when it did not end in time."""
        self._stop = True
        if self._thread.is_alive():
            self.wake()
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            return False
        self._release()
        return True

    # --- the thread

    def _run(self) -> None:
        try:
            last_s = self._clock.monotonic_s()
            while not self._stop:
                now_s = self._clock.monotonic_s()
                if now_s - last_s > PAUSE_S + WAIT_S_MAX:
                    self.resumed_s = now_s
                    for port in self.ports:
                        port.paused_s = now_s - last_s
                    self.late_s_max = max(self.late_s_max, now_s - last_s)
                last_s = now_s
                self.round()
                self._wait()
        except BaseException as error:  # noqa: BLE001 - a bug here must be heard, not swallowed with the thread
            log.error("hub.failed", error=repr(error))
            self._on_failure(error)
        finally:
            self._release()

    def round(self) -> None:
        """One round: everything that is due."""
        self.rounds += 1
        while self._posted:
            self._posted.popleft()()
        self._watch_clock()
        for port in self.ports:
            port.pump()
            port.tick()
        for engine in sorted(self.engines, key=_served_s):  # journals share targets: who waits longest has the next place
            engine.step(resumed_s=self.resumed_s)
        # What was answered meanwhile is taken now, and nothing will wake us for it: the engines must see it before anybody waits.
        self._heard = False
        for port in self.ports:
            self._heard |= port.pump()

    def _watch_clock(self) -> None:
        before_s, utc_ns, after_s = self._clock.monotonic_s(), self._clock.utc_ns(), self._clock.monotonic_s()
        if after_s - before_s > CLOCK_STEP_S / 10:
            return  # stopped between the two readings: they do not belong together
        offset_s = utc_ns / 1e9 - before_s
        stepped_s = offset_s - self._utc_offset_s
        self._utc_offset_s = offset_s  # slow slewing by NTP is followed, a step is seen in one round
        if abs(stepped_s) > CLOCK_STEP_S:
            log.warning("clock.stepped", seconds=round(stepped_s, 3))
            for engine in self.engines:
                engine.clock_stepped(stepped_s)

    def _wait(self) -> None:
        self._register()
        due_s = min((engine.due_s for engine in self.engines), default=float("inf"))
        wait_s = min(max(due_s - self._clock.monotonic_s(), WAIT_S_MIN), WAIT_S_MAX)
        for fd, _ in self._poll.poll(0 if self._posted or self._heard else wait_s):
            if fd == self._wake_fd:
                os.eventfd_read(self._wake_fd)

    def _register(self) -> None:
        """Follow the appenders as they come and go."""
        for port in self.ports:
            known = self._registered.get(port)
            if known is not None and (port.appender is None or known[0] != port.generation):
                try:
                    self._poll.unregister(known[1])
                except (OSError, ValueError):
                    pass  # the descriptor was closed with its appender: epoll has forgotten it by itself
                del self._registered[port]
                known = None
            if known is None and port.appender is not None:
                fd = port.appender.fileno()
                self._poll.register(fd, select.EPOLLIN)
                self._registered[port] = (port.generation, fd)

    def _release(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._poll.close()
            os.close(self._wake_fd)


def _served_s(engine: JournalEngine) -> float:
    """When the last batch of a journal was built."""
    return max((lane.built_s for lane in engine.lanes), default=0.0)
