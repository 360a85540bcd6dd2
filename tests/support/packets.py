"""RTP packets made by hand for tests of depacketisers: interleaved frames from NAL units, cut in any of the ways that cameras cut.

wire = Wire(codec="h264")
data = wire.unit([nal, nal], timestamp=3000, cut=1200)        the frames of one access unit, marker on the last packet
heard = listen(wire, data)                                    what a reader makes of them
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from nvrstore.ingest.lean.h264 import H264Reader
from nvrstore.ingest.lean.hevc import HevcReader
from nvrstore.ingest.lean.hot import UnitReader
from nvrstore.ingest.lean.interleaved import Demux

READERS: dict[str, type[UnitReader]] = {"h264": H264Reader, "hevc": HevcReader}
BUFFER_BYTES = 1 << 18


def packet(
    payload: bytes, seq: int, timestamp: int, *, ssrc: int = 7, payload_type: int = 96, marker: bool = False, first: int = 0x80
) -> bytes:
    """One RTP packet."""
    return struct.pack(">BBHII", first, payload_type | marker << 7, seq & 0xFFFF, timestamp & 0xFFFFFFFF, ssrc) + payload


def framed(data: bytes, channel: int = 0) -> bytes:
    """One interleaved frame."""
    return struct.pack(">cBH", b"$", channel, len(data)) + data


def fragments(codec: str, nal: bytes, cut: int) -> list[bytes]:
    """Payloads of a NAL unit that is too large for one packet (RFC 6184 5.8, RFC 7798 4.4.3), `cut` bytes of it in each."""
    size = 1 if codec == "h264" else 2
    kind = nal[0] & 31 if codec == "h264" else nal[0] >> 1 & 63
    head = bytes((nal[0] & 0xE0 | 28,)) if codec == "h264" else bytes((nal[0] & 0x81 | 49 << 1, nal[1]))
    body = nal[size:]
    pieces = [body[at : at + cut] for at in range(0, len(body), cut)]
    last = len(pieces) - 1
    return [head + bytes((0x80 * (i == 0) | 0x40 * (i == last) | kind,)) + piece for i, piece in enumerate(pieces)]


def aggregate(codec: str, nals: Sequence[bytes]) -> bytes:
    """One payload for several NAL units (RFC 6184 5.7.1, RFC 7798 4.4.2)."""
    head = b"\x78" if codec == "h264" else b"\x60\x01"
    return head + b"".join(struct.pack(">H", len(nal)) + nal for nal in nals)


@dataclass
class Wire:
    """A camera's end of one video track."""

    codec: str = "h264"
    seq: int = 65_530  # numbers wrap soon
    channel: int = 0
    payload_type: int = 96
    ssrc: int = 7

    def packets(self, payloads: Iterable[bytes], timestamp: int, *, marker: bool = True) -> list[bytes]:
        """Framed packets, the marker on the last one."""
        bodies = list(payloads)
        made = []
        for i, payload in enumerate(bodies):
            mark = marker and i == len(bodies) - 1
            data = packet(payload, self.seq, timestamp, ssrc=self.ssrc, payload_type=self.payload_type, marker=mark)
            made.append(framed(data, self.channel))
            self.seq = self.seq + 1 & 0xFFFF
        return made

    def unit(self, nals: Sequence[bytes], timestamp: int, *, cut: int = 1200, marker: bool = True) -> list[bytes]:
        """The frames of one access unit."""
        payloads: list[bytes] = []
        for nal in nals:
            payloads += [nal] if len(nal) <= cut else fragments(self.codec, nal, cut)
        return self.packets(payloads, timestamp, marker=marker)


@dataclass
class Unit:
    """One access unit as a reader told it."""

    data: bytes = field(repr=False)
    kinds: int
    timestamp: int
    damaged: bool
    arrival_s: float

    @property
    def nals(self) -> list[bytes]:
        found, at = [], 0
        while at < len(self.data):
            size = int.from_bytes(self.data[at : at + 4], "big")
            found.append(self.data[at + 4 : at + 4 + size])
            assert len(found[-1]) == size, "a length says more than there is"
            at += 4 + size
        return found


class Units:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.units: list[Unit] = []
        self.flushed = 0

    def unit(self, data: bytes, kinds: int, timestamp: int, damaged: bool, arrival_ns: int, arrival_s: float) -> None:
        assert type(data) is bytes
        self.units.append(Unit(data, kinds, timestamp, damaged, arrival_s))

    def deliver(self) -> None:
        pass

    def flush(self) -> None:
        self.flushed += 1


class Line:
    """Reader, demultiplexer and receive buffer, fed as a socket would feed them."""

    def __init__(self, codec: str = "h264", *, channel: int = 0, payload_type: int = 96) -> None:
        self.sink = Units()
        self.reader = READERS[codec](channel, payload_type, self.sink)
        self.messages: list[bytes] = []
        self.strangers: list[tuple[int, int]] = []
        self.demux = Demux(self.messages.append, lambda channel, ssrc: self.strangers.append((channel, ssrc)))
        self.demux.readers[channel] = self.reader
        self._buffer = bytearray(BUFFER_BYTES)
        self._rest = b""
        self._reads = 0

    def feed(self, data: bytes) -> None:
        """One read."""
        self._reads += 1
        self.reader.arrival_ns, self.reader.arrival_s = self._reads * 1_000_000_000, float(self._reads)
        whole = self._rest + data
        self._buffer[: len(whole)] = whole
        used = self.demux.feed(self._buffer, len(whole))
        assert 0 <= used <= len(whole)
        self._rest = whole[used:]
        for i in range(len(whole)):  # nothing may refer to the buffer any more
            self._buffer[i] = 0xEE

    def feed_in(self, data: bytes, sizes: Iterable[int]) -> None:
        """Several reads of these sizes, and one more for the rest."""
        at = 0
        for size in sizes:
            if at >= len(data):
                return
            self.feed(data[at : at + size])
            at += size
        if at < len(data):
            self.feed(data[at:])

    @property
    def units(self) -> list[Unit]:
        return self.sink.units
