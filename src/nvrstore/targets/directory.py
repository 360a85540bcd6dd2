"""A directory as a target: any mounted file system, touched by workers alone.

    DirectoryTarget -> keeper worker (one at a time, started by the first request)
                    -> appender workers (one per `start_appender`)

Nothing here opens, stats or lists the directory: a hung mount would take the caller along. What lies below it is found
out by the keeper. Workers that were given up and are still stuck in the kernel are counted: never more than
`ABANDONED_WORKERS_MAX`, whatever hangs in whatever order. An appender has to be given up when its target is lost, so a
place is kept for each that lives: with none left, no other is started, and the keeper is not replaced; it goes on when it can.
Only `close` leaves behind whatever is stuck then.
"""

from __future__ import annotations

import os
import sys
import threading
from enum import StrEnum
from typing import Any, Final

from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.errors import ForkedError, TargetUnavailableError
from nvrstore.limits import ABANDONED_WORKERS_MAX
from nvrstore.targets import thread
from nvrstore.targets.appender_client import AppenderClient
from nvrstore.targets.contract import UNAVAILABLE, Answer, Medium, Request, Verb
from nvrstore.targets.keeper_client import KeeperClient
from nvrstore.targets.look import IDENTITY_PATH
from nvrstore.targets.pool import Pool
from nvrstore.targets.process import Worker, spawn
from nvrstore.worker import wire

#: File systems whose medium is another machine, or a program.
NETWORK_FILE_SYSTEMS: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "9p", "virtiofs", "afs", "lustre", "beegfs", "gpfs", "glusterfs", "ocfs2", "gfs2"}
)


class Isolation(StrEnum):
    """Where a target's workers run."""

    PROCESS = "process"
    THREAD = "thread"


class Limitation(StrEnum):
    """What the file system refused; recording goes on without it."""

    BUFFERED = "no O_DIRECT: writes go through the page cache"
    NO_DSYNC = "no RWF_DSYNC: every append is followed by fdatasync"
    NO_FALLOCATE = "no fallocate: volumes are not preallocated"
    NO_LINKS = "no hard links: names are reserved, then renamed over"


_LIMITATIONS: Final = {
    wire.BUFFERED: Limitation.BUFFERED,
    wire.NO_DSYNC: Limitation.NO_DSYNC,
    wire.NO_FALLOCATE: Limitation.NO_FALLOCATE,
    wire.NO_LINKS: Limitation.NO_LINKS,
}


