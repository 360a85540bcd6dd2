"""RTP and RTCP as far as a receiver needs them (RFC 3550). Pure.

    Sequence      which packets of a track to take, which were lost; one per track
    payload_of    the way through a header that is not the plain one: CSRCs, extension, padding
    sender_report, receiver_report

Packets of another SSRC are taken only when two of them follow each other directly (RFC 3550 A.1): the camera was restarted. Old
sessions that some servers go on sending into new connections do not get that far; their SSRCs, known before PLAY, never do.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from nvrstore.model import NS_PER_S

FRAME_BYTES: Final = 16  # framing and the fixed RTP header
LATE_MAX: Final = 64  # packets this far behind are late or doubled; further back the numbers began anew
NTP_UNIX_S: Final = 2_208_988_800  # from 1900 to 1970
STRANGERS_MAX: Final = 64

_REPORT: Final = struct.Struct(">BBHIIIIIII")
_SENDER: Final = struct.Struct(">III")
_DESCRIPTION: Final = struct.Struct(">BBHIBB8s2s")


class Sequence:
    """The sequence numbers of one track (RFC 3550 A.1)."""

    __slots__ = ("_candidate", "_cycles", "_highest", "expected", "late", "lost", "ssrc", "strangers", "switched", "torn", "waiting")

    def __init__(self) -> None:
        self.expected = -1  # the next number
        self.ssrc = -1
        self.lost = 0  # packets that never came
        self.late = 0  # that came twice, or too late
        self.torn = False  # whether packets are missing in front of the one that was accepted last, or it is the first
        self.strangers: set[int] = set()  # SSRCs that belong to other sessions
        self.waiting = self.switched = False  # the packet that was not accepted may be the first of another source; it was
        self._candidate = (-1, -1, -1)
        self._cycles = self._highest = 0

    def accept(self, number: int, ssrc: int) -> bool:
        """Whether to take a packet that is not the expected one. Sets `torn`, `waiting` and `switched`."""
        self.torn = self.waiting = self.switched = False
        if ssrc != self.ssrc:
            if ssrc in self.strangers:
                return False
            known = self.ssrc >= 0
            if known and self._candidate != (ssrc, number, self.expected):
                self._candidate = (ssrc, number + 1 & 0xFFFF, self.expected)
                self.waiting = True
                return False
            self.ssrc, self.torn, self.switched = ssrc, not known, known
            return True
        missing = number - self.expected & 0xFFFF
        if missing >= 0x10000 - LATE_MAX:
            self.late += 1
            return False
        self.lost += missing if missing < 0x8000 else 1
        self.torn = True
        return True

    def highest(self) -> int:
        """The highest number so far with the count of wraps above it; asked a few times per wrap."""
        highest = self.expected - 1 & 0xFFFF
        self._cycles = (self._cycles + (highest < self._highest)) & 0xFFFF
        self._highest = highest
        return self._cycles << 16 | highest


def payload_of(buffer: bytearray, start: int, end: int, payload_type: int) -> tuple[int, int, bool] | None:
    """Where the payload of an RTP packet lies, and its marker bit; None for what is no packet of this type, or has no payload."""
    if end - start <= 12 or buffer[start] >> 6 != 2 or buffer[start + 1] & 0x7F != payload_type:
        return None
    first = buffer[start]
    at = start + 12 + 4 * (first & 15)
    if first & 0x10:
        if at + 4 > end:
            return None
        at += 4 + 4 * (buffer[at + 2] << 8 | buffer[at + 3])
    if first & 0x20:
        end -= max(1, buffer[end - 1])
    return (at, end, bool(buffer[start + 1] & 0x80)) if at < end else None


class SenderReport(NamedTuple):
    """The camera's clock (RFC 3550 6.4.1): `utc_ns` was at `timestamp`."""

    ssrc: int
    utc_ns: int
    timestamp: int
    ntp_middle: int  # what a receiver report gives back


def sender_report(packet: bytes | bytearray) -> SenderReport | None:
    """The sender report in a compound RTCP packet, if there is one."""
    at = 0
    for _ in range(32):
        if at + 8 > len(packet) or packet[at] >> 6 != 2:
            return None
        size = 4 + 4 * (packet[at + 2] << 8 | packet[at + 3])
        if packet[at + 1] == 200 and size >= 28 and at + 20 <= len(packet):
            ssrc = int.from_bytes(packet[at + 4 : at + 8], "big")
            seconds, fraction, timestamp = _SENDER.unpack_from(packet, at + 8)
            if not seconds and not fraction:
                return None  # 6.4.1: it has no clock
            if seconds < 0x8000_0000:
                seconds += 1 << 32  # the era that begins in 2036
            utc_ns = (seconds - NTP_UNIX_S) * NS_PER_S + (fraction * NS_PER_S >> 32)
            return SenderReport(ssrc, utc_ns, timestamp, (seconds & 0xFFFF) << 16 | fraction >> 16)
        at += size
    return None


def receiver_report(own_ssrc: int, sequence: Sequence, report_middle: int, delay_s: float) -> bytes:
    """A receiver report and its source description (RFC 3550 6.4.2), without jitter, which nobody measures."""
    lost, delay = min(sequence.lost, 0x7FFFFF), min(max(0, round(delay_s * 65_536)), 0xFFFFFFFF) if report_middle else 0
    report = _REPORT.pack(0x81, 201, 7, own_ssrc, sequence.ssrc & 0xFFFFFFFF, lost, sequence.highest(), 0, report_middle, delay)
    return report + _DESCRIPTION.pack(0x81, 202, 4, own_ssrc, 1, 8, b"nvrstore", b"")
