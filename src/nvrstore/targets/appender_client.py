"""Our end of an appender's channel: `contract.Appender` over a worker that runs somewhere else.

    submit -> message (or, while the channel is full, the backlog) -> worker -> answers

One thread uses it, and it never blocks: sends and receives return at once. A worker that has died, that does not say
hello in time, or that speaks another protocol answers everything with ESRCH and `value` -1.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from typing import Final

from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.errors import ForkedError
from nvrstore.limits import WORKER_HELLO_S
from nvrstore.targets.contract import APPENDER_VERBS, Answer, Request
from nvrstore.targets.process import Worker
from nvrstore.telemetry import get_logger
from nvrstore.worker import wire

_log = get_logger(__name__)

PATH_BYTES_MAX: Final = 4096  # PATH_MAX of Linux


def pack(number: int, request: Request, *, slot: int = -1) -> bytes:
    """The message for a request; with a slot, its data is in the slot. Raises ValueError for a path that no message holds."""
    path, path2 = os.fsencode(request.path), os.fsencode(request.path2)
    if max(len(path), len(path2)) > PATH_BYTES_MAX:
        raise ValueError("a path of more than 4096 bytes")
    head = wire.REQUEST.pack(
        number,
        request.verb,
        wire.FRESH if request.fresh else 0,
        request.handle,
        request.offset,
        request.length,
        request.extent,
        slot,
        len(request.data),
        len(path),
        len(path2),
    )
    return b"".join((head, path, path2, request.data if slot < 0 else b""))


def unpack(message: bytes) -> tuple[int, Answer, int]:
    """(slot, answer, bytes of data in the slot); data that came inline is in the answer already."""
    number, code, slot, value, length = wire.ANSWER.unpack_from(message)
    data = message[wire.ANSWER.size : wire.ANSWER.size + length] if slot < 0 else b""
    return slot, Answer(number, code, value, data), length


def understood(hello: Answer) -> bool:
    """Whether a first message says hello in our protocol."""
    return hello.number == 0 and hello.ok and hello.json().get("protocol") == wire.PROTOCOL


def running_since_s(worker: Worker, greeted: bool) -> float | None:
    """What the stamps say; a worker that was not heard of yet has been busy since it was started."""
    if not greeted:
        return worker.started_s
    began_ns = worker.stamps[wire.START_NS]
    return began_ns / 1e9 if began_ns else None


class AppenderClient:
    """See the module."""

    def __init__(self, worker: Worker, target: str) -> None:
        self._worker, self._target = worker, target
        self._owner = os.getpid()
        self._number = 0
        self._outstanding: dict[int, None] = {}
        self._backlog: deque[bytes] = deque()
        self._ready: list[Answer] = []
        self._greeted = self._dead = self._closing = self._closed = False

    def fileno(self) -> int:
        return self._worker.channel.fileno()

    def submit(self, request: Request) -> int:
        self._check_owner()
        if request.verb not in APPENDER_VERBS:
            raise ValueError(f"an appender does not {request.verb.name}")
        self._number += 1
        if self._dead:
            self._ready.append(Answer(self._number, errno.ESRCH, -1))
            return self._number
        self._outstanding[self._number] = None
        self._backlog.append(pack(self._number, request))
        self._send()
        return self._number

    def _check_owner(self) -> None:
        if os.getpid() != self._owner:
            raise ForkedError("this appender belongs to the process that was forked")

    def _send(self) -> None:
        while self._backlog:
            try:
                self._worker.channel.send(self._backlog[0], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return  # full: the answers that this waits for make room
            except OSError:
                return  # it has hung up: `answers` finds the same, behind what it said last
            self._backlog.popleft()

    def answers(self) -> list[Answer]:
        while not self._dead:
            try:
                message = self._worker.channel.recv(wire.MESSAGE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                if not self._greeted and SYSTEM_CLOCK.monotonic_s() - self._worker.started_s > WORKER_HELLO_S:
                    self._die("it did not say hello")
                break
            except OSError as error:
                self._die(str(error))
                break
            if message:
                self._take(unpack(message)[1])
            else:
                self._die("it ended")
        self._send()
        ready, self._ready = self._ready, []
        return ready

    def _take(self, answer: Answer) -> None:
        if answer.number:
            self._outstanding.pop(answer.number, None)
            self._ready.append(answer)
        elif understood(answer):
            self._greeted = True
        else:
            self._die(answer.data.decode(errors="replace"))

    def _die(self, why: str) -> None:
        self._dead = True
        if not self._closing:
            _log.warning("appender.died", target=self._target, why=why, outstanding=len(self._outstanding))
        self._worker.kill()
        self._backlog.clear()
        self._ready += [Answer(number, errno.ESRCH, -1) for number in self._outstanding]
        self._outstanding.clear()

    def running_since_s(self) -> float | None:
        return None if self._dead or self._closed else running_since_s(self._worker, self._greeted)

    def abandon(self) -> None:
        self._check_owner()
        self._dead = self._closed = True
        self._worker.kill()
        self._outstanding.clear()
        self._backlog.clear()
        self._ready.clear()
        self._worker.channel.close()

    def wind_up(self) -> None:
        self._check_owner()
        self._closing = True
        if not self._dead and not self._closed:
            self._send()
            self._hang_up()

    def _hang_up(self) -> None:
        try:
            self._worker.channel.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has hung up already

    def gone(self) -> bool:
        return (self._dead or self._closed or self._closing) and self._worker.gone()

    def close(self, timeout_s: float) -> bool:
        self._check_owner()
        if self._closed:
            return self._worker.gone()
        self._closing = True
        if not self._dead:
            self._send()
            self._hang_up()
        in_order = self._worker.wait(timeout_s)
        self._closed = True
        if not in_order:
            self.abandon()
            return False
        self._ready = self.answers() if not self._dead else self._ready
        self._worker.channel.close()
        return True
