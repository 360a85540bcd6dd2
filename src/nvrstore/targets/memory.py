"""A target in memory: the model that engine tests, simulations and benchmarks run against.

    submit -> line (one per worker) -> carried out -> answered        at once, or held: then `perform`, `step`, `release`

Deterministic and without threads, files or waiting: unless held, a request has been answered when `submit` returns.
While held, the head of each line counts as a running system call: it reads the pool only when it is carried out, and an
abandoned worker is gone only when that has happened, as with a disk that hangs and thaws. `crash` is a power cut.

It begins with an identity, ready for use; `blank=True` makes an empty directory instead. Not for footage: nothing is kept.
"""

from __future__ import annotations

import errno
import hashlib
import json
import threading
from collections.abc import Callable
from random import Random
from typing import Final

from nvrstore.clock import SYSTEM_CLOCK, Clock
from nvrstore.errors import TargetUnavailableError
from nvrstore.limits import ABANDONED_WORKERS_MAX, GIB
from nvrstore.targets.contract import Medium, Request, Verb
from nvrstore.targets.look import IDENTITY_PATH
from nvrstore.targets.memory_appender import MemoryAppender
from nvrstore.targets.memory_files import MemoryFiles, fail
from nvrstore.targets.memory_keeper import MemoryKeeper
from nvrstore.targets.memory_line import Line
from nvrstore.targets.pool import Pool

#: Verbs that need no identity on the target: they change nothing.
_READS: Final = frozenset({Verb.LOOK, Verb.LIST, Verb.STAT, Verb.SPACE, Verb.READ, Verb.SYNC, Verb.APPEND, Verb.CLOSE, Verb.ABOUT})


class MemoryTarget:
    """See the module. `fault`, when set, is asked before each request; an error number other than 0 is the answer."""

    def __init__(
        self,
        name: str,
        *,
        id: str | None = None,
        blank: bool = False,
        medium: Medium = Medium.MEMORY,
        capacity_bytes: int = 1024 * GIB,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._name, self._medium, self.clock = name, medium, clock
        self.files = MemoryFiles(capacity_bytes)
        self.fault: Callable[[Request], int] | None = None
        self.lock = threading.RLock()
        self.held = False
        self.mounted = True
        self._workers: list[Line] = []
        self._numbers = 0
        self.id = id or hashlib.sha256(name.encode()).hexdigest()[:32]
        if not blank:
            self.files.create(IDENTITY_PATH, clock.utc_ns(), synced=True).write_through(
                0, json.dumps({"format": 1, "id": self.id}).encode()
            )
        self._keeper = MemoryKeeper(self)

    @property
    def name(self) -> str:
        return self._name

    @property
    def medium(self) -> Medium:
        return self._medium

    @property
    def keeper(self) -> MemoryKeeper:
        return self._keeper

    def start_appender(self, pool: Pool) -> MemoryAppender:
        self.need_place()
        return MemoryAppender(self, pool)

    def first_failure_s(self) -> float | None:
        with self.lock:
            failed = [worker.failed_s for worker in self._workers if not (worker.abandoned or worker.dead)]
        return min((at_s for at_s in failed if at_s is not None), default=None)

    def workers_stuck(self) -> int:
        with self.lock:
            return sum(worker.abandoned and bool(worker.line) for worker in self._workers)

    def at_rest(self) -> bool:
        with self.lock:
            return all(worker.resting and not worker.line for worker in self._workers)

    def given_up(self) -> int:
        """Of these, those that were abandoned by their owner, and not killed by somebody else."""
        with self.lock:
            return sum(worker.abandoned and bool(worker.line) and not worker.killed for worker in self._workers)

    def close(self, timeout_s: float) -> bool:
        for worker in list(self._workers):
            worker.close(timeout_s)
        self._keeper.close(timeout_s)
        return self.workers_stuck() == 0

    # --- what a test or a simulation steers

    def hold(self) -> None:
        """From now on requests wait, as on a hung disk, until `step` or `release`."""
        self.held = True

    def pending(self) -> int:
        """Requests that were not answered yet, over all workers."""
        with self.lock:
            return sum(len(worker.line) for worker in self._workers)

    def perform(self, count: int = 1) -> int:
        """Carry out the oldest `count` requests that were not, without answering; returns how many there were."""
        with self.lock:
            waiting = sorted((p.number, w) for w in self._workers for p in w.line if p.answer is None)[:count]
            for _, worker in waiting:
                worker.perform_next()
            return len(waiting)

    def step(self, count: int = 1) -> int:
        """Carry out and answer the oldest `count` requests; returns how many there were."""
        done = 0
        while done < count:
            with self.lock:
                heads = [(w.line[0].number, w) for w in self._workers if w.line]
                if not heads:
                    break
                deliveries = min(heads)[1].finish(1)
            for deliver, answer in deliveries:
                deliver(answer)
            done += 1
        return done

    def release(self) -> None:
        """Hold no longer: everything that waits is carried out and answered, in order."""
        self.held = False
        while self.step():
            pass

    def crash(self, rng: Random | None = None) -> None:
        """A power cut: the un-synced is lost (with `rng`, chance decides), running appends are torn, all workers die."""
        with self.lock:
            for worker in list(self._workers):
                if rng is not None and worker.line and worker.line[0].answer is None:
                    worker.tear(worker.line[0].request, rng)
                worker.die()
            self.files.crash(rng)

    def kill_workers(self) -> None:
        """All workers die, as by SIGKILL; a call that runs (the target is held) is completed by the kernel later."""
        with self.lock:
            given_up = [worker for worker in self._workers if worker.abandoned]
            for worker in list(self._workers):
                worker.die(running=self.held)
            for worker in self._workers:
                worker.killed |= worker.abandoned and worker not in given_up

    def unmount(self) -> None:
        """The path shows an empty directory from now on; descriptors that are open go on working."""
        self.mounted = False

    def mount(self) -> None:
        self.mounted = True

    # --- for its workers

    def spoken_for(self) -> int:
        """Workers that are given up and not gone, and appenders, which will have to be: as in directory.py."""
        with self.lock:
            return sum(worker is not self._keeper for worker in self._workers)

    def need_place(self) -> None:
        """Raises TargetUnavailableError: an appender more could become one too many that is stuck."""
        if self.spoken_for() >= ABANDONED_WORKERS_MAX:
            raise TargetUnavailableError(f"target {self._name!r}: workers are stuck", target=self._name)

    def next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def enlist(self, worker: Line) -> None:
        if worker not in self._workers:
            self._workers.append(worker)

    def dismiss(self, worker: Line) -> None:
        if worker in self._workers:
            self._workers.remove(worker)

    def guard(self, request: Request) -> None:
        """No identity, no write: raises ENODEV."""
        if (
            request.verb in _READS
            or (request.verb is Verb.PUT and request.path == IDENTITY_PATH)
            or (request.verb is Verb.MKDIR and not request.path)
        ):
            return
        if not self.mounted or IDENTITY_PATH not in self.files.files:
            raise fail(errno.ENODEV)
