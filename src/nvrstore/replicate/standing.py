"""What every new volume repeats, so that retention cannot take it along: open gaps, holds, erasures, the retention floor."""

from __future__ import annotations

from nvrstore.model import Record, RecordKind


class Standing:
    """The records that stand, by (kind, id); the last one counts."""

    def __init__(self) -> None:
        self._records: dict[tuple[int, str], Record] = {}

    def apply(self, record: Record) -> None:
        """Take a record into account: remember it while it stands, forget it when it is over."""
        key = (record.kind, record.id)
        match record.kind:
            case RecordKind.GAP:
                stands = record.body.get("end_ns") is None
            case RecordKind.HOLD:
                stands = not record.body.get("released", False)
            case RecordKind.ERASURE:
                stands = not record.body.get("done", False)
            case RecordKind.RETENTION_FLOOR:
                stands = True
            case _:
                return
        if stands:
            self._records[key] = record
        else:
            self._records.pop(key, None)

    def records(self) -> list[Record]:
        """In the order in which they began to stand."""
        return list(self._records.values())
