"""One thread and its epolls: all sockets of the lean engine.

    urgent   wake-ups, connections that are being set up or began to play a moment ago      at once
    media    connections that play                                                         every `gather_s`, all of them

Reading each packet when it comes would cost a wake-up and a system call each. So what comes is left in the kernel for a while,
and one `recv_into` per connection then takes many packets out, into one buffer that all share: it stays in the cache, and 600
cameras need no more memory for it than one. Several frames at once cost a third less than one by one,
so the more cameras there are, the longer they wait. The wait is never the same twice: no camera's frames can stay in step with it,
always read late, and be placed too late in time.

Other threads talk to it by `call` alone. A connection that raises is its own trouble: it is told, and the loop goes on.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable
from random import random
from typing import Final, Protocol

from nvrstore.clock import Clock
from nvrstore.telemetry import get_logger

GATHER_S_MIN: Final = 0.02  # half a frame's time: live pictures are not late where there are few cameras
GATHER_S_MAX: Final = 0.2  # 100 KB of a camera of 4 Mbit/s; for more the kernel keeps more, as it sees how much is read at once
GATHER_S_EACH: Final = 0.001  # per camera that plays
TIMER_S: Final = 0.1  # connections are asked this often whether something is due
TURN: Final = 32  # so many of those that play are read before the urgent ones are looked at again
BUFFER_BYTES: Final = 1 << 20
_IN, _OUT = 1, 4  # EPOLLIN, EPOLLOUT: the same everywhere epoll is

_log = get_logger("ingest.lean")


class Handler(Protocol):
    """A connection. Everything is called in the loop's thread."""

    sock: socket.socket

    def readable(self, buffer: bytearray, view: memoryview) -> bool:
        """There may be something to read, or an error. Whether anything was read."""

    def writable(self) -> None:
        """The socket is connected, or takes more."""

    def due(self, now_s: float) -> None:
        """Time passes: called every TIMER_S."""

    def broke(self, error: Exception) -> None:
        """One of the others raised."""


class Loop:
    """Runs handlers. `run` is a thread's body; `call` is for everybody; the rest is for handlers."""

    def __init__(self, clock: Clock) -> None:
        self.clock: Final = clock
        self._calls: deque[Callable[[], None]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._closed = False
        self._urgent, self._media, self._both = select.epoll(), select.epoll(), select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._playing: set[int] = set()
        self.swept_s = clock.monotonic_s()  # what had come until then was read, from all that play
        self._urgent.register(self._wake, _IN)
        self._both.register(self._urgent.fileno(), _IN)
        self._both.register(self._media.fileno(), _IN)
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)

    def call(self, function: Callable[[], None]) -> bool:
        """Let the loop's thread run `function` soon. False: there is no loop any more."""
        with self._lock:
            if self._closed:
                return False
            self._calls.append(function)
            os.eventfd_write(self._wake, 1)
        return True

    def run(self, goes_on: Callable[[], bool]) -> None:
        """Until `goes_on` says no, which is asked after every round."""
        clock = self.clock
        sweep_s = timed_s = clock.monotonic_s()
        while goes_on():
            now_s = clock.monotonic_s()
            if now_s - timed_s >= TIMER_S:
                timed_s = now_s
                for handler in list(self._handlers.values()):
                    self._time(handler, now_s)
            wait_s = sweep_s - now_s
            if wait_s > 0:
                self._attend(self._urgent.poll(min(wait_s, TIMER_S)))
                continue
            events = self._media.poll(0, len(self._playing) or 1)
            if events:
                sweep_s = now_s + self.gather_s() * (0.7 + 0.6 * random())
                self._sweep(events)
            self.swept_s = now_s
            if not events:
                self._both.poll(max(0.0, timed_s + TIMER_S - now_s))
                self._attend(self._urgent.poll(0))
        self.close()

    def gather_s(self) -> float:
        """How long packets wait in the kernel, on average."""
        return min(GATHER_S_MIN + GATHER_S_EACH * len(self._playing), GATHER_S_MAX)

    def close(self) -> None:
        """No calls are taken any more."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for epoll in (self._urgent, self._media, self._both):
            epoll.close()
        os.close(self._wake)

    def _sweep(self, events: list[tuple[int, int]]) -> None:
        """Read from all that play, a few at a time: where a sweep takes long, sessions must be set up and ended all the same."""
        playing = [(fd, event, self._handlers.get(fd)) for fd, event in events]
        for at in range(0, len(playing), TURN):
            self._serve(playing[at : at + TURN])
            self._attend(self._urgent.poll(0))

    def _attend(self, events: list[tuple[int, int]]) -> None:
        self._serve([(fd, event, self._handlers.get(fd)) for fd, event in events])

    def _serve(self, events: list[tuple[int, int, Handler | None]]) -> None:
        for fd, event, handler in events:
            if fd == self._wake:
                os.eventfd_read(self._wake)
                while self._calls:
                    self._calls.popleft()()
                continue
            if handler is None or self._handlers.get(fd) is not handler:
                continue  # it was closed meanwhile; its number may be another one's already
            try:
                if event & _OUT:
                    handler.writable()
                if event & ~_OUT and self._handlers.get(fd) is handler:
                    handler.readable(self._buffer, self._view)
            except Exception as error:  # noqa: BLE001  # one camera's trouble, whatever it is, stays its own
                handler.broke(error)

    def _time(self, handler: Handler, now_s: float) -> None:
        try:
            handler.due(now_s)
        except Exception as error:  # noqa: BLE001  # as above
            handler.broke(error)

    # --- for handlers

    def read(self, handler: Handler) -> bool:
        """Read now what has come, without waiting for a turn. Whether anything was read."""
        return handler.readable(self._buffer, self._view)

    def add(self, handler: Handler) -> None:
        """Watch a socket that is being connected."""
        fd = handler.sock.fileno()
        self._handlers[fd] = handler
        self._urgent.register(fd, _OUT)

    def watch(self, handler: Handler, *, playing: bool, writing: bool) -> None:
        """What to watch a socket for from now on."""
        fd = handler.sock.fileno()
        events = _IN | (_OUT if writing else 0)
        wanted, other = (self._media, self._urgent) if playing else (self._urgent, self._media)
        if (fd in self._playing) is playing:
            wanted.modify(fd, events)
            return
        other.unregister(fd)
        wanted.register(fd, events)
        (self._playing.add if playing else self._playing.discard)(fd)

    def remove(self, handler: Handler) -> None:
        """Forget a socket, before it is closed."""
        fd = handler.sock.fileno()
        if self._handlers.pop(fd, None) is not None:
            (self._media if fd in self._playing else self._urgent).unregister(fd)
            self._playing.discard(fd)
