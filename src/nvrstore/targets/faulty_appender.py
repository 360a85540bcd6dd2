"""The appender of a target that fails on demand: see faulty.py.

    submit -> line -> (fault?) -> appender below -> line -> answers, in order

The line belongs to the thread that uses the appender; a fault that is removed elsewhere only rings the bell (an eventfd),
and the line moves on at the next `answers`. An abandoned appender whose call was withheld is not gone before the fault is.
"""

from __future__ import annotations

import errno
import os
import select
import threading
from collections import deque
from dataclasses import dataclass, replace

from nvrstore.clock import Clock
from nvrstore.limits import BLOCK_BYTES
from nvrstore.targets.contract import Answer, Appender, Request, Verb
from nvrstore.targets.faults import Fault, Kind, Rules


@dataclass(slots=True)
class _Item:
    number: int
    request: Request
    since_s: float
    started: bool = False
    inner_number: int = 0
    answer: Answer | None = None
    withheld: Fault | None = None
    ready_s: float = 0.0
    short: bool = False


class FaultyAppender:
    """See the module."""

    def __init__(self, inner: Appender, rules: Rules, clock: Clock) -> None:
        self.inner, self._rules, self._clock = inner, rules, clock
        self._line: deque[_Item] = deque()
        self._ready: list[Answer] = []
        self._names: dict[int, str] = {}
        self._refused: set[int] = set()
        self._number = 0
        self._stuck_on: Fault | None = None
        self._closed = self._killed = False
        self._timers: list[threading.Timer] = []
        self._bell_lock = threading.Lock()
        self._bell: int = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._bell, select.EPOLLIN)
        self._epoll.register(inner.fileno(), select.EPOLLIN)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def ring(self) -> None:
        """Wake the thread that uses this appender. From any thread."""
        with self._bell_lock:
            if self._bell >= 0:
                os.eventfd_write(self._bell, 1)

    def submit(self, request: Request) -> int:
        self._number += 1
        if request.verb is Verb.OPEN:
            self._names[request.handle] = request.path2
            self._refused.discard(request.handle)
        self._line.append(_Item(self._number, request, self._clock.monotonic_s()))
        self._advance()
        if self._line and self._line[0].answer is not None:
            self.ring()
        return self._number

    def answers(self) -> list[Answer]:
        with self._bell_lock:
            if self._bell >= 0:
                try:
                    os.eventfd_read(self._bell)
                except BlockingIOError:
                    pass  # not rung
        if not self._closed:
            self._collect()
        ready, self._ready = self._ready, []
        return ready

    def _collect(self) -> None:
        before = -1
        while before != (before := self._left()):  # what is started now may have been answered at once
            self._take(self.inner.answers())
            self._advance()
            while self._line and self._line[0].answer is not None and not self._held(self._line[0]):
                item = self._line.popleft()
                answer = item.answer
                if answer is not None:
                    self._ready.append(answer)

    def _left(self) -> int:
        """Falls whenever something moved on."""
        return sum(not item.started for item in self._line) + len(self._line)

    def _take(self, answers: list[Answer]) -> None:
        waiting = {item.inner_number: item for item in self._line if item.inner_number}
        for answer in answers:
            item = waiting.get(answer.number)
            if item is not None:
                cut = item.short and answer.ok
                item.answer = Answer(item.number, errno.EIO if cut else answer.errno, 0 if cut else answer.value, answer.data)

    def _held(self, item: _Item) -> bool:
        if item.withheld is not None and not item.withheld.active:
            item.withheld = None
        return item.withheld is not None or item.ready_s > self._clock.monotonic_s()

    def _advance(self) -> None:
        """Start what stands behind nothing that is withheld."""
        for item in self._line:
            if not item.started:
                self._start(item)
            elif item.withheld is not None and not item.withheld.active:
                item.withheld = None
                if not item.inner_number and item.answer is None:
                    self._forward(item, item.request)
            if self._held(item):
                return

    def _start(self, item: _Item) -> None:
        item.started = True
        item.since_s = self._clock.monotonic_s()
        request = item.request
        if self._killed:
            item.answer = Answer(item.number, errno.ESRCH, -1)
            return
        if request.verb is Verb.APPEND and request.handle in self._refused:
            item.answer = Answer(item.number, errno.EIO)
            return
        fault = self._rules.strike(request, self._names.get(request.handle, ""))
        if fault is None or (fault.kind is Kind.AWAY and request.verb is not Verb.OPEN):
            self._forward(item, request)
            return
        match fault.kind:
            case Kind.FAIL | Kind.AWAY:
                self._fail(item, fault.errno)
            case Kind.HANG:
                item.withheld = fault
            case Kind.HANG_DONE:
                item.withheld = fault
                self._forward(item, request)
            case Kind.SLOW:
                self._forward(item, request)
                item.ready_s = item.since_s + fault.delay_s
                timer = threading.Timer(fault.delay_s, self.ring)
                timer.daemon = True
                self._timers = [*(t for t in self._timers if t.is_alive()), timer]
                timer.start()
            case Kind.SHORT if request.verb is Verb.APPEND:
                half = request.length // 2 // BLOCK_BYTES * BLOCK_BYTES
                self._refused.add(request.handle)
                if half:
                    item.short = True
                    self._forward(item, replace(request, length=half))
                else:
                    item.answer = Answer(item.number, errno.EIO)
            case Kind.LIE if request.verb is Verb.APPEND:
                item.answer = Answer(item.number, 0, request.length)
            case _:
                self._forward(item, request)

    def _forward(self, item: _Item, request: Request) -> None:
        item.inner_number = self.inner.submit(request)

    def _fail(self, item: _Item, code: int) -> None:
        item.answer = Answer(item.number, code)
        if item.request.verb in (Verb.OPEN, Verb.APPEND):
            self._refused.add(item.request.handle)
        if item.request.verb is Verb.CLOSE:  # the descriptor is gone all the same
            self.inner.submit(item.request)

    def running_since_s(self) -> float | None:
        for item in self._line:
            if item.started and self._held(item):
                return item.since_s
        return None if self._killed else self.inner.running_since_s()

    def kill(self) -> None:
        """Its worker dies: everything outstanding is answered with ESRCH. Called by the thread that uses it, or while that one waits."""
        self._killed = True
        for item in self._line:
            item.started, item.withheld, item.ready_s, item.answer = True, None, 0.0, Answer(item.number, errno.ESRCH, -1)
        self.ring()

    def abandon(self) -> None:
        held = next((item.withheld for item in self._line if item.withheld is not None), None)
        self._stuck_on = held
        self.end()
        self.inner.abandon()

    def wind_up(self) -> None:
        self.inner.wind_up()

    @property
    def lives(self) -> bool:
        """Neither given up, ended nor killed."""
        return not (self._closed or self._killed)

    def stuck(self) -> bool:
        """Given up, while a call of it was withheld that still is."""
        return self._stuck_on is not None and self._stuck_on.active

    def gone(self) -> bool:
        if self._killed and not self._closed:
            self.inner.abandon()
        return not self.stuck() and self.inner.gone()

    def close(self, timeout_s: float) -> bool:
        if any(self._held(item) for item in self._line):
            self.abandon()
            return False
        in_order = self.inner.close(timeout_s)
        self._collect()
        ready = self._ready
        self.end()
        self._ready = ready
        return in_order

    def end(self) -> None:
        """Take nothing more, and close the descriptors."""
        self._closed = True
        self._line.clear()
        self._ready.clear()
        for timer in self._timers:
            timer.cancel()
        with self._bell_lock:
            if self._bell >= 0:
                self._epoll.close()
                os.close(self._bell)
                self._bell = -1
