"""The catalog's writer: what it writes, and what it does when the state disk does not take it."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.catalog import T0, Feed, entry, gap, header, path

from nvrstore.catalog import schema
from nvrstore.catalog.query import CatalogReader
from nvrstore.catalog.schema import CopyState
from nvrstore.catalog.store import Catalog
from nvrstore.catalog.writer import Writer
from nvrstore.journal.model import VolumeHeader
from nvrstore.model import NS_PER_S, Gap, Media, TrackKey

GATE = TrackKey("gate", Media.VIDEO)


@contextmanager
def catalog_at(place: Path, **options: object) -> Iterator[Catalog]:
    catalog = Catalog(place, interval_s=60.0, **options)  # type: ignore[arg-type]
    try:
        yield catalog
    finally:
        assert catalog.close(10.0)


def test_what_was_told_is_answered_after_a_flush(tmp_path: Path) -> None:
    """Streams, volumes, copies, spans, gaps and the last durable sample of an open volume."""
    feed = Feed(header())
    with catalog_at(tmp_path / "c") as catalog:
        catalog.volume_opened(feed.header, path(feed.header), ["a", "b"])
        for second in range(3):
            catalog.batch_committed(feed.header, path(feed.header), feed.batch(entry(second), entry(second, track_id=2)), ["a", "b"])
        catalog.batch_committed(feed.header, path(feed.header), feed.batch(entry(3), records=[gap("g", 4, None)]), ["a"])
        assert catalog.flush()
        with CatalogReader(catalog.path) as reader:
            (volume,) = reader.volumes()
            assert [(c.target, c.length, c.state) for c in volume.copies] == [("a", feed.offset, "live"), ("b", feed.offset - 8192, "live")]
            assert (volume.closed, volume.batches, volume.epoch, volume.session) == (False, 4, feed.header.epoch, feed.header.session)
            assert volume.members == feed.header.members
            assert reader.last_durable()[GATE] == T0 + 4 * NS_PER_S
            (span,) = reader.spans("gate", media=Media.VIDEO)
            assert (span.samples, span.session, span.first_batch, span.last_batch) == (100, feed.header.session, 0, 3)
            assert [batch.number for batch in reader.batches(volume.volume_id)] == [0, 1, 2, 3]
            assert reader.gaps() == [Gap.of(gap("g", 4, None))]
            (stream,) = reader.streams(totals=True)
            assert (stream.stream, stream.name, stream.bytes, [t.codec for t in stream.tracks]) == (
                "gate",
                "gate camera",
                7000,
                ["h264", "aac"],
            )
            assert reader.writer_alive
    with CatalogReader(tmp_path / "c") as reader:
        assert not reader.writer_alive
        assert reader.needs_refresh, "a new catalog says so until somebody looked through the targets"


def test_a_closed_volume_has_complete_and_partial_copies(tmp_path: Path) -> None:
    """Who holds all of a closed volume is complete, who lost its end is partial; where batches lie is left to its index."""
    feed = Feed(header())
    with catalog_at(tmp_path / "c") as catalog:
        catalog.batch_committed(feed.header, path(feed.header), feed.batch(entry(0)), ["a", "b"])
        catalog.batch_committed(feed.header, path(feed.header), feed.batch(entry(1)), ["a"])
        catalog.volume_closed(feed.header, path(feed.header), 40960, 2, ["a"])
        assert catalog.flush()
        with CatalogReader(catalog.path) as reader:
            (volume,) = reader.volumes()
            assert volume.closed
            assert volume.length == 40960
            assert [(c.target, c.length, c.state) for c in volume.copies] == [("a", 40960, "complete"), ("b", 12288, "partial")]
            assert reader.batches(volume.volume_id) == []
            assert reader.open_volumes() == []
        catalog.copy_changed(feed.header.volume_id, "b", 40960, CopyState.COMPLETE)
        assert catalog.flush()
        with CatalogReader(catalog.path) as reader:
            assert {c.state for c in reader.volumes()[0].copies} == {CopyState.COMPLETE}


def test_the_last_copy_takes_the_volume_and_what_only_it_knew_along(tmp_path: Path) -> None:
    """Retention removes copy after copy. Ledger entries fall back to what the volumes that are left say."""
    first, second = Feed(header(0)), Feed(header(1))
    with catalog_at(tmp_path / "c") as catalog:
        catalog.batch_committed(
            first.header, path(first.header), first.batch(entry(0), records=[gap("g", 5, None), gap("h", 1, 2)]), ["a", "b"]
        )
        catalog.batch_committed(second.header, path(second.header), second.batch(entry(9), records=[gap("g", 5, 9)]), ["a", "b"])
        catalog.volume_removed(second.header.volume_id, "a")
        assert catalog.flush()
        with CatalogReader(catalog.path) as reader:
            assert [(g.id, g.end_ns) for g in reader.gaps()] == [("h", T0 + 2 * NS_PER_S), ("g", T0 + 9 * NS_PER_S)]
            assert len(reader.volumes()) == 2
        catalog.volume_removed(second.header.volume_id, "b")
        assert catalog.flush()
        with CatalogReader(catalog.path) as reader:
            assert [(g.id, g.end_ns) for g in reader.gaps()] == [("h", T0 + 2 * NS_PER_S), ("g", None)]
            assert len(reader.volumes()) == 1
            assert [s.end_ns for s in reader.spans("gate")] == [T0 + NS_PER_S]


def test_a_closed_gap_is_never_reopened_by_a_late_volume(tmp_path: Path) -> None:
    """Footage written back from refuge comes in later volumes and repeats what was standing then."""
    first, second = Feed(header(0)), Feed(header(1))
    with catalog_at(tmp_path / "c") as catalog:
        catalog.batch_committed(first.header, path(first.header), first.batch(records=[gap("g", 5, 6)]), ["a"])
        catalog.batch_committed(second.header, path(second.header), second.batch(records=[gap("g", 5, None)]), ["a"])
        assert catalog.flush()
        with CatalogReader(catalog.path) as reader:
            assert [g.end_ns for g in reader.gaps("gate")] == [T0 + 6 * NS_PER_S]
            assert reader.gaps("gate", T0 + 7 * NS_PER_S) == []


def test_a_dead_state_disk_is_an_alarm_and_never_an_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing fails for a while: the caller notices nothing, the alarm is raised once, and afterwards nothing is missing."""
    alarms: list[str] = []
    broken = threading.Event()
    real = Writer._connect

    def connect(self: Writer) -> sqlite3.Connection:
        if broken.is_set():
            raise sqlite3.OperationalError("disk I/O error")
        return real(self)

    monkeypatch.setattr(Writer, "_connect", connect)
    feed = Feed(header())
    with catalog_at(tmp_path / "c", on_alarm=alarms.append) as catalog:
        catalog.batch_committed(feed.header, path(feed.header), feed.batch(entry(0)), ["a"])
        assert catalog.flush()
        broken.set()
        for second in range(1, 4):
            catalog.batch_committed(feed.header, path(feed.header), feed.batch(entry(second)), ["a"])
            assert not catalog.flush()
        assert len(alarms) == 1
        assert "disk I/O error" in alarms[0]
        assert not catalog.statistics().healthy
        assert catalog.statistics().rows_waiting > 0
        broken.clear()
        assert catalog.flush()
        assert alarms[1:] == [""]
        with CatalogReader(catalog.path) as reader:
            assert [span.samples for span in reader.spans("gate")] == [100]
        assert catalog.statistics().volumes_stale == 0


