"""RTP over UDP: a pair of sockets for each track, read into the loop's buffer as if it were interleaved TCP.

    datagrams ─▶ [$ch len|RTP][$ch len|RTP] ... ─┬ in order ───────────────────▶ the track's reader     one read, no copy
                                                 └ else ─▶ Jitter (jitter.py) ─▶ the track's reader     what follows a hole is held
    sender reports ─▶ [$ch len|RTCP] ──────────────────────────────────────────▶ Reports                receiver reports go back

Only what comes from the camera is taken: from the other end of the RTSP connection, or from the address that the answer to SETUP
names; from the port that it names, or else the one from which the first packet came. To both a datagram is sent when PLAY is about
to be said: firewalls let in what answers. What came before that is an old session's, whose port this was: so is all from that SSRC.

All in the loop's thread. The sockets belong to one session (`Datagrams`), and are closed with it.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Any, Final

from nvrstore.errors import SourceEndedError, SourceError
from nvrstore.ingest.lean.interleaved import Reader
from nvrstore.ingest.lean.jitter import Jitter
from nvrstore.ingest.lean.loop import BUFFER_BYTES, Loop
from nvrstore.ingest.lean.rtp import STRANGERS_MAX
from nvrstore.ingest.lean.rtsp import Setup
from nvrstore.ingest.lean.tracks import Reports, Track
from nvrstore.ingest.udp_buffer import UDP_BUFFER_BYTES, warn_of_udp

TRIES_MAX: Final = 64  # for a pair of ports: every second number that the kernel chooses is even
DATAGRAMS_MAX: Final = 512  # of one read: others get their turn
READS_MAX: Final = 32  # of so many, when a session ends: more than a kernel keeps
DATAGRAM_BYTES_MAX: Final = 65_536
_SO_RCVBUFFORCE: Final = 33  # asm-generic/socket.h: beyond net.core.rmem_max, for whoever may
_FRAMING: Final = struct.Struct(">BBH")
_HEADER: Final = struct.Struct(">xxH4xI")  # sequence number, SSRC
_PUNCH: Final = struct.Struct(">BBHII")


class Port:
    """One socket. See `loop.Handler`. `rtp`: that of the packets which a port for reports belongs to."""

    def __init__(self, owner: Datagrams, sock: socket.socket, channel: int, rtp: Port | None = None) -> None:
        self.sock = sock
        self.reader: Reader | None = None
        self.from_hosts: frozenset[str] = frozenset()
        self.from_port = 0  # that the camera names
        self.strangers: set[int] = set()  # SSRCs of other sessions
        self._owner, self._channel, self._rtp = owner, channel, rtp
        self._from: tuple[str, int] | None = None  # address and port, once a packet has come from there
        self._jitter = Jitter()

    def readable(self, buffer: bytearray, view: memoryview) -> bool:
        """Read what has come, DATAGRAMS_MAX at most. Whether anything had come."""
        if self._rtp is not None:
            self._rtp.readable(buffer, view)  # a report is of no use before the first packet: it came earlier
        receive, jitter = self.sock.recvfrom_into, self._jitter
        frame, unpack = _FRAMING.pack_into, _HEADER.unpack_from
        expected, ssrc, straight = jitter.expected, jitter.ssrc, not jitter.holds
        end = 0
        for _ in range(DATAGRAMS_MAX):
            if end > BUFFER_BYTES - 4 - DATAGRAM_BYTES_MAX:
                break
            try:
                count, sender = receive(view[end + 4 :])
            except OSError:  # there is no more; or an ICMP message, which says nothing of what comes next
                break
            if sender[:2] != self._from and not self._is_camera(sender):
                continue
            if count < 8 or buffer[end + 4] >> 6 != 2:
                continue
            if self._rtp is None:
                if count < 12:
                    continue
                number, found = unpack(buffer, end + 4)
                if found != ssrc and found in self.strangers:
                    continue
                straight = straight and number == expected and found == ssrc
                expected = number + 1 & 0xFFFF
            frame(buffer, end, 0x24, self._channel, count)
            end += 4 + count
        if not end:
            return False
        now_s = self._owner.heard(self._channel)
        if self._rtp is not None or straight:
            if self._rtp is None:
                jitter.expected = expected
            self._take(buffer, end)
        else:
            self._take_all(jitter.order(_cut(buffer, end), now_s))
        self._owner.delivered(self._channel)
        return True

    def _is_camera(self, sender: Any) -> bool:
        """Whether packets are taken from there from now on."""
        if sender[0] not in self.from_hosts or (self._from is not None and sender[1] != self.from_port):
            return False
        self._from = sender[:2]
        return True

    def avoid_earlier(self) -> None:
        """What has come already is another session's."""
        for _ in range(DATAGRAMS_MAX):
            try:
                packet = self.sock.recv(64)
            except OSError:
                return
            if len(packet) >= 12 and len(self.strangers) < STRANGERS_MAX:
                self.strangers.add(int.from_bytes(packet[8:12], "big"))

    def _take(self, buffer: bytearray, end: int) -> None:
        at = 0
        reader = self.reader
        while at < end and reader is not None:
            following = at + 4 + (buffer[at + 2] << 8 | buffer[at + 3])
            at = max(following, reader.take(buffer, at, end))

    def _take_all(self, packets: list[bytes]) -> None:
        if packets:
            data = bytearray(b"".join(packets))
            self._take(data, len(data))

    def writable(self) -> None:
        """It always is."""

    def due(self, now_s: float) -> None:
        """What was held long enough goes on without what it waited for."""
        if self._jitter.holds:
            packets = self._jitter.due(now_s)
            if packets:
                self._owner.heard(self._channel, late=True)
                self._take_all(packets)
                self._owner.delivered(self._channel)

    def flush(self) -> None:
        """The session is over: all that is held goes on."""
        self._take_all(self._jitter.flush())

    def broke(self, error: Exception) -> None:
        """The reader raised, or whoever receives."""
        self._owner.on_broke(error)


