"""Reading footage from two copies, of which one or both are damaged, hang, or are gone."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.footage import SESSION, T0, Footage, Stored, video
from tests.support.media import payloads

from nvrstore.catalog.coverage import Hole, HoleReason
from nvrstore.catalog.schema import CopyState
from nvrstore.catalog.store import Catalog
from nvrstore.clock import ManualClock
from nvrstore.media.boxes import HEADER
from nvrstore.model import NS_PER_S, Cause, Gap, Media
from nvrstore.playback import reader as reader_module
from nvrstore.playback.copies import Copies
from nvrstore.playback.library import Library
from nvrstore.playback.reader import FootageReader, Piece, StoredFragment
from nvrstore.targets.contract import Request, Verb
from nvrstore.targets.memory import MemoryTarget

FAR = T0 + 3600 * NS_PER_S


class House:
    """Footage on the memory targets a and b, a library without a catalog file, and a reader."""

    def __init__(self, footage: Footage, *, timeout_s: float = 0.05) -> None:
        self.footage = footage
        self.clock = ManualClock()
        self.targets = {name: MemoryTarget(name) for name in "ab"}
        footage.to_memory(*self.targets.values())
        self.copies = Copies(self.targets, clock=self.clock, timeout_s=timeout_s)
        self.library = Library(None, self.copies, clock=self.clock, overlay_s=3600)
        self.damage: list[tuple[str, str, int]] = []
        self.reader = FootageReader(self.library, self.copies, on_damage=lambda *place: self.damage.append(place))

    def read(self, stream: str = "gate", start_ns: int = T0, end_ns: int = FAR, media: Media | None = Media.VIDEO) -> list[Piece]:
        return list(self.reader.pieces(stream, start_ns, end_ns, media))

    def fragments(self, *args: object, **kwargs: object) -> list[StoredFragment]:
        return [piece for piece in self.read(*args, **kwargs) if isinstance(piece, StoredFragment)]  # type: ignore[arg-type]

    def flip(self, target: str, stored: Stored, offset: int) -> None:
        """Change one byte of one copy."""
        self.targets[target].files.file(stored.path).data[offset] ^= 0xFF


@contextmanager
def house(footage: Footage | None = None, **options: float) -> Iterator[House]:
    made = House(footage or Footage.record(seconds=6, per_volume_s=2.0), **options)
    try:
        yield made
    finally:
        made.library.close()
        made.copies.close(1.0)


def place_of(stored: Stored, stream: str, nth: int = 0) -> tuple[int, int]:
    """Offset and length of the nth video fragment of a stream in a volume."""
    track = next(n for n, t in enumerate(stored.header.tracks, 1) if t.track.stream == stream and t.track.media is Media.VIDEO)
    found = [(b.offset + e.offset, e.length) for b in stored.volume.batches for e in b.entries if e.track_id == track]
    return found[nth]


def same_samples(pieces: list[StoredFragment], footage: Footage, stream: str = "gate", media: Media = Media.VIDEO) -> bool:
    return [p for f in pieces for p in payloads(f)] == [s.data for s in footage.samples(stream, media)]


def bulky(seconds: int) -> Footage:
    """A fragment of 1 MiB a second."""
    footage = Footage.record([video("gate", seconds=1)], per_volume_s=60.0)
    small, pad = footage.fragments("gate")[0], bytes(1 << 20)
    many = [
        replace(small, parts=(*small.parts, pad), length=small.length + len(pad), index=25 * n, utc_ns=T0 + n * NS_PER_S)
        for n in range(seconds)
    ]
    made = Footage([replace(footage.tracks[0], fragments=tuple(many))])
    made.add([[f] for f in many], number=0)
    return made


@pytest.mark.parametrize("close_last", [True, False])
def test_every_sample_is_read_once_and_in_order(close_last: bool) -> None:
    """What the cameras sent is what is read, from closed and from open volumes, sample for sample."""
    with house(Footage.record(seconds=6, per_volume_s=2.0, close_last=close_last)) as h:
        for track in h.footage.tracks:
            found = h.fragments(track.key.stream, T0 - NS_PER_S, media=track.key.media)
            assert same_samples(found, h.footage, track.key.stream, track.key.media)
            assert [f.index for f in found] == [f.index for f in track.fragments]
            assert {f.target for f in found} == {"a"}, "the primary is read first"


def test_a_span_gets_the_fragments_that_reach_into_it() -> None:
    """[start, end): a fragment that ends at the start or begins at the end is not in it."""
    with house() as h:
        found = h.fragments("gate", T0 + 2 * NS_PER_S, T0 + 4 * NS_PER_S)
        assert [(f.utc_ns - T0) / NS_PER_S for f in found] == [2.0, 3.0]
        found = h.fragments("gate", T0 + 2 * NS_PER_S - 1, T0 + 4 * NS_PER_S + 1)
        assert [(f.utc_ns - T0) / NS_PER_S for f in found] == [1.0, 2.0, 3.0, 4.0]


def test_long_footage_is_read_window_by_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """A span that is longer than what is planned at once, and footage hours later: nothing is skipped, nothing comes twice."""
    monkeypatch.setattr(reader_module, "WINDOW_NS", NS_PER_S * 3 // 2)
    later = Footage.record([video("gate", seconds=4, start_s=3000.3, session=SESSION + 1)], session=SESSION + 1, term=2, per_volume_s=60.0)
    first = Footage.record([video("gate", seconds=8)], per_volume_s=60.0)
    with house(Footage(first.tracks, [*first.volumes, *later.volumes])) as h:
        assert [f.index for f in h.fragments()] == [25 * n for n in (*range(8), *range(4))]


def test_video_and_audio_come_interleaved_by_time() -> None:
    """Without a medium both tracks are read, in order of their UTC."""
    with house() as h:
        pieces = [p for p in h.read("gate", T0 - NS_PER_S, media=None) if isinstance(p, StoredFragment)]
        assert {p.track.media for p in pieces} == {Media.VIDEO, Media.AUDIO}
        assert [p.utc_ns for p in pieces] == sorted(p.utc_ns for p in pieces)


@pytest.mark.parametrize("target", ["a", "b"])
def test_a_flipped_byte_in_one_copy_costs_nothing(target: str) -> None:
    """The damaged fragment comes from the other copy, and the damage is told with its place."""
    with house() as h:
        stored = h.footage.volumes[1]
        offset, length = place_of(stored, "gate")
        h.library.reader()
        h.flip(target, stored, offset + length // 2)
        found = h.fragments()
        assert same_samples(found, h.footage)
        if target == "a":
            assert h.damage == [("a", stored.path, offset)]
            assert [f.target for f in found].count("b") == 1


def test_a_fragment_that_is_damaged_everywhere_is_a_hole_and_never_served() -> None:
    """Both copies bad: the reader says which samples are missing and why, and hands out all others."""
    with house() as h:
        stored = h.footage.volumes[1]
        offset, length = place_of(stored, "gate")
        h.library.reader()
        for target in "ab":
            h.flip(target, stored, offset + length - 1)
        pieces = h.read(end_ns=T0 + 6 * NS_PER_S)
        (hole,) = [p for p in pieces if isinstance(p, Hole)]
        assert (hole.reason, hole.samples) == (HoleReason.DAMAGED, 25)
        assert f"target 'a': {stored.path} is damaged at byte {offset}" in hole.detail
        assert f"target 'b': {stored.path} is damaged at byte {offset}" in hole.detail
        lost = range(hole.start_ns, hole.end_ns)
        assert [p.utc_ns for p in pieces if isinstance(p, StoredFragment)] == [
            f.utc_ns for f in h.footage.fragments("gate") if f.utc_ns not in lost
        ]


@pytest.mark.parametrize("where", ["moov", "batch header", "index", "all three"])
def test_a_damaged_directory_in_one_copy_costs_nothing(where: str) -> None:
    """A flipped byte in `moov`, in a batch header, in the index: the other copy's is used."""
    with house(Footage.record(seconds=6, per_volume_s=2.0, close_last=where != "batch header")) as h:
        h.library.reader()
        stored = h.footage.volumes[-1]
        batch = stored.volume.batches[0]
        if where in ("moov", "all three"):
            h.flip("a", stored, 500)
        if where in ("batch header", "all three"):
            h.flip("a", stored, batch.offset + 150)
        if where in ("index", "all three"):
            h.flip("a", stored, len(stored.data) - 3000)
        assert same_samples(h.fragments(), h.footage)


