"""Marks as hosts give them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from nvrstore.errors import UsageError
from nvrstore.journal.records import pack_record
from nvrstore.limits import RECORD_BYTES_MAX
from nvrstore.model import Mark
from nvrstore.recorder.marks import mark_record


def deep(levels: int) -> list[Any]:
    """A list in a list, and so on."""
    found: list[Any] = []
    for _ in range(levels):
        found = [found]
    return found


ENDLESS: dict[str, Any] = {}
ENDLESS["self"] = ENDLESS


@pytest.mark.parametrize(
    "data",
    [
        {"score": math.nan},
        {"score": -math.inf},
        {"plate": "\ud800"},
        {"\udfff": 1},
        {"a": object()},
        {"a": {1, 2}},
        ENDLESS,
        {"a": deep(100_000)},
    ],
    ids=["nan", "infinity", "surrogate", "surrogate as key", "object", "set", "endless", "deep"],
)
def test_data_that_the_ledger_would_refuse_is_refused_at_once(data: dict[str, Any]) -> None:
    """Later nobody could be told: who waits for the mark would wait for ever."""
    with pytest.raises(UsageError, match="JSON"):
        mark_record("gate", "person", 0, 1, data)


def test_so_is_a_kind_that_is_no_text() -> None:
    """The whole record is checked, not only what is called data."""
    with pytest.raises(UsageError, match="JSON"):
        mark_record("gate", "\ud800", 0, 1, {})


def test_too_much_is_refused_by_the_bytes_that_it_takes_on_disk() -> None:
    """Not by characters."""
    most = RECORD_BYTES_MAX // 2
    with pytest.raises(UsageError, match="bytes"):
        mark_record("gate", "person", 0, 1, {"text": "\u4eba" * (most // 3)})
    pack_record(mark_record("gate", "person", 0, 1, {"text": "\u4eba" * (most // 3 - 100)}))


def test_what_the_host_does_to_its_data_afterwards_changes_nothing() -> None:
    """The engine writes it a tick later."""
    data = {"boxes": [1.0]}
    record = mark_record("gate", "person", 0, 1, data)
    data["boxes"].append(math.nan)
    assert Mark.of(record).data == {"boxes": [1.0]}
    assert Mark.of(record).id == record.id
    pack_record(record)
