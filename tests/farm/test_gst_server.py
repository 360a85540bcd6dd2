"""The GStreamer server that other tests record from."""

from __future__ import annotations

import av
import pytest
from tests.support.rtsp import LAUNCH, Kind, gst_server

CODECS = {"h264-aac": ["h264", "aac"], "h265": ["hevc"], "h264-pcma": ["h264", "pcm_alaw"]}


@pytest.mark.servers
@pytest.mark.parametrize("kind", ["h264-aac", "h265", "h264-pcma"])
def test_a_real_server_serves_each_kind_of_camera(kind: Kind) -> None:
    """Each factory opens, delivers, and its process is gone afterwards."""
    assert set(LAUNCH) == set(CODECS)
    with gst_server(kind) as url, av.open(url, options={"rtsp_transport": "tcp", "timeout": "5000000", "fpsprobesize": "0"}) as source:
        assert [stream.codec_context.name for stream in source.streams.get()] == CODECS[kind]
        packet = next(iter(source.demux(video=0)))
        assert packet.size > 0
