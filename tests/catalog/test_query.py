"""Questions to the file and to what a scan has just found, together."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from tests.support.catalog import T0, Feed, entry, gap, header, path

from nvrstore.catalog import schema
from nvrstore.catalog.query import CatalogReader
from nvrstore.catalog.rows import volume_rows
from nvrstore.catalog.schema import CopyState
from nvrstore.catalog.store import Catalog
from nvrstore.errors import CatalogError
from nvrstore.model import NS_PER_S


@contextmanager
def overlay(*feeds: Feed) -> Iterator[sqlite3.Connection]:
    """A catalog in memory that a scan of these volumes made."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        schema.create(connection)
        for feed in feeds:
            rows = volume_rows(feed.header, path(feed.header), feed.batches)
            schema.adopt_volume(connection, rows, {"a": (feed.offset, CopyState.LIVE)}, None)
        yield connection


def written(place: Path, *feeds: Feed) -> Path:
    catalog = Catalog(place, interval_s=60.0)
    for feed in feeds:
        for batch in feed.batches:
            catalog.batch_committed(feed.header, path(feed.header), batch, ["a", "b"])
    assert catalog.close()
    return place


def test_of_two_sources_the_later_entry_of_an_id_counts(tmp_path: Path) -> None:
    """Whichever source has it: a rescan of an old volume never brings back what a later one has closed or replaced."""
    old, new = Feed(header(0)), Feed(header(1))
    old.batch(entry(0), records=[gap("g", 5, None), gap("h", 5, None)])
    new.batch(entry(1), records=[gap("g", 5, 6), gap("h", 6, None)])
    for main, scanned in (((old, new), (old,)), ((old,), (new,)), ((new,), (old,)), ((old,), (old, new))):
        file = written(tmp_path / f"c{id(main)}", *main)
        with overlay(*scanned) as connection, CatalogReader(file, connection) as reader:
            assert [(g.id, g.start_ns, g.end_ns) for g in reader.gaps("gate")] == [
                ("g", T0 + 5 * NS_PER_S, T0 + 6 * NS_PER_S),
                ("h", T0 + 6 * NS_PER_S, None),
            ]
            assert [g.id for g in reader.gaps("gate", T0 + 7 * NS_PER_S)] == ["h"]
            assert [g.id for g in reader.gaps("gate", 0, T0 + 6 * NS_PER_S)] == ["g"]


def test_the_contents_of_a_rescanned_volume_are_those_of_the_scan(tmp_path: Path) -> None:
    """The file knows one batch of a volume, the scan found three: spans and batches are the scan's, copies are of both."""
    early, late = Feed(header()), Feed(header())
    early.batch(entry(0))
    for second in range(3):
        late.batch(entry(second))
    file = written(tmp_path / "c", early)
    with overlay(late) as connection, CatalogReader(file, connection) as reader:
        (volume,) = reader.volumes()
        assert (volume.batches, volume.length) == (3, late.offset)
        assert [(c.target, c.length) for c in volume.copies] == [("a", late.offset), ("b", early.offset)]
        assert [s.samples for s in reader.spans("gate")] == [75]
        assert [s.samples for s in reader.spans_of(volume.volume_id, "gate")] == [75]
        assert len(reader.batches(volume.volume_id)) == 3
        (stream,) = reader.streams(totals=True)
        assert (stream.last_ns, stream.fragments) == (T0 + 3 * NS_PER_S, 3)


def test_what_is_no_catalog_is_a_sentence(tmp_path: Path) -> None:
    """No file, no database, another format: `CatalogError`, with the next step as its hint."""
    with pytest.raises(CatalogError, match="no catalog") as raised:
        CatalogReader(tmp_path / "c")
    assert "catalog rebuild" in raised.value.hint
    (tmp_path / "c").write_bytes(b"rubbish" * 1000)
    with pytest.raises(CatalogError, match="cannot be read"):
        CatalogReader(tmp_path / "c")
    (tmp_path / "c").unlink()
    with closing(sqlite3.connect(tmp_path / "c")) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(CatalogError, match="format 99"):
        CatalogReader(tmp_path / "c")
