"""A camera that answers as a test says: a few lines of RTSP over a real socket, and H.264 that the test packs itself.

    with Camera(on_play=lambda camera: camera.send(...)) as camera: ... camera.url ... camera.requests

One thread per connection. Asked for ports instead of channels it sends over UDP. `answers` replaces the answer to a method: text of
headers to add, or a whole response in bytes.
"""

from __future__ import annotations

import base64
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.support.encoded import encode_video
from tests.support.packets import Wire

from nvrstore.media.nal import ParameterSets, split_annexb

WAIT_S = 20.0


@dataclass
class Request:
    method: str
    url: str
    headers: dict[str, str]


class Peer:
    """One connection to a camera, in its thread."""

    def __init__(self, camera: Camera, sock: socket.socket) -> None:
        self.camera, self.sock = camera, sock
        self.wire = Wire(seq=1)
        self.pictures = pictures()
        self.timestamp = 0
        self.lock = threading.Lock()
        self.udp: list[socket.socket] = []  # for packets and for reports, where UDP was asked for
        self.ports = 0  # the first of the recorder's

    def set_up(self, transport: str) -> str:
        """Take what is asked for; what to answer."""
        ports = re.search(r"client_port=(\d+)", transport)
        if ports is None:
            self.wire.channel = int(transport.partition("interleaved=")[2].partition("-")[0])
            return transport
        self.ports = int(ports[1])
        self.udp = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
        for sock in self.udp:
            sock.bind(("127.0.0.1", 0))
            sock.settimeout(WAIT_S)
        return f"{transport};server_port={self.udp[0].getsockname()[1]}-{self.udp[1].getsockname()[1]}"

    def throw(self, frames: Iterable[bytes], *, sock: socket.socket | None = None) -> None:
        """Packets as datagrams, their framing taken off."""
        for frame in frames:
            (sock or self.udp[0]).sendto(frame[4:], ("127.0.0.1", self.ports))

    def next(self, count: int, *, cut: int = 1200) -> list[list[bytes]]:
        """The frames of each of the next pictures."""
        made = []
        for _ in range(count):
            made.append(self.wire.unit(next(self.pictures), self.timestamp, cut=cut))
            self.timestamp += 3600
        return made

    def send(self, data: bytes) -> None:
        """Whole, or the connection is gone."""
        try:
            with self.lock:
                self.sock.sendall(data)
        except OSError:
            pass

    def play(self, count: int = 1) -> None:
        """The next pictures."""
        for frames in self.next(count):
            if self.udp:
                self.throw(frames)
            else:
                self.send(b"".join(frames))

    def serve(self) -> None:
        data = b""
        try:
            while True:
                while b"\r\n\r\n" not in data:
                    more = self.sock.recv(65_536)
                    if not more:
                        return
                    data += more
                    while data[:1] == b"$" and len(data) >= 4 + int.from_bytes(data[2:4], "big"):
                        self.camera.reported(data[4 : 4 + int.from_bytes(data[2:4], "big")])
                        data = data[4 + int.from_bytes(data[2:4], "big") :]
                head, _, data = data.partition(b"\r\n\r\n")
                first, *lines = head.decode().split("\r\n")
                method, url, _ = first.split()
                headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                self.camera.answer(self, Request(method, url, headers))
        except OSError:
            return
        finally:
            for sock in (self.sock, *self.udp):
                sock.close()


def pictures() -> Iterator[list[bytes]]:
    """NAL units of pictures, for ever, a keyframe first and every second."""
    encoded = encode_video("h264", width=160, height=120, frames=25)
    while True:
        for data, _, _, _ in encoded.packets:
            yield split_annexb(data)


def description(audio: str = "") -> bytes:
    """What such a camera says about itself."""
    sets = ParameterSets.of_extradata("h264", encode_video("h264", width=160, height=120, frames=25).extradata)
    sprop = ",".join(base64.b64encode(nal).decode() for nal in sets.all())
    lines = ["v=0", "m=video 0 RTP/AVP 96", "a=rtpmap:96 H264/90000", f"a=fmtp:96 packetization-mode=1;sprop-parameter-sets={sprop}"]
    lines += ["a=control:trackID=0", *([audio] if audio else [])]
    return "\r\n".join(lines).encode() + b"\r\n"


@dataclass
class Camera:
    """A listening camera. `answers` by method; `on_play` is called in the connection's thread behind the answer to PLAY."""

    on_play: Callable[[Peer], None] = lambda peer: peer.play(30)
    on_connect: Callable[[Peer], None] = lambda peer: None
    answers: dict[str, str | bytes | None] = field(default_factory=dict)
    body: bytes = field(default_factory=description)
    tls: Path | None = None  # a file with certificate and key
    requests: list[Request] = field(default_factory=list)
    reports: list[bytes] = field(default_factory=list)
    peers: list[Peer] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.changed = threading.Condition()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for peer in self.peers:
            try:
                peer.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self._threads:
            thread.join(WAIT_S)

    @property
    def url(self) -> str:
        return f"{'rtsps' if self.tls else 'rtsp'}://127.0.0.1:{self._listener.getsockname()[1]}/main"

    def wait(self, what: Callable[[], object]) -> None:
        """Until `what` is true of the requests that came."""
        with self.changed:
            if not self.changed.wait_for(what, WAIT_S):
                raise AssertionError("it never came")

    def reported(self, report: bytes) -> None:
        """An RTCP packet of the recorder's."""
        with self.changed:
            self.reports.append(report)
            self.changed.notify_all()

    def asked(self, method: str) -> int:
        return sum(request.method == method for request in self.requests)

    def _accept(self) -> None:
        context = None
        if self.tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.tls)
        while True:
            try:
                sock, _ = self._listener.accept()
                if context is not None:
                    sock = context.wrap_socket(sock, server_side=True)
            except ssl.SSLError:
                continue
            except OSError:
                return
            peer = Peer(self, sock)
            self.peers.append(peer)
            self.on_connect(peer)
            thread = threading.Thread(target=peer.serve)
            thread.start()
            self._threads.append(thread)

    def answer(self, peer: Peer, request: Request) -> None:
        """Answer one request."""
        with self.changed:
            self.requests.append(request)
            self.changed.notify_all()
        said = self.answers.get(request.method, "")
        if said is None:
            return
        if isinstance(said, bytes):
            peer.send(said.replace(b"CSEQ", request.headers["cseq"].encode()))
            return
        lines = ["RTSP/1.0 200 OK", f"CSeq: {request.headers['cseq']}", *([said] if said else [])]
        body = b""
        match request.method:
            case "DESCRIBE":
                body = self.body
                lines.append(f"Content-Length: {len(body)}")
            case "SETUP" if "Session" not in said:
                lines += ["Session: 42;timeout=60", f"Transport: {peer.set_up(request.headers['transport'])}"]
            case _:
                pass
        peer.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        if request.method == "PLAY":
            self.on_play(peer)
