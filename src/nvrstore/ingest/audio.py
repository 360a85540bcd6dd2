"""Packets of one audio track, as libav gives them, to samples: as they are where MP4 carries them, else transcoded.

Sound that fails never costs video: whatever goes wrong here ends the sound of this session, and nothing else. The track
is announced with its first packet, so sound that was declared and never comes is no track.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import av.error

from nvrstore.errors import SourceError
from nvrstore.ingest.contract import Receiver
from nvrstore.media.init import STORED_AUDIO, audio_config
from nvrstore.model import Media, Sample, TrackConfig
from nvrstore.telemetry import get_logger

_log = get_logger("ingest.audio")


class AudioFeed:
    """One audio track of one session. Used by the source's thread."""

    def __init__(self, stream: Any, mode: Literal["aac", "pcm", "copy"], name: str, receiver: Receiver) -> None:
        context = stream.codec_context
        self._name = name
        self._receiver = receiver
        self._config: TrackConfig | None = None
        self._failed = False
        self._scale = stream.time_base
        self._codec: Final = context.name
        self._context = context
        self._next_pts = 0

    def push(self, packet: Any, arrival_ns: int, arrival_s: float) -> None:
        if self._failed:
            return
        try:
            self._take(packet, arrival_ns, arrival_s)
        except (SourceError, av.error.FFmpegError, ValueError) as error:
            self._failed = True
            _log.warning("audio.failed", stream=self._name, codec=self._codec, reason=str(error))

    def _take(self, packet: Any, arrival_ns: int, arrival_s: float) -> None:
        if self._config is None:
            context = self._context
            if self._codec not in STORED_AUDIO:
                raise SourceError(f"{self._codec} sound cannot be stored")
            self._config = audio_config(self._codec, context.sample_rate, context.layout.nb_channels, bytes(context.extradata or b""))
            self._receiver.on_track(self._config)
        pts = packet.pts if packet.pts is not None else packet.dts
        if pts is None:
            pts = self._next_pts
        pts = round(pts * self._scale * self._config.timescale)
        self._receiver.on_sample(Sample(Media.AUDIO, bytes(packet), pts, pts, True, arrival_ns, arrival_s))
