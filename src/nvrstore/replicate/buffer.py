"""The replay buffer: what was taken in and is not yet safe everywhere, bounded in bytes.

    waiting fragments (heap)  --built once-->  extents of the pool  --freed when nobody can need or touch them

An extent has *uses*: one for its batch until that is settled, one per request that was handed to a port until it was
answered, taken back, or its worker is gone for good. It is freed at zero uses, never earlier: a stuck O_DIRECT write puts
on the disk whatever is in the memory when it thaws.
Used by the engine's thread only.
"""

from __future__ import annotations

from nvrstore.limits import BUFFER_BYTES_MIN
from nvrstore.targets.pool import Extent, Pool


class Held:
    """An extent with a count of its uses."""

    __slots__ = ("_pool", "extent", "uses")

    def __init__(self, pool: Pool, extent: Extent) -> None:
        self._pool = pool
        self.extent = extent
        self.uses = 1

    @property
    def view(self) -> memoryview:
        return self._pool.view(self.extent)

    def take(self) -> None:
        if self.uses <= 0:
            raise RuntimeError("an extent was used after it was freed")
        self.uses += 1

    def drop(self) -> None:
        if self.uses <= 0:
            raise RuntimeError("an extent was dropped once too often")
        self.uses -= 1
        if self.uses == 0:
            self._pool.free(self.extent)


class ReplayBuffer:
    """Accounts for both halves: `waiting_bytes` (fragments on the heap, kept by the lanes) and the pool's extents."""

    def __init__(self, pool: Pool, *, bytes_max: int) -> None:
        if bytes_max > pool.size:
            raise ValueError("the bound of the buffer exceeds its pool")
        self.pool = pool
        self.bytes_max = max(bytes_max, min(BUFFER_BYTES_MIN, pool.size))
        self.waiting_bytes = 0

    @property
    def bytes(self) -> int:
        """All that is held now."""
        return self.waiting_bytes + self.pool.taken_bytes

    @property
    def full(self) -> bool:
        return self.bytes >= self.bytes_max

    def hold(self, length: int) -> Held | None:
        """An extent for `length` bytes with one use, or None when there is no room."""
        extent = self.pool.alloc(length)
        return None if extent is None else Held(self.pool, extent)
