"""Makes the catalog again from the targets alone, and completes one that lacks rows. Decides; somebody else lists and scans.

    list every target -> same paths are copies of one volume -> what is known already is skipped -> scan -> Adopt, Removed

`look_through` is a generator: it yields wishes (`ListDir`, `Scan`), which are answered, and findings (`Adopt`, `Removed`,
`Stranger`, `Progress`), which are not. Every finding stands for itself: broken off anywhere, it goes on from what the
catalog knows by then. `record` writes a finding into a database.

Invariant: what a scan of the volumes says and what the recorder wrote while it made them is the same (catalog/rows.py).
A copy is never called removed because its target did not answer. Closed copies are trusted by their index and their
length; whether every byte is right is the business of `verify`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nvrstore.catalog import schema
from nvrstore.catalog.rows import volume_rows
from nvrstore.catalog.schema import CopyState
from nvrstore.catalog.views import VolumeInfo
from nvrstore.journal.model import Batch, DamageKind, VolumeHeader
from nvrstore.journal.names import TARGET_FILE, VolumeName, is_day, parse_volume_path
from nvrstore.journal.scan import ScanResult

# --- wishes ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One line of a directory."""

    name: str
    size: int
    directory: bool


@dataclass(frozen=True, slots=True)
class ListDir:
    """Answer: the entries, empty where there is no such directory; None where the target does not answer."""

    target: str
    path: str


@dataclass(frozen=True, slots=True)
class Scan:
    """Answer: the scan of the whole file (journal/scan.py); None where the target does not answer, or the file is gone.

    `header` is another copy's, for the case that this one's is damaged.
    """

    target: str
    path: str
    size: int
    header: VolumeHeader | None = None


# --- findings --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Adopt:
    """A volume as its copies say it is. `copies` is (valid length, state) per target that was read."""

    header: VolumeHeader
    path: str
    batches: tuple[Batch, ...] = field(repr=False)
    copies: Mapping[str, tuple[int, CopyState]]
    closed_length: int | None


@dataclass(frozen=True, slots=True)
class Removed:
    """The target answered, and does not hold the volume any more."""

    volume_id: str
    target: str


