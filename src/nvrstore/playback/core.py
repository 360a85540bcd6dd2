"""The archive for synchronous callers: targets, catalog and readers put together. `Archive` is its asynchronous face.

    ArchiveCore.configured(config)         what a configuration names, its catalog, the refuge on the state disk
    ArchiveCore.of_directories({...})      target directories alone, without a configuration or a catalog
    ArchiveCore.of_volume(path)            one volume file, wherever it lies

Needs no running recorder and hinders none: keepers of its own, no lock, nothing written. Every method may wait for targets,
within bounds, and may be called from any thread. `close` ends its workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from nvrstore.catalog.coverage import Coverage
from nvrstore.catalog.query import END_OF_TIME_NS, CatalogReader
from nvrstore.catalog.store import CATALOG_FILE
from nvrstore.catalog.views import SpanInfo, StreamInfo, VolumeInfo
from nvrstore.clock import SYSTEM_CLOCK, Clock
from nvrstore.config import Config
from nvrstore.errors import NotFoundError, UsageError
from nvrstore.limits import CLOSE_S
from nvrstore.model import Gap, Mark, Media
from nvrstore.playback.copies import Copies
from nvrstore.playback.export import ExportProgress, ExportReport, Sink, export, export_file
from nvrstore.playback.follow import Follower
from nvrstore.playback.library import FileLibrary, Library
from nvrstore.playback.reader import FootageReader, Piece
from nvrstore.playback.verify import VerifyProgress, VerifyReport, list_copies, verify
from nvrstore.targets.contract import Target
from nvrstore.targets.directory import DirectoryTarget
from nvrstore.telemetry import get_logger

log = get_logger(__name__)

REFUGE: Final = "refuge"  # name and directory of the implicit last target on the state disk


class ArchiveCore:
    """See the module. Owns `targets`."""

    def __init__(
        self,
        targets: Mapping[str, Target],
        catalog: Path | None,
        *,
        streams: Sequence[str] = (),
        volume: str | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """`streams` are known although nothing may be stored of them yet; `volume` is the only file that counts."""
        self.copies: Final = Copies(targets, clock=clock)
        self._volume: Final = volume
        self.library: Final = (
            Library(catalog, self.copies, clock=clock) if volume is None else FileLibrary(volume, self.copies, clock=clock)
        )
        self.reader: Final = FootageReader(self.library, self.copies)
        self._configured: Final = frozenset(streams)

    @classmethod
    def configured(cls, config: Config) -> ArchiveCore:
        """All that a configuration names. A target that is away is no error: its copies are passed over."""
        targets: dict[str, Target] = {}
        python: dict[str, Any] = {} if config.recorder.worker_python is None else {"worker_python": config.recorder.worker_python}
        for target in config.targets:
            if target.path is None:
                log.warning("target.skipped", target=target.name, reason="this version reads directories, not storage nodes")
                continue
            targets[target.name] = DirectoryTarget(target.name, target.path, isolation=target.isolation, medium=target.medium, **python)
        refuge = config.recorder.state / REFUGE
        if refuge.is_dir():  # on the state disk, which is local
            targets[REFUGE] = DirectoryTarget(REFUGE, refuge, **python)
        return cls(targets, config.recorder.state / CATALOG_FILE, streams=[stream.id for stream in config.streams])

    @classmethod
    def of_directories(cls, directories: Mapping[str, Path]) -> ArchiveCore:
        """Target directories by name."""
        return cls({name: DirectoryTarget(name, path) for name, path in directories.items()}, None)

    @classmethod
    def of_volume(cls, path: Path) -> ArchiveCore:
        """A volume file: its directory needs not be a target."""
        return cls({str(path.parent): DirectoryTarget(str(path.parent), path.parent)}, None, volume=path.name)

    def close(self, timeout_s: float = CLOSE_S) -> bool:
        """End the workers in order; False when any had to be left behind."""
        self.library.close()
        return self.copies.close(timeout_s)

    # --- what is there

    @property
    def catalog(self) -> CatalogReader:
        """The catalog as it is now (playback/library.py)."""
        return self.library.reader()

    def streams(self, *, totals: bool = False) -> list[StreamInfo]:
        return self.catalog.streams(totals=totals)

    def volumes(self, journal: str | None = None) -> list[VolumeInfo]:
        return self.catalog.volumes(journal)

    def spans(self, stream: str, start_ns: int = 0, end_ns: int = END_OF_TIME_NS) -> list[SpanInfo]:
        return self.catalog.spans(self.known(stream), start_ns, end_ns)

    def gaps(self, stream: str | None = None, start_ns: int = 0, end_ns: int = END_OF_TIME_NS) -> list[Gap]:
        return self.catalog.gaps(None if stream is None else self.known(stream), start_ns, end_ns)

    def marks(self, stream: str | None = None, start_ns: int = 0, end_ns: int = END_OF_TIME_NS) -> list[Mark]:
        return self.catalog.marks(None if stream is None else self.known(stream), start_ns, end_ns)

    def coverage(self, stream: str, start_ns: int, end_ns: int) -> Coverage:
        if end_ns < start_ns:
            raise UsageError("the end lies before the start")
        return self.catalog.coverage(self.known(stream), start_ns, end_ns)

    def known(self, stream: str) -> str:
        """`stream`, if something is stored of it or the configuration names it. Raises `NotFoundError`."""
        if stream not in self._configured and self.catalog.bounds(stream) is None:
            raise NotFoundError(f"no footage of stream {stream!r} is known")
        return stream

    # --- footage

    def pieces(self, stream: str, start_ns: int, end_ns: int | None, media: Media | None = None) -> Iterator[Piece | None]:
        """As `FootageReader.pieces`; with `end_ns` None as `Follower.pieces`, which never ends and yields None when nothing is new."""
        if end_ns is None:
            return Follower(self.reader, stream, start_ns, media).pieces()
        if end_ns < start_ns:
            raise UsageError("the end lies before the start")
        return self.reader.pieces(self.known(stream), start_ns, end_ns, media)

    def export(
        self,
        streams: Sequence[str],
        start_ns: int,
        end_ns: int,
        to: Path | Sink,
        *,
        on_progress: Callable[[ExportProgress], None] | None = None,
    ) -> ExportReport:
        """To a path (atomically) or to something with `write`."""
        if isinstance(to, Path):
            return export_file(self.reader, streams, start_ns, end_ns, to, on_progress=on_progress)
        return export(self.reader, streams, start_ns, end_ns, to, on_progress=on_progress)

    def verify(
        self,
        targets: Sequence[str] | None = None,
        *,
        reference: bool = False,
        on_progress: Callable[[VerifyProgress], None] | None = None,
    ) -> VerifyReport:
        """Check every copy on `targets` (None: all of them) against its checksums and against the others."""
        names = sorted(self.copies.targets) if targets is None else list(targets)
        for name in names:
            if name not in self.copies.targets:
                raise UsageError(f"there is no target {name!r}", hint=f"the configuration names {', '.join(sorted(self.copies.targets))}")
        if self._volume is not None:
            held = {target: self.copies.size(target, self._volume) for target in names}
            return verify(self.copies, {self._volume: held}, reference=reference, on_progress=on_progress)
        before = {volume.volume_id for volume in self.catalog.volumes()}
        sizes, unreachable = list_copies(self.copies, names)
        # Promised before and after the listing: what a running recorder began or pruned meanwhile is neither missing nor damaged.
        known = [
            replace(volume, copies=tuple(copy for copy in volume.copies if copy.target in names))
            for volume in self.catalog.volumes()
            if volume.volume_id in before
        ]
        return verify(self.copies, sizes, known=known, unreachable=unreachable, reference=reference, on_progress=on_progress)
