"""H.264 over RTP (RFC 6184): single NAL units, STAP-A, FU-A; what non-interleaved mode sends (packetization-mode 0 and 1)."""

from __future__ import annotations

from nvrstore.ingest.lean.hot import UnitReader


class H264Reader(UnitReader):
    """See `UnitReader`."""

    shift, mask = 0, 31
    header = 1
    fragment = 28  # FU-A
    whole = 24
    sei = 6
    beginnings = frozenset({6, 7, 8, 9, 15})
    slices = 6

    def _rebuilt(self, first: int, second: int, flags: int) -> tuple[bytes, int]:
        kind = flags & 31
        return bytes((first & 0xE0 | kind,)), kind  # 5.8: F and NRI are the indicator's

    def _aggregate(self, buffer: bytearray, start: int, stop: int, kind: int) -> None:
        if kind == 24:  # STAP-A
            self._several(buffer, start + 1, stop)
        else:  # STAP-B, MTAPs and FU-B belong to interleaved mode, which nobody offered
            self._damaged = True
