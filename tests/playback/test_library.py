"""The catalog and the targets together: with a recorder, without one, without a catalog."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.footage import SESSION, T0, Footage, video

from nvrstore.catalog.query import CatalogReader
from nvrstore.catalog.schema import create
from nvrstore.catalog.store import Catalog
from nvrstore.catalog.writer import open_database
from nvrstore.errors import UsageError
from nvrstore.model import NS_PER_S, Cause, Gap, RecordKind
from nvrstore.playback.copies import Copies
from nvrstore.playback.library import Library, rebuild, refresh
from nvrstore.targets.directory import DirectoryTarget

GAPS = {
    0: [Gap("g0", "gate", Cause.CAMERA, T0 - 10 * NS_PER_S, None)],
    1: [Gap("g0", "gate", Cause.CAMERA, T0 - 10 * NS_PER_S, T0, "rebooted"), Gap("g1", "yard", Cause.NETWORK, T0 + NS_PER_S, None)],
}


@contextmanager
def targets_at(root: Path, footage: Footage) -> Iterator[Copies]:
    for name in "ab":
        footage.to_directory(root / name, name)
    copies = Copies({name: DirectoryTarget(name, root / name, isolation="thread") for name in "ab"}, timeout_s=20.0)
    try:
        yield copies
    finally:
        assert copies.close(10.0)


@contextmanager
def catalog_at(path: Path) -> Iterator[Catalog]:
    catalog = Catalog(path, interval_s=60.0)
    try:
        yield catalog
    finally:
        assert catalog.close(10.0)


def answers(reader: CatalogReader) -> dict[str, Any]:
    """Every question, asked."""
    streams = [stream.stream for stream in reader.streams()]
    return {
        "streams": reader.streams(totals=True),
        "volumes": reader.volumes(),
        "spans": {stream: reader.spans(stream) for stream in streams},
        "part": {stream: reader.spans(stream, T0 + NS_PER_S, T0 + 2 * NS_PER_S) for stream in streams},
        "batches": {volume.volume_id: reader.batches(volume.volume_id) for volume in reader.volumes()},
        "open": [volume.volume_id for volume in reader.open_volumes()],
        "last": reader.last_durable(),
        "bounds": {stream: reader.bounds(stream) for stream in streams},
        "coverage": {stream: reader.coverage(stream, T0 - 20 * NS_PER_S, T0 + 20 * NS_PER_S) for stream in streams},
        "gaps": reader.gaps(),
        "records": {kind: reader.records(kind) for kind in RecordKind},
    }


@pytest.mark.parametrize("close_last", [True, False])
def test_a_rebuilt_catalog_gives_the_same_answers(tmp_path: Path, close_last: bool) -> None:
    """Catalog removed and rebuilt from the targets alone: every question has the answer it had before, ledger included."""
    footage = Footage.record(seconds=6, per_volume_s=2.0, gaps=GAPS, close_last=close_last)
    with catalog_at(tmp_path / "before") as catalog:
        footage.feed(catalog)
    with CatalogReader(tmp_path / "before") as reader:
        before = answers(reader)
    assert len(before["gaps"]) == 2
    steps: list[int] = []
    with targets_at(tmp_path, footage) as copies:
        outcome, strangers = rebuild(tmp_path / "after", copies, on_progress=lambda progress: steps.append(progress.done))
    assert outcome.complete
    assert strangers == []
    assert steps == list(range(1, len(footage.volumes) + 1))
    with CatalogReader(tmp_path / "after") as reader:
        assert answers(reader) == before
        assert not reader.needs_refresh


def test_a_rebuild_that_was_broken_off_goes_on(tmp_path: Path) -> None:
    """Volumes that were adopted before are not scanned again, and the result is the same."""
    footage = Footage.record(seconds=6, per_volume_s=2.0, gaps=GAPS)

    class Broken(Exception):
        pass

    def break_off(progress: Any) -> None:
        if progress.done == 2:
            raise Broken

    with targets_at(tmp_path, footage) as copies:
        with pytest.raises(Broken):
            rebuild(tmp_path / "c", copies, on_progress=break_off)
        assert not (tmp_path / "c").exists()
        outcome, _ = rebuild(tmp_path / "c", copies)
        assert outcome.adopted == len(footage.volumes) - 2
        rebuild(tmp_path / "whole", copies)
    with CatalogReader(tmp_path / "c") as resumed, CatalogReader(tmp_path / "whole") as whole:
        assert answers(resumed) == answers(whole)


def test_a_rebuild_beside_a_recorder_is_refused(tmp_path: Path) -> None:
    """The recorder keeps its catalog itself."""
    footage = Footage.record(seconds=2, per_volume_s=2.0)
    with targets_at(tmp_path, footage) as copies, catalog_at(tmp_path / "c") as catalog:
        assert catalog.flush()
        with pytest.raises(UsageError, match="a recorder writes"):
            rebuild(tmp_path / "c", copies)


def test_a_rebuild_keeps_no_trace_of_the_catalog_before_it(tmp_path: Path) -> None:
    """The old catalog's recorder died and left its log beside it: nothing of that log gets into the new file."""
    old = Footage.record([video("old", seconds=2, session=SESSION + 9)], per_volume_s=60.0, session=SESSION + 9, term=9)
    footage = Footage.record(seconds=2, per_volume_s=2.0)
    with catalog_at(tmp_path / "live") as catalog:
        assert catalog.flush()
        old.feed(catalog)
        assert catalog.flush()
        for suffix in ("", "-wal"):  # as a power cut leaves them
            shutil.copy(tmp_path / f"live{suffix}", tmp_path / f"c{suffix}")
    with targets_at(tmp_path, footage) as copies:
        rebuild(tmp_path / "c", copies)
    with CatalogReader(tmp_path / "c") as reader:
        assert [volume.path for volume in reader.volumes()] == [stored.path for stored in footage.volumes]


