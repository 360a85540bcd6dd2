"""RTP, RTCP and RTSP in one TCP connection (RFC 2326 10.12), told apart in the receive buffer. Pure.

    '$' channel u16 length packet      handed to the channel's reader, which takes as many as it can at once
    RTSP/1.0 200 OK ...                handed to `on_message`, whole

Cameras put stray bytes between frames: behind such, the next frame that looks like one of ours is searched for, within
STRAY_BYTES_MAX. Before anything is set up there is nothing to look for, and stray bytes end the session.
Packets on channels that nobody set up (an old session that the server goes on serving) are told to `on_stranger`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final, Protocol

from nvrstore.ingest.lean.messages import MessageError, find_end

STRAY_BYTES_MAX: Final = 1 << 20
_TEXT: Final = re.compile(rb"RTSP/\d|[A-Z_]{3,20} ", re.IGNORECASE)
_TEXT_BYTES: Final = 24  # so many tell a message from stray bytes
_CANDIDATE_BYTES: Final = 6  # a beginning of either may be so long, and not be whole
_SPACE: Final = b"\r\n \t"


class Reader(Protocol):
    """Who takes the packets of a channel."""

    def take(self, buffer: bytearray, at: int, end: int) -> int:
        """Read whole frames of this channel from `at` on, at least one if there is one; where the next frame begins."""


class Demux:
    """One connection's bytes. `readers` may change at any time, also from within `on_message`."""

    def __init__(self, on_message: Callable[[bytes], None], on_stranger: Callable[[int, int], None]) -> None:
        self.readers: list[Reader | None] = [None] * 256
        self.stray_bytes = 0
        self._on_message, self._on_stranger = on_message, on_stranger
        self._straying = 0  # stray bytes in a row

    def feed(self, buffer: bytearray, end: int) -> int:
        """Read what is whole in front of `end`; where the rest begins, which is to stand in front the next time. Raises `MessageError`."""
        at = 0
        readers = self.readers
        while end - at >= 5:
            if buffer[at] != 0x24:
                following = self._other(buffer, at, end)
                if following == at:
                    break
                at = following
                continue
            following = at + 4 + (buffer[at + 2] << 8 | buffer[at + 3])
            if buffer[at + 4] >> 6 != 2 and following != at + 4 and any(readers):
                at = self._resume(buffer, at, end)  # a stray dollar sign, as if a frame began here
                continue
            if following > end:
                break
            self._straying = 0
            reader = readers[buffer[at + 1]]
            if reader is None:
                if following - at >= 16:
                    self._on_stranger(buffer[at + 1], int.from_bytes(buffer[at + 12 : at + 16], "big"))
                at = following
            else:
                at = max(following, reader.take(buffer, at, end))
        return at

    def _other(self, buffer: bytearray, at: int, end: int) -> int:
        """Something that is no interleaved frame; where it ends, `at` while it is not whole."""
        if buffer[at] in _SPACE:
            return at + 1
        if _TEXT.match(buffer, at, end) is not None:
            whole = find_end(buffer, at, end)
            if not whole:
                return at
            self._straying = 0
            self._on_message(bytes(buffer[at:whole]))
            return whole
        if not any(self.readers):
            if end - at < _TEXT_BYTES and buffer[at : at + 4].upper() == b"RTSP"[: end - at]:
                return at
            raise MessageError("what came is no RTSP")
        return self._resume(buffer, at, end)

    def _resume(self, buffer: bytearray, start: int, end: int) -> int:
        """Behind stray bytes: where the next frame or message may begin."""
        channels = bytes(channel for channel, reader in enumerate(self.readers) if reader is not None)
        found = _plausible(channels).search(buffer, start + 1, end)
        at = found.start() if found is not None else max(start + 1, end - _CANDIDATE_BYTES)
        self._straying += at - start
        self.stray_bytes += at - start
        if self._straying > STRAY_BYTES_MAX:
            raise MessageError("what came is neither RTSP nor RTP")
        return at


@lru_cache(maxsize=256)
def _plausible(channels: bytes) -> re.Pattern[bytes]:
    """A frame of RTP or RTCP on one of these channels, long enough for its header; or a message."""
    known = b"".join(re.escape(bytes((channel,))) for channel in channels)
    return re.compile(rb"(?s)\$[%b](?:\0[\x08-\xff]|[\x01-\xff].)[\x80-\xbf]|RTSP/1\." % known)
