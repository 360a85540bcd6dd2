"""Looks at the keyframes of one stream while it is recorded, and marks what it sees in the footage.

Run: python examples/analytics.py nvr.toml gate

The tap gives samples as they are recorded, so the camera has one client only. When the analysis is slower than the camera, the tap drops
whole groups of pictures and says how many; the recording never waits.
"""

from __future__ import annotations

import sys
from fractions import Fraction

import anyio
import anyio.to_thread
import av

import nvrstore
from nvrstore.ingest.taps import TapSample


def brightness(seen: TapSample) -> float | None:
    """Mean luma of one keyframe, 0 ... 255. Decoding belongs into a thread: it would hold up the event loop."""
    codec = av.CodecContext.create(seen.config.codec, "r")
    if not isinstance(codec, av.VideoCodecContext):
        return None
    packet = av.Packet(annex_b(seen.sample.data))
    packet.time_base = Fraction(1, seen.config.timescale)
    for frame in [*codec.decode(packet), *codec.decode(None)]:
        pixels = bytes(frame.reformat(width=16, height=16, format="gray").planes[0])
        return sum(pixels) / len(pixels)
    return None


def annex_b(data: bytes) -> bytes:
    """NAL units with start codes, as a bare decoder wants them, from NAL units with 4-byte lengths (ISO/IEC 14496-15)."""
    parts, at = [], 0
    while at + 4 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        parts.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return b"".join(b"\0\0\0\1" + part for part in parts)


async def main(path: str, stream_id: str) -> None:
    async with nvrstore.Recorder(nvrstore.Config.load(path)) as recorder:
        stream = recorder.stream(stream_id)
        async with stream.tap(keyframes_only=True) as samples:
            async for seen in samples:
                luma = await anyio.to_thread.run_sync(brightness, seen)
                if luma is not None and luma < 30:
                    await stream.mark("dark", seen.utc_ns, seen.utc_ns + 1_000_000_000, {"luma": round(luma, 1)})


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2])
