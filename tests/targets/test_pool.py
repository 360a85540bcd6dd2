"""The pool: extents never overlap, and are merged when they come back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvrstore.extents import Extent
from nvrstore.limits import BLOCK_BYTES
from nvrstore.targets.pool import Pool


def test_an_extent_is_whole_blocks_and_freed_once() -> None:
    """Freeing twice would let two batches share memory."""
    pool = Pool(10 * BLOCK_BYTES)
    try:
        extent = pool.alloc(1)
        assert extent == Extent(0, BLOCK_BYTES)
        pool.free(extent)
        with pytest.raises(KeyError):
            pool.free(extent)
        with pytest.raises(ValueError, match="at least one byte"):
            pool.alloc(0)
    finally:
        pool.close()


def test_one_stuck_extent_does_not_block_the_others() -> None:
    """It is not a queue: everything around the stuck one is used again and again."""
    pool = Pool(8 * BLOCK_BYTES)
    try:
        stuck = pool.alloc(BLOCK_BYTES)
        for _ in range(50):
            extent = pool.alloc(7 * BLOCK_BYTES)
            assert extent is not None
            assert pool.alloc(1) is None
            pool.free(extent)
        assert stuck is not None
        pool.free(stuck)
        assert pool.free_bytes == pool.size
    finally:
        pool.close()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 6 * BLOCK_BYTES)), max_size=120))
def test_whatever_is_taken_and_freed_extents_are_disjoint_and_nothing_is_lost(steps: list[tuple[bool, int]]) -> None:
    """Accounting adds up after every step, and what was written to one extent is not seen in another."""
    pool = Pool(24 * BLOCK_BYTES)
    taken: list[tuple[Extent, int]] = []
    try:
        for i, (allocate, length) in enumerate(steps):
            if allocate or not taken:
                extent = pool.alloc(length)
                if extent is not None:
                    mark = i % 251 + 1
                    pool.view(extent)[:] = bytes([mark]) * extent.length
                    taken.append((extent, mark))
            else:
                extent, mark = taken.pop(length % len(taken))
                assert bytes(pool.view(extent)) == bytes([mark]) * extent.length
                pool.free(extent)
            assert pool.taken_bytes == sum(extent.length for extent, _ in taken)
        for extent, _ in taken:
            pool.free(extent)
        assert pool.alloc(pool.size) == Extent(0, pool.size)
    finally:
        pool.close()
