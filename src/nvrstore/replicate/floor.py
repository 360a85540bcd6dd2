"""The retention floor: which volumes have expired, so that no resync brings them back. Pure.

    per writer and lane ("t0008-9f2c41aa.l0"): every volume up to this number is gone for good

Counted in volumes, never in time: one volume with a broken clock would else raise the floor over everything, or hold it
down for ever. One floor counts for the whole journal (`JOURNAL`, what the policy no longer wants), one for each target
that had to give up more than the others (a smaller disk). Floors travel as records in batches, and only grow: floors
of two sides that recorded apart are merged by the greater number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from nvrstore.journal.names import VolumeName
from nvrstore.model import Record, RecordKind

#: The id of the floor that counts for every target of a journal; the others have the target's name.
JOURNAL: Final = "*"
#: Writers that a floor remembers, the newest: one per start of a recorder and lane. Keeps the record under 20 KB.
WRITERS_MAX: Final = 500


def writer_of(name: VolumeName) -> str:
    """Whose numbers a volume's number counts among."""
    return f"t{name.term:04d}-{name.tag}.l{name.lane}"


@dataclass(frozen=True, slots=True)
class Floor:
    """Everything up to these volume numbers has expired, per writer and lane."""

    gone: Mapping[str, int] = field(default_factory=dict)

    def covers(self, name: VolumeName) -> bool:
        """Whether a volume has expired."""
        return name.number <= self.gone.get(writer_of(name), -1)

    def raised(self, names: Iterable[VolumeName]) -> Floor:
        """This floor, above `names` too."""
        return self.merged(Floor(_greatest((writer_of(name), name.number) for name in names)))

    def merged(self, other: Floor) -> Floor:
        """What either has seen expire. The writers of the lowest terms are forgotten beyond `WRITERS_MAX`."""
        gone = _greatest((*self.gone.items(), *other.gone.items()))
        newest = sorted(gone, key=_term)[-WRITERS_MAX:]
        return Floor({writer: gone[writer] for writer in sorted(newest)})

    def record(self, place: str = JOURNAL, *, journal: str = "") -> Record:
        """The ledger record of this floor: of a target, or of the whole journal. Its id names the journal: one catalog holds many."""
        return Record(RecordKind.RETENTION_FLOOR, f"{journal}/{place}" if journal else place, {"gone": dict(self.gone)})

    @classmethod
    def of(cls, record: Record) -> Floor:
        """The floor that a record says; numbers that cannot be are passed over: a floor too low costs work, one too high costs copies."""
        gone = record.body.get("gone")
        entries = gone.items() if isinstance(gone, Mapping) else ()
        return cls({str(writer): number for writer, number in entries if isinstance(number, int) and number >= 0})


def floors_of(records: Iterable[Record], journal: str = "") -> dict[str, Floor]:
    """The floors among `records` by place, merged where one occurs more than once. `journal`: those of others are passed over."""
    floors: dict[str, Floor] = {}
    for record in records:
        if record.kind == RecordKind.RETENTION_FLOOR:
            owner, _, place = record.id.rpartition("/")
            if not (journal and owner) or owner == journal:
                floors[place] = floors.get(place, Floor()).merged(Floor.of(record))
    return floors


def expired(name: VolumeName, floors: Mapping[str, Floor], target: str) -> bool:
    """Whether `target` shall not get the volume (again)."""
    return any(floors[place].covers(name) for place in (JOURNAL, target) if place in floors)


def _greatest(entries: Iterable[tuple[str, int]]) -> dict[str, int]:
    gone: dict[str, int] = {}
    for writer, number in entries:
        gone[writer] = max(number, gone.get(writer, -1))
    return gone


def _term(writer: str) -> tuple[int, str]:
    digits = writer[1:].partition("-")[0]
    return (int(digits) if digits.isdecimal() else 0, writer)
