"""What the catalog says about one volume, grown batch by batch: a pure function of the volume's header and batches.

    header, batch 0, batch 1, ...  ->  spans per track · where each batch lies · the last record of every (kind, id)

The recorder grows these rows as batches become durable; a rebuild grows them from what a scan of the volume found. Both
go through this module, so both give the same answers. It does no I/O and knows no SQL.

Invariant: a *span* is unbroken. A fragment continues the span of its track only if it is of the same session, begins
with the very next sample, does not begin a run, and follows in time within `HOLE_NS_MIN`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nvrstore.journal.model import Batch, FragmentEntry, VolumeHeader
from nvrstore.limits import HOLE_NS_MIN
from nvrstore.model import NS_PER_S, FragmentFlag, Record

SpanKey = tuple[int, int, int]  # track_id, session, index of the first sample: unique within a volume


@dataclass(slots=True)
class SpanRow:
    """An unbroken stretch of one track inside one volume. Ends are exclusive: `next_index`, `end_ns`."""

    track_id: int
    session: int
    index: int
    start_ns: int
    first_batch: int
    next_index: int = 0
    end_ns: int = 0
    last_batch: int = 0
    samples: int = 0
    fragments: int = 0
    bytes: int = 0

    @property
    def key(self) -> SpanKey:
        return (self.track_id, self.session, self.index)


@dataclass(frozen=True, slots=True)
class BatchRow:
    """Where one batch lies in its volume, and which time its fragments span (0, 0 when it holds records only)."""

    number: int
    offset: int
    length: int
    first_ns: int
    last_ns: int

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class RecordRow:
    """A ledger record and its place in the volume: the later place wins."""

    batch: int
    position: int
    record: Record


@dataclass(slots=True)
class VolumeRows:
    """The rows of one volume. `changed_*` hold what has not been taken with `take` yet."""

    header: VolumeHeader
    path: str
    spans: dict[SpanKey, SpanRow] = field(default_factory=dict)
    records: dict[tuple[int, str], RecordRow] = field(default_factory=dict)
    length: int = 0  # one past the last batch
    batches: int = 0
    first_ns: int = 0
    last_ns: int = 0
    changed_spans: set[SpanKey] = field(default_factory=set)
    changed_records: set[tuple[int, str]] = field(default_factory=set)
    new_batches: list[BatchRow] = field(default_factory=list)
    _latest: dict[int, SpanRow] = field(default_factory=dict)  # per track: the span that the next fragment may continue

    @property
    def changes(self) -> int:
        """How many rows wait to be written."""
        return len(self.changed_spans) + len(self.changed_records) + len(self.new_batches)

    def add(self, batch: Batch) -> None:
        """Grow by one durable batch. A batch that is already in is skipped: the same commit may be told twice."""
        if batch.number < self.batches:
            return
        first = last = 0
        for entry in batch.entries:
            end_ns = self._add_fragment(entry, batch.number)
            first = min(first or entry.utc_ns, entry.utc_ns)
            last = max(last, end_ns)
        for position, record in enumerate(batch.records):
            key = (record.kind, record.id)
            self.records[key] = RecordRow(batch.number, position, record)
            self.changed_records.add(key)
        self.new_batches.append(BatchRow(batch.number, batch.offset, batch.length, first, last))
        self.batches = batch.number + 1
        self.length = batch.offset + batch.length
        if last:
            self.first_ns = min(self.first_ns or first, first)
            self.last_ns = max(self.last_ns, last)

    def settle(self) -> None:
        """Forget what waits to be written: it is written."""
        self.changed_spans.clear()
        self.changed_records.clear()
        self.new_batches.clear()

    def _add_fragment(self, entry: FragmentEntry, batch: int) -> int:
        end_ns = entry.utc_ns + entry.duration * NS_PER_S // self.header.tracks[entry.track_id - 1].config.timescale
        span = self._latest.get(entry.track_id)
        if span is None or not _continues(span, entry):
            if self._holds(entry):
                return end_ns  # the same fragment twice in one volume: listed once
            span = SpanRow(entry.track_id, entry.session, entry.index, entry.utc_ns, batch)
            self.spans[span.key] = span
            self._latest[entry.track_id] = span
        span.next_index = entry.index + entry.samples
        span.end_ns = max(span.end_ns, end_ns)
        span.last_batch = batch
        span.samples += entry.samples
        span.fragments += 1
        span.bytes += entry.length
        self.changed_spans.add(span.key)
        return end_ns

    def _holds(self, entry: FragmentEntry) -> bool:
        return any(
            span.track_id == entry.track_id and span.session == entry.session and span.index <= entry.index < span.next_index
            for span in self.spans.values()
        )


def _continues(span: SpanRow, entry: FragmentEntry) -> bool:
    return (
        entry.session == span.session
        and entry.index == span.next_index
        and not entry.flags & FragmentFlag.DISCONTINUITY
        and abs(entry.utc_ns - span.end_ns) < HOLE_NS_MIN
    )


def volume_rows(header: VolumeHeader, path: str, batches: tuple[Batch, ...] | list[Batch]) -> VolumeRows:
    """The rows of a volume whose batches are all known."""
    rows = VolumeRows(header, path)
    for batch in batches:
        rows.add(batch)
    return rows


def record_rank(record: Record) -> int:
    """An entry with both ends outranks an open one wherever it stands: footage that was written back from refuge comes late."""
    return int("end_ns" in record.body and record.body["end_ns"] is not None)
