"""The catalog as the recorder keeps it: told what became durable, written once a second by a thread of its own.

    engine --batch_committed, volume_closed, ...--> [events, bounded] --writer thread--> one SQLite transaction a second
                 never blocks, never raises              `-- full: dropped, the volume is marked stale, found again by a rescan

The state disk may be slow, full or dead: that is an alarm (`on_alarm`, `statistics()`, the log), never an exception to
whoever records, and never a reason to wait. What was dropped is rebuilt from the volumes, which hold everything.

Invariants: bytes are durable before their row is (callers tell only what is committed). Exactly one process writes a
catalog: the writer holds an flock on `<path>.lock` as long as it lives, and readers see by it whether one lives.
A catalog that cannot be read is moved aside and begun anew; `needs_refresh` says that volumes must be looked through.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nvrstore.catalog import schema
from nvrstore.catalog.query import CatalogReader
from nvrstore.catalog.rows import volume_rows
from nvrstore.catalog.schema import CopyState
from nvrstore.catalog.writer import CatalogGoneError, Shed, Writer
from nvrstore.journal.model import Batch, VolumeHeader
from nvrstore.limits import CATALOG_COMMIT_S, CATALOG_ROWS_MAX
from nvrstore.telemetry import get_logger

log = get_logger(__name__)

CATALOG_FILE: Final = "catalog.sqlite"  # its name in the state directory
_STALE_MAX: Final = 10_000  # volumes remembered by name; beyond, everything is looked through


@dataclass(frozen=True, slots=True)
class CatalogStatistics:
    """A snapshot; taking it never waits for the disk."""

    healthy: bool  # the last transaction went through
    error: str  # why it did not; empty when healthy
    rows_waiting: int
    rows_dropped: int
    transactions: int
    failures: int
    volumes_stale: int  # volumes of which rows were dropped and not found again yet


class Catalog:
    """The writing side. Every method may be called from any thread; none but `flush` and `close` waits for anything."""

    def __init__(
        self,
        path: Path,
        *,
        on_alarm: Callable[[str], None] | None = None,
        interval_s: float = CATALOG_COMMIT_S,
        rows_max: int = CATALOG_ROWS_MAX,
    ) -> None:
        """`on_alarm` is called from the writer thread: with a sentence when writing begins to fail, with "" when it works again."""
        self.path: Final = path
        self._on_alarm = on_alarm
        self._interval_s = interval_s
        self._rows_max = rows_max
        self._writer: Final = Writer(path)  # the thread's alone, but for `needs_refresh`
        self._condition = threading.Condition()
        self._events: deque[Callable[[Writer], None]] = deque()
        self._queued = 0  # rows in the queue
        self._waiting = 0  # rows that the writer holds
        self._stale: dict[str, None] = {}
        self._refresh = False  # something was dropped that names no volume
        self._requested = self._completed = 0  # flushes
        self._closing = False
        self._ended = False
        self._error = ""
        self._dropped = self._transactions = self._failures = 0
        self._thread = threading.Thread(target=self._run, name="nvrstore-catalog", daemon=True)
        self._thread.start()

    # --- told by the replication engine

    def volume_opened(self, header: VolumeHeader, path: str, targets: Sequence[str]) -> None:
        """A volume exists on these targets, still without a batch."""
        names = tuple(targets)
        self._enqueue(1, header.volume_id, lambda writer: self._told(header, writer.grow(header, path, None, names)))

    def batch_committed(self, header: VolumeHeader, path: str, batch: Batch, targets: Sequence[str]) -> None:
        """This batch is durable on these targets, and so are all batches of the volume before it."""
        names = tuple(targets)
        cost = 1 + len(batch.entries) + len(batch.records)
        self._enqueue(cost, header.volume_id, lambda writer: self._told(header, writer.grow(header, path, batch, names)))

    def volume_closed(self, header: VolumeHeader, path: str, length: int, batches: int, targets: Sequence[str]) -> None:
        """The volume is closed, `length` bytes long; these targets hold all of it."""
        names = tuple(targets)
        self._enqueue(1, header.volume_id, lambda writer: self._told(header, writer.close_volume(header, path, length, batches, names)))

    def copy_changed(self, volume_id: str, target: str, length: int, state: CopyState | str) -> None:
        """A copy was mended, resynced, found damaged, lost."""
        known = CopyState(state)

        def change(connection: sqlite3.Connection) -> None:
            volume = schema.volume_row(connection, volume_id)
            if volume is not None:
                schema.put_copy(connection, volume, target, length, known)

        self._enqueue(1, volume_id, lambda writer: writer.change(change))

    def volume_removed(self, volume_id: str, target: str) -> None:
        """Retention took the volume off one target. With its last copy the catalog forgets it."""
        self._enqueue(1, "", lambda writer: writer.forget_copy(volume_id, target))

    def adopt(
        self,
        header: VolumeHeader,
        path: str,
        batches: Iterable[Batch],
        copies: Mapping[str, tuple[int, CopyState]],
        *,
        closed_length: int | None = None,
    ) -> None:
        """Take over a volume that a scan read: whatever was known of its contents before is replaced.

        `copies` is (valid length, state) per target that was looked at; `closed_length` is the file's length when the volume is closed.
        """
        rows = volume_rows(header, path, list(batches))
        held = dict(copies)

        def take(writer: Writer) -> None:
            writer.adopt(rows, held, closed_length)
            with self._condition:
                self._stale.pop(header.volume_id, None)

        self._enqueue(1 + rows.changes, header.volume_id, take)

    def refreshed(self) -> None:
        """Every volume on every target was looked through (catalog/rebuild.py): nothing is missing any more."""

        def take(writer: Writer) -> None:
            if writer.needs_refresh is None or self._stale:
                return  # the file that was looked through is gone, or rows were dropped since
            writer.needs_refresh = False
            writer.change(lambda connection: schema.set_meta(connection, "refresh", "0"))
            with self._condition:
                self._refresh = False

        self._enqueue(1, "", take)

    # --- looked at

    def reader(self) -> CatalogReader:
        """Asks what is written (see `flush`); to be closed. Raises `CatalogError`."""
        return CatalogReader(self.path)

    def statistics(self) -> CatalogStatistics:
        """How it does, now."""
        with self._condition:
            stale = len(self._stale) + self._refresh
            waiting = self._queued + self._waiting
            return CatalogStatistics(
                not self._error, self._error, waiting, self._dropped, self._transactions, self._failures, volumes_stale=stale
            )

    @property
    def needs_refresh(self) -> bool | None:
        """Whether all volumes must be looked through once: the catalog is new, was replaced, missed rows, or its last
        writer did not end in order. None while the file has not been opened yet."""
        return bool(self._refresh or self._stale) or self._writer.needs_refresh

    def stale_volumes(self) -> list[str]:
        """Ids of volumes whose rows were dropped by this process: they have to be read again and adopted."""
        with self._condition:
            return list(self._stale)

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until everything told so far is written. False when it is not, for whatever reason."""
        with self._condition:
            if self._ended:
                return not self._error and not self._queued
            self._requested += 1
            mine = self._requested
            self._condition.notify_all()
            done = self._condition.wait_for(lambda: self._completed >= mine or self._ended, timeout_s)
            return done and not self._error

    def close(self, timeout_s: float = 5.0) -> bool:
        """Write what is left and end. False when the state disk did not let it end in time: its thread is left behind."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # --- inside

    def _enqueue(self, cost: int, volume_id: str, event: Callable[[Writer], None]) -> None:
        with self._condition:
            if self._closing:
                return
            if self._queued + self._waiting + cost > self._rows_max:
                self._drop(cost, volume_id)
                return
            self._queued += cost
            self._events.append(event)

    def _drop(self, rows: int, volume_id: str) -> None:
        self._dropped += rows
        if volume_id and len(self._stale) < _STALE_MAX:
            self._stale[volume_id] = None
        else:
            self._refresh = True

    def _told(self, header: VolumeHeader, whole: bool) -> None:
        if not whole:
            with self._condition:
                self._drop(0, header.volume_id)

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._closing or self._requested > self._completed, self._interval_s)
                ending, serving = self._closing, self._requested
                events, self._events = self._events, deque()
                self._waiting += self._queued
                self._queued = 0
            try:
                for event in events:
                    event(self._writer)
                self._write(ending)
            except CatalogGoneError as error:
                # What was written of volumes that still grow is gone with it: they are read again when they are closed.
                self._failed(error, self._writer.begin_anew())
            except (sqlite3.OperationalError, OSError) as error:
                self._failed(error, self._writer.shed(self._rows_max // 2))
            except Exception as error:  # noqa: BLE001 - whatever is wrong with the catalog, recording goes on and the alarm is raised
                # Not the disk, but a row: the same row would fail for ever. The volumes hold everything.
                self._failed(error, self._writer.shed(0))
            with self._condition:
                self._waiting = self._writer.waiting
                self._completed = serving
                self._ended = ending
                self._condition.notify_all()
            if ending:
                self._writer.close()
                return

    def _write(self, ending: bool) -> None:
        with self._condition:
            stale, refresh = list(self._stale), self._refresh
        if self._writer.write(stale, refresh=refresh, ending=ending):
            self._transactions += 1
        if self._error:
            log.info("catalog.recovered", path=str(self.path))
            self._error = ""
            self._alarm("")

    def _failed(self, error: Exception, shed: Shed) -> None:
        self._failures += 1
        self._writer.disconnect()
        with self._condition:
            for volume_id in shed.volumes:
                self._drop(0, volume_id)
            self._dropped += shed.rows
            self._refresh = self._refresh or shed.refresh
            first, self._error = not self._error, f"the catalog {self.path} cannot be written: {error}"
        if first:
            log.error("catalog.failed", path=str(self.path), error=str(error), exc_info=not isinstance(error, sqlite3.Error | OSError))
            self._alarm(self._error)

    def _alarm(self, sentence: str) -> None:
        if self._on_alarm is not None:
            try:
                self._on_alarm(sentence)
            except Exception:  # the host's callback must not end the catalog
                log.exception("alarm.failed")
