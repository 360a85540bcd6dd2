"""One access unit on its way out: payloads with headers, and the audio that is due with it.

    interleaved   [audio packets] [sets ... header] STAMP [slices ...]      three or four buffers for one sendmsg
    packets       set  set  header+STAMP  slice  slice ...                  one each
    datagrams     set  set  header+STAMP  [slice slice slice ...]           runs of equal size, cut by the kernel

All but the stamp is the same for all cameras of a feed. Images are built when the first session asks for them.
"""

from __future__ import annotations

from typing import Final

from nvrstore.farm import rtp
from nvrstore.farm.nal import Codec
from nvrstore.farm.reels import Unit
from nvrstore.farm.stamp import STAMP_BYTES

RUN_BYTES_MAX: Final = 60_000  # one call of UDP_SEGMENT takes an IP packet's worth
RUN_PACKETS_MAX: Final = 40  # the kernel's bound is 64


def runs(packets: list[bytes]) -> list[tuple[bytes, int]]:
    """Packets joined where they are of one size; the last one of a run may be shorter (udp(7), UDP_SEGMENT)."""
    out: list[tuple[bytes, int]] = []
    run: list[bytes] = []
    length = 0
    for packet in packets:
        size = len(packet)
        ended = run and len(run[-1]) < len(run[0])
        if run and (ended or size > len(run[0]) or len(run) == RUN_PACKETS_MAX or length + size > RUN_BYTES_MAX):
            out.append((b"".join(run), len(run[0])))
            run, length = [], 0
        run.append(packet)
        length += size
    if run:
        out.append((b"".join(run), len(run[0])))
    return out


class OnAir:
    """A unit with its place in the feed: sequence number of its first packet, timestamp, SSRC."""

    __slots__ = (
        "_audio",
        "_runs",
        "_tcp",
        "_udp",
        "audio",
        "audio_ssrc",
        "audio_type",
        "codec",
        "key",
        "octets",
        "packets",
        "seq",
        "sets",
        "slices",
        "ssrc",
        "stamp_marker",
        "timestamp",
        "unit",
    )

    def __init__(
        self, codec: Codec, unit: Unit, sets: tuple[bytes, ...], slices: tuple[bytes, ...], seq: int, timestamp: int, ssrc: int
    ) -> None:
        self.codec, self.unit, self.key = codec, unit, unit.key
        self.sets, self.slices = sets, slices
        self.seq, self.timestamp, self.ssrc = seq, timestamp, ssrc
        self.packets = len(sets) + 1 + len(slices)
        self.octets = sum(map(len, sets)) + STAMP_BYTES[codec] + sum(map(len, slices))
        self.stamp_marker = False
        self.audio: list[tuple[bytes, int, int]] = []  # payload, sequence number, timestamp
        self.audio_type = self.audio_ssrc = 0
        self._tcp: dict[int, tuple[bytes, bytes, int]] = {}
        self._udp: tuple[list[bytes], bytes, list[bytes]] | None = None
        self._runs: list[tuple[bytes, int]] | None = None
        self._audio: dict[int, bytes] = {}

    def tcp(self, channel: int) -> tuple[bytes, bytes, int]:
        """Interleaved bytes before the stamp, those after it, and the length of it all."""
        image = self._tcp.get(channel)
        if image is None:
            at = len(self.sets)
            size = STAMP_BYTES[self.codec]
            timestamp, ssrc = self.timestamp, self.ssrc
            head = rtp.framed_packets(channel, self.sets, rtp.VIDEO_PT, self.seq, timestamp, ssrc, mark_last=False)
            head.append(rtp.framed_header(channel, size, rtp.VIDEO_PT, self.seq + at, timestamp, ssrc, marker=self.stamp_marker))
            tail = rtp.framed_packets(channel, self.slices, rtp.VIDEO_PT, self.seq + at + 1, timestamp, ssrc, mark_last=True)
            before, after = b"".join(head), b"".join(tail)
            image = self._tcp[channel] = (before, after, len(before) + size + len(after))
        return image

    def _parts(self) -> tuple[list[bytes], bytes, list[bytes]]:
        """RTP packets before the stamp, the stamp's header, and packets behind it."""
        if self._udp is None:
            at = len(self.sets)
            last = self.packets - 1
            headers = [
                rtp.rtp_header(rtp.VIDEO_PT, self.seq + n, self.timestamp, self.ssrc, marker=n == last or (self.stamp_marker and n == at))
                for n in range(self.packets)
            ]
            sets = [header + payload for header, payload in zip(headers[:at], self.sets, strict=True)]
            slices = [header + payload for header, payload in zip(headers[at + 1 :], self.slices, strict=True)]
            self._udp = (sets, headers[at], slices)
        return self._udp

    def packets_with(self, stamp: bytes) -> list[bytes]:
        """One RTP packet for each payload."""
        sets, header, slices = self._parts()
        return [*sets, header + stamp, *slices]

    def datagrams_with(self, stamp: bytes) -> tuple[list[bytes], list[tuple[bytes, int]]]:
        """Packets up to the stamp, one datagram each; then runs of packets, to be cut into datagrams of the size beside them."""
        sets, header, slices = self._parts()
        if self._runs is None:
            self._runs = runs(slices)
        return [*sets, header + stamp], self._runs

    def audio_packets(self) -> list[bytes]:
        """The audio packets that are due."""
        return [
            rtp.rtp_header(self.audio_type, seq, timestamp, self.audio_ssrc, marker=True) + payload
            for payload, seq, timestamp in self.audio
        ]

    def audio_tcp(self, channel: int) -> bytes:
        """The audio packets that are due, interleaved."""
        image = self._audio.get(channel)
        if image is None:
            image = self._audio[channel] = b"".join(rtp.framed(channel, packet) for packet in self.audio_packets())
        return image
