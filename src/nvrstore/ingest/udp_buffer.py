"""How much the kernel keeps of what comes over UDP until it is read, and the word about it where that is too little."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from nvrstore.telemetry import get_logger

UDP_BUFFER_BYTES: Final = 4 << 20  # a keyframe comes in one burst; the system gives half of what net.core.rmem_max allows
RMEM_MAX: Final = Path("/proc/sys/net/core/rmem_max")

_log = get_logger("ingest.udp")


class BufferWarning:
    """Once: the system may not allow the buffer that a keyframe needs, and then packets are lost on the last metre."""

    def __init__(self) -> None:
        self._told = False

    def __call__(self) -> None:
        if self._told:
            return
        self._told = True
        try:
            allowed = int(RMEM_MAX.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return
        if allowed < UDP_BUFFER_BYTES:
            hint = f"sysctl net.core.rmem_max={UDP_BUFFER_BYTES}"
            _log.warning("udp.buffer_small", allowed_bytes=allowed, wanted_bytes=UDP_BUFFER_BYTES, hint=hint)


warn_of_udp: Final = BufferWarning()
