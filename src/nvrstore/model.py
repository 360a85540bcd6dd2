"""The value types that travel between the rooms: one type per belt, all of them immutable once they are on it.

    camera -> Sample -> Fragment -> Batch (journal/batch.py) -> Commit
                 \\-> taps              \\-> Record (the ledger) travels beside fragments

Units: `_ns` UTC nanoseconds, `_s` monotonic seconds, `duration`, `pts`, `dts` in ticks of the track's timescale.
This module holds no behaviour beyond what follows from the fields.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag, StrEnum
from typing import Any, Final, NamedTuple

from nvrstore.extents import Loan

NS_PER_S: Final = 1_000_000_000


# --- media -----------------------------------------------------------------------------------------------------


class Media(StrEnum):
    """What a track carries. A stream has one video track, and at most one audio track."""

    VIDEO = "video"
    AUDIO = "audio"


@dataclass(frozen=True, slots=True, order=True)
class TrackKey:
    """Names a track for ever: the stream's id and the medium."""

    stream: str
    media: Media

    def __str__(self) -> str:
        return f"{self.stream}/{self.media}"


@dataclass(frozen=True, slots=True)
class TrackConfig:
    """What a `moov` needs to know about a track.

    `trak` is a complete `trak` box made by libav's muxer (media/init.py); its track_ID and handler name are set
    when a `moov` is built from it. `timescale` is that of its `mdhd`: ticks per second.
    """

    media: Media
    codec: str  # "h264" | "hevc" | "mjpeg" | "aac" | "opus" | "pcm" | ... (libav's names)
    timescale: int
    trak: bytes = field(repr=False)
    width: int = 0
    height: int = 0
    sample_rate: int = 0
    channels: int = 0

    def continues(self, other: TrackConfig) -> bool:
        """Whether samples of `other` may follow in the same track: parameter sets may differ (they are in-band), the picture may not."""
        return (self.media, self.codec, self.timescale, self.width, self.height, self.sample_rate, self.channels) == (
            other.media,
            other.codec,
            other.timescale,
            other.width,
            other.height,
            other.sample_rate,
            other.channels,
        )


class Sample(NamedTuple):
    """One access unit (video) or one audio frame, as it goes into `mdat`.

    There are thousands a second: a named tuple is made in half a microsecond, a frozen dataclass in two.

    H.264 and H.265: NAL units with 4-byte lengths (ISO/IEC 14496-15), parameter sets in-band at every keyframe.
    `pts` and `dts` are unwrapped media time in ticks of the track's timescale, on the camera's clock.
    """

    media: Media
    data: bytes
    pts: int
    dts: int
    keyframe: bool
    arrival_ns: int  # UTC
    arrival_s: float  # monotonic
    damaged: bool = False

    def __repr__(self) -> str:
        times = f"pts={self.pts}, dts={self.dts}, keyframe={self.keyframe}, damaged={self.damaged}"
        return f"Sample({self.media}, {len(self.data)} bytes, {times})"


class FragmentFlag(IntFlag):
    """Flags of a fragment, as stored in the batch's directory."""

    KEYFRAME = 1  # its first sample is a sync sample
    SEGMENT = 2  # it begins a segment
    DISCONTINUITY = 4  # it begins a run: first after a gap, a reconnect, a clock step
    DAMAGED = 8  # at least one of its samples is known to be incomplete


# Where the three fields that depend on the volume lie in every fragment (media/fragment.py proves it):
# moof header 8, mfhd 16, traf header 8, tfhd 16, tfdt (version 1) 20, trun.
MFHD_SEQUENCE_AT: Final = 20  # u32
TFHD_TRACK_AT: Final = 44  # u32
TFDT_TIME_AT: Final = 60  # u64


@dataclass(frozen=True, slots=True)
class Fragment:
    """`moof` + `mdat` of one track: the unit that is journaled.

    Identity, for ever: (track, session, index). `parts` are the bytes in order; the first part holds at least the
    whole `moof`, with zeroes in the three volume-dependent fields, which are set where the batch is built.
    """

    track: TrackKey
    config: TrackConfig = field(repr=False)
    session: int  # random u64 of the recorder's start
    index: int  # of its first sample within (track, session), counting from 0
    samples: int
    utc_ns: int  # of its first sample (the truth; track time in the file only follows it)
    duration: int  # ticks
    flags: FragmentFlag
    parts: tuple[bytes | bytearray | memoryview, ...] = field(repr=False)
    length: int  # bytes, the sum over parts
    arrival_s: float = 0.0  # monotonic, of its last sample
    loan: Loan | None = field(default=None, repr=False, compare=False)  # of the shared memory in which its only part lies

    @property
    def duration_ns(self) -> int:
        return self.duration * NS_PER_S // self.config.timescale

    @property
    def end_ns(self) -> int:
        """UTC at which its last sample ends."""
        return self.utc_ns + self.duration_ns


