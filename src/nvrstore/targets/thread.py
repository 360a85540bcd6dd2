"""Workers in threads, for hosts that cannot spawn processes, and for tests.

The same program, channel and stamps as in a process. The difference is what happens when the target hangs: a thread that
is stuck in the kernel cannot be killed, and keeps its whole process from exiting. Descriptors on the target are in this
process here, which is what `isolation = "process"`, the default, exists to avoid.
"""

from __future__ import annotations

import mmap
import os
import socket
import threading

from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.targets.process import Stamps
from nvrstore.worker import wire
from nvrstore.worker.serve import work


def start(kind: str, root: str, guard: str, *, memory_fd: int, target: str) -> ThreadWorker:
    """Start a worker thread; it says hello on its channel."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stamps = Stamps()
    stamps.close_fd()
    access = mmap.ACCESS_WRITE if kind == "keeper" else mmap.ACCESS_READ
    memory = mmap.mmap(memory_fd, os.fstat(memory_fd).st_size, access=access)

    def run() -> None:
        with theirs:
            work(kind, root, guard, channel=theirs.fileno(), stamps=stamps.words, memory=memoryview(memory), parent_pid=0)

    thread = threading.Thread(target=run, name=f"nvrstore-{kind}-{target}", daemon=True)
    thread.start()
    return ThreadWorker(thread, ours, stamps.words)


class ThreadWorker:
    """A worker in a thread of this process."""

    def __init__(self, thread: threading.Thread, channel: socket.socket, stamps: memoryview) -> None:
        self.channel, self.stamps = channel, stamps
        self.started_s = SYSTEM_CLOCK.monotonic_s()
        self._thread = thread

    def kill(self) -> None:
        """Forbid, and hang up: it ends before its next system call on the target. One that is stuck stays."""
        self.stamps[wire.ABANDONED] = 1
        try:
            self.channel.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has hung up already

    def gone(self) -> bool:
        return not self._thread.is_alive()

    def wait(self, timeout_s: float) -> bool:
        self._thread.join(timeout_s)
        return self.gone()
