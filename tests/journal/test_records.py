"""Ledger records as bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvrstore.errors import FormatError
from nvrstore.journal.layout import RECORDS_UUID
from nvrstore.journal.records import pack_record, pack_records, parse_records
from nvrstore.limits import RECORD_BYTES_MAX, RECORDS_BYTES_MAX
from nvrstore.media.boxes import uuid_box
from nvrstore.model import Cause, Gap, Mark, Record, RecordKind

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
records = st.builds(Record, kind=st.sampled_from(RecordKind), id=text, body=st.dictionaries(text, values, max_size=4))


@given(st.lists(records, min_size=1, max_size=5))
def test_records_come_back_as_they_were(wanted: list[Record]) -> None:
    """What JSON can carry is carried exactly, in order."""
    assert parse_records(pack_records(wanted)) == tuple(wanted)


def test_no_records_take_no_bytes() -> None:
    """Most batches carry none."""
    assert pack_records(()) == b""


def test_a_gap_and_a_mark_survive_the_way() -> None:
    """The typed views of a record read what was packed."""
    gap = Gap("g1", "gate", Cause.NETWORK, 1_795_000_000_000_000_001, None, "lost")
    mark = Mark("m1", "gate", "person", 1, 2, {"score": 0.93, "name": "Jürgen"})
    first, second = parse_records(pack_records([gap.record(), mark.record()]))
    assert Gap.of(first) == gap
    assert Mark.of(second) == mark


def test_kinds_of_a_later_version_are_skipped() -> None:
    """A reader of today opens the archive of tomorrow: what it does not know it leaves out, even where it is no JSON."""
    known = pack_record(Record(RecordKind.GAP, "g", {}))
    unknown = bytes.fromhex("00ff 0000 00000003 ff00ff")
    box = uuid_box(RECORDS_UUID, unknown, known, unknown)
    assert parse_records(box) == (Record(RecordKind.GAP, "g", {}),)


@pytest.mark.parametrize("body", [{"data": "x" * RECORD_BYTES_MAX}, {"score": float("nan")}, {"name": "\ud800"}, {"when": object()}])
def test_what_cannot_be_stored_is_refused_before_it_is_in_a_batch(body: dict[str, object]) -> None:
    """One user's odd mark must not stop a batch with everybody's footage."""
    with pytest.raises((ValueError, TypeError)):
        pack_record(Record(RecordKind.MARK, "m", body))


def test_more_records_than_a_batch_holds_are_refused() -> None:
    """The rest waits for the next batch; no scanner has to believe in a larger box."""
    record = Record(RecordKind.MARK, "m", {"data": "x" * (RECORD_BYTES_MAX - 100)})
    with pytest.raises(ValueError, match="do not fit"):
        pack_records([record] * (RECORDS_BYTES_MAX // RECORD_BYTES_MAX + 1))


@pytest.mark.parametrize(
    "box",
    [
        b"",
        b"\0" * 24,
        uuid_box(bytes(16)),
        uuid_box(RECORDS_UUID, b"\0\1\0\0"),
        uuid_box(RECORDS_UUID, bytes.fromhex("0001 0000 00000009") + b"[]"),
        uuid_box(RECORDS_UUID, bytes.fromhex("0001 0000 00000002") + b"[]"),
        uuid_box(RECORDS_UUID, bytes.fromhex("0001 0000 00000007") + b"[1, {}]"),
        uuid_box(RECORDS_UUID, bytes.fromhex("0001 0000 00000001") + b"\xff"),
        uuid_box(RECORDS_UUID, bytes.fromhex("0001 0000 00002710") + b"[" * 10000),
        uuid_box(RECORDS_UUID) + b"\0",
    ],
)
def test_what_is_no_records_box_says_where(box: bytes) -> None:
    """Errors carry the file and the byte."""
    with pytest.raises(FormatError, match=r"v\.mp4: byte 10[0-9][0-9]:"):
        parse_records(box, path="v.mp4", offset=1000)
