"""The leak check of every test sees what a test can leave behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from tests.conftest import children, descriptors, mounts, threads


def test_a_thread_that_goes_on_is_seen() -> None:
    """Threads are named in the complaint, and no longer once they have ended."""
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="forgotten")
    thread.start()
    try:
        assert "forgotten" in threads().values()
    finally:
        stop.set()
        thread.join()
    assert "forgotten" not in threads().values()


def test_a_child_that_lives_or_was_never_waited_for_is_seen() -> None:
    """Living children and those that nobody waited for count; also those that another thread started."""
    started: list[subprocess.Popen[bytes]] = []
    starter = threading.Thread(target=lambda: started.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)))
    starter.start()
    starter.join()
    (child,) = started
    assert str(child.pid) in children()
    assert child.stdin is not None
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert str(child.pid) in children()
    child.wait()
    assert str(child.pid) not in children()


def test_an_open_descriptor_is_seen() -> None:
    """Descriptors are told by number and what they are open on."""
    before = descriptors()
    fd = os.memfd_create("left-behind")
    try:
        assert [what for key, what in descriptors().items() if key not in before] == [f"{fd} /memfd:left-behind (deleted)"]
    finally:
        os.close(fd)
    assert descriptors() == before


def test_mounts_are_told_by_where_they_are() -> None:
    """A mount that a test forgets is found below its directory; those of other tests, which run beside it, are not its own."""
    assert "/proc" in mounts(Path("/")).values()
    assert mounts(Path("/proc/self")) == {}
