"""Cameras that nobody here wrote: GStreamer's RTSP server, recorded beside an `ffmpeg -c copy` client, compared NAL for NAL."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from array import array
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
import pytest
from tests.support.players import Track, client, complaints, digest, place_of, probed, tracks
from tests.support.recorder import JOURNAL, init
from tests.support.rtsp import Kind, gst_server, has_gst

import nvrstore
from nvrstore import events
from nvrstore.archive import Archive
from nvrstore.drills.account import differences, take_account, volumes_in
from nvrstore.farm.nal import Codec, is_slice, split
from nvrstore.model import NS_PER_S, Cause
from nvrstore.playback.export import ExportReport

SECONDS: Final = 8.0  # that the client has of every camera
KINDS: Final[tuple[Kind, ...]] = ("h264-aac", "h265", "h264-pcma")
STREAMS: Final[dict[str, Kind]] = {f"{kind}-{how}": kind for kind in KINDS for how in ("lean", "pyav")} | {
    "h264-aac-udp": "h264-aac",
    "h265-udp": "h265",
}
FRAME_S: Final = 1 / 25
FRAME_NS: Final = NS_PER_S // 25
TAIL_S: Final = (
    1.5  # the last fragment holds the picture in the middle of which the recorder stopped: no part of a clip that has to be whole
)
WARM_S: Final = 1.0  # an encoder that starts on a busy machine is late at first, and then makes up for it: no camera does

pytestmark = [
    pytest.mark.slow,
    pytest.mark.servers,
    pytest.mark.skipif(not has_gst() or shutil.which("ffmpeg") is None, reason="needs GStreamer's RTSP server and ffmpeg"),
]


@dataclass
class Recorded:
    """What is on disk after all of them were recorded at the same time."""

    folder: Path
    config: nvrstore.Config
    live: dict[str, list[str]]  # by target: what ffprobe and ffmpeg said of the volume that was being written
    happened: list[events.Event]
    reports: dict[str, ExportReport]

    def clip(self, stream: str) -> Path:
        return self.folder / f"{stream}.mp4"

    def part(self, stream: str) -> Path:
        """The clip up to TAIL_S before its end."""
        return self.folder / f"{stream}-part.mp4"

    def ours(self, stream: str) -> dict[str, Track]:
        return tracks(self.clip(stream))

    def theirs(self, kind: str) -> dict[str, Track]:
        return tracks(self.folder / f"{kind}.mkv")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """All kinds of cameras at once, over TCP and two of them over UDP too, into two targets; a client of each of them inside."""
    folder = tmp_path_factory.mktemp("gstreamer")
    for name in "ab":
        init(folder / name)
    with ExitStack() as stack:
        urls: dict[str, str] = {kind: stack.enter_context(gst_server(kind)) for kind in KINDS}
        config = nvrstore.Config.parse(
            {
                "recorder": {"name": "nvr-test", "state": str(folder / "state")},
                "target": [{"name": name, "path": str(folder / name)} for name in "ab"],
                "journal": [{"name": JOURNAL, "targets": ["a", "b"], "volume_bytes": 1 << 20}],
                "stream": [
                    {"id": stream, "url": urls[kind], **({"transport": "udp"} if stream.endswith("-udp") else {"engine": stream[-4:]})}
                    for stream, kind in STREAMS.items()
                ],
            }
        )
        with ExitStack() as warm:
            for kind, url in urls.items():
                warm.enter_context(client(url, folder / f"warm-{kind}.mkv")).has(WARM_S)
            live, happened = anyio.run(_record, config, folder, urls, warm)
    reports = anyio.run(_export, config, folder)
    return Recorded(folder, config, live, happened, reports)


async def _record(
    config: nvrstore.Config, folder: Path, urls: dict[str, str], warm: ExitStack
) -> tuple[dict[str, list[str]], list[events.Event]]:
    happened: list[events.Event] = []

    async def listen(inbox: Any) -> None:
        async for event in inbox:
            happened.append(event)  # noqa: PERF401 - the list is looked at when the task was cancelled

    async with nvrstore.Recorder(config) as recorder, recorder.events() as inbox, anyio.create_task_group() as tasks:
        tasks.start_soon(listen, inbox)
        await _durable(recorder)
        await anyio.to_thread.run_sync(warm.close)
        live = await anyio.to_thread.run_sync(_watch_along, folder, urls)
        now_ns = recorder.statistics()["utc_ns"]
        for stream in recorder.streams():  # everything that the clients have is ours too, and a little more
            with anyio.fail_after(60):
                await stream.wait_durable(now_ns, copies=2)
        tasks.cancel_scope.cancel()
    return live, happened


async def _durable(recorder: nvrstore.Recorder) -> None:
    with anyio.fail_after(60):
        while any(stream.durable_until() is None for stream in recorder.streams()):  # noqa: ASYNC110 - there is no event of it
            await anyio.sleep(0.05)


def _watch_along(folder: Path, urls: dict[str, str]) -> dict[str, list[str]]:
    with ExitStack() as stack:
        clients = [stack.enter_context(client(url, folder / f"{kind}.mkv")) for kind, url in urls.items()]
        for one in clients:
            one.has(SECONDS)
        live = {}
        for target in "ab":
            newest = folder / target / volumes_in(folder / target, JOURNAL)[-1]
            live[target] = [*probed(newest), complaints(newest, frames=1)]
        return live


async def _export(config: nvrstore.Config, folder: Path) -> dict[str, ExportReport]:
    reports = {}
    async with Archive(config) as archive:
        for info in await archive.streams():
            spans = await archive.spans(info.stream)
            start_ns, end_ns = min(span.start_ns for span in spans), max(span.end_ns for span in spans)
            reports[info.stream] = await archive.export([info.stream], start_ns, end_ns, folder / f"{info.stream}.mp4")
            await archive.export([info.stream], start_ns, end_ns - round(TAIL_S * NS_PER_S), folder / f"{info.stream}-part.mp4")
    return reports


def corrections(kind: str, client: str) -> int:
    """How often libav may put a session's times right: once, with the first sender report, where there is sound beside the picture.

    Up to then it counts each track from its first packet; from then on by the camera's clock, tens of milliseconds away.
    """
    return int(kind != "h265" and not client.endswith("-lean"))


def found_in(whole: list[str], part: list[str]) -> int:
    """Where `part` stands in `whole`, unbroken."""
    at = place_of(part, whole)
    assert at is not None, f"{len(set(part) - set(whole))} of {len(part)} are not there"
    return at


@pytest.mark.parametrize("stream", STREAMS)
def test_every_nal_unit_is_what_another_client_got(recorded: Recorded, stream: str) -> None:
    """NAL unit by NAL unit, without a hole, and at the times that the camera gave them; delimiters and parameter sets alone may differ."""
    ours, theirs = recorded.ours(stream)["video"], recorded.theirs(STREAMS[stream])["video"]
    assert ours.codec == theirs.codec
    if stream.endswith("-udp") and any(gap.cause is Cause.NETWORK for gap in recorded.reports[stream].gaps):
        pytest.skip("this machine lost datagrams, and the ledger says so")
    before, last = theirs.packets[0][1], theirs.packets[-1][1]
    part = [(nal, pts) for nal, pts in theirs.nals if pts < last]  # it may have been stopped in the middle of the last one
    at = found_in([nal for nal, _ in ours.nals], [nal for nal, _ in part])
    assert part[-1][1] - before >= 0.8 * SECONDS
    offsets = [mine - other for (_, mine), (_, other) in zip(ours.nals[at:], part, strict=False) if other > before]
    steps = [b - a for a, b in itertools.pairwise(offsets) if abs(b - a) > 0.002]  # Matroska counts milliseconds
    assert len(steps) <= corrections(STREAMS[stream], stream) + corrections(STREAMS[stream], "client")
    begin_ns, end_ns = (recorded.reports[stream].start_ns + round(ours.nals[i][1] * NS_PER_S) for i in (at, at + len(part) - 1))
    begun = [gap for gap in recorded.reports[stream].gaps if gap.start_ns <= end_ns]  # behind it is the end, in the middle of a picture
    assert [gap for gap in begun if gap.end_ns is None or gap.end_ns > begin_ns + 2 * FRAME_NS] == []


def test_the_slices_of_a_picture_are_one_sample(recorded: Recorded) -> None:
    """This server puts parameter sets in front of every slice of a keyframe; libav then takes each of them for a picture."""
    for stream in (name for name, kind in STREAMS.items() if kind != "h265"):
        packets = tracks(recorded.part(stream))["video"].packets
        times = sorted(pts for _, pts, _ in packets)
        near = [(a, b) for a, b in itertools.pairwise(times) if b - a < FRAME_S / 2]
        assert len(near) <= corrections(STREAMS[stream], stream)
        for data, _, _ in packets:
            slices = [nal for nal in split(data) if is_slice(Codec.H264, nal)]
            assert [bool(nal[1] & 0x80) for nal in slices] == [True] + [False] * (len(slices) - 1)  # first_mb_in_slice is 0 once


@pytest.mark.parametrize("stream", [stream for stream, kind in STREAMS.items() if kind == "h264-aac"])
def test_sound_that_mp4_carries_is_kept_as_it_is(recorded: Recorded, stream: str) -> None:
    """AAC frames are the camera's own."""
    ours, theirs = recorded.ours(stream)["audio"], recorded.theirs("h264-aac")["audio"]
    assert (ours.codec, ours.rate) == ("aac", 48_000)
    found_in([digest(data) for data, _, _ in ours.packets], [digest(data) for data, _, _ in theirs.packets[:-1]])
    assert len(theirs.packets) * 1024 / 48_000 >= 0.8 * SECONDS


