"""The catalog of a simulation: the real tables, statements and questions, over a database in memory; no thread, no file.

told --> Writer (what waits dies with its recorder) --once a second, or on `flush`--> database (what the state disk keeps)
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from nvrstore.catalog import schema
from nvrstore.catalog.query import CatalogReader
from nvrstore.catalog.store import Catalog
from nvrstore.catalog.writer import Writer


def new_database() -> sqlite3.Connection:
    """An empty catalog."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("PRAGMA foreign_keys = ON")
    schema.create(connection)
    schema.set_meta(connection, "refresh", "1")
    return connection


class _Writer(Writer):
    """Writes to a database that somebody else keeps."""

    def __init__(self, database: sqlite3.Connection) -> None:
        super().__init__(Path("in memory"))
        self._connection = database
        self.needs_refresh = schema.get_meta(database, "refresh") != "0" or schema.get_meta(database, "open") == "1"
        schema.set_meta(database, "open", "1")
        if self.needs_refresh:
            schema.set_meta(database, "refresh", "1")

    def _check_place(self) -> None: ...


class MemoryCatalog(Catalog):
    """One recorder's. `write` once a second."""

    def __init__(self, database: sqlite3.Connection) -> None:
        # Not the base's: it would begin a thread.
        self._database = database
        self._writer = _Writer(database)  # type: ignore[misc]
        self._condition = threading.Condition()
        self._stale: dict[str, None] = {}
        self._refresh = False
        self._dropped = 0
        self._events = deque()

    def reader(self) -> CatalogReader:
        return CatalogReader(None, self._database)

    def write(self, *, ending: bool = False) -> None:
        """Everything told so far, and that the recorder ends in order."""
        self._writer.write(list(self._stale), refresh=self._refresh, ending=ending)

    def flush(self, timeout_s: float = 5.0) -> bool:
        self.write()
        return True

    def _enqueue(self, cost: int, volume_id: str, event: Callable[[Writer], None]) -> None:
        event(self._writer)
