"""What does one durable commit cost on the disk at hand, and how does the way of writing matter?

Run: python benchmarks/bench_journal.py [--dir DIR] [--mb 256] [--commits 200] [--json]

Question: MB/s, and milliseconds per commit, for the ways in which a journal can be made durable.
Method:   batches are appended to a file, one after the other, each durable before the next: `buffered` (write + fdatasync, a growing
          file), `direct` (O_DIRECT into preallocated space + fdatasync), `dsync` (O_DIRECT into preallocated space, RWF_DSYNC), and
          `worker`: the same as dsync, by nvrstore's own appender process, request and answer included. Three sizes of batch; the bytes
          come from memory that is filled beforehand. The ways take turns, round by round, so that a disk that gets slower does so for
          all of them; medians are what counts.
          Before anything is counted the file is read past the page cache, and every batch compared by CRC-32C.
Peer:     `buffered`, the way that every recorder without a journal writes; `ratio` is its milliseconds divided by the mode's.
Reports:  a table, or with --json one JSON object per line: {bench, host, mode, batch_bytes, unit, value, p99_ms, mb_per_s, peer, ratio}.
"""

from __future__ import annotations

import argparse
import errno
import json
import mmap
import os
import platform
import select
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nvrstore.checksum import crc32c
from nvrstore.extents import Extent
from nvrstore.limits import BLOCK_BYTES, KIB, MIB
from nvrstore.targets.contract import Request, Verb
from nvrstore.targets.directory import DirectoryTarget
from nvrstore.targets.identity import init_target
from nvrstore.targets.pool import Pool
from nvrstore.targets.steps import run_steps

SIZES: Final = (64 * KIB, MIB, 8 * MIB)
ROUNDS: Final = 4
ANSWER_S: Final = 60.0
Commit = Callable[[Extent, int], None]  # makes an extent durable at an offset of the file


