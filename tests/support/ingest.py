"""What ingest hands over, kept and waited for: an intake, a receiver, and an engine that does what a test says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import Any

from tests.support.media import VIDEO_CONFIG, payloads

from nvrstore.clock import Clock, ManualClock
from nvrstore.config import StreamConfig
from nvrstore.errors import SourceEndedError, SourceError
from nvrstore.events import Event, StreamChanged
from nvrstore.farm import FrameReport, check_access_units
from nvrstore.ingest.contract import Receiver, SourceFactory, SourceRequest
from nvrstore.ingest.group import Ingest, utc
from nvrstore.ingest.supervisor import Supervisor
from nvrstore.limits import INGEST_TICK_S
from nvrstore.model import Fragment, Gap, Media, Record, RecordKind, Sample, TrackConfig, TrackKey
from nvrstore.timeline import RunRecord

WAIT_S = 30.0  # bound of every wait: only a broken program comes near it


class Waitable:
    """State that one thread changes, and another waits for."""

    def __init__(self) -> None:
        self.changed = threading.Condition()

    def wait(self, what: Callable[[], object]) -> None:
        """Until `what` is true."""
        with self.changed:
            if not self.changed.wait_for(what, WAIT_S):
                raise AssertionError("it never came")


class Book(Waitable):
    """An intake that keeps everything, and a listener of events."""

    def __init__(self) -> None:
        super().__init__()
        self.declared: list[tuple[TrackKey, str, TrackConfig]] = []
        self.fragments: list[Fragment] = []
        self.records: list[Record] = []
        self.events: list[Event] = []
        self.order: list[Fragment | Record] = []

    def declare(self, track: TrackKey, name: str, config: TrackConfig) -> None:
        with self.changed:
            self.declared.append((track, name, config))
            self.changed.notify_all()

    def put(self, fragment: Fragment) -> None:
        assert fragment.track in [track for track, _, _ in self.declared]
        with self.changed:
            self.fragments.append(fragment)
            self.order.append(fragment)
            self.changed.notify_all()

    def record(self, record: Record) -> None:
        with self.changed:
            self.records.append(record)
            self.order.append(record)
            self.changed.notify_all()

    def tell(self, event: Event) -> None:
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()

    # --- reading

    def of(self, media: Media = Media.VIDEO) -> list[Fragment]:
        return [fragment for fragment in self.fragments if fragment.track.media is media]

    def samples(self, media: Media = Media.VIDEO) -> int:
        return sum(fragment.samples for fragment in self.of(media))

    def units(self) -> list[bytes]:
        """The access units of the video, in order."""
        return [unit for fragment in self.of() for unit in payloads(fragment)]

    def report(self) -> FrameReport:
        """Which frames of a farm's camera are there."""
        return check_access_units(self.units())

    def gaps(self) -> list[Gap]:
        """Every gap as its last record says, in the order in which they began."""
        last = {record.id: Gap.of(record) for record in self.records if record.kind == RecordKind.GAP}
        return list(last.values())

    def runs(self) -> list[RunRecord]:
        """Every run as its last record says."""
        last = {record.id: RunRecord.of(record) for record in self.records if record.kind == RecordKind.RUN}
        return list(last.values())

    def check(self) -> None:
        """What holds of everything that ingest hands over: indices without a hole, and no time that nobody answers for."""
        for media in Media:
            expected = 0
            for fragment in self.of(media):
                assert fragment.index == expected, "an index is missing, or there twice"
                expected += fragment.samples
        spans = [(gap.start_ns, gap.end_ns or 1 << 62) for gap in self.gaps()]
        spans += [(fragment.utc_ns, fragment.end_ns) for fragment in self.of()]
        spans.sort()
        reach = spans[0][1] if spans else 0
        for start_ns, end_ns in spans:
            assert start_ns - reach < 200_000_000, f"a hole of {(start_ns - reach) / 1e9:.3f} s that no gap explains"
            reach = max(reach, end_ns)


class Ear(Waitable):
    """A receiver that keeps everything."""

    def __init__(self) -> None:
        super().__init__()
        self.configs: list[TrackConfig] = []
        self.samples: list[Sample] = []
        self.references: list[tuple[Media, int, int]] = []
        self.ends: list[SourceError] = []
        self.threads: set[int] = set()

    def _heard(self) -> None:
        assert not self.ends, "nothing comes after the end"
        self.threads.add(threading.get_ident())

    def on_track(self, config: TrackConfig) -> None:
        with self.changed:
            self._heard()
            self.configs.append(config)
            self.changed.notify_all()

    def on_samples(self, samples: Sequence[Sample]) -> None:
        with self.changed:
            self._heard()
            assert len({sample.media for sample in samples}) == 1, "of one track, at least one"
            assert samples[0].media in [config.media for config in self.configs], "a track is announced before its first sample"
            self.samples += samples
            self.changed.notify_all()

    def on_reference(self, media: Media, pts: int, utc_ns: int) -> None:
        with self.changed:
            self._heard()
            self.references.append((media, pts, utc_ns))

    def on_ended(self, error: SourceError) -> None:
        with self.changed:
            self._heard()
            self.ends.append(error)
            self.changed.notify_all()

    def of(self, media: Media = Media.VIDEO) -> list[Sample]:
        return [sample for sample in self.samples if sample.media is media]

    def hear(self, count: int, media: Media = Media.VIDEO) -> None:
        """Wait for so many samples."""
        self.wait(lambda: len(self.of(media)) >= count)

    def end(self) -> SourceError:
        """Wait for the end; why."""
        self.wait(lambda: self.ends)
        return self.ends[0]

    def report(self) -> FrameReport:
        return check_access_units(sample.data for sample in self.of())


