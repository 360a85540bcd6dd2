"""The same time of the same camera, recorded through both engines at once: the same bytes, the same media time, the same UTC.

`./run test` compares some seconds, `./run prove` a minute. What is compared went the whole way, through timeline and fragmenter.

With two tracks libav moves media times at every RTCP report, to where the camera's clock says that they belong; the lean engine
leaves them as they were sent, and uses reports for UTC alone. So the farm's camera with sound sends no reports here; GStreamer's
does, and its media times are not compared. By the same reports, or by RTP-Info where there are none, libav sets sound beside the
picture; the lean engine sets it by its arrival: a camera that sends sound by the frame is heard up to a frame later. So much more
is allowed for sound.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
from tests.support.ingest import Book, recording
from tests.support.media import joined
from tests.support.prove import note, proving
from tests.support.rtsp import gst_server, has_gst

from nvrstore.config import StreamConfig
from nvrstore.farm import Farm, FarmConfig
from nvrstore.farm.oddities import Reports, Traits
from nvrstore.media.samples import samples_of
from nvrstore.model import NS_PER_S, FragmentFlag, Media

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SECONDS = 60 if proving() else 6
# Both place by arrival: a machine that is busy with other tests moves them apart by as long as it lets one of them wait.
UTC_NS_MAX = 50_000_000 if proving() else 10_000_000_000
JOIN_UNITS = 200  # by so many one engine may have begun behind the other
SMALL = FarmConfig(width=160, height=120, bitrate_bps=200_000, fps=25, gop=25)


@dataclass(frozen=True)
class Unit:
    """One sample as it is recorded: `dts` and `pts` are ticks of its track from the begin of its run on."""

    data: bytes
    keyframe: bool
    run: int
    dts: int
    pts: int
    utc_ns: int


def units(book: Book, stream: str, media: Media) -> list[Unit]:
    """All samples of one track, in order."""
    found: list[Unit] = []
    run = ticks = 0
    for fragment in (fragment for fragment in book.of(media) if fragment.track.stream == stream):
        if fragment.flags & FragmentFlag.DISCONTINUITY:
            run, ticks = run + 1, 0
        begin = ticks
        for sample in samples_of(joined(fragment)):
            utc_ns = fragment.utc_ns + (ticks - begin) * NS_PER_S // fragment.config.timescale
            found.append(Unit(bytes(sample.data), sample.keyframe, run, ticks, ticks + sample.offset, utc_ns))
            ticks += sample.duration
    last = found[-1].run if found else 0  # servers may begin with a burst, which is a run of its own
    return [unit for unit in found if unit.run == last]


@contextmanager
def camera(kind: str) -> Iterator[str]:
    """A camera of the farm, or GStreamer's."""
    if kind.startswith("gst-"):
        if not has_gst():
            pytest.skip("GStreamer's RTSP server is not installed")
        with gst_server(kind.removeprefix("gst-")) as url:  # type: ignore[arg-type]
            yield url
        return
    traits = {"h264-aac": Traits(audio="aac", reports=Reports.NONE), "h265": Traits(codec="h265"), "b-frames": Traits(b_frames=2)}[kind]  # type: ignore[arg-type]
    with Farm(replace(SMALL, traits={0: traits})) as farm:
        yield farm.url(0)


def compared(ours: list[Unit], theirs: list[Unit], timescale: int) -> tuple[int, int, float]:
    """Units that both recorded, from the first that both have on: how many, and by how many ticks of 1/90,000 s and seconds they differ."""
    ours, theirs = ours[1:], theirs[1:]  # a server may begin in the middle of a picture
    places: dict[bytes, list[int]] = {}
    for number, unit in enumerate(theirs):
        places.setdefault(unit.data, []).append(number)  # a tone repeats itself
    pairs = [(begin, at) for begin, unit in enumerate(ours[:JOIN_UNITS]) for at in places.get(unit.data, ()) if 0 in (begin, at)]
    pairs.sort(key=lambda pair: abs(ours[pair[0]].utc_ns - theirs[pair[1]].utc_ns))
    assert pairs, "nowhere the same"
    begin, at = pairs[0]
    shared = list(zip(ours[begin:], theirs[at:], strict=False))
    assert [a.data for a, _ in shared] == [b.data for _, b in shared], "other bytes"
    assert all(a.keyframe is b.keyframe for a, b in shared)
    first_a, first_b = shared[0]
    ticks = [abs((a.dts - first_a.dts) - (b.dts - first_b.dts)) for a, b in shared]
    ticks += [abs((a.pts - first_a.pts) - (b.pts - first_b.pts)) for a, b in shared]
    return len(shared), max(ticks) * 90_000 // timescale, max(abs(a.utc_ns - b.utc_ns) for a, b in shared) / NS_PER_S


@pytest.mark.parametrize(
    "kind",
    [
        "h264-aac",
        "h265",
        "b-frames",
        pytest.param("gst-h264-aac", marks=pytest.mark.servers),
        pytest.param("gst-h265", marks=pytest.mark.servers),
    ],
)
def test_both_engines_record_the_same_minute_of_the_same_camera(kind: str) -> None:
    """Access units byte for byte, media times to one tick of 90 kHz after subtracting the first, UTC within 50 ms."""
    frames = SECONDS * 25
    with camera(kind) as url:
        configs = [StreamConfig.model_validate({"id": engine, "url": url, "engine": engine}) for engine in ("lean", "pyav")]
        with recording(*configs) as (_, book):
            for part in range(1, 5):  # each wait of a book is bounded by half a minute
                wanted = (frames + 25) * part // 4
                book.wait(lambda wanted=wanted: all(len(units(book, engine, Media.VIDEO)) >= wanted for engine in ("lean", "pyav")))  # type: ignore[misc]
    figures = {}
    for media in Media:
        ours, theirs = (units(book, engine, media) for engine in ("lean", "pyav"))
        if not ours and not theirs:
            continue
        timescale = next(config.timescale for track, _, config in book.declared if track.media is media)
        figures[media] = compared(ours, theirs, timescale)
    note(
        f"same-{kind}",
        seconds=SECONDS,
        tracks={media: {"units": count, "ticks_max": ticks, "utc_s_max": utc_s} for media, (count, ticks, utc_s) in figures.items()},
    )
    assert figures[Media.VIDEO][0] >= frames - 25
    assert kind not in ("h264-aac", "gst-h264-aac") or figures[Media.AUDIO][0] > 10 * SECONDS
    frame_ns = {Media.VIDEO: 0, Media.AUDIO: 1024 * NS_PER_S // 16_000}
    for media, (_, ticks, utc_s) in figures.items():
        assert ticks <= 1 or kind == "gst-h264-aac"
        assert utc_s * NS_PER_S <= UTC_NS_MAX + frame_ns[media]