@contextmanager
def plain(path: Path, pool: Pool, length: int, *, mode: str) -> Iterator[Commit]:
    """Commits by this process itself, in one of the three plain modes."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | (0 if mode == "buffered" else os.O_DIRECT)
    fd = os.open(path, flags)
    try:
        if mode != "buffered":
            os.posix_fallocate(fd, 0, length)
            os.fsync(fd)

        def commit(extent: Extent, offset: int) -> None:
            rwf = os.RWF_DSYNC if mode == "dsync" else 0
            if os.pwritev(fd, [pool.view(extent)], offset, rwf) != extent.length:
                raise OSError(errno.EIO, "short write")
            if mode != "dsync":
                os.fdatasync(fd)

        yield commit
    finally:
        os.close(fd)


@contextmanager
def worker(path: Path, pool: Pool, length: int) -> Iterator[Commit]:
    """Commits by an appender process, as the recorder makes them."""
    root = path.with_suffix(".target")
    root.mkdir()
    target = DirectoryTarget("bench", root)
    appender = None
    try:
        run_steps(init_target("bench"), {"bench": target}, timeout_s=ANSWER_S)
        if not target.keeper.call(Request(Verb.PREPARE, "next", length=length), ANSWER_S).ok:
            raise RuntimeError("the volume could not be prepared")
        appender = target.start_appender(pool)
        ready = select.poll()
        ready.register(appender.fileno(), select.POLLIN)

        def carried_out(request: Request) -> None:
            appender.submit(request)
            while not (answers := appender.answers()):
                if not ready.poll(1000 * ANSWER_S):
                    raise RuntimeError("no answer")
            if not answers[0].ok:
                raise OSError(answers[0].errno, os.strerror(answers[0].errno))

        # OPEN writes a header: the first block, which the first commit writes over.
        carried_out(Request(Verb.OPEN, "next", "volume", handle=1, extent=0, length=BLOCK_BYTES))
        (root / "volume").rename(path)

        def commit(extent: Extent, offset: int) -> None:
            carried_out(Request(Verb.APPEND, handle=1, offset=offset, extent=extent.offset, length=extent.length))

        yield commit
    finally:
        if appender is not None:
            appender.close(ANSWER_S)
        target.close(ANSWER_S)


def opened(mode: str, stack: ExitStack, path: Path, pool: Pool, length: int) -> Commit:
    """The file of one mode, open until the stack ends."""
    return stack.enter_context(worker(path, pool, length) if mode == "worker" else plain(path, pool, length, mode=mode))


@dataclass
class Run:
    """One way of writing one size of batch."""

    mode: str
    size: int
    path: Path
    commit: Commit
    offset: int = 0
    took_s: list[float] = field(default_factory=list)
    written: list[int] = field(default_factory=list)  # CRC-32C of each batch, in order

    def write(self, extents: list[tuple[Extent, int]], count: int) -> None:
        for _ in range(count):
            extent, crc = extents[len(self.written) % len(extents)]
            began = time.perf_counter()
            self.commit(extent, self.offset)
            self.took_s.append(time.perf_counter() - began)
            self.offset += extent.length
            self.written.append(crc)

    def verify(self) -> None:
        """Read what the medium has, and compare every batch. Raises RuntimeError where one differs."""
        memory = mmap.mmap(-1, self.size)
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECT)
        try:
            for i, crc in enumerate(self.written):
                if os.preadv(fd, [memory], i * self.size) != self.size or crc32c(memory) != crc:
                    raise RuntimeError(f"{self.mode}: batch {i} is not what was written")
        finally:
            os.close(fd)
            memory.close()

    @property
    def median_ms(self) -> float:
        return statistics.median(self.took_s) * 1e3

    @property
    def p99_ms(self) -> float:
        return sorted(self.took_s)[int(len(self.took_s) * 0.99)] * 1e3

    @property
    def mb_per_s(self) -> float:
        return self.offset / sum(self.took_s) / 1e6


def measure(folder: Path, size: int, commits: int) -> list[Run]:
    """All modes with batches of one size, verified."""
    pool = Pool(4 * size)
    extents = []
    for _ in range(4):
        extent = pool.alloc(size)
        if extent is None:
            raise RuntimeError("the pool is full")
        pool.view(extent)[:] = os.urandom(size)
        extents.append((extent, crc32c(pool.view(extent))))
    try:
        with ExitStack() as stack:
            runs = []
            for mode in ("buffered", "direct", "dsync", "worker"):
                path = folder / f"{mode}-{size}"
                runs.append(Run(mode, size, path, opened(mode, stack, path, pool, commits * size)))
            for _ in range(ROUNDS):
                for run in runs:
                    run.write(extents, commits // ROUNDS)
            for run in runs:
                run.verify()
        return runs
    finally:
        pool.close()


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, help="a directory on the disk to measure; default: the temporary directory")
    parser.add_argument("--mb", type=int, default=256, help="megabytes per mode and size of batch, at most")
    parser.add_argument("--commits", type=int, default=200, help="commits per mode and size of batch, at most")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-journal-", dir=options.dir))
    host = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    rows = []
    try:
        for size in SIZES:
            commits = max(ROUNDS, min(options.commits, options.mb * MIB // size)) // ROUNDS * ROUNDS
            runs = measure(folder, size, commits)
            peer = runs[0].median_ms
            for run in runs:
                ratio = round(peer / run.median_ms, 2)
                rows.append((run, ratio))
                if options.json:
                    line = {
                        "bench": "journal",
                        "host": host,
                        "mode": run.mode,
                        "batch_bytes": size,
                        "unit": "ms per commit, median",
                        "value": round(run.median_ms, 3),
                        "p99_ms": round(run.p99_ms, 3),
                        "mb_per_s": round(run.mb_per_s, 1),
                        "commits": len(run.took_s),
                        "peer": "buffered",
                        "ratio": ratio,
                    }
                    print(json.dumps(line), flush=True)
            shutil.rmtree(folder)
            folder.mkdir()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not options.json:
        print(f"{host}; every batch read back and compared\n")
        print(f"{'batch':>8}  {'mode':<9} {'median ms':>10} {'p99 ms':>9} {'MB/s':>8} {'times faster than buffered':>27}")
        for run, ratio in rows:
            shown = f"{run.size // MIB} MiB" if run.size >= MIB else f"{run.size // KIB} KiB"
            print(f"{shown:>8}  {run.mode:<9} {run.median_ms:>10.2f} {run.p99_ms:>9.2f} {run.mb_per_s:>8.0f} {ratio:>27.2f}")


if __name__ == "__main__":
    main()
