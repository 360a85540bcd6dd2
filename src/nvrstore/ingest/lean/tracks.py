"""Which of a camera's tracks are recorded, and who reads each of them.

The first video that is H.264 or H.265, and the first sound; other tracks (metadata, back channels, second streams) are not set
up. Video that this engine does not speak is a `SourceUnsupportedError`; sound is one only if `strict`, else it is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from nvrstore.errors import SourceNotVideoError
from nvrstore.ingest.contract import Receiver, SourceRequest
from nvrstore.ingest.errors import SourceUnsupportedError
from nvrstore.ingest.lean import aac, g711, opus, sdp
from nvrstore.ingest.lean.h264 import H264Reader
from nvrstore.ingest.lean.hevc import HevcReader
from nvrstore.ingest.lean.hot import UnitReader
from nvrstore.ingest.lean.rtp import SenderReport, Sequence, sender_report
from nvrstore.ingest.lean.rtsp import Setup
from nvrstore.ingest.lean.sound import SoundReader
from nvrstore.ingest.lean.video import Pictures
from nvrstore.media.audio import audio_plan
from nvrstore.telemetry import get_logger

VIDEO: Final[dict[str, tuple[str, type[UnitReader]]]] = {"H264": ("h264", H264Reader), "H265": ("hevc", HevcReader)}
SOUND: Final[dict[str, tuple[str, type[SoundReader]]]] = {
    "MPEG4-GENERIC": ("aac", aac.AacReader),
    "PCMA": ("pcm_alaw", g711.G711Reader),
    "PCMU": ("pcm_mulaw", g711.G711Reader),
    "OPUS": ("opus", opus.OpusReader),
}

_log = get_logger("ingest.lean")


class Track(Protocol):
    """What the connection knows of a reader."""

    sequence: Sequence
    arrival_ns: int
    arrival_s: float

    def take(self, buffer: bytearray, at: int, end: int) -> int: ...

    def deliver(self) -> None:
        """The read is over: hand on what it brought."""

    def flush(self) -> None:
        """The session is over: give out what is held."""


class Reports:
    """Sender reports of one track. See `interleaved.Reader`."""

    def __init__(self, channel: int, sequence: Sequence, told: Callable[[SenderReport], None]) -> None:
        self.middle, self.heard_s = 0, 0.0  # of the last report: what a receiver report gives back
        self.arrival_s = 0.0
        self._channel, self._sequence, self._told = channel, sequence, told

    def take(self, buffer: bytearray, at: int, end: int) -> int:
        following = at + 4 + (buffer[at + 2] << 8 | buffer[at + 3])
        report: SenderReport | None = sender_report(buffer[at + 4 : following])
        if report is not None and report.ssrc == self._sequence.ssrc:
            self.middle, self.heard_s = report.ntp_middle, self.arrival_s
            self._told(report)
        return following


def choose(description: sdp.Description, request: SourceRequest, where: str, *, strict: bool) -> list[sdp.Section]:
    """The sections to set up: video, and sound if it is wanted. Raises `SourceError`."""
    videos = [section for section in description.sections if section.kind == "video"]
    if not videos:
        raise SourceNotVideoError(f"{where}: there is no video")
    video = next((section for section in videos if section.encoding in VIDEO), None)
    if video is None:
        names = ", ".join(section.encoding or "unknown" for section in videos)
        raise SourceUnsupportedError(f"{where}: this engine does not speak {names} video")
    if video.parameters.get("packetization-mode", "") == "2" or video.parameters.get("sprop-max-don-diff", "0") not in ("", "0"):
        raise SourceUnsupportedError(f"{where}: this engine does not speak interleaved mode")
    sounds = [section for section in description.sections if section.kind == "audio" and not section.to_camera]
    if not sounds or request.audio == "off":
        return [video]
    sound = sounds[0]
    spoken = sound.encoding in SOUND and sound.clock_hz > 0 and (sound.encoding != "MPEG4-GENERIC" or aac.speaks(sound))
    if spoken:
        return [video] if audio_plan(SOUND[sound.encoding][0], request.audio) == "off" else [video, sound]
    if strict:
        raise SourceUnsupportedError(f"{where}: this engine does not speak {sound.encoding or 'unknown'} sound")
    _log.warning("audio.left_out", stream=request.stream, codec=sound.encoding)
    return [video]


def read(setup: Setup, request: SourceRequest, receiver: Receiver) -> tuple[Track, Reports]:
    """The reader of a track that was set up, and that of its sender reports."""
    section = setup.section
    track: UnitReader | SoundReader
    if section.encoding in VIDEO:
        codec, video = VIDEO[section.encoding]
        pictures = Pictures(codec, sdp.parameter_sets(section), receiver)
        track, told = video(setup.channel, section.payload_type, pictures), pictures.report
    else:
        codec, sound = SOUND[section.encoding]
        plan = audio_plan(codec, request.audio)
        track = sound(setup.channel, section, request.stream, receiver, transcode="" if plan == "copy" else plan)
        told = track.report
    return track, Reports(setup.channel + 1, track.sequence, told)
