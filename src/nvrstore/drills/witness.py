"""Beside a drill, somebody else writes to the file systems of targets that nothing is done to: are they as fast as they should be?

A disk that really took a second for a write was rightly declared lost, however innocent the drill; on a busy machine that happens. So each
such file system gets a small file that is written and synced a few times a second, and a loss by age is a false alarm only where these
writes came back in time. The recorder has no part in it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from nvrstore.clock import SYSTEM_CLOCK, Clock

PERIOD_S: Final = 0.2
BLOCK: Final = bytes(4096)
STALL_S: Final = 0.5  # half of the deadline of the class ssd: a batch waits for more than one such write
BACK_S: Final = 4.0  # a loss is judged by the writes of the last seconds: pauses of the recorder excuse a target for as long as 3 s
JOIN_S: Final = 5.0


class Witness:
    """Writes below each of `folders` (by target) until it is closed."""

    def __init__(self, folders: Mapping[str, Path], clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._ended = threading.Event()
        self._stalls: dict[str, list[tuple[float, float]]] = {target: [] for target in folders}  # begin and end of what took too long
        self._running: dict[str, float] = {}  # since when, by target
        self._threads = [
            threading.Thread(target=self._write, args=(target, folder / f"{target}.witness"), name="nvrstore-drill-witness", daemon=True)
            for target, folder in folders.items()
        ]
        for thread in self._threads:
            thread.start()

    def stalled_s(self, target: str, at_s: float) -> float:
        """The longest write that ran shortly before `at_s` (monotonic), if it was too long; else 0."""
        stalls = list(self._stalls.get(target, ()))
        running_s = self._running.get(target)
        if running_s is not None:
            stalls.append((running_s, self._clock.monotonic_s()))
        near = [end_s - begin_s for begin_s, end_s in stalls if begin_s <= at_s and end_s >= at_s - BACK_S]
        return max((took_s for took_s in near if took_s >= STALL_S), default=0.0)

    def close(self) -> None:
        """Nothing is written any more."""
        self._ended.set()
        for thread in self._threads:
            thread.join(JOIN_S)

    def _write(self, target: str, path: Path) -> None:
        while not self._ended.wait(PERIOD_S):
            begin_s = self._running[target] = self._clock.monotonic_s()
            with suppress(OSError):  # full, say, or broken on purpose after all: the recorder has its own words for that
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    os.pwrite(fd, BLOCK, 0)
                    os.fdatasync(fd)
                finally:
                    os.close(fd)
            now_s = self._clock.monotonic_s()
            if now_s - begin_s >= STALL_S:
                self._stalls[target].append((begin_s, now_s))
            self._running.pop(target, None)
        with suppress(OSError):
            path.unlink()
