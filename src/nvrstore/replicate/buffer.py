"""The replay buffer: what was taken in and is not yet safe everywhere, bounded in bytes.

    waiting fragments (heap)  --built once-->  extents of the pool  --freed when nobody can need or touch them
    laid out by an ingest worker --in place-->  extents of its window  --the same, and the worker is told

An extent has *uses*: one for its batch until that is settled, one per request that was handed to a port until it was
answered, taken back, or its worker is gone for good. It is freed at zero uses, never earlier: a stuck O_DIRECT write puts
on the disk whatever is in the memory when it thaws.
Used by the engine's thread only.
"""

from __future__ import annotations

from collections.abc import Callable

from nvrstore.extents import Extent, Loan, Memory
from nvrstore.limits import BUFFER_BYTES_MIN
from nvrstore.targets.pool import Pool


class Held:
    """An extent with a count of its uses."""

    __slots__ = ("_memory", "extent", "uses")

    def __init__(self, memory: Memory, extent: Extent) -> None:
        self._memory = memory
        self.extent = extent
        self.uses = 1

    @property
    def view(self) -> memoryview:
        return self._memory.view(self.extent)

    def take(self) -> None:
        if self.uses <= 0:
            raise RuntimeError("an extent was used after it was freed")
        self.uses += 1

    def drop(self) -> None:
        if self.uses <= 0:
            raise RuntimeError("an extent was dropped once too often")
        self.uses -= 1
        if self.uses == 0:
            self._memory.free(self.extent)


class ReplayBuffer:
    """Accounts for all of it: `waiting_bytes` (fragments in no window, kept by the lanes), extents of the pool and of its windows."""

    def __init__(self, pool: Pool, *, bytes_max: int) -> None:
        if bytes_max > pool.size:
            raise ValueError("the bound of the buffer exceeds its pool")
        self.pool = pool
        self.bytes_max = max(bytes_max, min(BUFFER_BYTES_MIN, pool.size))
        self.waiting_bytes = 0
        self.holders: list[Callable[[], int]] = []  # how much of it each journal holds

    @property
    def bytes(self) -> int:
        """All that is held now."""
        return self.waiting_bytes + self.pool.taken_bytes + sum(window.taken_bytes for window in self.pool.windows)

    @property
    def full(self) -> bool:
        return self.bytes >= self.bytes_max

    @property
    def most_held(self) -> int:
        """Bytes of the journal that holds most."""
        return max((held() for held in self.holders), default=0)

    def hold(self, length: int) -> Held | None:
        """An extent for `length` bytes with one use, or None when there is no room."""
        extent = self.pool.alloc(length)
        return None if extent is None else Held(self.pool, extent)

    def keep(self, loan: Loan) -> Held:
        """What an ingest worker has laid out, with one use: it is a batch from now on."""
        loan.keep()
        return Held(loan.memory, loan.extent)
