"""A mark as a host gives it becomes a record, or an error: what the ledger refuses later, nobody would hear of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nvrstore.errors import UsageError
from nvrstore.journal.records import pack_record
from nvrstore.limits import RECORD_BYTES_MAX
from nvrstore.model import Mark, Record, RecordKind, new_id


def mark_record(stream: str, kind: str, start_ns: int, end_ns: int, data: Mapping[str, Any]) -> Record:
    """What is stored of a mark; the host's own objects are not kept. Raises UsageError for what JSON cannot carry, or too much.

    RFC 8259 has no NaN and no infinity, and UTF-8 no lone surrogates.
    """
    mark = Mark(new_id(), stream, kind, start_ns, end_ns, data)
    try:
        raw = json.dumps(mark.record().body, ensure_ascii=False, allow_nan=False)
        length = len(raw.encode())
        if length > RECORD_BYTES_MAX // 2:
            raise UsageError(f"the data of a mark is {length} bytes of JSON; at most {RECORD_BYTES_MAX // 2} are stored")
        record = Record(RecordKind.MARK, mark.id, json.loads(raw))
        pack_record(record)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the data of a mark must be JSON: {error}") from error
    return record
