"""The ring between a worker and the recorder: whatever is placed is copied whole, and nothing is written over before."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvrstore.crew.ring import DATA_AT, RingReader, RingWriter

SIZE = 1000


def ring() -> tuple[RingWriter, RingReader]:
    memory = memoryview(bytearray(DATA_AT + SIZE))
    return RingWriter(memory), RingReader(memory)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, SIZE)), max_size=200))
def test_what_was_placed_is_copied_as_it_was(steps: list[tuple[bool, int]]) -> None:
    """Pieces of any length, placed and released in any interleaving: each is what it was when it is copied."""
    writer, reader = ring()
    waiting: deque[tuple[int, bytes]] = deque()
    for n, (place, length) in enumerate(steps):
        if place:
            data = bytes([n % 251]) * length
            position = writer.place((data[: length // 2], data[length // 2 :]), length)
            if position is None:
                assert waiting, "an empty ring has room for everything that fits"
            else:
                waiting.append((position, data))
        elif waiting:
            position, data = waiting.popleft()
            assert reader.copy(position, len(data)) == data
            reader.release(position + len(data))
        assert [reader.copy(at, len(data)) for at, data in waiting] == [data for _, data in waiting]
        assert writer.waiting_bytes >= sum(len(data) for _, data in waiting)


def test_an_empty_ring_begins_at_the_front() -> None:
    """Only as many pages are touched as are needed at a time."""
    writer, reader = ring()
    for _ in range(5):
        position = writer.place((b"x" * 300,), 300)
        assert position is not None
        assert position % SIZE == 0
        reader.release(position + 300)
    assert writer.waiting_bytes == 0


def test_a_full_ring_says_so_and_a_piece_that_never_fits_is_a_mistake() -> None:
    """None is for "later"; what never fits must not be waited for."""
    writer, reader = ring()
    assert writer.place((b"a" * 600,), 600) == 0
    assert writer.place((b"b" * 600,), 600) is None
    reader.release(600)
    assert writer.place((b"b" * 600,), 600) == SIZE
    with pytest.raises(ValueError, match="larger than the ring"):
        writer.place((b"c" * (SIZE + 1),), SIZE + 1)
