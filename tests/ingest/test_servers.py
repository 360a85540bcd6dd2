"""A camera that nobody here wrote: GStreamer's RTSP server."""

from __future__ import annotations

import pytest
from tests.support.ingest import recording
from tests.support.rtsp import Kind, gst_server, has_gst

from nvrstore.config import StreamConfig
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
    assert (status.codec, status.audio_codec, status.width, status.height) == (video, audio, 320, 240)
    assert not [gap for gap in book.gaps() if gap.end_ns is None]
    assert len(book.runs()) <= 4
    if audio:
        (config_audio,) = {config for track, _, config in book.declared if track.media is Media.AUDIO}
        seconds = book.samples(Media.AUDIO) * 1024 / config_audio.sample_rate
        assert seconds == pytest.approx(book.samples() / 25, abs=0.6)