@dataclass(frozen=True, slots=True)
class Stranger:
    """A file with a volume's name whose header no copy can tell."""

    target: str
    path: str
    problem: str


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` volumes were looked at."""

    done: int
    total: int
    path: str


Finding = Adopt | Removed | Stranger | Progress
LookThrough = Generator[ListDir | Scan | Finding, Any, "Outcome"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a look through all targets came to. Complete only if every target answered."""

    volumes: int
    adopted: int
    removed: int
    strangers: int
    unreachable: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return not self.unreachable


def look_through(targets: Sequence[str], known: Iterable[VolumeInfo], *, skip: frozenset[str] = frozenset()) -> LookThrough:
    """Look at every volume on `targets`. `known` is what the catalog says now; volumes in `skip` are being written and left alone."""
    unreachable: set[str] = set()
    sizes: dict[str, dict[str, int]] = {}  # path -> target -> length of the file
    for target in targets:
        files = yield from volume_files(target)
        if files is None:
            unreachable.add(target)
            continue
        for path, size in files.items():
            sizes.setdefault(path, {})[target] = size
    known = list(known)
    by_path: dict[str, list[VolumeInfo]] = {}
    for volume in known:
        by_path.setdefault(volume.path, []).append(volume)
    answered = [target for target in targets if target not in unreachable]
    adopted = strangers = 0
    ordered = sorted(sizes, key=_order)
    for done, path in enumerate(ordered):
        here = by_path.get(path, [])
        if not any(volume.volume_id in skip for volume in here) and not _settled(here, sizes[path]):
            for finding in (yield from _look_at(path, sizes[path], here, unreachable)):
                yield finding
                adopted += isinstance(finding, Adopt)
                strangers += isinstance(finding, Stranger)
        yield Progress(done + 1, len(ordered), path)
    gone = [
        Removed(volume.volume_id, copy.target)
        for volume in known
        for copy in volume.copies
        if copy.target in answered and copy.target not in sizes.get(volume.path, {}) and volume.volume_id not in skip
    ]
    yield from gone
    return Outcome(len(ordered), adopted, len(gone), strangers, tuple(sorted(unreachable)))


def record(connection: sqlite3.Connection, finding: Finding) -> None:
    """Write a finding; the caller owns the transaction."""
    match finding:
        case Adopt(header, path, batches, copies, closed_length):
            schema.adopt_volume(connection, volume_rows(header, path, batches), copies, closed_length)
        case Removed(volume_id, target):
            schema.remove_copy(connection, volume_id, target)


# --- inside ----------------------------------------------------------------------------------------------------


def volume_files(target: str) -> Generator[ListDir, list[FileEntry] | None, dict[str, int] | None]:
    """Volumes on a target, by path: their lengths. None where it does not answer, or is a bare mount point: no word about what it holds."""
    root = yield ListDir(target, "")
    if root is None or not any(entry.name == TARGET_FILE for entry in root):
        return None
    found: dict[str, int] = {}
    for journal in root:
        if not journal.directory or journal.name.startswith("."):
            continue
        days = yield ListDir(target, journal.name)
        if days is None:
            return None
        for day in days:
            if not day.directory or not is_day(day.name):
                continue
            files = yield ListDir(target, f"{journal.name}/{day.name}")
            if files is None:
                return None
            for file in files:
                path = f"{journal.name}/{day.name}/{file.name}"
                if not file.directory and parse_volume_path(path) is not None:
                    found[path] = file.size
    return found


def _order(path: str) -> VolumeName:
    name = parse_volume_path(path)
    if name is None:
        raise ValueError(f"{path!r} is no volume's path")
    return name


def _settled(known: Sequence[VolumeInfo], sizes: Mapping[str, int]) -> bool:
    """Whether the catalog knows all that a look could tell: one closed volume, every copy of it in full length."""
    if len(known) != 1 or known[0].stale or not known[0].closed:
        return False
    lengths = {copy.target: copy.length for copy in known[0].copies if copy.state in (CopyState.COMPLETE, CopyState.DAMAGED)}
    return all(lengths.get(target) == size for target, size in sizes.items())


def _look_at(
    path: str, sizes: Mapping[str, int], known: Sequence[VolumeInfo], unreachable: set[str]
) -> Generator[Scan, ScanResult | None, list[Adopt | Stranger]]:
    """Scan the copies at one path; a copy whose header is damaged is read with that of another."""
    found: dict[str, ScanResult] = {}
    for target, size in sizes.items():
        result = yield Scan(target, path, size)
        if result is None:
            unreachable.add(target)
        else:
            found[target] = result
    headers = {result.header.volume_id: result.header for result in found.values() if result.header is not None}
    strangers: list[Adopt | Stranger] = []
    for target, result in list(found.items()):
        if result.header is not None:
            continue
        again = (yield Scan(target, path, sizes[target], next(iter(headers.values())))) if len(headers) == 1 else None
        if again is not None and again.batches:
            found[target] = again
        else:
            del found[target]
            strangers.append(Stranger(target, path, result.problem))
    damaged = {copy.target for volume in known for copy in volume.copies if copy.state is CopyState.DAMAGED}
    volumes: list[Adopt | Stranger] = []
    for volume_id, header in sorted(headers.items()):
        copies = {target: result for target, result in found.items() if result.header and result.header.volume_id == volume_id}
        volumes.append(adoption(header, path, copies, damaged))
    return volumes + strangers


def adoption(header: VolumeHeader, path: str, scans: Mapping[str, ScanResult], damaged: Iterable[str] = ()) -> Adopt:
    """What scans of a volume's copies say together. `damaged` are copies that a deeper check has found damaged before."""
    closed = [result.size for result in scans.values() if result.closed]
    batches: dict[int, Batch] = {}
    for result in sorted(scans.values(), key=lambda r: (r.closed, len(r.batches)), reverse=True):
        for batch in result.batches:
            if batch.number not in batches or (batch.head and not batches[batch.number].head):
                batches[batch.number] = batch
    states: dict[str, tuple[int, CopyState]] = {}
    for target, result in scans.items():
        broken = target in damaged or result.unreadable or any(d.kind is not DamageKind.ERASED for d in result.damage)
        length = result.size if result.closed else min(result.valid_length, result.size)
        whole = CopyState.COMPLETE if result.closed else CopyState.PARTIAL if closed else CopyState.LIVE
        states[target] = (length, CopyState.DAMAGED if broken else whole)
    return Adopt(header, path, tuple(batches[number] for number in sorted(batches)), states, max(closed) if closed else None)
