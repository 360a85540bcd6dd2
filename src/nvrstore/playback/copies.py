"""Reads files on targets through their keepers, and remembers for a while which target did not answer.

    reader, verify, rebuild --read/list/scan--> Copies --Request, at most 1 MiB--> keeper of a --> bytes, or a TargetError
                                                  `-- does not answer: its worker is replaced, the target is avoided for `avoid_s`

Nothing here touches a target in the calling thread; a call waits at most `timeout_s`. Errors are those of one target:
whoever asks turns to another copy. Knows no format. Any number of threads may use it.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Generator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final, TypeVar

from nvrstore.catalog.rebuild import FileEntry
from nvrstore.clock import SYSTEM_CLOCK, Clock
from nvrstore.errors import TargetIOError, TargetUnavailableError, UsageError
from nvrstore.journal.model import VolumeHeader
from nvrstore.journal.scan import Read, ScanResult, scan_volume
from nvrstore.limits import KEEPER_PIECE_BYTES
from nvrstore.targets.contract import UNAVAILABLE, Answer, Request, Steps, Target, Verb
from nvrstore.targets.steps import list_all, run_steps
from nvrstore.telemetry import get_logger

log = get_logger(__name__)
T = TypeVar("T")

READ_S: Final = 3.0  # a piece of 1 MiB that takes longer is better taken from another copy
AVOID_S: Final = 30.0  # so long a target that did not answer is the last choice
#: Errors of the whole target, not of one file or place.
_WHOLE_TARGET: Final = frozenset({UNAVAILABLE, errno.ENODEV, errno.ENOTCONN, errno.ESTALE, errno.ESHUTDOWN, errno.ECONNRESET, errno.ESRCH})


@dataclass(frozen=True, slots=True)
class Pending:
    """A read that is under way."""

    target: str
    path: str
    length: int
    future: Future[Answer]


class Copies:
    """Access to files on targets, by target name. The targets belong to the caller."""

    def __init__(
        self, targets: Mapping[str, Target], *, clock: Clock = SYSTEM_CLOCK, timeout_s: float = READ_S, avoid_s: float = AVOID_S
    ) -> None:
        self.targets: Final = dict(targets)
        self._clock = clock
        self._timeout_s = timeout_s
        self._avoid_s = avoid_s
        self._lock = threading.Lock()
        self._avoid_until_s: dict[str, float] = {}

    def avoided(self, target: str) -> bool:
        """Whether the target is unknown here, or has lately not answered."""
        with self._lock:
            return target not in self.targets or self._clock.monotonic_s() < self._avoid_until_s.get(target, 0.0)

    # --- reading

    def start(self, target: str, path: str, offset: int, length: int, *, fresh: bool = False) -> Pending:
        """Ask for up to 1 MiB without waiting for it; `finish` waits. Raises `TargetUnavailableError` for a target that is not there."""
        request = Request(Verb.READ, path, offset=offset, length=length, fresh=fresh)
        return Pending(target, path, length, self._target(target).keeper.submit(request))

    def finish(self, pending: Pending) -> bytes:
        """The bytes, short only at the end of the file. Raises `TargetError`."""
        try:
            answer = pending.future.result(self._timeout_s)
        except TimeoutError:
            pending.future.cancel()  # takes it back where it was not sent yet
            answer = Answer(0, UNAVAILABLE)
        if answer.ok:
            return answer.data
        self._note(pending.target, answer.errno)
        if answer.errno == UNAVAILABLE:
            raise TargetUnavailableError(f"target {pending.target!r} did not answer: read {pending.path}", target=pending.target)
        raise TargetIOError(pending.target, answer.errno, doing=f"read {pending.path}")

    def read(self, target: str, path: str, offset: int, length: int, *, fresh: bool = False) -> bytes:
        """`length` bytes (any number) at `offset`, short only at the end of the file. Raises `TargetError`."""
        if length <= KEEPER_PIECE_BYTES:
            return self.finish(self.start(target, path, offset, length, fresh=fresh))
        data = bytearray()
        while len(data) < length:
            piece_bytes = min(KEEPER_PIECE_BYTES, length - len(data))
            piece = self.finish(self.start(target, path, offset + len(data), piece_bytes, fresh=fresh))
            data += piece
            if len(piece) < piece_bytes:
                break
        return bytes(data)

    def size(self, target: str, path: str) -> int:
        """Length of a file. Raises `TargetError`."""
        answer = self._target(target).keeper.call(Request(Verb.STAT, path), self._timeout_s)
        if answer.ok:
            return int(answer.json()["size"])
        self._note(target, answer.errno)
        if answer.errno == UNAVAILABLE:
            raise TargetUnavailableError(f"target {target!r} did not answer: look at {path}", target=target)
        raise TargetIOError(target, answer.errno, doing=f"look at {path}")

    def list_dir(self, target: str, path: str) -> list[FileEntry]:
        """All of a directory, sorted; empty where there is none. Raises `TargetError`."""
        return [FileEntry(e.name, e.size, e.directory) for e in self._steps(target, list_all(target, path, missing_ok=True))]

    def scan(
        self, target: str, path: str, size: int, *, header: VolumeHeader | None = None, deep: bool = False, fresh: bool = True
    ) -> ScanResult:
        """Scan a volume (journal/scan.py); what the device does not give is `unreadable` in the result. Raises `TargetError`
        where the target does not answer, or the file is not there."""
        return self.carry_out(scan_volume(size, header=header, deep=deep, fresh=fresh, path=path), target, path)

    def carry_out(self, wishes: Generator[Read, bytes | None, T], target: str, path: str) -> T:
        """Answer what a scan wishes to read."""
        try:
            wish = next(wishes)
            while True:
                try:
                    data: bytes | None = self.read(target, path, wish.offset, wish.length, fresh=wish.fresh)
                except TargetIOError as error:
                    if error.errno in _WHOLE_TARGET or error.errno in (errno.ENOENT, errno.EACCES, errno.EPERM):
                        raise
                    data = None
                wish = wishes.send(data)
        except StopIteration as stop:
            value: T = stop.value
            return value
        finally:
            wishes.close()

    def close(self, timeout_s: float) -> bool:
        """End the targets' workers in order; False when any had to be left behind."""
        ended = [target.close(timeout_s) for target in self.targets.values()]  # all of them, also behind one that did not
        return all(ended)

    # --- inside

    def _target(self, name: str) -> Target:
        target = self.targets.get(name)
        if target is None:
            raise TargetUnavailableError(f"there is no target {name!r} in the configuration", target=name)
        return target

    def _steps(self, target: str, steps: Steps[T]) -> T:
        try:
            return run_steps(steps, self.targets, timeout_s=self._timeout_s)
        except UsageError as error:
            raise TargetUnavailableError(error.message, target=target) from error
        except TargetIOError as error:
            self._note(target, error.errno)
            raise
        except TargetUnavailableError:
            self._note(target, UNAVAILABLE)
            raise

    def _note(self, target: str, code: int) -> None:
        """Remember a target that is gone or hangs, and do not let the next reader queue behind the stuck call."""
        if code not in _WHOLE_TARGET:
            return
        with self._lock:
            known = self._clock.monotonic_s() < self._avoid_until_s.get(target, 0.0)
            self._avoid_until_s[target] = self._clock.monotonic_s() + self._avoid_s
        if not known:
            log.warning("target.avoided", target=target, errno=code, for_s=self._avoid_s)
            self._target(target).keeper.restart()
