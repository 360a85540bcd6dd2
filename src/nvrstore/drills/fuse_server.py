"""A file system that fails on demand: passes everything on to a directory, in a process of its own, through FUSE.

    python fuse_server.py BACKING MOUNT_POINT
    stdin:  one JSON object a line: {"op": "write" | "*", "errno": 5, "times": 1 | null} | {"clear": true}
            {"op": ..., "hang": true, "times": 1 | null}
    stdout: "ready" once it serves, "done" once a rule is in force

A hanging operation waits until the rules say otherwise, in the daemon; its caller waits in the kernel, as on a dead NFS
server. The daemon ends when its stdin does. Needs mfusepy and libfuse; see `fuse_disk.py` for the side that steers.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
from typing import Any

import mfusepy


def say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


class Rules:
    """Which operation is to fail, which to hang; waited for by those that hang."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._rules: dict[str, dict[str, Any]] = {}
        self._clears = 0

    def apply(self, rule: dict[str, Any]) -> None:
        with self._changed:
            if rule.get("clear"):
                self._rules.clear()
                self._clears += 1
            else:
                self._rules[rule["op"]] = rule
            self._changed.notify_all()

    def check(self, op: str) -> None:
        """Pass, wait, or raise."""
        with self._changed:
            while (rule := self._rules.get(op) or self._rules.get("*")) and rule.get("hang"):
                if rule.get("times"):
                    self._use(rule)
                    now = self._clears
                    self._changed.wait_for(lambda now=now: self._clears > now)  # type: ignore[misc]
                else:
                    self._changed.wait()
            if rule and rule.get("times"):
                self._use(rule)
        if rule:
            raise mfusepy.FuseOSError(rule["errno"])

    def _use(self, rule: dict[str, Any]) -> None:
        rule["times"] -= 1
        if not rule["times"]:
            del self._rules[rule["op"]]


class PassThrough(mfusepy.Operations):  # type: ignore[misc]
    """Every operation is checked against the rules, then carried out on the backing directory."""

    use_ns = True

    def __init__(self, backing: str, rules: Rules) -> None:
        self._backing = backing
        self._rules = rules

    def _at(self, path: str) -> str:
        return self._backing + path

    def init(self, path: str) -> None:
        say("ready")

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        self._rules.check("getattr")
        stat = os.lstat(self._at(path))
        names = ("st_mode", "st_size", "st_uid", "st_gid", "st_nlink", "st_blocks", "st_ino")
        times = {"st_atime": stat.st_atime_ns, "st_mtime": stat.st_mtime_ns, "st_ctime": stat.st_ctime_ns}
        return {**{name: getattr(stat, name) for name in names}, **times}

    def readdir(self, path: str, fh: int) -> list[str]:
        self._rules.check("readdir")
        return [".", "..", *os.listdir(self._at(path))]

    def open(self, path: str, flags: int) -> int:
        self._rules.check("open")
        return os.open(self._at(path), flags & ~os.O_DIRECT)

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        self._rules.check("create")
        return os.open(self._at(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        self._rules.check("read")
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        self._rules.check("write")
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        self._rules.check("truncate")
        os.truncate(self._at(path), length)
        return 0

    def fallocate(self, path: str, mode: int, offset: int, size: int, fh: int) -> int:
        self._rules.check("fallocate")
        if mode:
            raise mfusepy.FuseOSError(errno.EOPNOTSUPP)
        os.posix_fallocate(fh, offset, size)
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        self._rules.check("fsync")
        os.fsync(fh)
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        self._rules.check("fsyncdir")
        return 0

    def flush(self, path: str, fh: int) -> int:
        self._rules.check("flush")
        return 0

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        self._rules.check("mkdir")
        os.mkdir(self._at(path), mode)
        return 0

    def rmdir(self, path: str) -> int:
        self._rules.check("rmdir")
        os.rmdir(self._at(path))
        return 0

    def unlink(self, path: str) -> int:
        self._rules.check("unlink")
        os.unlink(self._at(path))
        return 0

    def rename(self, old: str, new: str) -> int:
        self._rules.check("rename")
        os.rename(self._at(old), self._at(new))
        return 0

    def link(self, target: str, source: str) -> int:
        self._rules.check("link")
        os.link(self._at(source), self._at(target))
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        self._rules.check("statfs")
        room = os.statvfs(self._backing)
        names = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_favail", "f_ffree", "f_files", "f_frsize", "f_namemax")
        return {name: getattr(room, name) for name in names}


def listen(rules: Rules) -> None:
    """Take rules from stdin; its end is the end of the daemon."""
    for line in sys.stdin:
        rules.apply(json.loads(line))
        say("done")
    os._exit(0)  # threads that hang must not keep it


def main() -> None:
    """Serve until unmounted, or until stdin ends."""
    backing, mount_point = sys.argv[1:]
    rules = Rules()
    threading.Thread(target=listen, args=(rules,), daemon=True).start()
    options = {"foreground": True, "nothreads": False, "fsname": "nvrstore-drill"}
    never_cached = {"attr_timeout": 0, "entry_timeout": 0, "negative_timeout": 0}  # a hang is to be felt at once, also by stat
    mfusepy.FUSE(PassThrough(backing, rules), mount_point, **options, **never_cached)


if __name__ == "__main__":
    main()