def test_rows_beyond_the_bound_are_dropped_and_their_volumes_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state disk that stays dead costs bounded memory; what was dropped is known by volume, and a rescan makes it good."""
    broken = threading.Event()
    broken.set()
    real = Writer._connect

    def connect(self: Writer) -> sqlite3.Connection:
        if broken.is_set():
            raise sqlite3.OperationalError("disk I/O error")
        return real(self)

    monkeypatch.setattr(Writer, "_connect", connect)
    feed = Feed(header())
    with catalog_at(tmp_path / "c", rows_max=100) as catalog:
        for second in range(1000):
            catalog.batch_committed(feed.header, path(feed.header), feed.batch(entry(second)), ["a"])
            if second % 10 == 0:
                catalog.flush()
            assert catalog.statistics().rows_waiting <= 100
        assert catalog.statistics().rows_dropped > 0
        assert catalog.stale_volumes() == [feed.header.volume_id]
        broken.clear()
        assert catalog.flush()
        with CatalogReader(catalog.path) as reader:
            assert reader.needs_refresh
        catalog.adopt(feed.header, path(feed.header), feed.batches, {"a": (feed.offset, CopyState.LIVE)})
        assert catalog.flush()
        assert catalog.stale_volumes(), "more rows than the bound are refused here too"
    with catalog_at(tmp_path / "c") as catalog:
        catalog.adopt(feed.header, path(feed.header), feed.batches, {"a": (feed.offset, CopyState.LIVE)})
        assert catalog.flush()
        with CatalogReader(catalog.path) as reader:
            assert [span.samples for span in reader.spans("gate")] == [25_000]
            assert not reader.volumes()[0].stale


def test_a_batch_that_was_never_told_marks_the_volume(tmp_path: Path) -> None:
    """The catalog notices by the batches' numbers that it lacks one."""
    feed = Feed(header())
    with catalog_at(tmp_path / "c") as catalog:
        feed.batch(entry(0))
        catalog.batch_committed(feed.header, path(feed.header), feed.batch(entry(1)), ["a"])
        assert catalog.flush()
        assert catalog.stale_volumes() == [feed.header.volume_id]


