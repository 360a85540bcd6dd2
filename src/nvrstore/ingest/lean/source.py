"""The lean engine as ingest sees it: sources, one loop for all of them, and threads for what blocks.

    start ─▶ a thread: resolve hook, name server ─▶ loop: Connection ─▶ Receiver           stop ─▶ loop: leave

The loop's thread begins with the first source and ends with the last one. A source that waits for its resolve hook or a name
server, where nothing can wake it, is left behind by `join`, and ends by itself when they come back.
"""

from __future__ import annotations

import socket
import ssl
import threading
from functools import partial
from math import inf
from typing import Final
from urllib.parse import urlsplit

from nvrstore.clock import Clock
from nvrstore.config.login import split_login, split_url
from nvrstore.errors import SourceEndedError, SourceError, SourceNotVideoError, SourceUnreachableError, redact
from nvrstore.ingest.contract import Receiver, SourceFactory, SourceRequest, resolved
from nvrstore.ingest.errors import SourceUnsupportedError
from nvrstore.ingest.lean import tls, tracks
from nvrstore.ingest.lean.auth import Login
from nvrstore.ingest.lean.connection import Address, Connection
from nvrstore.ingest.lean.loop import Loop
from nvrstore.ingest.lean.rtsp import Client
from nvrstore.telemetry import get_logger

PORTS: Final = {"rtsp": 554, "rtsps": 322}
OPTIONS: Final = frozenset({"tls_verify", "ca_file"})  # of libav's, those that mean something here

_log = get_logger("ingest.lean")


class LeanEngine:
    """Makes sources, and runs the loop while there are any. See `SourceFactory`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sources = 0
        self._loop: Loop | None = None
        self._thread: threading.Thread | None = None

    def __call__(self, request: SourceRequest, receiver: Receiver, clock: Clock) -> LeanSource:
        return LeanSource(self, request, receiver, clock)

    def strictly(self) -> SourceFactory:
        """Makes sources in the same loop that leave nothing out: sound that they do not speak is a `SourceUnsupportedError`."""
        return lambda request, receiver, clock: LeanSource(self, request, receiver, clock, strict=True)

    def begin(self, clock: Clock) -> Loop:
        """A source starts. Raises RuntimeError where no thread can be started."""
        with self._lock:
            loop = self._loop
            if loop is None:
                loop = Loop(clock)
                thread = threading.Thread(target=loop.run, args=(self._goes_on,), name="nvrstore-lean", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    loop.close()
                    raise
                self._loop, self._thread = loop, thread
            self._sources += 1
            return loop

    def over(self) -> None:
        """A source has ended."""
        with self._lock:
            self._sources -= 1
            loop = self._loop
        if loop is not None:
            loop.call(lambda: None)

    def settle(self, timeout_s: float) -> None:
        """Wait for the loop's end, if there is nothing left for it to do."""
        with self._lock:
            thread = None if self._sources else self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    def _goes_on(self) -> bool:
        with self._lock:
            if self._sources:
                return True
            self._loop = None
            return False


class LeanSource:
    """One session through the lean engine. See `Source`."""

    engine: Final = "lean"

    def __init__(self, engine: LeanEngine, request: SourceRequest, receiver: Receiver, clock: Clock, *, strict: bool = False) -> None:
        self._engine, self._request, self._receiver, self._clock, self._strict = engine, request, receiver, clock, strict
        self._loop: Loop | None = None
        self._connection: Connection | None = None
        self._stopping = False
        self._over = threading.Event()
        self._lost = 0

    @property
    def packets_lost(self) -> int:
        """RTP packets that never came, by their sequence numbers."""
        connection = self._connection
        return self._lost + (0 if connection is None else sum(track.sequence.lost for track, _, _ in connection.tracks))

    @property
    def heard_until_s(self) -> float:
        """Until when everything that had come was handed on: a loop that is late takes no camera for silent."""
        loop = self._loop
        return inf if loop is None else loop.swept_s

    def start(self) -> None:
        self._loop = loop = self._engine.begin(self._clock)
        try:
            self._look_up(loop, None)
        except RuntimeError:
            self._loop = None
            self._engine.over()
            raise

    def stop(self) -> None:
        told, self._stopping = self._stopping, True
        loop = self._loop
        if loop is not None and not told and not self._over.is_set():
            loop.call(self._leave)

    def join(self, timeout_s: float) -> bool:
        if self._loop is None:
            return True
        deadline_s = self._clock.monotonic_s() + timeout_s
        if not self._over.wait(max(0.0, timeout_s)):
            return False
        self._engine.settle(max(0.0, deadline_s - self._clock.monotonic_s()))
        return True

    # --- in a thread of its own: what blocks

    def _look_up(self, loop: Loop, client: Client | None) -> None:
        name = f"nvrstore-{self._request.stream}"
        threading.Thread(target=self._resolve, args=(loop, client), name=name, daemon=True).start()

    def _resolve(self, loop: Loop, client: Client | None) -> None:
        """Find out where to connect to, for the first time, or after a redirect."""
        failed: SourceError | None = None
        try:
            if client is None:
                client = self._client()
            addresses, secure = _addresses(client.url, self._request)
        except SourceError as error:
            failed = error
        except Exception as error:  # noqa: BLE001  # a mistake of this program must end this session alone
            failed = SourceError(f"{self._request.stream}: {type(error).__name__}")
        if failed is not None or client is None:
            loop.call(partial(self._end, failed or SourceError("no client")))
            return
        loop.call(partial(self._connect, loop, client, addresses, secure))

    def _client(self) -> Client:
        endpoint = resolved(self._request)
        url, embedded = split_url(endpoint.url)
        login = endpoint.login or (split_login(embedded) if embedded else None)
        where = redact(url)
        return Client(url, Login(*login) if login else None, lambda found: tracks.choose(found, self._request, where, strict=self._strict))

    # --- in the loop's thread

    def _connect(self, loop: Loop, client: Client, addresses: list[Address], secure: tuple[ssl.SSLContext, str] | None) -> None:
        if self._stopping:
            self._end(_stopped())
            return
        client.redirect = None
        self._connection = Connection(loop, self._request, self._receiver, client, addresses, secure, partial(self._ended, loop, client))
        try:
            self._connection.open()
        except Exception as error:  # noqa: BLE001  # as above
            self._end(SourceError(f"{self._request.stream}: {type(error).__name__}"))

    def _leave(self) -> None:
        if self._connection is not None:
            self._connection.leave(_stopped())

    def _ended(self, loop: Loop, client: Client, error: SourceError | None) -> None:
        if error is not None:
            self._end(error)
            return
        self._connection = None
        try:
            self._look_up(loop, client)
        except RuntimeError as failed:
            self._end(SourceError(f"{self._request.stream}: no thread could be started ({failed})"))

    def _end(self, error: SourceError) -> None:
        if self._over.is_set():
            return
        self._lost, self._connection = self.packets_lost, None
        try:
            self._receiver.on_ended(error)
        except Exception as broken:  # noqa: BLE001  # as above
            _log.error("session.failed", stream=self._request.stream, kind=type(broken).__name__, reason=str(broken))
        finally:
            self._over.set()
            self._engine.over()


def _stopped() -> SourceError:
    return SourceEndedError("stopped")


def _addresses(url: str, request: SourceRequest) -> tuple[list[Address], tuple[ssl.SSLContext, str] | None]:
    """Where a URL leads to, and how to speak TLS with it. Asks a name server. Raises `SourceError`."""
    where = redact(url)
    try:
        parts = urlsplit(url)
        standard_port = PORTS.get(parts.scheme.lower())
        host, port = parts.hostname, standard_port and (parts.port or standard_port)
    except ValueError:
        host, port = None, None
    if not port:
        raise SourceUnsupportedError(f"{where}: this engine speaks rtsp and rtsps alone")
    if not host:
        raise SourceNotVideoError(f"{where}: that is no URL of a camera")
    failed = ""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        failed = getattr(error, "strerror", None) or "it is no name"
    if failed:
        raise SourceUnreachableError(f"{where}: the name cannot be resolved ({failed})")
    if parts.scheme.lower() == "rtsps" and request.transport == "udp":
        raise SourceUnsupportedError(f"{where}: over UDP pictures would come unencrypted (no SRTP)", hint='set `transport = "tcp"`')
    secure = (tls.context(request), host) if parts.scheme.lower() == "rtsps" else None
    return [(family, address) for family, _, _, _, address in found], secure
