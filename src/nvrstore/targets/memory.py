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
import os
import posixpath
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from nvrstore.clock import SYSTEM_CLOCK, Clock, SystemClock
from nvrstore.limits import BLOCK_BYTES, GIB, KEEPER_PIECE_BYTES
from nvrstore.targets.contract import APPENDER_VERBS, UNAVAILABLE, Answer, Medium, Request, Verb
from nvrstore.targets.look import IDENTITY_PATH
from nvrstore.targets.memory_files import MemoryFile, MemoryFiles, fail, write_sectors
from nvrstore.targets.pool import Extent, Pool

DEVICE: Final = 0x4D454D  # st_dev of every file here
LIST_PAGE: Final = 500  # names in one answer to LIST: small enough that tests turn pages
#: Verbs that need no identity on the target: they change nothing.
_READS: Final = frozenset({Verb.LOOK, Verb.LIST, Verb.STAT, Verb.SPACE, Verb.READ, Verb.SYNC, Verb.APPEND, Verb.CLOSE, Verb.ABOUT})


@dataclass(slots=True)
class _Pending:
    number: int
    request: Request
    deliver: Callable[[Answer], None]
    since_s: float
    answer: Answer | None = None  # carried out, not yet delivered


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
        self._workers: list[_Worker] = []
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
        return MemoryAppender(self, pool)

    def workers_stuck(self) -> int:
        with self.lock:
            return sum(worker.abandoned and bool(worker.line) for worker in self._workers)

    def close(self, timeout_s: float) -> bool:
        self.keeper.close(timeout_s)
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
        for worker in list(self._workers):
            worker.die(running=self.held)

    def unmount(self) -> None:
        """The path shows an empty directory from now on; descriptors that are open go on working."""
        self.mounted = False

    def mount(self) -> None:
        self.mounted = True

    # --- for its workers

    def next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def enlist(self, worker: _Worker) -> None:
        if worker not in self._workers:
            self._workers.append(worker)

    def dismiss(self, worker: _Worker) -> None:
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


class _Worker:
    """One line of requests. `line` outlives the client that gave it up: the running call is still to be carried out."""

    def __init__(self, target: MemoryTarget) -> None:
        self.target = target
        self.line: deque[_Pending] = deque()
        self.abandoned = False
        self.dead = False
        target.enlist(self)

    def put(self, request: Request, deliver: Callable[[Answer], None], *, first: bool = False) -> int:
        with self.target.lock:
            pending = _Pending(self.target.next_number(), request, deliver, self.target.clock.monotonic_s())
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

    def _execute(self, pending: _Pending) -> Answer:
        request, fault = pending.request, self.target.fault
        try:
            code = fault(request) if fault is not None else 0
            if code:
                self.failed(request, code)
                raise fail(code)
            self.target.guard(request)
            value, data = self.carry_out(request)
            return Answer(pending.number, 0, value, data)
        except OSError as error:
            self.failed(request, error.errno or errno.EIO)
            return Answer(pending.number, error.errno or errno.EIO)

    def running_since_s(self) -> float | None:
        with self.target.lock:
            return self.line[0].since_s if self.line else None

    def forsake(self) -> list[_Pending]:
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

    def failed(self, request: Request, code: int) -> None:
        """Hook: the request failed."""

    def tear(self, request: Request, rng: Random) -> None:
        """Hook: the power goes while the request runs."""

    def die(self, *, running: bool = False) -> None:
        raise NotImplementedError