@pytest.mark.parametrize("content", [b"not a database at all" * 500, b"SQLite format 3\0" + bytes(5000)])
def test_a_catalog_that_cannot_be_read_is_set_aside(tmp_path: Path, content: bytes) -> None:
    """A file that is no catalog is kept beside the new one, and a refresh is asked for."""
    (tmp_path / "c").write_bytes(content)
    feed = Feed(header())
    with catalog_at(tmp_path / "c") as catalog:
        catalog.batch_committed(feed.header, path(feed.header), feed.batch(entry(0)), ["a"])
        assert catalog.flush()
        assert catalog.needs_refresh
    assert (tmp_path / "c.unreadable").read_bytes() == content
    with CatalogReader(tmp_path / "c") as reader:
        assert [span.samples for span in reader.spans("gate")] == [25]


def test_a_catalog_of_another_format_is_set_aside(tmp_path: Path) -> None:
    """It can be made again from the volumes: there is nothing to convert."""
    with catalog_at(tmp_path / "c") as catalog:
        assert catalog.flush()
    connection = sqlite3.connect(tmp_path / "c")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with catalog_at(tmp_path / "c") as catalog:
        assert catalog.flush()
        assert catalog.needs_refresh
    assert (tmp_path / "c.unreadable").exists()


def test_only_an_orderly_end_makes_a_refresh_needless(tmp_path: Path) -> None:
    """A new catalog, and one whose writer died, must be looked through once; one that was closed in order must not."""
    with catalog_at(tmp_path / "c") as catalog:
        assert catalog.flush()
        assert catalog.needs_refresh
        catalog.refreshed()
    with catalog_at(tmp_path / "c") as catalog:
        assert catalog.flush()
        assert catalog.needs_refresh is False
        copy = tmp_path / "after-a-crash"
        writer = sqlite3.connect(catalog.path)
        writer.execute("VACUUM INTO ?", (str(copy),))
        writer.close()
    with catalog_at(copy) as catalog:
        assert catalog.flush()
        assert catalog.needs_refresh


