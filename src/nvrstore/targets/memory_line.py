"""One worker of the target in memory: a line of requests, carried out and answered when the target says so.

The line outlives the client that gave it up: its head is a system call that runs, and will still be carried out.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from nvrstore.targets.contract import Answer, Request, Verb
from nvrstore.targets.memory_files import fail
from nvrstore.worker import wire

if TYPE_CHECKING:
    from nvrstore.targets.memory import MemoryTarget


@dataclass(slots=True)
class Pending:
    number: int
    request: Request
    deliver: Callable[[Answer], None]
    since_s: float
    answer: Answer | None = None  # carried out, not yet delivered


class Line:
    """One line of requests. `line` outlives the client that gave it up: the running call is still to be carried out."""

    def __init__(self, target: MemoryTarget) -> None:
        self.target = target
        self.line: deque[Pending] = deque()
        self.abandoned = False
        self.dead = False
        self.resting = False  # takes nothing more; what it has is finished
        self.killed = False  # abandoned because somebody killed it
        self.failed_s: float | None = None  # as FAILED_NS of a real worker's stamps
        target.enlist(self)

    def put(self, request: Request, deliver: Callable[[Answer], None], *, first: bool = False) -> int:
        with self.target.lock:
            pending = Pending(self.target.next_number(), request, deliver, self.target.clock.monotonic_s())
            if first and len(self.line) > 1:
                self.line.insert(1, pending)  # behind the running call
            else:
                self.line.append(pending)
            deliveries = [] if self.target.held else self.finish(len(self.line))
        for give, answer in deliveries:
            give(answer)
        return pending.number

    def perform_next(self) -> None:
        for pending in self.line:
            if pending.answer is None:
                pending.answer = self._execute(pending)
                return

    def finish(self, count: int) -> list[tuple[Callable[[Answer], None], Answer]]:
        """Carry out the first `count`; returns what is to be delivered, once the lock is released."""
        deliveries = []
        for _ in range(min(count, len(self.line))):
            pending = self.line[0]
            answer = pending.answer or self._execute(pending)
            self.line.popleft()
            if self.line:
                self.line[0].since_s = self.target.clock.monotonic_s()
            if not self.abandoned:
                deliveries.append((pending.deliver, answer))
        if self.abandoned and not self.line:
            self.target.dismiss(self)
        return deliveries

    def _execute(self, pending: Pending) -> Answer:
        request, fault = pending.request, self.target.fault
        try:
            if code := fault(request) if fault is not None else 0:
                raise fail(code)
            self.target.guard(request)
            value, data = self.carry_out(request)
            if request.verb is Verb.LOOK:
                self.failed_s = None
            return Answer(pending.number, 0, value, data)
        except OSError as error:
            self.failed(request)
            if error.errno in wire.HARD_ERRORS and request.verb is not Verb.READ and self.failed_s is None:
                self.failed_s = self.target.clock.monotonic_s()
            return Answer(pending.number, error.errno or errno.EIO)

    def running_since_s(self) -> float | None:
        with self.target.lock:
            return self.line[0].since_s if self.line else None

    def forsake(self) -> list[Pending]:
        """Keep the running call only; returns what was dropped behind it."""
        with self.target.lock:
            self.abandoned = True
            running = self.line and self.target.held and self.line[0].answer is None
            dropped = list(self.line)[1 if running else 0 :]
            while len(self.line) > (1 if running else 0):
                self.line.pop()
            if not self.line:
                self.target.dismiss(self)
            return dropped

    def carry_out(self, request: Request) -> tuple[int, bytes]:
        raise NotImplementedError

    def failed(self, request: Request) -> None:
        """Hook: the request failed."""

    def tear(self, request: Request, rng: Random) -> None:
        """Hook: the power goes while the request runs."""

    def close(self, timeout_s: float) -> bool:
        raise NotImplementedError

    def die(self, *, running: bool = False) -> None:
        raise NotImplementedError
