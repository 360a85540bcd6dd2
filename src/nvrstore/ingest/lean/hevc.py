"""H.265 over RTP (RFC 7798): single NAL units, aggregation packets, fragmentation units; without DONL, which DESCRIBE would announce."""

from __future__ import annotations

from nvrstore.ingest.lean.hot import UnitReader


class HevcReader(UnitReader):
    """See `UnitReader`."""

    shift, mask = 1, 63
    header = 2
    fragment = 49
    whole = 48
    sei = 39
    beginnings = frozenset({32, 33, 34, 35, 39})
    slices = 32

    def _rebuilt(self, first: int, second: int, flags: int) -> tuple[bytes, int]:
        kind = flags & 63
        return bytes((first & 0x81 | kind << 1, second)), kind  # 4.4.3: layer and temporal id are the payload header's

    def _aggregate(self, buffer: bytearray, start: int, stop: int, kind: int) -> None:
        if kind == 48:
            self._several(buffer, start + 2, stop)
        else:  # PACI (50), and what is not defined
            self._damaged = True
