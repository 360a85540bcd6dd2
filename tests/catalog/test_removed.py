"""A catalog whose file is removed: while it is open, and while nobody has it open."""

from __future__ import annotations

from pathlib import Path

from tests.support.catalog import Feed, entry, header, path

from nvrstore.catalog.query import CatalogReader
from nvrstore.catalog.schema import CopyState
from nvrstore.catalog.store import Catalog


def lose(place: Path) -> None:
    for file in place.parent.glob(f"{place.name}*"):
        if not file.name.endswith(".lock"):
            file.unlink()


def test_a_file_that_is_removed_while_it_is_open_is_an_alarm_and_is_begun_anew(tmp_path: Path) -> None:
    """SQLite would go on writing to a file without a name."""
    said: list[str] = []
    feed, later = Feed(header()), Feed(header(1))
    catalog = Catalog(tmp_path / "c", interval_s=60.0, on_alarm=said.append)
    catalog.batch_committed(feed.header, path(feed.header), feed.batch(entry(0)), ["a"])
    assert catalog.flush()
    catalog.refreshed()
    assert catalog.flush()
    assert not catalog.needs_refresh
    lose(tmp_path / "c")
    assert not catalog.flush(), "nothing waits, and all the same it is noticed"
    assert "removed" in said[0]
    catalog.batch_committed(feed.header, path(feed.header), feed.batch(entry(1)), ["a"])
    catalog.batch_committed(later.header, path(later.header), later.batch(entry(2)), ["a"])
    assert catalog.flush()
    assert said[1:] == [""]
    assert catalog.needs_refresh
    assert catalog.stale_volumes() == [feed.header.volume_id], "what was written of it is gone; the later one is whole"
    with CatalogReader(catalog.path) as reader:
        assert len(reader.volumes()) == 2
    assert catalog.close()


def test_it_needs_a_look_through_as_long_as_a_volume_lacks_rows(tmp_path: Path) -> None:
    """Whoever looked through the targets meanwhile did not see what is still being written."""
    feed = Feed(header())
    catalog = Catalog(tmp_path / "c", interval_s=60.0)
    feed.batch(entry(0))
    catalog.batch_committed(feed.header, path(feed.header), feed.batch(entry(1)), ["a"])
    catalog.refreshed()
    assert catalog.flush()
    assert catalog.needs_refresh
    catalog.adopt(feed.header, path(feed.header), feed.batches, {"a": (20480, CopyState.COMPLETE)}, closed_length=20480)
    catalog.refreshed()
    assert catalog.flush()
    assert not catalog.needs_refresh
    assert catalog.close()
    with CatalogReader(catalog.path) as reader:
        assert not reader.needs_refresh


def test_the_log_of_a_file_that_was_removed_never_meets_the_new_one(tmp_path: Path) -> None:
    """Somebody deleted the database alone, after a crash had left its write-ahead log behind."""
    (tmp_path / "c-wal").write_bytes(b"frames of another database" * 1000)
    (tmp_path / "c-shm").write_bytes(bytes(32768))
    feed = Feed(header())
    catalog = Catalog(tmp_path / "c", interval_s=60.0)
    catalog.batch_committed(feed.header, path(feed.header), feed.batch(entry(0)), ["a"])
    assert catalog.flush()
    assert catalog.close()
    with CatalogReader(catalog.path) as reader:
        assert [span.samples for span in reader.spans("gate")] == [25]
