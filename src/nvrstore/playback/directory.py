"""Where the fragments of a track lie inside a volume, and from which copy to read: the volume's own directory, never the catalog's.

    closed volume   its index: one read of the last block, one of the index     \
    open volume     the headers of the batches that the catalog knows of         }-> Place(volume, entry, offset in the file)
    neither works   a scan of every copy that answers                           /

Everything is checked by its checksum, and taken from another copy where it does not match. Headers and indexes of the last few
volumes are kept: neighbouring questions mostly concern the same ones. Thread-safe.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from nvrstore.catalog.rows import BatchRow
from nvrstore.catalog.schema import CopyState
from nvrstore.catalog.views import READABLE, VolumeInfo
from nvrstore.checksum import crc32c
from nvrstore.errors import DamagedError, FormatError, NotFoundError, NvrstoreError, TargetError
from nvrstore.journal.batch import head_length, parse_batch
from nvrstore.journal.header import header_length, read_header
from nvrstore.journal.index import INDEX_SIGNATURE, index_place
from nvrstore.journal.layout import BATCH_FIXED, CRC, ENTRY, INDEX_FIXED, INDEX_LINE, UUID_HEAD, seed
from nvrstore.journal.model import FragmentEntry, VolumeHeader
from nvrstore.limits import BLOCK_BYTES, KIB
from nvrstore.model import FragmentFlag
from nvrstore.playback.copies import Copies
from nvrstore.telemetry import get_logger

log = get_logger(__name__)
T = TypeVar("T")

VOLUMES_KEPT: Final = 16  # headers and indexes in memory: about 1.5 MiB each with 300 streams
HEADER_BYTES: Final = 64 * KIB  # first read of a volume header
HEAD_BYTES: Final = 16 * KIB  # first read of a batch header: 220 fragments
_MFRO_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Place:
    """A fragment in a volume: its directory entry, and where it lies in the file."""

    volume: VolumeInfo
    entry: FragmentEntry
    offset: int

    @property
    def end(self) -> int:
        return self.offset + self.entry.length


def ranked(volume: VolumeInfo, copies: Copies, end: int = 0) -> list[str]:
    """The targets that hold the volume up to `end`, best first: healthy and whole before damaged or short, primary before standby."""
    members = {member.target: at for at, member in enumerate(volume.members)}
    known = [copy for copy in volume.copies if copy.state in READABLE and copy.target in copies.targets]
    order = {
        copy.target: (
            copies.avoided(copy.target),
            copy.length < end,
            copy.state is CopyState.DAMAGED,
            members.get(copy.target, len(members)),
        )
        for copy in known
    }
    return sorted(order, key=lambda target: order[target])


class Directories:
    """Headers and directories of volumes, as their copies have them."""

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        self._lock = threading.Lock()
        self._headers: OrderedDict[str, VolumeHeader] = OrderedDict()
        self._indexes: OrderedDict[str, bytes] = OrderedDict()

    def header(self, volume: VolumeInfo) -> VolumeHeader:
        """The volume's header from the best copy that has it. Raises the last copy's error: `FormatError`, `TargetError`."""
        return self._kept(self._headers, volume.volume_id, lambda: self._first(volume, lambda target: self._read_header(volume, target)))

    def places(self, volume: VolumeInfo, tracks: Collection[int], first: int, last: int, batches: Sequence[BatchRow] = ()) -> list[Place]:
        """Every fragment of `tracks` in the batches from `first` to `last`, in the order of the file.

        Of an open volume only those in `batches`, which the catalog knows. Raises the last copy's error where no copy tells.
        """
        header = self.header(volume)
        try:
            if volume.closed:
                index = self._kept(
                    self._indexes, volume.volume_id, lambda: self._first(volume, lambda target: self._read_index(volume, header, target))
                )
                found = index_entries(index, header, tracks, first, last)
            else:
                rows = [row for row in batches if first <= row.number <= last]
                found = [place for row in rows for place in self._batch_entries(volume, header, row, tracks)]
        except NvrstoreError as error:
            log.warning("directory.scanned", path=volume.path, problem=error.message)
            found = self._scanned(volume, header, tracks, first, last)
        return [Place(volume, entry, at + entry.offset) for at, entry in found]

    # --- from one copy

    def _read_header(self, volume: VolumeInfo, target: str) -> VolumeHeader:
        data, need = b"", HEADER_BYTES
        while len(data) < need:
            piece = self._copies.read(target, volume.path, len(data), need - len(data))
            if not piece:
                break
            data += piece
            need = header_length(data, path=volume.path)
        header, _ = read_header(data, volume.path)
        if header.volume_id != volume.volume_id:
            raise FormatError(f"this is volume {header.volume_id}, not {volume.volume_id}", path=volume.path)
        return header

    def _read_index(self, volume: VolumeInfo, header: VolumeHeader, target: str) -> bytes:
        block = self._copies.read(target, volume.path, volume.length - BLOCK_BYTES, BLOCK_BYTES)
        place = index_place(block, volume.length)
        if place is None or len(block) != BLOCK_BYTES:
            raise FormatError("the volume's index is not where it should be", path=volume.path, offset=max(0, volume.length - BLOCK_BYTES))
        data = self._copies.read(target, volume.path, place.offset, place.length)
        check_index(data, place.offset, header, path=volume.path)
        return data

    def _batch_entries(
        self, volume: VolumeInfo, header: VolumeHeader, row: BatchRow, tracks: Collection[int]
    ) -> list[tuple[int, FragmentEntry]]:
        def read(target: str) -> list[tuple[int, FragmentEntry]]:
            data = self._copies.read(target, volume.path, row.offset, min(HEAD_BYTES, row.length))
            need = head_length(data)
            if need is not None and need > len(data):
                data += self._copies.read(target, volume.path, row.offset + len(data), need - len(data))
            batch = parse_batch(data, row.offset, header, path=volume.path)
            return [(batch.offset, entry) for entry in batch.entries if entry.track_id in tracks]

        return self._first(volume, read, row.end)

    def _scanned(
        self, volume: VolumeInfo, header: VolumeHeader, tracks: Collection[int], first: int, last: int
    ) -> list[tuple[int, FragmentEntry]]:
        """What the headers of all copies together say; the slow way, for damaged directories."""
        found: dict[int, list[tuple[int, FragmentEntry]]] = {}
        problem: NvrstoreError = NotFoundError(f"no target that holds volume {volume.path} is known")
        answered = False
        for target in ranked(volume, self._copies):
            try:
                size = self._copies.size(target, volume.path)
                result = self._copies.scan(target, volume.path, size, header=header, fresh=False)
            except TargetError as error:
                problem = error
                continue
            answered = True
            for batch in result.batches:
                if first <= batch.number <= last:
                    found.setdefault(batch.number, [(batch.offset, entry) for entry in batch.entries if entry.track_id in tracks])
        if not answered:
            raise problem
        return [place for number in sorted(found) for place in found[number]]

    # --- which copy

    def _first(self, volume: VolumeInfo, read: Callable[[str], T], end: int = 0) -> T:
        """What the best copy says; of one that does not answer or is damaged, the next one's."""
        problem: NvrstoreError = NotFoundError(f"no target that holds volume {volume.path} is known")
        for target in ranked(volume, self._copies, end):
            try:
                return read(target)
            except (FormatError, TargetError) as error:
                log.warning("copy.passed_over", target=target, path=volume.path, problem=error.message)
                problem = error
        raise problem

    def _kept(self, shelf: OrderedDict[str, T], key: str, make: Callable[[], T]) -> T:
        with self._lock:
            if key in shelf:
                shelf.move_to_end(key)
                return shelf[key]
        made = make()
        with self._lock:
            shelf[key] = made
            while len(shelf) > VOLUMES_KEPT:
                shelf.popitem(last=False)
        return made


