"""Opus over RTP (RFC 7587): one packet of Opus in each packet, always on a clock of 48 kHz."""

from __future__ import annotations

from nvrstore.ingest.lean.sound import SoundReader
from nvrstore.media.audio import AudioTranscoder
from nvrstore.media.init import OPUS_RATE, audio_config
from nvrstore.model import TrackConfig


class OpusReader(SoundReader):
    """See `SoundReader`."""

    def frames(self, payload: bytes, timestamp: int) -> list[tuple[bytes, int]]:
        return [(payload, 0)]

    def config(self) -> TrackConfig:
        return audio_config("opus", OPUS_RATE, min(self.section.channels, 2))

    def transcoder(self) -> AudioTranscoder:
        return AudioTranscoder("opus", OPUS_RATE, min(self.section.channels, 2), target="pcm")
