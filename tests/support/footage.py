"""A small journal of real H.264 and AAC on two targets: what the archive, the exporter and the catalog are tried on.

footage = Footage.record(seconds=6)              cameras -> samples -> fragments -> volumes, all in memory
footage.to_directory(root / "a")                 files as a target keeps them
footage.to_memory(MemoryTarget("a"))
footage.feed(catalog, ["a", "b"])                what the recorder would have told the catalog
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.support.encoded import encode_audio, encode_video
from tests.support.volumes import Volume

from nvrstore.catalog.store import Catalog
from nvrstore.journal.model import VolumeHeader, VolumeTrack
from nvrstore.journal.names import volume_path
from nvrstore.limits import ORIGIN_MARGIN_S
from nvrstore.media.fragment import Fragmenter
from nvrstore.media.init import audio_config, video_config
from nvrstore.media.nal import AccessUnits
from nvrstore.model import NS_PER_S, Epoch, Fragment, Gap, Media, MemberRef, Record, Role, Sample, TrackConfig, TrackKey
from nvrstore.targets.memory import MemoryTarget

T0 = 1_700_000_000 * NS_PER_S
SESSION = 0x9F2C41AA_01234567
TARGET_IDS = {"a": "a" * 32, "b": "b" * 32}


@dataclass(frozen=True)
class Track:
    """One track's samples as the camera sent them, and the fragments that were made of them."""

    key: TrackKey
    config: TrackConfig
    samples: tuple[Sample, ...] = field(repr=False)
    fragments: tuple[Fragment, ...] = field(repr=False)


@cache
def video(
    stream: str,
    *,
    seconds: int,
    start_s: float = 0.0,
    session: int = SESSION,
    gop: int = 25,
    width: int = 320,
    height: int = 240,
    codec: str = "h264",
) -> Track:
    """25 frames a second of a test pattern, a keyframe every `gop` frames, captured from `start_s` after T0."""
    encoded = encode_video(codec, width=width, height=height, frames=25 * seconds, options=(("g", str(gop)),))
    units = AccessUnits(codec, encoded.extradata)
    samples = []
    for data, pts, dts, _ in encoded.packets:
        unit = units.convert(data)
        if unit is None:
            raise AssertionError("every packet holds a picture")
        since_s = start_s + dts / 90_000
        samples.append(Sample(Media.VIDEO, unit.data, pts, dts, unit.keyframe, T0 + round(since_s * NS_PER_S), 1000.0 + since_s))
    return _track(TrackKey(stream, Media.VIDEO), video_config(codec, encoded.extradata, width, height), samples, session)


@cache
def audio(stream: str, *, seconds: int, start_s: float = 0.0, session: int = SESSION) -> Track:
    """A tone in AAC."""
    encoded = encode_audio("aac", seconds=seconds)
    config = audio_config("aac", 48_000, 1, encoded.extradata)
    samples = []
    for data, pts, _, _ in encoded.packets:
        since_s = start_s + pts / 48_000
        samples.append(Sample(Media.AUDIO, data, pts, pts, True, T0 + round(since_s * NS_PER_S), 1000.0 + since_s))
    return _track(TrackKey(stream, Media.AUDIO), config, samples, session)


def _track(key: TrackKey, config: TrackConfig, samples: Sequence[Sample], session: int) -> Track:
    fragmenter = Fragmenter(key, config, session)
    fragments = [f for sample in samples for f in fragmenter.push(sample, sample.arrival_ns)]
    return Track(key, config, tuple(samples), (*fragments, *fragmenter.flush()))


@dataclass
class Stored:
    """One volume, as it lies on every target."""

    header: VolumeHeader
    volume: Volume
    closed: bool

    @property
    def path(self) -> str:
        return volume_path(self.header)

    @property
    def data(self) -> bytearray:
        return self.volume.data


