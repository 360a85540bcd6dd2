"""Checks every byte that has a checksum, on every copy, and compares the copies.

    every target: list volumes ─▶ per volume: scan every copy, every payload ─▶ damage: target, volume, offset, track, time
                                             └▶ compare what the copies hold, batch by batch

Reads past the page cache, so that it sees the disk. `reference` repeats the check with an independent implementation of
CRC-32C (crcmod), the slow way. It changes nothing: mending is another's business. A torn tail of an open volume is no damage,
nor is a lawful erasure; that closed copies differ, or that one lacks what the catalog promises, is.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from nvrstore.catalog.rebuild import FileEntry, ListDir, adoption, volume_files
from nvrstore.catalog.schema import CopyState
from nvrstore.catalog.views import VolumeInfo
from nvrstore.checksum import Buffer, crc32c_reference
from nvrstore.errors import TargetError, TargetIOError
from nvrstore.journal.layout import BATCH_FIXED, CRC, PRFT, UUID_HEAD
from nvrstore.journal.model import Batch, Damage, DamageKind, FragmentEntry, VolumeHeader
from nvrstore.journal.scan import ScanResult
from nvrstore.model import NS_PER_S, TrackKey
from nvrstore.playback.copies import Copies

_HARMLESS: Final = frozenset({DamageKind.ERASED})


@dataclass(frozen=True, slots=True)
class FoundDamage:
    """Bytes of one copy that are not as they were written, and what they held. Times are 0 where the bytes hold no footage."""

    target: str
    path: str
    kind: str  # DamageKind, or "unreadable", "short", "missing", "stranger"
    offset: int
    length: int
    tracks: tuple[TrackKey, ...]
    start_ns: int
    end_ns: int
    whole_on: tuple[str, ...]  # targets whose copy has these bytes as they were written
    detail: str = ""


@dataclass(frozen=True, slots=True)
class VerifyProgress:
    """How far it is."""

    volumes_done: int
    volumes_total: int
    bytes_done: int
    bytes_total: int
    path: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was checked and what was found."""

    volumes: int
    copies: int
    bytes: int
    fragments: int  # checked, over all copies
    damage: tuple[FoundDamage, ...]
    erased: int  # fragments that were erased on purpose
    unreachable: dict[str, str]  # targets that did not answer, and how
    reference: bool  # checked with the independent implementation too

    @property
    def ok(self) -> bool:
        """Every copy that could be read is as it was written, and every target answered."""
        return not self.damage and not self.unreachable


@dataclass(slots=True)
class _Sum:
    copies: int = 0
    bytes: int = 0
    fragments: int = 0
    erased: int = 0
    damage: list[FoundDamage] = field(default_factory=list)
    unreachable: dict[str, str] = field(default_factory=dict)


Sizes = Mapping[str, Mapping[str, int]]  # path -> target -> length of the file


def list_copies(copies: Copies, targets: Sequence[str]) -> tuple[dict[str, dict[str, int]], dict[str, str]]:
    """Every volume on `targets`, by path; and the targets that do not answer."""
    found: dict[str, dict[str, int]] = {}
    unreachable: dict[str, str] = {}
    for target in targets:
        try:
            files = _listed(volume_files(target), copies)
        except TargetError as error:
            unreachable[target] = error.message
            continue
        if files is None:
            unreachable[target] = f"target {target!r}: there is no target.json: unmounted, or not a target"
            continue
        for path, size in files.items():
            found.setdefault(path, {})[target] = size
    return found, unreachable


def verify(
    copies: Copies,
    sizes: Sizes,
    *,
    known: Sequence[VolumeInfo] = (),
    unreachable: Mapping[str, str] | None = None,
    reference: bool = False,
    on_progress: Callable[[VerifyProgress], None] | None = None,
) -> VerifyReport:
    """Check the volumes of `sizes` (see `list_copies`). `known` is what the catalog promises."""
    total = _Sum(unreachable=dict(unreachable or {}))
    bytes_total = sum(size for held in sizes.values() for size in held.values())
    targets = {target for held in sizes.values() for target in held}
    # The copies of a volume are read at once: each target by a thread of its own, as fast as its disk gives.
    with ThreadPoolExecutor(max(1, len(targets)), thread_name_prefix="nvrstore-verify") as pool:
        for done, (path, held) in enumerate(sorted(sizes.items()), start=1):
            _Volume(copies, path, held, total, reference, pool).check()
            if on_progress is not None:
                on_progress(VerifyProgress(done, len(sizes), total.bytes, bytes_total, path))
    for volume in known:
        for copy in volume.copies:
            here = sizes.get(volume.path, {})
            if copy.state is CopyState.GONE or copy.target in here or copy.target in total.unreachable or copy.target not in copies.targets:
                continue
            whole = tuple(sorted(here))
            detail = "the catalog knows this copy, and it is not there"
            total.damage.append(
                FoundDamage(copy.target, volume.path, "missing", 0, copy.length, (), volume.first_ns, volume.last_ns, whole, detail)
            )
    return VerifyReport(
        volumes=len(sizes),
        copies=total.copies,
        bytes=total.bytes,
        fragments=total.fragments,
        damage=tuple(sorted(total.damage, key=lambda d: (d.path, d.target, d.offset))),
        erased=total.erased,
        unreachable=total.unreachable,
        reference=reference,
    )


