"""The hands of the catalog: one connection, the rows that wait, one transaction at a time. Used by one thread, no thread of its own.

    told:     grow · close_volume · change · adopt   -> rows and changes wait, in order
    write():  all of them in one transaction; on an error nothing is lost: the same rows wait for the next try
    shed():   gives rows up when too many wait

Invariant: what waits is written whole or not at all, and writing it twice changes nothing.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nvrstore.catalog import schema
from nvrstore.catalog.filelock import FileLock
from nvrstore.catalog.rows import VolumeRows
from nvrstore.catalog.schema import CopyState
from nvrstore.journal.model import Batch, VolumeHeader
from nvrstore.telemetry import get_logger

log = get_logger(__name__)

Change = Callable[[sqlite3.Connection], None]

_CACHE_MAX: Final = 20_000  # (volume, track) pairs: about 25 open volumes of 400 tracks, audio included
_NOT_A_CATALOG: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class CatalogLockedError(OSError):
    """Another process writes this catalog."""


class CatalogGoneError(OSError):
    """The file was removed, or replaced, while it was open: what is written to it is seen by nobody."""


@dataclass(slots=True)
class _Growing:
    """A volume of this process: what its batches said, and how far it is durable where."""

    rows: VolumeRows
    durable: dict[str, int]
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Shed:
    """What was given up."""

    volumes: tuple[str, ...]
    rows: int
    refresh: bool  # also changes that name no volume: everything must be looked through


class Writer:
    """Writes one catalog file. Raises `sqlite3.Error` and `OSError`; after either, try again later."""

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        self.needs_refresh: bool | None = None  # None until the file was opened
        self._lock: Final = FileLock(Path(f"{path}.lock"))
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None  # which file the connection has open
        self._growing: dict[str, _Growing] = {}
        self._changes: list[Change | str] = []  # a string: the volume whose rows are to be written at this place
        self._cache: schema.TrackCache = {}

    # --- told

    def grow(self, header: VolumeHeader, path: str, batch: Batch | None, targets: Iterable[str]) -> bool:
        """A volume exists, or got a batch, on these targets. False when a batch before this one was never told."""
        known = self._growing.get(header.volume_id)
        if known is None:
            known = self._growing[header.volume_id] = _Growing(VolumeRows(header, path), {})
        whole = batch is None or batch.number <= known.rows.batches
        if batch is not None:
            known.rows.add(batch)
        for target in targets:
            known.durable[target] = max(known.durable.get(target, 0), known.rows.length)
        if header.volume_id not in self._changes:
            self._changes.append(header.volume_id)
        return whole

    def close_volume(self, header: VolumeHeader, path: str, length: int, batches: int, targets: tuple[str, ...]) -> bool:
        """The volume is closed. False when not all of its batches were told."""
        whole = self.grow(header, path, None, ())
        known = self._growing[header.volume_id]
        known.closed = True
        whole = known.rows.batches == batches

        def close(connection: sqlite3.Connection) -> None:
            schema.close_volume(connection, schema.put_volume(connection, header, path), length, batches, targets)

        self._changes.append(close)
        return whole

    def change(self, change: Change) -> None:
        """Anything else, to be carried out in order."""
        self._changes.append(change)

    def forget_copy(self, volume_id: str, target: str) -> None:
        """A target does not hold the volume any more."""
        if volume_id in self._growing:
            self._growing[volume_id].durable.pop(target, None)
        self._changes.append(lambda connection: schema.remove_copy(connection, volume_id, target))

    def adopt(self, rows: VolumeRows, copies: Mapping[str, tuple[int, CopyState]], closed_length: int | None) -> None:
        """Replace what is known of a volume by what a scan of it found."""
        volume_id = rows.header.volume_id
        self._growing.pop(volume_id, None)
        self._changes = [change for change in self._changes if change != volume_id]
        self._changes.append(lambda connection: schema.adopt_volume(connection, rows, copies, closed_length))

    # --- written

    @property
    def waiting(self) -> int:
        """How many rows wait, about."""
        return sum(known.rows.changes for known in self._growing.values()) + len(self._changes)

    def write(self, stale: Iterable[str] = (), *, refresh: bool = False, ending: bool = False) -> bool:
        """Write all that waits, and which volumes are stale. True when a transaction was needed."""
        stale = list(stale)
        self._check_place()
        connection = self._connect()
        if not (self._changes or stale or refresh or ending):
            return False
        connection.execute("BEGIN IMMEDIATE")
        try:
            for change in self._changes:
                if isinstance(change, str):
                    self._put(connection, self._growing[change])
                else:
                    change(connection)
            connection.executemany("UPDATE volumes SET stale = 1 WHERE volume_id = ?", [(volume_id,) for volume_id in stale])
            if refresh or stale:
                schema.set_meta(connection, "refresh", "1")
                self.needs_refresh = True
            if ending:
                schema.set_meta(connection, "open", "0")
            connection.execute("COMMIT")
        except BaseException as error:
            self._cache.clear()
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if _is_broken(error):
                self.disconnect()
                self._set_aside(str(error))
            raise
        for change in self._changes:
            if isinstance(change, str):
                self._growing[change].rows.settle()
        self._changes.clear()
        self._growing = {volume_id: known for volume_id, known in self._growing.items() if not known.closed}
        if len(self._cache) > _CACHE_MAX:
            self._cache.clear()
        return True

    def shed(self, rows_max: int) -> Shed:
        """Give up waiting rows, those of the oldest volumes first, until at most `rows_max` wait."""
        before, volumes, refresh = self.waiting, [], False
        for volume_id in list(self._growing):
            if self.waiting <= rows_max:
                break
            del self._growing[volume_id]
            self._changes = [change for change in self._changes if change != volume_id]
            volumes.append(volume_id)
        if self.waiting > rows_max:
            self._changes.clear()
            refresh = True
        return Shed(tuple(volumes), before - self.waiting, refresh)

    def begin_anew(self) -> Shed:
        """What was written before is gone: nothing of a volume that still grows is known any more."""
        before, volumes = self.waiting, tuple(self._growing)
        self._growing.clear()
        self._changes.clear()
        return Shed(volumes, before, refresh=True)

    def disconnect(self) -> None:
        """Close the file. Never raises: it may be broken already."""
        if self._connection is not None:
            try:
                self._connection.close()
            except sqlite3.Error as error:
                log.warning("catalog.close_failed", path=str(self.path), error=str(error))
            self._connection = None
            self._cache.clear()

    def close(self) -> None:
        """Close the file and let go of the lock."""
        self.disconnect()
        self._lock.release()

    # --- inside

    def _put(self, connection: sqlite3.Connection, known: _Growing) -> None:
        volume = schema.put_volume(connection, known.rows.header, known.rows.path)
        schema.put_rows(connection, volume, known.rows, self._cache)
        schema.grow_copies(connection, volume, known.durable)

    def _connect(self) -> sqlite3.Connection:
        if self._connection is not None:
            return self._connection
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._lock.acquire():
            raise CatalogLockedError(f"another process writes {self.path}")
        try:
            self._connection = self._opened()
        except sqlite3.DatabaseError as error:
            if not _is_broken(error):
                raise
            self._set_aside(str(error))
            self._connection = self._opened()
        return self._connection

    def _check_place(self) -> None:
        """SQLite goes on writing to a file that has no name any more, without an error."""
        if self._connection is not None and _identity(self.path) != self._file:
            self.disconnect()
            self.needs_refresh = None
            raise CatalogGoneError("it was removed or replaced while it was in use; it is made again from the volumes")

    def _opened(self) -> sqlite3.Connection:
        if _identity(self.path) is None:
            _drop_log(self.path)  # of a file that was removed: its frames must never meet the new one
        connection = open_database(self.path)
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, schema.VERSION):
                connection.close()
                self._set_aside(f"it has format {version}, this library writes {schema.VERSION}")
                connection, version = open_database(self.path), 0
            if version == 0:
                schema.create(connection)
                schema.set_meta(connection, "refresh", "1")
            if self.needs_refresh is None:
                self.needs_refresh = schema.get_meta(connection, "refresh") != "0" or schema.get_meta(connection, "open") == "1"
            connection.execute("BEGIN IMMEDIATE")
            schema.set_meta(connection, "open", "1")
            if self.needs_refresh:
                schema.set_meta(connection, "refresh", "1")
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        self._file = _identity(self.path)
        return connection

    def _set_aside(self, reason: str) -> None:
        aside = Path(f"{self.path}.unreadable")
        log.error("catalog.replaced", path=str(self.path), aside=str(aside), reason=reason)
        os.replace(self.path, aside)
        _drop_log(self.path)
        self.needs_refresh = None


def _drop_log(path: Path) -> None:
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file lies at the path now."""
    try:
        seen = os.stat(path)
    except FileNotFoundError:
        return None
    return seen.st_dev, seen.st_ino


def _is_broken(error: BaseException) -> bool:
    return isinstance(error, sqlite3.DatabaseError) and getattr(error, "sqlite_errorcode", 0) & 0xFF in _NOT_A_CATALOG


def open_database(path: Path) -> sqlite3.Connection:
    """A connection for writing, with explicit transactions. Made by one thread, used by another that owns it."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=5.0, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA journal_size_limit = 16777216")
    except BaseException:
        connection.close()
        raise
    return connection
