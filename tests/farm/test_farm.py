"""The farm over real RTSP, with libav as the client: what was sent arrives, intact, once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import av
import pytest

from nvrstore.farm import Farm, FarmConfig, check_access_units

SMALL = FarmConfig(width=320, height=240, bitrate_bps=600_000, fps=50, gop=25)
QUICK = {"timeout": "5000000", "fpsprobesize": "0"}  # libav: microseconds; no guessing of the frame rate from a second of frames


@dataclass
class Heard:
    """What a client got."""

    units: list[bytes] = field(default_factory=list)
    times: list[tuple[int | None, int | None]] = field(default_factory=list)
    sound: int = 0
    codecs: list[str] = field(default_factory=list)


def listen(url: str, *, frames: int, transport: str = "tcp") -> Heard:
    """Open a stream with libav and take `frames` access units."""
    heard = Heard()
    with av.open(url, options={"rtsp_transport": transport, **QUICK}) as source:
        heard.codecs = [stream.codec_context.name for stream in source.streams.get()]
        for packet in source.demux():
            if packet.stream.type != "video":
                heard.sound += 1
                continue
            heard.units.append(bytes(packet))
            heard.times.append((packet.pts, packet.dts))
            if len(heard.units) == frames:
                return heard
    raise AssertionError("the stream ended")


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_every_frame_that_arrives_is_stamped_intact_and_in_order(codec: str, transport: str) -> None:
    """The stamp survives libav's depacketiser and parser, from frame 0 on."""
    with Farm(replace(SMALL, streams=2, codec=codec)) as farm:
        heard = listen(farm.url(1), frames=40, transport=transport)
        farm.stop_sending()
        sent = farm.sent(1)
    report = check_access_units(heard.units)
    assert report.whole
    assert (report.stream, report.frames) == (1, 40)
    assert report.ranges[0].first == 0
    assert sent.count >= 40
    assert farm.sent(0).count == 0


@pytest.mark.slow
@pytest.mark.parametrize("audio", ["aac", "pcma"])
@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_sound_comes_with_the_picture(audio: Literal["aac", "pcma"], transport: str) -> None:
    """Both tracks arrive; a second of picture brings about a second of sound."""
    with Farm(replace(SMALL, audio=audio)) as farm:
        heard = listen(farm.url(0), frames=32, transport=transport)
    assert heard.codecs == ["h264", {"aac": "aac", "pcma": "pcm_alaw"}[audio]]
    wanted = 16 / 25 * (16_000 / 1024 if audio == "aac" else 50)
    assert 0.8 * wanted <= heard.sound <= 1.3 * wanted
    assert check_access_units(heard.units).whole


@pytest.mark.parametrize("auth", ["basic", "digest"])
def test_a_protected_stream_opens_with_its_login_and_not_without(auth: str) -> None:
    """401 without the login, or with a wrong one."""
    with Farm(replace(SMALL, auth=auth, password="p@ss:w/rd")) as farm:
        assert len(listen(farm.url(0), frames=3).units) == 3
        for url in (farm.url(0, login=False), farm.url(0, login=False).replace("//", "//admin:wrong@")):
            with pytest.raises(av.error.HTTPUnauthorizedError):
                av.open(url, options={"rtsp_transport": "tcp", **QUICK})


def test_an_unknown_stream_is_not_found() -> None:
    """404, as from a camera."""
    with Farm(SMALL) as farm, pytest.raises(av.error.HTTPNotFoundError):
        av.open(farm.url(0).replace("cam0", "cam1"), options={"rtsp_transport": "tcp", **QUICK})


def test_b_frames_are_sent_in_the_order_of_decoding() -> None:
    """Presentation times go back and forth, frame numbers do not."""
    with Farm(replace(SMALL, b_frames=2)) as farm:
        heard = listen(farm.url(0), frames=30)
    assert check_access_units(heard.units).whole
    shown = [pts for pts, _ in heard.times if pts is not None]
    assert shown != sorted(shown)