class _Volume:
    """The check of one volume: all of its copies, then what they say together."""

    def __init__(self, copies: Copies, path: str, sizes: Mapping[str, int], total: _Sum, reference: bool, pool: Executor) -> None:
        self.copies, self.path, self.sizes, self.total, self.reference, self.pool = copies, path, sizes, total, reference, pool

    def check(self) -> None:
        targets = sorted(self.sizes)
        results = list(self.pool.map(lambda target: self._scan(target, self.sizes[target], None), targets))
        scans = {target: result for target, result in zip(targets, results, strict=True) if result is not None}
        headers = {result.header.volume_id: result.header for result in scans.values() if result.header is not None}
        for target, result in list(scans.items()):
            if result.header is None and len(headers) == 1:  # its own header is damaged: with that of another copy the rest can be checked
                again = self._scan(target, self.sizes[target], next(iter(headers.values())))
                scans[target] = result if again is None else again
        for target, result in scans.items():
            self.total.copies += 1
            self.total.bytes += self.sizes[target]
            if result.header is None:
                self._found(
                    target, "stranger", 0, result.size, detail=f"no copy tells what this file is: {_short(result.problem, self.path)}"
                )
        for volume_id, header in headers.items():
            self._compare(header, {t: r for t, r in scans.items() if r.header is not None and r.header.volume_id == volume_id})

    def _scan(self, target: str, size: int, header: VolumeHeader | None) -> ScanResult | None:
        try:
            return self.copies.scan(target, self.path, size, header=header, deep=True)
        except TargetError as error:
            if self.copies.avoided(target):
                self.total.unreachable[target] = error.message
            elif not (isinstance(error, TargetIOError) and error.errno == errno.ENOENT):  # retention took it since it was listed
                self._found(target, "unreadable", 0, size, detail=error.message)
            return None

    def _compare(self, header: VolumeHeader, scans: Mapping[str, ScanResult]) -> None:
        together = {batch.number: batch for batch in adoption(header, self.path, scans).batches}
        closed = any(result.closed for result in scans.values())
        for target, result in scans.items():
            self.total.fragments += sum(len(batch.entries) for batch in result.batches)
            for damage in result.damage:
                if damage.kind in _HARMLESS:
                    self.total.erased += 1
                else:
                    self._damaged(target, str(damage.kind), damage, header, together, scans)
            for offset, length in result.unreadable:
                self._damaged(target, "unreadable", Damage(DamageKind.BATCHES, offset, length), header, together, scans)
            if closed and not result.closed and not result.damage:
                lost = [batch for batch in together.values() if batch.offset >= result.valid_length]
                whole = tuple(t for t, r in scans.items() if r.closed)
                tracks, start_ns, end_ns = _held(header, lost)
                detail = f"the volume is closed, this copy ends after {len(result.batches)} of {len(together)} batches"
                self._found(target, "short", result.valid_length, 0, tracks, start_ns, end_ns, whole, detail)
            if self.reference:
                self._check_reference(target, result, header, together, scans)

    def _damaged(
        self, target: str, kind: str, damage: Damage, header: VolumeHeader, batches: Mapping[int, Batch], scans: Mapping[str, ScanResult]
    ) -> None:
        end = damage.offset + max(damage.length, 1)
        whole = tuple(other for other, result in scans.items() if other != target and _is_whole(result, damage.offset, end))
        touched = [batch for batch in batches.values() if batch.offset < end and damage.offset < batch.end]
        entry = _entry_at(touched, damage) if damage.kind in (DamageKind.FRAGMENT, DamageKind.PRFT) else None
        tracks, start_ns, end_ns = _held(header, touched) if entry is None else _of_entry(header, entry)
        self._found(target, kind, damage.offset, damage.length, tracks, start_ns, end_ns, whole)

    def _check_reference(
        self, target: str, result: ScanResult, header: VolumeHeader, batches: Mapping[int, Batch], scans: Mapping[str, ScanResult]
    ) -> None:
        """Everything again with crcmod; what only it finds would be a mistake of the fast implementation."""
        known = {(damage.kind, damage.offset) for damage in result.damage}
        for batch in result.batches:
            try:
                data = self.copies.read(target, self.path, batch.offset, batch.length, fresh=True)
            except TargetError as error:
                self._found(target, "unreadable", batch.offset, batch.length, detail=error.message)
                return
            for damage in reference_damage(data, batch, header):
                in_header = damage.kind is DamageKind.BATCH_HEADER and (DamageKind.CHAIN, damage.offset) in known
                if (damage.kind, damage.offset) not in known and not in_header and not _erased(known, damage):
                    self._damaged(target, f"{damage.kind} (only the reference says so)", damage, header, batches, scans)

    def _found(
        self,
        target: str,
        kind: str,
        offset: int,
        length: int,
        tracks: tuple[TrackKey, ...] = (),
        start_ns: int = 0,
        end_ns: int = 0,
        whole_on: tuple[str, ...] = (),
        detail: str = "",
    ) -> None:
        self.total.damage.append(FoundDamage(target, self.path, kind, offset, length, tracks, start_ns, end_ns, whole_on, detail))


