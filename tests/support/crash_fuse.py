"""A disk in one file that writes down everything that is done to it: every write, every flush, and marks from outside.

python crash_fuse.py BACKING MOUNT_POINT LOG         MOUNT_POINT/disk is BACKING; a loop device goes over it
stdin:  "mark N", "quit"        stdout: "ready", "done"

log: { kind: W write, F flush, M mark | offset, or the mark's number | length | bytes } in the order in which they happened
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
import threading
from typing import Any

import mfusepy

ENTRY = struct.Struct("<cQQ")


class Disk(mfusepy.Operations):  # type: ignore[misc]
    """One file. Nothing is durable but what the log says."""

    use_ns = True

    def __init__(self, backing: str, log: str) -> None:
        self._fd = os.open(backing, os.O_RDWR)
        self._size = os.fstat(self._fd).st_size
        self._log = open(log, "wb", buffering=0)  # noqa: SIM115 - for the daemon's life
        self._lock = threading.Lock()

    def note(self, kind: bytes, number: int, data: bytes = b"") -> None:
        self._log.write(ENTRY.pack(kind, number, len(data)) + data)

    def mark(self, number: int) -> None:
        with self._lock:
            self.note(b"M", number)

    def init(self, path: str) -> None:
        sys.stdout.write("ready\n")
        sys.stdout.flush()

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}
        if path == "/disk":
            return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": self._size}
        raise mfusepy.FuseOSError(errno.ENOENT)

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", "disk"]

    def open(self, path: str, flags: int) -> int:
        return 1

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(self._fd, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        with self._lock:
            self.note(b"W", offset, data)
            return os.pwrite(self._fd, data, offset)

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        with self._lock:
            self.note(b"F", 0)
        return 0

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        return 0


def listen(disk: Disk) -> None:
    for line in sys.stdin:
        word, _, number = line.strip().partition(" ")
        if word == "mark":
            disk.mark(int(number))
            sys.stdout.write("done\n")
            sys.stdout.flush()
    os._exit(0)


def main() -> None:
    backing, mount_point, log = sys.argv[1:]
    disk = Disk(backing, log)
    threading.Thread(target=listen, args=(disk,), daemon=True).start()
    mfusepy.FUSE(disk, mount_point, foreground=True, nothreads=True, fsname="nvrstore-crash", attr_timeout=3600, entry_timeout=3600)


if __name__ == "__main__":
    main()
