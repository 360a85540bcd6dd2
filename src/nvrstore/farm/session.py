"""A session: one client that listens to one camera, over interleaved TCP or over UDP.

    Camera.emit -> Session.send_unit -> TcpSession: one sendmsg [audio, head, stamp, tail]; the rest of it waits in the connection
                                        UdpSession: one datagram per packet, from the farm's own pair of ports

`sent` gets a number when the last byte of the unit was written, and only if no packet of it was lost on purpose.
"""

from __future__ import annotations

import random
import socket
from typing import TYPE_CHECKING, Final

from nvrstore.farm import rtp
from nvrstore.farm.feed import Feed, OnAir
from nvrstore.farm.ranges import Ranges

if TYPE_CHECKING:
    from nvrstore.farm.camera import Camera
    from nvrstore.farm.connection import Connection

REPORT_S: Final = 5.0  # between sender reports (RFC 3550 6.2: the minimum for small sessions)


class Session:
    """What TCP and UDP have in common: the camera, the counters, sender reports."""

    def __init__(self, session_id: str, camera: Camera, *, loss: float = 0.0, seed: int = 0) -> None:
        self.id = session_id
        self.camera = camera
        self.waiting = True  # for a key unit
        self.sent = Ranges()
        self.playing = False
        self.packets = self.octets = 0
        self.audio_packets = self.audio_octets = 0
        self.report_due_s = 0.0
        self._loss = loss
        self._random = random.Random(seed)

    @property
    def has_audio(self) -> bool:
        raise NotImplementedError

    def send_unit(self, on_air: OnAir, stamp: bytes, number: int) -> None:
        """Send a stamped unit, and the audio due with it."""
        raise NotImplementedError

    def send_report(self, packet: bytes, *, audio: bool) -> None:
        """Send an RTCP packet."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is sent any more."""
        self.playing = False
        self.camera.leave(self)

    def report(self, feed: Feed, now_s: float, utc_ns: int) -> None:
        """Send sender reports for both tracks, and set the time of the next."""
        self.report_due_s = now_s + REPORT_S
        name = self.camera.name.encode()
        self.send_report(rtp.sender_report(feed.ssrc, utc_ns, feed.timestamp_at(now_s), self.packets, self.octets, name), audio=False)
        if feed.audio is not None and self.has_audio:
            clock = feed.audio.timestamp_at(now_s - feed.start_s)
            self.send_report(rtp.sender_report(feed.audio.ssrc, utc_ns, clock, self.audio_packets, self.audio_octets, name), audio=True)

    def _count(self, on_air: OnAir, *, audio: bool) -> None:
        self.packets += on_air.packets
        self.octets += on_air.octets
        if audio:
            self.audio_packets += len(on_air.audio)
            self.audio_octets += sum(len(payload) for payload, _, _ in on_air.audio)

    def _survivors(self, packets: list[bytes]) -> list[bytes]:
        return [packet for packet in packets if self._random.random() >= self._loss]


class TcpSession(Session):
    """Interleaved in the RTSP connection. Channels are None until they are set up."""

    def __init__(self, session_id: str, camera: Camera, connection: Connection, *, loss: float = 0.0, seed: int = 0) -> None:
        super().__init__(session_id, camera, loss=loss, seed=seed)
        self.connection = connection
        self.video: tuple[int, int] | None = None
        self.audio: tuple[int, int] | None = None

    @property
    def has_audio(self) -> bool:
        return self.audio is not None

    def send_unit(self, on_air: OnAir, stamp: bytes, number: int) -> None:
        if self.waiting:
            return
        if self._loss or self.video is None:
            self._send_lossy(on_air, stamp, number)
            return
        head, tail, length = on_air.tcp(self.video[0])
        parts: tuple[bytes, ...] = (head, stamp, tail)
        if self.audio is not None and on_air.audio:
            sound = on_air.audio_tcp(self.audio[0])
            parts = (sound, *parts)
            length += len(sound)
        self._count(on_air, audio=self.audio is not None)
        if self.connection.write(parts, length, self.sent, number):
            self.sent.add(number)

    def _send_lossy(self, on_air: OnAir, stamp: bytes, number: int) -> None:
        packets: list[bytes] = []
        if self.audio is not None:
            packets += [rtp.framed(self.audio[0], packet) for packet in self._survivors(on_air.audio_packets())]
        whole = False
        if self.video is not None:
            datagrams = on_air.udp(stamp)
            kept = self._survivors(datagrams)
            whole = len(kept) == len(datagrams)
            packets += [rtp.framed(self.video[0], packet) for packet in kept]
        self._count(on_air, audio=self.audio is not None)
        data = b"".join(packets)
        if data and self.connection.write((data,), len(data), self.sent if whole else None, number) and whole:
            self.sent.add(number)

    def send_report(self, packet: bytes, *, audio: bool) -> None:
        channels = self.audio if audio else self.video
        if channels is not None:
            data = rtp.framed(channels[1], packet)
            self.connection.write((data,), len(data), None, 0)


class UdpSession(Session):
    """Datagrams to the client's ports. `rtp_socket` and `rtcp_socket` belong to the farm."""

    def __init__(
        self,
        session_id: str,
        camera: Camera,
        host: str,
        rtp_socket: socket.socket,
        rtcp_socket: socket.socket,
        *,
        loss: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(session_id, camera, loss=loss, seed=seed)
        self.host = host
        self.video: tuple[int, int] | None = None
        self.audio: tuple[int, int] | None = None
        self._rtp, self._rtcp = rtp_socket, rtcp_socket

    @property
    def has_audio(self) -> bool:
        return self.audio is not None

    def send_unit(self, on_air: OnAir, stamp: bytes, number: int) -> None:
        if self.waiting:
            return
        if self.audio is not None and on_air.audio:
            self._send(on_air.audio_packets(), self.audio[0])
        self._count(on_air, audio=self.audio is not None)
        if self.video is not None and self._send(on_air.udp(stamp), self.video[0]):
            self.sent.add(number)

    def _send(self, packets: list[bytes], port: int) -> bool:
        """Whether all of them were handed to the kernel."""
        kept = self._survivors(packets) if self._loss else packets
        whole = len(kept) == len(packets)
        address = (self.host, port)
        for packet in kept:
            try:
                self._rtp.sendto(packet, address)
            except OSError:  # the socket is full, or the client's port is gone (ECONNREFUSED): loss, as on a network
                whole = False
        return whole

    def send_report(self, packet: bytes, *, audio: bool) -> None:
        ports = self.audio if audio else self.video
        if ports is not None:
            try:
                self._rtcp.sendto(packet, (self.host, ports[1]))
            except OSError:
                return
