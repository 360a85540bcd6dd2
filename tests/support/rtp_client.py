"""A small RTSP client for tests, made from the RFCs and from nothing of ours: it shows packets as they are on the wire.

    with RtspClient(url) as client:
        client.play()
        unit = client.unit()                    one access unit, depacketised: timestamp, sequence numbers, NAL units

Blocking, one stream, H.264 or H.265 (RFC 6184, RFC 7798), interleaved or UDP; audio packets and RTCP are kept aside as they come.
"""

from __future__ import annotations

import hashlib
import re
import select
import socket
import struct
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

WAIT_S = 20.0


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class RtpPacket:
    marker: bool
    payload_type: int
    seq: int
    timestamp: int
    ssrc: int
    payload: bytes


@dataclass
class AccessUnit:
    timestamp: int
    first_seq: int
    last_seq: int
    ssrc: int
    nals: list[bytes] = field(default_factory=list)

    @property
    def data(self) -> bytes:
        """As it lies in `mdat`."""
        return b"".join(struct.pack(">I", len(nal)) + nal for nal in self.nals)

    @property
    def annex_b(self) -> bytes:
        """As a byte stream."""
        return b"".join(b"\x00\x00\x00\x01" + nal for nal in self.nals)


@dataclass
class SenderReport:
    ssrc: int
    utc_s: float
    timestamp: int
    packets: int
    octets: int


