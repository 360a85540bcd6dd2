"""What volumes there are: every target listed, every file's identity known, copies of one volume brought together.

    target a: main/2026-11-23/07-45-10Z….mp4 ─┐
    target b: main/2026-11-23/07-45-10Z….mp4 ─┴─▶ Volume(id, header, copies on a and b)

A volume is its id, which stands in its header; a path is only where its copies lie. What the catalog knows of closed
copies (`known`) need not be read again: everything else costs one or two small reads per file. Nothing is changed here.
A copy whose header is unreadable is counted to the volume whose other copies have the same path.
"""

from __future__ import annotations

import errno
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from nvrstore.errors import FormatError, TargetError, TargetIOError
from nvrstore.journal.header import header_length, read_header
from nvrstore.journal.index import index_place, read_index
from nvrstore.journal.model import VolumeHeader
from nvrstore.journal.names import VolumeName, is_day, journal_dir, parse_volume_path
from nvrstore.journal.scan import Read, ScanResult, scan_volume
from nvrstore.limits import BLOCK_BYTES, KEEPER_PIECE_BYTES, KIB
from nvrstore.targets.contract import UNAVAILABLE, Answer, Call, Request, Steps, Verb
from nvrstore.targets.look import IDENTITY_PATH
from nvrstore.targets.steps import ask, expect, list_all

T = TypeVar("T")
HEADER_GUESS_BYTES: Final = 64 * KIB  # the header of a hundred streams fits: mostly one read


@dataclass(frozen=True, slots=True)
class VolumeCopy:
    """One file on one target."""

    target: str
    path: str
    size: int
    mtime_ns: int
    name: VolumeName
    closed: bool = False  # its index is whole, or the catalog says so
    problem: str = ""  # why its header cannot be read


@dataclass(frozen=True, slots=True)
class Known:
    """What the catalog knows of a closed copy."""

    volume_id: str
    size: int


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume and its copies, by target. `header` is kept only where a copy is not closed: headers of a month would fill the memory."""

    volume_id: str
    name: VolumeName
    copies: Mapping[str, VolumeCopy]
    header: VolumeHeader | None = None

    @property
    def settled(self) -> bool:
        """Every copy is closed, readable, and as long as the others: nothing to recover."""
        return all(copy.closed and not copy.problem for copy in self.copies.values()) and len({c.size for c in self.copies.values()}) == 1


@dataclass(frozen=True, slots=True)
class Survey:
    """All volumes of a journal on the targets that answered, in the order of writing."""

    volumes: tuple[Volume, ...]
    strangers: tuple[VolumeCopy, ...]  # files with a volume's name whose header cannot be read, here nor elsewhere
    answered: tuple[str, ...]
    failed: Mapping[str, TargetError]


def list_volumes(target: str, journal: str) -> Steps[list[VolumeCopy]]:
    """The files of `journal` on `target` that have a volume's name, in the order of writing. Raises TargetError."""
    found: list[VolumeCopy] = []
    root = journal_dir(journal)
    for day in (yield from list_all(target, root, missing_ok=True)):
        if not day.directory or not is_day(day.name):
            continue
        for file in (yield from list_all(target, f"{root}/{day.name}", missing_ok=True)):
            name = parse_volume_path(f"{root}/{day.name}/{file.name}")
            if name is not None and not file.directory:
                found.append(VolumeCopy(target, name.path, file.size, file.mtime_ns, name))
    return sorted(found, key=lambda copy: copy.name)


def survey(targets: Sequence[str], journal: str, known: Mapping[tuple[str, str], Known] | None = None) -> Steps[Survey]:
    """List the journal on every target and bring copies together. `known`: closed copies by (target, path)."""
    known = known or {}
    failed: dict[str, TargetError] = {}
    copies: dict[str, dict[str, list[VolumeCopy]]] = {}  # by volume id, by target
    headers: dict[str, VolumeHeader] = {}
    puzzling: list[VolumeCopy] = []
    answered: list[str] = []
    for target in targets:
        try:
            identified = yield from _identify(target, journal, known)
            # Asked behind the listing: a mount point that went bare meanwhile shows no volume, and has every one of them.
            yield from ask(target, Request(Verb.STAT, IDENTITY_PATH), "see whether it is still mounted")
        except TargetError as error:
            failed[target] = error
            continue
        answered.append(target)
        for copy, volume_id, header in identified:
            if not volume_id:
                puzzling.append(copy)
                continue
            copies.setdefault(volume_id, {}).setdefault(target, []).append(copy)
            if header is not None and not copy.closed:
                headers[volume_id] = header
    strangers: list[VolumeCopy] = []
    for copy in puzzling:
        ids = sorted(
            i for i, some in copies.items() if copy.target not in some and any(c.path == copy.path for cs in some.values() for c in cs)
        )
        if len(ids) == 1:
            copies[ids[0]][copy.target] = [copy]
        else:
            strangers.append(copy)
    volumes = [
        Volume(volume_id, min(c.name for cs in some.values() for c in cs), _one_each(some), headers.get(volume_id))
        for volume_id, some in copies.items()
    ]
    return Survey(tuple(sorted(volumes, key=lambda v: (v.name, v.volume_id))), tuple(strangers), tuple(answered), failed)