def reference_damage(data: Buffer, batch: Batch, header: VolumeHeader) -> Iterator[Damage]:
    """What of a batch does not match its checksums, by crcmod alone: volume id, offset and header; records; `prft`; fragments."""
    view = memoryview(data)
    place = bytes.fromhex(header.volume_id) + struct.pack(">Q", batch.offset)
    end = batch.head_length - CRC.size
    if batch.head_length < UUID_HEAD.size + BATCH_FIXED.size + CRC.size or len(view) < batch.length:
        yield Damage(DamageKind.BATCH_HEADER, batch.offset, batch.head_length, batch.number)
        return
    if crc32c_reference(view[:end], crc32c_reference(place)) != CRC.unpack_from(view, end)[0]:
        yield Damage(DamageKind.BATCH_HEADER, batch.offset, batch.head_length, batch.number)
    at = batch.head_length + batch.records_length
    if crc32c_reference(view[batch.head_length : at]) != batch.records_crc:
        yield Damage(DamageKind.RECORDS, batch.offset + batch.head_length, batch.records_length, batch.number)
    for entry in batch.entries:
        if entry.prft_crc and crc32c_reference(view[entry.offset - PRFT.size : entry.offset]) != entry.prft_crc:
            yield Damage(DamageKind.PRFT, batch.offset + entry.offset - PRFT.size, PRFT.size, batch.number)
        if crc32c_reference(view[entry.offset : entry.offset + entry.length]) != entry.crc:
            yield Damage(DamageKind.FRAGMENT, batch.offset + entry.offset, entry.length, batch.number)


# --- inside ----------------------------------------------------------------------------------------------------


def _short(problem: str, path: str) -> str:
    """A sentence about a file, without the name that stands beside it anyway."""
    return problem.removeprefix(f"{path}: ")


def _listed(steps: Generator[ListDir, list[FileEntry] | None, dict[str, int] | None], copies: Copies) -> dict[str, int] | None:
    try:
        wish = next(steps)
        while True:
            wish = steps.send(copies.list_dir(wish.target, wish.path))
    except StopIteration as stop:
        files: dict[str, int] | None = stop.value
        return files
    finally:
        steps.close()


def _is_whole(result: ScanResult, start: int, end: int) -> bool:
    """Whether a copy has these bytes as they were written."""
    if result.header is None or min(result.valid_length, result.size) < end:
        return False
    bad = [(d.offset, d.offset + max(d.length, 1)) for d in result.damage] + [(at, at + length) for at, length in result.unreadable]
    return not any(first < end and start < last for first, last in bad)


def _entry_at(batches: Sequence[Batch], damage: Damage) -> FragmentEntry | None:
    for batch in batches:
        for entry in batch.entries:
            at = batch.offset + entry.offset
            if at - PRFT.size <= damage.offset < at + entry.length:
                return entry
    return None


def _of_entry(header: VolumeHeader, entry: FragmentEntry) -> tuple[tuple[TrackKey, ...], int, int]:
    track = header.tracks[entry.track_id - 1]
    return (track.track,), entry.utc_ns, entry.utc_ns + entry.duration * NS_PER_S // track.config.timescale


def _held(header: VolumeHeader, batches: Sequence[Batch]) -> tuple[tuple[TrackKey, ...], int, int]:
    """The tracks and the time that batches hold."""
    found = [_of_entry(header, entry) for batch in batches for entry in batch.entries]
    if not found:
        return (), 0, 0
    tracks = {track for held, _, _ in found for track in held}
    return tuple(sorted(tracks)), min(start for _, start, _ in found), max(end for _, _, end in found)


def _erased(known: set[tuple[DamageKind, int]], damage: Damage) -> bool:
    return damage.kind is DamageKind.FRAGMENT and (DamageKind.ERASED, damage.offset) in known
