"""Stock tools read a volume without us: open, closed, cut anywhere, with a tail of zeroes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import av
import av.error
import pytest
from tests.support.footage import audio, video
from tests.support.media import payloads
from tests.support.volumes import Volume, header

from nvrstore.journal.model import VolumeTrack
from nvrstore.media.boxes import CONTAINERS, find, walk
from nvrstore.model import NS_PER_S, Fragment, Media, TrackKey

PROVE = os.environ.get("NVRSTORE_PROVE") == "1"
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffprobe") is None, reason="needs ffmpeg")

Packets = dict[int, list[str]]  # stream index: digests of its packets, in order


@cache
def recording(closed: bool = False) -> Volume:
    """Two seconds of H.264, H.265 and AAC, in batches of half a second. The volume's clock begins a minute before them."""
    tracks = [video("gate", seconds=2), video("yard", seconds=2, codec="hevc"), audio("gate", seconds=2)]
    fragments = sorted((f for track in tracks for f in track.fragments), key=lambda f: f.end_ns)
    start = min(f.utc_ns for f in fragments)
    head = header(
        tracks=tuple(VolumeTrack(track.key, f"Camera {track.key.stream}", track.config) for track in tracks),
        origin_ns=start - 60 * NS_PER_S,
    )
    volume = Volume.begin(head)
    for tick in range(5):
        from_ns, to_ns = start + tick * NS_PER_S // 2, start + (tick + 1) * NS_PER_S // 2
        volume.add([f for f in fragments if from_ns < f.end_ns <= to_ns or (tick == 4 and f.end_ns > to_ns)])
    if sum(len(b.entries) for b in volume.batches) != len(fragments):
        raise AssertionError("every fragment is in some batch")
    if closed:
        volume.close()
    return volume


