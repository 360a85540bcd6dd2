"""Exported files: what stock tools read in them is what the cameras sent, in its time."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest
from tests.support.encoded import demuxed
from tests.support.footage import SESSION, T0, Footage, Track, audio, video

from nvrstore.catalog.coverage import HoleReason
from nvrstore.errors import NotFoundError, NvrstoreError, UsageError
from nvrstore.media.nal import split_lengths
from nvrstore.model import NS_PER_S, Cause, Gap, Media
from nvrstore.playback.copies import Copies
from nvrstore.playback.export import ExportProgress, ExportReport, export, export_file
from nvrstore.playback.library import Library
from nvrstore.playback.reader import FootageReader
from nvrstore.targets.memory import MemoryTarget


@contextmanager
def reader_of(*parts: Footage) -> Iterator[FootageReader]:
    targets = {name: MemoryTarget(name) for name in "ab"}
    for footage in parts:
        footage.to_memory(*targets.values())
    copies = Copies(targets, timeout_s=5.0)
    library = Library(None, copies, overlay_s=3600)
    try:
        yield FootageReader(library, copies)
    finally:
        library.close()
        copies.close(1.0)


def exported(reader: FootageReader, streams: Sequence[str], start_s: float, end_s: float) -> tuple[bytes, ExportReport]:
    sink = io.BytesIO()
    report = export(reader, streams, T0 + round(start_s * NS_PER_S), T0 + round(end_s * NS_PER_S), sink)
    return sink.getvalue(), report


def decoded(data: bytes) -> list[int]:
    """Frames that libav decodes, per video stream."""
    frames: dict[int, int] = {}
    with av.open(io.BytesIO(data), "r") as container:
        for packet in container.demux(container.streams.video):
            frames[packet.stream.index] = frames.get(packet.stream.index, 0) + len(packet.decode())
    return [count for _, count in sorted(frames.items())]


def sent(*tracks: Track) -> list[bytes]:
    return [sample.data for track in tracks for sample in track.samples]


def test_the_exported_file_holds_every_sample_nal_for_nal() -> None:
    """Demuxed by libav: the same NAL units, the same audio frames, in the same order, and all of them decode."""
    footage = Footage.record(seconds=6, per_volume_s=2.0)
    with reader_of(footage) as reader:
        data, report = exported(reader, ["gate", "yard"], -1, 10)
    packets = demuxed(data)
    by_key = {(t.stream, t.media): [p[2] for p in packets[t.track_id - 1]] for t in report.tracks}
    assert set(by_key) == {("gate", Media.VIDEO), ("gate", Media.AUDIO), ("yard", Media.VIDEO)}
    for track in footage.tracks:
        found = by_key[track.key.stream, track.key.media]
        assert found == [s.data for s in track.samples]
        if track.key.media is Media.VIDEO:
            assert [split_lengths(p) for p in found] == [split_lengths(s.data) for s in track.samples]
    assert decoded(data) == [150, 150]
    assert report.frames == 300
    assert (report.bytes, report.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert report.notes == ()
    assert {t for targets in report.sources.values() for t in targets} == {"a"}


def test_keyframes_timestamps_and_names_are_those_of_the_stream() -> None:
    """Time 0 is the first thing that was captured; the handler's name is the stream's; sync samples are marked."""
    footage = Footage.record([video("gate", seconds=4), video("yard", seconds=3, start_s=0.4, gop=50)], per_volume_s=2.0)
    with reader_of(footage) as reader:
        data, report = exported(reader, ["gate", "yard"], 0, 10)
    packets = demuxed(data)
    assert [p[1] for p in packets[0]] == [3600 * n for n in range(100)]
    assert [p[1] for p in packets[1]] == [36_000 + 3600 * n for n in range(75)]
    assert [n for n, p in enumerate(packets[1]) if p[3]] == [0, 50]
    assert report.start_ns == T0
    with av.open(io.BytesIO(data), "r") as container:
        assert [s.metadata.get("handler_name") for s in container.streams] == ["gate camera", "yard camera"]
        assert container.metadata["creation_time"].startswith("2023-11-14T22:13:20")
        assert container.duration == pytest.approx(4_000_000, abs=1000)


def test_a_clip_begins_with_the_keyframe_at_or_before_its_start() -> None:
    """Asked for the middle of a group of pictures: the file begins at its keyframe, so that every frame can be shown."""
    footage = Footage.record([video("gate", seconds=8, gop=75)], per_volume_s=2.0)
    with reader_of(footage) as reader:
        data, report = exported(reader, ["gate"], 5.5, 7)
    assert report.start_ns == T0 + 3 * NS_PER_S
    assert report.asked_start_ns == T0 + round(5.5 * NS_PER_S)
    assert decoded(data) == [100]
    assert [p[2] for p in demuxed(data)[0]] == sent(*footage.tracks)[75:175]


def test_a_gap_is_a_jump_of_the_timeline() -> None:
    """Wall-clock time is kept: what was captured 12 s after the first frame stands at 12 s, and the report tells why."""
    gap = Gap("g", "gate", Cause.CAMERA, T0 + 2 * NS_PER_S, T0 + 12 * NS_PER_S, "rebooted")
    one = Footage.record([video("gate", seconds=2)], per_volume_s=60.0, gaps={0: [gap]})
    two = Footage.record([video("gate", seconds=2, start_s=12.0, session=SESSION + 1)], per_volume_s=60.0, session=SESSION + 1, term=2)
    with reader_of(one, two) as reader:
        data, report = exported(reader, ["gate"], 0, 14)
    assert [p[1] // 90_000 for p in demuxed(data)[0]][::25] == [0, 1, 12, 13]
    assert decoded(data) == [100]
    assert report.gaps == (gap,)
    assert report.holes == ()
    assert len(report.tracks) == 1


def test_another_picture_size_goes_on_in_a_second_track() -> None:
    """The camera changed its resolution: both are there, each with its own description, and a note says so."""
    one = Footage.record([video("gate", seconds=2)], per_volume_s=60.0)
    two = Footage.record(
        [video("gate", seconds=2, start_s=2.0, session=SESSION + 1, width=160, height=128)], per_volume_s=60.0, session=SESSION + 1, term=2
    )
    with reader_of(one, two) as reader:
        data, report = exported(reader, ["gate"], 0, 14)
    assert [(t.stream, t.width, t.height, t.frames) for t in report.tracks] == [("gate", 320, 240, 50), ("gate", 160, 128, 50)]
    assert decoded(data) == [50, 50]
    assert demuxed(data)[1][0][1] == 180_000
    assert report.notes == ("gate/video changed from h264 320x240 to h264 160x128: it goes on in track 2",)
    with av.open(io.BytesIO(data), "r") as container:
        assert [s.metadata.get("handler_name") for s in container.streams] == ["gate camera", "gate camera (2)"]


def test_runs_of_the_same_time_are_kept_apart() -> None:
    """Two recorders wrote the same seconds: their frames are never mixed into one sequence."""
    one = Footage.record([video("gate", seconds=4)], per_volume_s=60.0)
    two = Footage.record([video("gate", seconds=4, start_s=1.5, session=SESSION + 1)], per_volume_s=60.0, session=SESSION + 1, term=2)
    with reader_of(one, two) as reader:
        data, report = exported(reader, ["gate"], 0, 14)
    assert decoded(data) == [100, 100]
    assert [p[2] for p in demuxed(data)[0]] == sent(*one.tracks)
    assert [p[2] for p in demuxed(data)[1]] == sent(*two.tracks)
    assert "twice of the same time" in report.notes[0]


def test_a_clock_that_was_stepped_back_is_kept_apart() -> None:
    """The same session goes on, two seconds earlier: its frames are never mixed with those that have the time already."""
    first = video("gate", seconds=4)
    later = video("gate", seconds=4, start_s=2.0)
    again = replace(later, fragments=tuple(replace(f, index=f.index + 100) for f in later.fragments))
    footage = Footage([first])
    footage.add([[f] for f in first.fragments], number=0)
    footage.add([[f] for f in again.fragments], number=1)
    with reader_of(footage) as reader:
        data, _ = exported(reader, ["gate"], 0, 14)
    assert decoded(data) == [100, 100]
    assert [p[2] for p in demuxed(data)[0]] == sent(first)
    assert [p[1] // 90_000 for p in demuxed(data)[1]][::25] == [2, 3, 4, 5]


def test_a_damaged_copy_does_not_show() -> None:
    """One copy flipped in a fragment, the other in another: the file is whole, and the report says where it was read."""
    footage = Footage.record([video("gate", seconds=4)], per_volume_s=60.0)
    with reader_of(footage) as reader:
        clean, _ = exported(reader, ["gate"], 0, 10)
        stored = footage.volumes[0]
        for target, second in (("a", 1), ("b", 2)):
            batch = stored.volume.batches[second]
            reader.copies.targets[target].files.file(stored.path).data[batch.offset + batch.entries[0].offset + 300] ^= 1  # type: ignore[attr-defined]
        data, report = exported(reader, ["gate"], 0, 10)
    assert data == clean
    assert report.sources == {stored.path: {"a": 3, "b": 1}}


def test_what_no_copy_has_is_in_the_report_and_not_in_the_file() -> None:
    """Both copies bad: the file has the rest, at its right time."""
    footage = Footage.record([video("gate", seconds=4)], per_volume_s=60.0)
    with reader_of(footage) as reader:
        exported(reader, ["gate"], 0, 10)
        stored = footage.volumes[0]
        batch = stored.volume.batches[1]
        for target in "ab":
            reader.copies.targets[target].files.file(stored.path).data[batch.offset + batch.entries[0].offset + 300] ^= 1  # type: ignore[attr-defined]
        data, report = exported(reader, ["gate"], 0, 4)
    assert [(h.reason, h.samples) for h in report.holes] == [(HoleReason.DAMAGED, 25)]
    assert [p[1] // 90_000 for p in demuxed(data)[0]][::25] == [0, 2, 3]
    assert report.frames == 75


def test_hevc_is_exported_like_everything_else() -> None:
    """H.265: the same samples, decodable."""
    footage = Footage.record([video("gate", seconds=2, codec="hevc")], per_volume_s=60.0)
    with reader_of(footage) as reader:
        data, report = exported(reader, ["gate"], 0, 10)
    assert [p[2] for p in demuxed(data)[0]] == sent(*footage.tracks)
    assert decoded(data) == [50]
    assert report.tracks[0].codec == "hevc"


def test_sound_alone_can_be_exported() -> None:
    """A stream without a picture."""
    footage = Footage.record([audio("door", seconds=3)], per_volume_s=60.0)
    with reader_of(footage) as reader:
        data, report = exported(reader, ["door"], -1, 10)
    assert [p[2] for p in demuxed(data)[0]] == sent(*footage.tracks)
    assert report.frames == 0
    assert report.tracks[0].frames == len(footage.tracks[0].samples)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    """Broken off in the middle, nothing is left behind; a file that was there before stays as it was."""
    footage = Footage.record([video("gate", seconds=4)], per_volume_s=60.0)
    place = tmp_path / "clip.mp4"
    place.write_bytes(b"older")
    steps: list[ExportProgress] = []

    def break_off(progress: ExportProgress) -> None:
        steps.append(progress)
        assert place.read_bytes() == b"older"
        if len(steps) == 2:
            raise KeyboardInterrupt

    with reader_of(footage) as reader:
        with pytest.raises(KeyboardInterrupt):
            export_file(reader, ["gate"], T0, T0 + 4 * NS_PER_S, place, on_progress=break_off)
        assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]
        assert place.read_bytes() == b"older"
        report = export_file(reader, ["gate"], T0, T0 + 4 * NS_PER_S, place)
    assert report.path == str(place)
    assert hashlib.sha256(place.read_bytes()).hexdigest() == report.sha256
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_file_is_synced_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes durable, then the name, then the directory: after a power cut there is the whole file, or none."""
    steps: list[str] = []
    fsync, replace_file = os.fsync, os.replace

    def noting_fsync(fd: int) -> None:
        steps.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    def noting_replace(source: Path, target: Path) -> None:
        steps.append("name")
        replace_file(source, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "replace", noting_replace)
    with reader_of(Footage.record([video("gate", seconds=1)], per_volume_s=60.0)) as reader:
        export_file(reader, ["gate"], T0, T0 + NS_PER_S, tmp_path / "clip.mp4")
    assert steps == ["file", "name", "directory"]


