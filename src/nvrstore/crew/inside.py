"""Inside an ingest worker: an `Ingest` like the one that runs in threads, driven by messages.

    pipe ─▶ commands (this thread) ─▶ Ingest ─▶ Outbox ─▶ batches in its window, ring, pipe

A worker owns nothing: no target, no file, no secret but those in sockets. Of the recorder's pool it maps its own window alone.
When the recorder goes it goes, at once.
"""

from __future__ import annotations

import logging
import mmap
import os
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from multiprocessing.connection import Connection
from typing import Final, NoReturn

from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.config import StreamConfig
from nvrstore.crew.messages import (
    Add,
    Asked,
    Command,
    Freed,
    Logged,
    Looked,
    Recorded,
    Remove,
    Removed,
    Report,
    Resolved,
    Retry,
    Setup,
    Sit,
    Stop,
    Stopped,
    Tapping,
    Told,
    Trigger,
    receive,
)
from nvrstore.crew.outbox import Outbox
from nvrstore.crew.ring import RING_BYTES, RingWriter
from nvrstore.errors import SourceError
from nvrstore.events import Event
from nvrstore.ingest.contract import Endpoint
from nvrstore.ingest.group import Ingest
from nvrstore.limits import TICK_S
from nvrstore.model import Record, TrackKey
from nvrstore.telemetry import ROOT, get_logger

log = get_logger("ingest.worker")


