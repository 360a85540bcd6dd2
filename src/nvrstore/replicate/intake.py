"""Where ingest hands over: fragments, records and track declarations of one journal, from any thread.

Never blocks: a lock around three appends. The engine's thread takes everything at once, a few times a second.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from nvrstore.limits import BATCH_BYTES_CUT
from nvrstore.model import Fragment, Record, TrackConfig, TrackKey


@dataclass(slots=True)
class Taken:
    """What arrived since the last time, in order of arrival within each kind."""

    declared: list[tuple[TrackKey, str, TrackConfig, Hashable]] = field(default_factory=list)
    fragments: list[Fragment] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)


class Intake:
    """The `Intake` that ingest writes to (ingest/contract.py). `wake` is called when a full batch waits."""

    def __init__(self, wake: Callable[[], None] = lambda: None) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._taken = Taken()
        self._bytes = 0

    def declare(self, track: TrackKey, name: str, config: TrackConfig, lane: Hashable = None) -> None:
        """Announce a track, or its new configuration. Its fragments may follow at once. `lane`: see `put_lane`."""
        with self._lock:
            self._taken.declared.append((track, name, config, lane))

    def put(self, fragment: Fragment) -> None:
        """Hand a fragment over. Its track must have been declared."""
        with self._lock:
            self._taken.fragments.append(fragment)
            before = self._bytes
            self._bytes = after = before + fragment.length
        if before < BATCH_BYTES_CUT <= after:  # once: under load each fragment would cost a system call
            self._wake()

    def put_lane(self, fragments: Sequence[Fragment]) -> None:
        """Hand a batch over that lies in shared memory, laid out by somebody else: of tracks that were declared with the same `lane`."""
        with self._lock:
            self._taken.fragments.extend(fragments)
            self._bytes += sum(fragment.length for fragment in fragments)
        self._wake()

    def record(self, record: Record) -> None:
        """Hand a ledger record over."""
        with self._lock:
            self._taken.records.append(record)

    def take(self) -> Taken:
        """Everything since the last call."""
        with self._lock:
            taken, self._taken = self._taken, Taken()
            self._bytes = 0
        return taken
