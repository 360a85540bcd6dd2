"""Finds out what of a volume is there, by asking for bytes: it touches no file itself.

    header | batch 0 … batch L | batch L+1 … n      | torn batch, zeroes, or what another file left behind
           headers alone       | every payload too  | searched, every 4096 bytes, for a good batch

A batch write is not atomic: headers alone are trusted only up to the last batch known committed (L, as the newest good
header says, or the caller); every payload behind it is checked, all of them with `deep`. A good header behind a bad
batch means that the bad one was durable once, since appenders write strictly in order: that is *damage*, to be mended from
a peer. A bad batch with nothing good behind it is a *torn tail*, to be cut. A closed volume is read from its index.

Invariant: nothing that was known committed is ever reported as a tail to cut. Decides nothing about other copies.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Final

from nvrstore.errors import FormatError
from nvrstore.journal.batch import BATCH_SIGNATURE, head_length, parse_batch, payload_damage, read_records
from nvrstore.journal.header import header_crc, header_length, pack_header, read_header
from nvrstore.journal.index import INDEX_HEAD_BYTES, INDEX_SIGNATURE, INDEX_TAIL_BYTES, index_length, index_place, read_index, volume_index
from nvrstore.journal.model import Batch, Damage, DamageKind, VolumeHeader
from nvrstore.limits import BATCH_BYTES_MAX, BLOCK_BYTES, IN_FLIGHT_MAX, KEEPER_PIECE_BYTES, KIB

SEARCH_BYTES: Final = IN_FLIGHT_MAX * BATCH_BYTES_MAX  # behind a bad batch: no more than this was ever under way
HEAD_BYTES: Final = 64 * KIB  # one read for the header and records of a batch of up to 900 fragments
RETRY_BYTES: Final = 64 * KIB  # what cannot be read in one piece is tried again in pieces of this size


@dataclass(frozen=True, slots=True)
class Read:
    """A wish of the scan: `length` bytes (at most 1 MiB; offset and length are multiples of 4096) at `offset`.

    To be answered with the bytes, short only at the end of the file, or with None where they cannot be read.
    `fresh`: past the page cache, which after a failed sync shows bytes that the disk does not have.
    """

    offset: int
    length: int
    fresh: bool


@dataclass(frozen=True, slots=True)
class ScanResult:
    """What a scan found."""

    size: int  # of the file
    header: VolumeHeader | None  # None: unreadable, and no peer's was given; then nothing else is known
    header_length: int  # where the first batch begins
    header_crc: int
    batches: tuple[Batch, ...]  # whose headers are good, in order, with their records; damaged ones included, torn ones not
    valid_length: int  # where the volume's content ends; what is behind can be cut. More than `size` where committed bytes are missing
    closed: bool
    torn: bool  # something other than zeroes lies behind `valid_length`
    damage: tuple[Damage, ...]
    unreadable: tuple[tuple[int, int], ...]  # offset and length of what the device did not give: unknown, not torn
    problem: str = ""  # why there is no header

    @property
    def whole_length(self) -> int:
        """Up to where the copy is as it was written: what another copy must exceed to be worth copying from."""
        places = [d.offset for d in self.damage if d.kind is not DamageKind.ERASED] + [self.size]
        return min(self.valid_length, *places)

    @property
    def last_committed(self) -> int:
        """The last batch that the volume itself knows to be committed; all of them where it is closed."""
        if self.closed and self.batches:
            return self.batches[-1].number
        return max((batch.last_committed for batch in self.batches), default=-1)


def scan_volume(
    size: int,
    *,
    header: VolumeHeader | None = None,
    committed: int = -1,
    known_end: int = 0,
    deep: bool = False,
    fresh: bool = True,
    path: str = "",
) -> Generator[Read, bytes | None, ScanResult]:
    """Scan a volume of `size` bytes.

    `header` is a peer's, for the case that this copy's is damaged. `committed` is the last batch known committed from
    elsewhere (catalog, peers), `known_end` the offset up to which a peer has good batches: it widens the search.
    """
    return (yield from _Scan(size, header, committed, known_end, deep, fresh, path).run())


class _Scan:
    def __init__(self, size: int, peer: VolumeHeader | None, committed: int, known_end: int, deep: bool, fresh: bool, path: str) -> None:
        self.size, self.peer, self.committed, self.known_end = size, peer, committed, known_end
        self.deep, self.fresh, self.path = deep, fresh, path
        self.header: VolumeHeader
        self.header_crc = 0
        self.batches: list[Batch] = []
        self.damage: list[Damage] = []
        self.unreadable: list[tuple[int, int]] = []
        self.torn = False

    # --- the way through ---------------------------------------------------------------------------------------

    def run(self) -> Generator[Read, bytes | None, ScanResult]:
        start, problem = yield from self._header()
        if problem and self.peer is None:
            return ScanResult(self.size, None, 0, 0, (), 0, False, False, tuple(self.damage), tuple(self.unreadable), problem)
        place = yield from self._index_at_the_end()
        index: tuple[Batch, ...] | None = None
        end = start
        if place is not None:
            index = yield from self._index(place, self.size - place)
            end = self.size
        if index is None:
            end, index = yield from self._walk(start)
        if index is not None:
            yield from self._closed(index)
        elif (yield from self._index_was_there(end)):
            end = self.size
            index = tuple(self.batches)
        else:
            end = yield from self._check_tail(end)
        return ScanResult(
            size=self.size,
            header=self.header,
            header_length=start,
            header_crc=self.header_crc,
            batches=tuple(self.batches),
            valid_length=end,
            closed=index is not None,
            torn=self.torn,
            damage=tuple(sorted(self.damage, key=lambda damage: damage.offset)),
            unreadable=tuple(self.unreadable),
            problem=problem,
        )

    def _header(self) -> Generator[Read, bytes | None, tuple[int, str]]:
        """Read the header; returns where the first batch begins, and what is wrong with the header."""
        problem = ""
        try:
            data = yield from self._fetch(0, HEAD_BYTES)
            while len(data) < min(self.size, need := header_length(data, path=self.path)):
                data += yield from self._fetch(len(data), need - len(data))
            self.header, length = read_header(data, self.path)
            self.header_crc = header_crc(data)
        except FormatError as error:
            problem = error.message
            if self.peer is None:
                return 0, problem
            packed = pack_header(self.peer)
            self.header, length, self.header_crc = self.peer, len(packed), header_crc(packed)
            self.damage.append(Damage(DamageKind.VOLUME_HEADER, 0, length))
        return length, problem

    def _walk(self, at: int) -> Generator[Read, bytes | None, tuple[int, tuple[Batch, ...] | None]]:
        """From header to header to where none is good any more; returns that place, or the end of an index with its batches."""
        while at < self.size:
            head = yield from self._head(at)
            if head is None:
                index = yield from self._index(at)
                if index is not None:
                    return self._index_end, index
                found = yield from self._search(at)
                if found is None:
                    break
                self.damage.append(Damage(DamageKind.BATCHES, at, found - at, self._next_number))
                at = found
                continue
            self._take(head)
            at = head.end
        if self._next_number <= self.committed:
            self.damage.append(Damage(DamageKind.BATCHES, at, max(0, self.known_end - at), self._next_number))
        return at, None

    def _take(self, batch: Batch) -> None:
        """Add a batch whose header is good, and see whether the chain holds where nothing is missing in between."""
        before = self.batches[-1] if self.batches else None
        crc = before.header_crc if before else self.header_crc
        missing = any(d.kind is DamageKind.BATCHES and d.offset + d.length == batch.offset for d in self.damage)
        if not missing and (batch.previous_crc != crc or batch.number != self._next_number):
            where = (before.offset, before.head_length, before.number) if before else (0, batch.offset, -1)
            self.damage.append(Damage(DamageKind.CHAIN, *where))
        self.batches.append(batch)

    def _check_tail(self, end: int) -> Generator[Read, bytes | None, int]:
        """Check the payloads that no header vouches for; returns where the volume ends without its torn tail."""
        known = max([self.committed, *(batch.last_committed for batch in self.batches)])
        last = self.batches[-1].number if self.batches else -1
        for batch in list(self.batches):
            if batch.number <= known and not self.deep:
                if not batch.head:
                    self.damage.append(Damage(DamageKind.RECORDS, batch.offset + batch.head_length, batch.records_length, batch.number))
                continue
            found = yield from self._payload(batch)
            if found and batch.number == last and batch.number > known:
                self.batches.pop()
                self.torn = True
                return batch.offset
            self.damage += found
        return end

    def _closed(self, index: tuple[Batch, ...]) -> Generator[Read, bytes | None, None]:
        """The index vouches for the volume; what the walk stumbled over, and with `deep` everything, is compared with it."""
        holes = [(d.offset, d.offset + d.length) for d in self.damage if d.kind is DamageKind.BATCHES]
        self.batches = list(index)
        self.damage = [d for d in self.damage if d.kind is DamageKind.VOLUME_HEADER]
        if index and index[0].previous_crc != self.header_crc:
            self.damage.append(Damage(DamageKind.CHAIN, 0, index[0].offset))
        for batch in index:
            if self.deep or any(start < batch.end and batch.offset < end for start, end in holes):
                self.damage += yield from self._payload(batch)

    def _payload(self, batch: Batch) -> Generator[Read, bytes | None, list[Damage]]:
        data = yield from self._fetch(batch.offset, batch.length)
        found = list(payload_damage(data, batch))
        if batch.head and bytes(data[: batch.head_length]) != batch.head[: batch.head_length]:
            found.insert(0, Damage(DamageKind.BATCH_HEADER, batch.offset, batch.head_length, batch.number))
        return found

    # --- pieces of it ------------------------------------------------------------------------------------------

    @property
    def _next_number(self) -> int:
        return self.batches[-1].number + 1 if self.batches else 0

    def _head(self, at: int) -> Generator[Read, bytes | None, Batch | None]:
        """The batch whose header lies at `at`, with its records where they are whole; None where there is none that could be next."""
        data = yield from self._fetch(at, HEAD_BYTES)
        need = head_length(data)
        if need is None:
            return None
        if len(data) < need and at + len(data) < self.size:
            data += yield from self._fetch(at + len(data), need - len(data))
        try:
            batch = parse_batch(data, at, self.header, path=self.path)
        except FormatError:
            return None
        if batch.number < self._next_number:
            return None  # of this volume and this place, yet older than what is in front of it: never written by one writer
        try:
            return read_records(data, batch, path=self.path)
        except FormatError:
            return batch

    def _search(self, bad: int) -> Generator[Read, bytes | None, int | None]:
        """Where the next good batch header or index behind `bad` is. Also sees whether anything but zeroes is there."""
        limit = self.size if self.deep else min(self.size, max(bad + SEARCH_BYTES, self.known_end))
        seen = False
        at = bad
        while at < limit:
            data = yield from self._fetch(at, min(KEEPER_PIECE_BYTES, limit - at))
            if not data:
                break
            seen = seen or data.count(0) != len(data)
            for block in range(BLOCK_BYTES if at == bad else 0, len(data), BLOCK_BYTES):
                signature = data[block + 4 : block + 24]
                if signature == BATCH_SIGNATURE and (yield from self._head(at + block)) is not None:
                    return at + block
                if signature == INDEX_SIGNATURE and (yield from self._index(at + block)) is not None:
                    return at + block
            at += len(data)
        self.torn = self.torn or (seen and self._next_number > self.committed)
        return None

    def _index_at_the_end(self) -> Generator[Read, bytes | None, int | None]:
        if self.size < 2 * BLOCK_BYTES or self.size % BLOCK_BYTES:
            return None
        block = yield from self._fetch(self.size - BLOCK_BYTES, BLOCK_BYTES)
        place = index_place(block, self.size)
        return place.offset if place else None

    def _index(self, at: int, length: int | None = None) -> Generator[Read, bytes | None, tuple[Batch, ...] | None]:
        """The batches that a whole index at `at` lists; None where there is none."""
        if length is None:
            head = yield from self._fetch(at, BLOCK_BYTES)
            if head[4:24] != INDEX_SIGNATURE:
                return None
            uuid = int.from_bytes(head[:4], "big")
            behind = (at + uuid) // BLOCK_BYTES * BLOCK_BYTES
            length = index_length(uuid, (yield from self._fetch(behind, 3 * BLOCK_BYTES)), at + uuid - behind)
            if length is None or at + length > self.size:
                return None
        data = yield from self._fetch(at, length)
        try:
            index = read_index(data, at, self.header, path=self.path)
        except FormatError:
            return None
        self._index_end = at + length
        return index

    def _index_was_there(self, end: int) -> Generator[Read, bytes | None, bool]:
        """Whether the volume was closed, but its index is no longer what it must be: one of its ends still is."""
        if self.damage or end >= self.size or any(not batch.head for batch in self.batches):
            return False
        wanted = volume_index(self.header, self.batches)
        if self.size != end + len(wanted):
            return False
        data = yield from self._fetch(end, len(wanted))
        if data[:INDEX_HEAD_BYTES] != wanted[:INDEX_HEAD_BYTES] and data[-INDEX_TAIL_BYTES:] != wanted[-INDEX_TAIL_BYTES:]:
            return False
        self.torn = False
        self.damage.append(Damage(DamageKind.INDEX, end, self.size - end))
        for batch in self.batches if self.deep else ():
            self.damage += yield from self._payload(batch)
        return True

    def _fetch(self, offset: int, length: int) -> Generator[Read, bytes | None, bytearray]:
        """`length` bytes at `offset`, rounded up to whole blocks; shorter at the end of the file. What cannot be read is zeroes."""
        data = bytearray()
        end = min(offset + -(-length // BLOCK_BYTES) * BLOCK_BYTES, -(-self.size // BLOCK_BYTES) * BLOCK_BYTES)
        piece_bytes, retry_to = KEEPER_PIECE_BYTES, 0
        while (at := offset + len(data)) < end:
            if at >= retry_to:
                piece_bytes = KEEPER_PIECE_BYTES
            length = min(piece_bytes, end - at)
            answer = yield Read(at, length, self.fresh)
            if answer is None:
                if length > RETRY_BYTES:
                    piece_bytes, retry_to = RETRY_BYTES, at + length
                    continue
                self.unreadable.append((at, length))
                answer = bytes(min(length, self.size - at))
            data += answer
            if len(answer) < length:
                break
        return data
