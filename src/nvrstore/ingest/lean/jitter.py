"""Datagrams that overtook each other on the way, in order again: what UDP needs before it can be read like TCP. Pure.

    7 8 10 11 9 12   ─▶   7 8 | 10 11 held | 9 10 11 12          9 never comes: 10 11 12 after HOLD_S, or with the HELD_MAXth behind it

Over a hole that stays, `Sequence.accept` tears, as over TCP; it also knows what came twice or too late. So nothing is thrown away
here but what is held already, and single packets from far back: two that follow each other are a camera that counts anew.
Packets stand in the framing of interleaved TCP. Invariant: each is held for HOLD_S at most, and HELD_MAX of them together.
"""

from __future__ import annotations

import struct
from typing import Final

from nvrstore.ingest.lean.rtp import LATE_MAX

HOLD_S: Final = 0.1
HELD_MAX: Final = 64
_NUMBERS: Final = struct.Struct(">6xH4xI")  # sequence number and SSRC, behind the framing


class Jitter:
    """The order of one track. `expected` and `ssrc` are of the packet that may pass at once while nothing is held."""

    __slots__ = ("_held", "_old", "expected", "ssrc")

    def __init__(self) -> None:
        self.expected = self.ssrc = -1
        self._held: dict[int, tuple[bytes, float]] = {}  # by number, with when each came
        self._old = (-1, b"")  # the number behind a packet from far back, and that packet

    @property
    def holds(self) -> bool:
        """Whether anything waits for what is missing in front of it."""
        return bool(self._held)

    def order(self, packets: list[bytes], now_s: float) -> list[bytes]:
        """Take in what one read brought; what may be read now, in order."""
        if self.ssrc < 0 and packets:  # nothing tells yet what comes first: the read does
            first = _NUMBERS.unpack_from(packets[0])[0]
            packets = sorted(packets, key=lambda packet: _NUMBERS.unpack_from(packet)[0] - first + 0x8000 & 0xFFFF)
        out: list[bytes] = []
        for packet in packets:
            number, ssrc = _NUMBERS.unpack_from(packet)
            ahead = number - self.expected & 0xFFFF
            if ssrc != self.ssrc:
                out += self.flush()
                self.ssrc = ssrc
                self._pass(packet, number, out)
            elif not ahead:
                self._pass(packet, number, out)
            elif ahead < 0x8000:
                self._held.setdefault(number, (packet, now_s))
                if len(self._held) >= HELD_MAX:
                    self._give_up(out)
            elif ahead >= 0x10000 - LATE_MAX:
                out.append(packet)  # late, or there twice
            elif self._old[0] == number:
                before = self._old[1]
                out += self.flush()
                out.append(before)
                self._pass(packet, number, out)
            else:
                self._old = (number + 1 & 0xFFFF, packet)
        return out + self.due(now_s)

    def due(self, now_s: float) -> list[bytes]:
        """What was held long enough."""
        out: list[bytes] = []
        while self._held and min(came_s for _, came_s in self._held.values()) <= now_s - HOLD_S:
            self._give_up(out)
        return out

    def flush(self) -> list[bytes]:
        """All that is held: nothing comes in between any more."""
        out: list[bytes] = []
        while self._held:
            self._give_up(out)
        return out

    def _pass(self, packet: bytes, number: int, out: list[bytes]) -> None:
        """Give on a packet, and those that waited for it alone."""
        out.append(packet)
        self.expected = number + 1 & 0xFFFF
        while self._held and (following := self._held.pop(self.expected, None)) is not None:
            out.append(following[0])
            self.expected = self.expected + 1 & 0xFFFF

    def _give_up(self, out: list[bytes]) -> None:
        """What is missing in front of the first one that is held does not come any more."""
        number = min(self._held, key=lambda held: held - self.expected & 0xFFFF)
        packet, _ = self._held.pop(number)
        self._pass(packet, number, out)
