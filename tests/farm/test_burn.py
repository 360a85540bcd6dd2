"""Name, clock and frame number in the picture: read back from decoded pixels."""

from __future__ import annotations

from dataclasses import replace

import av
import pytest
from tests.support.rtp_client import RtspClient

from nvrstore.errors import UsageError
from nvrstore.farm import Farm, FarmConfig, check_access_units, parse_sei
from nvrstore.farm.burn import GLYPHS, utc_text

pytestmark = pytest.mark.slow

BURNED = FarmConfig(streams=2, width=640, height=96, bitrate_bps=8_000_000, fps=25, gop=10, burn=True)


def read_text(frame: av.VideoFrame, length: int) -> str:
    """What is written in the top left corner: glyphs of 3 x 5 dots, one dot apart, two dots from the edges."""
    scale = max(1, frame.width // 160)
    plane = frame.planes[0]
    luma, line = bytes(plane), plane.line_size

    def dot(column: int, row: int) -> int:
        starts = ((2 + row) * scale * line + (2 + column) * scale + at * line for at in range(scale))
        return int(sum(sum(luma[start : start + scale]) for start in starts) > 128 * scale * scale)

    shapes = {shape: letter for letter, shape in GLYPHS.items()}
    rows = (("".join(str(sum(dot(4 * at + bit, row) << (2 - bit) for bit in range(3))) for row in range(5))) for at in range(length))
    return "".join(shapes.get(shape, "?") for shape in rows)


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_the_picture_says_which_camera_and_when(codec: str) -> None:
    """Decoded, the picture shows the stream's name, the moment for which it was made, and the number in its stamp."""
    with Farm(replace(BURNED, codec=codec)) as farm, RtspClient(farm.url(1)) as client:
        client.play()
        units = client.units(12)
    assert check_access_units(unit.data for unit in units).whole
    decoder = av.CodecContext.create("hevc" if codec == "h265" else "h264", "r")
    assert isinstance(decoder, av.VideoCodecContext)
    frames = [frame for unit in units for frame in decoder.decode(av.Packet(unit.annex_b))] + decoder.decode(None)
    assert len(frames) == 12
    for frame, unit in zip(frames, units, strict=True):
        stamp = parse_sei(unit.data)
        assert stamp is not None
        number = f" #{stamp.number}"
        text = read_text(frame, 5 + 23 + len(number))
        assert text.startswith("CAM1 ")
        assert text.endswith(number)
        assert utc_text(stamp.sent_ns - 10_000_000_000) < text[5:28] <= utc_text(stamp.sent_ns), "of a moment shortly before it was sent"


def test_every_client_of_a_burned_stream_sees_the_same() -> None:
    """A second client is let in at the next key unit."""
    with Farm(replace(BURNED, gop=5)) as farm, RtspClient(farm.url(0)) as one, RtspClient(farm.url(0)) as two:
        one.play()
        one.units(2)
        two.play()
        seen = two.units(5)
        later: dict[int, bytes] = {}
        while seen[-1].timestamp not in later:
            unit = one.unit()
            later[unit.timestamp] = unit.data
    assert [later[unit.timestamp] for unit in seen] == [unit.data for unit in seen]


def test_burning_is_for_a_few_streams() -> None:
    """An encoder each: more than eight are refused."""
    with pytest.raises(UsageError, match="burn: at most 8 streams"):
        Farm(FarmConfig(streams=9, burn=True))


def test_text_of_a_moment() -> None:
    """UTC, with milliseconds."""
    assert utc_text(1_795_420_800_240_000_000) == "2026-11-23 08:00:00.240"
