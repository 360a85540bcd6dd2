"""Live reading: history, then what becomes durable, each fragment once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.footage import SESSION, T0, Footage, video
from tests.support.media import payloads

from nvrstore.catalog.coverage import Hole, HoleReason
from nvrstore.catalog.store import Catalog
from nvrstore.model import NS_PER_S, Cause, Gap, Media
from nvrstore.playback.copies import Copies
from nvrstore.playback.follow import Follower
from nvrstore.playback.library import Library
from nvrstore.playback.reader import FootageReader, Piece, StoredFragment
from nvrstore.targets.contract import Request
from nvrstore.targets.memory import MemoryTarget


class Recording:
    """A recorder played by hand: batches become durable when the test says so."""

    def __init__(self, footage: Footage, path: Path) -> None:
        self.footage = footage
        self.targets = {name: MemoryTarget(name) for name in "ab"}
        footage.to_memory(*self.targets.values())  # the bytes are there all along; what counts is what the catalog says
        self.copies = Copies(self.targets, timeout_s=5.0)
        self.catalog = Catalog(path, interval_s=60.0)
        assert self.catalog.flush()
        self.library = Library(path, self.copies)
        self.reader = FootageReader(self.library, self.copies)
        self.steps = self._steps()

    def _steps(self) -> Iterator[None]:
        for stored in self.footage.volumes:
            self.catalog.volume_opened(stored.header, stored.path, ["a", "b"])
            for batch in stored.volume.batches:
                self.catalog.batch_committed(stored.header, stored.path, batch, ["a", "b"])
                yield
            if stored.closed:
                self.catalog.volume_closed(stored.header, stored.path, len(stored.data), len(stored.volume.batches), ["a", "b"])
                yield

    def record(self, steps: int | None = None) -> int:
        """So many steps, or all that are left; then everything is in the catalog."""
        done = 0
        for _ in self.steps if steps is None else (s for _, s in zip(range(steps), self.steps, strict=False)):
            done += 1
        assert self.catalog.flush()
        return done


@contextmanager
def recording(path: Path, footage: Footage) -> Iterator[Recording]:
    made = Recording(footage, path)
    try:
        yield made
    finally:
        made.library.close()
        assert made.catalog.close()
        made.copies.close(1.0)


def caught_up(pieces: Iterator[Piece | None]) -> list[Piece]:
    """What comes until there is nothing new."""
    found = []
    while (piece := next(pieces)) is not None:
        found.append(piece)
    return found


def samples(pieces: list[Piece]) -> list[bytes]:
    return [p for f in pieces if isinstance(f, StoredFragment) for p in payloads(f)]


def test_every_fragment_comes_once_whatever_the_rhythm(tmp_path: Path) -> None:
    """History and tail meet without a seam, through open, closed and new volumes, however often one looks."""
    footage = Footage.record([video("gate", seconds=12)], per_volume_s=3.0, close_last=False)
    expected = [s.data for s in footage.samples("gate")]
    for rhythm in (1, 2, 5, 9):
        with recording(tmp_path / f"c{rhythm}", footage) as r:
            r.record(4)
            pieces = Follower(r.reader, "gate", T0, Media.VIDEO).pieces()
            found = caught_up(pieces)
            assert found
            while r.record(rhythm):
                found += caught_up(pieces)
            found += caught_up(pieces)
            assert samples(found) == expected
            assert caught_up(pieces) == []


def test_what_becomes_durable_while_history_is_read_comes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seam: more is committed between the listener's first look and its reading of the past."""
    footage = Footage.record([video("gate", seconds=6), video("yard", seconds=6)], per_volume_s=3.0, close_last=False)
    with recording(tmp_path / "c", footage) as r:
        r.record(3)
        past = r.reader.pieces

        def slow(*args: Any) -> Iterator[Piece]:
            r.record(4)
            return past(args[0], args[1], args[2] + 2 * NS_PER_S, *args[3:])

        monkeypatch.setattr(r.reader, "pieces", slow)
        pieces = Follower(r.reader, "gate", T0).pieces()
        found = caught_up(pieces)
        r.record()
        found += caught_up(pieces)
        assert sorted(f.index for f in found if isinstance(f, StoredFragment)) == [25 * n for n in range(6)]


