"""Crash states of a real file system: what a power cut at any moment may leave, each of them mounted and looked at.

    recorder --writes--> ext4 on a loop device --> a file through FUSE (crash_fuse.py) --> log of writes, flushes, acknowledgements
    for a place in the log: all writes before its last flush, and a random subset of those behind it --> image --> mount --> check

A write behind the last flush may have reached the disk or not, in any order: that is what a disk with a cache promises.
Needs root, FUSE, loop devices.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from tests.support.crash_fuse import ENTRY
from tests.support.volumes import scan

MIB: Final = 1 << 20
MKFS: Final = {
    "ext4": (24 * MIB, ["mkfs.ext4", "-q", "-F", "-O", "^resize_inode"]),
    "xfs": (300 * MIB, ["mkfs.xfs", "-q", "-f"]),
}
SECTOR_BYTES: Final = 512

Identity = tuple[str, int, int]


def run(*command: str | Path) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout.strip()


@dataclass
class Entry:
    """One line of the log."""

    kind: bytes
    number: int
    data: bytes = field(repr=False, default=b"")


class LoggedDisk:
    """A file system on a disk that writes everything down."""

    def __init__(self, fstype: str, folder: Path) -> None:
        self.fstype, self.folder = fstype, folder
        self.backing, self.base, self.log = folder / "backing", folder / "base", folder / "log"
        self.fuse, self.path = folder / "fuse", folder / "disk"
        self._daemon: subprocess.Popen[str] | None = None

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        """Made, mounted, and unmounted afterwards."""
        size, mkfs = MKFS[self.fstype]
        with self.backing.open("wb") as file:
            file.truncate(size)
        run(*mkfs, self.backing)
        run("cp", "--sparse=always", self.backing, self.base)
        for folder in (self.fuse, self.path):
            folder.mkdir()
        program = Path(__file__).with_name("crash_fuse.py")
        command = [sys.executable, "-P", str(program), str(self.backing), str(self.fuse), str(self.log)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as daemon:
            self._daemon = daemon
            try:
                self._hear("ready")
                loop = run("losetup", "--find", "--show", self.fuse / "disk")
                try:
                    run("mount", loop, self.path)
                    try:
                        yield self.path
                    finally:
                        run("umount", self.path)
                finally:
                    run("losetup", "--detach", loop)
            finally:
                run("umount", "--lazy", self.fuse)
                if daemon.stdin is not None:
                    daemon.stdin.close()
                daemon.wait()

    def _hear(self, word: str) -> None:
        if self._daemon is None or self._daemon.stdout is None or self._daemon.stdout.readline().strip() != word:
            raise RuntimeError("the daemon of the disk is gone")

    def mark(self, number: int) -> None:
        """From here on mark `number` is in the log."""
        if self._daemon is None or self._daemon.stdin is None:
            raise RuntimeError("the disk is not mounted")
        self._daemon.stdin.write(f"mark {number}\n")
        self._daemon.stdin.flush()
        self._hear("done")

    def entries(self) -> list[Entry]:
        """The whole log."""
        raw = self.log.read_bytes()
        found, at = [], 0
        while at < len(raw):
            kind, number, length = ENTRY.unpack_from(raw, at)
            at += ENTRY.size
            found.append(Entry(kind, number, raw[at : at + length]))
            at += length
        return found


@dataclass(frozen=True)
class CrashState:
    """A power cut behind `cut` entries. `marks`: what was acknowledged by then."""

    cut: int
    kept: tuple[int, ...]  # of the writes behind the last flush: those that arrived; the last may be torn
    torn: bool
    marks: int


def crash_states(entries: list[Entry], count: int | None, rng: Random) -> Iterator[CrashState]:
    """States over the whole log, in its order: every kind of subset of the un-flushed, none and all among them.

    `count` of them, every other one cut right behind an acknowledgement: a sync that had to come first is missing there, or nowhere.
    None: behind every entry from the first acknowledgement on, once. Subsets are always a sample: n un-flushed writes have 2^n.
    """
    for cut in _cuts(entries, count, rng):
        flushed = max((i for i in range(cut) if entries[i].kind == b"F"), default=-1)
        loose = [i for i in range(flushed + 1, cut) if entries[i].kind == b"W"]
        share = rng.choice([0.0, 0.3, 0.7, 1.0])
        kept = tuple(i for i in loose if rng.random() < share)
        marks = max((entry.number for entry in entries[:cut] if entry.kind == b"M"), default=-1)
        yield CrashState(cut, kept, rng.random() < 0.3, marks)


def _cuts(entries: list[Entry], count: int | None, rng: Random) -> list[int]:
    marks_at = [i for i, entry in enumerate(entries) if entry.kind == b"M"]
    if count is None:
        return list(range(marks_at[0] + 1, len(entries) + 1))
    first, step = marks_at[0], max(1, (len(entries) - marks_at[0] - 1) // count)
    anywhere = [first + 1 + (len(entries) - first - 1) * n // count + rng.randrange(step) for n in range(0, count, 2)]
    behind = [marks_at[len(marks_at) * n // count] + 1 for n in range(1, count, 2)]
    return sorted(min(cut, len(entries)) for cut in anywhere + behind)


class Replay:
    """Builds crash states one after the other; the flushed prefix only grows."""

    def __init__(self, disk: LoggedDisk, entries: list[Entry], rng: Random) -> None:
        self._disk, self._entries, self._rng = disk, entries, rng
        self._flushed = disk.folder / "flushed"
        self._image = disk.folder / "image"
        run("cp", "--sparse=always", disk.base, self._flushed)
        self._applied = 0

    @contextmanager
    def state(self, state: CrashState) -> Iterator[Path]:
        """That state, mounted. States come in the order of the log."""
        flushed = max((i for i in range(state.cut) if self._entries[i].kind == b"F"), default=-1)
        self._write(self._flushed, [i for i in range(self._applied, flushed + 1) if self._entries[i].kind == b"W"])
        self._applied = max(self._applied, flushed + 1)
        run("cp", "--sparse=always", self._flushed, self._image)
        self._write(self._image, list(state.kept), torn=state.torn)
        # The journal of the file system was cut off too: mounting replays it.
        run("mount", "-o", "loop" + (",nouuid" if self._disk.fstype == "xfs" else ""), self._image, self._disk.path)
        try:
            yield self._disk.path
        finally:
            run("umount", self._disk.path)

    def _write(self, image: Path, which: list[int], *, torn: bool = False) -> None:
        fd = os.open(image, os.O_WRONLY)
        try:
            for i in which:
                entry = self._entries[i]
                data = entry.data
                if torn and i == which[-1]:
                    for at in range(0, len(data), SECTOR_BYTES):
                        if self._rng.random() < 0.5:
                            os.pwrite(fd, data[at : at + SECTOR_BYTES], entry.number + at)
                else:
                    os.pwrite(fd, data, entry.number)
        finally:
            os.close(fd)

    def close(self) -> None:
        for image in (self._flushed, self._image):
            image.unlink(missing_ok=True)


def look(root: Path) -> tuple[set[Identity], list[str]]:
    """Identities of all whole fragments below `root`, and what is wrong: damage is, a torn tail is not."""
    found: set[Identity] = set()
    wrong: list[str] = []
    for path in sorted(root.glob("main/*/*.mp4")):
        result = scan(path.read_bytes(), deep=True)
        if result.header is None:
            wrong.append(f"{path.name}: {result.problem}")
            continue
        damage = [d for d in result.damage if d.batch is not None and d.batch <= result.last_committed]
        if damage:
            wrong.append(f"{path.name}: {damage}")
        if result.batches and result.last_committed > result.batches[-1].number:
            wrong.append(f"{path.name}: batch {result.last_committed} was committed, and ends at {result.batches[-1].number}")
        for batch in result.batches:
            bad = {d.batch for d in result.damage}
            if batch.number in bad:
                continue
            for entry in batch.entries:
                found.add((result.header.tracks[entry.track_id - 1].track.stream, entry.session, entry.index))
    return found, wrong


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
