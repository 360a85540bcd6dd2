"""One ingest worker, seen from the recorder: started, told, heard, ended.

    post ─▶ queue ─▶ writer thread ─▶ pipe ─▶ worker ─▶ pipe ─▶ reader thread ─▶ on_reports ... on_gone, once, last

Nobody who posts waits for a worker. One that says nothing for SILENT_S is killed: what it had handed over before is kept.

Invariant: after `on_gone` nothing of this worker is heard any more, whatever it still does.
"""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

from nvrstore.crew import main
from nvrstore.crew.messages import Command, Report, Setup, receive, send
from nvrstore.crew.outbox import LOOK_S
from nvrstore.crew.ring import RING_BYTES, RingReader
from nvrstore.telemetry import get_logger

START_S: Final = 60.0  # until its first word: a machine that starts everything at once is slow
SILENT_S: Final = 15.0  # a worker says how it is every LOOK_S
KILLED_S: Final = 1.0  # until then one that was killed is gone, or is heard no longer all the same

#: All that a worker needs of our environment: logins may stand in the rest.
_ENVIRONMENT: Final = (
    *("PATH", "HOME", "TMPDIR", "TZ", "TZDIR", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "LD_PRELOAD"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "http_proxy", "https_proxy", "no_proxy"),
)


log = get_logger("ingest.crew")


class Process:
    """A running worker, heard from `begin` on. Raises OSError when no process can be started."""

    def __init__(
        self,
        setup: Setup,
        pool_fd: int,
        on_reports: Callable[[Process, list[Report]], None],
        on_gone: Callable[[Process], None],
    ) -> None:
        self._on_reports, self._on_gone = on_reports, on_gone
        self._pipe, theirs = Pipe()
        ring_fd = -1
        try:
            ring_fd = os.memfd_create("nvrstore-ingest", os.MFD_CLOEXEC)
            os.ftruncate(ring_fd, RING_BYTES)
            self._memory = mmap.mmap(ring_fd, RING_BYTES)
            self._child = subprocess.Popen(
                [sys.executable, "-I", str(Path(main.__file__)), str(theirs.fileno()), str(ring_fd), str(pool_fd)],
                pass_fds=(theirs.fileno(), ring_fd, pool_fd),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                start_new_session=True,  # a terminal's Ctrl-C is for the recorder
            )
        except BaseException:
            self._pipe.close()
            raise
        finally:
            theirs.close()
            if ring_fd >= 0:
                os.close(ring_fd)
        view = memoryview(self._memory)
        self._ring = RingReader(view)
        view.release()
        self.pid: Final = self._child.pid
        self.reason = ""  # why it is gone
        self.gone = False  # `on_gone` was called
        self._queue: SimpleQueue[list[Any] | None] = SimpleQueue()
        self._queue.put([setup])
        self._writer = threading.Thread(target=self._write, name="nvrstore-crew-out", daemon=True)
        self._reader = threading.Thread(target=self._read, name="nvrstore-crew-in", daemon=True)

    def begin(self) -> None:
        """Tell and hear it from now on. Raises RuntimeError, and ends it, where no thread can be started."""
        try:
            self._writer.start()
            self._reader.start()
        except RuntimeError:
            self._queue.put(None)
            self.kill("no thread can be started")
            self._child.wait(KILLED_S)
            self._ring.close()
            self._memory.close()
            self._pipe.close()
            raise

    def post(self, command: Command) -> None:
        """Tell it something. One that is gone does not hear it."""
        self._queue.put([command])

    def copy(self, position: int, length: int) -> bytes:
        """Bytes of a live sample that a report tells of. Only while reports are handled."""
        return self._ring.copy(position, length)

    def release(self, end: int) -> None:
        """Everything in front of position `end` of the ring was copied."""
        self._ring.release(end)

    def kill(self, reason: str) -> None:
        """End it now. `on_gone` follows."""
        self.reason = self.reason or reason
        with suppress(ProcessLookupError):
            self._child.send_signal(signal.SIGKILL)

    def join(self, timeout_s: float) -> bool:
        """Wait until it is gone, and everything that it said was heard."""
        self._reader.join(timeout_s)
        return not self._reader.is_alive()

    def close(self) -> None:
        """Kill it, if it is still there; forget it. `wait_closed` follows."""
        self.kill("the recorder stops")
        self._queue.put(None)

    def wait_closed(self, timeout_s: float) -> None:
        """One that is stuck in the kernel is left behind."""
        for thread in (self._reader, self._writer):
            if thread is not threading.current_thread():
                thread.join(timeout_s)

    # --- threads

    def _write(self) -> None:
        try:
            self._pipe.send([path or os.getcwd() for path in sys.path])
            while (commands := self._queue.get()) is not None:
                send(self._pipe, commands)
        except (OSError, ValueError):
            pass  # it is gone
        except Exception as error:  # noqa: BLE001  # a worker that can be told nothing any more is of no use
            self.kill(f"it cannot be told something ({type(error).__name__})")

    def _read(self) -> None:
        silent = killed = 0
        silent_s = START_S
        try:
            while True:
                # One look that takes long is this machine standing still; many short ones in vain are the worker's silence.
                if not self._pipe.poll(LOOK_S):
                    silent += 1
                    killed += bool(self.reason)
                    if killed * LOOK_S >= KILLED_S:
                        break
                    if silent * LOOK_S >= silent_s:
                        self.kill(f"it said nothing for {silent_s:g} s")
                    continue
                silent, silent_s = 0, SILENT_S
                self._heard(receive(self._pipe))
        except (EOFError, OSError):
            pass  # it is gone
        except Exception as error:  # noqa: BLE001  # what it says makes no sense, as of another version: nothing that follows would
            self.kill(f"it cannot be understood ({type(error).__name__})")
        self._ended()

    def _heard(self, reports: list[Report]) -> None:
        try:
            self._on_reports(self, reports)
        except Exception as error:  # noqa: BLE001  # a mistake in one lot must not silence a worker
            log.error("reports.failed", kind=type(error).__name__, reason=str(error))

    def _ended(self) -> None:
        self.kill("it closed its pipe")
        try:
            status = self._child.wait(KILLED_S)
            if self.reason == "it closed its pipe":
                self.reason = f"signal {-status}" if status < 0 else f"exit status {status}"
        except subprocess.TimeoutExpired:
            log.warning("worker.left_behind", pid=self.pid)  # in the kernel; nobody hears it any more
        self._queue.put(None)
        self._ring.close()
        self._memory.close()
        self._pipe.close()
        self._on_gone(self)
