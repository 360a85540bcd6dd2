"""G.711 over RTP (RFC 3551 4.5.14): bytes are samples. MP4 does not carry it, so it is always transcoded."""

from __future__ import annotations

from typing import Final, Literal

from nvrstore.ingest.lean.sound import SoundReader
from nvrstore.media.audio import AudioTranscoder
from nvrstore.media.init import audio_config
from nvrstore.model import TrackConfig

CODECS: Final = {"PCMA": "pcm_alaw", "PCMU": "pcm_mulaw"}


class G711Reader(SoundReader):
    """See `SoundReader`."""

    def frames(self, payload: bytes, timestamp: int) -> list[tuple[bytes, int]]:
        return [(payload, 0)]

    def config(self) -> TrackConfig:
        return audio_config(CODECS[self.section.encoding], self.section.clock_hz, self.section.channels)

    def transcoder(self) -> AudioTranscoder:
        target: Literal["aac", "pcm"] = "pcm" if self._target == "pcm" else "aac"
        return AudioTranscoder(CODECS[self.section.encoding], self.section.clock_hz, self.section.channels, target=target)
