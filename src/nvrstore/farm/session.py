"""A session: one client that listens to one camera, over interleaved TCP or over UDP.

    Camera.emit -> Session.send_unit -> TcpSession: one sendmsg [audio, head, stamp, tail]; the rest of it waits in the connection
                                        UdpSession: one datagram per packet, from the farm's own pair of ports; packets of
                                        one size go in one call, and the kernel cuts them (UDP_SEGMENT)

`sent` gets a number when the last byte of the unit was written, and only if no packet of it was lost on purpose.
"""

from __future__ import annotations

import math
import random
import socket
import struct
from typing import TYPE_CHECKING, Final

from nvrstore.farm import rtp
from nvrstore.farm.feed import Feed
from nvrstore.farm.oddities import LATE_S, Reports
from nvrstore.farm.on_air import OnAir
from nvrstore.farm.ranges import Ranges

if TYPE_CHECKING:
    from nvrstore.farm.camera import Camera
    from nvrstore.farm.connection import Connection

REPORT_S: Final = 5.0  # between sender reports (RFC 3550 6.2: the minimum for small sessions)
_SOL_UDP, _UDP_SEGMENT = 17, 103  # linux/udp.h
CLOCK_NEVER_SET_NS: Final = 3_600_000_000_000  # an hour after 1970: what such a camera believes


class Session:
    """What TCP and UDP have in common: the camera, the counters, sender reports."""

    def __init__(self, session_id: str, camera: Camera, *, loss: float, seed: int) -> None:
        self.id = session_id
        self.camera = camera
        self.waiting = True  # for a key unit
        self.playing = False
        self.sent = Ranges()
        self.video: tuple[int, int] | None = None  # channels, or the client's ports, once they are set up
        self.audio: tuple[int, int] | None = None
        self._loss = loss
        self._random = random.Random(seed)
        self._report_due_s = math.inf
        self._before = (0, 0, 0, 0)  # what the feed had sent when it was joined

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

    def join(self, feed: Feed) -> None:
        """Begin to count for sender reports; the first one comes with the first unit."""
        self.playing = True
        self._before = _totals(feed)
        match self.camera.look.traits.reports:
            case Reports.NONE:
                self._report_due_s = math.inf
            case Reports.LATE:
                self._report_due_s = feed.due_s + LATE_S
            case _:
                self._report_due_s = 0.0

    def report(self, feed: Feed, now_s: float, utc_ns: int) -> float:
        """Send sender reports for both tracks if they are due; when the next are."""
        if self._report_due_s > now_s:
            return self._report_due_s
        if self.waiting:
            return now_s
        self._report_due_s = now_s + REPORT_S
        name = self.camera.name.encode()
        packets, octets, audio_packets, audio_octets = (total - before for total, before in zip(_totals(feed), self._before, strict=True))
        odd = self.camera.look.traits.reports
        stranger = int(odd is Reports.STRANGER)
        if odd is Reports.WRONG:
            utc_ns = CLOCK_NEVER_SET_NS + round(now_s * 1e9)
        if self.video is not None:
            clock = feed.timestamp_at(now_s)
            self.send_report(rtp.sender_report(feed.ssrc ^ stranger, utc_ns, clock, packets, octets, name), audio=False)
        if feed.audio is not None and self.audio is not None:
            clock = feed.audio.timestamp_at(now_s - feed.start_s)
            self.send_report(rtp.sender_report(feed.audio.ssrc ^ stranger, utc_ns, clock, audio_packets, audio_octets, name), audio=True)
        return self._report_due_s

    def _survivors(self, packets: list[bytes]) -> list[bytes]:
        if not self._loss:
            return packets
        return [packet for packet in packets if self._random.random() >= self._loss]


def _totals(feed: Feed) -> tuple[int, int, int, int]:
    audio = (0, 0) if feed.audio is None else (feed.audio.packets_sent, feed.audio.octets_sent)
    return (feed.packets_sent, feed.octets_sent, *audio)


