"""What a volume consists of, as values: its header, its batches, their directories.

The bytes are `journal/header.py`, `journal/batch.py`, `journal/index.py`; docs/format.md is the page for people who
write a reader of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