def test_no_flipped_bit_of_an_index_is_believed() -> None:
    """Wherever the index of one copy is damaged: what is read is what the camera sent, from the other copy if need be."""
    with house(Footage.record([video("gate", seconds=3)], per_volume_s=60.0)) as h:
        h.library.reader()
        stored = h.footage.volumes[0]
        start = stored.volume.batches[-1].end
        for offset in [*range(start, start + 900, 13), *range(start + 900, len(stored.data), 97)]:
            h.flip("a", stored, offset)
            fresh = FootageReader(h.library, h.copies)
            found = [p for p in fresh.pieces("gate", T0, FAR, Media.VIDEO) if isinstance(p, StoredFragment)]
            assert same_samples(found, h.footage), f"byte {offset - start} of the index"
            h.flip("a", stored, offset)


@pytest.mark.parametrize("close_last", [True, False])
def test_a_batch_whose_header_is_damaged_everywhere_is_a_hole(close_last: bool) -> None:
    """Its index, if it has one, still tells where the fragments are; without one they cannot be found, and that is said."""
    with house(Footage.record(seconds=6, per_volume_s=60.0, close_last=close_last)) as h:
        h.library.reader()
        stored = h.footage.volumes[0]
        batch = [b for b in stored.volume.batches if any(e.track_id == 1 for e in b.entries)][2]
        lost = [e for e in batch.entries if e.track_id == 1]
        for target in "ab":
            h.flip(target, stored, batch.offset + 150)
        pieces = h.read(end_ns=T0 + 6 * NS_PER_S)
        holes = [p for p in pieces if isinstance(p, Hole)]
        if close_last:
            assert holes == []
            assert same_samples([p for p in pieces if isinstance(p, StoredFragment)], h.footage)
        else:
            assert [(hole.reason, hole.samples) for hole in holes] == [(HoleReason.DAMAGED, sum(e.samples for e in lost))]