class TcpSession(Session):
    """Interleaved in the RTSP connection."""

    def __init__(self, session_id: str, camera: Camera, connection: Connection, *, loss: float, seed: int) -> None:
        super().__init__(session_id, camera, loss=loss, seed=seed)
        self.connection = connection

    def send_unit(self, on_air: OnAir, stamp: bytes, number: int) -> None:
        if self.waiting:
            return
        if self._loss or self.video is None:
            self._send_lossy(on_air, stamp, number)
            return
        head, tail, length = on_air.tcp(self.video[0])
        if self.audio is not None and on_air.audio:
            sound = on_air.audio_tcp(self.audio[0])
            if self.connection.write((sound, head, stamp, tail), length + len(sound), self.sent, number):
                self.sent.add(number)
        elif self.connection.write((head, stamp, tail), length, self.sent, number):
            self.sent.add(number)

    def _send_lossy(self, on_air: OnAir, stamp: bytes, number: int) -> None:
        """Packet by packet, for streams that lose some, and for sessions with sound alone."""
        packets: list[bytes] = []
        if self.audio is not None:
            packets += [rtp.framed(self.audio[0], packet) for packet in self._survivors(on_air.audio_packets())]
        whole = False
        if self.video is not None:
            datagrams = on_air.packets_with(stamp)
            kept = self._survivors(datagrams)
            whole = len(kept) == len(datagrams)
            packets += [rtp.framed(self.video[0], packet) for packet in kept]
        data = b"".join(packets)
        if data and self.connection.write((data,), len(data), self.sent if whole else None, number) and whole:
            self.sent.add(number)

    def send_report(self, packet: bytes, *, audio: bool) -> None:
        channels = self.audio if audio else self.video
        if channels is not None:
            data = rtp.framed(channels[1], packet)
            self.connection.write((data,), len(data), None, 0)


class UdpSession(Session):
    """Datagrams to the client's ports. The sockets belong to the farm."""

    def __init__(
        self, session_id: str, camera: Camera, host: str, rtp_socket: socket.socket, rtcp_socket: socket.socket, *, loss: float, seed: int
    ) -> None:
        super().__init__(session_id, camera, loss=loss, seed=seed)
        self._host = host
        self._rtp, self._rtcp = rtp_socket, rtcp_socket
        self._segments = True  # as long as the kernel cuts runs into datagrams

    def send_unit(self, on_air: OnAir, stamp: bytes, number: int) -> None:
        if self.waiting:
            return
        if self.audio is not None and on_air.audio:
            self._send(self._survivors(on_air.audio_packets()), (self._host, self.audio[0]))
        if self.video is None:
            return
        address = (self._host, self.video[0])
        if self._loss or not self._segments:
            packets = on_air.packets_with(stamp)
            kept = self._survivors(packets)
            whole = self._send(kept, address) and len(kept) == len(packets)
        else:
            packets, runs = on_air.datagrams_with(stamp)
            whole = self._send(packets, address)
            for run, size in runs:
                whole = self._send_run(run, size, address) and whole
        if whole:
            self.sent.add(number)

    def _send(self, packets: list[bytes], address: tuple[str, int]) -> bool:
        """Whether all of them were handed to the kernel."""
        whole = True
        for packet in packets:
            try:
                self._rtp.sendto(packet, address)
            except OSError:  # the socket is full, or the network gone: loss, as on a network
                whole = False
        return whole

    def _send_run(self, run: bytes, size: int, address: tuple[str, int]) -> bool:
        """Packets of one size in one call; one by one where the kernel or the interface cannot."""
        if len(run) <= size:
            return self._send([run], address)
        try:
            self._rtp.sendmsg((run,), [(_SOL_UDP, _UDP_SEGMENT, struct.pack("@H", size))], 0, address)
        except BlockingIOError:
            return False
        except OSError:
            self._segments = False
            return self._send([run[at : at + size] for at in range(0, len(run), size)], address)
        return True

    def send_report(self, packet: bytes, *, audio: bool) -> None:
        ports = self.audio if audio else self.video
        if ports is not None:
            try:
                self._rtcp.sendto(packet, (self._host, ports[1]))
            except OSError:
                return
