"""Every frame looked up in what is on disk: the proof behind demo, drills and benchmarks.

    volumes of one target --scan, every payload checked--> fragments per stream --> samples --> stamps of the farm --> FrameReport

Reads volumes directly, with the format's own scan and nothing of the recorder, its catalog or its reader, so that a
mistake of theirs cannot hide a lost frame. For directories on the local machine that nobody writes any more.
"""

from __future__ import annotations

import filecmp
import mmap
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from nvrstore.farm import FrameReport, check_access_units
from nvrstore.journal.model import FragmentEntry
from nvrstore.journal.names import parse_volume_path
from nvrstore.journal.scan import scan_volume
from nvrstore.media.samples import samples_of
from nvrstore.model import Media, Record


@dataclass(frozen=True, slots=True)
class Account:
    """What one target holds of a journal."""

    reports: dict[str, FrameReport]  # by stream
    damage: tuple[str, ...]  # in words, with their places
    records: tuple[Record, ...]
    volumes: int
    bytes: int


def volumes_in(root: Path, journal: str) -> list[Path]:
    """Paths of the volumes below `root`, relative to it, in the order of writing."""
    names = [parse_volume_path(str(path.relative_to(root))) for path in (root / journal).glob("*/*.mp4")]
    return [Path(name.path) for name in sorted(name for name in names if name is not None)]


def take_account(root: Path, journal: str) -> Account:
    """Look at every volume of `journal` on the target at `root`."""
    places: dict[str, list[tuple[int, int, memoryview]]] = defaultdict(list)
    damage: list[str] = []
    records: list[Record] = []
    length = 0
    with ExitStack() as stack:
        paths = volumes_in(root, journal)
        for path in paths:
            view = stack.enter_context(_mapped(root / path))
            length += len(view)
            scan = scan_volume(len(view), deep=True, path=str(path))
            wish = next(scan)
            while True:
                try:
                    wish = scan.send(bytes(view[wish.offset : wish.offset + wish.length]))
                except StopIteration as stop:
                    result = stop.value
                    break
            damage += [f"{path}: {what}" for what in result.damage]
            if result.header is None:
                damage.append(f"{path}: {result.problem}")
                continue
            for batch in result.batches:
                records.extend(batch.records)
                for entry in batch.entries:
                    track = result.header.tracks[entry.track_id - 1].track
                    if track.media is Media.VIDEO:
                        places[track.stream].append(_place(entry, batch.offset, view))
        reports = {stream: check_access_units(_units(found)) for stream, found in places.items()}
        places.clear()
    return Account(reports, tuple(damage), tuple(records), len(paths), length)


def differences(a: Path, b: Path, journal: str) -> list[str]:
    """Volumes that are not the same bytes on both targets, in words; empty: the copies are equal."""
    names = sorted({*volumes_in(a, journal), *volumes_in(b, journal)})
    found = []
    for name in names:
        if not (a / name).exists() or not (b / name).exists():
            found.append(f"{name}: only on one target")
        elif not filecmp.cmp(a / name, b / name, shallow=False):
            found.append(f"{name}: other bytes")
    return found


def _place(entry: FragmentEntry, batch_offset: int, view: memoryview) -> tuple[int, int, memoryview]:
    start = batch_offset + entry.offset
    return entry.session, entry.index, view[start : start + entry.length]


def _units(found: list[tuple[int, int, memoryview]]) -> Iterator[memoryview]:
    """Access units in the order of recording. A fragment that is there twice (replayed, say) is looked at once."""
    seen: set[tuple[int, int]] = set()
    order = {session: i for i, session in enumerate(dict.fromkeys(session for session, _, _ in found))}
    for session, index, view in sorted(found, key=lambda place: (order[place[0]], place[1])):
        if (session, index) not in seen:
            seen.add((session, index))
            for sample in samples_of(view):
                yield sample.data


class _mapped:
    """A file, mapped for reading."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._map = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(fd)

    def __enter__(self) -> memoryview:
        return memoryview(self._map)

    def __exit__(self, *_: object) -> None:
        pass  # views of it may live on; it is unmapped with the last of them
