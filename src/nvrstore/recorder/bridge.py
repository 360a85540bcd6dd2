"""From the recorder's threads to the host's event loop, on asyncio and trio alike.

A thread that must never wait writes to an eventfd; the host's task waits until it is readable. Nothing is ever run in
the host's loop by us, and a loop that is blocked for ten seconds blocks nobody here.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

import anyio
from anyio.abc import ObjectReceiveStream

T = TypeVar("T")


class Bell:
    """Rung from any thread, heard by one task."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()  # nobody writes to a descriptor that was closed and belongs to somebody else by now
        self._open = True

    def ring(self) -> None:
        with self._lock:
            if self._open:
                os.eventfd_write(self._fd, 1)

    async def wait(self) -> None:
        """Return when it was rung since the last time. Raises ClosedResourceError when it is closed meanwhile."""
        await anyio.wait_readable(self._fd)
        os.eventfd_read(self._fd)

    def close(self) -> None:
        with self._lock:
            if not self._open:
                return
            self._open = False
        anyio.notify_closing(self._fd)
        os.close(self._fd)


class Inbox(ObjectReceiveStream[T], Generic[T]):
    """Values that threads produce, as a stream. `take` returns what waits, `closed` says that nothing more comes."""

    def __init__(self, bell: Bell, take: Callable[[], list[T]], closed: Callable[[], bool], leave: Callable[[], object]) -> None:
        self._bell, self._take, self._ended, self._leave = bell, take, closed, leave
        self._waiting: deque[T] = deque()
        self._left = False

    async def receive(self) -> T:
        """The next value. Raises EndOfStream when nothing more comes, ClosedResourceError after `aclose`."""
        while not self._waiting:
            if self._left:
                raise anyio.ClosedResourceError
            ended = self._ended()
            self._waiting.extend(self._take())
            if self._waiting:
                break
            if ended:
                raise anyio.EndOfStream
            await self._bell.wait()
        else:
            await anyio.lowlevel.checkpoint()
        return self._waiting.popleft()

    async def aclose(self) -> None:
        if not self._left:
            self._left = True
            self._leave()
            self._bell.close()


async def settled(future: Future[T]) -> T:
    """The result of a future that a thread completes. Cancelling the wait leaves the future alone."""
    if not future.done():
        bell = Bell()

        def done(_: Future[Any]) -> None:
            bell.ring()

        future.add_done_callback(done)
        try:
            await bell.wait()
        finally:
            bell.close()
    return future.result()