def test_a_rebuild_replaces_an_unreadable_catalog(tmp_path: Path) -> None:
    """What lay there does not matter, nor what lies beside it."""
    footage = Footage.record(seconds=2, per_volume_s=2.0)
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"c{suffix}").write_bytes(b"rubbish" * 1000)
    with targets_at(tmp_path, footage) as copies:
        rebuild(tmp_path / "c", copies)
    with CatalogReader(tmp_path / "c") as reader:
        assert len(reader.volumes()) == len(footage.volumes)


def test_without_a_catalog_the_targets_answer(tmp_path: Path) -> None:
    """No file at all: the library looks at the targets, and gives the same answers."""
    footage = Footage.record(seconds=4, per_volume_s=2.0, gaps=GAPS, close_last=False)
    with catalog_at(tmp_path / "c") as catalog:
        footage.feed(catalog)
    with CatalogReader(tmp_path / "c") as reader:
        expected = answers(reader)
    with targets_at(tmp_path, footage) as copies:
        library = Library(None, copies)
        assert answers(library.reader()) == expected
        library.close()


def test_the_tail_behind_the_last_transaction_is_found(tmp_path: Path) -> None:
    """The recorder died: the catalog lacks its last batches and a whole volume. The targets have them."""
    footage = Footage.record(seconds=6, per_volume_s=2.0, gaps=GAPS, close_last=False)
    with catalog_at(tmp_path / "c") as catalog:
        footage.feed(catalog)
        assert catalog.flush()
        with CatalogReader(catalog.path) as reader:
            expected = answers(reader)
    early = Footage(footage.tracks, footage.volumes[:2])
    with catalog_at(tmp_path / "died") as catalog:
        stored = early.volumes[0]
        for batch in stored.volume.batches[:2]:
            catalog.batch_committed(stored.header, stored.path, batch, ["a", "b"])
    with CatalogReader(tmp_path / "died") as reader:
        assert answers(reader) != expected
    with targets_at(tmp_path, footage) as copies:
        library = Library(tmp_path / "died", copies)
        assert answers(library.reader()) == expected
        assert library.outcome is not None
        assert library.outcome.complete
        library.close()