@pytest.mark.parametrize("stream", [stream for stream, kind in STREAMS.items() if kind == "h264-pcma"])
def test_sound_that_mp4_does_not_carry_keeps_its_length_and_its_pitch(recorded: Recorded, stream: str) -> None:
    """G.711 becomes AAC: while another client listened no sample too many or too few, and a tone of 440 Hz stays one."""
    found, theirs = recorded.ours(stream), recorded.theirs("h264-pcma")
    video = found["video"]
    at = found_in([nal for nal, _ in video.nals], [nal for nal, _ in theirs["video"].nals[:-4]])
    ours = found["audio"].since(video.nals[at][1] + 0.5)
    assert (ours.codec, ours.rate) == ("aac", 8000)
    frame_s = 1024 / ours.rate
    begin, end = ours.span_s
    assert abs(len(ours.packets) * frame_s - (end - begin)) <= frame_s
    assert abs(end - video.span_s[1]) <= 3 * frame_s  # of which one is still in the encoder, and one not yet whole
    heard_s = sum(len(data) for data, _, _ in theirs["audio"].packets) / 8000
    assert abs(heard_s - (theirs["audio"].span_s[1] - theirs["audio"].span_s[0])) <= frame_s  # what the camera sent had no hole
    samples = decoded_sound(recorded.clip(stream))
    assert abs(len(samples) / ours.rate - len(found["audio"].packets) * frame_s) <= frame_s
    quiet = max(samples) / 10
    crossings = sum(a < 0 <= b for a, b in itertools.pairwise(samples) if b - a > quiet)
    assert crossings / (len(samples) / ours.rate) == pytest.approx(440, rel=0.02)


