"""A wrapper over any target that fails on demand: the same interface, and faults that are programmed while it runs.

    faulty = FaultyTarget(target)
    fault = faulty.fail(errno.EIO)                                   everything, until `fault.remove()` or `faulty.clear()`
    faulty.fail(errno.EIO, verbs={Verb.SYNC}, path="*.mp4", after=2, times=1)     the third sync of a volume
    faulty.hang(verbs={Verb.APPEND})                                 withheld until removed; `done=True`: done, not answered
    faulty.slow(0.3) · faulty.short() · faulty.lie() · faulty.flip() · faulty.lose_identity() · faulty.kill_workers()

Requests keep their order per worker: behind one that is withheld, all wait, looks too. An appender refuses the rest of a
volume after an injected failure, as the real one does. An APPEND has no path: rules match the name that its handle opened.
"""

from __future__ import annotations

import errno
import json
import threading
import weakref
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass, replace

from nvrstore.clock import SYSTEM_CLOCK, Clock
from nvrstore.errors import TargetUnavailableError
from nvrstore.limits import ABANDONED_WORKERS_MAX
from nvrstore.targets.contract import UNAVAILABLE, Answer, Keeper, Medium, Request, Target, Verb
from nvrstore.targets.faults import Fault, Kind, Rules
from nvrstore.targets.faulty_appender import FaultyAppender
from nvrstore.targets.look import IDENTITY_PATH
from nvrstore.targets.pool import Pool


class FaultyTarget:
    """See the module."""

    def __init__(self, inner: Target, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.inner, self.clock = inner, clock
        self.rules = Rules(self._changed)
        self._appenders: weakref.WeakSet[FaultyAppender] = weakref.WeakSet()
        self._keeper = FaultyKeeper(inner.keeper, self.rules, clock, self._own_stuck, self._spoken_for)

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def medium(self) -> Medium:
        return self.inner.medium

    @property
    def keeper(self) -> FaultyKeeper:
        return self._keeper

    def start_appender(self, pool: Pool) -> FaultyAppender:
        if self._spoken_for() >= ABANDONED_WORKERS_MAX:
            raise TargetUnavailableError(f"target {self.name!r}: workers are stuck", target=self.name)
        appender = FaultyAppender(self.inner.start_appender(pool), self.rules, self.clock)
        self._appenders.add(appender)
        return appender

    def first_failure_s(self) -> float | None:
        """Of the target below: a failure that is only simulated in the answers says nothing about time."""
        return self.inner.first_failure_s()

    def workers_stuck(self) -> int:
        return self._own_stuck() + self.inner.workers_stuck()

    def _own_stuck(self) -> int:
        return sum(appender.stuck() for appender in list(self._appenders)) + self._keeper.stuck()

    def at_rest(self) -> bool:
        return self._own_stuck() == 0 and self.inner.at_rest()

    def _spoken_for(self) -> int:
        """As in directory.py: given up while they hang, or to be given up when the target is lost."""
        return sum(appender.stuck() or appender.lives for appender in list(self._appenders)) + self._keeper.stuck()

    def close(self, timeout_s: float) -> bool:
        in_order = self._keeper.end()
        for appender in list(self._appenders):
            appender.end()
        return self.inner.close(timeout_s) and in_order

    def _changed(self) -> None:
        self._keeper.advance()
        for appender in list(self._appenders):
            appender.ring()

    # --- what a test, a drill or the demo steers

    def fail(
        self,
        code: int = errno.EIO,
        *,
        verbs: Collection[Verb] | None = None,
        path: str | None = None,
        after: int = 0,
        times: int | None = None,
    ) -> Fault:
        """Answer with an error number, and do nothing."""
        return self.rules.add(Kind.FAIL, errno=code, verbs=verbs, path=path, after=after, times=times)

    def hang(self, *, verbs: Collection[Verb] | None = None, path: str | None = None, after: int = 0, done: bool = False) -> Fault:
        """Withhold: requests are neither carried out (`done`: they are) nor answered until the fault is removed."""
        return self.rules.add(Kind.HANG_DONE if done else Kind.HANG, verbs=verbs, path=path, after=after)

    def slow(self, delay_s: float, *, verbs: Collection[Verb] | None = None, path: str | None = None, times: int | None = None) -> Fault:
        """Each request takes `delay_s` longer."""
        return self.rules.add(Kind.SLOW, delay_s=delay_s, verbs=verbs, path=path, times=times)

    def short(self, *, path: str | None = None, after: int = 0, times: int | None = 1) -> Fault:
        """Half of an APPEND or WRITE is carried out; the answer is EIO."""
        return self.rules.add(Kind.SHORT, verbs={Verb.APPEND, Verb.WRITE}, path=path, after=after, times=times)

    def lie(self, *, path: str | None = None, after: int = 0, times: int | None = 1) -> Fault:
        """An APPEND, WRITE or SYNC is answered as done, and is not."""
        return self.rules.add(Kind.LIE, verbs={Verb.APPEND, Verb.WRITE, Verb.SYNC}, path=path, after=after, times=times)

    def flip(self, *, path: str | None = None, after: int = 0, times: int | None = None) -> Fault:
        """One bit of what is read is wrong."""
        return self.rules.add(Kind.FLIP, verbs={Verb.READ}, path=path, after=after, times=times)

    def lose_identity(self) -> Fault:
        """The path leads to an empty directory; what is open goes on working."""
        return self.rules.add(Kind.AWAY, errno=errno.ENODEV)

    def kill_workers(self) -> None:
        """All workers die, as by SIGKILL. While their owner does not use them."""
        for appender in list(self._appenders):
            appender.kill()
        self._keeper.restart()

    def clear(self) -> None:
        """All faults are over."""
        self.rules.clear()


@dataclass(slots=True)
class _Item:
    request: Request
    future: Future[Answer]
    since_s: float
    started: bool = False
    done: Future[Answer] | None = None  # carried out, and withheld
    withheld: Fault | None = None
    timer: threading.Timer | None = None


class FaultyKeeper:
    """The keeper of a FaultyTarget."""

    def __init__(self, inner: Keeper, rules: Rules, clock: Clock, all_stuck: Callable[[], int], spoken_for: Callable[[], int]) -> None:
        self.inner, self._rules, self._clock = inner, rules, clock
        self._all_stuck, self._spoken_for = all_stuck, spoken_for
        self._lock = threading.RLock()
        self._line: deque[_Item] = deque()  # from the first that is withheld on
        self._stuck_on: list[Fault] = []
        self._closed = self._resting = False

    def submit(self, request: Request) -> Future[Answer]:
        item = _Item(request, Future(), self._clock.monotonic_s())
        with self._lock:
            closed = self._closed or self._resting
            if not closed:
                self._line.append(item)
        if closed:
            item.future.set_result(Answer(0, UNAVAILABLE))
        else:
            self.advance()
        return item.future

    def call(self, request: Request, timeout_s: float) -> Answer:
        future = self.submit(request)
        try:
            return future.result(timeout_s)
        except TimeoutError:
            return Answer(0, UNAVAILABLE)

    def advance(self) -> None:
        """Carry out what stands behind nothing that is withheld."""
        while True:
            with self._lock:
                if not self._line:
                    return
                item = self._line[0]
                if item.started and (item.timer is not None or (item.withheld is not None and item.withheld.active)):
                    return
                if item.started:
                    self._line.popleft()
                else:
                    item.started = True
                    fault = self._rules.strike(item.request, item.request.path)
                    if fault is not None and fault.kind in (Kind.HANG, Kind.HANG_DONE, Kind.SLOW):
                        item.since_s = self._clock.monotonic_s()
                        self._withhold(item, fault)
                        continue
                    self._line.popleft()
                    if fault is not None:
                        self._strike(item, fault)
                        continue
            if item.done is not None:
                _pass_on(item.done, item.future)
            else:
                self._forward(item.future, item.request)

    def _withhold(self, item: _Item, fault: Fault) -> None:
        if fault.kind is Kind.SLOW:
            item.timer = threading.Timer(fault.delay_s, self._late, (item,))
            item.timer.daemon = True
            item.timer.start()
            return
        item.withheld = fault
        if fault.kind is Kind.HANG_DONE:
            item.done = self.inner.submit(item.request)

    def _late(self, item: _Item) -> None:
        with self._lock:
            item.timer = None
        self.advance()

    def _strike(self, item: _Item, fault: Fault) -> None:
        request, future = item.request, item.future
        match fault.kind:
            case Kind.FAIL:
                _resolve(future, Answer(0, fault.errno))
            case Kind.AWAY:
                answer = _away(request)
                if answer is None:
                    self._forward(future, request)
                else:
                    _resolve(future, answer)
            case Kind.LIE:
                _resolve(future, Answer(0, 0, len(request.data)))
            case Kind.SHORT if request.verb is Verb.WRITE:
                half = replace(request, data=bytes(request.data)[: len(request.data) // 2])
                self.inner.submit(half).add_done_callback(lambda _: _resolve(future, Answer(0, errno.EIO)))
            case Kind.FLIP:
                self.inner.submit(request).add_done_callback(lambda done: _resolve(future, _flipped(done.result())))
            case _:
                self._forward(future, request)

    def _forward(self, future: Future[Answer], request: Request) -> None:
        _pass_on(self.inner.submit(request), future)

    def running_since_s(self) -> float | None:
        with self._lock:
            if self._line and self._line[0].started:
                return self._line[0].since_s
        return self.inner.running_since_s()

    def stuck(self) -> int:
        """Workers that were replaced while a call was withheld that still is."""
        with self._lock:
            self._stuck_on = [fault for fault in self._stuck_on if fault.active]
            return len(self._stuck_on)

    def restart(self) -> bool:
        with self._lock:
            hangs = any(item.withheld is not None and item.withheld.active for item in self._line)
        if hangs and self._spoken_for() >= ABANDONED_WORKERS_MAX:
            return False
        waiting = self._give_up()
        for item in waiting:
            _resolve(item.future, Answer(0, UNAVAILABLE))
        return self._all_stuck() < ABANDONED_WORKERS_MAX and self.inner.restart()

    def rest(self) -> None:
        with self._lock:
            self._resting = True
        self.inner.rest()

    def wake(self) -> None:
        self.inner.wake()
        with self._lock:
            self._resting = False

    def close(self, timeout_s: float) -> bool:
        return self.end() & self.inner.close(timeout_s)

    def end(self) -> bool:
        """Answer what is withheld, and take nothing more; False when there was something."""
        with self._lock:
            self._closed = True
        waiting = self._give_up()
        for item in waiting:
            _resolve(item.future, Answer(0, UNAVAILABLE))
        return not waiting

    def _give_up(self) -> list[_Item]:
        with self._lock:
            waiting = list(self._line)
            self._line.clear()
            for item in waiting:
                if item.timer is not None:
                    item.timer.cancel()
            self._stuck_on += [item.withheld for item in waiting if item.withheld is not None and item.withheld.active]
            return waiting


def _away(request: Request) -> Answer | None:
    """What an empty directory without identity answers; None where it makes no difference."""
    match request.verb:
        case Verb.LOOK:
            claims = dict.fromkeys(json.loads(bytes(request.data))["epochs"], "")
            seen = {"identity": None, "claims": claims, "block": "", "counter_errno": 0, "total_bytes": 0, "free_bytes": 0}
            return Answer(0, data=json.dumps(seen).encode())
        case Verb.LIST if not request.path:
            return Answer(0, data=b"[]")
        case Verb.SPACE | Verb.ABOUT:
            return None
        case Verb.LIST | Verb.STAT | Verb.READ | Verb.SYNC:
            return Answer(0, errno.ENOENT if request.path else 0)
        case Verb.PUT if request.path == IDENTITY_PATH:
            return None
        case _:
            return Answer(0, errno.ENODEV)


def _flipped(answer: Answer) -> Answer:
    if not answer.data:
        return answer
    data = bytearray(answer.data)
    data[len(data) // 2] ^= 0x10
    return replace(answer, data=bytes(data))


def _pass_on(below: Future[Answer], future: Future[Answer]) -> None:
    below.add_done_callback(lambda done: _resolve(future, done.result()))


def _resolve(future: Future[Answer], answer: Answer) -> None:
    if not future.done() and future.set_running_or_notify_cancel():
        future.set_result(answer)