def test_progress_counts_to_the_total() -> None:
    """Every fragment is one step; the last one is all."""
    footage = Footage.record([video("gate", seconds=4)], per_volume_s=2.0)
    steps: list[ExportProgress] = []
    with reader_of(footage) as reader:
        export(reader, ["gate"], T0, T0 + 4 * NS_PER_S, io.BytesIO(), on_progress=steps.append)
    assert [s.bytes_done for s in steps] == sorted(s.bytes_done for s in steps)
    assert steps[-1].bytes_done == steps[-1].bytes_total
    assert [s.utc_ns for s in steps] == [T0 + n * NS_PER_S for n in range(4)]


def test_what_cannot_be_exported_is_a_sentence(tmp_path: Path) -> None:
    """An unknown stream, no footage, an end before its start, a stream twice, no such directory."""
    footage = Footage.record([video("gate", seconds=2)], per_volume_s=60.0)
    with reader_of(footage) as reader:
        for streams, start, end, error in (
            (["gte"], 0, 10, NotFoundError),
            (["gate"], 100, 110, NotFoundError),
            (["gate"], 5, 5, UsageError),
            (["gate", "gate"], 0, 5, UsageError),
            ([], 0, 5, UsageError),
        ):
            with pytest.raises(error):
                exported(reader, streams, start, end)
        with pytest.raises(NvrstoreError, match="cannot be written"):
            export_file(reader, ["gate"], T0, T0 + NS_PER_S, tmp_path / "no" / "clip.mp4")
        with pytest.raises(NotFoundError):
            export_file(reader, ["gate"], T0 + 100 * NS_PER_S, T0 + 110 * NS_PER_S, tmp_path / "clip.mp4")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.servers
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_stock_ffmpeg_reads_an_export_without_a_word(tmp_path: Path) -> None:
    """ffmpeg decodes every frame and says nothing; copied out again by ffmpeg, the NAL units are those of the source."""
    gap = Gap("g", "gate", Cause.CAMERA, T0 + 6 * NS_PER_S, T0 + 12 * NS_PER_S)
    one = Footage.record(seconds=6, per_volume_s=2.0, gaps={0: [gap]})
    two = Footage.record([video("gate", seconds=2, start_s=12.0, session=SESSION + 1)], per_volume_s=60.0, session=SESSION + 1, term=2)
    place = tmp_path / "clip.mp4"
    with reader_of(one, two) as reader:
        report = export_file(reader, ["gate", "yard"], T0, T0 + 20 * NS_PER_S, place)
    decode = ["ffmpeg", "-v", "warning", "-xerror", "-i", str(place), "-map", "0", "-f", "null", "-"]
    ran = subprocess.run(decode, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    probe = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-of", "json", str(place)]
    streams: list[dict[str, Any]] = json.loads(subprocess.run(probe, capture_output=True, text=True, check=True).stdout)["streams"]
    assert [int(s["nb_read_frames"]) for s in streams if s["codec_type"] == "video"] == [
        t.frames for t in report.tracks if t.media is Media.VIDEO
    ]
    number = next(t.track_id for t in report.tracks if t.stream == "gate" and t.media is Media.VIDEO)
    copy = ["ffmpeg", "-v", "error", "-i", str(place), "-map", f"0:{number - 1}", "-c", "copy", "-f", "h264", "-"]
    raw = subprocess.run(copy, capture_output=True, check=True).stdout
    wanted = [nal for track in (one.tracks[0], two.tracks[0]) for s in track.samples for nal in split_lengths(s.data)]
    at = 0
    for nal in wanted:  # Annex B: every NAL unit of the source, in order
        at = raw.find(nal, at) + len(nal)
        assert at >= len(nal), "a NAL unit is missing"
