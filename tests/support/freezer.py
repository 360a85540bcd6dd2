"""Stops a process and its children all at one moment, as the pause of a virtual machine does, and lets them go on.

    with Freezer() as freezer:                   around the life of the processes
        freezer.take(pid, *children)
        with freezer.stopped(): ...              nothing of them runs; sockets fill, clocks go on

By a cgroup of their own (version 1 or 2), which later children are born into; SIGSTOP, one after the other, where there is none.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from nvrstore.clock import SYSTEM_CLOCK

GO_S = 10.0  # so long may processes take to leave the group, or to stop


class Freezer:
    """See the module."""

    def __init__(self) -> None:
        self._pids: tuple[int, ...] = ()
        self._group: Path | None = None
        self._switch, self._words = "", ("", "")

    @property
    def how(self) -> str:
        """In words."""
        return f"cgroup freezer ({self._switch})" if self._group else "SIGSTOP"

    def __enter__(self) -> Self:
        return self

    def take(self, *pids: int) -> None:
        """These are to be stopped together, with all children that they have from now on. Once."""
        self._pids = pids
        for root, switch, words in _freezers():
            group = root / f"nvrstore-test-{os.getpid()}"
            try:
                group.mkdir()
                for pid in pids:
                    (group / "cgroup.procs").write_text(str(pid))
                (group / switch).write_text(words[1])
            except OSError:
                if group.is_dir():
                    group.rmdir()
                continue  # not ours to use: a container, a plain user
            self._group, self._switch, self._words = group, switch, words
            return

    def __exit__(self, *_: object) -> None:
        """After its processes have ended."""
        deadline_s, pause = SYSTEM_CLOCK.monotonic_s() + GO_S, threading.Event()
        while self._group is not None:
            try:
                self._group.rmdir()
                return
            except OSError:
                if SYSTEM_CLOCK.monotonic_s() > deadline_s:
                    raise
            pause.wait(0.01)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Nothing of them runs inside the block."""
        self._set(stop=True)
        try:
            yield
        finally:
            self._set(stop=False)

    def _set(self, *, stop: bool) -> None:
        if self._group is not None:
            (self._group / self._switch).write_text(self._words[0 if stop else 1])
            return
        for pid in self._pids:
            os.kill(pid, signal.SIGSTOP if stop else signal.SIGCONT)


def _freezers() -> Iterator[tuple[Path, str, tuple[str, str]]]:
    """Where groups can be made, the file that stops one, and the words for stop and go."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        fstype, _, options = right.split(" ", 2)
        where = Path(left.split(" ")[4])
        if fstype == "cgroup2":
            yield where, "cgroup.freeze", ("1", "0")
        elif fstype == "cgroup" and "freezer" in options.split(","):
            yield where, "freezer.state", ("FROZEN", "THAWED")
