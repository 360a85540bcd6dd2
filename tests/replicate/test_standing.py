"""What every new volume repeats."""

from __future__ import annotations

from nvrstore.model import Record, RecordKind
from nvrstore.replicate.floor import Floor
from nvrstore.replicate.standing import Standing


def test_what_stands_is_what_was_not_ended() -> None:
    """Open gaps, holds, erasures that are not done everywhere, the newest floor of each place, in the order in which they began."""
    gap = Record(RecordKind.GAP, "g1", {"stream": "gate", "cause": "camera", "start_ns": 1, "end_ns": None})
    hold, erasure = Record(RecordKind.HOLD, "h1", {"stream": "gate"}), Record(RecordKind.ERASURE, "e1", {})
    floor = Floor({"t0001-9f2c41aa.l0": 5}).record("a")
    records = [
        gap,
        Record(RecordKind.GAP, "g2", {**gap.body}),
        hold,
        Record(RecordKind.HOLD, "h2", {"stream": "gate"}),
        erasure,
        Record(RecordKind.ERASURE, "e2", {}),
        Record(RecordKind.MARK, "m1", {}),
        Floor({"t0001-9f2c41aa.l0": 3}).record("a"),
        Floor({"t0001-9f2c41aa.l0": 1}).record("b"),
        floor,
        Record(RecordKind.GAP, "g2", {**gap.body, "end_ns": 9}),
        Record(RecordKind.HOLD, "h2", {"stream": "gate", "released": True}),
        Record(RecordKind.ERASURE, "e2", {"done": True}),
    ]
    standing = Standing()
    for record in records:
        standing.apply(record)
    found = standing.records()
    assert found == [gap, hold, erasure, floor, Floor({"t0001-9f2c41aa.l0": 1}).record("b")]
    again = Standing()
    for record in found:
        again.apply(record)
    assert again.records() == found, "a volume that repeats them changes nothing"
