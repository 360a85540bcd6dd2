"""Sound that MP4 does not carry: transcoded, timed, and never in the way of video."""

from __future__ import annotations

import io
import itertools
import struct
from typing import Any, Literal

import av
import pytest
from tests.support.encoded import Encoded, encode_audio
from tests.support.media import AUDIO, Named, placed

from nvrstore.errors import SourceNotVideoError
from nvrstore.media.audio import ERRORS_MAX, AudioMode, AudioTranscoder, audio_plan, split_adts
from nvrstore.media.fragment import Fragmenter
from nvrstore.media.init import audio_config, audio_specific_config
from nvrstore.media.moov import ftyp, moov
from nvrstore.model import Sample, TrackConfig


def transcode(transcoder: AudioTranscoder, encoded: Encoded, *, first_pts: int = 0, rate: int = 8000) -> list[Sample]:
    out: list[Sample] = []
    for data, pts, _, _ in encoded.packets:
        out += transcoder.push(data, first_pts + pts, rate, arrival_ns=round(pts / rate * 1e9), arrival_s=pts / rate)
    return out


def decoded(config: TrackConfig, samples: list[Sample]) -> tuple[int, float]:
    """Write samples to an MP4, decode it with libav: number of decoded samples, and their loudness."""
    cutter = Fragmenter(AUDIO, config, 1)
    parts = [ftyp(), moov([Named("gate", config)])]
    start = samples[0].dts
    time = 0
    for fragment in [f for one in samples for f in cutter.push(one, 0)] + list(cutter.flush()):
        parts.append(placed(fragment, sequence=1, track_id=1, tfdt=time))
        time += fragment.duration
    assert time >= samples[-1].dts - start
    count, loud = 0, 0.0
    with av.open(io.BytesIO(b"".join(parts)), "r") as container:
        resampler = av.AudioResampler(format="s16", layout="mono")
        for frame in container.decode(audio=0):
            for plain in resampler.resample(frame):
                values = struct.unpack(f"<{plain.samples}h", bytes(plain.planes[0])[: 2 * plain.samples])
                count, loud = count + plain.samples, max(loud, *map(abs, values))
    return count, loud


@pytest.mark.parametrize("codec", ["pcm_alaw", "pcm_mulaw"])
def test_camera_19_g711_becomes_aac_of_the_same_length(codec: str) -> None:
    """Ten seconds in, ten seconds out, timed from the first PTS (less the encoder's 1024 samples of priming), and audible."""
    transcoder = AudioTranscoder(codec, 8000, 1)
    samples = transcode(transcoder, encode_audio(codec, sample_rate=8000, seconds=10), first_pts=160_000)
    assert transcoder.failed == ""
    assert (transcoder.config.codec, transcoder.config.timescale, transcoder.config.channels) == ("aac", 8000, 1)
    assert [one.pts for one in samples] == list(range(160_000 - 1024, 160_000 - 1024 + len(samples) * 1024, 1024))
    assert all(one.keyframe and one.dts == one.pts for one in samples)
    count, loud = decoded(transcoder.config, samples)
    assert count >= 80_000 - 3 * 1024
    assert 4000 < loud < 12_000


def test_g711_becomes_pcm_packet_by_packet() -> None:
    """`audio = "pcm"`: each packet is one sample, with its own PTS, and nothing waits."""
    transcoder = AudioTranscoder("pcm_alaw", 8000, 1, target="pcm")
    samples = transcode(transcoder, encode_audio("pcm_alaw", sample_rate=8000, seconds=2), first_pts=5)
    assert [one.pts for one in samples] == [5 + 160 * i for i in range(100)]
    assert {len(one.data) for one in samples} == {320}
    count, loud = decoded(transcoder.config, samples)
    assert count == 16_000
    assert 7000 < loud < 9000


def test_arrival_is_that_of_the_sound_itself_not_of_the_encoder() -> None:
    """A frame of 128 ms waits for its last sample and in the encoder: what the timeline sees is as late as the input was, never later."""
    transcoder = AudioTranscoder("pcm_alaw", 8000, 1)
    for one in transcode(transcoder, encode_audio("pcm_alaw", sample_rate=8000, seconds=2)):
        assert one.arrival_s == pytest.approx(one.pts / 8000)
        assert one.arrival_ns == pytest.approx(one.pts / 8000 * 1e9, abs=1)


@pytest.mark.parametrize("target", ["aac", "pcm"])
@pytest.mark.parametrize("jump", [-16_000, 40_000])
def test_arrival_is_not_moved_by_a_clock_that_jumps(jump: int, target: Literal["aac", "pcm"]) -> None:
    """The camera's clock is set: sound in front of the jump that is still in the encoder keeps the arrival that it had."""
    packets = [packet[0] for packet in encode_audio("pcm_mulaw", sample_rate=8000, seconds=6).packets]
    transcoder = AudioTranscoder("pcm_mulaw", 8000, 1, target=target)
    samples: list[Sample] = []
    for i, data in enumerate(packets):
        pts = 20_000 + i * 160 + (jump if i >= 150 else 0)
        samples += transcoder.push(data, pts, 8000, arrival_ns=i * 20_000_000, arrival_s=i * 0.02)
    before = samples[: next(i for i in range(1, len(samples)) if abs(samples[i].pts - samples[i - 1].pts) > 2048)]
    for one in samples:
        media_s = (one.pts - 20_000 - (0 if one in before else jump)) / 8000
        assert one.arrival_s == pytest.approx(media_s, abs=1024 / 8000)
        assert one.arrival_ns == pytest.approx(one.arrival_s * 1e9, abs=10)


