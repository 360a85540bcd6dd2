"""Cameras with a clock in the picture: each one is encoded live, so that somebody who watches sees which camera and when.

    test pattern (drawn once, shared) + "CAM3 2026-11-23 07:45:10.240 #178" --libx264, libx265--> a unit, at the moment it is due

Costs an encoder per camera, in the farm's own thread: for demonstrations, `BURN_STREAMS_MAX` streams at most (about 1 ms per picture
of 640x360, 3 ms of 1280x720). No noise: it would cost half as much again. The time that is drawn is the one at which the unit was due;
the number is the stamp's.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

from av.video.frame import PictureType, VideoFrame

from nvrstore.farm import rtp
from nvrstore.farm.oddities import OddFeed
from nvrstore.farm.on_air import OnAir
from nvrstore.farm.reels import VideoSpec, cut_unit, open_encoder, pattern

BURN_STREAMS_MAX: Final = 8
_PICTURES_BYTES_MAX: Final = 48 << 20  # of the pattern, over all its pictures
_TEXT_LENGTH: Final = 40

#: Glyphs of 3 x 5 dots; each digit is a row, its three bits are the dots.
GLYPHS: Final = {
    "0": "75557",
    "1": "26227",
    "2": "71747",
    "3": "71717",
    "4": "55711",
    "5": "74717",
    "6": "74757",
    "7": "71122",
    "8": "75757",
    "9": "75717",
    "A": "25755",
    "C": "34443",
    "M": "57755",
    "#": "57575",
    ":": "02020",
    "-": "00700",
    ".": "00002",
    " ": "00000",
}


@lru_cache(maxsize=4)
def _pictures(spec: VideoSpec) -> tuple[tuple[bytes, bytes, bytes], ...]:
    """Planes of the test pattern, as many pictures as the bound allows, in the layout of a fresh frame."""
    count = max(2, min(round(2 * spec.fps), _PICTURES_BYTES_MAX // (spec.width * spec.height * 3 // 2)))
    fresh = VideoFrame(spec.width, spec.height, "yuv420p")

    def repacked(frame: VideoFrame, at: int) -> bytes:
        source, target = frame.planes[at], fresh.planes[at]
        data, padding = bytes(source), bytes(target.line_size - target.width)
        rows = (data[row * source.line_size :][: target.width] for row in range(target.height))
        return b"".join(row + padding for row in rows)

    return tuple((repacked(frame, 0), repacked(frame, 1), repacked(frame, 2)) for frame in pattern(spec, count, noise=False))


@lru_cache(maxsize=4)
def _glyph_rows(scale: int) -> dict[str, tuple[bytes, ...]]:
    """Rows of white dots on black, each glyph with a column of space."""
    dots = (b"\x10" * scale, b"\xeb" * scale)  # black and white of limited range (Rec. ITU-R BT.709)
    return {
        glyph: tuple(b"".join(dots[int(row) >> bit & 1] for bit in (2, 1, 0)) + dots[0] for row in rows) for glyph, rows in GLYPHS.items()
    }


def draw(plane: bytearray, line_bytes: int, text: str, scale: int) -> None:
    """Write `text` into the top left corner of a luma plane. Characters without a glyph become spaces."""
    glyphs = _glyph_rows(scale)
    space = glyphs[" "]
    letters = [glyphs.get(letter, space) for letter in text]
    margin = 2 * scale
    for row in range(5):
        line = b"".join(letter[row] for letter in letters)
        for at in range(margin + row * scale, margin + (row + 1) * scale):
            start = at * line_bytes + margin
            plane[start : start + len(line)] = line


class BurnFeed(OddFeed):
    """A feed of one camera whose units are encoded when they are due."""

    origin_ns = 0  # UTC of the start, set when the feed begins

    def start_encoder(self, origin_ns: int) -> None:
        """Open the encoder; unit 0 was due at `origin_ns`."""
        spec = self.packets.reel.spec
        self.origin_ns = origin_ns
        self._encoder = open_encoder(spec, live=True)
        self._pictures = _pictures(spec)
        self._drawn = 0
        self._scale = max(1, spec.width // (_TEXT_LENGTH * 4))

    def next_unit(self) -> OnAir:
        while True:  # an encoder that hands out a picture late gets the next one at once
            packets = self._encoder.encode(self._picture())
            if packets:
                break
        codec = self.packets.codec
        unit = cut_unit(codec, bytes(packets[0]), 0)
        return self._air(unit, rtp.video_payloads(codec, unit.sets), rtp.video_payloads(codec, unit.slices))

    def _picture(self) -> VideoFrame:
        spec = self.packets.reel.spec
        luma, *chroma = self._pictures[self._drawn % len(self._pictures)]
        frame = VideoFrame(spec.width, spec.height, "yuv420p")
        plane = bytearray(luma)
        draw(plane, frame.planes[0].line_size, self._text(), self._scale)
        frame.planes[0].update(bytes(plane))
        frame.planes[1].update(chroma[0])
        frame.planes[2].update(chroma[1])
        frame.pts, frame.time_base, frame.pict_type = self._drawn, 1 / spec.fps, PictureType.NONE
        self._drawn += 1
        return frame

    def _text(self) -> str:
        camera = self.cameras[0]
        return f"{camera.name.upper()} {utc_text(self.origin_ns + round(self.elapsed_s(self.number) * 1e9))} #{camera.number}"


def utc_text(utc_ns: int) -> str:
    """`2026-11-23 07:45:10.240`."""
    return datetime.fromtimestamp(utc_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