class MemoryAppender(_Worker):
    """Appender of a MemoryTarget."""

    def __init__(self, target: MemoryTarget, pool: Pool) -> None:
        super().__init__(target)
        self._pool = pool
        self._handles: dict[int, MemoryFile] = {}
        self._refused: set[int] = set()
        self._ready: list[Answer] = []
        self._outstanding: dict[int, None] = {}
        self._event: int | None = None

    def fileno(self) -> int:
        if self._event is None:
            self._event = os.eventfd(1 if self._ready else 0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return self._event

    def submit(self, request: Request) -> int:
        if request.verb not in APPENDER_VERBS:
            raise ValueError(f"an appender does not {request.verb.name}")
        with self.target.lock:
            if self.dead or self.abandoned:
                number = self.target.next_number()
                self._deliver(Answer(number, errno.ESRCH, -1))
                return number
            number = self.put(request, self._deliver)
            if any(pending.number == number for pending in self.line):
                self._outstanding[number] = None
            return number

    def _deliver(self, answer: Answer) -> None:
        with self.target.lock:
            self._outstanding.pop(answer.number, None)
            self._ready.append(answer)
            if self._event is not None:
                os.eventfd_write(self._event, 1)

    def answers(self) -> list[Answer]:
        with self.target.lock:
            ready, self._ready = self._ready, []
            if ready and self._event is not None:
                os.eventfd_read(self._event)
            return ready

    def abandon(self) -> None:
        self.forsake()
        self._outstanding.clear()
        self._ready.clear()
        self._forget_event()

    def gone(self) -> bool:
        with self.target.lock:
            return (self.abandoned or self.dead) and not self.line

    def close(self, timeout_s: float) -> bool:
        in_order = not self.line
        self.abandon()
        return in_order

    def die(self, *, running: bool = False) -> None:
        with self.target.lock:
            self.dead = True
            outstanding = list(self._outstanding)
            self.forsake()
            if not running:
                self.line.clear()
                self.target.dismiss(self)
            for number in outstanding:
                self._deliver(Answer(number, errno.ESRCH, -1))

    def _forget_event(self) -> None:
        if self._event is not None:
            os.close(self._event)
            self._event = None

    def failed(self, request: Request, code: int) -> None:
        self._refused.add(request.handle)

    def carry_out(self, request: Request) -> tuple[int, bytes]:
        files = self.target.files
        if request.verb is Verb.CLOSE:
            self._refused.discard(request.handle)
            if self._handles.pop(request.handle, None) is None:
                raise fail(errno.EBADF)
            return 0, b""
        if request.verb is Verb.OPEN:
            if request.handle in self._handles:
                raise fail(errno.EBUSY)
            self._refused.discard(request.handle)
            file = files.file(request.path)
            self._append(file, request)
            files.mkdirs(posixpath.dirname(request.path2))
            files.link(request.path, request.path2)
            files.unlink(request.path)
            self._handles[request.handle] = file
            return request.length, b""
        if request.handle in self._refused:
            raise fail(errno.EIO)
        if request.handle not in self._handles:
            raise fail(errno.EBADF)
        self._append(self._handles[request.handle], request)
        return request.length, b""

    def _append(self, file: MemoryFile, request: Request) -> None:
        if request.offset % BLOCK_BYTES or request.length % BLOCK_BYTES or request.extent % BLOCK_BYTES or request.length <= 0:
            raise fail(errno.EINVAL)
        self.target.files.reserve(request.offset + request.length - file.seen_size)
        file.write_through(request.offset, self._pool.view(Extent(request.extent, request.length)))
        file.mtime_ns = self.target.clock.utc_ns()

    def tear(self, request: Request, rng: Random) -> None:
        if request.verb is Verb.APPEND and request.handle in self._handles and request.handle not in self._refused:
            write_sectors(self._handles[request.handle], request.offset, self._pool.view(Extent(request.extent, request.length)), rng)


class MemoryKeeper(_Worker):
    """Keeper of a MemoryTarget. Restarting it takes a new line and leaves the old one's running call behind."""

    def __init__(self, target: MemoryTarget) -> None:
        super().__init__(target)
        self._closed = False
        self._verbs: dict[Verb, Callable[[Request], tuple[int, bytes]]] = {
            Verb.LOOK: self._look,
            Verb.PREPARE: self._prepare,
            Verb.LIST: self._list,
            Verb.STAT: self._stat,
            Verb.SPACE: self._space,
            Verb.READ: self._read,
            Verb.WRITE: self._write,
            Verb.SYNC: self._sync,
            Verb.TRUNCATE: self._truncate,
            Verb.RENAME: self._rename,
            Verb.LINK: self._link,
            Verb.UNLINK: self._unlink,
            Verb.MKDIR: self._mkdir,
            Verb.PUT: self._put,
            Verb.RMDIR: self._rmdir,
            Verb.ABOUT: lambda _: (0, b'{"fstype": "memory"}'),
        }

    def submit(self, request: Request) -> Future[Answer]:
        if request.verb in APPENDER_VERBS:
            raise ValueError(f"a keeper does not {request.verb.name}")
        future: Future[Answer] = Future()
        if self._closed:
            future.set_result(Answer(0, UNAVAILABLE))
            return future
        self.target.enlist(self)
        self.put(request, lambda answer: _resolve(future, answer), first=request.verb is Verb.LOOK)
        return future

    def call(self, request: Request, timeout_s: float) -> Answer:
        """As in the contract; while held on a clock of a simulation it does not wait at all."""
        future = self.submit(request)
        try:
            return future.result(timeout_s if isinstance(self.target.clock, SystemClock) else 0)
        except TimeoutError:
            return Answer(0, UNAVAILABLE)

    def restart(self) -> bool:
        self.die(running=self.target.held)
        return True

    def close(self, timeout_s: float) -> bool:
        in_order = not self.line
        self._closed = True
        self.die(running=self.target.held)
        return in_order

    def die(self, *, running: bool = False) -> None:
        with self.target.lock:
            outstanding = list(self.line)
            if running and outstanding and outstanding[0].answer is None:
                ghost = _Ghost(self)
                ghost.line.append(outstanding[0])
            self.line.clear()
            self.target.dismiss(self)
        for pending in outstanding:
            pending.deliver(Answer(pending.number, UNAVAILABLE))

    def failed(self, request: Request, code: int) -> None:
        if request.verb is Verb.SYNC and request.path in self.target.files.files:
            self.target.files.files[request.path].sync_failed()

    def carry_out(self, request: Request) -> tuple[int, bytes]:
        for path in (request.path, request.path2):
            if path.startswith("/") or ".." in path.split("/"):
                raise fail(errno.EINVAL)
        if not self.target.mounted and request.verb not in (Verb.LOOK, Verb.SPACE):
            if request.verb is Verb.LIST and not request.path:
                return 0, b"[]"
            raise fail(errno.ENOENT)
        return self._verbs[request.verb](request)

    # --- verbs

    def _look(self, request: Request) -> tuple[int, bytes]:
        ask: dict[str, Any] = json.loads(bytes(request.data))
        files, identity, block, counter_errno = self.target.files, None, "", 0
        claims = dict.fromkeys(ask["epochs"], "")
        if self.target.mounted and ask["identity"] in files.files:
            file = files.files[ask["identity"]]
            text = file.read(0, 4096, fresh=False).decode()
            identity = {"text": text, "device": DEVICE, "inode": file.inode}
            for journal, path in ask["epochs"].items():
                claims[journal] = max((name for name in files.names(path) if not name.startswith(".")), default="")
            if ask["expect"] and f'"{ask["expect"]}"' in text:
                try:
                    block = self._advance(ask["block"], ask["text"])
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    counter_errno = errno.ENOSPC
        space = self._space_of()
        seen = {"identity": identity, "block": block, "claims": claims, "counter_errno": counter_errno, **space}
        return 0, json.dumps(seen).encode()

    def _advance(self, path: str, text: str) -> str:
        files = self.target.files
        if path not in files.files:
            files.mkdirs(posixpath.dirname(path))
            files.reserve(BLOCK_BYTES)
            files.create(path, self.target.clock.utc_ns(), synced=True)
        files.files[path].write_through(0, text.encode().ljust(BLOCK_BYTES, b"\0"))
        return files.files[path].read(0, BLOCK_BYTES, fresh=True).rstrip(b"\0").decode()

    def _prepare(self, request: Request) -> tuple[int, bytes]:
        files = self.target.files
        files.mkdirs(posixpath.dirname(request.path))
        if request.path in files.files:
            raise fail(errno.EEXIST)
        files.reserve(request.length)
        files.create(request.path, self.target.clock.utc_ns(), synced=True).size = request.length
        return 1, b""

    def _list(self, request: Request) -> tuple[int, bytes]:
        files, behind = self.target.files, bytes(request.data).decode()
        files.need_dir(request.path)
        names = [name for name in files.names(request.path) if name > behind]
        rows: list[list[Any]] = []
        for name in names[:LIST_PAGE]:
            file = files.files.get(posixpath.join(request.path, name))
            rows.append([name, 0, True, 0] if file is None else [name, file.seen_size, False, file.mtime_ns])
        return int(len(names) > LIST_PAGE), json.dumps(rows).encode()

    def _stat(self, request: Request) -> tuple[int, bytes]:
        files = self.target.files
        file = files.files.get(request.path)
        if file is None:
            files.need_dir(request.path)
            stat = {"size": 0, "blocks": 0, "mtime_ns": 0, "dev": DEVICE, "ino": 1, "dir": True}
        else:
            size = file.seen_size
            stat = {"size": size, "blocks": -(-size // 512), "mtime_ns": file.mtime_ns, "dev": DEVICE, "ino": file.inode, "dir": False}
        return 0, json.dumps(stat).encode()

    def _space_of(self) -> dict[str, int]:
        capacity = self.target.files.capacity_bytes
        return {"total_bytes": capacity, "free_bytes": max(0, capacity - self.target.files.used_bytes)}

    def _space(self, request: Request) -> tuple[int, bytes]:
        space = self._space_of()
        return 0, json.dumps({"total": space["total_bytes"], "free": space["free_bytes"], "inodes_free": 1 << 20}).encode()

    def _read(self, request: Request) -> tuple[int, bytes]:
        if request.length > KEEPER_PIECE_BYTES:
            raise fail(errno.EINVAL)
        return 0, self.target.files.file(request.path).read(request.offset, request.length, fresh=request.fresh)

    def _write(self, request: Request) -> tuple[int, bytes]:
        if len(request.data) > KEEPER_PIECE_BYTES:
            raise fail(errno.EINVAL)
        files = self.target.files
        file = files.files.get(request.path) or files.create(request.path, self.target.clock.utc_ns(), synced=False)
        files.reserve(request.offset + len(request.data) - file.seen_size)
        file.dirty.append((request.offset, bytes(request.data)))
        file.mtime_ns = self.target.clock.utc_ns()
        return len(request.data), b""

    def _sync(self, request: Request) -> tuple[int, bytes]:
        files = self.target.files
        if request.path in files.dirs:
            files.sync_dir(request.path)
        else:
            files.file(request.path).sync()
        return 0, b""

    def _truncate(self, request: Request) -> tuple[int, bytes]:
        file = self.target.files.file(request.path)
        self.target.files.reserve(request.length - file.seen_size)
        file.truncate(request.length)
        return 0, b""

    def _rename(self, request: Request) -> tuple[int, bytes]:
        self.target.files.rename(request.path, request.path2)
        return 0, b""

    def _link(self, request: Request) -> tuple[int, bytes]:
        self.target.files.link(request.path, request.path2)
        return 0, b""

    def _unlink(self, request: Request) -> tuple[int, bytes]:
        self.target.files.unlink(request.path)
        return 0, b""

    def _mkdir(self, request: Request) -> tuple[int, bytes]:
        self.target.files.mkdirs(request.path)
        return 0, b""

    def _put(self, request: Request) -> tuple[int, bytes]:
        files = self.target.files
        files.reserve(len(request.data))
        files.create(request.path, self.target.clock.utc_ns(), synced=True).write_through(0, bytes(request.data))
        return 0, b""

    def _rmdir(self, request: Request) -> tuple[int, bytes]:
        if not request.path:
            raise fail(errno.EBUSY)
        self.target.files.rmdir(request.path)
        return 0, b""


class _Ghost(_Worker):
    """The running call of a keeper that was given up."""

    def __init__(self, keeper: MemoryKeeper) -> None:
        super().__init__(keeper.target)
        self._keeper = keeper
        self.abandoned = True

    def carry_out(self, request: Request) -> tuple[int, bytes]:
        return self._keeper.carry_out(request)

    def die(self, *, running: bool = False) -> None:
        if not running:
            self.line.clear()
            self.target.dismiss(self)


def _resolve(future: Future[Answer], answer: Answer) -> None:
    """The future gets its answer, unless somebody cancelled it."""
    if not future.done() and future.set_running_or_notify_cancel():
        future.set_result(answer)