def work(pipe: Connection, ring_fd: int, pool_fd: int) -> NoReturn:
    """Do what is said on `pipe` until it is closed, or everything was stopped and handed over."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # meant for the recorder, which says what is to be done
    try:
        (setup,) = receive(pipe)
        _Worker(pipe, memoryview(mmap.mmap(ring_fd, RING_BYTES)), pool_fd, setup).serve()
    except (EOFError, OSError):
        pass  # nobody is there any more to record for
    os._exit(0)  # sources that are stuck in the kernel would keep the interpreter from ending


class _Intake:
    """Where the fragments of one stream go. See `Intake`."""

    def __init__(self, outbox: Outbox, config: StreamConfig, ticks_s: Mapping[str, float]) -> None:
        self._outbox, self._stream = outbox, config.id
        journal = config.journal or ""
        tick_s = ticks_s.get(journal, TICK_S)
        self.declare = partial(outbox.declare, journal=journal, tick_s=tick_s)
        self.assign = partial(outbox.batches.assign, journal=journal, tick_s=tick_s)
        self.put = outbox.put

    def record(self, record: Record) -> None:
        self._outbox.post(Recorded(self._stream, record))


class _Worker:
    def __init__(self, pipe: Connection, ring: memoryview, pool_fd: int, setup: Setup) -> None:
        self._pipe, self._pool_fd, self._parent, self._ticks_s = pipe, pool_fd, setup.pid, setup.ticks_s
        self._outbox = Outbox(pipe, RingWriter(ring), SYSTEM_CLOCK, self._look)
        self._ingest = Ingest(
            setup.session,
            clock=SYSTEM_CLOCK,
            on_event=self._told,
            resolve=self._resolve,
            local=setup.recorder.local,
        )
        self._lock = threading.Lock()
        self._asked: dict[int, Future[Endpoint]] = {}
        self._asks = 0
        logger = logging.getLogger(ROOT)
        logger.setLevel(setup.log_level)
        logger.addHandler(_Forward(self._outbox.post))
        logger.propagate = False
        self._do: Final[dict[type, Callable[..., None]]] = {
            Sit: self._sit,
            Freed: self._freed,
            Add: self._add,
            Remove: self._remove,
            Retry: self._retry,
            Trigger: self._trigger,
            Tapping: self._tapping,
            Resolved: self._resolved,
            Stop: self._stop,
        }

    def serve(self) -> None:
        threading.Thread(target=self._hand_over, name="nvrstore-outbox", daemon=True).start()
        while True:
            for command in receive(self._pipe):
                self._obey(command)

    def _obey(self, command: Command) -> None:
        try:
            self._do[type(command)](command)
        except Exception as error:  # noqa: BLE001  # one stream's trouble must not end the others
            log.error("command.failed", command=type(command).__name__, kind=type(error).__name__, reason=str(error))

    def _hand_over(self) -> None:
        try:
            self._outbox.run()
            os._exit(0)
        except OSError:
            os._exit(0)  # the recorder is gone
        finally:
            os._exit(1)

    # --- commands

    def _sit(self, sit: Sit) -> None:
        self._outbox.batches.sit(memoryview(mmap.mmap(self._pool_fd, sit.length, offset=sit.offset)), sit.taken)

    def _freed(self, freed: Freed) -> None:
        self._outbox.batches.freed(freed.extent)

    def _add(self, add: Add) -> None:
        intake = _Intake(self._outbox, add.config, self._ticks_s)
        for media, number in add.lanes.items():
            intake.assign(TrackKey(add.config.id, media), number)
        self._ingest.add(add.config, intake, open_gaps=add.open_gaps, fragment_s=add.fragment_s, first_index=add.first_index)

    def _remove(self, remove: Remove) -> None:
        def run() -> None:
            gone = True
            try:
                gone = self._ingest.remove(remove.stream, remove.timeout_s)
            except KeyError:
                pass  # it never began
            self._outbox.untap(remove.stream)
            self._outbox.post(Removed(remove.stream, gone))

        threading.Thread(target=run, name="nvrstore-remove", daemon=True).start()

    def _retry(self, retry: Retry) -> None:
        self._ingest.supervisor(retry.stream).retry_now()

    def _trigger(self, trigger: Trigger) -> None:
        self._ingest.supervisor(trigger.stream).trigger(trigger.name, pre_s=trigger.pre_s, post_s=trigger.post_s)

    def _tapping(self, tapping: Tapping) -> None:
        supervisor = self._ingest.supervisor(tapping.stream)
        before = self._outbox.untap(tapping.stream)
        if before is not None:
            supervisor.remove_tap(before)
        if tapping.wanted:
            supervisor.add_tap(self._outbox.tap(tapping.stream))

    def _resolved(self, resolved: Resolved) -> None:
        with self._lock:
            asked = self._asked.pop(resolved.ask)
        if resolved.error is not None:
            asked.set_exception(resolved.error)
        elif resolved.endpoint is not None:
            asked.set_result(resolved.endpoint)
        else:
            asked.set_exception(SourceError("no address was looked up"))

    def _stop(self, stop: Stop) -> None:
        def run() -> None:
            self._outbox.post(Stopped(self._ingest.stop(stop.timeout_s)))
            self._outbox.end()

        threading.Thread(target=run, name="nvrstore-stop", daemon=True).start()

    # --- what the streams tell and ask

    def _told(self, event: Event) -> None:
        self._outbox.post(Told(event))

    def _resolve(self, config: StreamConfig) -> Endpoint:
        with self._lock:
            self._asks += 1
            number, answer = self._asks, Future[Endpoint]()
            self._asked[number] = answer
        self._outbox.post(Asked(number, config.id))
        return answer.result()

    def _look(self, waiting_bytes: int) -> Report:
        if os.getppid() != self._parent:
            os._exit(0)  # a fork of the recorder keeps the pipe open after its death
        return Looked(tuple(supervisor.status() for supervisor in self._ingest.supervisors()), waiting_bytes)


class _Forward(logging.Handler):
    """Log lines go to the recorder's loggers: who configures those hears the workers, too."""

    def __init__(self, post: Callable[[Report], None]) -> None:
        super().__init__()
        self._post = post

    def emit(self, record: logging.LogRecord) -> None:
        self._post(Logged(record.name, record.levelno, record.getMessage(), getattr(record, "nvrstore", {})))
