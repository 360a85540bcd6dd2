"""The farm's one thread: an epoll loop that accepts, answers, and sends every unit when it is due.

    heap of (due, feed) --> Feed.next_unit --> each camera's stamp --> sendmsg
    epoll: listener, connections, UDP ports, wake-up (calls from other threads)

Nothing here waits for a client: what a socket does not take is kept in its connection, within a bound.
"""

from __future__ import annotations

import heapq
import random
import select
import socket
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, TypeVar

from nvrstore.clock import Clock
from nvrstore.farm.auth import Guard
from nvrstore.farm.camera import Camera
from nvrstore.farm.connection import Connection
from nvrstore.farm.feed import SPOKES, AudioTrack, Feed, Packets, Wheel
from nvrstore.farm.reels import AudioReel, VideoReel
from nvrstore.farm.responder import respond
from nvrstore.farm.rtsp import ProtocolError, Request
from nvrstore.farm.session import Session, TcpSession, UdpSession

T = TypeVar("T")
BACKLOG_CONNECTIONS: Final = 1024  # a recorder that starts connects to all its cameras at once
RECV_BYTES: Final = 65_536
STALL_S: Final = 2.0  # a farm that did not run for so long (suspended, stopped) goes on from now, and does not catch up
_READ, _WRITE = select.EPOLLIN, select.EPOLLOUT
_GONE = select.EPOLLHUP | select.EPOLLERR


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What the server needs to know; `Farm` fills it in."""

    host: str
    port: int
    streams: int
    loss: float
    jitter_s: float
    seed: int
    send_buffer_bytes: int
    backlog_bytes_max: int


class Server:
    """One farm's sockets and loop. Made and closed by `Farm`; everything else runs in its thread."""

    def __init__(self, config: ServerConfig, guard: Guard, video: VideoReel, audio: AudioReel | None, clock: Clock) -> None:
        self.config, self.guard, self.clock = config, guard, clock
        self.video, self._audio = video, audio
        self._packets = Packets(video)
        self._random = random.Random(config.seed)
        self.cameras: Mapping[str, Camera] = {camera.name: camera for camera in map(Camera, range(config.streams))}
        self._heap: list[tuple[float, int, Feed]] = []
        self._pushed = 0
        self._connections: dict[int, Connection] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._running = True
        self._sending = True
        self.lateness_s_max = 0.0
        self._listener, self._rtp, self._rtcp = _bind(config.host, config.port)
        self.port: int = self._listener.getsockname()[1]
        self._waker, self._wakened = socket.socketpair()
        self._wakened.setblocking(False)
        self._epoll = select.epoll()
        for sock in (self._listener, self._rtp, self._rtcp, self._wakened):
            self._epoll.register(sock.fileno(), _READ)
        self._wheel = self._new_wheel()

    # --- what the responder asks for -----------------------------------------------------------------------------

    def reels(self, camera: Camera) -> tuple[VideoReel, AudioReel | None]:
        return self.video, self._audio

    def udp_ports(self) -> tuple[int, int]:
        return self._rtp.getsockname()[1], self._rtcp.getsockname()[1]

    def udp_session(self, session_id: str, camera: Camera, connection: Connection) -> UdpSession | None:
        return UdpSession(
            session_id, camera, connection.peer, self._rtp, self._rtcp, loss=self.config.loss, seed=self._random.getrandbits(32)
        )

    def tcp_session(self, session_id: str, camera: Camera, connection: Connection) -> TcpSession:
        return TcpSession(session_id, camera, connection, loss=self.config.loss, seed=self._random.getrandbits(32))

    def play(self, session: Session) -> Feed:
        camera = session.camera
        feed = camera.feed
        if feed is None:
            now_s = self.clock.monotonic_s()
            feed = self._wheel.choose(now_s) if self.config.jitter_s == 0 else self._new_feed(now_s)
            camera.feed = feed
            if not feed.cameras:
                feed.wake(now_s)
            feed.cameras = (*feed.cameras, camera)
            self._schedule(feed)
        session.playing = True
        camera.listen(session)
        return feed

    def pause(self, session: Session) -> None:
        session.playing = False
        session.camera.leave(session)
        session.waiting = True

    # --- feeds -----------------------------------------------------------------------------------------------------

    def _new_feed(self, start_s: float) -> Feed:
        rng = self._random
        audio = None
        if self._audio is not None:
            audio = AudioTrack(self._audio, seq=rng.getrandbits(16), timestamp_0=rng.getrandbits(32), ssrc=rng.getrandbits(32))
        return Feed(
            self._packets, start_s=start_s, seq=rng.getrandbits(16), timestamp_0=rng.getrandbits(32), ssrc=rng.getrandbits(32), audio=audio
        )

    def _new_wheel(self) -> Wheel:
        now_s = self.clock.monotonic_s()
        gop_s = self.video.gop_s
        return Wheel([self._new_feed(now_s - gop_s + at * gop_s / SPOKES) for at in range(SPOKES)])

    def _schedule(self, feed: Feed) -> None:
        if not feed.scheduled:
            feed.scheduled = True
            self._push(feed)

    def _push(self, feed: Feed) -> None:
        due_s = feed.due_s
        if self.config.jitter_s:
            due_s += self._random.uniform(0, self.config.jitter_s)
        self._pushed += 1  # breaks ties: feeds do not compare
        heapq.heappush(self._heap, (due_s, self._pushed, feed))

    def _send_due(self, now_s: float) -> None:
        heap = self._heap
        while heap and heap[0][0] <= now_s:
            due_s, _, feed = heapq.heappop(heap)
            self.lateness_s_max = max(self.lateness_s_max, now_s - due_s)
            cameras = tuple(camera for camera in feed.cameras if camera.sessions)
            if len(cameras) != len(feed.cameras):
                for camera in feed.cameras:
                    if not camera.sessions:
                        camera.feed = None
                feed.cameras = cameras
            if not cameras:
                feed.scheduled = False
                continue
            on_air = feed.next_unit()
            clock = self.clock
            for camera in cameras:
                camera.emit(on_air, clock)
                for session in camera.sessions:
                    if session.report_due_s <= now_s and not session.waiting:
                        session.report(feed, now_s, clock.utc_ns())
            self._push(feed)

    def _skip(self, stalled_s: float) -> None:
        """The farm did not run for a while: live pictures of that time do not exist. Whole frames, so that timestamps stay true."""
        heap, self._heap = self._heap, []
        for _, _, feed in heap:
            feed.number += int(Fraction(stalled_s) * feed.fps)
            if feed.audio is not None:
                feed.audio.catch_up(float(feed.number / feed.fps))
            self._push(feed)

    # --- the loop ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until `close` is called."""
        last_s = self.clock.monotonic_s()
        while self._running:
            now_s = self.clock.monotonic_s()
            if now_s - last_s > STALL_S and self._heap:
                self._skip(now_s - last_s)
            if self._sending:
                self._send_due(now_s)
            timeout = -1.0
            if self._sending and self._heap:
                timeout = max(0.0, self._heap[0][0] - self.clock.monotonic_s())
            for fd, events in self._epoll.poll(timeout):
                self._handle(fd, events)
            last_s = now_s if timeout >= 0 else self.clock.monotonic_s()
        self._shut()

    def _handle(self, fd: int, events: int) -> None:
        connection = self._connections.get(fd)
        if connection is not None:
            if events & _WRITE:
                connection.flush()
            if events & _READ and not connection.dead:
                self._read(connection)
            if events & _GONE or connection.finished:
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
            if self.config.send_buffer_bytes:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.config.send_buffer_bytes)
            connection = Connection(sock, address[0], self._watch, self.config.backlog_bytes_max)
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
        try:
            for item in connection.parser.feed(data):
                if isinstance(item, Request):
                    answer = respond(item, connection, self)
                    connection.write((answer,), len(answer), None, 0)
        except ProtocolError:
            connection.closing = True

    def _drop(self, connection: Connection) -> None:
        for session in connection.sessions.values():
            session.close()
        del self._connections[connection.sock.fileno()]
        self._epoll.unregister(connection.sock.fileno())
        connection.sock.close()

    def _shut(self) -> None:
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._epoll.close()
        for sock in (self._listener, self._rtp, self._rtcp, self._wakened, self._waker):
            sock.close()

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
    except OSError:
        listener.close()
        raise
    listener.close()
    raise OSError("no pair of free UDP ports")


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
    except OSError:
        pass
    first.close()
    second.close()
    return None
