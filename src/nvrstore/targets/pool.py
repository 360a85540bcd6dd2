"""The pool: shared memory in which batches are built once and from which workers write them.

    one memfd, passed to workers by descriptor; contiguous extents of whole 4096-byte blocks; first fit, merged when freed

Not a FIFO: one stuck write would block everything behind it. The pool knows no owners: whoever allocates decides when
an extent is free (every member acknowledged it, and no worker can still touch it: replicate/ keeps that rule).
Used by one thread.
"""

from __future__ import annotations

import mmap
import os
from bisect import insort
from dataclasses import dataclass
from typing import Final

from nvrstore.limits import BLOCK_BYTES


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """`length` bytes at `offset` of the pool; both multiples of 4096."""

    offset: int
    length: int


class Pool:
    """A memfd of `size_bytes` (rounded up to whole blocks), mapped for writing here, for reading in workers."""

    def __init__(self, size_bytes: int) -> None:
        self.size: Final = -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES
        self.fd: Final = os.memfd_create("nvrstore-pool", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.size)
        self._map = mmap.mmap(self.fd, self.size)
        self._view = memoryview(self._map)
        self._free: list[Extent] = [Extent(0, self.size)]
        self._taken: set[Extent] = set()

    @property
    def free_bytes(self) -> int:
        return sum(extent.length for extent in self._free)

    @property
    def taken_bytes(self) -> int:
        return self.size - self.free_bytes

    def alloc(self, length: int) -> Extent | None:
        """An extent of `length` bytes rounded up to whole blocks, or None when there is no room for it in one piece."""
        length = -(-length // BLOCK_BYTES) * BLOCK_BYTES
        if length <= 0:
            raise ValueError("an extent has at least one byte")
        for i, hole in enumerate(self._free):
            if hole.length >= length:
                taken = Extent(hole.offset, length)
                if hole.length == length:
                    del self._free[i]
                else:
                    self._free[i] = Extent(hole.offset + length, hole.length - length)
                self._taken.add(taken)
                return taken
        return None

    def free(self, extent: Extent) -> None:
        """Give an extent back. Raises KeyError for one that is not taken: freeing twice would let two batches share memory."""
        self._taken.remove(extent)
        insort(self._free, extent)
        merged: list[Extent] = []
        for hole in self._free:
            if merged and merged[-1].offset + merged[-1].length == hole.offset:
                merged[-1] = Extent(merged[-1].offset, merged[-1].length + hole.length)
            else:
                merged.append(hole)
        self._free = merged

    def view(self, extent: Extent) -> memoryview:
        """The extent's memory, writable."""
        return self._view[extent.offset : extent.offset + extent.length]

    def close(self) -> None:
        """Unmap and close. Workers that still have it mapped keep the memory until they go."""
        self._view.release()
        self._map.close()
        os.close(self.fd)
