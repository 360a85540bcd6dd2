"""Our end of a keeper's channel: `contract.Keeper` over a worker that runs somewhere else.

    submit -> backlog (looks first) -> channel + slot of shared memory -> worker -> reader thread -> future

The reader thread waits for this worker's answers alone; it touches no target. Larger data travels in one of eight slots
of 1 MiB: a slot belongs to its request until that is answered, and the slots of an abandoned worker are never used again.
A worker that died is started anew by the next request, at most once a second. One that lives is given up only where its
target allows it (directory.py): else it stays, with all that it was asked.

What was written by a worker that died before its SYNC is unknown for good: SYNC of such a path is answered with EIO, once.
"""

from __future__ import annotations

import errno
import mmap
import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.errors import ForkedError, TargetUnavailableError
from nvrstore.limits import KEEPER_PIECE_BYTES, MESSAGE_BYTES_MAX
from nvrstore.targets.appender_client import PATH_BYTES_MAX, pack, running_since_s, understood, unpack
from nvrstore.targets.contract import APPENDER_VERBS, UNAVAILABLE, Answer, Request, Verb
from nvrstore.targets.process import Worker
from nvrstore.telemetry import get_logger
from nvrstore.worker import wire

_log = get_logger(__name__)

SENT_MAX: Final = 32  # requests that the worker holds; the rest waits here, where it can be taken back
LOOKS_MAX: Final = 8  # looks that it may hold beyond that: they must not wait for copies
BACKLOG_MAX: Final = 1024  # beyond it a request is refused with EBUSY: nobody waits for that many any more
INLINE_BYTES_MAX: Final = 32_768  # data that still travels in a message
RESTART_S: Final = 1.0  # between two starts of a worker that keeps dying
assert wire.SLOT_BYTES == KEEPER_PIECE_BYTES, "a slot holds the largest piece"
assert INLINE_BYTES_MAX + 2 * PATH_BYTES_MAX < MESSAGE_BYTES_MAX, "what is inline fits a message, with two paths of any length"
_LARGE_ANSWERS: Final = frozenset({Verb.READ, Verb.LIST})


@dataclass(slots=True)
class _Asked:
    request: Request
    future: Future[Answer]
    number: int = 0
    slot: int = -1

    @property
    def needs_slot(self) -> bool:
        return self.request.verb in _LARGE_ANSWERS or len(self.request.data) > INLINE_BYTES_MAX

    def resolve(self, answer: Answer) -> None:
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_result(answer)


class _Life:
    """One worker with its slots, its reader and what it was asked."""

    def __init__(self, worker: Worker, memory: mmap.mmap) -> None:
        self.worker, self.memory = worker, memory
        self.free = list(range(wire.SLOTS))
        self.sent: dict[int, _Asked] = {}
        self.greeted = False
        self.reader: threading.Thread | None = None