class RtspClient:
    """One connection, one stream."""

    def __init__(self, url: str, *, udp: bool = False, receive_buffer_bytes: int = 0) -> None:
        parts = urlsplit(url)
        self.login = (parts.username or "", parts.password or "") if parts.username else None
        self.url = f"rtsp://{parts.hostname}:{parts.port}{parts.path}"
        self.sock = socket.socket()
        if receive_buffer_bytes:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.sock.settimeout(WAIT_S)
        self.sock.connect((parts.hostname, parts.port))
        self.sdp = ""
        self.session = ""
        self.info: dict[str, str] = {}
        self.lost = 0  # packets missing by sequence number
        self.broken = 0  # access units with a hole, left out
        self.audio: list[RtpPacket] = []
        self.reports: list[SenderReport] = []
        self._challenge: dict[str, str] = {}
        self._cseq = 0
        self._buffer = b""
        self._video: list[RtpPacket] = []
        self._last: RtpPacket | None = None
        self._udp: list[socket.socket] = _udp_sockets() if udp else []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for sock in (self.sock, *self._udp):
            sock.close()

    # --- RTSP -------------------------------------------------------------------------------------------------------

    def ask(self, method: str, url: str = "", **headers: str) -> Response:
        """One request and its response; with the login, once it was asked for."""
        self._cseq += 1
        url = url or self.url
        lines = [f"{method} {url} RTSP/1.0", f"CSeq: {self._cseq}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if self.session:
            lines.append(f"Session: {self.session}")
        if self._challenge and self.login:
            lines.append(f"Authorization: {self._digest(method, url)}")
        self.sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        answer = self._response()
        if answer.status == 401 and self.login and not self._challenge:
            header = answer.headers["www-authenticate"]
            self._challenge = dict(re.findall(r'(\w+)="?([^",]+)"?', header.partition(" ")[2]))
            return self.ask(method, url, **headers)
        return answer

    def _digest(self, method: str, url: str) -> str:
        given = self._challenge
        user, password = self.login or ("", "")
        name = given.get("algorithm", "MD5")

        def hashed(text: str) -> str:
            return hashlib.new("sha256" if name == "SHA-256" else "md5", text.encode()).hexdigest()

        one, two = hashed(f"{user}:{given['realm']}:{password}"), hashed(f"{method}:{url}")
        text = f'Digest username="{user}", realm="{given["realm"]}", nonce="{given["nonce"]}", uri="{url}"'
        if "qop" in given:
            answer = hashed(f"{one}:{given['nonce']}:00000001:abcdef:auth:{two}")
            return f'{text}, algorithm={name}, qop=auth, nc=00000001, cnonce="abcdef", response="{answer}"'
        answer = hashed(f"{one}:{given['nonce']}:{two}")
        return f'{text}, response="{answer}"'

    def _response(self) -> Response:
        while True:
            self._need(1)
            if self._buffer[:1] != b"$":
                break
            self._take_interleaved()
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        length = int(headers.get("content-length", "0"))
        self._need(length)
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return Response(int(lines[0].split()[1]), headers, body)

    def play(self, *, audio: bool = False, channels: tuple[int, int] = (0, 2)) -> None:
        """DESCRIBE, SETUP, PLAY."""
        described = self.ask("DESCRIBE", Accept="application/sdp")
        if described.status != 200:
            raise AssertionError(f"DESCRIBE: {described.status}")
        self.sdp = described.body.decode()
        for at in range(2 if audio else 1):
            if self._udp:
                first = self._udp[2 * at].getsockname()[1]
                transport = f"RTP/AVP;unicast;client_port={first}-{first + 1}"
            else:
                transport = f"RTP/AVP/TCP;unicast;interleaved={channels[at]}-{channels[at] + 1}"
            answer = self.ask("SETUP", f"{self.url}/trackID={at}", Transport=transport)
            if answer.status != 200:
                raise AssertionError(f"SETUP: {answer.status}")
            self.session = answer.headers["session"].partition(";")[0]
        self._channels = channels
        played = self.ask("PLAY", Range="npt=0-")
        if played.status != 200:
            raise AssertionError(f"PLAY: {played.status}")
        info = played.headers["rtp-info"].split(",")[0]
        self.info = {name: value for name, _, value in (part.partition("=") for part in info.split(";"))}

    # --- RTP --------------------------------------------------------------------------------------------------------

    def _more(self) -> None:
        data = self.sock.recv(65_536)
        if not data:
            raise EOFError("the farm closed the connection")
        self._buffer += data

    def _need(self, size: int) -> None:
        while len(self._buffer) < size:
            self._more()

    def _take_interleaved(self) -> None:
        self._need(4)
        channel, size = struct.unpack(">xBH", self._buffer[:4])
        self._need(4 + size)
        data, self._buffer = self._buffer[4 : 4 + size], self._buffer[4 + size :]
        video, audio = self._channels
        if channel in (video + 1, audio + 1):
            self._take_rtcp(data)
        else:
            (self._video if channel == video else self.audio).append(_packet(data))

    def _take_rtcp(self, data: bytes) -> None:
        if data[1] == 200:
            ssrc, high, low, timestamp, packets, octets = struct.unpack(">IIIIII", data[4:28])
            self.reports.append(SenderReport(ssrc, high - 2_208_988_800 + low / 2**32, timestamp, packets, octets))

    def _pump(self) -> None:
        if not self._udp:
            self._take_interleaved()
            return
        ready, _, _ = select.select(self._udp, [], [], WAIT_S)
        if not ready:
            raise TimeoutError("no datagram came")
        for sock in ready:
            data = sock.recv(65_536)
            if sock is self._udp[0]:
                self._video.append(_packet(data))
            elif sock is self._udp[2]:
                self.audio.append(_packet(data))
            else:
                self._take_rtcp(data)

    def packet(self) -> RtpPacket:
        """The next video packet."""
        while not self._video:
            self._pump()
        packet = self._video.pop(0)
        if self._last is not None and packet.ssrc == self._last.ssrc:
            self.lost += (packet.seq - self._last.seq - 1) & 0xFFFF
        self._last = packet
        return packet

    def unit(self) -> AccessUnit:
        """The next access unit of which every packet came. Raises `EOFError` at the end of the connection."""
        while True:
            packets: list[RtpPacket] = []
            whole = True
            while not packets or not packets[-1].marker:
                packet = self.packet()
                if packets and packet.timestamp != packets[-1].timestamp:  # the end of the last one was lost
                    self.broken += 1
                    packets, whole = [], True
                if packets and packet.seq != (packets[-1].seq + 1) & 0xFFFF:
                    whole = False
                packets.append(packet)
            unit = AccessUnit(packets[0].timestamp, packets[0].seq, packets[-1].seq, packets[0].ssrc)
            if whole and _depacketise(packets, unit.nals, h265="H265/90000" in self.sdp):
                return unit
            self.broken += 1

    def units(self, count: int) -> list[AccessUnit]:
        """So many access units."""
        return [self.unit() for _ in range(count)]

    def to_the_end(self) -> list[AccessUnit]:
        """All access units until the connection is closed."""
        out = []
        while True:
            try:
                out.append(self.unit())
            except EOFError:
                return out


def _packet(data: bytes) -> RtpPacket:
    first, second, seq, timestamp, ssrc = struct.unpack(">BBHII", data[:12])
    if first != 0x80:
        raise AssertionError("RTP version 2 without padding, extension and contributors was expected")
    return RtpPacket(bool(second & 0x80), second & 0x7F, seq, timestamp, ssrc, data[12:])


def _depacketise(packets: list[RtpPacket], nals: list[bytes], *, h265: bool) -> bool:
    """NAL units of a whole run of packets; False where it begins or ends inside a fragmented one."""
    part = b""
    for packet in packets:
        data = packet.payload
        kind = data[0] >> 1 & 0x3F if h265 else data[0] & 0x1F
        header = 2 if h265 else 1
        if kind == (48 if h265 else 24):
            at = header
            while at < len(data):
                size = int.from_bytes(data[at : at + 2])
                nals.append(data[at + 2 : at + 2 + size])
                at += 2 + size
        elif kind == (49 if h265 else 28):
            flags = data[header]
            if flags & 0x80:
                first = bytes((data[0] & 0x81 | (flags & 0x3F) << 1, data[1])) if h265 else bytes((data[0] & 0xE0 | flags & 0x1F,))
                part = first
            elif not part:
                return False
            part += data[header + 1 :]
            if flags & 0x40:
                nals.append(part)
                part = b""
        else:
            nals.append(data)
    return not part and bool(nals)


def _udp_sockets() -> list[socket.socket]:
    """Two pairs of neighbouring ports."""
    out: list[socket.socket] = []
    while len(out) < 4:
        pair = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
        for sock in pair:
            sock.settimeout(WAIT_S)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        pair[0].bind(("127.0.0.1", 0))
        port = pair[0].getsockname()[1]
        try:
            if port % 2 or port > 65_000:
                raise OSError("odd")
            pair[1].bind(("127.0.0.1", port + 1))
            out += pair
        except OSError:
            for sock in pair:
                sock.close()
    return out