def test_g726_is_decoded_by_the_codec_context_of_its_stream() -> None:
    """Its code size is not in its name: the stream that was opened knows it."""
    encoded = encode_audio("g726", sample_rate=8000, seconds=2)
    data = b"".join(packet[0] for packet in encoded.packets)
    header = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 0x45, 1, 8000, 4000, 1, 4)
    with av.open(io.BytesIO(header + struct.pack("<4sI", b"data", len(data)) + data), "r", format="wav") as container:
        context: Any = container.streams.audio[0].codec_context
        transcoder = AudioTranscoder("g726", 8000, 1, decoder=context)
        samples = transcode(transcoder, encoded)
    assert transcoder.failed == ""
    assert len(samples) > 10
    with pytest.raises(SourceNotVideoError, match="g726"):
        AudioTranscoder("g726", 8000, 1)


def test_odd_rates_and_many_channels_become_what_aac_has() -> None:
    """Camera 22: 9.6 kHz is resampled upwards; a stream of another clock keeps its time."""
    transcoder = AudioTranscoder("pcm_s16le", 9600, 1)
    assert transcoder.config.sample_rate == 11_025
    packet = struct.pack("<960h", *([5000, -5000] * 480))
    samples = [one for i in range(50) for one in transcoder.push(packet, 100_000 + i * 9000, 90_000, arrival_ns=0, arrival_s=0)]
    assert transcoder.failed == ""
    assert samples[0].pts == 100_000 * 11_025 // 90_000 - 1024
    assert len(samples) * 1024 > 5 * 11_025 - 4 * 1024


def test_camera_21_jitter_of_the_sound_clock_does_not_tear_it_and_a_jump_moves_it() -> None:
    """50 ms to and fro change nothing; a hole of a second is a hole of a second, to within a frame of silence."""
    packets = [packet[0] for packet in encode_audio("pcm_mulaw", sample_rate=8000, seconds=4).packets]
    transcoder = AudioTranscoder("pcm_mulaw", 8000, 1)
    samples: list[Sample] = []
    for i, data in enumerate(packets):
        pts = i * 160 + (400 if i % 7 == 3 else 0) + (8000 if i >= 100 else 0)
        samples += transcoder.push(data, pts, 8000, arrival_ns=0, arrival_s=0)
    steps = [after.pts - before.pts for before, after in itertools.pairwise(samples)]
    holes = [step for step in steps if step != 1024]
    assert len(holes) == 1
    assert 8000 - 1024 <= holes[0] - 1024 <= 8000
    assert any(abs(one.pts - (100 * 160 + 8000)) < 1024 for one in samples)


def test_camera_19_sound_that_breaks_turns_itself_off() -> None:
    """Packets that cannot be decoded are skipped; when none can be, `failed` says so, and nothing is raised."""
    good = [packet[0] for packet in encode_audio("aac", sample_rate=16_000, seconds=4).packets]
    transcoder = AudioTranscoder("aac", 16_000, 1)
    transcoder._decoder.extradata = audio_specific_config(16_000, 1)
    before = [one for i, data in enumerate(good[:20]) for one in transcoder.push(data, i * 1024, 16_000, arrival_ns=0, arrival_s=0)]
    assert before
    for i in range(ERRORS_MAX):
        assert transcoder.failed == ""
        transcoder.push(b"\xff" * 40, i, 16_000, arrival_ns=0, arrival_s=0)
    assert "could not be decoded" in transcoder.failed
    assert transcoder.push(good[20], 20 * 1024, 16_000, arrival_ns=0, arrival_s=0) == []


def test_an_unknown_codec_is_refused_with_a_hint() -> None:
    """The stream goes on without sound."""
    with pytest.raises(SourceNotVideoError) as caught:
        AudioTranscoder("no_such_codec", 8000, 1)
    assert "audio" in caught.value.hint


@pytest.mark.parametrize(
    ("codec", "plans"),
    [
        ("aac", ("copy", "pcm", "copy", "off")),
        ("opus", ("copy", "pcm", "copy", "off")),
        ("pcm_alaw", ("aac", "pcm", "off", "off")),
        ("pcm_mulaw", ("aac", "pcm", "off", "off")),
        ("pcm_s16be", ("aac", "copy", "copy", "off")),
        ("g726le", ("aac", "pcm", "off", "off")),
    ],
)
def test_the_setting_decides_what_becomes_of_sound(codec: str, plans: tuple[AudioMode, ...]) -> None:
    """What players everywhere read is kept; the rest is transcoded; "copy" keeps what MP4 carries."""
    modes: tuple[AudioMode, ...] = ("aac", "pcm", "copy", "off")
    assert tuple(audio_plan(codec, mode) for mode in modes) == plans


def test_camera_22_adts_is_taken_apart() -> None:
    """Headers off, several frames in a packet, the configuration they imply; anything else stays whole."""
    frames = [packet[0] for packet in encode_audio("aac", sample_rate=44_100, layout="stereo").packets][:3]

    def adts(frame: bytes) -> bytes:
        length = len(frame) + 7
        fields = 0xFFF << 44 | 1 << 40 | 1 << 38 | 4 << 34 | 2 << 30 | length << 13 | 0x7FF << 2
        return fields.to_bytes(7, "big") + frame

    found, config = split_adts(b"".join(map(adts, frames)))
    assert found == frames
    assert config == audio_specific_config(44_100, 2)
    assert audio_config("aac", 44_100, 2, config) == audio_config("aac", 44_100, 2)
    assert split_adts(frames[1]) == ([frames[1]], b"")
    assert split_adts(adts(frames[0])[:-1]) == ([adts(frames[0])[:-1]], b"")
    assert split_adts(b"") == ([b""], b"")