def begun_since(seen: Survey, tag: str, begun: Mapping[int, int]) -> set[str]:
    """Paths of the volumes that the writer `tag` began while the survey went on. `begun`: how many each lane had begun before it.

    Such a volume may have lived and ended meanwhile, so that nobody writes it any more; yet a target that was listed before
    shows nothing of it, and its copy on a member that was lost would pass for the only one.
    """
    return {
        copy.path
        for volume in seen.volumes
        for copy in volume.copies.values()
        if copy.name.tag == tag and copy.name.number >= begun.get(copy.name.lane, 0)
    }


def _one_each(copies: Mapping[str, Iterable[VolumeCopy]]) -> dict[str, VolumeCopy]:
    """One file per target: the longest. (Two names of one volume on one target: somebody copied files by hand.)"""
    return {target: max(some, key=lambda copy: (copy.closed, copy.size, copy.path)) for target, some in copies.items()}


def _identify(
    target: str, journal: str, known: Mapping[tuple[str, str], Known]
) -> Steps[list[tuple[VolumeCopy, str, VolumeHeader | None]]]:
    identified: list[tuple[VolumeCopy, str, VolumeHeader | None]] = []
    for copy in (yield from list_volumes(target, journal)):
        fact = known.get((target, copy.path))
        if fact is not None and fact.size == copy.size:
            identified.append((replace(copy, closed=True), fact.volume_id, None))
            continue
        try:
            header = yield from read_header_of(target, copy.path)
            closed = yield from is_closed(target, copy.path, copy.size, header)
        except FormatError as error:
            identified.append((replace(copy, problem=error.message), "", None))
        except TargetIOError as error:
            if error.errno == errno.ENOENT:
                continue  # pruned since it was listed
            if error.errno in _GONE:
                raise
            identified.append((replace(copy, problem=error.message), "", None))
        else:
            identified.append((replace(copy, closed=closed), header.volume_id, header))
    return identified


def read_header_of(target: str, path: str) -> Steps[VolumeHeader]:
    """The header of the volume at `path`. Raises FormatError, DamagedError, TargetError."""
    data = bytearray()
    need = HEADER_GUESS_BYTES
    while len(data) < need:
        length = min(need - len(data), KEEPER_PIECE_BYTES)
        answer = yield from ask(target, Request(Verb.READ, path, offset=len(data), length=length), f"read {path}")
        data += answer.data
        need = header_length(data, path=path)
        if len(answer.data) < length:
            break
    return read_header(data, path)[0]


def is_closed(target: str, path: str, size: int, header: VolumeHeader) -> Steps[bool]:
    """Whether the volume was closed and its index is whole: its last block alone may have come through a power cut. Raises TargetError."""
    if size < 2 * BLOCK_BYTES or size % BLOCK_BYTES:
        return False
    request = Request(Verb.READ, path, offset=size - BLOCK_BYTES, length=BLOCK_BYTES, fresh=True)
    block = yield from ask(target, request, f"read {path}")
    place = index_place(block.data, size)
    if place is None:
        return False
    index = bytearray()
    while len(index) < place.length:
        length = min(place.length - len(index), KEEPER_PIECE_BYTES)
        request = Request(Verb.READ, path, offset=place.offset + len(index), length=length, fresh=True)
        answer = yield from ask(target, request, f"read {path}")
        if not answer.data:
            return False
        index += answer.data
    try:
        read_index(index, place.offset, header, path=path)
    except FormatError:
        return False
    return True


def scan_copy(
    target: str,
    path: str,
    size: int,
    *,
    header: VolumeHeader | None = None,
    committed: int = -1,
    known_end: int = 0,
    deep: bool = False,
    fresh: bool = True,
) -> Steps[ScanResult]:
    """Scan one file (journal/scan.py). What the device does not give is `unreadable` in the result; a target that does not
    answer at all raises `TargetUnavailableError`, a file that is not there `TargetIOError`.
    """
    scan = scan_volume(size, header=header, committed=committed, known_end=known_end, deep=deep, fresh=fresh, path=path)
    return (yield from read_for(scan, target, path))


def read_for(wishes: Generator[Read, bytes | None, T], target: str, path: str) -> Steps[T]:
    """Carry out what a scan wishes to read."""
    try:
        wish = next(wishes)
        while True:
            answer = yield Call(target, Request(Verb.READ, path, offset=wish.offset, length=wish.length, fresh=wish.fresh))
            wish = wishes.send(_bytes(answer, target, path))
    except StopIteration as stop:
        value: T = stop.value
        return value
    finally:
        wishes.close()


def _bytes(answer: Answer, target: str, path: str) -> bytes | None:
    """None where this place of the file cannot be read; raises where the trouble is not one of this place."""
    if answer.ok:
        return answer.data
    if answer.errno in _WHOLE_FILE:
        expect(answer, target, f"read {path}")
    return None


#: Errors of a target rather than of a file.
_GONE: Final = frozenset({errno.ENODEV, errno.ENOTCONN, errno.ESTALE, errno.ESHUTDOWN, errno.ECONNRESET})
#: Errors that are not about one place of a file: asking for the next piece would only take as long again.
_WHOLE_FILE: Final = frozenset({UNAVAILABLE, errno.ENOENT, errno.EACCES, errno.EPERM, *_GONE})
