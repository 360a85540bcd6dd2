"""The keeper of the target in memory."""

from __future__ import annotations

import errno
import json
import posixpath
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final

from nvrstore.clock import SystemClock
from nvrstore.limits import ABANDONED_WORKERS_MAX, BLOCK_BYTES, KEEPER_PIECE_BYTES
from nvrstore.targets.contract import APPENDER_VERBS, UNAVAILABLE, Answer, Request, Verb
from nvrstore.targets.memory_files import fail
from nvrstore.targets.memory_line import Line

if TYPE_CHECKING:
    from nvrstore.targets.memory import MemoryTarget

DEVICE: Final = 0x4D454D  # st_dev of every file here
LIST_PAGE: Final = 500  # names in one answer to LIST


class MemoryKeeper(Line):
    """Keeper of a MemoryTarget. Restarting it takes a new line and leaves the old one's running call behind."""

    def __init__(self, target: MemoryTarget) -> None:
        super().__init__(target)
        self._closed = self._ended = False
        self._woken = False  # its rest ends when it has finished: to be given up, it would be one too many
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
        if self._woken and not self.line:
            self.resting = self._woken = False
        if self._closed or self.resting or not self._alive():
            future.set_result(Answer(0, UNAVAILABLE))
            return future
        self.target.enlist(self)
        self.put(request, lambda answer: resolve(future, answer), first=request.verb is Verb.LOOK)
        return future

    def call(self, request: Request, timeout_s: float) -> Answer:
        """As in the contract; while held on a clock of a simulation it does not wait at all."""
        future = self.submit(request)
        try:
            return future.result(timeout_s if isinstance(self.target.clock, SystemClock) else 0)
        except TimeoutError:
            return Answer(0, UNAVAILABLE)

    def restart(self) -> bool:
        with self.target.lock:
            if not self._ended and self.target.spoken_for() >= ABANDONED_WORKERS_MAX:
                return False
        self.die(running=self.target.held)
        return not self.resting and self._alive()

    def rest(self) -> None:
        self.resting, self._woken = True, False

    def wake(self) -> None:
        with self.target.lock:
            self._woken = bool(self.line) and self.target.spoken_for() >= ABANDONED_WORKERS_MAX
        if self._woken:
            return
        if self.line:
            self.die(running=self.target.held)  # it had not come to rest
        self.resting = False

    def _alive(self) -> bool:
        """Whether there is a worker, after starting one where there is none."""
        self._ended &= self.target.workers_stuck() >= ABANDONED_WORKERS_MAX
        return not self._ended

    def close(self, timeout_s: float) -> bool:
        in_order = not self.line
        self._closed = True
        self.die(running=self.target.held)
        return in_order

    def die(self, *, running: bool = False) -> None:
        with self.target.lock:
            outstanding = list(self.line)
            if running and outstanding and outstanding[0].answer is None:
                ghost = Ghost(self)
                ghost.line.append(outstanding[0])
            self.line.clear()
            self._ended = True
            self.target.dismiss(self)
        for pending in outstanding:
            pending.deliver(Answer(pending.number, UNAVAILABLE))

    def failed(self, request: Request) -> None:
        if request.verb is Verb.SYNC and request.path in self.target.files.files:
            self.target.files.files[request.path].sync_failed()

    def carry_out(self, request: Request) -> tuple[int, bytes]:
        for path in (request.path, request.path2):
            if len(path) > 4096:
                raise fail(errno.ENAMETOOLONG)
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


class Ghost(Line):
    """The running call of a keeper that was given up."""

    def __init__(self, keeper: MemoryKeeper) -> None:
        super().__init__(keeper.target)
        self._keeper = keeper
        self.abandoned = True

    def carry_out(self, request: Request) -> tuple[int, bytes]:
        return self._keeper.carry_out(request)

    def close(self, timeout_s: float) -> bool:
        return False

    def die(self, *, running: bool = False) -> None:
        if not running:
            self.line.clear()
            self.target.dismiss(self)


def resolve(future: Future[Answer], answer: Answer) -> None:
    """The future gets its answer, unless somebody cancelled it."""
    if not future.done() and future.set_running_or_notify_cancel():
        future.set_result(answer)
