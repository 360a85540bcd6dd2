"""System calls that touch a target, and the root of a target.

Invariant: before each such call the worker checks that its parent lives and that it was not abandoned, and stamps when
the call began. Without the guard file (`target.json`) at the root nothing is changed: a bare mount point is never filled.
"""

from __future__ import annotations

import errno
import os
import time

from .storage import mount_of
from .wire import ABANDONED, BUFFERED, FLAGS, NO_DSYNC, NO_FALLOCATE, NO_LINKS, READ_AHEAD, START_NS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ParamSpec, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")

#: File systems of one machine whose write path honours RWF_DSYNC; elsewhere a write is followed by fdatasync.
DSYNC_FILE_SYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs"})
RWF_DSYNC: int = getattr(os, "RWF_DSYNC", 0)  # not in every C library
UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY})
NO_SUCH = frozenset({errno.ENOENT, errno.ENOTDIR})
SPARE_BYTES = 1 << 20  # what a file system may need for its own when it says that so much more than the bytes of a write are free


class Forsaken(BaseException):
    """The parent is gone or has given this worker up: nothing on the target may be touched any more."""


def is_dir(mode: int) -> bool:
    return mode & 0o170000 == 0o040000


def is_special(mode: int) -> bool:
    """Whether it is a FIFO, a socket or a device: to open one may take for ever."""
    return mode & 0o170000 not in (0o040000, 0o100000, 0o120000)


def refuse(code: int) -> OSError:
    return OSError(code, os.strerror(code))


