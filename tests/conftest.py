"""What holds for every test: it runs on both event loops where it is async, and it leaves nothing behind.

The leak check compares threads, child processes, open descriptors and mounts before and after each test (fixtures of a
wider scope are set up before it looks). What is on its way out gets a moment; what stays fails the test by name.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest
from hypothesis import settings
from tests.support.prove import note

from nvrstore.clock import SYSTEM_CLOCK

LEAVE_S: Final = 3.0  # so long may something take to go after its test has ended

#: Threads that belong to a library's cache and end by themselves.
CACHED_THREADS: Final = ("Trio thread", "AnyIO worker thread")

#: Processes that multiprocessing keeps until the interpreter ends.
CACHED_PROCESSES: Final = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.register_profile("many", deadline=None, max_examples=2000, database=None)
settings.load_profile(os.environ.get("NVRSTORE_HYPOTHESIS", "repeatable"))


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Tests marked `anyio` run twice: on asyncio and on trio."""
    return str(request.param)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need root say so instead of failing without it."""
    if os.geteuid() != 0:
        for item in items:
            if item.get_closest_marker("root"):
                item.add_marker(pytest.mark.skip(reason="needs root"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """`./run prove` keeps how many tests went which way."""
    counts = {kind: len(terminalreporter.stats.get(kind, [])) for kind in ("passed", "failed", "error", "skipped")}
    note("tests", **counts, hypothesis=os.environ.get("NVRSTORE_HYPOTHESIS", "repeatable"))


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    looks: dict[str, Callable[[], dict[object, str]]] = {
        "thread": threads,
        "child process": children,
        "descriptor": descriptors,
        "mount": partial(mounts, tmp_path_factory.getbasetemp()),
    }
    before = {kind: look() for kind, look in looks.items()}
    yield
    deadline_s = SYSTEM_CLOCK.monotonic_s() + LEAVE_S
    pause = threading.Event()
    while left := [f"{kind}: {what}" for kind, look in looks.items() for key, what in look().items() if key not in before[kind]]:
        gc.collect()
        if SYSTEM_CLOCK.monotonic_s() > deadline_s:
            pytest.fail("the test left behind\n  " + "\n  ".join(left), pytrace=False)
        pause.wait(0.01)


def threads() -> dict[object, str]:
    """Living threads."""
    return {t.ident: t.name for t in threading.enumerate() if t.is_alive() and not t.name.startswith(CACHED_THREADS)}


def children() -> dict[object, str]:
    """Child processes of this one, also those that ended and were never waited for."""
    found: dict[object, str] = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            pids = (task / "children").read_text().split()
        except OSError:
            continue  # the thread has ended meanwhile
        for pid in pids:
            try:
                name = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue
            if not any(cached in name for cached in CACHED_PROCESSES):
                found[pid] = f"{pid} {name or '(ended, not waited for)'}"
    return found


def descriptors() -> dict[object, str]:
    """Open descriptors, each by number and what it is open on: a number that was reused counts as new."""
    found: dict[object, str] = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            where = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue  # the listing's own
        if not where.startswith("/proc/"):
            found[number, where] = f"{number} {where}"
    return found


def mounts(below: Path) -> dict[object, str]:
    """File systems mounted below a directory. The table is everybody's: what other processes mount elsewhere is their business."""
    lines = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return {fields[0]: fields[4] for fields in lines if Path(fields[4]).is_relative_to(below)}
