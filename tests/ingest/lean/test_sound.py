"""Sound packets to samples: AAC in all of its packings, G.711, Opus; what is lost, what fails, and that it costs no video."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.encoded import encode_audio
from tests.support.ingest import Ear
from tests.support.packets import framed, packet

from nvrstore.ingest.contract import Endpoint, SourceRequest
from nvrstore.ingest.lean import aac, sdp, tracks
from nvrstore.ingest.lean.rtp import SenderReport
from nvrstore.ingest.lean.rtsp import Setup
from nvrstore.ingest.lean.sound import SoundReader
from nvrstore.model import Media

CONFIG = "1408"  # AAC-LC, 16 kHz, mono
HBR = f"streamtype=5;mode=AAC-hbr;config={CONFIG};sizelength=13;indexlength=3;indexdeltalength=3"


class Speaker:
    """A track of sound, fed packet by packet."""

    def __init__(self, encoding: str, fmtp: str = "", *, audio: str = "aac") -> None:
        body = f"m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\nm=audio 0 RTP/AVP 97\r\na=rtpmap:97 {encoding}\r\n"
        section = sdp.parse((body + (f"a=fmtp:97 {fmtp}\r\n" if fmtp else "")).encode()).sections[1]
        request = SourceRequest("gate", lambda: Endpoint("rtsp://h/"), audio=audio)  # type: ignore[arg-type]
        self.ear = Ear()
        reader, self.reports = tracks.read(Setup(section, 2), request, self.ear)
        assert isinstance(reader, SoundReader)
        self.reader = reader
        self.seq = 65_534

    def hears(self, payload: bytes, timestamp: int, *, ssrc: int = 7) -> None:
        data = bytearray(framed(packet(payload, self.seq, timestamp, ssrc=ssrc, payload_type=97), 2))
        self.seq = self.seq + 1 & 0xFFFF
        self.reader.arrival_ns, self.reader.arrival_s = timestamp, float(timestamp)
        assert self.reader.take(data, 0, len(data)) == len(data)

    @property
    def frames(self) -> list[bytes]:
        return [sample.data for sample in self.ear.of(Media.AUDIO)]

    @property
    def times(self) -> list[int]:
        return [sample.dts for sample in self.ear.of(Media.AUDIO)]


def hbr(*frames: bytes, sizes: list[int] | None = None) -> bytes:
    """An AAC-hbr payload."""
    headers = b"".join(struct.pack(">H", size << 3) for size in (sizes or [len(frame) for frame in frames]))
    return struct.pack(">H", 8 * len(headers)) + headers + b"".join(frames)


def test_aac_one_and_several_in_a_packet() -> None:
    """Each frame is a sample, 1024 ticks after the one before; the track is what the description says."""
    speaker = Speaker("MPEG4-GENERIC/16000/1", HBR)
    speaker.hears(hbr(b"one"), 1000)
    speaker.hears(hbr(b"two", b"three", b"four"), 2024)
    assert speaker.frames == [b"one", b"two", b"three", b"four"]
    assert speaker.times == [1000, 2024, 3048, 4072]
    assert [(c.codec, c.sample_rate, c.channels, c.timescale) for c in speaker.ear.configs] == [("aac", 16_000, 1, 16_000)]


def test_aac_in_several_packets() -> None:
    """RFC 3640 3.2.3.1: every piece says the size of the whole; a piece that is lost loses that frame alone."""
    speaker = Speaker("MPEG4-GENERIC/16000/1", HBR)
    whole = bytes(range(250)) * 8
    for frame, lose in ((0, False), (1, True), (2, False)):
        for at in range(0, 2000, 700):
            if lose and at == 700:
                speaker.seq += 1
                continue
            speaker.hears(hbr(whole[at : at + 700], sizes=[2000]), 1024 * frame)
    assert speaker.frames == [whole, whole]
    assert speaker.times == [0, 2048]
    assert speaker.reader.sequence.lost == 1
    assert [sample.damaged for sample in speaker.ear.of(Media.AUDIO)] == [False, True]


def test_camera_22_aac_with_adts_headers() -> None:
    """Some cameras put them in front of the frames all the same; they also say what the description does not."""
    raw = b"\x21\x10\x05" + bytes(50)
    adts = bytes((0xFF, 0xF1, 0x60, 0x40 | (57 + 3) >> 11, (len(raw) + 7) >> 3 & 0xFF, ((len(raw) + 7) & 7) << 5 | 0x1F, 0xFC))
    speaker = Speaker("MPEG4-GENERIC/16000/1", "mode=AAC-hbr")
    speaker.hears(hbr(adts + raw), 0)
    assert speaker.frames == [raw]


def test_aac_low_bitrate_mode() -> None:
    """RFC 3640 3.3.5: six bits of size, two of index."""
    speaker = Speaker("MPEG4-GENERIC/16000/1", f"mode=AAC-lbr;config={CONFIG};sizelength=6;indexlength=2;indexdeltalength=2")
    speaker.hears(struct.pack(">H", 16) + bytes((3 << 2, 4 << 2)) + b"onefour", 0)
    assert speaker.frames == [b"one", b"four"]


def test_aac_as_pcm() -> None:
    """Decoded, where the configuration asks for that."""
    encoded = encode_audio("aac", sample_rate=16_000, seconds=1)
    speaker = Speaker("MPEG4-GENERIC/16000/1", HBR.replace(CONFIG, encoded.extradata.hex()), audio="pcm")
    for number, (data, _, _, _) in enumerate(encoded.packets):
        speaker.hears(hbr(data), 1024 * number)
    assert [config.codec for config in speaker.ear.configs] == ["pcm_s16le"]
    assert sum(map(len, speaker.frames)) / 2 == pytest.approx(1024 * len(encoded.packets), abs=2048)


@pytest.mark.parametrize(("name", "codec"), [("PCMA", "pcm_alaw"), ("PCMU", "pcm_mulaw")])
@pytest.mark.parametrize(("audio", "stored"), [("aac", "aac"), ("pcm", "pcm_s16le")])
def test_g711_is_transcoded(name: str, codec: str, audio: str, stored: str) -> None:
    """To AAC, or to what it was made of."""
    encoded = encode_audio(codec, sample_rate=8000, seconds=1)
    speaker = Speaker(f"{name}/8000", audio=audio)
    at = 0
    for data, _, _, _ in encoded.packets:
        speaker.hears(data, at)
        at += len(data)
    assert [config.codec for config in speaker.ear.configs] == [stored]
    steps = {b - a for a, b in pairwise(speaker.times)}
    assert steps == ({1024} if stored == "aac" else {len(encoded.packets[0][0])})


def test_opus_is_kept_as_it_is() -> None:
    """RFC 7587: always 48 kHz."""
    encoded = encode_audio("opus", seconds=0.5)
    speaker = Speaker("opus/48000/2")
    for number, (data, _, _, _) in enumerate(encoded.packets):
        speaker.hears(data, 2**32 - 960 + 960 * number & 0xFFFFFFFF)
    assert speaker.frames == [data for data, _, _, _ in encoded.packets]
    assert {b - a for a, b in pairwise(speaker.times)} == {960}
    assert [(config.codec, config.timescale) for config in speaker.ear.configs] == [("opus", 48_000)]


def test_a_restart_of_the_camera_begins_anew() -> None:
    """Another source with another clock: its second packet confirms it."""
    speaker = Speaker("opus/48000/2")
    for timestamp in (0, 960):
        speaker.hears(b"old", timestamp)
    speaker.seq = 0
    for timestamp in (5_000_000, 5_000_960, 5_001_920):
        speaker.hears(b"new", timestamp, ssrc=8)
    assert speaker.frames == [b"old", b"old", b"new", b"new"]
    assert speaker.times[2:] == [5_000_960, 5_001_920]


def test_the_camera_s_clock_is_told_in_the_track_s_ticks() -> None:
    """G.711 becomes AAC of the same rate: the reference follows."""
    speaker = Speaker("opus/48000/2")
    speaker.hears(b"one", 0)
    speaker.reader.report(SenderReport(7, 1_000_000_000, 480, 0))
    speaker.hears(b"two", 960)
    assert speaker.ear.references == [(Media.AUDIO, 960, 1_010_000_000)]


def test_sound_that_cannot_be_stored_is_given_up_and_nobody_else() -> None:
    """An impossible rate without a description: logged, and over for this session."""
    speaker = Speaker("MPEG4-GENERIC/12345/1", "mode=AAC-hbr")
    for number in range(3):
        speaker.hears(hbr(b"one"), number * 1024)
    assert not speaker.ear.configs
    assert not speaker.frames


@pytest.mark.parametrize("config", ["", "zz", "14", "ffff", "1", "0000000000"])
def test_camera_22_nonsense_instead_of_a_description_is_no_description(config: str) -> None:
    """Rate and channels are in the map."""
    speaker = Speaker("MPEG4-GENERIC/16000/1", HBR.replace(CONFIG, config))
    speaker.hears(hbr(b"one"), 0)
    assert [(c.sample_rate, c.channels) for c in speaker.ear.configs] == [(16_000, 1)]


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=80), st.integers(0, 2**32 - 1)), max_size=12), st.sampled_from(["aac", "pcm"]))
def test_no_payload_of_aac_makes_it_raise(payloads: list[tuple[bytes, int]], audio: str) -> None:
    """Whatever it holds, it is frames, or nothing."""
    speaker = Speaker("MPEG4-GENERIC/16000/1", HBR, audio=audio)
    for payload, timestamp in payloads:
        speaker.hears(payload, timestamp)
    assert len(speaker.reader._pending) <= 8191 if isinstance(speaker.reader, aac.AacReader) else False


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=80), st.integers(0, 2**32 - 1)), max_size=12))
def test_no_payload_of_g711_or_opus_makes_it_raise(payloads: list[tuple[bytes, int]]) -> None:
    """The same."""
    for encoding in ("PCMA/8000", "opus/48000/2"):
        speaker = Speaker(encoding)
        for payload, timestamp in payloads:
            speaker.hears(payload, timestamp)
