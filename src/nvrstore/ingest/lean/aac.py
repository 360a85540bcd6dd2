"""AAC over RTP (RFC 3640, modes AAC-hbr and AAC-lbr): access units behind a list of their sizes; a large one in several packets.

    u16 AU-headers-length in bits | size, index (13 + 3 bits in AAC-hbr) ... padded to bytes | access unit | access unit ...

Some cameras put ADTS headers in front of the access units all the same: they are taken off.
"""

from __future__ import annotations

from typing import Any, Final

import av
import av.error

from nvrstore.errors import SourceNotVideoError
from nvrstore.ingest.contract import Receiver
from nvrstore.ingest.lean.sdp import Section
from nvrstore.ingest.lean.sound import SoundReader
from nvrstore.media.audio import AudioTranscoder, split_adts
from nvrstore.media.init import AAC_RATES, audio_config
from nvrstore.model import TrackConfig

FRAME: Final = 1024  # samples (ISO/IEC 14496-3 4.5.2.1)
UNIT_BYTES_MAX: Final = 8191  # 13 bits
UNITS_MAX: Final = 64
_EXTRAS: Final = (
    "ctsdeltalength",
    "dtsdeltalength",
    "streamstateindication",
    "auxiliarydatasizelength",
    "randomaccessindication",
    "constantsize",
)


def speaks(section: Section) -> bool:
    """Whether access units can be found in this camera's packets: no interleaving, no other fields in their headers."""
    extras = (
        "ctsdeltalength",
        "dtsdeltalength",
        "streamstateindication",
        "auxiliarydatasizelength",
        "randomaccessindication",
        "constantsize",
    )
    return not any(_number(section, name) for name in extras) and 0 < _number(section, "sizelength", 13) <= 16


def _number(section: Section, name: str, default: int = 0) -> int:
    text = section.parameters.get(name, "")
    return int(text) if text.isdecimal() and len(text) < 6 else default


class AacReader(SoundReader):
    """See `SoundReader`."""

    def __init__(self, channel: int, section: Section, stream: str, receiver: Receiver, *, transcode: str = "") -> None:
        super().__init__(channel, section, stream, receiver, transcode=transcode)
        self._size_bits = _number(section, "sizelength", 13)
        self._header_bits = self._size_bits + max(_number(section, "indexlength", 3), _number(section, "indexdeltalength", 3))
        self._described = _described(section)
        self._rate = _core_rate(self._described) or section.clock_hz
        self._pending = b""  # of an access unit in several packets
        self._pending_bytes = self._pending_timestamp = 0

    def frames(self, payload: bytes, timestamp: int) -> list[tuple[bytes, int]]:
        bits = int.from_bytes(payload[:2], "big")
        at = 2 + (bits + 7) // 8
        headers = int.from_bytes(payload[2:at], "big") >> -bits % 8
        count = min(bits // self._header_bits, UNITS_MAX)
        left = bits
        found = []
        for _ in range(count):
            left -= self._header_bits
            size = headers >> left + self._header_bits - self._size_bits & (1 << self._size_bits) - 1
            found.append(payload[at : at + size])
            if at + size > len(payload):
                return self._part(found.pop(), size, timestamp) if count == 1 else self._units(found[:-1])
            at += size
        self._pending = b""
        return self._units(found)

    def torn(self) -> None:
        self._pending = b""

    def _part(self, part: bytes, size: int, timestamp: int) -> list[tuple[bytes, int]]:
        """A piece of an access unit that does not fit into one packet (3.2.3.1): every piece has the size of the whole."""
        if (size, timestamp) != (self._pending_bytes, self._pending_timestamp):
            self._pending = b""
        self._pending_bytes, self._pending_timestamp = size, timestamp
        self._pending += part
        if len(self._pending) < size:
            return []
        whole, self._pending = self._pending[:size], b""
        return self._units([whole])

    def _units(self, units: list[bytes]) -> list[tuple[bytes, int]]:
        found = []
        for unit in units:
            raw, described = split_adts(unit)
            self._described = self._described or described
            found += raw
        step = FRAME * self.section.clock_hz // self._rate
        return [(unit, step * i) for i, unit in enumerate(found)]

    def config(self) -> TrackConfig:
        return audio_config("aac", self.section.clock_hz, self.section.channels, self._described)

    def transcoder(self) -> AudioTranscoder:
        decoder: Any = av.CodecContext.create("aac", "r")
        decoder.extradata = self._described or None
        decoder.sample_rate = self._rate
        try:
            decoder.open()
        except (av.error.FFmpegError, ValueError) as error:
            raise SourceNotVideoError(f"AAC with this configuration cannot be decoded: {error}") from None
        return AudioTranscoder("aac", self._rate, self.section.channels, target="pcm", decoder=decoder)


def _described(section: Section) -> bytes:
    """The AudioSpecificConfig of the description, if it can be read."""
    try:
        config = bytes.fromhex(section.parameters.get("config", ""))
    except ValueError:
        return b""
    return config if _core_rate(config) else b""


def _core_rate(config: bytes) -> int:
    """Samples per second of an AudioSpecificConfig's core (ISO/IEC 14496-3 1.6.2.1); 0 where it says nothing."""
    if len(config) < 2:
        return 0
    bits = int.from_bytes(config[:6].ljust(6, b"\0"), "big")
    at = 48 - 5
    if bits >> at & 31 == 31:
        at -= 6
    at -= 4
    index = bits >> at & 15
    if index == 15:
        return bits >> at - 24 & 0xFFFFFF
    return AAC_RATES[index] if index < len(AAC_RATES) else 0
