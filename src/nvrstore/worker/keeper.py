"""The keeper: everything but appending. Looks, prepares, lists, reads, copies, mends, renames, deletes.

Writes keep their descriptor until the sync, since a new one might not hear of an error in between.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import time

from .calls import NO_SUCH, Forsaken, Place, is_dir, is_special, preallocate, refuse
from .storage import mount_of
from .wire import (
    ABOUT,
    BLOCK,
    BULK_BYTES,
    BYTES,
    FRESH,
    LINK,
    LIST,
    LIST_PAGE,
    LOOK,
    LOOKED_NS,
    MKDIR,
    PREPARE,
    PUT,
    READ,
    RENAME,
    RMDIR,
    SLOT_BYTES,
    SPACE,
    STAT,
    SYNC,
    TRUNCATE,
    UNLINK,
    WRITE,
    WRITE_BACK,
    WRITING_MAX,
    Ask,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Keeper:
    """Everything else. Writes keep their descriptor until the sync: a new one would not hear of an error in between."""

    def __init__(self, place: Place) -> None:
        self.place, self.calls = place, place.calls
        self.writing: dict[str, int] = {}
        self.unsynced: set[str] = set()  # paths whose early sync failed: SYNC has to say so
        self.blocks = memoryview(mmap.mmap(-1, 2 * BLOCK))  # aligned, for looks
        self.bounce: memoryview | None = None  # aligned, for odd fresh reads
        self.verbs: dict[int, Callable[[Ask], tuple[int, bytes | memoryview]]] = {
            LOOK: self.look,
            PREPARE: self.prepare,
            LIST: self.list,
            STAT: self.stat,
            SPACE: self.space,
            READ: self.read,
            WRITE: self.write,
            SYNC: self.sync,
            TRUNCATE: self.truncate,
            RENAME: self.rename,
            LINK: self.link,
            UNLINK: self.unlink,
            MKDIR: self.mkdir,
            PUT: self.put,
            RMDIR: self.rmdir,
            ABOUT: self.about,
        }

    def do(self, ask: Ask) -> tuple[int, bytes | memoryview]:
        verb = self.verbs.get(ask.verb)
        if verb is None:
            raise refuse(errno.EINVAL)
        free = ask.verb in (LOOK, LIST, STAT, SPACE, READ, SYNC, ABOUT) or (ask.verb == PUT and ask.path == self.place.guard)
        if not free and not (ask.verb == MKDIR and not ask.path):
            self.place.check_identity()
        return verb(ask)

    def end(self) -> None:
        for fd in self.writing.values():
            try:
                self.calls.close(fd)
            except OSError:
                pass  # not synced, so never promised

    # --- looking

    def look(self, ask: Ask) -> tuple[int, bytes]:
        """Who is at the path, who claims the journals, does the medium take and give back a block, how much room is there."""
        want = json.loads(bytes(ask.data))
        identity, block, block_errno = None, "", 0
        claims = dict.fromkeys(want["epochs"], "")
        try:
            fd = self.calls(os.open, self.place.at(want["identity"]), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in NO_SUCH:
                raise
        else:
            try:
                stat, text = self.calls(os.fstat, fd), self.calls(os.read, fd, BLOCK).decode(errors="replace")
            finally:
                self.calls.close(fd)
            identity = {"text": text, "device": stat.st_dev, "inode": stat.st_ino}
            for journal, path in want["epochs"].items():
                claims[journal] = self.newest(self.place.at(path))
            if want["expect"] and f'"{want["expect"]}"' in text:
                try:
                    block = self.turn_block(self.place.at(want["block"]), want["text"].encode())
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    block_errno = error.errno
        room = self.calls(os.statvfs, self.place.root)
        self.calls.stamps[LOOKED_NS] = time.monotonic_ns()
        seen = {
            "identity": identity,
            "claims": claims,
            "block": block,
            "counter_errno": block_errno,
            "total_bytes": room.f_blocks * room.f_frsize,
            "free_bytes": room.f_bavail * room.f_frsize,
        }
        return 0, json.dumps(seen).encode()

    def newest(self, path: str) -> str:
        try:
            return max((name for name in self.calls(os.listdir, path) if not name.startswith(".")), default="")
        except OSError as error:
            if error.errno in NO_SUCH:
                return ""
            raise

    def turn_block(self, path: str, text: bytes) -> str:
        """Write one preallocated block past the page cache, and read it back from the medium."""
        out, back = self.blocks[:BLOCK], self.blocks[BLOCK:]
        out[:] = text.ljust(BLOCK, b"\0")
        try:
            fd, _ = self.place.open_direct(path, os.O_WRONLY)
        except FileNotFoundError:
            fd = self.make_block(path, out)
        try:
            self.place.write_durable(fd, out, 0)
        finally:
            self.calls.close(fd)
        got = self.read_fresh(path, 0, back)
        return bytes(back[:got]).rstrip(b"\0").decode(errors="replace")

    def make_block(self, path: str, out: memoryview) -> int:
        self.place.make_dirs(os.path.dirname(path))
        fd, _ = self.place.open_direct(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            self.calls(os.pwrite, fd, out, 0)
            self.calls(os.fsync, fd)
            self.place.sync_dir(os.path.dirname(path))
        except (OSError, Forsaken):
            self.calls.close(fd)
            self.calls(os.unlink, path)  # forsaken: raises again, and leaves it
            raise
        return fd

    def about(self, ask: Ask) -> tuple[int, bytes]:
        """What kind of storage this is."""
        fd = self.calls(os.open, self.place.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return 0, json.dumps(mount_of(fd)).encode()
        finally:
            self.calls.close(fd)

    def list(self, ask: Ask) -> tuple[int, bytes]:
        behind = os.fsdecode(bytes(ask.data))
        path = self.place.at(ask.path)
        names = sorted(name for name in self.calls(os.listdir, path) if name > behind)
        rows: list[tuple[str, int, bool, int]] = []
        for name in names[:LIST_PAGE]:
            try:
                stat = self.calls(os.lstat, f"{path}/{name}")
            except FileNotFoundError:
                continue
            if is_special(stat.st_mode):
                continue  # nothing of ours: whoever scans what is listed must not wait for it
            directory = is_dir(stat.st_mode)
            rows.append((name, 0 if directory else stat.st_size, directory, stat.st_mtime_ns))
        return int(len(names) > LIST_PAGE), json.dumps(rows).encode()

    def stat(self, ask: Ask) -> tuple[int, bytes]:
        stat = self.calls(os.stat, self.place.at(ask.path))
        directory = is_dir(stat.st_mode)
        seen = {
            "size": stat.st_size,
            "blocks": stat.st_blocks,
            "mtime_ns": stat.st_mtime_ns,
            "dev": stat.st_dev,
            "ino": stat.st_ino,
            "dir": directory,
        }
        return 0, json.dumps(seen).encode()

    def space(self, ask: Ask) -> tuple[int, bytes]:
        room = self.calls(os.statvfs, self.place.root)
        seen = {"total": room.f_blocks * room.f_frsize, "free": room.f_bavail * room.f_frsize, "inodes_free": room.f_favail}
        return 0, json.dumps(seen).encode()

    # --- reading and writing

    def read(self, ask: Ask) -> tuple[int, memoryview]:
        if ask.room is None or ask.length > SLOT_BYTES:
            raise refuse(errno.EINVAL)
        path, out = self.place.at(ask.path), ask.room[: ask.length]
        if ask.flags & FRESH:
            return 0, out[: self.read_fresh(path, ask.offset, out)]
        fd = self.calls(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if len(out) >= BULK_BYTES:
                self.place.read_on(fd, ask.offset)
            return 0, out[: self.fill(fd, ask.offset, out)]
        finally:
            self.calls.close(fd)

    def fill(self, fd: int, offset: int, out: memoryview) -> int:
        """Read until `out` is full or the file ends; returns how much that was."""
        got = 0
        while got < len(out):
            n = self.calls(os.preadv, fd, [out[got:]], offset + got)
            got += n
            if n == 0 or got % BLOCK:
                break
        return got

    def read_fresh(self, path: str, offset: int, out: memoryview) -> int:
        """What the medium has. O_DIRECT wants whole blocks, so that odd requests go through a bounce buffer."""
        fd, direct = self.place.open_direct(path, os.O_RDONLY)
        try:
            if not direct:
                self.calls(os.fdatasync, fd)
                self.calls(os.posix_fadvise, fd, offset, len(out), os.POSIX_FADV_DONTNEED)
                return self.fill(fd, offset, out)
            if not (offset | len(out)) % BLOCK:
                return self.fill(fd, offset, out)
            if self.bounce is None:
                self.bounce = memoryview(mmap.mmap(-1, SLOT_BYTES + 2 * BLOCK))
            skip = offset % BLOCK
            blocks = -(-(skip + len(out)) // BLOCK) * BLOCK
            got = max(0, min(self.fill(fd, offset - skip, self.bounce[:blocks]) - skip, len(out)))
            out[:got] = self.bounce[skip : skip + got]
            return got
        finally:
            self.calls.close(fd)

    def write(self, ask: Ask) -> tuple[int, bytes]:
        path = self.place.at(ask.path)
        fd = self.writing.get(path)
        if fd is None:
            if len(self.writing) >= WRITING_MAX:
                self.settle(next(iter(self.writing)))
            fd = self.writing[path] = self.calls(os.open, path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        done = 0
        while done < len(ask.data):
            n = self.calls(os.pwrite, fd, ask.data[done:], ask.offset + done)
            if n == 0:
                raise refuse(errno.EIO)
            done += n
        self.calls.stamps[BYTES] += done
        if (ask.offset + done) // WRITE_BACK > ask.offset // WRITE_BACK:
            self.place.write_back(fd)
        return done, b""

    def settle(self, path: str) -> None:
        """Too many files are being written: sync one early, and remember if that failed."""
        fd = self.writing.pop(path)
        try:
            self.calls(os.fdatasync, fd)
        except OSError:
            self.unsynced.add(path)
        finally:
            self.calls.close(fd)

    def sync(self, ask: Ask) -> tuple[int, bytes]:
        path = self.place.at(ask.path)
        fd = self.writing.pop(path, None)
        if fd is None:
            fd = self.calls(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if is_dir(self.calls(os.fstat, fd).st_mode):
                self.place.fsync_dir(fd)
            else:
                self.calls(os.fdatasync, fd)
        finally:
            self.calls.close(fd)
        if path in self.unsynced:
            self.unsynced.remove(path)
            raise refuse(errno.EIO)
        return 0, b""

    def truncate(self, ask: Ask) -> tuple[int, bytes]:
        fd = self.calls(os.open, self.place.at(ask.path), os.O_WRONLY | os.O_CLOEXEC)
        try:
            self.calls(os.ftruncate, fd, ask.length)
            self.calls(os.fsync, fd)
        finally:
            self.calls.close(fd)
        return 0, b""

    # --- names

    def prepare(self, ask: Ask) -> tuple[int, bytes]:
        """A new file with its space taken: value 1, or 0 where the file system cannot do that."""
        path = self.place.at(ask.path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            fd = self.calls(os.open, path, flags, 0o666)
        except FileNotFoundError:
            self.place.make_dirs(os.path.dirname(path))
            fd = self.calls(os.open, path, flags, 0o666)
        try:
            taken = preallocate(self.calls, fd, ask.length)
            self.calls(os.fsync, fd)
        except OSError:
            self.calls(os.unlink, path)
            raise
        finally:
            self.calls.close(fd)
        self.place.sync_dir(os.path.dirname(path))
        return int(taken), b""

    def put(self, ask: Ask) -> tuple[int, bytes]:
        path = self.place.at(ask.path)
        folder, name = os.path.split(path)
        temporary = f"{folder}/.put-{os.urandom(8).hex()}"
        fd = self.calls(os.open, temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            done = 0
            while done < len(ask.data):
                done += self.calls(os.write, fd, ask.data[done:])
            self.calls(os.fsync, fd)
            self.place.give_name(temporary, f"{folder}/{name}")
        except OSError:
            self.calls(os.unlink, temporary)
            raise
        finally:
            self.calls.close(fd)
        self.place.sync_dir(folder)
        return 0, b""

    def rename(self, ask: Ask) -> tuple[int, bytes]:
        path, path2 = self.place.at(ask.path), self.place.at(ask.path2)
        self.calls(os.rename, path, path2)
        self.forget(path2)
        for old in [old for old in self.writing if old == path or old.startswith(path + "/")]:
            self.writing[path2 + old[len(path) :]] = self.writing.pop(old)
        self.unsynced = {path2 + old[len(path) :] if old == path or old.startswith(path + "/") else old for old in self.unsynced}
        for folder in {os.path.dirname(path), os.path.dirname(path2)}:
            self.place.sync_dir(folder)
        return 0, b""

    def link(self, ask: Ask) -> tuple[int, bytes]:
        path2 = self.place.at(ask.path2)
        self.calls(os.link, self.place.at(ask.path), path2)
        self.place.sync_dir(os.path.dirname(path2))
        return 0, b""

    def unlink(self, ask: Ask) -> tuple[int, bytes]:
        path = self.place.at(ask.path)
        self.calls(os.unlink, path)
        self.forget(path)
        self.place.sync_dir(os.path.dirname(path))
        return 0, b""

    def forget(self, path: str) -> None:
        self.unsynced.discard(path)
        fd = self.writing.pop(path, None)
        if fd is not None:
            self.calls.close(fd)

    def mkdir(self, ask: Ask) -> tuple[int, bytes]:
        if not ask.path:
            try:
                self.calls(os.mkdir, self.place.root)
                self.place.sync_dir(os.path.dirname(self.place.root))
            except FileExistsError:
                pass
        else:
            self.place.make_dirs(self.place.at(ask.path))
        return 0, b""

    def rmdir(self, ask: Ask) -> tuple[int, bytes]:
        if not ask.path:
            raise refuse(errno.EBUSY)
        path = self.place.at(ask.path)
        self.calls(os.rmdir, path)
        self.place.sync_dir(os.path.dirname(path))
        return 0, b""