def test_a_library_follows_the_recorder_that_comes_back(tmp_path: Path) -> None:
    """While nobody records the overlay answers; when a recorder writes the catalog again, the catalog does."""
    footage = Footage.record(seconds=4, per_volume_s=2.0, close_last=False)
    with targets_at(tmp_path, footage) as copies:
        library = Library(tmp_path / "c", copies)
        before = library.reader()
        assert len(before.volumes()) == len(footage.volumes)
        with catalog_at(tmp_path / "c") as catalog:
            footage.feed(catalog)
            assert catalog.flush()
            assert library.recording
            now = library.reader()
            assert now is not before
            assert len(now.volumes()) == len(footage.volumes)
            assert library.reader() is now
        assert len(before.volumes()) == len(footage.volumes), "a reader that was handed out goes on answering"
        library.close()


def test_a_catalog_that_is_just_being_made_is_read_as_soon_as_it_is_one(tmp_path: Path) -> None:
    """Somebody asks between the making of the file and of its tables: the next question finds the catalog, however soon it comes."""
    footage = Footage.record(seconds=2, per_volume_s=2.0)
    path = tmp_path / "c"
    with targets_at(tmp_path, Footage(footage.tracks, [])) as copies:
        library = Library(path, copies)
        assert library.reader().volumes() == []
        writing = open_database(path)
        assert library.reader().volumes() == []
        create(writing)
        writing.close()
        with catalog_at(path) as catalog:
            footage.feed(catalog)
            assert catalog.flush()
            assert len(library.reader().volumes()) == len(footage.volumes)
            assert library.recording
        library.close()


def test_after_a_crash_the_recorder_that_runs_again_is_asked_not_the_overlay(tmp_path: Path) -> None:
    """The catalog of a recorder that died is completed from the targets, until a recorder writes that same file again."""
    footage = Footage.record(seconds=6, per_volume_s=2.0)
    first, *rest = footage.volumes
    with targets_at(tmp_path, Footage(footage.tracks, [first])) as copies:
        with catalog_at(tmp_path / "c") as catalog:
            catalog.volume_opened(first.header, first.path, ["a", "b"])
        library = Library(tmp_path / "c", copies)
        assert [volume.closed for volume in library.reader().volumes()] == [True], "the overlay knows more than the file"
        with catalog_at(tmp_path / "c") as catalog:
            Footage(footage.tracks, rest).feed(catalog)
            assert catalog.flush()
            assert [volume.path for volume in library.reader().volumes()] == [stored.path for stored in footage.volumes]
            assert [volume.closed for volume in library.reader().volumes()] == [False, *(True for _ in rest)]
            assert library.unreachable() == ()
        library.close()


def test_a_running_recorder_completes_its_catalog(tmp_path: Path) -> None:
    """After a crash: what the targets hold comes into the live catalog, what is being written is left alone."""
    footage = Footage.record(seconds=6, per_volume_s=2.0, gaps=GAPS, close_last=False)
    with targets_at(tmp_path, footage) as copies, catalog_at(tmp_path / "c") as catalog:
        live = footage.volumes[-1]
        catalog.volume_opened(live.header, live.path, ["a", "b"])
        assert catalog.flush()
        assert catalog.needs_refresh
        outcome = refresh(catalog, copies, writing=frozenset({live.header.volume_id}))
        assert outcome.complete
        assert catalog.flush()
        assert catalog.needs_refresh is False
        for batch in live.volume.batches:
            catalog.batch_committed(live.header, live.path, batch, ["a", "b"])
        assert catalog.flush()
        with CatalogReader(catalog.path) as reader:
            found = answers(reader)
    with catalog_at(tmp_path / "expected") as catalog:
        footage.feed(catalog)
    with CatalogReader(tmp_path / "expected") as reader:
        assert found == answers(reader)


def test_a_target_that_is_away_makes_a_rebuild_incomplete(tmp_path: Path) -> None:
    """What one target tells is kept; the catalog remembers that it was not all."""
    footage = Footage.record(seconds=2, per_volume_s=2.0)
    footage.to_directory(tmp_path / "a", "a")
    (tmp_path / "b").mkdir()  # a bare mount point
    copies = Copies({name: DirectoryTarget(name, tmp_path / name, isolation="thread") for name in "ab"}, timeout_s=20.0)
    outcome, _ = rebuild(tmp_path / "c", copies)
    assert copies.close(10.0)
    assert outcome.unreachable == ("b",)
    with CatalogReader(tmp_path / "c") as reader:
        assert reader.needs_refresh
        assert [copy.target for copy in reader.volumes()[0].copies] == ["a"]
