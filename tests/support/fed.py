"""A recorder without cameras: a thread puts fragments into its journal, and knows which of them were acknowledged.

    with Fed(folder, {"a": path_a, "b": path_b}) as fed:      targets are made first, by `tests.support.recorder.init`
        fed.until(fed.whole)
        ...
    fed.pending                                               what was put in and never acknowledged; the recorder has ended

Everything else is the recorder itself: targets with real workers, hub, engine, catalog, upkeep.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from tests.support.engine import CONFIG
from tests.support.recorder import JOURNAL

from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.config import Config
from nvrstore.journal.model import Batch, VolumeHeader
from nvrstore.media.fragment import Fragmenter
from nvrstore.model import Commit, Fragment, Media, Sample, TrackKey
from nvrstore.recorder.core import RecorderCore
from nvrstore.recorder.wiring import MakeTarget, make_target

STREAMS: Final = ("gate", "yard")
FPS: Final = 20
PUSH_S: Final = 0.05
PATIENCE_S: Final = 60.0
FRAGMENT_S: Final = 0.2  # short: something is written in each tick
LAST: Final = 75  # of each stream's fragments that are remembered: 15 s

Identity = tuple[str, int]  # stream, index of the first sample


class Fed:
    """See the module. `journal`: what its table in the configuration says besides."""

    def __init__(self, folder: Path, targets: Mapping[str, Path], *, make: MakeTarget = make_target, **journal: Any) -> None:
        tables = {
            "format": 1,
            "recorder": {"name": "nvr-test", "state": str(folder / "state")},
            "target": [{"name": name, "path": str(path), "medium": "ssd"} for name, path in targets.items()],
            "journal": [{"name": JOURNAL, "targets": list(targets), "copies": 2, "volume_bytes": 4 << 20, **journal}],
        }
        self.core = RecorderCore(Config.parse(tables), make=make)
        self.pending: set[Identity] = set()
        self.last: deque[Identity] = deque(maxlen=LAST * len(STREAMS))  # put in last
        self.put = self.committed = 0
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._film, name="fed")

    def __enter__(self) -> Fed:
        self.core.start()
        observer: Any = self.core.engines[JOURNAL].observer
        stored = observer.batch_stored

        def counted(header: VolumeHeader, path: str, batch: Batch, targets: Sequence[str], commit: Commit | None) -> None:
            stored(header, path, batch, targets, commit)
            if commit is not None:
                self._committed(header, batch)

        observer.batch_stored = counted
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()
        in_order = self.core.stop()
        assert in_order or error is not None, "the recorder ended in order"

    def _committed(self, header: VolumeHeader, batch: Batch) -> None:
        with self._lock:
            for entry in batch.entries:
                self.committed += 1
                self.pending.discard((header.tracks[entry.track_id - 1].track.stream, entry.index))

    def _film(self) -> None:
        intake = self.core._intakes[JOURNAL]
        tracks = {
            TrackKey(stream, Media.VIDEO): Fragmenter(TrackKey(stream, Media.VIDEO), CONFIG, self.core.session, fragment_s=FRAGMENT_S)
            for stream in STREAMS
        }
        for track in tracks:
            intake.declare(track, track.stream, CONFIG)

        def hand_over(fragment: Fragment) -> None:
            with self._lock:
                self.put += 1
                self.pending.add((fragment.track.stream, fragment.index))
                self.last.append((fragment.track.stream, fragment.index))
            intake.put(fragment)

        begin_s, frames = SYSTEM_CLOCK.monotonic_s(), 0
        while not self._end.wait(PUSH_S):
            now_s, now_ns = SYSTEM_CLOCK.monotonic_s(), SYSTEM_CLOCK.utc_ns()
            while frames < (now_s - begin_s) * FPS:
                dts = frames * 90_000 // FPS
                for track, fragmenter in tracks.items():
                    data = f"{track.stream} {frames} ".encode().ljust(2000, b".")
                    for fragment in fragmenter.push(Sample(Media.VIDEO, data, dts, dts, frames % FPS == 0, now_ns, now_s), now_ns):
                        hand_over(fragment)
                frames += 1
        for fragmenter in tracks.values():
            for fragment in fragmenter.flush():
                hand_over(fragment)

    # --- looking

    def targets(self) -> dict[str, dict[str, Any]]:
        """What `status` says of each target."""
        status: Any = self.core.engines[JOURNAL].status()
        return {target["target"]: target for target in status["targets"]}

    def states(self) -> dict[str, str]:
        return {name: target["state"] for name, target in self.targets().items()}

    def taking(self) -> bool:
        """Whether every target takes what comes."""
        return all(state in ("live", "synced") for state in self.states().values())

    def whole(self) -> bool:
        """Whether every target lacks nothing."""
        return all(state == "synced" for state in self.states().values())

    def until(self, holds: Callable[[], object], *, every_s: float = 0.02) -> None:
        """Wait until something holds that can only be asked for."""
        deadline_s = SYSTEM_CLOCK.monotonic_s() + PATIENCE_S
        pause = threading.Event()
        while not holds():
            if SYSTEM_CLOCK.monotonic_s() > deadline_s:
                raise AssertionError(f"it did not happen: {self.targets()}")
            pause.wait(every_s)

    def goes_on(self) -> None:
        """Wait until everything that was put in until now is acknowledged."""
        with self._lock:
            waiting = set(self.pending)
        self.until(lambda: not (waiting & self.pending))
