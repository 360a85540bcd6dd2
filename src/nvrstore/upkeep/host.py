"""What upkeep needs of the recorder it works for, and how it runs its work: interruptible between two calls.

    Work --Steps--> Runner --Call--> keeper      a piece of work asks for steps to be run, one after the other, and is sent
                                                 what they return; what they raise is raised in it

Work decides and waits for nothing itself: a simulation runs the very same on a clock of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from nvrstore.catalog.store import Catalog
from nvrstore.clock import Clock
from nvrstore.config import Config
from nvrstore.errors import ClosedError
from nvrstore.events import Event
from nvrstore.model import Gap, Record
from nvrstore.replicate.engine import JournalEngine
from nvrstore.replicate.hub import Hub
from nvrstore.targets.contract import UNAVAILABLE, Answer, Call, Steps, Target, Verb
from nvrstore.telemetry import get_logger
from nvrstore.worker.wire import HARD_ERRORS

log = get_logger("upkeep")

T = TypeVar("T")

#: Yields Steps, is sent what they return, returns a T.
Work = Generator[Steps[Any], Any, T]

CALL_S = 15.0  # one call of a chore; chores wait longer than commits do, a disk may be busy with those


class UpkeepHost(Protocol):
    """A recorder that runs."""

    @property
    def config(self) -> Config: ...
    @property
    def session(self) -> int: ...
    @property
    def started_ns(self) -> int: ...
    @property
    def recorder_id(self) -> str: ...
    @property
    def engines(self) -> Mapping[str, JournalEngine]: ...
    @property
    def targets(self) -> Mapping[str, Target]: ...
    @property
    def hub(self) -> Hub: ...
    @property
    def catalog(self) -> Catalog: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def worker_locks(self) -> set[str]:
        """Targets of which no worker of an earlier recorder can still run."""

    def publish(self, event: Event) -> None: ...

    def save_term(self, journal: str, term: int) -> bool: ...

    def saved_term(self, journal: str) -> int: ...

    def saved_waits(self) -> Mapping[str, float]:
        """What `save_waits` was given last, by this recorder or an earlier one."""

    def save_waits(self, waited: Mapping[str, float]) -> bool: ...

    def wait_records(self, records: Sequence[tuple[str, Record]], timeout_s: float) -> Steps[bool]:
        """Enter records into the ledgers of journals; whether all became durable in time."""

    def record_gap(self, journal: str, gap: Gap) -> None: ...

    def streams_of(self, journal: str) -> list[str]:
        """Ids of the streams that are recorded into the journal now, whoever added them."""

    def synced(self, journal: str, copies: int) -> None:
        """Everything of the journal is on so many copies."""

    def copied(self, journal: str, volume_id: str) -> None:
        """A target has a closed volume of the journal now that it lacked."""


def do(steps: Steps[T]) -> Work[T]:
    """Have `steps` run: `answer = yield from do(steps)`."""
    value: T = yield steps
    return value


class Runner:
    """Runs work until it is stopped. One per thread of upkeep.

    `suspect` is told of a target on which a call failed as only a broken one's do: a look has to say whether it is.
    """

    def __init__(self, targets: Mapping[str, Target], suspect: Callable[[str], object]) -> None:
        self._targets, self._suspect = targets, suspect
        self.stopping = threading.Event()

    def run(self, steps: Steps[T], *, between: Callable[[Call], object] = lambda call: None) -> T:
        """Drive `steps` to their end. Raises ClosedError when the recorder stops meanwhile, and whatever the steps raise.

        `between` is called before every call: it may wait, until `stopping` at the latest.
        What calls name as `ahead` is begun early.
        """
        early: dict[tuple[object, ...], tuple[Call, Future[Answer]]] = {}  # begun before they were asked for; a call keeps its bytes
        try:
            call = next(steps)
            while True:
                between(call)
                if self.stopping.is_set():
                    raise ClosedError("the recorder is stopping")
                begun = early.pop(call.key, None)
                future = begun[1] if begun else self._submit(call)
                if call.ahead:
                    for key in early.keys() - {other.key for other in call.ahead}:
                        early.pop(key)[1].cancel()  # the steps took another way
                    for other in call.ahead:
                        if other.key not in early:
                            early[other.key] = other, self._submit(other)
                answer = self._wait(future)
                if answer.errno in HARD_ERRORS and call.request.verb is not Verb.READ:  # of a READ: that file is damaged
                    self._suspect(call.target)
                call = steps.send(answer)
        except StopIteration as stop:
            value: T = stop.value
            return value
        finally:
            for _, future in early.values():
                future.cancel()  # takes it back where it was not sent yet
            steps.close()

    def work(self, work: Work[T]) -> T:
        """Run all steps that `work` asks for. Raises what it raises."""
        try:
            steps = next(work)
            while True:
                try:
                    done = self.run(steps)
                except Exception as error:  # noqa: BLE001 - it belongs to the work, which asked for these steps
                    steps = work.throw(error)
                else:
                    steps = work.send(done)
        except StopIteration as stop:
            value: T = stop.value
            return value
        finally:
            work.close()

    def _submit(self, call: Call) -> Future[Answer]:
        return self._targets[call.target].keeper.submit(call.request)

    def _wait(self, future: Future[Answer]) -> Answer:
        waited_s = 0.0
        while not future.done() and waited_s < CALL_S and not self.stopping.is_set():
            try:
                return future.result(0.25)
            except TimeoutError:
                waited_s += 0.25
        return future.result(0) if future.done() else Answer(0, UNAVAILABLE)
