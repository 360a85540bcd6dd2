"""Packets of one audio track, as libav gives them, to samples: as they are where MP4 carries them, else transcoded.

    packet ─▶ raw AAC frames, if it is ADTS ─▶ Sample          "copy": AAC, Opus, MP3, 16-bit PCM
           └▶ AudioTranscoder (media/audio.py) ─▶ Samples      "aac", "pcm": G.711, G.726, whatever libav decodes

Invariant: sound that fails never costs video; whatever goes wrong here ends the sound of this session, and nothing else.
The track is announced with its first sample, so sound that was declared and never comes is no track, and delays nobody.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import av.error

from nvrstore.errors import SourceError
from nvrstore.ingest.contract import Receiver
from nvrstore.media.audio import AudioTranscoder, audio_plan, split_adts
from nvrstore.media.init import audio_config
from nvrstore.model import Media, Sample, TrackConfig
from nvrstore.telemetry import get_logger

HELD_MAX: Final = 32  # packets without a time, in front of the first one that has it
AAC_FRAME: Final = 1024  # samples

_log = get_logger("ingest.audio")


class AudioFeed:
    """One audio track of one session. Used by the source's thread."""

    def __init__(self, track: Any, mode: Literal["aac", "pcm", "copy", "off"], stream: str, receiver: Receiver) -> None:
        context = track.codec_context
        self._stream = stream
        self._receiver = receiver
        self._codec: Final = str(context.name)
        self._rate = int(context.sample_rate or track.time_base.denominator)
        self._channels = int(context.layout.nb_channels or 1)
        self._extradata = bytes(context.extradata or b"")
        self._time_base: Final = track.time_base
        self._plan = audio_plan(self._codec, mode)
        self._transcoder: AudioTranscoder | None = None
        self._decoder = context if self._codec.startswith("adpcm") or self._codec == "g726" else None
        self._config: TrackConfig | None = None
        self._held: list[tuple[Any, int, float]] = []
        self._end: int | None = None  # of the last packet, in ticks of its time base

    @property
    def wanted(self) -> bool:
        """Whether anything comes of this track."""
        return self._plan != "off"

    def push(self, packet: Any, arrival_ns: int, arrival_s: float) -> None:
        """Take the next packet of the track."""
        if self._plan == "off":
            return
        try:
            self._time(packet, arrival_ns, arrival_s)
        except (SourceError, av.error.FFmpegError, ValueError, MemoryError) as error:
            self._stop(str(error))

    def _stop(self, reason: str) -> None:
        self._plan = "off"
        self._held.clear()
        _log.warning("audio.failed", stream=self._stream, codec=self._codec, reason=reason)

    def _time(self, packet: Any, arrival_ns: int, arrival_s: float) -> None:
        """Give packets without a time one: behind the packet before, or counted back from the first that has it."""
        pts = packet.pts if packet.pts is not None else packet.dts
        if pts is None:
            pts = self._end
        if pts is None:
            self._held.append((packet, arrival_ns, arrival_s))
            if len(self._held) < HELD_MAX:
                return
            pts, (packet, arrival_ns, arrival_s) = 0, self._held.pop()
        if self._held:
            before, self._held = self._held, []
            start = pts - sum(self._duration(held) for held, _, _ in before)
            for held, ns, s in before:
                self._take(held, start, ns, s)
                start += self._duration(held)
        self._take(packet, pts, arrival_ns, arrival_s)
        self._end = pts + self._duration(packet)

    def _duration(self, packet: Any) -> int:
        return int(packet.duration or round(AAC_FRAME / (self._rate * self._time_base)))

    def _take(self, packet: Any, pts: int, arrival_ns: int, arrival_s: float) -> None:
        if self._plan != "copy":
            self._transcode(bytes(packet), pts, arrival_ns, arrival_s)
            return
        frames = [bytes(packet)]
        if self._codec == "aac":
            frames, described = split_adts(frames[0])
            self._extradata = self._extradata or described
        if self._config is None:
            self._config = audio_config(self._codec, self._rate, self._channels, self._extradata)
            self._receiver.on_track(self._config)
        at = round(pts * self._time_base * self._config.timescale)
        for frame in frames:
            self._receiver.on_samples((Sample(Media.AUDIO, frame, at, at, True, arrival_ns, arrival_s),))
            at += AAC_FRAME

    def _transcode(self, data: bytes, pts: int, arrival_ns: int, arrival_s: float) -> None:
        transcoder = self._transcoder
        if transcoder is None:
            target: Literal["aac", "pcm"] = "pcm" if self._plan == "pcm" else "aac"
            transcoder = self._transcoder = AudioTranscoder(self._codec, self._rate, self._channels, target=target, decoder=self._decoder)
        scale = self._time_base.denominator
        samples = transcoder.push(data, pts * self._time_base.numerator, scale, arrival_ns=arrival_ns, arrival_s=arrival_s)
        if samples and self._config is None:
            self._config = transcoder.config
            self._receiver.on_track(self._config)
        if samples:
            self._receiver.on_samples(samples)
        if transcoder.failed:
            self._stop(transcoder.failed)
