"""What a worker has for the journals, by lane, laid out as batches in its window of the pool, and how the recorder takes that over.

    fragments ─▶ lanes, for a tick or until a batch is full ─▶ an extent of the window ─▶ LaidOut ─▶ the recorder sets what
                                                                   ▲                        the volume decides, and writes it
                                                                   └──────── Freed ◀──────── from there, as it lies

Invariant: an extent that was handed over is not touched again before it is free.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Final

from nvrstore.crew.messages import LaidOut, Put
from nvrstore.extents import Extent, Extents, Loan, Window
from nvrstore.journal.batch import batch_size, lay_out, positions
from nvrstore.limits import BATCH_BYTES_CUT, LANE_TRACKS_MAX
from nvrstore.model import Fragment, FragmentFlag, Media, TrackConfig, TrackKey

_FLAGS: Final = tuple(FragmentFlag(value) for value in range(16))


@dataclass(slots=True)
class Lane:
    """Tracks of one journal that are batched together, as many as the recorder puts into one of its own. `number`: within the seat."""

    number: int
    journal: str
    tick_s: float
    tracks: int = 0
    waiting: list[tuple[int, Fragment]] = field(default_factory=list)  # number of the track, and a fragment of it
    bytes: int = 0
    due_s: float = inf


class Batcher:
    """`lane` and `freed` are thread-safe, everything else belongs to one thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lanes: dict[int, Lane] = {}
        self._lane_of: dict[TrackKey, Lane] = {}
        self._memory = memoryview(b"")
        self._extents = Extents(0)  # until there is a window

    def sit(self, window: memoryview, taken: tuple[Extent, ...]) -> None:
        """The window, and what is needed there still. Before the first stream."""
        self._memory = window
        with self._lock:
            self._extents = Extents(len(window), taken)

    def freed(self, extent: Extent) -> None:
        """The recorder is done with it."""
        with self._lock:
            self._extents.free(extent)

    def assign(self, track: TrackKey, number: int, journal: str, tick_s: float) -> None:
        """The lane that it had with the worker before: in the recorder it has it still."""
        with self._lock:
            self._enter(track, self._lanes.setdefault(number, Lane(number, journal, tick_s)))

    def lane(self, track: TrackKey, journal: str, tick_s: float) -> Lane:
        """The lane of a track, as long as it is recorded in this journal. Audio goes with its video where there is room."""
        with self._lock:
            lane = self._lane_of.get(track)
            if lane is None or lane.journal != journal:
                beside = self._lane_of.get(TrackKey(track.stream, Media.VIDEO))
                candidates = ([beside] if beside is not None else []) + list(self._lanes.values())
                with_room = (lane for lane in candidates if lane.journal == journal and lane.tracks < LANE_TRACKS_MAX)
                lane = next(with_room, None) or Lane(max(self._lanes, default=-1) + 1, journal, tick_s)
                self._lanes[lane.number] = lane
                self._enter(track, lane)
            return lane

    def _enter(self, track: TrackKey, lane: Lane) -> None:
        lane.tracks += 1
        self._lane_of[track] = lane

    def add(self, number: int, fragment: Fragment, now_s: float) -> Lane:
        """A fragment waits; in which lane."""
        lane = self._lane_of[fragment.track]
        if not lane.waiting:
            lane.due_s = (now_s // lane.tick_s + 1) * lane.tick_s  # ticks go on: who comes alone waits for half of one, not for a whole one
        lane.waiting.append((number, fragment))
        lane.bytes += fragment.length
        if lane.bytes >= BATCH_BYTES_CUT:
            lane.due_s = now_s
        return lane

    @property
    def due_s(self) -> float:
        """When the next batch is due."""
        return min((lane.due_s for lane in list(self._lanes.values())), default=inf)

    def due(self, now_s: float) -> list[Lane]:
        """Lanes whose batch is due; with `inf` all that have anything."""
        return [lane for lane in list(self._lanes.values()) if lane.waiting and lane.due_s <= now_s]

    def lay_out(self, lane: Lane) -> LaidOut | None:
        """What waits in `lane` as a batch; None while the window has no room for it."""
        fragments = [fragment for _, fragment in lane.waiting]
        size = batch_size(fragments)
        with self._lock:
            extent = self._extents.alloc(size)
        if extent is None:
            return None
        lay_out(self._memory[extent.offset : extent.offset + size], fragments)
        at = positions([fragment.length for fragment in fragments])
        puts = tuple(
            Put(
                number,
                fragment.index,
                fragment.samples,
                fragment.utc_ns,
                fragment.duration,
                int(fragment.flags),
                fragment.arrival_s,
                position,
                fragment.length,
            )
            for (number, fragment), position in zip(lane.waiting, at, strict=True)
        )
        lane.waiting, lane.bytes, lane.due_s = [], 0, inf
        return LaidOut(extent, puts)


def taken_over(laid_out: LaidOut, window: Window, tracks: Mapping[int, tuple[TrackKey, TrackConfig]], session: int) -> list[Fragment]:
    """In the recorder: the fragments of a batch, where they lie. Their extent goes back when the last of them is stored or given up.

    Raises ValueError or KeyError, and takes nothing, for what cannot be.
    """
    extent = laid_out.extent
    if not laid_out.puts or [put.position for put in laid_out.puts] != positions([put.length for put in laid_out.puts]):
        raise ValueError("a batch that was laid out has fragments where none belong, or none at all")
    known = [tracks[put.number] for put in laid_out.puts]
    held = window.take(extent.offset, extent.length)
    view, loan = window.view(held), Loan(window, held, len(laid_out.puts))
    return [
        Fragment(
            track,
            config,
            session,
            first,
            samples,
            utc_ns,
            duration,
            _FLAGS[flags],
            (view[position : position + length],),
            length,
            arrival_s,
            loan,
        )
        for (track, config), (_, first, samples, utc_ns, duration, flags, arrival_s, position, length) in zip(
            known, laid_out.puts, strict=True
        )
    ]
