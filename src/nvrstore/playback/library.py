"""What is stored, as far as anybody can tell now: the catalog's file, completed by a look at the targets where it lacks rows.

    a recorder runs        the catalog alone: it is at most a second behind
    none runs, it is whole the catalog alone
    none runs, it is not   catalog + overlay in memory: volumes that it does not know, or that were open when the recorder died
    there is no catalog    overlay alone: a rebuild that nobody keeps; the same where it cannot be read

`Library.reader()` gives the right one of the four each time it is asked. `rebuild` makes the file again, `refresh`
completes the one of a running recorder. Nothing on a target is changed by any of them.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from nvrstore.catalog import schema
from nvrstore.catalog.filelock import FileLock
from nvrstore.catalog.query import CatalogReader
from nvrstore.catalog.rebuild import (
    Adopt,
    FileEntry,
    Finding,
    ListDir,
    LookThrough,
    Outcome,
    Progress,
    Removed,
    Scan,
    Stranger,
    adoption,
    look_through,
    record,
)
from nvrstore.catalog.store import Catalog
from nvrstore.catalog.writer import open_database
from nvrstore.clock import SYSTEM_CLOCK, Clock
from nvrstore.errors import CatalogError, FormatError, TargetError, UsageError
from nvrstore.journal.scan import ScanResult
from nvrstore.playback.copies import Copies
from nvrstore.telemetry import get_logger

log = get_logger(__name__)

OVERLAY_S: Final = 10.0  # an overlay is made anew after this: a recorder on another machine may have written on


class Library:
    """The catalog at `path` (None: there is none), read together with what the targets say."""

    def __init__(self, path: Path | None, copies: Copies, *, clock: Clock = SYSTEM_CLOCK, overlay_s: float = OVERLAY_S) -> None:
        self.path: Final = path
        self.copies: Final = copies
        self._clock = clock
        self._overlay_s = overlay_s
        self._lock = threading.Lock()
        self._reader: CatalogReader | None = None
        self._file: tuple[int, int] | None = None  # which file lies at the path
        self._readable = False  # it is a catalog
        self._readers: list[CatalogReader] = []  # all that were handed out
        self._overlay: sqlite3.Connection | None = None
        self._overlays: list[sqlite3.Connection] = []
        self._overlay_lock = threading.RLock()
        self._looked_s = 0.0  # when the overlay was completed last
        self.outcome: Outcome | None = None  # of the last look at the targets

    def reader(self) -> CatalogReader:
        """The reader to ask now. It stays usable until the library is closed. Raises what a look at the targets raises."""
        with self._lock:
            file = _identity(self.path)
            new = self._reader is None or file != self._file
            # What cannot be read may be a catalog in a moment: its writer has just made the file, and not its tables yet.
            readable = self._readable if self._readable and not new else file is not None and self._is_readable(told=not new)
            if self._reader is None or new or readable != self._readable:
                self._file, self._readable = file, readable
                self._reader = self._open(None)
                self._drop_overlay()
            lacking = not self._readable or (self._reader.needs_refresh and not self._reader.writer_alive)
            if not lacking and self._overlay is not None:
                self._reader = self._open(None)  # a recorder runs again: its catalog knows more than the overlay
                self._drop_overlay()
            elif lacking and (self._overlay is None or self._clock.monotonic_s() - self._looked_s >= self._overlay_s):
                self._reader = self._look(self._reader)
            return self._reader

    def unreachable(self) -> tuple[str, ...]:
        """Targets whose answer is missing from what `reader` says; none while the catalog alone answers."""
        with self._lock:
            return () if self._overlay is None or self.outcome is None else self.outcome.unreachable

    @property
    def recording(self) -> bool:
        """Whether a recorder writes the catalog now."""
        return self.reader().writer_alive

    def close(self) -> None:
        """Close everything that was handed out."""
        with self._lock:
            for reader in self._readers:
                reader.close()
            self._readers.clear()
            self._reader = None
            self._drop_overlay()
            for overlay in self._overlays:
                overlay.close()
            self._overlays.clear()

    def _open(self, overlay: sqlite3.Connection | None) -> CatalogReader:
        reader = CatalogReader(self.path if self._readable else None, overlay, lock=self._overlay_lock)
        self._readers.append(reader)
        return reader

    def _is_readable(self, *, told: bool) -> bool:
        try:
            CatalogReader(self.path).close()
        except CatalogError as error:
            if not told:
                log.warning("catalog.unread", path=str(self.path), problem=error.message)
            return False
        return True

    def _look(self, reader: CatalogReader) -> CatalogReader:
        """Bring into the overlay what the file lacks; what the overlay knows from the last time is not scanned again."""
        if self._overlay is None:
            self._overlay = in_memory()
            self._overlays.append(self._overlay)
            reader = self._open(self._overlay)
        overlay = self._overlay
        steps = drive(look_through(sorted(self.copies.targets), reader.volumes()), self.copies)

        def take(finding: Finding) -> None:
            with self._overlay_lock, _transaction(overlay):
                record(overlay, finding)

        self.outcome = take_all(steps, take)
        self._looked_s = self._clock.monotonic_s()
        return reader

    def _drop_overlay(self) -> None:
        # Readers that were handed out may still ask it: it is closed with them.
        self._overlay = None


class FileLibrary(Library):
    """One volume file is all there is."""

    def __init__(self, file: str, copies: Copies, *, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(None, copies, clock=clock)
        self._volume = file

    def _look(self, reader: CatalogReader) -> CatalogReader:
        if self._overlay is not None:
            return reader  # read once: it is a file, not a recording
        self._overlay = in_memory()
        self._overlays.append(self._overlay)
        (target,) = self.copies.targets
        result = self.copies.scan(target, self._volume, self.copies.size(target, self._volume), fresh=False)
        if result.header is None:
            raise FormatError(result.problem, path=self._volume)
        record(self._overlay, adoption(result.header, self._volume, {target: result}))
        return self._open(self._overlay)


def drive(steps: LookThrough, copies: Copies) -> Generator[Finding, None, Outcome]:
    """Carry out a look through the targets; yields what it finds, returns what it came to."""
    answer: object = None
    try:
        while True:
            item = steps.send(answer)
            answer = None
            match item:
                case ListDir() | Scan():
                    answer = _answer(copies, item)
                case _:
                    yield item
    except StopIteration as stop:
        outcome: Outcome = stop.value
        return outcome
    finally:
        steps.close()


def rebuild(path: Path, copies: Copies, *, on_progress: Callable[[Progress], None] | None = None) -> tuple[Outcome, list[Stranger]]:
    """Make the catalog at `path` again from the targets alone. Broken off, the next call goes on where this one was.

    Raises `UsageError` while a recorder writes it: that one keeps its catalog itself.
    """
    lock = FileLock(Path(f"{path}.lock"))
    path.parent.mkdir(parents=True, exist_ok=True)
    if not lock.acquire():
        raise UsageError(
            f"a recorder writes the catalog {path} now", hint="it keeps its catalog itself; stop it first to rebuild all the same"
        )
    unfinished = Path(f"{path}.rebuild")
    strangers: list[Stranger] = []
    try:
        connection = _resumed(unfinished)
        try:
            with CatalogReader(unfinished) as reader:
                known = reader.volumes()
            steps = drive(look_through(sorted(copies.targets), known), copies)
            outcome = take_all(steps, lambda finding: _keep(connection, finding, strangers, on_progress))
            with _transaction(connection):
                schema.set_meta(connection, "refresh", "0" if outcome.complete else "1")
                schema.set_meta(connection, "open", "0")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            connection.close()
        for suffix in ("-wal", "-shm"):  # before the file: frames of the old one must never meet the new one
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        os.replace(unfinished, path)
    except sqlite3.Error as error:
        raise CatalogError(f"the catalog {path} cannot be rebuilt: {error}") from error
    finally:
        lock.release()
    return outcome, strangers


def refresh(catalog: Catalog, copies: Copies, *, writing: frozenset[str] = frozenset()) -> Outcome:
    """Complete the catalog of a running recorder; `writing` are the volumes that it writes itself."""
    catalog.flush()
    try:
        with CatalogReader(catalog.path) as reader:
            known = reader.volumes()
    except CatalogError:
        known = []  # the state disk does not answer: what is found waits in the catalog's queue, or is dropped there

    def tell(finding: Finding) -> None:
        match finding:
            case Adopt(header, path, batches, held, closed_length):
                catalog.adopt(header, path, batches, held, closed_length=closed_length)
            case Removed(volume_id, target):
                catalog.volume_removed(volume_id, target)
            case Stranger(target, path, problem):
                log.warning("volume.unreadable", target=target, path=path, problem=problem)

    outcome = take_all(drive(look_through(sorted(copies.targets), known, skip=writing), copies), tell)
    if outcome.complete:
        catalog.refreshed()
    return outcome


def take_all(steps: Generator[Finding, None, Outcome], take: Callable[[Finding], None]) -> Outcome:
    """Hand every finding to `take`; the outcome at the end."""
    while True:
        try:
            take(next(steps))
        except StopIteration as stop:
            outcome: Outcome = stop.value
            return outcome


def in_memory() -> sqlite3.Connection:
    """An empty catalog that is gone with its connection."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA foreign_keys = ON")
    schema.create(connection)
    return connection