class KeeperClient:
    """See the module. `start` starts a worker over the given memory, or raises TargetUnavailableError; `give_up` kills one,
    or says False: it may not be; `learn` is given each new worker's answer to ABOUT, in the reader thread."""

    def __init__(
        self, target: str, start: Callable[[int], Worker], give_up: Callable[[Worker], bool], learn: Callable[[Answer], None]
    ) -> None:
        self._target, self._start, self._give_up, self._learn = target, start, give_up, learn
        self._owner = os.getpid()
        self._lock = threading.RLock()
        self._life: _Life | None = None
        self._started_s = 0.0
        self._backlog: deque[_Asked] = deque()
        self._number = 0
        self._closed = self._resting = False
        self._woken = False  # its rest ends when the present worker has
        self._unsynced: set[str] = set()  # written by the present worker, and not synced
        self._lost: set[str] = set()  # written by one that died

    def submit(self, request: Request) -> Future[Answer]:
        self._check_owner()
        if request.verb in APPENDER_VERBS:
            raise ValueError(f"a keeper does not {request.verb.name}")
        asked = _Asked(request, Future())
        refusal = 0
        with self._lock:
            if len(request.data) > wire.SLOT_BYTES:
                refusal = errno.EINVAL
            elif max(len(os.fsencode(request.path)), len(os.fsencode(request.path2))) > PATH_BYTES_MAX:
                refusal = errno.ENAMETOOLONG
            elif len(self._backlog) >= BACKLOG_MAX:
                refusal = errno.EBUSY
            elif self._closed or not self._alive():
                refusal = UNAVAILABLE
            elif request.verb is Verb.SYNC and request.path in self._lost:
                self._lost.remove(request.path)
                refusal = errno.EIO
            else:
                if request.verb in (Verb.PREPARE, Verb.UNLINK):
                    self._lost.discard(request.path)
                if request.verb is Verb.LOOK:
                    self._backlog.appendleft(asked)
                else:
                    self._backlog.append(asked)
                self._pump()
        if refusal:
            asked.resolve(Answer(0, refusal))
        return asked.future

    def call(self, request: Request, timeout_s: float) -> Answer:
        future = self.submit(request)
        try:
            return future.result(timeout_s)
        except TimeoutError:
            future.cancel()  # takes it back where it was not sent yet
            return Answer(0, UNAVAILABLE)

    def running_since_s(self) -> float | None:
        with self._lock:
            return running_since_s(self._life.worker, self._life.greeted) if self._life else None

    def restart(self) -> bool:
        self._check_owner()
        with self._lock:
            life = self._life
            if life is not None and not self._give_up(life.worker):
                return False
        if life is not None:
            self._end_life(life, "it was replaced")
        with self._lock:
            self._started_s = 0.0
            return not self._closed and self._alive()

    def rest(self) -> None:
        self._check_owner()
        with self._lock:
            self._resting, self._woken = True, False
            life, waiting = self._life, list(self._backlog)
            self._backlog.clear()
            if life is not None:
                _hang_up(life)
        for asked in waiting:
            asked.resolve(Answer(0, UNAVAILABLE))

    def wake(self) -> None:
        self._check_owner()
        with self._lock:
            life = self._life
            if life is not None and not self._give_up(life.worker):
                self._woken = True  # once this one is gone: it would be one too many
                return
        if life is not None:
            self._end_life(life, "it had not come to rest")
        with self._lock:
            self._resting, self._started_s = False, 0.0

    def close(self, timeout_s: float) -> bool:
        self._check_owner()
        with self._lock:
            self._closed = True
            life, waiting = self._life, list(self._backlog)
            self._backlog.clear()
        for asked in waiting:
            asked.resolve(Answer(0, UNAVAILABLE))
        if life is None:
            return True
        _hang_up(life)
        in_order = life.worker.wait(timeout_s)
        reader = life.reader
        self._end_life(life, "" if in_order else "it did not end in time")
        if reader is not None and reader is not threading.current_thread():
            reader.join(timeout_s)
        return in_order

    def _check_owner(self) -> None:
        if os.getpid() != self._owner:
            raise ForkedError("this keeper belongs to the process that was forked")

    # --- the worker

    def _alive(self) -> bool:
        """Whether there is a worker, after starting one where there is none."""
        if self._resting:
            return False
        if self._life is not None:
            return True
        now_s = SYSTEM_CLOCK.monotonic_s()
        if self._started_s and now_s - self._started_s < RESTART_S:
            return False
        self._started_s = now_s
        try:
            worker, memory = self._start_over_memory()
        except (TargetUnavailableError, OSError) as error:  # OSError: no descriptor is left
            _log.warning("keeper.failed", target=self._target, why=str(error))
            return False
        life = self._life = _Life(worker, memory)
        life.reader = threading.Thread(target=self._read, args=(life,), name=f"nvrstore-answers-{self._target}", daemon=True)
        life.reader.start()
        about = _Asked(Request(Verb.ABOUT), Future())
        about.future.add_done_callback(lambda done: self._learn(done.result()))
        self._backlog.append(about)
        return True

    def _start_over_memory(self) -> tuple[Worker, mmap.mmap]:
        fd = os.memfd_create("nvrstore-slots", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, wire.SLOTS * wire.SLOT_BYTES)
            memory = mmap.mmap(fd, wire.SLOTS * wire.SLOT_BYTES)
            return self._start(fd), memory
        finally:
            os.close(fd)

    def _end_life(self, life: _Life, why: str) -> None:
        """Give a worker up, if it is still the present one; everything that was asked of it is unknown."""
        with self._lock:
            if self._life is not life:
                return
            self._life = None
            if self._woken:
                self._resting = self._woken = False
                self._started_s = 0.0
            asked = [*life.sent.values(), *self._backlog]
            life.sent.clear()
            self._backlog.clear()
            self._lost |= self._unsynced
            self._unsynced.clear()
            life.worker.kill()
            life.memory.close()
            try:
                life.worker.channel.shutdown(socket.SHUT_RDWR)  # wakes the reader, which closes it
            except OSError:
                pass  # it has hung up already
        if why:
            _log.warning("keeper.ended", target=self._target, why=why, outstanding=len(asked))
        for one in asked:
            one.resolve(Answer(one.number, UNAVAILABLE))

    def _pump(self) -> None:
        """Send what can be sent. Order is kept, but for looks, which stand at the front and need no slot."""
        life = self._life
        while life is not None and self._backlog:
            asked = self._backlog[0]
            if len(life.sent) >= SENT_MAX + (LOOKS_MAX if asked.request.verb is Verb.LOOK else 0):
                return
            if asked.future.cancelled():
                self._backlog.popleft()
                continue
            if asked.needs_slot:
                if not life.free:
                    return
                asked.slot = life.free[-1]
                start = asked.slot * wire.SLOT_BYTES
                life.memory[start : start + len(asked.request.data)] = asked.request.data
            self._number += 1
            asked.number = self._number
            try:
                life.worker.channel.send(pack(asked.number, asked.request, slot=asked.slot), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError:
                asked.slot = -1
                return  # full, or it has hung up: the reader finds out
            if asked.slot >= 0:
                life.free.pop()
            if asked.request.verb is Verb.WRITE:
                self._unsynced.add(asked.request.path)
            life.sent[asked.number] = self._backlog.popleft()

    def _read(self, life: _Life) -> None:
        """The reader thread: lives as long as its worker's channel."""
        with life.worker.channel as channel:
            while True:
                try:
                    message = channel.recv(wire.MESSAGE_BYTES)
                except OSError:
                    message = b""
                if not message:
                    break
                slot, answer, length = unpack(message)
                if not answer.number:
                    if not understood(answer):
                        _log.error("keeper.died", target=self._target, why=answer.data.decode(errors="replace"))
                        break
                    life.greeted = True
                    continue
                self._answered(life, slot, answer, length)
        self._end_life(life, "" if self._closed or self._resting else "it ended")

    def _answered(self, life: _Life, slot: int, answer: Answer, length: int) -> None:
        with self._lock:
            asked = life.sent.pop(answer.number, None)
            if asked is None:
                return  # given up
            if slot >= 0:
                start = slot * wire.SLOT_BYTES
                answer = Answer(answer.number, answer.errno, answer.value, life.memory[start : start + length])
                life.free.append(slot)
            request = asked.request
            if answer.ok and request.verb in (Verb.SYNC, Verb.UNLINK, Verb.RENAME):
                self._unsynced.discard(request.path)
            self._pump()
        asked.resolve(answer)


def _hang_up(life: _Life) -> None:
    """It ends behind what it was sent."""
    try:
        life.worker.channel.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # it has hung up already
