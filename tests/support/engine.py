"""A journal's engine over targets in memory, on a clock that a test moves: no threads, no files, no waiting."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tests.support.laid_out import Worker

from nvrstore.clock import ManualClock
from nvrstore.failover.machine import State
from nvrstore.failover.terms import ClaimKey
from nvrstore.journal.model import Batch, VolumeHeader
from nvrstore.limits import MIB
from nvrstore.media.fragment import Fragmenter
from nvrstore.media.init import video_config
from nvrstore.model import Commit, Epoch, Fragment, Media, MemberRef, Record, Sample, TrackConfig, TrackKey
from nvrstore.replicate.buffer import ReplayBuffer
from nvrstore.replicate.contract import JournalSpec
from nvrstore.replicate.engine import JournalEngine
from nvrstore.replicate.intake import Intake
from nvrstore.replicate.port import Port
from nvrstore.targets.contract import Request, Verb
from nvrstore.targets.memory import MemoryTarget
from nvrstore.targets.pool import Pool

SESSION = 0x1122334455667788
RECORDER = "ab" * 16
CONFIG = video_config("mjpeg", b"", 320, 240)  # needs no parameter sets

Identity = tuple[str, int, int]


@dataclass
class Heard:
    """An `Observer` that remembers everything."""

    stored: list[tuple[str, Batch, tuple[str, ...], Commit | None]] = field(default_factory=list)
    closed: list[tuple[str, int, tuple[str, ...]]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    changes: list[tuple[str, State, State, str]] = field(default_factory=list)
    since_failure: list[float | None] = field(default_factory=list)  # of each change
    sets: list[tuple[Epoch, tuple[MemberRef, ...]]] = field(default_factory=list)
    resyncs: list[str] = field(default_factory=list)
    spaces: list[str] = field(default_factory=list)
    failovers: list[float] = field(default_factory=list)
    acked: set[Identity] = field(default_factory=set)
    fragments: list[Identity] = field(default_factory=list)  # in the order of their commits
    records: list[Record] = field(default_factory=list)

    def volume_opened(self, header: VolumeHeader, path: str, target: str) -> None: ...

    def batch_stored(self, header: VolumeHeader, path: str, batch: Batch, targets: Sequence[str], commit: Commit | None) -> None:
        self.stored.append((path, batch, tuple(targets), commit))
        if commit is not None:
            for entry in batch.entries:
                identity = (header.tracks[entry.track_id - 1].track.stream, entry.session, entry.index)
                self.acked.add(identity)
                self.fragments.append(identity)
            self.records.extend(batch.records)

    def volume_closed(self, header: VolumeHeader, path: str, length: int, batches: int, targets: Sequence[str]) -> None:
        self.closed.append((path, length, tuple(targets)))

    def volume_left(self, header: VolumeHeader, path: str) -> None:
        self.left.append(path)

    def target_changed(self, journal: str, target: str, before: State, after: State, reason: str, since_failure_s: float | None) -> None:
        self.changes.append((target, before, after, reason))
        self.since_failure.append(since_failure_s)

    def set_changed(self, journal: str, epoch: Epoch, members: Sequence[MemberRef]) -> None:
        self.sets.append((epoch, tuple(members)))

    def first_commit(self, journal: str, since_lost_s: float) -> None:
        self.failovers.append(since_lost_s)

    def needs_space(self, journal: str, target: str) -> None:
        self.spaces.append(target)

    def workers_started(self, journal: str, target: str) -> None: ...

    def claim_wanted(self, journal: str, target: str) -> None: ...

    def claim_again(self, journal: str, seen: ClaimKey | None) -> None: ...

    def resync_wanted(self, journal: str, target: str) -> None:
        self.resyncs.append(target)


class Rig:
    """One journal. `run(seconds)` lets time pass in small rounds, as the hub's thread would."""

    laid_out = False  # whether batches come from another process, through a window of the pool

    def __init__(
        self,
        names: Sequence[str] = ("a", "b"),
        *,
        copies: int = 2,
        refuge: bool = False,
        pool_bytes: int = 64 * MIB,
        volume_bytes: int = 4 * MIB,
        change: Callable[[JournalSpec], JournalSpec] = lambda spec: spec,
    ) -> None:
        self.clock = ManualClock()
        self.targets = {name: MemoryTarget(name, clock=self.clock) for name in (*names, *(("refuge",) if refuge else ()))}
        self.pool = Pool(pool_bytes, windows=int(self.laid_out), window_bytes=2 * pool_bytes)
        self.buffer = ReplayBuffer(self.pool, bytes_max=pool_bytes)
        self.intake = Intake()
        self.worker = Worker(self.pool.windows[0], self.intake, SESSION) if self.laid_out else None
        self.heard = Heard()
        self._posted: deque[Callable[[], None]] = deque()
        self.ports = {
            name: Port(
                target,
                self.pool,
                self.clock,
                target_id=target.id,
                look_id=RECORDER,
                journals=["main"],
                post=self._posted.append,
            )
            for name, target in self.targets.items()
        }
        spec = JournalSpec(
            name="main",
            journal_id="cd" * 16,
            recorder="nvr-1",
            session=SESSION,
            claim=ClaimKey(1, RECORDER, SESSION),
            targets=tuple(names),
            copies=copies,
            claimed_on=frozenset(names),
            volume_bytes=volume_bytes,
            refuge="refuge" if refuge else None,
        )
        self.engine = JournalEngine(change(spec), self.ports, self.buffer, self.intake, self.clock, self.heard, self._posted.append)
        self._cameras: dict[str, Camera] = {}

    def round(self) -> None:
        while self._posted:
            self._posted.popleft()()
        for port in self.ports.values():
            port.pump()
            port.tick()
        self.engine.step()
        for port in self.ports.values():
            port.pump()

    def run(self, seconds: float, *, step_s: float = 0.05, record: bool = True) -> None:
        for _ in range(round(seconds / step_s)):
            self.clock.advance(step_s)
            if record:
                for camera in self._cameras.values():
                    camera.film(self)
            if self.worker is not None:
                self.worker.hand_over()
            self.round()

    def camera(self, name: str = "gate", *, fps: int = 20, size: int = 2000, config: TrackConfig = CONFIG) -> Camera:
        camera = Camera(name, fps, size, config, self.clock.monotonic_s())
        self._cameras[name] = camera
        (self.worker or self.intake).declare(camera.track, name, config)
        return camera

    @property
    def put(self) -> set[Identity]:
        """What all cameras handed over."""
        return {identity for camera in self._cameras.values() for identity in camera.put}

    def states(self) -> dict[str, str]:
        return {name: str(state) for name, state in self.engine.states().items()}

    def sync(self, *names: str) -> None:
        """Say that resync is done, as upkeep would."""
        for name in names or tuple(self.heard.resyncs):
            self.engine.synced(name)

    def finish(self, seconds: float = 10.0) -> None:
        """Stop as the recorder does, and close every volume."""
        for camera in self._cameras.values():
            camera.flush(self)
        if self.worker is not None:
            self.worker.hand_over()
        for _ in range(round(seconds / 0.05)):
            self.engine.stop()
            if self.engine.idle:
                return
            self.run(0.05, record=False)

    def close(self) -> None:
        for port in self.ports.values():
            port.close(0.0)
        for target in self.targets.values():
            target.close(0.0)
        if self.worker is not None:
            self.worker.close()
        self.pool.close()


