"""Steers a file system that fails on demand: the side of `fuse_server.py` that tests and drills use.

    with FuseDisk.mounted(backing, mount_point) as disk:
        disk.fail(errno.EIO, "write", "fsync")
        disk.hang("statfs", times=1)        one call does not come back; those behind it are carried out
    disk.hang("getattr", "open")        like an NFS server that went away: also stat and open do not come back
        disk.clear()
        disk.abort()                        the daemon dies: ENOTCONN for everything, now and later

Operations are FUSE's: getattr readdir open create read write truncate fallocate fsync fsyncdir flush mkdir rmdir unlink
rename link statfs, or "*". Needs /dev/fuse, libfuse and mfusepy. Whoever holds this object never touches the mount point.
"""

from __future__ import annotations

import importlib.util
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from nvrstore.drills.faults import FaultError

ANSWER_S: Final = 20.0  # a daemon that says nothing for so long will not


class FuseDisk:
    """One mounted file system, and the daemon behind it."""

    def __init__(self, daemon: subprocess.Popen[str], path: Path) -> None:
        self._daemon, self.path = daemon, path

    @classmethod
    @contextmanager
    def mounted(cls, backing: Path, path: Path) -> Iterator[FuseDisk]:
        """Mount `backing` at `path`; both directories exist. Unmounted afterwards, also when it hangs."""
        if importlib.util.find_spec("mfusepy") is None or not os.path.exists("/dev/fuse"):
            raise FaultError("there is no FUSE here", hint="`pip install mfusepy`, `apt install fuse3`, and access to /dev/fuse")
        # By path: it needs nothing of the library around it, and is up in a moment.
        command = [sys.executable, "-P", str(Path(__file__).with_name("fuse_server.py")), str(backing), str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as daemon:
            try:
                disk = cls(daemon, path)
                disk._hear("ready")
                yield disk
            finally:
                if daemon.stdin is not None:
                    daemon.stdin.close()  # it ends, and with it every call that hangs; umount itself would hang on one
                daemon.wait()
                subprocess.run(["umount", "--lazy", path], check=False, capture_output=True)

    def _tell(self, **rule: object) -> None:
        if self._daemon.stdin is None or self._daemon.poll() is not None:
            raise FaultError("the daemon is gone, and its file system with it")
        self._daemon.stdin.write(json.dumps(rule) + "\n")
        self._daemon.stdin.flush()
        self._hear("done")

    def _hear(self, word: str) -> None:
        """Wait for one line of the daemon."""
        out = self._daemon.stdout
        if out is None or not select.select([out], [], [], ANSWER_S)[0] or out.readline() != word + "\n":
            raise FaultError(f"the daemon of {self.path} did not say that it is {word}")

    def fail(self, code: int, *ops: str, times: int | None = None) -> None:
        """These operations (all, when none is named) answer with an error number; each only so many `times`, where given."""
        for op in ops or ("*",):
            self._tell(op=op, errno=code, times=times)

    def hang(self, *ops: str, times: int | None = None) -> None:
        """These operations (all, when none is named) do not come back until `clear`; only the first `times` of each, where given."""
        for op in ops or ("*",):
            self._tell(op=op, hang=True, times=times)

    def clear(self) -> None:
        """All is well again; what hung goes on."""
        self._tell(clear=True)

    def abort(self) -> None:
        """Kill the daemon, and with it the connection: everything that hangs fails, and all that comes. For good."""
        self._daemon.kill()
        self._daemon.wait()
