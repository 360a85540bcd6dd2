"""ffmpeg as the client: what it stores carries the stamps, whatever it is stored in."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import av
import pytest

from nvrstore.farm import Auth, Farm, FarmConfig, check_access_units

pytestmark = pytest.mark.servers


def ffmpeg(url: str, transport: str, *output: str) -> str:
    """Read a stream with Debian's ffmpeg; what it complains of."""
    command = ["ffmpeg", "-v", "warning", "-nostdin", "-rtsp_transport", transport, "-fpsprobesize", "0", "-i", url, *output]
    return subprocess.run(command, check=True, timeout=60, capture_output=True, text=True).stderr


def copied(path: Path) -> list[str]:
    """Options that store forty frames as they are."""
    return ["-frames:v", "40", "-c", "copy", str(path)]


def stored(path: Path) -> list[bytes]:
    """Access units of a file as libav hands them out."""
    with av.open(path) as source:
        return [bytes(packet) for packet in source.demux(video=0) if packet.size]


@pytest.mark.parametrize(("container", "transport"), [("mp4", "tcp"), ("mp4", "udp"), ("mkv", "tcp"), ("ts", "tcp")])
@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_stamps_survive_what_ffmpeg_stores(small: FarmConfig, tmp_path: Path, codec: str, container: str, transport: str) -> None:
    """MP4 and Matroska (4-byte lengths) and MPEG-TS (Annex B): frame for frame, intact."""
    path = tmp_path / f"clip.{container}"
    with Farm(replace(small, codec=codec, audio="aac")) as farm:
        ffmpeg(farm.url(0), transport, *copied(path))
        farm.stop_sending()
        sent = farm.sent(0)
    report = check_access_units(stored(path))
    assert report.whole
    assert report.frames >= 40
    assert report.ranges[0].last <= (sent.last or 0)


@pytest.mark.slow
def test_ffmpeg_decodes_a_reel_over_its_seam_without_an_error(small: FarmConfig) -> None:
    """The reel's end and its beginning fit: more than one pass of 200 frames without an error."""
    with Farm(replace(small, fps=100, gop=20, b_frames=2)) as farm:
        complaints = ffmpeg(farm.url(0), "tcp", "-xerror", "-frames:v", "250", "-f", "null", "-")
    assert "error" not in complaints.lower()


def test_ffmpeg_knows_the_login(small: FarmConfig, tmp_path: Path) -> None:
    """Digest with MD5, as ffmpeg 5.1 speaks it."""
    with Farm(replace(small, auth=Auth.DIGEST)) as farm:
        ffmpeg(farm.url(0), "tcp", *copied(tmp_path / "clip.mp4"))
    assert check_access_units(stored(tmp_path / "clip.mp4")).frames >= 40