class Camera:
    """Steady samples of one stream, cut into fragments."""

    def __init__(self, name: str, fps: int, size: int, config: TrackConfig, start_s: float) -> None:
        self.track = TrackKey(name, Media.VIDEO)
        self.config, self._fps, self._size, self._start_s = config, fps, size, start_s
        self._fragmenter = Fragmenter(self.track, config, SESSION)
        self.frames = 0
        self.put: set[Identity] = set()

    def film(self, rig: Rig) -> None:
        now_s, now_ns = rig.clock.monotonic_s(), rig.clock.utc_ns()
        while self.frames < (now_s - self._start_s) * self._fps - 1e-6:
            dts = self.frames * 90_000 // self._fps
            data = f"{self.track.stream} {self.frames} ".encode().ljust(self._size, b".")
            sample = Sample(Media.VIDEO, data, dts, dts, self.frames % self._fps == 0, now_ns, now_s)
            for fragment in self._fragmenter.push(sample, now_ns):
                self._hand_over(rig, fragment)
            self.frames += 1

    def reconfigure(self, rig: Rig, **changes: int) -> None:
        """Another resolution from the next sample on."""
        self.flush(rig)
        self.config = replace(self.config, **changes)  # type: ignore[arg-type]
        for fragment in self._fragmenter.configure(self.config):
            self._hand_over(rig, fragment)
        (rig.worker or rig.intake).declare(self.track, self.track.stream, self.config)

    def flush(self, rig: Rig) -> None:
        for fragment in self._fragmenter.flush():
            self._hand_over(rig, fragment)

    def _hand_over(self, rig: Rig, fragment: Fragment) -> None:
        (rig.worker or rig.intake).put(fragment)
        self.put.add((self.track.stream, fragment.session, fragment.index))


def failing(*verbs: Verb, code: int = errno.EIO) -> Callable[[Request], int]:
    """A fault of a target: these verbs fail."""
    return lambda request: code if request.verb in verbs else 0


def volumes(rig: Rig, target: str) -> dict[str, bytes]:
    """What is durable of each volume on a target."""
    files = rig.targets[target].files.files
    return {path: file.read(0, 1 << 30, fresh=True) for path, file in files.items() if path.endswith(".mp4")}


def started(rig: Rig, *cameras: str, seconds: float = 3.0) -> Rig:
    """Cameras that record, targets that are synced."""
    for name in cameras or ("gate", "yard"):
        rig.camera(name)
    rig.run(seconds)
    rig.sync()
    rig.run(0.2)
    return rig
