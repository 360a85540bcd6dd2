"""A group of processes that may use only so much memory together: who goes beyond it is killed by the kernel, as on a machine without swap.

with MemoryLimit(64 * MIB) as limit:        raises NoLimitError where memory cgroups (version 1 or 2) are not to be had
    limit.take(pid)                         the kernel picks it first
    limit.exhaust()                         something uses up the rest; all that were taken were killed when this returns
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from nvrstore.clock import SYSTEM_CLOCK

GO_S: Final = 20.0  # so long may the kernel take
_GLUTTON: Final = "b = []\nwhile True: b.append(bytearray(1 << 20))"


class NoLimitError(Exception):
    """No group with a limit can be made here: a container, a plain user, a controller that is not mounted."""


class MemoryLimit:
    """See the module."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._group: Path | None = None
        self._taken: list[int] = []

    def __enter__(self) -> Self:
        for root, file in _controllers():
            group = root / f"nvrstore-memory-{os.getpid()}"
            try:
                group.mkdir()
                (group / file).write_text(str(self._limit_bytes))
                _no_swap(group, self._limit_bytes)
            except OSError:
                if group.is_dir():
                    group.rmdir()
                continue
            self._group = group
            return self
        raise NoLimitError("no memory cgroup can be made here")

    def __exit__(self, *_: object) -> None:
        """What is still in it is killed."""
        for pid in self._taken:
            if self._group is not None and str(pid) in (self._group / "cgroup.procs").read_text().split():
                os.kill(pid, signal.SIGKILL)
        deadline_s, pause = SYSTEM_CLOCK.monotonic_s() + GO_S, threading.Event()
        while self._group is not None:
            try:
                self._group.rmdir()
                return
            except OSError:
                if SYSTEM_CLOCK.monotonic_s() > deadline_s:
                    raise
            pause.wait(0.01)

    def take(self, pid: int) -> None:
        """This one is in it from now on, and is the first to be killed."""
        assert self._group is not None
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
        (self._group / "cgroup.procs").write_text(str(pid))
        self._taken.append(pid)

    def exhaust(self) -> None:
        """Use memory until the kernel has killed everybody here."""
        assert self._group is not None
        procs = self._group / "cgroup.procs"
        # It puts itself into the group before it takes anything, so that all of it counts there.
        words = f"open({str(procs)!r}, 'w').write('0')\n{_GLUTTON}"
        with subprocess.Popen([sys.executable, "-I", "-S", "-c", words]) as glutton:
            try:
                glutton.wait(GO_S)
            finally:
                glutton.kill()
        for pid in self._taken:
            assert not _runs(pid), "the kernel has killed it"


def _no_swap(group: Path, limit_bytes: int) -> None:
    """Or the glutton would fill the machine's swap first."""
    for name, value in (("memory.swap.max", 0), ("memory.memsw.limit_in_bytes", limit_bytes)):
        if (group / name).exists():
            (group / name).write_text(str(value))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _controllers() -> Iterator[tuple[Path, str]]:
    """Where groups can be made, and the file that limits one."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        fstype, _, options = right.split(" ", 2)
        where = Path(left.split(" ")[4])
        if fstype == "cgroup" and "memory" in options.split(","):
            yield where, "memory.limit_in_bytes"
        elif fstype == "cgroup2":
            yield where, "memory.max"