# --- ledger ----------------------------------------------------------------------------------------------------


class RecordKind(IntEnum):
    """Kinds of ledger records. Numbers are frozen; a reader skips those that it does not know."""

    GAP = 1
    RUN = 2
    MARK = 3
    HOLD = 4
    ERASURE = 5
    RETENTION_FLOOR = 6
    VOLUME_ABANDONED = 7
    CLOCK_STEP = 8


@dataclass(frozen=True, slots=True)
class Record:
    """One ledger entry: a kind, an id, and a body of JSON values. A later record of the same (kind, id) replaces an earlier one."""

    kind: int
    id: str
    body: Mapping[str, Any]


class Cause(StrEnum):
    """Why something was not stored."""

    CAMERA = "camera"  # the camera is down, silent, or closed the connection
    REFUSED = "refused"  # the camera refuses the login
    NETWORK = "network"  # lost or damaged on the way
    TIMESTAMPS = "timestamps"  # the camera's clock broke: samples that could not be placed in time
    STORAGE = "storage"  # no target and no refuge could take it
    RECORDER = "recorder"  # the recorder was down
    POLICY = "policy"  # the configuration says not to record now


@dataclass(frozen=True, slots=True)
class Gap:
    """What was not stored of one stream, with both ends. `end_ns` is None while it is open."""

    id: str
    stream: str
    cause: Cause
    start_ns: int
    end_ns: int | None = None
    detail: str = ""

    def record(self) -> Record:
        body = {"stream": self.stream, "cause": str(self.cause), "start_ns": self.start_ns, "end_ns": self.end_ns, "detail": self.detail}
        return Record(RecordKind.GAP, self.id, body)

    @classmethod
    def of(cls, record: Record) -> Gap:
        b = record.body
        return cls(record.id, b["stream"], Cause(b["cause"]), b["start_ns"], b["end_ns"], b.get("detail", ""))


@dataclass(frozen=True, slots=True)
class Mark:
    """A user's event with data, stored with the footage."""

    id: str
    stream: str
    kind: str
    start_ns: int
    end_ns: int
    data: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> Record:
        body = {"stream": self.stream, "mark": self.kind, "start_ns": self.start_ns, "end_ns": self.end_ns, "data": dict(self.data)}
        return Record(RecordKind.MARK, self.id, body)

    @classmethod
    def of(cls, record: Record) -> Mark:
        b = record.body
        return cls(record.id, b["stream"], b["mark"], b["start_ns"], b["end_ns"], b.get("data", {}))


# --- the set ---------------------------------------------------------------------------------------------------


class Medium(StrEnum):
    """Class of storage: decides from which age on a call is late, and from which it is lost (failover/detector.py)."""

    SSD = "ssd"
    DISK = "disk"  # spinning, or RAID of them
    NETWORK = "network"  # NFS, CIFS, FUSE
    NODE = "node"
    MEMORY = "memory"


class Role(StrEnum):
    """A target's part in a set."""

    PRIMARY = "primary"
    STANDBY = "standby"
    REFUGE = "refuge"  # the state disk, while no member lives; never counted as committed


@dataclass(frozen=True, slots=True, order=True)
class Epoch:
    """The writer's number and the number of the set within it. Orders volumes; compares as (term, set)."""

    term: int
    set: int

    def __str__(self) -> str:
        return f"{self.term}.{self.set}"


@dataclass(frozen=True, slots=True)
class MemberRef:
    """A member as a volume header names it."""

    target: str  # the target's configured name
    target_id: str  # uuid of its target.json, 32 hex digits
    role: Role


@dataclass(frozen=True, slots=True)
class Commit:
    """The word that fragments and records are durable as the commit policy asks."""

    journal: str
    epoch: Epoch
    volume_id: str
    batch: int
    copies: int
    wanted: int
    utc_ns: int


def new_id() -> str:
    """A random 128-bit id as 32 hex digits."""
    return secrets.token_hex(16)
