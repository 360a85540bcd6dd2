"""Sound that MP4 or browsers do not carry becomes AAC, or plain PCM: decoded, resampled and encoded in memory.

    G.711, G.726, ... ──decode──▶ frames ──▶ 1024 at a time ──encode──▶ AAC samples, timed by the input's PTS
                                        └──▶ 16-bit PCM samples

Invariant: sound that fails turns itself off and says why in `failed`; it raises nothing while it runs, so it never costs
video. PTS are counted from the first one; where the input jumps by more than jitter, so does the output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import av
import av.error

from nvrstore.errors import SourceNotVideoError
from nvrstore.media.init import AAC_RATES, STORED_AUDIO, audio_config, audio_specific_config
from nvrstore.model import NS_PER_S, Media, Sample, TrackConfig

if TYPE_CHECKING:
    from av.audio.codeccontext import AudioCodecContext

AudioMode = Literal["aac", "pcm", "copy", "off"]

PLAYED_EVERYWHERE: Final = frozenset({"aac", "opus", "mp3"})  # in MP4, by browsers
JUMP_S: Final = 0.1  # input further than this from where it should be has jumped; less is jitter of its clock
ERRORS_MAX: Final = 50  # packets in a row that cannot be decoded
CHANNELS_MAX: Final = 2  # more are mixed down: cameras have no surround sound
AAC_FRAME: Final = 1024  # samples
AAC_BPS: Final = 4  # bits per sample and channel: 32 kbit/s for 8 kHz, 192 for 48

_Error = (av.error.FFmpegError, ValueError, TypeError, MemoryError)


def audio_plan(codec: str, mode: AudioMode) -> AudioMode:
    """What becomes of sound in `codec` under the setting `mode`: it is transcoded to "aac" or "pcm", kept ("copy"), or left out ("off")."""
    match mode:
        case "aac":
            return "copy" if codec in PLAYED_EVERYWHERE else "aac"
        case "pcm":
            return "copy" if codec.startswith("pcm_s16") else "pcm"
        case "copy":
            return "copy" if codec in STORED_AUDIO else "off"
        case "off":
            return "off"


def split_adts(data: bytes) -> tuple[list[bytes], bytes]:
    """The raw AAC frames of ADTS (ISO/IEC 14496-3 1.A.2.2), and the AudioSpecificConfig that their headers imply.

    Data that is no ADTS comes back as one frame, with an empty configuration.
    """
    frames: list[bytes] = []
    config = b""
    at = 0
    while at + 7 <= len(data) and data[at] == 0xFF and data[at + 1] & 0xF6 == 0xF0:
        rate = data[at + 2] >> 2 & 15
        channels = (data[at + 2] & 1) << 2 | data[at + 3] >> 6
        length = (data[at + 3] & 3) << 11 | data[at + 4] << 3 | data[at + 5] >> 5
        header = 7 if data[at + 1] & 1 else 9
        if rate >= len(AAC_RATES) or length <= header or at + length > len(data):
            break
        config = audio_specific_config(AAC_RATES[rate], channels or 2)
        frames.append(data[at + header : at + length])
        at += length
    return (frames, config) if frames else ([data], b"")


class AudioTranscoder:
    """Turns packets of one sound track into samples that MP4 carries. Used by one thread.

    `decoder` is the input stream's own codec context where the codec's name alone does not describe it (G.726 needs its code size).
    Raises `SourceNotVideoError` when it cannot be set up; afterwards nothing.
    """

    def __init__(
        self,
        codec: str,
        sample_rate: int,
        channels: int,
        *,
        target: Literal["aac", "pcm"] = "aac",
        decoder: AudioCodecContext | None = None,
    ) -> None:
        self.failed = ""  # why there is no more sound
        self._errors = 0
        channels = max(1, min(channels, CHANNELS_MAX))
        self._layout: Final = "stereo" if channels == 2 else "mono"
        self._encoder: Any = None
        try:
            self._decoder: Any = decoder
            if decoder is None:
                self._decoder = av.CodecContext.create(codec, "r")
                self._decoder.sample_rate, self._decoder.layout = sample_rate, self._layout
                self._decoder.open()
            if target == "aac":
                sample_rate = _aac_rate(sample_rate)
                self._encoder = av.CodecContext.create("aac", "w")
                self._encoder.sample_rate, self._encoder.layout, self._encoder.format = sample_rate, self._layout, "fltp"
                self._encoder.bit_rate = AAC_BPS * channels * sample_rate
                self._encoder.flags |= 1 << 22  # AV_CODEC_FLAG_GLOBAL_HEADER: the configuration goes into `esds`
                self._encoder.open()
            self._format: Final = "s16" if self._encoder is None else "fltp"
            self._resampler: Any = av.AudioResampler(format=self._format, layout=self._layout, rate=sample_rate)
            self._fifo: Any = av.AudioFifo()
        except _Error as error:
            raise SourceNotVideoError(f"{codec} sound cannot be decoded: {error}", hint='set `audio = "off"` for this stream') from error
        extradata = b"" if self._encoder is None else bytes(self._encoder.extradata or b"")
        name = "pcm_s16le" if self._encoder is None else "aac"
        self.config: Final[TrackConfig] = audio_config(name, sample_rate, channels, extradata)
        self._rate: Final = sample_rate
        self._next_pts: int | None = None  # of the next decoded sample
        self._came = (0, 0, 0.0)  # PTS and arrival of the packet that is being decoded
        self._encoding: dict[int, tuple[int, float]] = {}  # arrival of the sound of each frame that the encoder still has, by PTS

    def push(self, data: bytes, pts: int, timescale: int, *, arrival_ns: int, arrival_s: float) -> list[Sample]:
        """The samples that this packet completed. `pts` in ticks of `timescale`; those of the samples in ticks of `config.timescale`."""
        if self.failed:
            return []
        try:
            frames = self._decoder.decode(av.Packet(data))
        except _Error as error:
            self._errors += 1
            if self._errors >= ERRORS_MAX:
                self.failed = f"{self._errors} packets in a row could not be decoded: {error}"
            return []
        self._errors = 0
        pts = pts * self._rate // timescale
        try:
            return self._encode(frames, pts, arrival_ns, arrival_s)
        except _Error as error:
            self.failed = f"the sound could not be encoded: {error}"
            return []

    def _sample(self, data: bytes, pts: int, arrival: tuple[int, float]) -> Sample:
        return Sample(Media.AUDIO, data, pts, pts, True, *arrival)

    def _arrival(self, pts: int) -> tuple[int, float]:
        """Of the sound at `pts`: that of the packet in which it came, not of the one that filled a frame, nor of one behind a jump."""
        came_pts, arrival_ns, arrival_s = self._came
        late_s = (came_pts - pts) / self._rate
        return arrival_ns - round(late_s * NS_PER_S), arrival_s - late_s

    def _encode(self, frames: list[Any], pts: int, arrival_ns: int, arrival_s: float) -> list[Sample]:
        made: list[Sample] = []
        if self._next_pts is None or abs(pts - self._next_pts) > JUMP_S * self._rate:
            made += self._fill_up()
            self._next_pts = pts
        self._came = pts, arrival_ns, arrival_s
        for decoded in frames:
            decoded.pts = None
            for frame in self._resampler.resample(decoded):
                if self._encoder is None:
                    size = frame.samples * 2 * len(frame.layout.channels)
                    made.append(self._sample(bytes(frame.planes[0])[:size], self._next_pts, self._arrival(self._next_pts)))
                else:
                    frame.pts = None
                    self._fifo.write(frame)
                self._next_pts += frame.samples
        while self._encoder is not None and self._fifo.samples >= AAC_FRAME:
            made += self._encode_frame()
        return made

    def _encode_frame(self) -> list[Sample]:
        assert self._next_pts is not None
        pts = self._next_pts - self._fifo.samples
        frame = self._fifo.read(AAC_FRAME)
        frame.pts, frame.sample_rate = pts, self._rate
        self._encoding[pts] = self._arrival(pts)
        made = [packet for packet in self._encoder.encode(frame) if packet.pts is not None]  # of a frame before: it keeps one back
        return [self._sample(bytes(p), p.pts, self._encoding.pop(p.pts) if p.pts in self._encoding else self._arrival(p.pts)) for p in made]

    def _fill_up(self) -> list[Sample]:
        """Before a jump: what waits for a whole frame goes out with silence behind it."""
        waiting = self._fifo.samples
        if not waiting or self._next_pts is None:
            return []
        silence = av.AudioFrame(self._format, self._layout, AAC_FRAME - waiting)
        for plane in silence.planes:
            plane.update(bytes(plane.buffer_size))
        silence.sample_rate = self._rate
        self._fifo.write(silence)
        self._next_pts += AAC_FRAME - waiting
        return self._encode_frame()


def _aac_rate(sample_rate: int) -> int:
    """The lowest rate of AAC that keeps all of `sample_rate`."""
    return min((rate for rate in AAC_RATES if rate >= sample_rate), default=AAC_RATES[0])