def check_index(data: bytes, offset: int, header: VolumeHeader, *, path: str) -> None:
    """Raise `DamagedError` where the index at `offset` (to the end of the file) is not this volume's, as it was written."""
    crc_at = len(data) - _MFRO_BYTES - CRC.size
    if crc_at < UUID_HEAD.size + INDEX_FIXED.size or data[4:24] != INDEX_SIGNATURE:
        raise FormatError("there is no index here", path=path, offset=offset)
    if crc32c(memoryview(data)[:crc_at], seed(header.volume_id, offset)) != CRC.unpack_from(data, crc_at)[0]:
        raise DamagedError("the index of the volume does not match its checksum", path=path, offset=offset)


def index_entries(
    data: bytes, header: VolumeHeader, tracks: Collection[int], first_batch: int, last_batch: int
) -> list[tuple[int, FragmentEntry]]:
    """(offset of the batch, entry) of the fragments of `tracks` in a checked index: without making values of all the others."""
    view = memoryview(data)
    size = UUID_HEAD.unpack_from(view)[0]
    at = UUID_HEAD.size + INDEX_FIXED.size
    found: list[tuple[int, FragmentEntry]] = []
    while at < size:
        batch_offset, length = INDEX_LINE.unpack_from(view, at)
        at += INDEX_LINE.size
        fixed = BATCH_FIXED.unpack_from(view, at + UUID_HEAD.size)
        count, number = fixed[2], fixed[3]
        if first_batch <= number <= last_batch:
            begin = at + UUID_HEAD.size + BATCH_FIXED.size
            for line in ENTRY.iter_unpack(view[begin : begin + count * ENTRY.size]):
                if line[0] in tracks:
                    track, place, size_bytes, samples, utc_ns, tfdt, duration, session, index, bits, crc, prft_crc, _ = line
                    flags = FragmentFlag(bits)
                    entry = FragmentEntry(track, place, size_bytes, utc_ns, duration, samples, session, index, flags, crc, tfdt, prft_crc)
                    found.append((batch_offset, entry))
        at += length
    return found
