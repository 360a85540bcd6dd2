"""Extents of shared memory: who takes which, and what is handed over in them from one process to another.

    a pool      [ this process's extents ··· | window of worker 1 ··· | window of worker 2 ··· ]      one memfd
                 taken and freed here         taken there, freed here: the worker is told

Not a FIFO: one stuck write would block everything behind it. Extents know no owners: whoever takes one decides when it is
free (every member acknowledged it, and nobody can still touch it: replicate/ keeps that rule).
"""

from __future__ import annotations

import threading
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from nvrstore.limits import BLOCK_BYTES


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """`length` bytes at `offset` of the pool; both multiples of 4096."""

    offset: int
    length: int


class Extents:
    """`size` bytes from 0 on, in extents of whole 4096-byte blocks: first fit, merged when freed. Used by one thread at a time."""

    def __init__(self, size: int, taken: Sequence[Extent] = ()) -> None:
        """`taken`: what somebody still has, from before."""
        self.size: Final = size
        self._taken: set[Extent] = set(taken)
        self._free: list[Extent] = []
        at = 0
        for extent in sorted(taken):
            if extent.offset > at:
                self._free.append(Extent(at, extent.offset - at))
            at = extent.offset + extent.length
        if at < size:
            self._free.append(Extent(at, size - at))

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


class Memory(Protocol):
    """Where extents lie, and who wants them back."""

    def view(self, extent: Extent) -> memoryview:
        """Its bytes, writable."""

    def free(self, extent: Extent) -> None:
        """Nobody needs or touches it any more."""


class Window:
    """A stretch of a pool that another process fills, one after the other: the place of a worker, not of a process. Thread-safe.

    That process takes extents there and hands them over; here stands what was handed over and is not free again. Whoever
    follows it is told of that first, so nothing that is still needed is written over.
    """

    def __init__(self, pool: memoryview, fd: int, offset: int, length: int) -> None:
        self._pool, self.fd, self.offset, self.length = pool, fd, offset, length
        self._lock = threading.Lock()
        self._taken: set[Extent] = set()  # as the pool counts
        self.taken_bytes = 0
        self._tell: Callable[[Extent], None] = _nobody

    def open(self, begin: Callable[[tuple[Extent, ...]], None], tell: Callable[[Extent], None]) -> None:
        """Another process fills it from now on: `begin` is told what is taken, and before any `tell` what is free again.

        Both count from the window's beginning, and must not block.
        """
        with self._lock:
            begin(tuple(self._inside(extent) for extent in sorted(self._taken)))
            self._tell = tell

    def take(self, offset: int, length: int) -> Extent:
        """The process has handed over `length` bytes at `offset` of the window. Raises ValueError where that cannot be."""
        extent = Extent(self.offset + offset, length)
        end = offset + length
        if offset < 0 or length <= 0 or end > self.length or (offset | length) % BLOCK_BYTES:
            raise ValueError(f"there is no extent of {length} bytes at {offset} of a window")
        with self._lock:
            if any(other.offset < extent.offset + length and extent.offset < other.offset + other.length for other in self._taken):
                raise ValueError(f"{length} bytes at {offset} of a window were handed over twice")
            self._taken.add(extent)
            self.taken_bytes += length
        return extent

    def view(self, extent: Extent) -> memoryview:
        """Its bytes, writable."""
        return self._pool[extent.offset : extent.offset + extent.length]

    def free(self, extent: Extent) -> None:
        """Nobody needs or touches it any more: its process may fill it again. Raises KeyError for one that is not taken."""
        with self._lock:
            self._taken.remove(extent)
            self.taken_bytes -= extent.length
            self._tell(self._inside(extent))

    def _inside(self, extent: Extent) -> Extent:
        return Extent(extent.offset - self.offset, extent.length)


class Loan:
    """An extent that was handed over with `count` fragments in it, and goes back when the last of them has left it.

    Unless somebody keeps it (`keep`): then it is a batch, and whoever keeps it gives it back.
    """

    __slots__ = ("_left", "count", "extent", "memory")

    def __init__(self, memory: Memory, extent: Extent, count: int) -> None:
        self.memory, self.extent = memory, extent
        self.count: Final = count
        self._left = count

    @property
    def whole(self) -> bool:
        """Whether no fragment has left it."""
        return self._left == self.count

    def keep(self) -> None:
        """The extent stays as it is, whatever leaves it."""
        self._left = -1

    def leave(self) -> None:
        """One of its fragments was copied elsewhere, or given up."""
        if self._left > 0:
            self._left -= 1
            if self._left == 0:
                self.memory.free(self.extent)


def _nobody(_: Extent) -> None:
    """Between two processes."""