class Datagrams:
    """All sockets of one session. `on_heard` is told when something came. Raises `SourceError` where the connection is gone."""

    def __init__(self, loop: Loop, sock: socket.socket, on_heard: Callable[[float], None], on_broke: Callable[[Exception], None]) -> None:
        self.on_broke: Final = on_broke
        self._loop, self._on_heard = loop, on_heard
        try:
            self._own, self._camera = sock.getsockname(), sock.getpeername()
        except OSError as error:
            raise SourceEndedError(f"the camera closed the connection ({error.strerror})") from None
        self._family = sock.family
        self._pairs: list[tuple[Port, Port]] = []
        self._tracks: dict[int, tuple[Track, Reports, Setup]] = {}  # by channel, of packets and of reports
        self._listening = False

    def open_pair(self) -> int:
        """Make a pair for the next track; the first of its ports, which is even (RFC 3550 11). Raises `SourceError`."""
        for _ in range(TRIES_MAX):
            pair = self._pair()
            if pair is not None:
                _enlarge(pair[0])
                channel = 2 * len(self._pairs)
                rtp = Port(self, pair[0], channel)
                self._pairs.append((rtp, Port(self, pair[1], channel + 1, rtp)))
                return int(pair[0].getsockname()[1])
        raise SourceError("no pair of UDP ports is free", hint="too many sessions on this machine, or too few open files allowed")

    def _pair(self) -> tuple[socket.socket, socket.socket] | None:
        host, _, *rest = self._own
        pair: list[socket.socket] = []
        try:
            pair.append(self._bound((host, 0, *rest)))
            port = pair[0].getsockname()[1]
            if port % 2 == 0:
                pair.append(self._bound((host, port + 1, *rest)))
        except OSError:
            pass
        if len(pair) == 2:
            return pair[0], pair[1]
        for sock in pair:
            sock.close()
        return None

    def _bound(self, address: Any) -> socket.socket:
        sock = socket.socket(self._family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.bind(address)
        except OSError:
            sock.close()
            raise
        return sock

    def listen(self, setup: Setup, track: Track, reports: Reports) -> None:
        """Read a track that was set up, as soon as something comes; tell firewalls that it will."""
        pair = self._pairs[setup.channel // 2]
        self._tracks[setup.channel] = self._tracks[setup.channel + 1] = (track, reports, setup)
        hosts = frozenset(filter(None, (self._camera[0], setup.source)))
        pair[0].strangers = track.sequence.strangers
        pair[0].avoid_earlier()
        pair[0].reader, pair[1].reader = track, reports
        for port, from_port in zip(pair, setup.ports or (0, 0), strict=True):
            port.from_hosts, port.from_port = hosts, from_port
            self._loop.add(port)
            self._loop.watch(port, playing=False, writing=False)
        self._listening = True
        for host in hosts:
            self._send(pair[0], host, setup.ports, 0, _PUNCH.pack(0x80, 0, 0, 0, 0))
            self._send(pair[1], host, setup.ports, 1, struct.pack(">BBHI", 0x80, 201, 1, 0))

    def _send(self, port: Port, host: str, ports: tuple[int, int] | None, which: int, packet: bytes) -> None:
        if ports is not None:
            with contextlib.suppress(OSError):  # full, or the network gone: as on any network
                port.sock.sendto(packet, (host, ports[which], *self._camera[2:]))

    def report(self, channel: int, packet: bytes) -> None:
        """Send a receiver report."""
        setup = self._tracks[channel][2]
        self._send(self._pairs[setup.channel // 2][1], setup.source or self._camera[0], setup.ports, 1, packet)

    def gather(self) -> None:
        """From now on packets wait for the others', as those over TCP do."""
        for rtp, _ in self._pairs:
            self._loop.watch(rtp, playing=True, writing=False)

    def read(self) -> bool:
        """Look what has come, out of turn. Whether anything had."""
        heard = False
        for pair in self._pairs if self._listening else ():
            for port in pair:
                heard = self._loop.read(port) or heard
        return heard

    def heard(self, channel: int, *, late: bool = False) -> float:
        """Something came for a track: when (monotonic). `late`: it came a moment ago."""
        arrival_ns, now_s = self._loop.clock.utc_ns(), self._loop.clock.monotonic_s()
        track, reports, _ = self._tracks[channel]
        track.arrival_ns, track.arrival_s, reports.arrival_s = arrival_ns, now_s, now_s
        if not late:
            self._on_heard(now_s)
        return now_s

    def delivered(self, channel: int) -> None:
        """The read is over."""
        self._tracks[channel][0].deliver()

    def end(self) -> None:
        """Hand on what has come, and what is held. The buffer is another one: somebody may be reading in the loop's. May raise."""
        if not self._listening:
            return
        buffer = bytearray(BUFFER_BYTES)
        view = memoryview(buffer)
        for rtp, rtcp in self._pairs:
            for port in (rtp, rtcp):
                for _ in range(READS_MAX):
                    if not port.readable(buffer, view):
                        break
            rtp.flush()

    def close(self) -> None:
        """Nothing comes any more."""
        for pair in self._pairs:
            for port in pair:
                if self._listening:
                    self._loop.remove(port)
                port.sock.close()
        self._pairs, self._listening = [], False


def _cut(buffer: bytearray, end: int) -> list[bytes]:
    """The packets in a buffer, with their framing."""
    out: list[bytes] = []
    at = 0
    while at < end:
        following = at + 4 + (buffer[at + 2] << 8 | buffer[at + 3])
        out.append(bytes(buffer[at:following]))
        at = following
    return out


def _enlarge(sock: socket.socket) -> None:
    """Room for what comes in one burst, as much as the system gives."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, UDP_BUFFER_BYTES)
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UDP_BUFFER_BYTES)
        warn_of_udp()
