"""Descriptions as cameras write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvrstore.errors import SourceNotVideoError
from nvrstore.ingest.contract import Endpoint, SourceRequest
from nvrstore.ingest.errors import SourceUnsupportedError
from nvrstore.ingest.lean import sdp, tracks

ORDERLY = b"""v=0
o=- 1 1 IN IP4 10.0.0.5
s=Camera
t=0 0
a=control:*
m=video 0 RTP/AVP 96
a=rtpmap:96 H264/90000
a=fmtp:96 packetization-mode=1;profile-level-id=640028;sprop-parameter-sets=Z2QAKA==,aO48sA==
a=control:trackID=1
m=audio 0 RTP/AVP 97
a=rtpmap:97 MPEG4-GENERIC/16000/2
a=fmtp:97 streamtype=5; mode=AAC-hbr; config=1410; SizeLength=13
a=control:trackID=2
m=application 0 RTP/AVP 107
a=rtpmap:107 vnd.onvif.metadata/90000
"""


def test_an_orderly_description_is_read() -> None:
    """Tracks with codec, clock, parameters and control."""
    found = sdp.parse(ORDERLY)
    video, audio, other = found.sections
    assert found.control == "*"
    assert (video.kind, video.payload_type, video.encoding, video.clock_hz, video.control) == ("video", 96, "H264", 90_000, "trackID=1")
    assert sdp.parameter_sets(video) == [bytes.fromhex("67640028"), bytes.fromhex("68ee3cb0")]
    assert (audio.encoding, audio.clock_hz, audio.channels) == ("MPEG4-GENERIC", 16_000, 2)
    assert (audio.parameters["config"], audio.parameters["sizelength"]) == ("1410", "13")
    assert other.kind == "application"


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n", b" \r\n", b"\n\n", b"\0\r\n"])
def test_camera_29_lines_may_end_anyhow(end: bytes) -> None:
    """And may have spaces or zeroes behind them."""
    assert sdp.parse(ORDERLY.replace(b"\n", end)) == sdp.parse(ORDERLY)


def test_camera_29_lines_that_should_be_there_may_be_missing() -> None:
    """No v=, o=, s=, t=; spaces where none belong; static payload types without a map; two maps, the last counts."""
    body = (
        b"m = video 0  RTP/AVP   96 \r\na = rtpmap:96  h264 / 90000 \r\na=control: trackID=1\r\n"
        b"a=fmtp:96   packetization-mode=1 ; x\r\nm=audio 0 RTP/AVP 8\r\n"
    )
    video, audio = sdp.parse(body).sections
    assert (video.encoding, video.clock_hz, video.control, video.parameters["packetization-mode"]) == ("H264", 90_000, "trackID=1", "1")
    assert (audio.encoding, audio.clock_hz, audio.channels) == ("PCMA", 8000, 1)


def test_camera_29_what_cannot_be_read_is_left_out_alone() -> None:
    """Lines without sense, impossible numbers, a broken m= line with its attributes."""
    body = (
        b"nonsense\r\n=\r\nm=video\r\na=rtpmap:96 H265/90000\r\nm=video 0 RTP/AVP 300 96 x\r\n"
        b"a=rtpmap:96 H264/0\r\na=rtpmap:\r\na=fmtp:\r\na=rtpmap:96 H264/90000\r\n"
    )
    (video,) = sdp.parse(body).sections
    assert (video.encoding, video.payload_type) == ("H264", 96)


def test_parameter_sets_with_start_codes_or_garbage_do_no_harm() -> None:
    """Start codes are taken off, base64 without its end is read, what is none is left out."""
    body = b"m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=fmtp:96 sprop-parameter-sets=AAAAAWdkACg=,aO48sA,###,\r\n"
    (video,) = sdp.parse(body).sections
    assert sdp.parameter_sets(video) == [bytes.fromhex("67640028"), bytes.fromhex("68ee3cb0")]


@given(st.binary(max_size=2000))
def test_no_bytes_make_it_raise(body: bytes) -> None:
    """Garbage has few sections, or none."""
    found = sdp.parse(body)
    assert len(found.sections) <= sdp.SECTIONS_MAX
    for section in found.sections:
        sdp.parameter_sets(section)


@given(st.lists(st.sampled_from(ORDERLY.decode().splitlines()), max_size=80), st.integers(0, 40), st.text(max_size=5))
def test_no_order_of_lines_makes_it_raise(lines: list[str], at: int, text: str) -> None:
    """Shuffled, doubled, cut, with something strange in between."""
    body = "\r\n".join(lines)
    sdp.parse((body[:at] + text + body[at:]).encode())


# --- what is recorded of it


def request(**fields: str) -> SourceRequest:
    return SourceRequest("gate", lambda: Endpoint("rtsp://h/"), **fields)  # type: ignore[arg-type]


def offer(*sections: str) -> sdp.Description:
    """`"video H264/90000 packetization-mode=1"` ..."""
    body = ""
    for number, text in enumerate(sections, 96):
        kind, encoding, *rest = text.split(" ", 2)
        body += f"m={kind} 0 RTP/AVP {number}\r\na=rtpmap:{number} {encoding}\r\n"
        body += "".join(f"a=fmtp:{number} {part}\r\n" if part != "sendonly" else "a=sendonly\r\n" for part in rest)
    return sdp.parse(body.encode())


def chosen(*sections: str, strict: bool = False, **fields: str) -> list[str]:
    return [section.encoding for section in tracks.choose(offer(*sections), request(**fields), "rtsp://h/", strict=strict)]


def test_the_first_video_and_the_first_sound_are_recorded() -> None:
    """Others, metadata and back channels are not set up."""
    offered = (
        "application X/90000",
        "video JPEG/90000",
        "video H265/90000",
        "video H264/90000",
        "audio PCMU/8000 sendonly",
        "audio opus/48000/2",
    )
    assert chosen(*offered) == ["H265", "OPUS"]
    assert chosen(*offered, audio="off") == ["H265"]


@pytest.mark.parametrize("sound", ["audio G726-32/8000", "audio MP4A-LATM/16000", "audio MPEG4-GENERIC/16000 ctsdeltalength=8", "audio X"])
def test_sound_that_is_not_spoken_is_left_out_or_left_to_the_other_engine(sound: str) -> None:
    """Left out by this engine alone; `auto` prefers the engine that records it."""
    assert chosen("video H264/90000", sound) == ["H264"]
    with pytest.raises(SourceUnsupportedError):
        chosen("video H264/90000", sound, strict=True)
    assert chosen("video H264/90000", sound, strict=True, audio="off") == ["H264"]


def test_sound_that_the_configuration_leaves_out_is_not_set_up() -> None:
    """MP4 does not carry G.711 as it is."""
    assert chosen("video H264/90000", "audio PCMA/8000", audio="copy") == ["H264"]
    assert chosen("video H264/90000", "audio PCMA/8000", audio="pcm") == ["H264", "PCMA"]


@pytest.mark.parametrize(
    "video", ["video JPEG/90000", "video H264/90000 packetization-mode=2", "video H265/90000 sprop-max-don-diff=3", "video X"]
)
def test_video_that_is_not_spoken_is_left_to_the_other_engine(video: str) -> None:
    """Other codecs, and interleaved modes."""
    with pytest.raises(SourceUnsupportedError):
        chosen(video)


def test_a_description_without_video_is_no_camera() -> None:
    """Sound alone is not recorded."""
    with pytest.raises(SourceNotVideoError, match="no video"):
        chosen("audio PCMA/8000")
