"""Who waits for what to become durable: footage of a stream up to a moment, or one ledger record.

`durable_ns(stream, copies)` is the end of the footage before which everything is on that many copies, as far as this
session recorded it: a commit with fewer copies stops the line for the higher counts until a resync has caught up. What only
the refuge holds is on no copy: it stops every line, until its volumes were copied to a target.
Told by the engine's thread; asked from any.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from concurrent.futures import Future
from dataclasses import dataclass, field

from nvrstore.journal.model import Batch, VolumeHeader
from nvrstore.model import NS_PER_S, Media, Record


@dataclass(slots=True)
class _RecordWaiter:
    """Somebody who waits for a record. `stored_in`: the journal that has it already, on fewer copies."""

    copies: int
    record: Record
    future: Future[None]
    stored_in: str | None = None


@dataclass(slots=True)
class _Line:
    """How far one stream is, by number of copies (index 0: one copy)."""

    ends_ns: list[int]
    told_ns: int = 0  # end of all that was stored anywhere, the refuge included
    waiters: list[tuple[int, int, Future[None]]] = field(default_factory=list)  # until_ns, copies, future


class Durability:
    """See the module. `copies_max` is the most copies that anybody can ask for."""

    def __init__(self, copies_max: int) -> None:
        self._copies_max = copies_max
        self._lock = threading.Lock()
        self._lines: dict[str, _Line] = {}
        self._short: dict[str, list[bool]] = defaultdict(lambda: [False] * copies_max)  # journal: counts that stopped
        self._owed: dict[str, set[str]] = defaultdict(set)  # journal: volumes that only the refuge has
        self._records: dict[str, list[_RecordWaiter]] = {}
        self._stored_bytes: dict[str, int] = defaultdict(int)

    def batch(self, header: VolumeHeader, batch: Batch, copies: int) -> None:
        """A batch became durable on so many copies."""
        self._stored(header, batch, copies)

    def in_refuge(self, header: VolumeHeader, batch: Batch) -> None:
        """Only the refuge has the batch: nothing behind it is durable before it was copied from there."""
        self._stored(header, batch, 0)

    def _stored(self, header: VolumeHeader, batch: Batch, copies: int) -> None:
        done: list[Future[None]] = []
        with self._lock:
            short = self._short[header.journal]
            for count in range(copies, self._copies_max):
                short[count] = True
            if not copies:
                self._owed[header.journal].add(header.volume_id)
            ends: dict[str, int] = {}
            for entry in batch.entries:
                track = header.tracks[entry.track_id - 1]
                stream = track.track.stream
                if copies:
                    self._stored_bytes[stream] += entry.length
                if track.track.media is Media.VIDEO:
                    end_ns = entry.utc_ns + entry.duration * NS_PER_S // track.config.timescale
                    ends[stream] = max(end_ns, ends.get(stream, 0))
            for stream, end_ns in ends.items():
                line = self._line(stream)
                line.told_ns = max(line.told_ns, end_ns)
                done.extend(self._advance(line, end_ns, short))
            for record in batch.records:
                # An entry that grows has one id: an earlier state of it, still under way, is not what is waited for.
                same = [waiter for waiter in self._records.get(record.id, ()) if waiter.record.body == record.body]
                for waiter in same:
                    waiter.stored_in = header.journal
                done.extend(self._told(record.id, [waiter for waiter in same if waiter.copies <= copies]))
        _settle(done)

    def synced(self, journal: str, streams: list[str], copies: int) -> None:
        """Resync has caught up: everything of these streams is on so many copies."""
        with self._lock:
            if copies:
                self._owed[journal].clear()
            done = self._caught_up(journal, streams, copies)
        _settle(done)

    def copied(self, journal: str, streams: list[str], volume_id: str) -> None:
        """A target has a closed volume now that it lacked. With the last one of the refuge, everything is on one copy again."""
        with self._lock:
            owed = self._owed[journal]
            if volume_id not in owed:
                return
            owed.remove(volume_id)
            done = [] if owed else self._caught_up(journal, streams, 1)
        _settle(done)

    def _caught_up(self, journal: str, streams: list[str], copies: int) -> list[Future[None]]:
        """Everything of `journal` is on so many copies: who is released by that."""
        done: list[Future[None]] = []
        short = self._short[journal]
        for count in range(min(copies, len(short))):  # a spare that is released in a moment may be one more than wanted
            short[count] = False
        for stream in streams:
            line = self._line(stream)
            done.extend(self._advance(line, line.told_ns, short))
        for record_id, waiters in list(self._records.items()):
            done.extend(self._told(record_id, [w for w in waiters if w.stored_in == journal and w.copies <= copies]))
        return done

    def _told(self, record_id: str, released: list[_RecordWaiter]) -> list[Future[None]]:
        """These wait no longer."""
        left = [waiter for waiter in self._records.get(record_id, ()) if not any(waiter is other for other in released)]
        if left:
            self._records[record_id] = left
        else:
            self._records.pop(record_id, None)
        return [waiter.future for waiter in released]

    def _line(self, stream: str) -> _Line:
        line = self._lines.get(stream)
        if line is None:
            line = self._lines[stream] = _Line([0] * self._copies_max)
        return line

    @staticmethod
    def _advance(line: _Line, end_ns: int, short: list[bool]) -> list[Future[None]]:
        for count, stopped in enumerate(short):
            if not stopped:
                line.ends_ns[count] = max(line.ends_ns[count], end_ns)
        done = [future for until_ns, copies, future in line.waiters if line.ends_ns[copies - 1] >= until_ns]
        if done:
            line.waiters = [w for w in line.waiters if line.ends_ns[w[1] - 1] < w[0]]
        return done

    # --- asked from outside

    def durable_ns(self, stream: str, copies: int = 1) -> int:
        """UTC; 0 while nothing is durable."""
        with self._lock:
            line = self._lines.get(stream)
            return line.ends_ns[copies - 1] if line is not None else 0

    def stored_bytes(self, stream: str) -> int:
        """Bytes of the stream that became durable in this session."""
        with self._lock:
            return self._stored_bytes.get(stream, 0)

    def wait_footage(self, stream: str, until_ns: int, copies: int) -> Future[None]:
        """Done when footage of `stream` up to `until_ns` is on `copies` copies."""
        if not 1 <= copies <= self._copies_max:
            raise ValueError(f"copies must be 1 to {self._copies_max}")
        future: Future[None] = Future()
        with self._lock:
            line = self._line(stream)
            if line.ends_ns[copies - 1] >= until_ns:
                future.set_result(None)
            else:
                line.waiters.append((until_ns, copies, future))
        return future

    def wait_record(self, record: Record, copies: int = 1) -> Future[None]:
        """Done when this very record is on `copies` copies. Ask before it is handed over."""
        future: Future[None] = Future()
        with self._lock:
            self._records.setdefault(record.id, []).append(_RecordWaiter(copies, record, future))
        return future


def _settle(futures: list[Future[None]]) -> None:
    """Outside the lock: who waited may ask again at once."""
    for future in futures:
        if not future.done():
            future.set_result(None)
