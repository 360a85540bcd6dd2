"""The control socket of a running recorder: `<state>/control.sock`, mode 0600, versioned JSON lines.

    -> {"v": 1, "verb": "status", "args": {}}
    <- {"v": 1, "ok": true, "result": {...}}         or {"v": 1, "ok": false, "error": {"type", "message", "hint", "exit_status"}}

One request a line, answered in order; a connection may send many. Every verb of the command line that looks at or steers
a live recorder uses it. Served by threads of its own, bounded in number, size and time: a client that hangs concerns
nobody else. Nothing secret is ever in an answer.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from nvrstore.errors import NvrstoreError, UsageError, redact
from nvrstore.telemetry import get_logger

log = get_logger("control")

VERSION: Final = 1
LINE_BYTES_MAX: Final = 1 << 20
CLIENTS_MAX: Final = 16
ACCEPT_AGAIN_S: Final = 0.2
CLIENT_S: Final = 30.0  # a client that neither asks nor reads for so long is let go

Handler = Callable[[dict[str, Any]], Any]


class NotRunningError(NvrstoreError):
    """Nobody listens on the control socket."""

    exit_status = 3
    hint = "start the recorder with `nvrstore record CONFIG`; the state directory of the configuration must be the same"


class RemoteError(NvrstoreError):
    """What the recorder answered instead of a result."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(str(error.get("message", "the recorder refused")), hint=str(error.get("hint", "")))
        self.exit_status = int(error.get("exit_status", 1))  # type: ignore[misc]


class ControlServer:
    """Serves `handlers` (verb -> function of its arguments) until `close`."""

    def __init__(self, path: Path, handlers: Mapping[str, Handler]) -> None:
        self._path, self._handlers = path, handlers
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._slots = threading.BoundedSemaphore(CLIENTS_MAX)
        self._clients: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()

    def start(self) -> None:
        """Raises OSError where the socket cannot be made: the recorder records without it, and says so."""
        self._path.unlink(missing_ok=True)  # of a recorder that was killed; the state directory's lock is ours
        os.fchmod(self._listener.fileno(), 0o600)  # Linux gives the socket's own mode to its name: no moment in which others may connect
        self._bind()
        self._listener.listen(CLIENTS_MAX)
        self._spawn(self._accept, "nvrstore-control")

    def _bind(self) -> None:
        path = str(self._path)
        if len(path.encode()) < 100:  # sun_path has 108 bytes
            self._listener.bind(path)
            return
        folder = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._listener.bind(f"/proc/self/fd/{folder}/{self._path.name}")
        finally:
            os.close(folder)

    def close(self) -> None:
        """Hang up on everybody and remove the socket."""
        with self._lock:
            self._closing.set()
            clients = list(self._clients)
        for sock in (self._listener, *clients):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it was closed by the other side
        for thread in self._threads:
            thread.join(1.0)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _spawn(self, run: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads = [t for t in self._threads if t.is_alive()] + [thread]
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                if self._closing.wait(ACCEPT_AGAIN_S):
                    return
                continue  # no descriptor is left, or the client went away: there will be others
            with self._lock:
                if self._closing.is_set() or not self._slots.acquire(blocking=False):
                    client.close()
                    continue
                self._clients.add(client)
                self._spawn(lambda client=client: self._serve(client), "nvrstore-control-client")  # type: ignore[misc]

    def _serve(self, client: socket.socket) -> None:
        try:
            client.settimeout(CLIENT_S)
            with client, client.makefile("rb") as lines:
                while line := lines.readline(LINE_BYTES_MAX):
                    client.sendall(json.dumps(self._answer(line)).encode() + b"\n")
        except (OSError, ValueError):
            pass  # it went away, or sent what is no line: its own affair
        finally:
            with self._lock:
                self._clients.discard(client)
            self._slots.release()

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            if not isinstance(request, dict) or request.get("v") != VERSION:
                raise UsageError(f"this recorder speaks version {VERSION} of the control protocol")
            handler = self._handlers.get(str(request.get("verb")))
            if handler is None:
                raise UsageError(f"there is no verb {request.get('verb')!r}", hint="known: " + ", ".join(sorted(self._handlers)))
            args = request.get("args") or {}
            return {"v": VERSION, "ok": True, "result": handler(args)}
        except NvrstoreError as error:
            return {"v": VERSION, "ok": False, "error": describe(error)}
        except Exception as error:
            log.exception("control.failed")
            return {"v": VERSION, "ok": False, "error": {"type": type(error).__name__, "message": redact(str(error)), "exit_status": 1}}


def describe(error: NvrstoreError) -> dict[str, Any]:
    """An error as JSON values."""
    return {
        "type": type(error).__name__,
        "message": redact(str(error)),
        "hint": error.hint,
        "outcome": error.outcome.value,
        "exit_status": error.exit_status,
    }


def call(path: Path, verb: str, timeout_s: float = 10.0, **args: Any) -> Any:
    """Ask the recorder whose socket is at `path`. Raises `NotRunningError`, or `RemoteError` with its answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(timeout_s)
        try:
            _connect(sock, path)
            sock.sendall(json.dumps({"v": VERSION, "verb": verb, "args": args}).encode() + b"\n")
            with sock.makefile("rb") as lines:
                answer = json.loads(lines.readline() or b"{}")
        except (OSError, ValueError) as error:
            raise NotRunningError(f"no recorder answers at {path}") from error
    if not answer.get("ok"):
        raise RemoteError(answer.get("error", {}))
    return answer["result"]


def _connect(sock: socket.socket, path: Path) -> None:
    if len(str(path).encode()) < 100:
        sock.connect(str(path))
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)