class DirectoryTarget:
    """See the module. `lock_fd` is a descriptor that workers hold as long as they live: who can lock its file knows that they are gone."""

    def __init__(
        self,
        name: str,
        path: str | os.PathLike[str],
        *,
        isolation: Isolation | str = Isolation.PROCESS,
        worker_python: str = sys.executable,
        lock_fd: int | None = None,
        medium: Medium | str | None = None,
    ) -> None:
        self._name = name
        self.path: Final = os.path.abspath(path)  # no look at the file system
        self.isolation: Final = Isolation(isolation)
        self._python, self._lock_fd = worker_python, lock_fd
        self._medium = None if medium in (None, "auto") else Medium(str(medium))
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._workers: list[Worker] = []
        self._kept_by: Worker | None = None  # the keeper's worker that was started last, while it is there
        self._flags = 0
        self._storage: dict[str, Any] | None = None
        self._keeper = KeeperClient(name, self._start_keeper, self._give_up, self._learn)

    @property
    def name(self) -> str:
        return self._name

    @property
    def medium(self) -> Medium:
        """As configured, or as the keeper found; `DISK`, the careful one of the local classes, until it has."""
        if self._medium is None and self._storage is not None:
            self._medium = medium_of(self._storage)
        return self._medium or Medium.DISK

    @property
    def keeper(self) -> KeeperClient:
        return self._keeper

    @property
    def storage(self) -> dict[str, Any] | None:
        """What the keeper found below the directory: fstype, source, device, rotational. None until it has answered."""
        return self._storage

    def limitations(self) -> frozenset[Limitation]:
        """What the file system has refused so far."""
        with self._lock:
            for worker in self._workers:
                self._flags |= worker.stamps[wire.FLAGS]
            return frozenset(limitation for bit, limitation in _LIMITATIONS.items() if self._flags & bit)

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until a keeper answers. Raises TargetUnavailableError: no worker can be started, or the directory hangs."""
        answer = self._keeper.call(Request(Verb.ABOUT), timeout_s)
        if answer.errno == UNAVAILABLE:
            hint = f"is the mount alive, and does `{self._python} -I -S` run?"
            raise TargetUnavailableError(f"target {self._name!r}: its worker did not answer", target=self._name, hint=hint)

    def start_appender(self, pool: Pool) -> AppenderClient:
        return AppenderClient(self._start("appender", pool.fd), self._name)

    def first_failure_s(self) -> float | None:
        with self._lock:
            stamps = [worker.stamps for worker in self._workers]
        return min((words[wire.FAILED_NS] / 1e9 for words in stamps if words[wire.FAILED_NS] and not words[wire.ABANDONED]), default=None)

    def workers_stuck(self) -> int:
        with self._lock:
            return self._stuck()

    def at_rest(self) -> bool:
        with self._lock:
            self._stuck()
            return not self._workers

    def close(self, timeout_s: float) -> bool:
        self._check_owner()
        deadline_s = SYSTEM_CLOCK.monotonic_s() + timeout_s
        in_order = self._keeper.close(timeout_s)
        with self._lock:
            workers = list(self._workers)
        for worker in workers:  # appenders that their owner left running, and those that were given up
            if not worker.gone():
                worker.kill()
                in_order &= worker.wait(max(0.0, deadline_s - SYSTEM_CLOCK.monotonic_s()))
        with self._lock:
            self._stuck()
            return in_order and not self._workers

    def _check_owner(self) -> None:
        if os.getpid() != self._owner:
            raise ForkedError("this target belongs to the process that was forked")

    # --- workers

    def _start_keeper(self, memory_fd: int) -> Worker:
        return self._start("keeper", memory_fd)

    def _start(self, kind: str, memory_fd: int) -> Worker:
        self._check_owner()
        with self._lock:
            stuck = self._stuck()
            if stuck >= ABANDONED_WORKERS_MAX or (kind == "appender" and self._spoken_for() >= ABANDONED_WORKERS_MAX):
                raise TargetUnavailableError(
                    f"target {self._name!r}: {stuck} of {len(self._workers)} workers are stuck in the kernel", target=self._name
                )
            worker: Worker
            if self.isolation is Isolation.THREAD:
                worker = thread.start(kind, self.path, IDENTITY_PATH, memory_fd=memory_fd, target=self._name)
            else:
                worker = spawn(
                    kind,
                    self.path,
                    IDENTITY_PATH,
                    memory_fd=memory_fd,
                    python=self._python,
                    lock_fd=self._lock_fd,
                    target=self._name,
                )
            self._workers.append(worker)
            if kind == "keeper":
                self._kept_by = worker
            return worker

    def _give_up(self, keeper: Worker) -> bool:
        """Kill the keeper's worker; False where it would be one too many, should it be stuck: it is left as it is."""
        with self._lock:
            self._stuck()
            lives = keeper in self._workers and not keeper.stamps[wire.ABANDONED]
            if lives and self._spoken_for() >= ABANDONED_WORKERS_MAX:
                return False
            keeper.kill()
            return True

    def _spoken_for(self) -> int:
        """How many are given up already, or will have to be when the target is lost."""
        return sum(worker is not self._kept_by or worker.stamps[wire.ABANDONED] != 0 for worker in self._workers)

    def _stuck(self) -> int:
        """Forget workers that are gone; count those that were given up and are not."""
        for worker in [worker for worker in self._workers if worker.gone()]:
            self._flags |= worker.stamps[wire.FLAGS]
            self._workers.remove(worker)
            if worker is self._kept_by:
                self._kept_by = None
        return sum(worker.stamps[wire.ABANDONED] != 0 for worker in self._workers)

    def _learn(self, answer: Answer) -> None:
        if answer.ok:
            self._storage = answer.json()


def medium_of(storage: dict[str, Any]) -> Medium:
    """The class of storage behind an answer to ABOUT."""
    fstype, source = str(storage.get("fstype", "")), str(storage.get("source", ""))
    if fstype in NETWORK_FILE_SYSTEMS or fstype.partition(".")[0] in ("fuse", "fuseblk"):
        return Medium.NETWORK
    if fstype in ("tmpfs", "ramfs"):
        return Medium.SSD
    if source.startswith("/dev/md") or storage.get("rotational", -1) != 0:
        return Medium.DISK
    return Medium.SSD