@dataclass
class Footage:
    """Tracks and the volumes that hold them, in order."""

    tracks: list[Track]
    volumes: list[Stored] = field(default_factory=list)

    @classmethod
    def record(
        cls,
        tracks: Sequence[Track] | None = None,
        *,
        seconds: int = 6,
        per_volume_s: float = 3.0,
        close_last: bool = True,
        gaps: Mapping[int, Sequence[Gap]] | None = None,
        session: int = SESSION,
        term: int = 1,
        first_number: int = 0,
        tick_s: float = 0.5,
    ) -> Footage:
        """Volumes of `per_volume_s`, batches of `tick_s`; `gaps[n]` are ledger entries in the first batch of volume n."""
        tracks = list(tracks or [video("gate", seconds=seconds), audio("gate", seconds=seconds), video("yard", seconds=seconds, gop=50)])
        made = cls(tracks)
        fragments = sorted((f for track in tracks for f in track.fragments), key=lambda f: f.end_ns)
        first_ns = min(f.utc_ns for f in fragments)
        groups: dict[int, dict[int, list[Fragment]]] = {}
        for fragment in fragments:
            since_s = (fragment.end_ns - first_ns - 1) / NS_PER_S
            groups.setdefault(int(since_s / per_volume_s), {}).setdefault(int(since_s / tick_s), []).append(fragment)
        for at, (number, batches) in enumerate(sorted(groups.items())):
            records = [gap.record() for gap in (gaps or {}).get(number, ())]
            closed = close_last or at < len(groups) - 1
            made.add(list(batches.values()), records, number=first_number + number, session=session, term=term, closed=closed)
        return made

    def add(
        self,
        batches: Iterable[Sequence[Fragment]],
        records: Sequence[Record] = (),
        *,
        number: int,
        session: int = SESSION,
        term: int = 1,
        closed: bool = True,
    ) -> Stored:
        """One more volume, with these batches; `records` go into its first one."""
        known = [list(batch) for batch in batches]
        oldest_ns = min((f.utc_ns for batch in known for f in batch), default=T0)
        header = VolumeHeader(
            volume_id=f"{(session << 64) ^ (term << 32) ^ number:032x}",
            journal="main",
            journal_id="1" * 32,
            recorder="nvr-1",
            session=session,
            epoch=Epoch(term, 1),
            lane=0,
            number=number,
            members=(MemberRef("a", TARGET_IDS["a"], Role.PRIMARY), MemberRef("b", TARGET_IDS["b"], Role.STANDBY)),
            created_ns=oldest_ns,
            origin_ns=oldest_ns - ORIGIN_MARGIN_S * NS_PER_S,
            tracks=tuple(VolumeTrack(t.key, f"{t.key.stream} camera", t.config) for t in self.tracks),
        )
        volume = Volume.begin(header)
        for at, batch in enumerate(known):
            volume.add(batch, records if at == 0 else ())
        if closed:
            volume.close()
        stored = Stored(header, volume, closed)
        self.volumes.append(stored)
        return stored

    def to_directory(self, root: Path, target: str) -> None:
        """Write everything below `root`, as the target `target`."""
        root.mkdir(parents=True, exist_ok=True)
        (root / "target.json").write_text(json.dumps({"format": 1, "id": TARGET_IDS.get(target, "c" * 32)}))
        for stored in self.volumes:
            place = root / stored.path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(bytes(stored.data) + (b"" if stored.closed else bytes(65536)))  # an open volume is preallocated

    def to_memory(self, *targets: MemoryTarget) -> None:
        """The same on targets in memory."""
        for target in targets:
            for stored in self.volumes:
                target.files.mkdirs(stored.path.rpartition("/")[0])
                made = target.files.create(stored.path, T0, synced=True)
                made.write_through(0, bytes(stored.data))

    def feed(self, catalog: Catalog, targets: Sequence[str] = ("a", "b")) -> None:
        """Tell the catalog what the recorder would have told it."""
        for stored in self.volumes:
            catalog.volume_opened(stored.header, stored.path, targets)
            for batch in stored.volume.batches:
                catalog.batch_committed(stored.header, stored.path, batch, targets)
            if stored.closed:
                catalog.volume_closed(stored.header, stored.path, len(stored.data), len(stored.volume.batches), targets)

    def samples(self, stream: str, media: Media = Media.VIDEO) -> list[Sample]:
        """What the camera sent, in order."""
        return [sample for track in self.tracks if track.key == TrackKey(stream, media) for sample in track.samples]

    def fragments(self, stream: str, media: Media = Media.VIDEO) -> list[Fragment]:
        return [fragment for track in self.tracks if track.key == TrackKey(stream, media) for fragment in track.fragments]