def digest(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def whole(volume: Volume, kept: int | None = None) -> Packets:
    """Digests of the samples of every fragment that lies in the first `kept` bytes, cut out of the volume's bytes."""
    found: Packets = {n: [] for n in range(len(volume.builder.header.tracks))}
    for batch in volume.batches:
        for entry in batch.entries:
            start = batch.offset + entry.offset
            if kept is not None and start + entry.length > kept:
                continue
            found[entry.track_id - 1] += _digests(bytes(volume.data[start : start + entry.length]))
    return found


@cache
def _digests(moof_mdat: bytes) -> list[str]:
    track = video("gate", seconds=2)
    one = Fragment(track.key, track.config, 0, 0, 0, 0, 0, track.fragments[0].flags, (moof_mdat,), len(moof_mdat))
    return [digest(data) for data in payloads(one)]


def inside_a_table(data: bytes, kept: int) -> bool:
    """Whether a cut at `kept` falls inside of a `tfhd` or `trun`.

    When it opens a file that it can seek in, libav reads the tables of all fragments, and refuses the whole file over one
    of these two that is cut off. Told not to (`-fflags +ignidx`, or `-seekable 0`, or through a pipe) it reads up to there.
    """
    return any(start + 8 <= kept < end for start, end in tables(data))


@cache
def tables(data: bytes) -> list[tuple[int, int]]:
    boxes = [box for moof in walk(data) if moof.type == b"moof" for box in walk(data, find(data, "traf", moof.body).body, moof.end)]
    return [(box.start, box.end) for box in boxes if box.type in (b"tfhd", b"trun")]


def edges(data: bytes, start: int = 0, end: int | None = None) -> Iterator[int]:
    """Where every box begins or ends, those inside of `moof` included."""
    for box in walk(data, start, end):
        yield from (box.start, box.end)
        if box.type in CONTAINERS and box.type != b"moov":
            yield from edges(data, box.body, box.end)


def by_pyav(data: bytes, *, plain: bool = True) -> Packets:
    """What libav reads, in this process; a broken end raises nothing that a player would not pass over."""
    found: Packets = {}
    with av.open(io.BytesIO(data), "r", options={} if plain else {"fflags": "+ignidx"}) as container:
        found = {stream.index: [] for stream in container.streams}
        try:
            for packet in container.demux():
                if packet.size:
                    found[packet.stream.index].append(digest(bytes(packet)))
        except av.error.FFmpegError:
            pass
    return found


def by_ffprobe(path: Path, *, plain: bool = True) -> Packets:
    """What Debian's ffprobe reads."""
    options = () if plain else ("-fflags", "+ignidx")
    answer = _run("ffprobe", "-v", "error", *options, "-show_packets", "-show_data_hash", "md5", "-of", "json", str(path))
    found: Packets = {}
    for packet in json.loads(answer)["packets"]:
        found.setdefault(packet["stream_index"], []).append(packet["data_hash"].removeprefix("MD5:"))
    return found


def _run(*command: str) -> bytes:
    done = subprocess.run([*command], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    if done.returncode:
        raise AssertionError(f"{command[0]} ended with {done.returncode}: {done.stderr.decode()[-2000:]}")
    return done.stdout


def assert_reads(found: Packets, wanted: Packets) -> None:
    """Every whole fragment is there, in order; a packet of the broken one may follow."""
    for track, packets in wanted.items():
        assert found.get(track, [])[: len(packets)] == packets


@pytest.mark.parametrize("tail", [0, 1 << 20])
@pytest.mark.parametrize("closed", [False, True])
def test_libav_reads_every_packet_of_a_volume(closed: bool, tail: int) -> None:
    """Open or closed, with or without the zeroes of a preallocated file behind it."""
    volume = recording(closed)
    assert by_pyav(bytes(volume.data) + bytes(tail)) == whole(volume)


def test_libav_sees_which_camera_is_which_and_when() -> None:
    """Handler names are the streams' names; track time counts from the volume's origin."""
    with av.open(io.BytesIO(recording(True).data), "r") as container:
        assert [stream.metadata["handler_name"] for stream in container.streams] == ["Camera gate", "Camera yard", "Camera gate"]
        assert [stream.codec_context.name for stream in container.streams] == ["h264", "hevc", "aac"]
        first = next(container.demux(video=0))
        assert first.pts is not None
        assert float(first.pts * first.time_base) == pytest.approx(60.0, abs=0.1)


def test_libav_seeks_in_a_closed_volume() -> None:
    """The random access entries lead to a keyframe, and every picture from there on decodes."""
    volume = recording(True)
    with av.open(io.BytesIO(volume.data), "r") as container:
        stream = container.streams.video[0]
        container.seek(round(61.5 * 90_000), stream=stream)
        frames = [frame for packet in container.demux(stream) for frame in packet.decode()]
    times = [frame.time for frame in frames]
    assert times[0] == pytest.approx(61.0, abs=0.05)
    assert len(times) == 25


@pytest.mark.slow
def test_libav_reads_every_whole_fragment_of_a_volume_that_was_cut_anywhere() -> None:
    """At every edge of every box, a byte before and behind it, and at 200 random places behind the moov."""
    volume = recording()
    data = bytes(volume.data)
    start = volume.batches[0].offset
    chance = random.Random(4)
    cuts = {at + step for at in edges(data) for step in (-1, 0, 1) if at + step >= start}
    cuts |= {chance.randrange(start, len(data)) for _ in range(200)}
    for kept in sorted(cuts):
        wanted, plain = whole(volume, kept), not inside_a_table(data, kept)
        if not any(wanted.values()):
            continue  # the very first fragment is the broken one
        assert_reads(by_pyav(data[:kept], plain=plain), wanted)
        assert_reads(by_pyav(data[:kept] + bytes(50_000), plain=plain), wanted)


@pytest.mark.slow
def test_libav_reads_a_closed_volume_whose_index_was_cut_anywhere() -> None:
    """A machine that died while it closed the volume costs no player a frame."""
    volume = recording(True)
    data = bytes(volume.data)
    wanted = whole(volume)
    end = volume.batches[-1].end
    for kept in sorted({at + step for at in edges(data) for step in (-1, 0, 1) if end <= at + step <= len(data)}):
        assert by_pyav(data[:kept]) == wanted


@pytest.mark.servers
@needs_ffmpeg
@pytest.mark.parametrize("tail", [0, 3 << 20])
@pytest.mark.parametrize("closed", [False, True])
def test_ffprobe_reads_every_packet_of_a_volume(closed: bool, tail: int, tmp_path: Path) -> None:
    """The same, by another generation of the library."""
    volume = recording(closed)
    path = tmp_path / "volume.mp4"
    path.write_bytes(bytes(volume.data) + bytes(tail))
    assert by_ffprobe(path) == whole(volume)


@pytest.mark.servers
@pytest.mark.skipif(shutil.which("gst-launch-1.0") is None, reason="needs GStreamer")
@pytest.mark.parametrize(("closed", "tail"), [(False, 0), (False, 1 << 20), (True, 0)])
def test_gstreamer_reads_every_frame_of_a_volume(closed: bool, tail: int, tmp_path: Path) -> None:
    """Another family of players, with a demuxer of its own."""
    path = tmp_path / "volume.mp4"
    path.write_bytes(bytes(recording(closed).data) + bytes(tail))
    source = ["filesrc", f"location={path}", "!", "qtdemux", "name=d", "d.video_0", "!", "queue", "!"]
    answer = _run("gst-launch-1.0", "-v", *source, "identity", "silent=false", "!", "fakesink", "sync=false")
    assert answer.count(b"last-message = chain") == 50


@pytest.mark.slow
@pytest.mark.servers
@needs_ffmpeg
def test_ffprobe_reads_every_whole_fragment_of_a_volume_that_was_cut_anywhere(tmp_path: Path) -> None:
    """A choice of the cuts that libav is tried on; all of them in `./run prove`."""
    volume = recording()
    data = bytes(volume.data)
    start = volume.batches[0].offset
    chance = random.Random(5)
    cuts = sorted({at + step for at in edges(data) for step in (-1, 0, 1) if at + step >= start})
    cuts += [chance.randrange(start, len(data)) for _ in range(200)]
    path = tmp_path / "volume.mp4"
    for kept in cuts if PROVE else chance.sample(cuts, 20):
        path.write_bytes(data[:kept] + bytes(chance.choice([0, 30_000])))
        if any((wanted := whole(volume, kept)).values()):
            assert_reads(by_ffprobe(path, plain=not inside_a_table(data, kept)), wanted)


@pytest.mark.slow
@pytest.mark.servers
@needs_ffmpeg
@pytest.mark.parametrize("closed", [False, True])
def test_one_camera_of_three_hundred_is_taken_out_by_ffmpeg_bit_by_bit(closed: bool, tmp_path: Path) -> None:
    """`ffmpeg -i volume.mp4 -map 0:17 -c copy cam.mp4` gives exactly that camera's frames."""
    source = video("gate", seconds=2)
    tracks = tuple(VolumeTrack(TrackKey(f"cam-{n}", Media.VIDEO), f"Camera {n}", source.config) for n in range(300))
    volume = Volume.begin(header(tracks=tracks, origin_ns=source.fragments[0].utc_ns - 60 * NS_PER_S))
    for one in source.fragments:
        volume.add([_moved(one, track.track, n) for n, track in enumerate(tracks)])
    if closed:
        volume.close()
    path, clip = tmp_path / "volume.mp4", tmp_path / "cam.mp4"
    path.write_bytes(volume.data + bytes(0 if closed else 5 << 20))
    probe = json.loads(_run("ffprobe", "-v", "error", "-show_streams", "-of", "json", str(path)))
    names = [stream["tags"]["handler_name"] for stream in probe["streams"]]
    assert names == [f"Camera {n}" for n in range(300)]
    _run("ffmpeg", "-v", "error", "-i", str(path), "-map", "0:17", "-c", "copy", str(clip))
    assert by_pyav(clip.read_bytes())[0] == whole(volume)[17]
    assert whole(volume)[17] != whole(volume)[16]


def _moved(one: Fragment, track: TrackKey, number: int) -> Fragment:
    """`one` as another camera's: the last byte of its last sample differs."""
    last = bytearray(one.parts[-1])
    last[-1] = number & 0xFF
    if number > 0xFF:
        last[-2] ^= 0xFF
    return Fragment(
        track,
        one.config,
        one.session,
        one.index,
        one.samples,
        one.utc_ns,
        one.duration,
        one.flags,
        (*one.parts[:-1], bytes(last)),
        one.length,
    )
