"""Targets of every kind for tests: built by name, closed after, nothing left behind."""

from __future__ import annotations

import select
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from nvrstore.extents import Extent
from nvrstore.limits import BLOCK_BYTES
from nvrstore.targets.contract import Answer, Appender, Request, Steps, Target, Verb
from nvrstore.targets.directory import DirectoryTarget
from nvrstore.targets.faulty import FaultyTarget
from nvrstore.targets.identity import init_target
from nvrstore.targets.memory import MemoryTarget
from nvrstore.targets.pool import Pool
from nvrstore.targets.steps import run_steps

T = TypeVar("T")

#: Bound of every wait in these tests: far beyond what a loaded machine needs, and no test waits for it when all is well.
PATIENCE_S = 20.0
KINDS = ("memory", "process", "thread", "faulty-memory", "faulty-process")


@contextmanager
def target_of(kind: str, path: Path, *, initialised: bool = True) -> Iterator[Target]:
    """A target named "t" of one of the KINDS, in the directory `path` where it is one."""
    faulty, _, below = kind.rpartition("-")
    inner: Target
    inner = MemoryTarget("t", blank=not initialised) if below == "memory" else DirectoryTarget("t", path, isolation=below)
    target: Target = FaultyTarget(inner) if faulty else inner
    try:
        if initialised and below != "memory":
            run(target, init_target("t"))
        yield target
    finally:
        assert target.close(PATIENCE_S), "every worker ended"


def run(target: Target, steps: Steps[T]) -> T:
    """Drive steps that concern this target alone."""
    targets: Mapping[str, Target] = {target.name: target}
    return run_steps(steps, targets, timeout_s=PATIENCE_S)


def ask(target: Target, verb: Verb, path: str = "", path2: str = "", **fields: object) -> Answer:
    """One call to the keeper."""
    return target.keeper.call(Request(verb, path, path2, **fields), PATIENCE_S)  # type: ignore[arg-type]


def answers(appender: Appender, count: int) -> list[Answer]:
    """Wait for `count` answers."""
    got: list[Answer] = []
    while len(got) < count:
        ready, _, _ = select.select([appender.fileno()], [], [], PATIENCE_S)
        if not ready:
            raise TimeoutError(f"{len(got)} of {count} answers")
        got += appender.answers()
    return got


def block(pool: Pool, byte: bytes, blocks: int = 1) -> Extent:
    """An extent filled with one byte."""
    extent = pool.alloc(blocks * BLOCK_BYTES)
    if extent is None:
        raise MemoryError("the test's pool is full")
    pool.view(extent)[:] = byte * extent.length
    return extent


def open_volume(appender: Appender, pool: Pool, *, handle: int = 1, prepared: str = "j/.next/p", name: str = "j/day/v.mp4") -> int:
    """Submit an OPEN with a header of one block of `H`."""
    header = block(pool, b"H")
    return appender.submit(Request(Verb.OPEN, prepared, name, handle=handle, extent=header.offset, length=header.length))


def append(appender: Appender, extent: Extent, *, offset: int, handle: int = 1) -> int:
    return appender.submit(Request(Verb.APPEND, handle=handle, offset=offset, extent=extent.offset, length=extent.length))