@contextmanager
def recording(*configs: StreamConfig, **options: Any) -> Iterator[tuple[Ingest, Book]]:
    """Ingest of these streams into one book, stopped at the end."""
    book = Book()
    ingest = Ingest(0x1122334455667788, on_event=book.tell, **options)
    try:
        for config in configs:
            ingest.add(config, book)
        yield ingest, book
    finally:
        assert ingest.stop() == 0


@dataclass
class Puppet:
    """A source that says what the test makes it say. `stuck`: it does not end when it is told to."""

    request: SourceRequest
    receiver: Receiver
    engine: str = "pyav"
    started: bool = False
    stops: int = 0
    stuck: bool = False
    ended: bool = False
    heard_until_s: float = inf
    connecting_s: float = -inf
    behind: bool = False

    def start(self) -> None:
        self.started = True

    def stop(self) -> None:
        self.stops += 1

    def join(self, timeout_s: float) -> bool:
        if timeout_s > 0:  # somebody waits: as if the source's own thread came to its end meanwhile
            self.obey()
        return self.ended

    def obey(self) -> None:
        """End, if told to and able to."""
        if self.stops and not self.stuck:
            self.end()

    def end(self, error: SourceError | None = None) -> None:
        """The session is over."""
        if not self.ended:
            self.ended = True
            self.receiver.on_ended(error or SourceEndedError("ended"))


@dataclass
class Puppets:
    """An engine whose sources a test plays."""

    made: list[Puppet] = field(default_factory=list)
    stuck: bool = False  # of those made from now on

    def __call__(self, request: SourceRequest, receiver: Receiver, clock: Clock) -> Puppet:
        self.made.append(Puppet(request, receiver, stuck=self.stuck))
        return self.made[-1]

    @property
    def last(self) -> Puppet:
        return self.made[-1]

    def engines(self) -> Mapping[str, SourceFactory]:
        return {"pyav": self}


FRAME_S = 0.04


class Stage:
    """A supervisor, its clock, its puppets and its book."""

    def __init__(self, *, start_gaps: Iterable[Gap] = (), **config: Any) -> None:
        self.clock = ManualClock()
        self.book = Book()
        self.puppets = Puppets()
        self.supervisor = Supervisor(
            StreamConfig(id="gate", url="rtsp://10.0.0.5/main", name="Gate, north", **config),
            self.book,
            session=7,
            clock=self.clock,
            engines=self.puppets.engines(),
            local=utc,
            on_event=self.book.tell,
            random=Random(1),
        )
        self.start_ns = self.clock.utc_ns()
        self.supervisor.start(start_gaps)
        self.dts = 0

    @property
    def source(self) -> Puppet:
        return self.puppets.last

    def run(self, seconds: float, *, frames: bool = False, keyframes: bool = True, sound: bool = False, step_s: float = FRAME_S) -> None:
        """Let time pass, with or without pictures, and do what the ingest thread does."""
        passed_s = next_tick_s = 0.0
        while passed_s < seconds - step_s / 2:
            self.clock.advance(step_s)
            passed_s += step_s
            if frames:
                self.frame(keyframe=keyframes and self.dts % 50 == 0)
            if sound:
                self.sound()
            if passed_s >= next_tick_s:
                next_tick_s += INGEST_TICK_S
                self.tick()

    def tick(self) -> None:
        now_s = self.clock.monotonic_s()
        for puppet in self.puppets.made:
            puppet.obey()
        self.supervisor.tick(now_s)
        if self.supervisor.wants_connect(now_s) is not None:
            self.supervisor.connect()

    def connect(self) -> None:
        """Up to the first picture."""
        made = len(self.puppets.made)
        while len(self.puppets.made) == made:
            self.run(FRAME_S)
        self.dts = 0
        self.source.receiver.on_track(VIDEO_CONFIG)

    def frame(self, *, keyframe: bool, damaged: bool = False, data: bytes = b"picture" * 100) -> None:
        clock, pts = self.clock, self.dts * 3600
        self.dts += 1
        sample = Sample(Media.VIDEO, data, pts, pts, keyframe, clock.utc_ns(), clock.monotonic_s(), damaged)
        self.source.receiver.on_samples([sample])

    def sound(self) -> None:
        clock = self.clock
        pts = round(clock.monotonic_s() * 48_000)
        self.source.receiver.on_samples([Sample(Media.AUDIO, b"sound", pts, pts, True, clock.utc_ns(), clock.monotonic_s())])

    def states(self) -> list[str]:
        return [event.state for event in self.book.events if isinstance(event, StreamChanged)]
