"""Shared memory through which live samples go from a worker to the recorder.

    [ released u64 |··· a page ···| data ........................ ]      one writer, one reader
                                     ^ position % size                   positions only ever grow

Where a piece lies, and how long it is, is said beside it, in a message. The writer places, the reader copies and then
releases, in the same order. A piece lies in one stretch: what is left at the end of the memory is skipped for one that
does not fit there. When nothing waits the writer begins at the front again, so that only as many pages as are ever
needed at a time are touched.

Invariant: what was placed is not written over before the reader has released it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nvrstore.limits import MIB, SAMPLE_BYTES_MAX

DATA_AT: Final = 4096
RING_BYTES: Final = 64 * MIB  # of address space

assert DATA_AT + 2 * SAMPLE_BYTES_MAX < RING_BYTES, "the largest sample fits, wherever the last one ended"


class RingWriter:
    """The worker's end. Used by one thread."""

    def __init__(self, memory: memoryview) -> None:
        self._released = memory[:8].cast("Q")
        self._data = memory[DATA_AT:]
        self._head = 0

    @property
    def waiting_bytes(self) -> int:
        """What is not released yet."""
        return self._head - self._released[0]

    def place(self, parts: Sequence[bytes | bytearray | memoryview], length: int) -> int | None:
        """Copy `parts`, of `length` bytes together, into the ring; their position, or None while there is no room."""
        size, head = len(self._data), self._head
        if length > size:
            raise ValueError(f"a piece of {length} bytes is larger than the ring")
        at = head % size
        skipped = (size - at) % size
        if not self.waiting_bytes:
            head += skipped
            self._released[0] = head  # nothing is there that the reader could release meanwhile
            at = 0
        elif at + length > size:
            head += skipped
            at = 0
        if head + length - self._released[0] > size:
            return None
        start = head
        for part in parts:
            self._data[at : at + len(part)] = part
            at += len(part)
        self._head = start + length
        return start


class RingReader:
    """The recorder's end. Used by one thread."""

    def __init__(self, memory: memoryview) -> None:
        self._released = memory[:8].cast("Q")
        self._data = memory[DATA_AT:]

    def copy(self, position: int, length: int) -> bytes:
        """What lies at `position`."""
        at = position % len(self._data)
        return bytes(self._data[at : at + length])

    def release(self, end: int) -> None:
        """Everything in front of position `end` was copied."""
        self._released[0] = end

    def close(self) -> None:
        """Give the memory back."""
        self._released.release()
        self._data.release()
