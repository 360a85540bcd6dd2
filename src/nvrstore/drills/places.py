"""Targets of a sandbox that can be broken: real faults where the machine allows them, simulated ones where it does not.

    fuse    a directory behind a FUSE file system of our own: errors and hangs of every call, in the kernel
    ext4    a small file system on a loop device: shut down, read-only, full, power cut
    plain   a directory; errors and hangs are simulated in the worker's answers (targets/faulty.py)

A place says of itself what it is, and the report repeats it: nobody shall take a simulated fault for a real one.
The runner never touches the path of a place that may hang; what is stored is read below `stored`.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.drills.faults import FaultError, LoopDisk
from nvrstore.drills.fuse_disk import FuseDisk
from nvrstore.limits import MIB
from nvrstore.targets.contract import Verb
from nvrstore.targets.directory import DirectoryTarget
from nvrstore.targets.faulty import FaultyTarget
from nvrstore.targets.identity import init_target
from nvrstore.targets.steps import run_steps

EXT4_BYTES: Final = 512 * MIB
MOUNT_S: Final = 5.0  # workers of a target that was lost end within this, and its mount point is free then
REAL: Final = {"fuse": "through FUSE", "ext4": "on an ext4 of its own"}
SIMULATED: Final = "simulated in the worker's answers"


@dataclass(slots=True)
class Place:
    """One target. `faulty` is there once a recorder in this process uses it."""

    name: str
    path: Path
    stored: Path
    kind: str = "plain"
    why_plain: str = ""  # what was wished for and could not be had
    fuse: FuseDisk | None = None
    disk: LoopDisk | None = None
    faulty: FaultyTarget | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def how(self) -> str:
        """How its faults are made, in words."""
        real = REAL.get(self.kind)
        return real if real is not None else f"{SIMULATED} ({self.why_plain})" if self.why_plain else SIMULATED

    def fail(self, code: int = errno.EIO) -> None:
        """Every call ends with an error number, until `clear`."""
        if self.fuse is not None:
            self.fuse.fail(code)
        else:
            self._simulator().fail(code)

    def fail_once_at_sync(self) -> None:
        """One sync fails; what it should have made durable is unknown. Everything before and after works."""
        if self.fuse is not None:
            self.fuse.fail(errno.EIO, "fsync", times=1)
        else:
            self._simulator().fail(errno.EIO, verbs={Verb.APPEND, Verb.SYNC}, times=1)

    def fail_opening(self) -> None:
        """A volume cannot get its name; batches of open ones are still written."""
        if self.fuse is not None:
            self.fuse.fail(errno.EIO, "link", "rename", "create")
        else:
            self._simulator().fail(errno.EIO, verbs={Verb.OPEN})

    def hang(self) -> None:
        """No call comes back until `clear`."""
        if self.fuse is not None:
            self.fuse.hang()
        else:
            self._simulator().hang()

    def slow(self, delay_s: float) -> None:
        """Every write takes longer."""
        self._simulator().slow(delay_s, verbs={Verb.APPEND})

    def clear(self) -> None:
        """It works again."""
        if self.fuse is not None:
            self.fuse.clear()
        if self.faulty is not None:
            self.faulty.clear()

    def remount(self) -> None:
        """Start a file system again that was shut down or turned read-only. Its workers have to be gone, and go soon."""
        if self.disk is None:
            raise FaultError(f"{self.name} is no file system of its own")
        deadline_s = SYSTEM_CLOCK.monotonic_s() + MOUNT_S
        while True:
            try:
                self.disk.power_on()
                return
            except FaultError:
                if SYSTEM_CLOCK.monotonic_s() > deadline_s:
                    raise
                threading.Event().wait(0.05)

    def _simulator(self) -> FaultyTarget:
        if self.faulty is None:
            raise FaultError(f"target {self.name}: this fault needs {' or '.join(REAL.values())}, or a recorder in this process")
        return self.faulty


@contextmanager
def made(name: str, folder: Path, kinds: Sequence[str]) -> Iterator[Place]:
    """A target below `folder`, initialised: the first of `kinds` that this machine has. Raises FaultError when it has none of them."""
    problems = []
    for kind in kinds:
        maker = {"fuse": _fuse, "ext4": _ext4, "plain": _plain}[kind](name, folder)
        try:
            place = maker.__enter__()
        except FaultError as error:
            problems.append(str(error))
            continue
        try:
            place.why_plain = "; ".join(problems)
            _initialise(place)
            yield place
        finally:
            maker.__exit__(None, None, None)
        return
    raise FaultError(f"target {name}: {'; '.join(problems)}")


@contextmanager
def _plain(name: str, folder: Path) -> Iterator[Place]:
    path = folder / name
    path.mkdir(exist_ok=True)  # what could not be mounted may have left its mount point
    yield Place(name, path, path)


@contextmanager
def _fuse(name: str, folder: Path) -> Iterator[Place]:
    backing, path = folder / f"{name}.disk", folder / name
    backing.mkdir()
    path.mkdir()
    with FuseDisk.mounted(backing, path) as disk:
        yield Place(name, path, backing, "fuse", fuse=disk)


@contextmanager
def _ext4(name: str, folder: Path) -> Iterator[Place]:
    path = folder / name
    with LoopDisk.mounted("ext4", folder / f"{name}.img", path, size_bytes=EXT4_BYTES, options="errors=remount-ro") as disk:
        yield Place(name, path, path, "ext4", disk=disk)


def _initialise(place: Place) -> None:
    target = DirectoryTarget(place.name, place.path)
    try:
        run_steps(init_target(place.name), {place.name: target}, timeout_s=10.0)
    finally:
        target.close(2.0)
