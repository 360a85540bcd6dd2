"""What a volume's batches become in the catalog."""

from __future__ import annotations

from tests.support.catalog import SESSION, T0, Feed, entry, gap, header, path

from nvrstore.catalog.rows import VolumeRows, volume_rows
from nvrstore.model import NS_PER_S, FragmentFlag


def _spans(rows: VolumeRows) -> list[tuple[int, int, int, float, float]]:
    found = sorted(rows.spans.values(), key=lambda s: (s.track_id, s.start_ns))
    return [(s.track_id, s.index, s.next_index, (s.start_ns - T0) / NS_PER_S, (s.end_ns - T0) / NS_PER_S) for s in found]


def test_fragments_that_follow_one_another_are_one_span() -> None:
    """An unbroken stretch is one row, however many batches it came in."""
    feed = Feed(header())
    for second in range(5):
        feed.batch(entry(second), entry(second, track_id=2, samples=47, index=47 * second))
    rows = volume_rows(feed.header, "p", feed.batches)
    assert _spans(rows)[0] == (1, 0, 125, 0.0, 5.0)
    assert [s.fragments for s in rows.spans.values()] == [5, 5], "one per track"
    assert (rows.first_ns, rows.last_ns, rows.length, rows.batches) == (T0, T0 + 5 * NS_PER_S, feed.offset, 5)


def test_a_span_breaks_where_samples_time_session_or_run_break() -> None:
    """A missing sample, a hole in time, another session and the begin of a run each end a span."""
    feed = Feed(header())
    feed.batch(entry(0))
    feed.batch(entry(1, index=26))  # one sample is missing
    feed.batch(entry(2, index=51))
    feed.batch(entry(4, index=76))  # a second is missing, no sample is
    feed.batch(entry(5, index=101, flags=FragmentFlag.DISCONTINUITY))
    feed.batch(entry(6, index=126, session=7))
    feed.batch(entry(5.5, index=151, session=7))  # the clock went back
    rows = volume_rows(feed.header, "p", feed.batches)
    assert [span[1:3] for span in _spans(rows)] == [(0, 25), (26, 76), (76, 101), (101, 126), (151, 176), (126, 151)]


def test_a_little_jitter_does_not_break_a_span() -> None:
    """UTC follows the camera's clock with small corrections; they are no holes."""
    feed = Feed(header())
    for second in range(10):
        feed.batch(entry(second + 0.04 * (second % 2), index=25 * second))
    assert len(volume_rows(feed.header, "p", feed.batches).spans) == 1


def test_the_same_fragment_twice_is_listed_once() -> None:
    """A batch told twice, or a fragment that stands twice in a volume, changes nothing."""
    feed = Feed(header())
    first = feed.batch(entry(0))
    feed.batch(entry(1))
    feed.batch(entry(0), entry(1))
    rows = volume_rows(feed.header, "p", [*feed.batches])
    before = (rows.batches, rows.length, len(rows.new_batches))
    rows.add(first)
    assert [(s.samples, s.fragments) for s in rows.spans.values()] == [(50, 2)]
    assert (rows.batches, rows.length, len(rows.new_batches)) == before == (3, feed.offset, 3)


def test_the_last_record_of_an_id_is_kept_with_its_place() -> None:
    """A later entry of the same (kind, id) replaces the earlier one, also within a batch."""
    feed = Feed(header())
    feed.batch(records=[gap("g", 0, None), gap("h", 0, None)])
    feed.batch(records=[gap("g", 0, 3), gap("g", 0, 4)])
    rows = volume_rows(feed.header, "p", feed.batches)
    assert {key: (row.batch, row.position) for key, row in rows.records.items()} == {(1, "g"): (1, 1), (1, "h"): (0, 1)}
    assert rows.changes == 4
    rows.settle()
    assert rows.changes == 0


def test_path_of_a_volume_is_kept() -> None:
    """Every copy lies under the same path."""
    head = header(session=SESSION)
    assert volume_rows(head, path(head), []).path == path(head)
