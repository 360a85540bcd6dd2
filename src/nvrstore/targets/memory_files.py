"""A model of a file system that can lose power: what `memory.py` keeps its files in.

    names -> file { data: on the medium | dirty: written, not synced | phantom: a sync of it failed }

A plain read sees all three layers, a fresh one sees no phantoms (as on Linux: after a failed sync the page cache shows
bytes that the disk does not have). `crash` drops what was not synced: dirty bytes, and names made by a bare WRITE whose
directory was not synced. Errors are `OSError`, as from the real one. Not thread-safe: `memory.py` holds the lock.
"""

from __future__ import annotations

import errno
import posixpath
from dataclasses import dataclass, field
from random import Random
from typing import Final

SECTOR_BYTES: Final = 512  # what a disk writes whole or not at all


def fail(code: int) -> OSError:
    return OSError(code, "model")


@dataclass(slots=True)
class MemoryFile:
    """One inode. `size` may exceed the data: preallocated space reads as zeroes."""

    inode: int
    mtime_ns: int
    size: int = 0
    data: bytearray = field(default_factory=bytearray)
    dirty: list[tuple[int, bytes]] = field(default_factory=list)
    phantom: list[tuple[int, bytes]] = field(default_factory=list)

    @property
    def seen_size(self) -> int:
        """The size that `stat` tells: with what only the page cache has."""
        if not self.dirty and not self.phantom:
            return self.size
        return max([self.size, *(at + len(piece) for at, piece in self.dirty), *(at + len(piece) for at, piece in self.phantom)])

    def write_through(self, at: int, piece: bytes | memoryview) -> None:
        """Bytes that are on the medium when this returns."""
        end = at + len(piece)
        if end > len(self.data):
            self.data.extend(bytes(end - len(self.data)))
        memoryview(self.data)[at:end] = piece  # in place: assigning to a slice of the bytearray would copy the piece twice
        self.size = max(self.size, end)

    def read(self, at: int, length: int, *, fresh: bool) -> bytes:
        layers = self.dirty if fresh else [*self.phantom, *self.dirty]
        size = max([self.size, *(start + len(piece) for start, piece in layers)])
        out = bytearray(max(0, min(length, size - at)))
        stored = self.data[at : at + len(out)]
        out[: len(stored)] = stored
        for start, piece in layers:
            first, last = max(start, at), min(start + len(piece), at + len(out))
            if first < last:
                out[first - at : last - at] = piece[first - start : last - start]
        return bytes(out)

    def sync(self) -> None:
        for at, piece in self.dirty:
            self.write_through(at, piece)
        self.dirty.clear()

    def sync_failed(self) -> None:
        """The pages count as clean now, and are not on the medium: the next sync will succeed, and mean nothing."""
        self.phantom += self.dirty
        self.dirty.clear()

    def truncate(self, size: int) -> None:
        self.sync()
        del self.data[size:]
        self.size = size

    def crash(self, rng: Random | None) -> None:
        """Lose what was not synced; with `rng`, some of its sectors may have arrived."""
        for at, piece in self.dirty:
            if rng is not None:
                write_sectors(self, at, piece, rng)
        self.dirty.clear()
        self.phantom.clear()


def write_sectors(file: MemoryFile, at: int, piece: bytes | memoryview, rng: Random) -> None:
    """Write a random subset of the sectors of `piece`: a write that was under way when the power went."""
    for start in range(0, len(piece), SECTOR_BYTES):
        if rng.random() < 0.5:
            file.write_through(at + start, piece[start : start + SECTOR_BYTES])


class MemoryFiles:
    """Names, directories, files."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.files: dict[str, MemoryFile] = {}
        self.dirs: set[str] = {""}
        self._unsynced_names: set[str] = set()
        self._inodes = 1

    @property
    def used_bytes(self) -> int:
        return sum({file.inode: file.seen_size for file in self.files.values()}.values())

    def reserve(self, growth: int) -> None:
        """Raise ENOSPC when `growth` more bytes do not fit."""
        if growth > 0 and self.used_bytes + growth > self.capacity_bytes:
            raise fail(errno.ENOSPC)

    def file(self, path: str) -> MemoryFile:
        try:
            return self.files[path]
        except KeyError:
            raise fail(errno.EISDIR if path in self.dirs else errno.ENOENT) from None

    def create(self, path: str, mtime_ns: int, *, synced: bool) -> MemoryFile:
        if path in self.files or path in self.dirs:
            raise fail(errno.EEXIST)
        self.need_dir(posixpath.dirname(path))
        self._inodes += 1
        made = self.files[path] = MemoryFile(self._inodes, mtime_ns)
        if not synced:
            self._unsynced_names.add(path)
        return made

    def need_dir(self, path: str) -> None:
        if path not in self.dirs:
            raise fail(errno.ENOTDIR if path in self.files else errno.ENOENT)

    def mkdirs(self, path: str) -> None:
        while path not in self.dirs:
            if path in self.files:
                raise fail(errno.ENOTDIR)
            self.dirs.add(path)
            path = posixpath.dirname(path)

    def sync_dir(self, path: str) -> None:
        self._unsynced_names = {name for name in self._unsynced_names if posixpath.dirname(name) != path}

    def link(self, path: str, path2: str) -> None:
        file = self.file(path)
        if path2 in self.files or path2 in self.dirs:
            raise fail(errno.EEXIST)
        self.need_dir(posixpath.dirname(path2))
        self.files[path2] = file
        self.sync_dir(posixpath.dirname(path2))

    def rename(self, path: str, path2: str) -> None:
        self.need_dir(posixpath.dirname(path2))
        if path in self.dirs:
            self._rename_dir(path, path2)
        else:
            if path2 in self.dirs:
                raise fail(errno.EISDIR)
            file = self.file(path)
            del self.files[path]
            self.files[path2] = file
        self.sync_dir(posixpath.dirname(path))
        self.sync_dir(posixpath.dirname(path2))

    def _rename_dir(self, path: str, path2: str) -> None:
        if path2 in self.files or self.names(path2):
            raise fail(errno.ENOTEMPTY if path2 in self.dirs else errno.ENOTDIR)
        inside = path + "/"
        self.dirs = {path2 + d[len(path) :] if d == path or d.startswith(inside) else d for d in self.dirs}
        self.files = {path2 + n[len(path) :] if n.startswith(inside) else n: f for n, f in self.files.items()}

    def unlink(self, path: str) -> None:
        self.file(path)
        del self.files[path]
        self._unsynced_names.discard(path)
        self.sync_dir(posixpath.dirname(path))

    def rmdir(self, path: str) -> None:
        self.need_dir(path)
        if self.names(path):
            raise fail(errno.ENOTEMPTY)
        self.dirs.remove(path)

    def names(self, path: str) -> list[str]:
        """Names in a directory, sorted."""
        inside = path + "/" if path else ""
        return sorted(
            {name[len(inside) :] for name in (*self.files, *self.dirs) if name.startswith(inside) and "/" not in name[len(inside) :]} - {""}
        )

    def crash(self, rng: Random | None) -> None:
        """The power goes: see the module's docstring. With `rng`, chance decides what arrived of the un-synced."""
        for path in sorted(self._unsynced_names):
            if path in self.files and (rng is None or rng.random() < 0.5):
                del self.files[path]
        self._unsynced_names.clear()
        for file in {f.inode: f for f in self.files.values()}.values():
            file.crash(rng)
