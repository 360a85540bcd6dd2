"""The pool: shared memory in which batches are built once and from which workers write them.

    one memfd, passed to workers by descriptor; contiguous extents of whole 4096-byte blocks, and behind them a window for
    each process that builds batches elsewhere (extents.py)

Used by one thread, but for its windows.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from contextlib import suppress
from typing import Final

from nvrstore.extents import Extent, Extents, Window
from nvrstore.limits import BLOCK_BYTES


class Pool(Extents):
    """A memfd, mapped for writing here, for reading in workers: `size_bytes` (rounded up to whole blocks), and `windows` behind them."""

    def __init__(self, size_bytes: int, *, windows: int = 0, window_bytes: int = 0) -> None:
        super().__init__(_blocks(size_bytes))
        window_bytes = _blocks(window_bytes)
        self.length: Final = self.size + windows * window_bytes  # of all that workers map
        self.fd: Final = os.memfd_create("nvrstore-pool", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, self.length)
        # Ingest workers have the descriptor: none can take a page away that is mapped here.
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self._map = mmap.mmap(self.fd, self.length)
        self._view = memoryview(self._map)
        self.windows: Final = tuple(Window(self._view, self.fd, self.size + i * window_bytes, window_bytes) for i in range(windows))

    def view(self, extent: Extent) -> memoryview:
        """The extent's memory, writable."""
        return self._view[extent.offset : extent.offset + extent.length]

    def close(self) -> None:
        """Unmap and close. Workers that still have it mapped keep the memory until they go, and so does who still looks at it here."""
        self._view.release()
        with suppress(BufferError):
            self._map.close()
        os.close(self.fd)


def _blocks(size_bytes: int) -> int:
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES
