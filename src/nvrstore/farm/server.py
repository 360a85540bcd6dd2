"""The farm's one thread: an epoll loop that accepts, answers, and lets the studio send every unit when it is due.

    Studio.send_due(now) --> sendmsg           epoll: listener, connections, UDP ports, wake-up (calls from other threads)

Nothing here waits for a client: what a socket does not take is kept in its connection, within a bound.
"""

from __future__ import annotations

import random
import select
import socket
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from nvrstore.clock import Clock
from nvrstore.errors import NvrstoreError
from nvrstore.farm.auth import Guard
from nvrstore.farm.camera import Camera
from nvrstore.farm.connection import Connection
from nvrstore.farm.oddities import INVERSE, Act
from nvrstore.farm.responder import respond
from nvrstore.farm.rtsp import ProtocolError, Request
from nvrstore.farm.session import TcpSession, UdpSession
from nvrstore.farm.studio import Studio
from nvrstore.telemetry import get_logger

T = TypeVar("T")
BACKLOG_CONNECTIONS: Final = 1024  # a recorder that starts connects to all its cameras at once
RECV_BYTES: Final = 65_536
STALL_S: Final = 2.0  # a farm that did not run for so long (suspended, stopped) goes on from now, and does not catch up
_READ, _WRITE = select.EPOLLIN, select.EPOLLOUT
_GONE = select.EPOLLHUP | select.EPOLLERR
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What the server needs to know; `Farm` fills it in."""

    host: str
    port: int
    loss: float
    seed: int
    send_buffer_bytes: int
    backlog_bytes_max: int


class Server:
    """One farm's sockets and loop. Made and closed by `Farm`; everything else runs in its thread."""

    def __init__(self, config: ServerConfig, guard: Guard, studio: Studio, clock: Clock) -> None:
        self.guard, self.studio, self._clock, self._config = guard, studio, clock, config
        self._random = random.Random(config.seed)
        self._connections: dict[int, Connection] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._running = self._sending = True
        self._listener, self._rtp, self._rtcp = _bind(config.host, config.port)
        self.port: int = self._listener.getsockname()[1]
        self._waker, self._wakened = socket.socketpair()
        self._wakened.setblocking(False)
        self._epoll = select.epoll()
        for sock in (self._listener, self._rtp, self._rtcp, self._wakened):
            self._epoll.register(sock.fileno(), _READ)

    # --- what the responder asks for -----------------------------------------------------------------------------

    def udp_ports(self) -> tuple[int, int]:
        return self._rtp.getsockname()[1], self._rtcp.getsockname()[1]

    def udp_session(self, session_id: str, camera: Camera, connection: Connection) -> UdpSession:
        return UdpSession(
            session_id, camera, connection.peer, self._rtp, self._rtcp, loss=self._loss(camera), seed=self._random.getrandbits(32)
        )

    def tcp_session(self, session_id: str, camera: Camera, connection: Connection) -> TcpSession:
        return TcpSession(session_id, camera, connection, loss=self._loss(camera), seed=self._random.getrandbits(32))

    def _loss(self, camera: Camera) -> float:
        return camera.look.traits.loss or self._config.loss

    # --- the loop ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until `stop` is called. Whatever ends it, no socket stays open."""
        try:
            self._loop()
        finally:
            self._shut()

    def _loop(self) -> None:
        clock, studio = self._clock, self.studio
        due_back_s = clock.monotonic_s()
        while self._running:
            now_s = clock.monotonic_s()
            if self._sending:
                if now_s - due_back_s > STALL_S:
                    studio.skip(now_s - due_back_s)
                studio.send_due(now_s)
            next_s = studio.next_due_s if self._sending else None
            if next_s is None:
                events = self._epoll.poll()
                due_back_s = clock.monotonic_s()
            else:
                events = self._epoll.poll(max(0.0, next_s - clock.monotonic_s()))
                due_back_s = max(now_s, next_s)
            for fd, event in events:
                self._handle(fd, event)

    def _handle(self, fd: int, events: int) -> None:
        connection = self._connections.get(fd)
        if connection is not None:
            if events & _WRITE:
                connection.flush()
            if events & _READ and not connection.dead:
                self._read(connection)
            if events & _GONE:
                connection.dead = True
            if connection.dead:
                self._drop(connection)
        elif fd == self._listener.fileno():
            self._accept()
        elif fd == self._wakened.fileno():
            self._wakened.recv(RECV_BYTES)
            while self._calls:
                self._calls.popleft()()
        else:
            _discard(self._rtp if fd == self._rtp.fileno() else self._rtcp)

    def _accept(self) -> None:
        while True:
            try:
                sock, address = self._listener.accept()
            except OSError:  # nobody left, or gone again, or out of descriptors: the next event tries again
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._config.send_buffer_bytes:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._config.send_buffer_bytes)
            connection = Connection(sock, address[0], self._watch, self._config.backlog_bytes_max)
            self._connections[sock.fileno()] = connection
            self._epoll.register(sock.fileno(), _READ)

    def _watch(self, connection: Connection, writable: bool) -> None:
        self._epoll.modify(connection.sock.fileno(), _READ | _WRITE if writable else _READ)

    def _read(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(RECV_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            connection.dead = True
            return
        if connection.closing:
            return
        try:
            for item in connection.parser.feed(data):
                if not isinstance(item, Request):
                    continue  # a receiver report
                answer = respond(item, connection, self)
                if answer is None:
                    connection.close()
                    return
                if answer:
                    connection.write((answer,), len(answer), None, 0)
        except ProtocolError:
            connection.close()

    def _drop(self, connection: Connection) -> None:
        for session in connection.sessions.values():
            session.close()
        fd = connection.sock.fileno()
        del self._connections[fd]
        self._epoll.unregister(fd)
        connection.sock.close()

    def _shut(self) -> None:
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._epoll.close()
        for sock in (self._listener, self._rtp, self._rtcp, self._wakened, self._waker):
            sock.close()

    # --- acts ------------------------------------------------------------------------------------------------------

    def schedule(self, acts: tuple[Act, ...], start_s: float) -> None:
        """Let a script happen, counted from `start_s`."""
        for act in acts:
            self.studio.at(start_s + act.at_s, partial(self._perform, act, start_s + act.at_s))

    def _perform(self, act: Act, due_s: float) -> None:
        """Do an act, set the time of its end and of its repetition. What cannot be done is logged: a script goes on."""
        try:
            self.act(act)
        except NvrstoreError as error:
            _log.warning("act.refused", act=act.do, reason=error.message)
        if act.every_s > 0:
            self.studio.at(due_s + act.every_s, partial(self._perform, act, due_s + act.every_s))

    def act(self, act: Act) -> None:
        """Do an act now to all its streams."""
        cameras = list(self.studio.cameras.values())
        for camera in cameras if act.streams is None else [cameras[index] for index in act.streams]:
            self._act(camera, act)
        if act.for_s > 0 and act.do in INVERSE:
            undo = Act(INVERSE[act.do], act.streams)
            self.studio.at(self._clock.monotonic_s() + act.for_s, partial(self.act, undo))

    def _act(self, camera: Camera, act: Act) -> None:
        match act.do:
            case "disconnect":
                self._end(camera, reset=False)
            case "reset":
                self._end(camera, reset=True)
            case "refuse" | "admit":
                camera.refused = act.do == "refuse"
            case "leave":
                camera.away = True
                self._end(camera, reset=False)
            case "come":
                camera.away = False
            case "hang" | "wake":
                camera.hung = act.do == "hang"
                self.studio.act(camera, Act("mute" if camera.hung else "unmute"))
            case _:
                self.studio.act(camera, act)

    def _end(self, camera: Camera, *, reset: bool) -> None:
        """End every connection that listens to a camera."""
        for connection in list(self._connections.values()):
            if any(session.camera is camera for session in connection.sessions.values()):
                if reset:
                    connection.reset()
                else:
                    connection.close()
                if connection.dead:
                    self._drop(connection)

    # --- calls from other threads ---------------------------------------------------------------------------------

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run `function` in the farm's thread."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001  # it is the caller's: raised there
                future.set_exception(error)

        self._calls.append(run)
        self._waker.send(b"\x00")
        return future

    def stop_sending(self) -> None:
        """No unit more; what was begun is written on."""
        self._sending = False

    def backlog_bytes(self) -> int:
        """What still waits to be written, over all connections."""
        return sum(connection.backlog_bytes for connection in self._connections.values() if not connection.dead)

    def stop(self) -> None:
        """End the loop."""
        self._running = False


def _discard(sock: socket.socket) -> None:
    """Clients' receiver reports and hole punching: nothing in them is needed."""
    try:
        while True:
            sock.recv(2048)
    except OSError:
        return


def _bind(host: str, port: int) -> tuple[socket.socket, socket.socket, socket.socket]:
    """The listener, and a pair of UDP ports, the first one even (RFC 3550 section 11)."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG_CONNECTIONS)
        listener.setblocking(False)
        for _ in range(200):
            pair = _udp_pair(host)
            if pair is not None:
                return listener, *pair
        raise OSError("no pair of free UDP ports")
    except OSError:
        listener.close()
        raise


def _udp_pair(host: str) -> tuple[socket.socket, socket.socket] | None:
    first = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    second = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        first.bind((host, 0))
        port = first.getsockname()[1]
        if port % 2 == 0 and port < 65_535:
            second.bind((host, port + 1))
            for sock in (first, second):
                sock.setblocking(False)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
            return first, second
    except OSError:  # somebody has the odd one: another pair
        pass
    first.close()
    second.close()
    return None
