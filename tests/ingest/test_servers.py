"""Cameras that nobody here wrote: GStreamer's RTSP server, and VLC's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.ingest import Ear, recording
from tests.support.rtsp import Kind, gst_server, has_gst
from tests.support.vlc import has_vlc, vlc_server

from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.config import StreamConfig
from nvrstore.errors import SourceError
from nvrstore.ingest.contract import Endpoint, SourceRequest
from nvrstore.ingest.engines import default_engines
from nvrstore.limits import STOP_S
from nvrstore.model import Media

pytestmark = [pytest.mark.slow, pytest.mark.servers]


@pytest.mark.parametrize(("kind", "video", "audio"), [("h264-aac", "h264", "aac"), ("h265", "hevc", ""), ("h264-pcma", "h264", "aac")])
@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_picture_and_sound_are_recorded_without_a_hole(kind: Kind, video: str, audio: str, transport: str) -> None:
    """Everything from the first keyframe on; sound is as long as the picture."""
    if not has_gst():
        pytest.skip("GStreamer's RTSP server is not installed")
    with gst_server(kind) as url:
        config = StreamConfig.model_validate({"id": "gate", "url": url, "transport": transport})
        with recording(config) as (ingest, book):
            book.wait(lambda: book.samples() >= 75)
            status = ingest.supervisor("gate").status()
        book.check()
    assert (status.engine, status.codec, status.audio_codec, status.width, status.height) == ("lean", video, audio, 320, 240)
    assert not [gap for gap in book.gaps() if gap.end_ns is None]
    assert len(book.runs()) <= 4
    if audio:
        (config_audio,) = {config for track, _, config in book.declared if track.media is Media.AUDIO}
        seconds = book.samples(Media.AUDIO) * 1024 / config_audio.sample_rate
        assert seconds == pytest.approx(book.samples() / 25, abs=0.6)


@pytest.fixture(scope="module")
def vlc() -> Iterator[str]:
    """VLC's server, for all tests of this module."""
    if not has_vlc():
        pytest.skip("VLC is not installed")
    with vlc_server() as url:
        yield url


def test_vlc_is_recorded_over_udp(vlc: str) -> None:
    """Picture and sound, and the status says which engine it was: VLC sends over UDP alone."""
    config = StreamConfig.model_validate({"id": "gate", "url": vlc, "transport": "udp"})
    with recording(config) as (ingest, book):
        book.wait(lambda: book.samples() >= 75 and book.samples(Media.AUDIO) >= 100)
        status = ingest.supervisor("gate").status()
    book.check()
    assert (status.engine, status.engine_reason, status.packets_lost) == ("lean", "", 0)
    assert (status.codec, status.audio_codec, status.width, status.height) == ("h264", "aac", 320, 240)


@pytest.mark.parametrize("engine", ["lean", "pyav", "auto"])
def test_camera_28_vlc_does_not_send_over_tcp_and_every_engine_says_what_to_set(vlc: str, engine: str) -> None:
    """461: a sentence, and the key of the configuration that helps, whoever opened it."""
    ear = Ear()
    source = default_engines()[engine](SourceRequest("gate", lambda: Endpoint(vlc), timeout_s=5.0), ear, SYSTEM_CLOCK)
    source.start()
    error: SourceError = ear.end()
    assert source.join(STOP_S)
    assert not ear.samples
    assert "udp" in error.hint
    assert "does not send" in error.message
