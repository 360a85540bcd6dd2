"""Upkeep for a journal in memory: a recorder made of the rig, a real catalog, and a state disk that a test breaks."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tests.support.engine import RECORDER, SESSION, Heard, Rig

from nvrstore.catalog.query import CatalogReader
from nvrstore.catalog.store import Catalog
from nvrstore.config import Config
from nvrstore.events import Event, VolumePruned
from nvrstore.journal.model import Batch, VolumeHeader
from nvrstore.model import Commit, Gap, Record
from nvrstore.targets.contract import Steps
from nvrstore.upkeep.host import Runner
from nvrstore.upkeep.pruning import Pruning

T = TypeVar("T")


class _Told(Heard):
    """An observer that tells the catalog, as the recorder's does."""

    catalog: Catalog

    def volume_opened(self, header: VolumeHeader, path: str, target: str) -> None:
        self.catalog.volume_opened(header, path, [target])

    def batch_stored(self, header: VolumeHeader, path: str, batch: Batch, targets: Sequence[str], commit: Commit | None) -> None:
        super().batch_stored(header, path, batch, targets, commit)
        self.catalog.batch_committed(header, path, batch, targets)

    def volume_closed(self, header: VolumeHeader, path: str, length: int, batches: int, targets: Sequence[str]) -> None:
        super().volume_closed(header, path, length, batches, targets)
        self.catalog.volume_closed(header, path, length, batches, targets)


class _Hub:
    """The engine's thread is the test's."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    def ask(self, call: Callable[[], T], timeout_s: float = 5.0) -> T:
        return call()

    def post(self, call: Callable[[], None]) -> None:
        call()

    def suspect(self, target: str) -> None:
        self._rig.ports[target].suspect()


class UpkeepRig(Rig):
    """A rig that is an `UpkeepHost`, with retention. Close it."""

    session, started_ns, recorder_id = SESSION, 0, RECORDER

    def __init__(self, folder: Path, *, capacity_bytes: Mapping[str, int], keep: Mapping[str, Any] | None = None, **options: Any) -> None:
        super().__init__(tuple(capacity_bytes), **options)
        for name, size in capacity_bytes.items():
            self.targets[name].files.capacity_bytes = size
        self.catalog = Catalog(folder / "catalog.sqlite", interval_s=60.0)
        told = _Told()
        told.catalog = self.catalog
        self.heard = self.engine.observer = told
        self.config = Config.parse(
            {
                "format": 1,
                "recorder": {"name": "nvr-1", "state": str(folder)},
                "target": [{"name": name, "path": str(folder / name)} for name in capacity_bytes],
                "journal": [{"name": "main", "targets": list(capacity_bytes), "copies": self.engine.spec.copies, "keep": dict(keep or {})}],
            }
        )
        self.engines = {"main": self.engine}
        self.hub, self.worker_locks = _Hub(self), set(self.targets)
        self.events: list[Event] = []
        self.runner = Runner(self.targets, self.hub.suspect)
        self.pruning = Pruning(self)  # type: ignore[arg-type]

    def prune(self) -> int:
        """A round of retention; how many copies went."""
        return self.runner.work(self.pruning.run())

    # --- what upkeep asks of its host

    def publish(self, event: Event) -> None:
        self.events.append(event)

    def save_term(self, journal: str, term: int) -> bool:
        return True

    def saved_term(self, journal: str) -> int:
        return 1

    def saved_waits(self) -> Mapping[str, float]:
        return {}

    def save_waits(self, waited: Mapping[str, float]) -> bool:
        return True

    def wait_records(self, records: Sequence[tuple[str, Record]], timeout_s: float) -> Steps[bool]:
        yield from ()
        for _, record in records:
            self.intake.record(record)
        until_s = self.clock.monotonic_s() + timeout_s
        while not all(record in self.heard.records for _, record in records):
            if self.clock.monotonic_s() >= until_s:
                return False
            self.run(0.05)
        return True

    def record_gap(self, journal: str, gap: Gap) -> None:
        self.intake.record(gap.record())

    def synced(self, journal: str, copies: int) -> None: ...

    # --- what a test does

    def break_state_disk(self) -> None:
        """It was mounted again read-only."""

        def refuse(*_: object, **__: object) -> bool:
            raise OSError(errno.EROFS, "Read-only file system")

        self.catalog._writer.write = refuse  # type: ignore[method-assign]

    def record(self, seconds: float) -> None:
        """Record, and make room where it is short, as upkeep's quick thread does."""
        for _ in range(round(seconds / 0.25)):
            self.run(0.25)
            if self.pruning.scarce():
                self.prune()

    def rows(self) -> set[tuple[str, str]]:
        """(path, target) of the copies that the catalog knows."""
        with CatalogReader(self.catalog.path) as reader:
            return {(info.path, copy.target) for info in reader.volumes() for copy in info.copies}

    def stored(self, target: str) -> list[str]:
        """Paths of the volumes on a target."""
        return sorted(path for path in self.targets[target].files.files if path.endswith(".mp4"))

    @property
    def pruned(self) -> list[tuple[str, str]]:
        return [(event.path, event.target) for event in self.events if isinstance(event, VolumePruned)]

    def close(self) -> None:
        super().close()
        self.catalog.close()
