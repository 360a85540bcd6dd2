"""Targets of a sandbox that can be broken: real faults where the machine allows them, simulated ones where it does not.

    fuse    a directory behind a FUSE file system of our own: errors and hangs of every call, in the kernel
    disk    a small file system of its own, which can be filled: an ext4 on a loop device, if no other is asked for
            frail: one that can be shut down, too (ext4, xfs); ext4: one that can be told to turn read-only, too
    thin    an ext4 whose medium has no space although it has: on a loop device over an image behind FUSE
    plain   a directory; errors and hangs are simulated in the worker's answers (targets/faulty.py)

Where a file system is asked for (FILE_SYSTEMS), every target gets one of that kind to lie on, also what is behind FUSE; `fuse` itself puts
every target behind FUSE.

A place says of itself what it is, and the report repeats it: nobody shall take a simulated fault for a real one.
The runner never touches the path of a place that may hang; what is stored is read below `stored`.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.drills.faults import FaultError, LoopDisk, small_tmpfs
from nvrstore.drills.fuse_disk import FuseDisk
from nvrstore.limits import MIB
from nvrstore.targets.contract import Verb
from nvrstore.targets.directory import DirectoryTarget
from nvrstore.targets.faulty import FaultyTarget
from nvrstore.targets.identity import init_target
from nvrstore.targets.steps import run_steps

DISK_BYTES: Final = 512 * MIB
FILE_SYSTEMS: Final = ("ext4", "xfs", "btrfs", "tmpfs", "fuse")
MOUNT_S: Final = 5.0  # workers of a target that was lost end within this, and its mount point is free then
REAL: Final = {"fuse": "through FUSE", "disk": "on a file system of its own", "thin": "below a file system of its own, through FUSE"}
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
    disk: LoopDisk | None = None  # the loop device that it lies on, alone
    own: bool = False  # its file system is its own: it can be filled
    faulty: FaultyTarget | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def how(self) -> str:
        """How its faults are made, in words."""
        real = REAL.get(self.kind)
        return real if real is not None else f"{SIMULATED} ({self.why_plain})" if self.why_plain else SIMULATED

    def fail(self, code: int = errno.EIO) -> None:
        """Every call ends with an error number, until `clear`; below a file system, every write to its medium."""
        if self.fuse is not None:
            self.fuse.fail(code, *(("write",) if self.kind == "thin" else ()))
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
def made(name: str, folder: Path, kinds: Sequence[str], *, filesystem: str | None = None) -> Iterator[Place]:
    """A target below `folder`, initialised: the first of `kinds` that this machine has. Raises FaultError when it has none of them.

    `filesystem`: one of FILE_SYSTEMS that it lies on; without one, it lies where `folder` does.
    """
    if filesystem == "fuse":
        if "fuse" not in kinds and "plain" not in kinds:
            raise FaultError(f"target {name}: no FUSE can do what this takes")
        kinds = ("fuse",)
    problems = []
    with ExitStack() as stack:
        below, disk = stack.enter_context(_ground(name, folder, filesystem))
        for kind in kinds:
            if below != folder and not _suffers(kind, disk):
                problems.append(f"{filesystem} cannot be {'shut down' if kind == 'frail' else 'told to turn read-only'}")
                continue
            try:
                place = stack.enter_context(_KINDS[kind](name, folder, below, disk))
            except FaultError as error:
                problems.append(str(error))
                continue
            place.why_plain = "; ".join(problems)
            _initialise(place)
            yield place
            return
    raise FaultError(f"target {name}: {'; '.join(problems)}")


@contextmanager
def _ground(name: str, folder: Path, filesystem: str | None) -> Iterator[tuple[Path, LoopDisk | None]]:
    """The directory below which a target lies, and the loop device under that."""
    ground = folder / f"{name}.ground"
    if filesystem in (None, "fuse"):
        yield folder, None
    elif filesystem == "tmpfs":
        with small_tmpfs(ground, size_bytes=DISK_BYTES):
            yield ground, None
    else:
        with _loop(filesystem or "", folder / f"{name}.img", ground) as disk:
            yield ground, disk


@contextmanager
def _loop(filesystem: str, image: Path, path: Path) -> Iterator[LoopDisk]:
    options = "errors=remount-ro" if filesystem == "ext4" else ""
    with LoopDisk.mounted(filesystem, image, path, size_bytes=DISK_BYTES, options=options) as disk:
        yield disk


@contextmanager
def _plain(name: str, folder: Path, below: Path, disk: LoopDisk | None) -> Iterator[Place]:
    path = below / name
    path.mkdir(exist_ok=True)  # what could not be mounted may have left its mount point
    yield Place(name, path, path, disk=disk, own=below != folder)


@contextmanager
def _fuse(name: str, folder: Path, below: Path, _: LoopDisk | None) -> Iterator[Place]:
    backing, mounted = below / f"{name}.disk", folder / f"{name}.fuse"
    backing.mkdir()
    mounted.mkdir()
    with FuseDisk.mounted(backing, mounted) as fuse:
        (backing / name).mkdir()
        yield Place(name, mounted / name, backing / name, "fuse", fuse=fuse)


@contextmanager
def _disk(name: str, folder: Path, below: Path, disk: LoopDisk | None) -> Iterator[Place]:
    if below != folder:  # it has one already
        with _plain(name, folder, below, disk) as place:
            place.kind = "disk"
            yield place
        return
    path = folder / name
    with _loop("ext4", folder / f"{name}.img", path) as made_for_it:
        yield Place(name, path, path, "disk", disk=made_for_it, own=True)


@contextmanager
def _thin(name: str, folder: Path, below: Path, _: LoopDisk | None) -> Iterator[Place]:
    backing, medium, path = below / f"{name}.backing", folder / f"{name}.medium", folder / name
    for made_for_it in (backing, medium, path):
        made_for_it.mkdir()
    # Without a journal: ext4 gives itself up with the first write to that which fails, and this is about a failure that passes.
    features = ("-O", "^has_journal")
    with (
        FuseDisk.mounted(backing, medium) as fuse,
        LoopDisk.mounted("ext4", medium / "image", path, size_bytes=DISK_BYTES, features=features) as disk,
    ):
        yield Place(name, path, path, "thin", fuse=fuse, disk=disk, own=True)


def _suffers(kind: str, disk: LoopDisk | None) -> bool:
    """Whether the file system that is there already can be broken as this kind can."""
    match kind:
        case "frail":
            return disk is not None and disk.shuts_down
        case "ext4":
            return disk is not None and disk.turns_read_only
        case _:
            return True


_KINDS: Final = {"fuse": _fuse, "disk": _disk, "frail": _disk, "ext4": _disk, "thin": _thin, "plain": _plain}


def _initialise(place: Place) -> None:
    target = DirectoryTarget(place.name, place.path)
    try:
        run_steps(init_target(place.name), {place.name: target}, timeout_s=10.0)
    finally:
        target.close(2.0)
