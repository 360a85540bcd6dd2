"""Verify: every flipped bit is found, named by its place, and told apart from what is no damage."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.support.footage import T0, Footage, Stored

from nvrstore.catalog.query import CatalogReader
from nvrstore.catalog.rebuild import look_through, record
from nvrstore.checksum import crc32c, crc32c_reference
from nvrstore.media.boxes import HEADER
from nvrstore.model import NS_PER_S, Media, TrackKey
from nvrstore.playback.copies import Copies
from nvrstore.playback.library import drive, in_memory, take_all
from nvrstore.playback.verify import VerifyProgress, VerifyReport, list_copies, verify
from nvrstore.targets.contract import Verb
from nvrstore.targets.memory import MemoryTarget


class House:
    """Footage on the memory targets a and b."""

    def __init__(self, footage: Footage) -> None:
        self.footage = footage
        self.targets = {name: MemoryTarget(name) for name in "ab"}
        footage.to_memory(*self.targets.values())
        self.copies = Copies(self.targets, timeout_s=0.05)

    def verify(self, *, reference: bool = False) -> VerifyReport:
        sizes, unreachable = list_copies(self.copies, ["a", "b"])
        return verify(self.copies, sizes, unreachable=unreachable, reference=reference)

    def flip(self, target: str, stored: Stored, offset: int) -> None:
        self.targets[target].files.file(stored.path).data[offset] ^= 0x10


@contextmanager
def house(footage: Footage | None = None) -> Iterator[House]:
    made = House(footage or Footage.record(seconds=4, per_volume_s=2.0))
    yield made
    made.copies.close(1.0)


def test_whole_copies_have_nothing_to_report() -> None:
    """Everything is counted, nothing is found; an open volume is checked as far as it goes."""
    for close_last in (True, False):
        with house(Footage.record(seconds=4, per_volume_s=2.0, close_last=close_last)) as h:
            report = h.verify(reference=True)
            assert report.ok
            assert report.damage == ()
            assert report.copies == 2 * report.volumes == 2 * len(h.footage.volumes)
            assert report.bytes == 2 * sum(len(stored.data) for stored in h.footage.volumes)
            assert report.fragments == 2 * sum(len(b.entries) for stored in h.footage.volumes for b in stored.volume.batches)


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("target", ["a", "b"])
def test_a_flipped_bit_in_a_fragment_is_named_by_track_and_time(target: str, reference: bool) -> None:
    """Target, volume, offset, kind, stream, from when until when, and which copy is whole."""
    with house() as h:
        stored = h.footage.volumes[1]
        batch = next(b for b in stored.volume.batches if any(e.track_id == 1 for e in b.entries))
        entry = next(e for e in batch.entries if e.track_id == 1)
        h.flip(target, stored, batch.offset + entry.offset + 500)
        report = h.verify(reference=reference)
        (found,) = report.damage
        assert (found.target, found.path, found.kind) == (target, stored.path, "fragment")
        assert (found.offset, found.length) == (batch.offset + entry.offset, entry.length)
        assert found.tracks == (TrackKey("gate", Media.VIDEO),)
        assert (found.start_ns, found.end_ns) == (entry.utc_ns, entry.utc_ns + NS_PER_S)
        assert found.whole_on == ("b" if target == "a" else "a",)
        assert not report.ok


def test_both_copies_damaged_in_the_same_place_have_no_whole_one() -> None:
    """Then the footage is lost, and the report says so by naming nobody."""
    with house() as h:
        stored = h.footage.volumes[0]
        batch = stored.volume.batches[0]
        for target in "ab":
            h.flip(target, stored, batch.offset + batch.entries[0].offset + 100)
        assert [(d.target, d.whole_on) for d in h.verify().damage] == [("a", ()), ("b", ())]


@pytest.mark.parametrize(
    ("where", "kind"),
    [("moov", "volume header"), ("batch header", "batch header"), ("index", "index"), ("padding", "padding"), ("prft", "prft")],
)
def test_a_flipped_bit_anywhere_else_is_named_too(where: str, kind: str) -> None:
    """`moov`, batch header, index, padding, `prft`: one damage, on one target, and the other is whole."""
    with house() as h:
        stored = h.footage.volumes[0]
        batch = stored.volume.batches[0]
        last = batch.entries[-1]
        offset = {
            "moov": 700,
            "batch header": batch.offset + 60,
            "index": stored.volume.batches[-1].end + 200,
            "padding": batch.offset + last.offset + last.length + 20,
            "prft": batch.offset + batch.entries[0].offset - 4,
        }[where]
        h.flip("b", stored, offset)
        report = h.verify()
        assert [(d.target, d.kind, d.whole_on) for d in report.damage] == [("b", kind, ("a",))]


def test_every_byte_of_a_copy_is_under_a_checksum() -> None:
    """A bit flipped at any of 200 places, all over a closed volume, is always found."""
    with house(Footage.record(seconds=2, per_volume_s=60.0)) as h:
        stored = h.footage.volumes[0]
        for n in range(200):
            offset = (n * 7919 * 131) % len(stored.data)
            h.flip("a", stored, offset)
            report = h.verify()
            assert {d.target for d in report.damage} == {"a"}, f"byte {offset}"
            h.flip("a", stored, offset)
        assert h.verify().ok


def test_a_copy_that_lost_its_end_is_short() -> None:
    """The volume is closed on one target only: what the other lacks is named by time."""
    with house(Footage.record(seconds=4, per_volume_s=60.0)) as h:
        stored = h.footage.volumes[0]
        cut = stored.volume.batches[3]
        file = h.targets["b"].files.file(stored.path)
        file.truncate(cut.offset)
        (found,) = h.verify().damage
        assert (found.target, found.kind, found.offset, found.whole_on) == ("b", "short", cut.offset, ("a",))
        assert found.start_ns >= T0 + NS_PER_S
        assert TrackKey("gate", Media.VIDEO) in found.tracks


def test_a_torn_tail_of_an_open_volume_is_no_damage() -> None:
    """What the recorder was writing when it died was never promised."""
    with house(Footage.record(seconds=4, per_volume_s=60.0, close_last=False)) as h:
        stored = h.footage.volumes[0]
        last = stored.volume.batches[-1]
        h.targets["b"].files.file(stored.path).truncate(last.offset + 5000)
        assert h.verify().damage == ()


def test_an_erased_fragment_is_counted_and_is_no_damage() -> None:
    """A `free` box of the same length is what erasure leaves."""
    with house() as h:
        stored = h.footage.volumes[0]
        batch = stored.volume.batches[0]
        entry = batch.entries[0]
        at = batch.offset + entry.offset
        for target in h.targets.values():
            target.files.file(stored.path).data[at : at + entry.length] = HEADER.pack(entry.length, b"free") + bytes(entry.length - 8)
        report = h.verify(reference=True)
        assert report.ok
        assert report.erased == 2


def test_a_file_that_cannot_be_read_is_unreadable_and_its_target_is_not_away() -> None:
    """A permission, a bad sector: said by file. A target that does not answer: said by target."""
    with house() as h:
        stored = h.footage.volumes[0]
        h.targets["b"].fault = lambda request: errno.EACCES if request.verb is Verb.READ and request.path == stored.path else 0
        report = h.verify()
        assert [(d.target, d.path, d.kind) for d in report.damage] == [("b", stored.path, "unreadable")]
        assert report.unreachable == {}
        h.targets["b"].fault = None
        h.targets["b"].hold()
        report = h.verify()
        assert list(report.unreachable) == ["b"]
        assert report.damage == ()
        assert not report.ok
        h.targets["b"].release()


def test_bad_sectors_are_named_with_what_they_held() -> None:
    """The device gives everything but a few bytes."""
    with house(Footage.record(seconds=4, per_volume_s=60.0)) as h:
        stored = h.footage.volumes[0]
        batch = stored.volume.batches[3]
        bad = batch.offset + batch.length // 2

        h.targets["a"].fault = lambda r: errno.EIO if r.verb is Verb.READ and r.offset <= bad < r.offset + r.length else 0
        found = h.verify().damage
        unreadable = [d for d in found if d.kind == "unreadable"]
        assert [(d.target, d.whole_on) for d in unreadable] == [("a", ("b",))]
        assert unreadable[0].offset <= bad < unreadable[0].offset + unreadable[0].length
        assert unreadable[0].tracks


def test_what_the_catalog_promises_and_is_not_there_is_missing() -> None:
    """Somebody deleted a file by hand."""
    with house() as h:
        catalog = in_memory()
        take_all(drive(look_through(["a", "b"], []), h.copies), lambda finding: record(catalog, finding))
        known = CatalogReader(None, catalog).volumes()
        stored = h.footage.volumes[0]
        h.targets["a"].files.unlink(stored.path)
        sizes, _ = list_copies(h.copies, ["a", "b"])
        (found,) = verify(h.copies, sizes, known=known).damage
        assert (found.target, found.path, found.kind, found.whole_on) == ("a", stored.path, "missing", ("b",))
        catalog.close()


def test_a_file_that_no_copy_can_tell_is_a_stranger() -> None:
    """Both headers are gone: the file is named, and nothing is guessed."""
    with house() as h:
        stored = h.footage.volumes[0]
        for target in "ab":
            h.flip(target, stored, 500)
        assert [(d.target, d.kind) for d in h.verify().damage] == [("a", "stranger"), ("b", "stranger")]


def test_the_reference_finds_what_a_broken_fast_checksum_hides(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two implementations do not trust each other: a fast one that calls everything right is found out."""
    with house() as h:
        stored = h.footage.volumes[0]
        batch = stored.volume.batches[0]
        entry = batch.entries[0]
        h.flip("a", stored, batch.offset + entry.offset + 500)
        data = bytes(h.targets["a"].files.file(stored.path).data[batch.offset + entry.offset :][: entry.length])
        wrong = crc32c(data)

        def lying(value: object, seed: int = 0) -> int:
            real = crc32c(value, seed)
            return entry.crc if real == wrong else real

        monkeypatch.setattr("nvrstore.journal.batch.crc32c", lying)
        assert h.verify().ok
        (found,) = h.verify(reference=True).damage
        assert found.kind == "fragment (only the reference says so)"
        assert found.offset == batch.offset + entry.offset
        assert crc32c_reference(data) == wrong


def test_progress_comes_volume_by_volume() -> None:
    """Bytes and volumes count to their totals."""
    with house() as h:
        steps: list[VerifyProgress] = []
        sizes, _ = list_copies(h.copies, ["a", "b"])
        verify(h.copies, sizes, on_progress=steps.append)
        assert [s.volumes_done for s in steps] == list(range(1, len(sizes) + 1))
        assert steps[-1].bytes_done == steps[-1].bytes_total
