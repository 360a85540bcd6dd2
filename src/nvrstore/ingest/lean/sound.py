"""One track of sound: RTP packets to samples. Codecs say how frames lie in packets (aac.py, g711.py, opus.py).

    packet ─▶ frames (the codec's) ─▶ Sample                               as it is: AAC, Opus
                                   └▶ AudioTranscoder (media/audio.py) ─▶ Samples    G.711; AAC for `audio = "pcm"`

Invariant: sound that fails never costs video; whatever goes wrong here ends the sound of this session, and nothing else.
The track is announced with its first sample, so sound that was declared and never comes is no track, and delays nobody.
"""

from __future__ import annotations

import struct
from typing import Final

from nvrstore.errors import SourceError
from nvrstore.ingest.contract import Receiver
from nvrstore.ingest.lean.rtp import FRAME_BYTES, SenderReport, Sequence, payload_of
from nvrstore.ingest.lean.sdp import Section
from nvrstore.media.audio import AudioTranscoder
from nvrstore.model import NS_PER_S, Media, Sample, TrackConfig
from nvrstore.telemetry import get_logger

_HALF, _PERIOD = 1 << 31, 1 << 32  # of RTP timestamps
_HEADER: Final = struct.Struct(">HHHHII")  # '$' channel, length, RTP flags and type, sequence number, timestamp, SSRC

_log = get_logger("ingest.lean")


class SoundReader:
    """One track of sound. Codecs override `frames`, `config` and `transcoder`."""

    def __init__(self, channel: int, section: Section, stream: str, receiver: Receiver, *, transcode: str = "") -> None:
        self.sequence = Sequence()
        self.arrival_ns, self.arrival_s = 0, 0.0  # of the bytes that are being read: set by the connection
        self.section: Final = section
        self._stream, self._receiver = stream, receiver
        self._head: Final = 0x2400 | channel
        self._target: Final = transcode  # "aac", "pcm", or nothing: it is kept as it is
        self._transcoder: AudioTranscoder | None = None
        self._config: TrackConfig | None = None
        self._pts: int | None = None  # of the last packet, unwrapped, in ticks of the RTP clock
        self._damaged = self._failed = False
        self._report: SenderReport | None = None

    # --- what codecs say

    def frames(self, payload: bytes, timestamp: int) -> list[tuple[bytes, int]]:
        """Frames, and how many ticks of the RTP clock after the packet's timestamp each begins."""
        raise NotImplementedError

    def torn(self) -> None:
        """Packets are missing: what was begun cannot be completed."""

    def config(self) -> TrackConfig:
        """Of frames that are kept as they are."""
        raise NotImplementedError

    def transcoder(self) -> AudioTranscoder:
        """For frames that are not."""
        raise NotImplementedError

    # --- what the connection calls

    def take(self, buffer: bytearray, at: int, end: int) -> int:
        """Read one packet of this track; where the next frame begins (`at` while this one is not whole)."""
        if end - at < FRAME_BYTES:
            return at
        head, length, _, number, timestamp, ssrc = _HEADER.unpack_from(buffer, at)
        following = at + 4 + int(length)
        if head != self._head or following > end:
            return at
        found = None if self._failed else payload_of(buffer, at + 4, following, self.section.payload_type)
        sequence = self.sequence
        if found is None:
            return following
        if number != sequence.expected or ssrc != sequence.ssrc:
            if not sequence.accept(number, ssrc):
                return following
            if sequence.switched:
                self._pts = None  # another clock
            self._damaged = self._pts is not None
            self.torn()
        sequence.expected = number + 1 & 0xFFFF
        try:
            self._packet(bytes(buffer[found[0] : found[1]]), timestamp)
        except (SourceError, ValueError, ArithmeticError, LookupError, MemoryError) as error:
            self._fail(str(error))
        return following

    def report(self, report: SenderReport) -> None:
        """The camera told its clock: the next sample is told with it."""
        self._report = report

    def deliver(self) -> None:
        """The read is over: sound went on at once."""

    def flush(self) -> None:
        """The session is over. What a transcoder still holds is shorter than a frame."""

    # --- the way

    def _packet(self, payload: bytes, timestamp: int) -> None:
        last = self._pts
        if last is None:
            pts = timestamp
        else:
            pts = timestamp - last & 0xFFFF_FFFF
            pts = last + (pts if pts < _HALF else pts - _PERIOD)
        self._pts = pts
        for frame, ticks in self.frames(payload, timestamp):
            if frame:
                self._frame(frame, pts + ticks)
        if self._report is not None and self._config is not None:
            report, self._report = self._report, None
            ticks = timestamp - report.timestamp & 0xFFFF_FFFF
            ticks -= _PERIOD if ticks >= _HALF else 0
            clock_hz = self.section.clock_hz
            self._receiver.on_reference(Media.AUDIO, pts * self._config.timescale // clock_hz, report.utc_ns + ticks * NS_PER_S // clock_hz)

    def _frame(self, frame: bytes, pts: int) -> None:
        damaged, self._damaged = self._damaged, False
        if not self._target:
            if self._config is None:
                self._config = self.config()
                self._receiver.on_track(self._config)
            at = pts * self._config.timescale // self.section.clock_hz
            self._receiver.on_samples((Sample(Media.AUDIO, frame, at, at, True, self.arrival_ns, self.arrival_s, damaged),))
            return
        if self._transcoder is None:
            self._transcoder = self.transcoder()
        made = self._transcoder.push(frame, pts, self.section.clock_hz, arrival_ns=self.arrival_ns, arrival_s=self.arrival_s)
        if made and self._config is None:
            self._config = self._transcoder.config
            self._receiver.on_track(self._config)
        if made:
            self._receiver.on_samples(made)
        if self._transcoder.failed:
            self._fail(self._transcoder.failed)

    def _fail(self, reason: str) -> None:
        self._failed = True
        _log.warning("audio.failed", stream=self._stream, codec=self.section.encoding, reason=reason)
