"""An advisory lock on a file that lives exactly as long as the process that holds it (flock; released by the kernel on any death).

Tells a catalog's readers whether its writer lives, and keeps a second writer out. The file itself is left behind: it says
nothing. Where there is no flock (Windows, which can read archives but not record) nothing is locked and nobody is seen.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

try:
    import fcntl
except ImportError:  # pragma: no cover - not on Linux
    fcntl = None  # type: ignore[assignment]

_HELD: Final = frozenset({errno.EACCES, errno.EAGAIN})


class FileLock:
    """One lock, taken and released by one thread at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def acquire(self) -> bool:
        """Take it, or return False at once where somebody else holds it. Raises OSError where the file cannot be made."""
        if self._fd >= 0 or fcntl is None:
            return True
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno in _HELD:
                return False
            raise
        self._fd = fd
        return True

    def release(self) -> None:
        """Give it back. Does nothing when it is not held."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock at `path` now. Touches nothing: False where there is no such file, or it may not be opened."""
    if fcntl is None:
        return False
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _HELD
    finally:
        os.close(fd)
    return False
