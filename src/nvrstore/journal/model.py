"""What a volume consists of, as values: its header, its batches, their directories.

The bytes are `journal/header.py`, `journal/batch.py`, `journal/index.py`; docs/format.md is the page for people who
write a reader of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from nvrstore.model import Epoch, FragmentFlag, MemberRef, Record, TrackConfig, TrackKey


@dataclass(frozen=True, slots=True)
class VolumeTrack:
    """One track of a volume; its track_ID is its position in the header, counted from 1."""

    track: TrackKey
    name: str  # the stream's human name: the handler name in the `moov`
    config: TrackConfig


@dataclass(frozen=True, slots=True)
class VolumeHeader:
    """What `ftyp moov uuid free` at the start of a volume says."""

    volume_id: str  # 32 hex digits
    journal: str
    journal_id: str  # 32 hex digits
    recorder: str  # its name
    session: int  # u64
    epoch: Epoch
    lane: int
    number: int  # of the volume within (session, lane), from 0
    members: tuple[MemberRef, ...]
    created_ns: int  # UTC; only for the file's name, which is for people
    origin_ns: int  # UTC from which track times count: the oldest sample waiting, minus ORIGIN_MARGIN_S
    tracks: tuple[VolumeTrack, ...]


@dataclass(frozen=True, slots=True)
class FragmentEntry:
    """One line of a batch's directory."""

    track_id: int  # position in the volume header's tracks, from 1
    offset: int  # bytes from the start of the batch to its `moof`
    length: int  # `moof` + `mdat`
    utc_ns: int
    duration: int  # ticks
    samples: int
    session: int
    index: int
    flags: FragmentFlag
    crc: int  # CRC-32C of `moof` + `mdat` as written
    tfdt: int  # ticks since the volume's origin, as written
    prft_crc: int = 0  # CRC-32C of the `prft` in front of its `moof`; 0: there is none


@dataclass(frozen=True, slots=True)
class Batch:
    """What one group commit wrote: `length` bytes (a multiple of 4096) at `offset` of the volume."""

    number: int  # from 0 per volume
    offset: int
    length: int
    last_committed: int  # last batch of this volume known committed when this one was built; -1: none
    header_crc: int
    entries: tuple[FragmentEntry, ...] = field(repr=False)
    records: tuple[Record, ...] = field(repr=False)
    previous_crc: int = 0  # of the batch header before this one, of the volume header in the first batch: a chain
    built_ns: int = 0  # UTC at which it was built
    flags: int = 0  # none is defined yet
    head_length: int = 0  # bytes of the batch header box
    records_length: int = 0  # bytes of the records box behind it, 0 where there is none
    records_crc: int = 0
    head: bytes = field(repr=False, default=b"")  # both boxes, verbatim: what the volume's index repeats

    @property
    def end(self) -> int:
        """Where the next batch begins."""
        return self.offset + self.length


class DamageKind(StrEnum):
    """Which part of a volume is not as it was written."""

    VOLUME_HEADER = "volume header"
    BATCHES = "batches"  # one or more whole batches cannot be found: their headers are gone
    BATCH_HEADER = "batch header"
    CHAIN = "chain"  # a whole header, but not the one that its successor was built on
    RECORDS = "records"
    PRFT = "prft"
    FRAGMENT = "fragment"
    ERASED = "erased"  # a `free` box where a fragment was: lawful where an erasure record says so
    PADDING = "padding"
    INDEX = "index"


@dataclass(frozen=True, slots=True)
class Damage:
    """`length` bytes at `offset` of a volume that are not as they were written. `batch` is -1 outside of batches."""

    kind: DamageKind
    offset: int
    length: int
    batch: int = -1