def _resumed(unfinished: Path) -> sqlite3.Connection:
    """The database of a rebuild that was broken off, or an empty one."""
    try:
        connection = open_database(unfinished)
        if connection.execute("PRAGMA user_version").fetchone()[0] == schema.VERSION:
            return connection
        connection.close()
    except sqlite3.DatabaseError:
        pass  # broken off while it was made
    for suffix in ("", "-wal", "-shm"):
        Path(f"{unfinished}{suffix}").unlink(missing_ok=True)
    connection = open_database(unfinished)
    schema.create(connection)
    return connection


def _keep(
    connection: sqlite3.Connection, finding: Finding, strangers: list[Stranger], on_progress: Callable[[Progress], None] | None
) -> None:
    match finding:
        case Progress():
            if on_progress is not None:
                on_progress(finding)
        case Stranger():
            strangers.append(finding)
        case _:
            with _transaction(connection):
                record(connection, finding)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _answer(copies: Copies, wish: ListDir | Scan) -> list[FileEntry] | ScanResult | None:
    try:
        match wish:
            case ListDir(target, path):
                return copies.list_dir(target, path)
            case Scan(target, path, size, header):
                return copies.scan(target, path, size, header=header)
    except TargetError as error:
        log.warning("target.not_read", target=error.target, problem=error.message)
        return None


def _identity(path: Path | None) -> tuple[int, int] | None:
    """Which file lies at the path now: a catalog may be deleted or replaced at any time."""
    try:
        seen = os.stat(path) if path is not None else None
    except OSError:
        return None
    return None if seen is None else (seen.st_dev, seen.st_ino)