def test_both_headers_damaged_is_said_for_the_whole_volume() -> None:
    """A volume that cannot be read at all is one hole per span, and its neighbours are read."""
    with house() as h:
        h.library.reader()
        stored = h.footage.volumes[1]
        for target in "ab":
            h.flip(target, stored, 500)
        pieces = h.read(end_ns=T0 + 6 * NS_PER_S)
        lost = [e for b in stored.volume.batches for e in b.entries if e.track_id == 1]
        assert [(p.reason, p.samples) for p in pieces if isinstance(p, Hole)] == [(HoleReason.DAMAGED, sum(e.samples for e in lost))]
        assert sum(p.samples for p in pieces if isinstance(p, StoredFragment)) == 150 - sum(e.samples for e in lost)


def test_a_target_that_hangs_mid_read_is_left_for_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The read times out once; from then on the target is avoided, and tried again after a while."""
    with house(bulky(20)) as h:
        h.library.reader()
        pieces = h.reader.pieces("gate", T0, T0 + 20 * NS_PER_S, Media.VIDEO)
        first = next(pieces)
        h.targets["a"].hold()
        restarted: list[str] = []
        restart = h.targets["a"].keeper.restart

        def noting_restart() -> bool:
            restarted.append("a")
            return restart()

        monkeypatch.setattr(h.targets["a"].keeper, "restart", noting_restart)
        rest = list(pieces)
        assert restarted == ["a"], "once: the next reader must not queue behind the stuck call"
        assert [p.index for p in [first, *rest] if isinstance(p, StoredFragment)] == [25 * n for n in range(20)]
        assert h.copies.avoided("a")
        h.targets["a"].release()
        assert {f.target for f in h.fragments()} == {"b"}
        h.clock.advance(60.0)
        assert {f.target for f in h.fragments()} == {"a"}


def test_a_hanging_target_does_not_hinder_the_first_question() -> None:
    """The very first answer of a target never comes: everything is read from the other."""
    with house(timeout_s=0.05) as h:
        h.targets["a"].hold()
        assert same_samples(h.fragments(), h.footage)
        assert h.library.outcome is not None
        assert h.library.outcome.unreachable == ("a",)
        h.targets["a"].release()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOENT, errno.EACCES, errno.ESTALE])
def test_an_error_while_reading_is_answered_by_the_other_copy(code: int) -> None:
    """A bad sector, a file that is gone, a permission, a stale handle."""
    with house() as h:
        h.library.reader()
        h.targets["a"].fault = lambda request: code if request.verb is Verb.READ else 0
        assert same_samples(h.fragments(), h.footage)
        assert h.copies.avoided("a") == (code == errno.ESTALE), "one bad file is not a bad target"


def test_a_bad_sector_does_not_hide_its_neighbours() -> None:
    """One fragment of a coalesced read cannot be read on a, another one is damaged on b: both are found."""
    with house(Footage.record(seconds=6, per_volume_s=60.0)) as h:
        h.library.reader()
        stored = h.footage.volumes[0]
        bad, length = place_of(stored, "gate", 1)
        other, _ = place_of(stored, "gate", 2)
        h.flip("b", stored, other + 100)

        def fault(request: Request) -> int:
            hit = request.offset < bad + length and bad < request.offset + request.length
            return errno.EIO if request.verb is Verb.READ and request.path == stored.path and hit else 0

        h.targets["a"].fault = fault
        assert same_samples(h.fragments(), h.footage)


def test_no_target_at_all_is_said() -> None:
    """Every copy is out of reach: nothing is handed out, and every missing sample is accounted for."""
    with house() as h:
        h.library.reader()
        for target in h.targets.values():
            target.fault = lambda request: errno.EIO if request.verb is Verb.READ else 0
        pieces = h.read(end_ns=T0 + 6 * NS_PER_S)
        assert {p.reason for p in pieces if isinstance(p, Hole)} == {HoleReason.UNREACHABLE}
        assert sum(p.samples for p in pieces if isinstance(p, Hole)) == 150
        assert not [p for p in pieces if isinstance(p, StoredFragment)]


def test_an_erased_fragment_is_a_hole_and_is_not_read_from_a_copy_that_still_has_it() -> None:
    """Erasure goes copy by copy; what is erased on one is erased."""
    with house() as h:
        h.library.reader()
        stored = h.footage.volumes[0]
        offset, length = place_of(stored, "gate")
        h.targets["a"].files.file(stored.path).data[offset : offset + length] = HEADER.pack(length, b"free") + bytes(length - 8)
        pieces = h.read(end_ns=T0 + 6 * NS_PER_S)
        assert [p.reason for p in pieces if isinstance(p, Hole)] == [HoleReason.ERASED]


def test_the_same_fragment_in_two_volumes_is_read_once() -> None:
    """Replayed into a later volume, or written back from refuge: identity decides, and each place is a copy more."""
    footage = Footage.record([video("gate", seconds=4)], per_volume_s=2.0)
    footage.add([[f] for f in footage.fragments("gate")], number=9)
    with house(footage) as h:
        assert same_samples(h.fragments(), footage)
        for stored, nth in ((footage.volumes[0], 0), (footage.volumes[-1], 1)):
            offset, _ = place_of(stored, "gate", nth)
            for target in "ab":
                h.flip(target, stored, offset + 200)
        assert same_samples(h.fragments(), footage), "what both copies of one volume lack, the other volume has"


def test_runs_that_overlap_in_time_are_both_listed() -> None:
    """Two writers, or a clock that was stepped back: distinct footage of the same time is all there."""
    one = Footage.record([video("gate", seconds=4)], per_volume_s=60.0)
    two = Footage.record([video("gate", seconds=4, start_s=2.0, session=SESSION + 1)], per_volume_s=60.0, session=SESSION + 1, term=2)
    with house(Footage(one.tracks, [*one.volumes, *two.volumes])) as h:
        found = h.fragments()
        assert len({(f.session, f.index) for f in found}) == len(found) == 8
        assert [f.utc_ns for f in found] == sorted(f.utc_ns for f in found)


def test_gaps_and_what_nothing_explains_stand_in_their_place() -> None:
    """A ledger gap with its cause between the footage around it; a hole that no gap explains is said, too."""
    known = Gap("g", "gate", Cause.CAMERA, T0 + 4 * NS_PER_S, T0 + 10 * NS_PER_S, "rebooted")
    tracks = [video("gate", seconds=4), video("gate", seconds=4, start_s=10.0, session=SESSION + 1)]
    footage = Footage.record(tracks[:1], per_volume_s=60.0, gaps={0: [known]})
    later = Footage.record(tracks[1:], per_volume_s=60.0, session=SESSION + 1, term=2)
    third = Footage.record([video("gate", seconds=4, start_s=20.0, session=SESSION + 2)], per_volume_s=60.0, session=SESSION + 2, term=3)
    with house(Footage(tracks, [*footage.volumes, *later.volumes, *third.volumes])) as h:
        pieces = h.read(end_ns=T0 + 30 * NS_PER_S)
        shape = ["F" if isinstance(p, StoredFragment) else p for p in pieces]
        assert shape[:4] == ["F"] * 4
        assert shape[4] == known
        assert shape[5:9] == ["F"] * 4
        hole, outside = shape[9], shape[14]
        assert isinstance(hole, Hole)
        assert (hole.reason, hole.start_ns, hole.end_ns) == (HoleReason.UNEXPLAINED, T0 + 14 * NS_PER_S, T0 + 20 * NS_PER_S)
        assert isinstance(outside, Hole)
        assert (outside.reason, outside.start_ns) == (HoleReason.OUTSIDE, T0 + 24 * NS_PER_S)


def test_fragments_larger_than_one_read_are_put_together() -> None:
    """A keeper reads at most 1 MiB at once."""
    footage = Footage.record([video("gate", seconds=1)], per_volume_s=60.0)
    small = footage.fragments("gate")[0]
    pad = b"\x55" * (3 << 20)
    big = replace(small, parts=(*small.parts, pad), length=small.length + len(pad))
    stored = Footage([replace(footage.tracks[0], fragments=(big,))])
    stored.add([[big]], number=0)
    with house(stored) as h:
        (found,) = h.fragments()
        assert found.data[-len(pad) :] == pad


def test_the_memory_of_a_read_is_bounded() -> None:
    """However much is asked for, only so much is asked of keepers before it is taken."""
    with house(bulky(30)) as h:
        h.library.reader()
        asked: list[int] = []

        def fault(request: Request) -> int:
            asked.append(request.length if request.verb is Verb.READ else 0)
            return 0

        h.targets["a"].fault = fault
        pieces = h.reader.pieces("gate", T0, FAR, Media.VIDEO)
        next(pieces)
        assert sum(asked) < 10 << 20
        assert len(list(pieces)) == 30


def test_a_stream_that_nobody_knows_is_all_outside() -> None:
    """Nothing is known: that, too, is an answer."""
    with house() as h:
        assert h.read("nobody", T0, T0 + NS_PER_S) == [Hole("nobody", HoleReason.OUTSIDE, T0, T0 + NS_PER_S)]


def test_what_the_catalog_calls_damaged_is_read_last(tmp_path: Path) -> None:
    """A copy with a known damage is the last choice, and still better than nothing."""
    with house() as h:
        catalog = Catalog(tmp_path / "c", interval_s=60.0)
        h.footage.feed(catalog)
        for stored in h.footage.volumes:
            catalog.copy_changed(stored.header.volume_id, "a", len(stored.data), CopyState.DAMAGED)
        assert catalog.flush()
        library = Library(tmp_path / "c", h.copies, clock=h.clock)
        reader = FootageReader(library, h.copies)
        assert {p.target for p in reader.pieces("gate", T0, FAR, Media.VIDEO) if isinstance(p, StoredFragment)} == {"b"}
        h.targets["b"].fault = lambda request: errno.EIO if request.verb is Verb.READ else 0
        assert {p.target for p in reader.pieces("gate", T0, FAR, Media.VIDEO) if isinstance(p, StoredFragment)} == {"a"}
        library.close()
        assert catalog.close()
