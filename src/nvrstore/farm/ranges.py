"""Sets of frame numbers, kept as ranges: `0-99 103-140`.

Invariant of `Ranges`: ranges are disjoint, ascending, and never touch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class FrameRange(NamedTuple):
    """Frames `first` to `last`, both included."""

    first: int
    last: int

    @property
    def frames(self) -> int:
        return self.last - self.first + 1

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


class Ranges:
    """Frame numbers added in ascending order."""

    __slots__ = ("_firsts", "_lasts")

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for number in numbers:
            self.add(number)

    def add(self, number: int) -> None:
        """Add a number higher than all before it."""
        lasts = self._lasts
        if lasts and number == lasts[-1] + 1:
            lasts[-1] = number
            return
        if lasts and number <= lasts[-1]:
            raise ValueError(f"frame {number} comes after {lasts[-1]}")
        self._firsts.append(number)
        lasts.append(number)

    def frozen(self) -> tuple[FrameRange, ...]:
        return tuple(FrameRange(first, last) for first, last in zip(self._firsts, self._lasts, strict=True))

    def holes(self) -> tuple[FrameRange, ...]:
        """What is missing between the first number and the last."""
        return tuple(FrameRange(last + 1, first - 1) for last, first in zip(self._lasts, self._firsts[1:], strict=False))


def union(*sets: Iterable[FrameRange]) -> tuple[FrameRange, ...]:
    """All frames that are in any of the sets."""
    merged: list[FrameRange] = []
    for piece in sorted(piece for pieces in sets for piece in pieces):
        if merged and piece.first <= merged[-1].last + 1:
            merged[-1] = FrameRange(merged[-1].first, max(merged[-1].last, piece.last))
        else:
            merged.append(piece)
    return tuple(merged)


def subtract(minuend: Iterable[FrameRange], subtrahend: Iterable[FrameRange]) -> tuple[FrameRange, ...]:
    """Frames of the first set that are not in the second. Both disjoint and ascending."""
    left: list[FrameRange] = []
    taken = list(subtrahend)
    at = 0
    for first, last in minuend:
        while at < len(taken) and taken[at].last < first:
            at += 1
        start, look = first, at
        while look < len(taken) and taken[look].first <= last:
            if taken[look].first > start:
                left.append(FrameRange(start, taken[look].first - 1))
            start = max(start, taken[look].last + 1)
            look += 1
        if start <= last:
            left.append(FrameRange(start, last))
    return tuple(left)


def count(ranges: Iterable[FrameRange]) -> int:
    """How many frames are in them."""
    return sum(piece.frames for piece in ranges)


@dataclass(frozen=True, slots=True)
class SentFrames:
    """The access units of one stream that were written to a socket to their last byte.

    A frame that was made while somebody listened, but was not written as a whole to anybody (a full socket, simulated loss, a
    connection that broke), is `dropped`. A frame that was sent may still have died with its connection: sent says "left the
    farm", not "arrived".
    """

    stream: int
    ranges: tuple[FrameRange, ...]
    made: int

    @property
    def count(self) -> int:
        return count(self.ranges)

    @property
    def dropped(self) -> int:
        return self.made - self.count

    @property
    def first(self) -> int | None:
        return self.ranges[0].first if self.ranges else None

    @property
    def last(self) -> int | None:
        return self.ranges[-1].last if self.ranges else None