def test_nothing_new_costs_no_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A viewer that has everything asks the catalog whether there is more, and reads no directory and no target again."""
    footage = Footage.record([video("gate", seconds=6)], per_volume_s=2.0, close_last=False)
    with recording(tmp_path / "c", footage) as r:
        r.record(2)
        pieces = Follower(r.reader, "gate", T0).pieces()
        caught_up(pieces)
        r.record()
        caught_up(pieces)
        asked: list[object] = []

        def fault(request: Request) -> int:
            asked.append(request)
            return 0

        def lots_of(*args: Any, **kwargs: Any) -> tuple[list[Any], list[Any]]:
            asked.append(args)
            return [], []

        for target in r.targets.values():
            target.fault = fault
        monkeypatch.setattr(r.reader, "lots_of", lots_of)
        for _ in range(5):
            assert caught_up(pieces) == []
        assert asked == []


def test_a_start_that_nothing_was_recorded_behind_waits(tmp_path: Path) -> None:
    """From now on: nothing at first, then only what is new."""
    footage = Footage.record([video("gate", seconds=6)], per_volume_s=60.0, close_last=False)
    with recording(tmp_path / "c", footage) as r:
        r.record(3)
        pieces = Follower(r.reader, "gate", T0 + 3 * NS_PER_S, Media.VIDEO).pieces()
        assert caught_up(pieces) == []
        r.record()
        assert [f.utc_ns for f in caught_up(pieces) if isinstance(f, StoredFragment)] == [T0 + n * NS_PER_S for n in (3, 4, 5)]


def test_an_unknown_stream_is_waited_for(tmp_path: Path) -> None:
    """A camera that was just added has no footage yet."""
    footage = Footage.record([video("gate", seconds=3)], per_volume_s=60.0)
    with recording(tmp_path / "c", footage) as r:
        pieces = Follower(r.reader, "gate", T0).pieces()
        assert caught_up(pieces) == []
        r.record()
        assert len(samples(caught_up(pieces))) == 75


def test_a_wall_clock_that_steps_back_hides_nothing(tmp_path: Path) -> None:
    """An hour back: the new footage has old times, and comes all the same."""
    before = Footage.record([video("gate", seconds=3, start_s=3600.0)], per_volume_s=60.0)
    after = Footage.record(
        [video("gate", seconds=3, session=SESSION + 1)], per_volume_s=60.0, session=SESSION + 1, term=2, close_last=False
    )
    with recording(tmp_path / "c", Footage(before.tracks, [*before.volumes, *after.volumes])) as r:
        r.record(4)
        pieces = Follower(r.reader, "gate", T0 + 3600 * NS_PER_S).pieces()
        assert len(samples(caught_up(pieces))) == 75
        r.record()
        assert [f.utc_ns - T0 for f in caught_up(pieces) if isinstance(f, StoredFragment)] == [0, NS_PER_S, 2 * NS_PER_S]


def test_gaps_come_when_they_open_and_when_they_close(tmp_path: Path) -> None:
    """A viewer hears of a gap at once, and of its end when it has one; never twice of the same."""
    gap = Gap("g", "gate", Cause.CAMERA, T0 + 3 * NS_PER_S, None)
    closed = Gap("g", "gate", Cause.CAMERA, T0 + 3 * NS_PER_S, T0 + 5 * NS_PER_S)
    footage = Footage([video("gate", seconds=3), video("gate", seconds=3, start_s=5.0, session=SESSION + 1)])
    first, second = (track.fragments for track in footage.tracks)
    footage.tracks.pop()
    footage.add([[f] for f in first], number=0, closed=False)
    footage.add([[]], [gap.record()], number=1, closed=False)
    footage.add([[f] for f in second], [closed.record()], number=2, closed=False)
    with recording(tmp_path / "c", footage) as r:
        r.record(3)
        pieces = Follower(r.reader, "gate", T0).pieces()
        assert len(caught_up(pieces)) == 3
        r.record(1)
        assert caught_up(pieces) == [gap]
        assert caught_up(pieces) == []
        r.record()
        found = caught_up(pieces)
        assert [p for p in found if not isinstance(p, StoredFragment)] == [closed]
        assert len(samples(found)) == 75


def test_a_hole_that_nothing_explains_is_told_live(tmp_path: Path) -> None:
    """Footage is missing and no gap says why: the viewer hears it when the next fragment comes."""
    footage = Footage([video("gate", seconds=3), video("gate", seconds=3, start_s=5.0, session=SESSION + 1)])
    first, second = (track.fragments for track in footage.tracks)
    footage.tracks.pop()
    footage.add([[f] for f in first], number=0, closed=False)
    footage.add([[f] for f in second], number=2, closed=False)
    with recording(tmp_path / "c", footage) as r:
        r.record(3)
        pieces = Follower(r.reader, "gate", T0).pieces()
        caught_up(pieces)
        r.record()
        assert [p for p in caught_up(pieces) if isinstance(p, Hole)] == [
            Hole("gate", HoleReason.UNEXPLAINED, T0 + 3 * NS_PER_S, T0 + 5 * NS_PER_S)
        ]


def test_a_volume_that_retention_takes_is_forgotten(tmp_path: Path) -> None:
    """A slow viewer loses what was pruned, not its connection."""
    footage = Footage.record([video("gate", seconds=6)], per_volume_s=3.0, close_last=False)
    with recording(tmp_path / "c", footage) as r:
        r.record(1)
        pieces = Follower(r.reader, "gate", T0).pieces()
        caught_up(pieces)
        r.record()
        for target in "ab":
            r.catalog.volume_removed(footage.volumes[0].header.volume_id, target)
        assert r.catalog.flush()
        found = caught_up(pieces)
        assert [f.index for f in found if isinstance(f, StoredFragment)] == [75, 100, 125]