class Calls:
    """Every system call that touches the target goes through here: checked, then stamped."""

    def __init__(self, stamps: memoryview, parent_pid: int) -> None:
        self.stamps = stamps
        self.parent_pid = parent_pid
        self.failed_ns = 0  # when the first call failed since somebody set this to 0

    def __call__(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        stamps = self.stamps
        if stamps[ABANDONED] or (self.parent_pid and os.getppid() != self.parent_pid):
            raise Forsaken
        stamps[START_NS] = time.monotonic_ns()
        try:
            return function(*args, **kwargs)
        except OSError:
            self.failed_ns = self.failed_ns or time.monotonic_ns()
            raise
        finally:
            stamps[START_NS] = 0

    def close(self, fd: int) -> None:
        """Close a descriptor, also when forsaken: the end of the process would do the same."""
        self.stamps[START_NS] = time.monotonic_ns()
        try:
            os.close(fd)
        finally:
            self.stamps[START_NS] = 0

    def note(self, flag: int) -> None:
        self.stamps[FLAGS] |= flag


class Place:
    """The root of a target, by path, and what both kinds of workers do there."""

    def __init__(self, calls: Calls, root: str, guard: str) -> None:
        self.calls, self.root, self.guard = calls, root, guard
        self._dsync: bool | None = None

    def at(self, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/") or "\0" in path:
            raise refuse(errno.EINVAL)
        return f"{self.root}/{path}" if path else self.root

    def check_identity(self) -> None:
        """No identity, no write."""
        try:
            self.calls(os.stat, self.at(self.guard))
        except OSError as error:
            raise refuse(errno.ENODEV) if error.errno in NO_SUCH else error from None

    def open_direct(self, path: str, flags: int) -> tuple[int, bool]:
        """A descriptor past the page cache, or, where that is refused, through it."""
        try:
            return self.calls(os.open, path, flags | os.O_DIRECT | os.O_CLOEXEC), True
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
        self.calls.note(BUFFERED)
        return self.calls(os.open, path, flags | os.O_CLOEXEC), False

    def dsync(self, fd: int) -> bool:
        """Whether RWF_DSYNC is to be trusted on the file system that `fd` lies on."""
        if self._dsync is None:
            self._dsync = bool(RWF_DSYNC) and mount_of(fd).get("fstype") in DSYNC_FILE_SYSTEMS
            if not self._dsync:
                self.calls.note(NO_DSYNC)
        return self._dsync

    def write_durable(self, fd: int, memory: memoryview, offset: int) -> None:
        """Bytes that are on the medium when this returns. A short write is a failure; the rest is tried once, to learn why."""
        dsync = self.dsync(fd)
        flags = RWF_DSYNC if dsync else 0
        wrote = self.calls(os.pwritev, fd, [memory], offset, flags)
        if wrote != len(memory):
            self.calls(os.pwritev, fd, [memory[wrote:]], offset + wrote, flags)
            raise refuse(errno.EIO)
        if not dsync:
            self.calls(os.fdatasync, fd)

    def full_below(self, fd: int, end: int, length: int) -> bool:
        """Whether a write of `length` bytes up to `end` had its space, and the file system has more: what lies below it is full then.

        Free space alone would not tell: retention may have made some since the write failed, and quotas count elsewhere.
        """
        try:
            room, file = self.calls(os.fstatvfs, fd), self.calls(os.fstat, fd)
        except OSError:
            return False
        return bool(room.f_bavail * room.f_frsize >= length + SPARE_BYTES and file.st_blocks * 512 >= end)

    def write_back(self, fd: int) -> None:
        """Have what was copied so far written while more of it comes, and leave the page cache: the sync at the end is short then."""
        self.advise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def read_on(self, fd: int, offset: int) -> None:
        """A file is read as a whole, and is at `offset` now: have the medium go on meanwhile; what was read is not read again."""
        self.advise(fd, offset, READ_AHEAD, os.POSIX_FADV_WILLNEED)
        if offset:
            self.advise(fd, max(0, offset - READ_AHEAD), min(offset, READ_AHEAD), os.POSIX_FADV_DONTNEED)

    def advise(self, fd: int, offset: int, length: int, advice: int) -> None:
        """What will, or will not, be wanted next."""
        try:
            self.calls(os.posix_fadvise, fd, offset, length, advice)
        except OSError:
            pass  # advice; what goes wrong with the bytes themselves is what reads and syncs say

    def sync_dir(self, path: str) -> None:
        fd = self.calls(os.open, path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.fsync_dir(fd)
        finally:
            self.calls.close(fd)

    def fsync_dir(self, fd: int) -> None:
        try:
            self.calls(os.fsync, fd)
        except OSError as error:
            if error.errno not in UNSUPPORTED:  # some network file systems have no such thing
                raise

    def make_dirs(self, path: str) -> None:
        """`path` (absolute) and its missing parents below the root, each durable in its own parent."""
        missing = []
        while len(path) > len(self.root):
            try:
                if not is_dir(self.calls(os.stat, path).st_mode):
                    raise refuse(errno.ENOTDIR)
                break
            except FileNotFoundError:
                missing.append(path)
                path = os.path.dirname(path)
        for folder in reversed(missing):
            try:
                self.calls(os.mkdir, folder)
            except FileExistsError:
                pass  # somebody else was faster
            self.sync_dir(os.path.dirname(folder))

    def give_name(self, temporary: str, name: str) -> None:
        """Move a finished file to a name that must be free: EEXIST otherwise."""
        try:
            self.calls(os.link, temporary, name)
        except OSError as error:
            if error.errno not in UNSUPPORTED | {errno.EPERM, errno.EMLINK}:
                raise
        else:
            self.calls(os.unlink, temporary)
            return
        self.calls.note(NO_LINKS)  # reserve the name, then rename over the reservation: nobody else can have got it
        self.calls.close(self.calls(os.open, name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        self.calls(os.rename, temporary, name)


def preallocate(calls: Calls, fd: int, length: int) -> bool:
    """fallocate(2) itself: `os.posix_fallocate` writes real blocks where the file system has no such thing."""
    import ctypes  # late: only a keeper needs it

    if length <= 0:
        return True
    libc = ctypes.CDLL(None, use_errno=True)
    function = getattr(libc, "fallocate64", None) or libc.fallocate
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    while calls(function, fd, 0, 0, length) != 0:
        code = ctypes.get_errno()
        if code == errno.EINTR:
            continue
        if code in UNSUPPORTED:
            calls.note(NO_FALLOCATE)
            return False
        raise refuse(code)
    return True
