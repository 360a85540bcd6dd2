"""What a host may rely on: the recorder changes nothing of it, and ends when it is told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.recorder import Process, Site, init, small_farm

from nvrstore.farm import Farm

pytestmark = pytest.mark.slow


@pytest.fixture
def farm() -> Iterator[Farm]:
    with small_farm(2) as running:
        yield running


@pytest.fixture
def site(tmp_path: Path, farm: Farm) -> Site:
    return Site(tmp_path, farm)


def test_embedding_changes_nothing_of_the_host(site: Site) -> None:
    """No signal handler, no interpreter setting, no output, no fork; logging is silent until the host configures it."""
    program = f"""
import signal, sys, threading, anyio, nvrstore
def settings():
    return [signal.getsignal(n) for n in signal.valid_signals()], sys.getswitchinterval(), threading.stack_size(), sys.excepthook
async def main():
    before = settings()
    async with nvrstore.Recorder(nvrstore.Config.load({str(site.file)!r})) as recorder:
        await anyio.sleep(1.5)
        assert before == settings()
anyio.run(main)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_forked_child_is_told_so(site: Site) -> None:
    """Threads do not survive a fork: the child's copy must not pretend to record."""
    program = f"""
import os, anyio, nvrstore
async def main():
    async with nvrstore.Recorder(nvrstore.Config.load({str(site.file)!r})) as recorder:
        pid = os.fork()
        if pid == 0:
            try:
                recorder.statistics()
            except nvrstore.errors.ForkedError:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
anyio.run(main)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_end_of_the_process_does_not_wait_for_a_stuck_worker(site: Site) -> None:
    """SIGSTOP stands for a worker in the kernel: the recorder still ends in order and in time."""
    process = Process(site)
    stopped: list[int] = []
    try:
        process.wait_recording(2)
        stopped = process.workers()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        start = time.monotonic()
        status = process.end(signal.SIGTERM, timeout_s=15)
        assert time.monotonic() - start < 10
        assert status == 0
    finally:
        for pid in stopped:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def test_init_makes_a_target(tmp_path: Path) -> None:
    """The helper of these tests does what `nvrstore target init` does."""
    init(tmp_path / "t")
    assert (tmp_path / "t" / "target.json").exists()
