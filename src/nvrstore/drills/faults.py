"""Real faults of file systems, injected on purpose: the one module that tests and drills share.

    with LoopDisk.mounted("ext4", image, mount_point) as disk:    a small file system of its own, on a loop device
        disk.cut_power()       un-synced data is thrown away: shut down by ioctl, then mounted again
        disk.turn_read_only()  ext4: an error of its own, errors=remount-ro
        with frozen(path): ... every write hangs, in a state that SIGKILL does not end
        with filled(path): ... no byte is left
        with moved_away(path): ... the path leads to an empty directory, as after an unmount

Each fault takes itself back when its `with` block ends. Needs root, except `filled` and `moved_away`. This module touches
the file system in the calling thread, and may hang with it: it is for drills, never for a recorder.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from nvrstore.errors import NvrstoreError
from nvrstore.limits import MIB

_GOINGDOWN: Final = 0x8004587D  # EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN
_NOLOGFLUSH: Final = (2).to_bytes(4, "little")  # what is not in the log on disk yet is lost
_FIFREEZE: Final = 0xC0045877
_FITHAW: Final = 0xC0045878
#: The smallest images that mkfs takes, and its options: quiet, and quick.
_MKFS: Final = {
    "ext4": (16 * MIB, ["mkfs.ext4", "-q", "-F"]),
    "xfs": (300 * MIB, ["mkfs.xfs", "-q", "-f"]),
    "btrfs": (128 * MIB, ["mkfs.btrfs", "-q", "-f"]),
}


class FaultError(NvrstoreError):
    """A fault could not be injected here."""

    hint = "file system faults need root, loop devices and the file system's tools"


def _run(*command: str | os.PathLike[str]) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError as error:
        raise FaultError(f"{command[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        raise FaultError(f"{' '.join(map(str, command))}: {error.stderr.strip()}") from error


def is_mounted(path: Path) -> bool:
    """Whether something is mounted at `path`, by the table of mounts: the path itself may be broken, or hang."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split(" ")[4] == str(path) for line in mounts)


def _unmount(path: Path) -> None:
    try:
        _run("umount", path)
    except FaultError:
        _run("umount", "--lazy", path)


class LoopDisk:
    """A file system in a file, mounted through a loop device."""

    def __init__(self, fstype: str, image: Path, path: Path, *, options: str) -> None:
        self.fstype, self.image, self.path, self.options = fstype, image, path, options

    @classmethod
    @contextmanager
    def mounted(
        cls, fstype: str, image: Path, path: Path, *, size_bytes: int = 0, options: str = "", features: Sequence[str] = ()
    ) -> Iterator[LoopDisk]:
        """Make `image` (of at least `size_bytes`) a file system, mount it at `path`; both are gone afterwards.

        `options` are those of mount, `features` further words for mkfs.
        """
        if fstype not in _MKFS:
            raise FaultError(f"no image of {fstype} can be made; one of {', '.join(_MKFS)}")
        least, mkfs = _MKFS[fstype]
        with image.open("wb") as file:
            file.truncate(max(least, size_bytes))
        _run(*mkfs, *features, image)
        path.mkdir(parents=True, exist_ok=True)
        disk = cls(fstype, image, path, options=options)
        disk.mount()
        try:
            yield disk
        finally:
            disk.unmount()
            image.unlink()

    @property
    def shuts_down(self) -> bool:
        """Whether `shut_down` is to be had."""
        return self.fstype in ("ext4", "xfs")

    @property
    def turns_read_only(self) -> bool:
        """Whether `turn_read_only` is to be had."""
        return self.fstype == "ext4"

    def mount(self) -> None:
        _run("mount", "-o", ",".join(["loop", *filter(None, [self.options])]), self.image, self.path)

    def unmount(self) -> None:
        """Also where processes still have files open: the path is free at once, the rest follows when they go."""
        if is_mounted(self.path):
            _unmount(self.path)

    def shut_down(self) -> None:
        """From now on every call fails with EIO, and what was not synced is lost. Not on btrfs."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _GOINGDOWN, _NOLOGFLUSH)
        except OSError as error:
            raise FaultError(f"{self.fstype} cannot be shut down: {error}") from error
        finally:
            os.close(fd)

    def power_on(self) -> None:
        """Mount it again after `shut_down`. Nobody may have files open, or it is the same, broken mount."""
        _run("umount", self.path)
        self.mount()

    def cut_power(self) -> None:
        """A power cut and a new start."""
        self.shut_down()
        self.power_on()

    def turn_read_only(self) -> None:
        """As after an error of its own: writes fail with EROFS. ext4 only; mounted with errors=remount-ro."""
        device = Path(_run("findmnt", "-no", "SOURCE", self.path).strip()).name
        trigger = Path(f"/sys/fs/ext4/{device}/trigger_fs_error")
        if self.fstype != "ext4" or not trigger.exists():
            raise FaultError(f"{self.fstype} cannot be told to fail")
        trigger.write_text("1")


@contextmanager
def frozen(path: Path) -> Iterator[None]:
    """Every write to the file system at `path` hangs, SIGKILL or not, until the block ends; reads and stat answer."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, _FIFREEZE, 0)
        try:
            yield
        finally:
            fcntl.ioctl(fd, _FITHAW, 0)
    except OSError as error:
        raise FaultError(f"{path} cannot be frozen: {error}") from error
    finally:
        os.close(fd)


@contextmanager
def filled(path: Path, *, leave_bytes: int = 0) -> Iterator[Path]:
    """The file system at `path` has at most `leave_bytes` left: a file takes the rest, and goes when the block ends."""
    filler = path / ".filler"
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        _fill(fd, path, leave_bytes)
        yield filler
    finally:
        os.close(fd)
        filler.unlink()


def _fill(fd: int, path: Path, leave_bytes: int) -> None:
    block = os.statvfs(path).f_frsize
    piece, size = 64 * MIB, 0
    while piece >= block:
        room = os.statvfs(path)
        free = room.f_bfree if os.geteuid() == 0 else room.f_bavail  # root may take what is reserved for it
        take = min(piece, free * block - leave_bytes) // block * block
        try:
            if take <= 0:
                raise OSError(errno.ENOSPC, "as little as asked for")
            os.posix_fallocate(fd, size, take)
            size += take
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            piece //= 4
    os.fsync(fd)


@contextmanager
def moved_away(path: Path) -> Iterator[Path]:
    """The path leads to an empty directory, what was there is elsewhere: as after an unmount, or a careless `mv`.

    Descriptors that are open go on working there. What is written at the path meanwhile is thrown away.
    """
    elsewhere = path.with_name(path.name + ".moved")
    path.rename(elsewhere)
    path.mkdir()
    try:
        yield elsewhere
    finally:
        shutil.rmtree(path)
        elsewhere.rename(path)


@contextmanager
def covered(path: Path) -> Iterator[None]:
    """Another, empty file system is mounted over the path: what a swapped or missing mount looks like from above."""
    _run("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path)
    try:
        yield
    finally:
        _run("umount", "--lazy", path)


@contextmanager
def small_tmpfs(path: Path, *, size_bytes: int, inodes: int = 0) -> Iterator[Path]:
    """A tmpfs of exactly that size, and with so many `inodes` where they are given, mounted at `path`."""
    path.mkdir(parents=True, exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={size_bytes}" + (f",nr_inodes={inodes}" if inodes else ""), "tmpfs", path)
    try:
        yield path
    finally:
        _unmount(path)