def decoded_sound(path: Path) -> list[int]:
    """Its first channel."""
    command = ["ffmpeg", "-v", "error", "-nostdin", "-i", str(path), "-map", "0:a", "-ac", "1", "-f", "s16le", "-"]
    return list(array("h", subprocess.run(command, capture_output=True, check=True, timeout=60).stdout))


def test_clips_and_volumes_open_everywhere(recorded: Recorded) -> None:
    """`ffprobe` and `ffmpeg` say nothing of clips, of the volume that was being written, of those that are closed."""
    for stream, kind in STREAMS.items():
        for clip in (recorded.clip(stream), recorded.part(stream)):
            assert sorted(probed(clip)) == {"h264-aac": ["aac", "h264"], "h265": ["hevc"], "h264-pcma": ["aac", "h264"]}[kind]
        assert complaints(recorded.part(stream)) == ""
    every = [codec for kind in STREAMS.values() for codec in (["hevc"] if kind == "h265" else ["h264", "aac"])]
    for target, said in recorded.live.items():
        assert sorted(said) == sorted(["", *every]), target
    *closed, last = volumes_in(recorded.folder / "a", JOURNAL)
    for name in (*closed, last):
        assert complaints(recorded.folder / "a" / name, frames=1 if name == last else None) == ""


def test_copies_are_equal_and_nothing_was_lost_on_the_way(recorded: Recorded) -> None:
    """Two targets, the same bytes; no damage, no target accused, nothing that the ledger does not explain."""
    assert differences(recorded.folder / "a", recorded.folder / "b", JOURNAL) == []
    account = take_account(recorded.folder / "a", JOURNAL)
    assert account.damage == ()
    assert not [event for event in recorded.happened if isinstance(event, events.TargetLost)]
    for stream, report in recorded.reports.items():
        assert report.holes == (), stream