def test_a_second_writer_waits_for_the_first(tmp_path: Path) -> None:
    """Two processes never write one catalog: the second one has an alarm until the first is gone."""
    feed = Feed(header())
    with catalog_at(tmp_path / "c") as first:
        assert first.flush()
        with catalog_at(tmp_path / "c") as second:
            second.batch_committed(feed.header, path(feed.header), feed.batch(entry(0)), ["a"])
            assert not second.flush()
            assert "another process" in second.statistics().error
            assert first.close()
            assert second.flush()
            with CatalogReader(second.path) as reader:
                assert len(reader.volumes()) == 1


def test_a_broken_row_does_not_end_the_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake of ours about one volume costs that volume's rows until a rescan, and nothing else."""
    real = schema.put_volume

    def put_volume(connection: sqlite3.Connection, head: VolumeHeader, place: str) -> int:
        if place == "bad":
            raise ValueError("a mistake")
        return real(connection, head, place)

    monkeypatch.setattr(schema, "put_volume", put_volume)
    bad, good = Feed(header(0)), Feed(header(1))
    with catalog_at(tmp_path / "c") as catalog:
        catalog.batch_committed(bad.header, "bad", bad.batch(entry(0)), ["a"])
        assert not catalog.flush()
        catalog.batch_committed(good.header, path(good.header), good.batch(entry(0)), ["a"])
        assert catalog.flush()
        assert catalog.stale_volumes() == [bad.header.volume_id]
        with CatalogReader(catalog.path) as reader:
            assert [volume.number for volume in reader.volumes()] == [1]


def test_a_catalog_that_breaks_while_it_is_written_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk gives other bytes than were written: a new file is begun, what waits goes into it, and a refresh is asked for."""
    real, broken = schema.put_volume, [True]

    def put_volume(connection: sqlite3.Connection, head: VolumeHeader, place: str) -> int:
        if broken.pop() if broken else False:
            error = sqlite3.DatabaseError("database disk image is malformed")
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise error
        return real(connection, head, place)

    monkeypatch.setattr(schema, "put_volume", put_volume)
    feed = Feed(header())
    with catalog_at(tmp_path / "c") as catalog:
        assert catalog.flush()
        catalog.refreshed()
        assert catalog.flush()
        catalog.batch_committed(feed.header, path(feed.header), feed.batch(entry(0)), ["a"])
        assert not catalog.flush()
        assert (tmp_path / "c.unreadable").exists()
        catalog.batch_committed(feed.header, path(feed.header), feed.batch(entry(1)), ["a"])
        assert catalog.flush()
        assert catalog.needs_refresh
        with CatalogReader(catalog.path) as reader:
            assert len(reader.volumes()) == 1


def test_a_transaction_that_fails_leaves_nothing_behind_and_is_tried_again(tmp_path: Path) -> None:
    """What waits is written whole or not at all, on the same connection too."""
    writer = Writer(tmp_path / "c")
    feed = Feed(header())
    writer.grow(feed.header, path(feed.header), feed.batch(entry(0)), ["a"])
    failures = [True]

    def change(connection: sqlite3.Connection) -> None:
        if failures:
            failures.pop()
            raise sqlite3.OperationalError("disk I/O error")

    writer.change(change)
    with pytest.raises(sqlite3.OperationalError):
        writer.write()
    with CatalogReader(tmp_path / "c") as reader:
        assert reader.volumes() == []
    assert writer.write()
    assert writer.waiting == 0
    with CatalogReader(tmp_path / "c") as reader:
        assert [span.samples for span in reader.spans("gate")] == [25]
    writer.close()


def test_telling_is_refused_quietly_after_close(tmp_path: Path) -> None:
    """A late completion of the engine must not fail because the catalog is gone already."""
    feed = Feed(header())
    with catalog_at(tmp_path / "c") as catalog:
        pass
    catalog.batch_committed(feed.header, path(feed.header), feed.batch(entry(0)), ["a"])
    assert catalog.flush()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_is_an_alarm(tmp_path: Path) -> None:
    """Permission denied is a sentence in the statistics."""
    tmp_path.chmod(0o500)
    catalog = Catalog(tmp_path / "c", interval_s=60.0)
    assert not catalog.flush()
    assert catalog.statistics().error
    tmp_path.chmod(0o700)
    assert catalog.close()
