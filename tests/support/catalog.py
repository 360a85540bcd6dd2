"""Headers and batches made up for the catalog: directories without bytes behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nvrstore.journal.model import Batch, FragmentEntry, VolumeHeader, VolumeTrack
from nvrstore.model import NS_PER_S, Epoch, FragmentFlag, Media, MemberRef, Record, Role, TrackConfig, TrackKey

T0 = 1_700_000_000 * NS_PER_S
VIDEO = TrackConfig(Media.VIDEO, "h264", 90_000, b"trak", 320, 240)
AUDIO = TrackConfig(Media.AUDIO, "aac", 48_000, b"trak", sample_rate=48_000, channels=1)
SESSION = (1 << 64) - 5  # the upper half of u64 must survive SQLite's signed numbers


def header(
    number: int = 0, *, streams: Sequence[str] = ("gate",), term: int = 1, set_number: int = 0, session: int = SESSION
) -> VolumeHeader:
    """A volume with a video and an audio track per stream, on targets a and b."""
    tracks = [VolumeTrack(TrackKey(s, m), f"{s} camera", c) for s in streams for m, c in ((Media.VIDEO, VIDEO), (Media.AUDIO, AUDIO))]
    return VolumeHeader(
        volume_id=f"{session ^ number ^ term << 32:032x}",
        journal="main",
        journal_id="1" * 32,
        recorder="nvr-1",
        session=session,
        epoch=Epoch(term, set_number),
        lane=0,
        number=number,
        members=(MemberRef("a", "a" * 32, Role.PRIMARY), MemberRef("b", "b" * 32, Role.STANDBY)),
        created_ns=T0,
        origin_ns=T0 - 60 * NS_PER_S,
        tracks=tuple(tracks),
    )


def path(head: VolumeHeader) -> str:
    return f"{head.journal}/2023-11-14/volume-{head.epoch.term}-{head.number}.mp4"


@dataclass
class Feed:
    """Batches of one volume, one second each: `feed.batch(second)` has one fragment of 25 samples of the first track."""

    header: VolumeHeader
    number: int = 0
    offset: int = 4096
    batches: list[Batch] = field(default_factory=list)

    def batch(self, *entries: FragmentEntry, records: Sequence[Record] = ()) -> Batch:
        made = Batch(self.number, self.offset, 8192, self.number - 1, 0, entries, tuple(records))
        self.number += 1
        self.offset += 8192
        self.batches.append(made)
        return made


def entry(
    second: float,
    *,
    track_id: int = 1,
    index: int | None = None,
    session: int = SESSION,
    flags: FragmentFlag = FragmentFlag.KEYFRAME,
    samples: int = 25,
    seconds: float = 1.0,
) -> FragmentEntry:
    """A fragment that begins `second` seconds after T0."""
    ticks = round(seconds * (90_000 if track_id % 2 else 48_000))
    utc_ns = T0 + round(second * NS_PER_S)
    first = round(second * 25) if index is None else index
    return FragmentEntry(track_id, 256, 1000, utc_ns, ticks, samples, session, first, flags, 0, 0)


def gap(name: str, start_s: float, end_s: float | None, *, stream: str = "gate", cause: str = "camera") -> Record:
    body = {"stream": stream, "cause": cause, "start_ns": T0 + round(start_s * NS_PER_S), "end_ns": None, "detail": ""}
    return Record(1, name, body if end_s is None else {**body, "end_ns": T0 + round(end_s * NS_PER_S)})
