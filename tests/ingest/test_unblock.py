"""A thread that waits for the network is found by asking the kernel, and only its own socket is shut down."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from nvrstore.ingest.unblock import awaited_fds, shut_down_awaited

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs proc(5)")


class Waiting:
    """A thread that waits in `wait`, until it does."""

    def __init__(self, wait: Callable[[], object]) -> None:
        self._wait = wait
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._wait()
        except OSError:
            pass

    @property
    def tid(self) -> int:
        assert self.thread.native_id is not None
        return self.thread.native_id

    def until(self, condition: Callable[[int], bool]) -> None:
        """Until the kernel says that the thread waits there."""
        for _ in range(5000):
            if condition(self.tid):
                return
            self.thread.join(0.001)
        raise AssertionError("the thread never waited")

    def wake(self) -> None:
        self.until(shut_down_awaited)
        self.thread.join(10)
        assert not self.thread.is_alive()


@pytest.fixture
def pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    return near, far


@pytest.mark.parametrize("how", ["recv", "poll"])
def test_a_thread_that_waits_for_a_silent_peer_comes_back(how: str, pair: tuple[socket.socket, socket.socket]) -> None:
    """In `recv` the first argument is the descriptor; in `poll` it is an array in the thread's own memory."""
    near, far = pair

    def wait() -> None:
        if how == "recv":
            near.recv(1)
        else:
            poll = select.poll()
            poll.register(near, select.POLLIN)
            poll.poll()

    with near, far:
        waiting = Waiting(wait)
        waiting.until(lambda tid: awaited_fds(tid) == [near.fileno()])
        waiting.wake()
        assert near.fileno() >= 0  # shut down, not closed: it is somebody else's


def test_a_thread_that_waits_for_a_lock_touches_no_socket(pair: tuple[socket.socket, socket.socket]) -> None:
    """The argument of a futex is an address, too: what lies there is no array of descriptors."""
    near, far = pair
    lock = threading.Lock()
    lock.acquire()
    with near, far:
        waiting = Waiting(lambda: lock.acquire())
        waiting.until(lambda tid: Path(f"/proc/self/task/{tid}/syscall").read_text().split()[0].isdigit())
        assert awaited_fds(waiting.tid) == []
        assert not shut_down_awaited(waiting.tid)
        lock.release()
        waiting.thread.join(10)
        far.send(b"x")
        assert near.recv(1) == b"x"


def test_what_is_no_network_stream_is_left_alone() -> None:
    """A pipe, a datagram socket, a local socket: none of them is a camera's."""
    near, far = socket.socketpair()
    with near, far:
        waiting = Waiting(lambda: near.recv(1))
        waiting.until(lambda tid: awaited_fds(tid) == [near.fileno()])
        assert not shut_down_awaited(waiting.tid)
        far.send(b"x")
        waiting.thread.join(10)
        assert not waiting.thread.is_alive()


def test_a_thread_that_is_gone_waits_for_nothing() -> None:
    """The number of a thread may be stale."""
    waiting = Waiting(lambda: None)
    waiting.thread.join(10)
    assert awaited_fds(waiting.tid) == []
