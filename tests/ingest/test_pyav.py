"""What only the engine over libav does: files, HTTP, UDP, MJPEG, Opus; and what it must never do: show a login."""

from __future__ import annotations

import http.server
import logging
import math
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import pytest
from tests.support.encoded import Encoded, encode_audio, encode_video
from tests.support.ingest import WAIT_S, Book, Ear, recording

from nvrstore.clock import SYSTEM_CLOCK, ManualClock
from nvrstore.config import StreamConfig
from nvrstore.errors import SourceEndedError, SourceNotVideoError
from nvrstore.farm import Farm, FarmConfig
from nvrstore.farm.oddities import Act
from nvrstore.ingest.contract import Endpoint, SourceRequest
from nvrstore.ingest.group import Ingest
from nvrstore.ingest.heap import give_back
from nvrstore.ingest.pyav import OPEN_WAITS_MAX, OPENS_PER_S, PyavEngine, PyavSource
from nvrstore.ingest.udp_buffer import BufferWarning
from nvrstore.ingest.video import VideoFeed
from nvrstore.limits import PACKETS_WAITING_MAX, SAMPLE_BYTES_MAX, STOP_S
from nvrstore.media.nal import join_annexb, join_lengths, split_annexb, split_lengths
from nvrstore.model import Media

SMALL = FarmConfig(width=160, height=120, bitrate_bps=200_000, fps=50, gop=25)
SECRET = "s3cr3t&pw"


def write(path: Path, *tracks: Encoded) -> Path:
    """Mux encoded tracks into the container that the suffix names."""
    with av.open(str(path), "w") as container:
        made = []
        for track in tracks:
            stream: Any = container.add_stream(track.codec if track.codec != "opus" else "libopus")
            if track.codec in ("h264", "hevc", "mjpeg"):
                stream.width, stream.height = 320, 240
                stream.pix_fmt = "yuvj420p" if track.codec == "mjpeg" else "yuv420p"
            stream.time_base = track.time_base
            made.append(stream)
        for stream, track in zip(made, tracks, strict=True):
            for data, pts, dts, keyframe in track.packets:
                packet: Any = av.Packet(data)
                packet.pts, packet.dts, packet.time_base, packet.is_keyframe, packet.stream = pts, dts, track.time_base, keyframe, stream
                container.mux(packet)
    return path


@contextmanager
def session(url: str, **request: Any) -> Iterator[tuple[PyavSource, Ear]]:
    """A running source; stopped and gone at the end."""
    ear = Ear()
    source = PyavEngine()(SourceRequest("gate", lambda: Endpoint(url), **{"timeout_s": 5.0, **request}), ear, SYSTEM_CLOCK)
    source.start()
    try:
        yield source, ear
    finally:
        source.stop()
        assert source.join(STOP_S)


@pytest.mark.parametrize(("codec", "suffix"), [("h264", "mp4"), ("h264", "ts"), ("hevc", "mkv"), ("mjpeg", "avi")])
def test_a_file_is_played_at_its_own_speed_to_its_end(tmp_path: Path, codec: str, suffix: str) -> None:
    """Every picture of it, in any container; then the session has ended, and may begin anew."""
    path = write(tmp_path / f"clip.{suffix}", encode_video(codec, frames=25, fps=50))
    began_s = SYSTEM_CLOCK.monotonic_s()
    with session(str(path)) as (_, ear):
        assert isinstance(ear.end(), SourceEndedError)
    assert len(ear.of()) == 25
    assert ear.samples[-1].arrival_s - began_s > 0.4
    assert [(config.codec, config.width, config.height) for config in ear.configs] == [(codec, 320, 240)]
    steps = {b.dts - a.dts for a, b in zip(ear.of()[3:], ear.of()[4:], strict=False)}
    assert steps <= {1799, 1800, 1801}


def test_opus_is_kept_as_it_is(tmp_path: Path) -> None:
    """MP4 carries it, browsers play it."""
    path = write(tmp_path / "clip.mkv", encode_video(frames=25, fps=50), encode_audio("opus", seconds=0.5))
    with session(str(path)) as (_, ear):
        ear.end()
    assert {config.codec for config in ear.configs} == {"h264", "opus"}
    assert len(ear.of(Media.AUDIO)) >= 20


def test_http_is_read_too(tmp_path: Path) -> None:
    """A recording on a web server."""
    write(tmp_path / "clip.mp4", encode_video(frames=25, fps=50))
    handler = partial(QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with session(f"http://127.0.0.1:{server.server_port}/clip.mp4") as (_, ear):
            ear.end()
        with session(f"http://127.0.0.1:{server.server_port}/nothing.mp4") as (_, missing):
            assert isinstance(missing.end(), SourceNotVideoError)
        server.shutdown()
        thread.join()
    assert len(ear.of()) == 25


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Does not write to standard error."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.mark.parametrize("content", [b"", b"this is no video", bytes(10_000)])
def test_what_is_no_video_is_told(tmp_path: Path, content: bytes) -> None:
    """A file that is not there, and files that hold something else."""
    path = tmp_path / "clip.mp4"
    if content:
        path.write_bytes(content)
    with session(str(path)) as (_, ear):
        assert isinstance(ear.end(), SourceNotVideoError)


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    """A camera's URL that gives sound only is a wrong URL."""
    path = write(tmp_path / "clip.mkv", encode_audio("aac"))
    with session(str(path)) as (_, ear):
        assert isinstance(ear.end(), SourceNotVideoError)


def test_udp_works_and_brings_every_frame_of_a_good_network() -> None:
    """As configured per stream; TCP is the default."""
    with Farm(SMALL) as farm, session(farm.url(0), transport="udp") as (_, ear):
        ear.hear(50)
    assert ear.report().whole


def test_a_camera_s_own_options_reach_libav() -> None:
    """Some cameras need one: here the medium that is asked for."""
    with Farm(replace(SMALL, audio="aac")) as farm, session(farm.url(0), options={"allowed_media_types": "video"}) as (_, ear):
        ear.hear(20)
    assert [config.media for config in ear.configs] == [Media.VIDEO]


def test_a_login_is_shown_by_nothing(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """Not by logs at any level, names of threads, events, records, snapshots, standard error; refused or accepted."""
    caplog.set_level(logging.DEBUG)
    seen: list[str] = []
    with Farm(replace(SMALL, streams=2, auth="digest", password=SECRET)) as farm:
        good = StreamConfig(id="good", url=farm.url(0))
        wrong = StreamConfig(id="wrong", url=farm.url(1).replace("admin", "intruder"))
        with recording(good, wrong) as (ingest, book):
            book.wait(lambda: ingest.supervisor("good").status().samples > 20 and ingest.supervisor("wrong").status().state == "refused")
            seen += [thread.name for thread in threading.enumerate()]
            seen += [repr(supervisor.status()) + repr(supervisor.config) for supervisor in ingest.supervisors()]
            seen += [repr(vars(supervisor)) + repr(vars(supervisor._session or object)) for supervisor in ingest.supervisors()]
        seen += [repr(book.events), repr(book.records), repr(book.declared)]
    seen += [caplog.text, *capfd.readouterr()]
    text = "".join(seen)
    assert "refuses the login" in text
    for form in (SECRET, "s3cr3t", "intruder"):
        assert form not in text


@pytest.mark.parametrize("password", ["s3cr3t", "s3cr3t/with@all:of#it"])
def test_a_login_that_a_hook_wrote_into_the_url_is_taken_out_of_it(password: str) -> None:
    """Also where it is no valid URL any more, as many cameras' manuals have it."""
    with Farm(replace(SMALL, auth="digest", password=password)) as farm:
        endpoint = Endpoint(farm.url(0, login=False).replace("//", f"//admin:{password}@"))
        assert "s3cr3t" not in repr(endpoint)
        ear = Ear()
        source = PyavEngine()(SourceRequest("gate", lambda: endpoint), ear, SYSTEM_CLOCK)
        source.start()
        ear.hear(3)
        farm.act(Act("disconnect"))
        assert "s3cr3t" not in str(ear.end())
        assert source.join(STOP_S)


def test_a_small_udp_buffer_is_told_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With what to do about it."""
    small = tmp_path / "rmem_max"
    small.write_text("212992\n")
    monkeypatch.setattr("nvrstore.ingest.udp_buffer.RMEM_MAX", small)
    warn = BufferWarning()
    warn()
    warn()
    (record,) = caplog.records
    assert "sysctl net.core.rmem_max=" in record.getMessage()


def test_libav_prints_nothing(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Neither about garbage nor about a broken stream: the host owns its standard error."""
    (tmp_path / "clip.mp4").write_bytes(bytes(range(256)) * 100)
    with session(str(tmp_path / "clip.mp4")) as (_, ear):
        ear.end()
    with Farm(replace(SMALL, loss=0.05)) as farm, session(farm.url(0)) as (_, lossy):
        lossy.hear(20)
    assert capfd.readouterr() == ("", "")


def test_a_receiver_that_fails_ends_its_own_session_alone() -> None:
    """A bug in what is behind one camera does not touch another on the same engine."""

    class Broken(Ear):
        def on_samples(self, samples: Any) -> None:
            raise RuntimeError("full")

    engine, broken, sane = PyavEngine(), Broken(), Ear()
    with Farm(replace(SMALL, streams=2)) as farm:
        sources = [
            engine(SourceRequest(f"cam{i}", partial(Endpoint, farm.url(i))), ear, SYSTEM_CLOCK) for i, ear in enumerate((broken, sane))
        ]
        for source in sources:
            source.start()
        assert "RuntimeError" in str(broken.end())
        sane.hear(30)
        for source in sources:
            source.stop()
        assert all(source.join(STOP_S) for source in sources)


def test_many_cameras_that_hang_delay_nobody_s_stop() -> None:
    """All of them are told, then all are waited for, within one bound; no thread stays behind."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        url = f"rtsp://127.0.0.1:{server.getsockname()[1]}/main"
        book = Book()
        ingest = Ingest(7)
        for i in range(20):
            ingest.add(StreamConfig(id=f"cam{i}", url=url, silence_s=3600.0), book)
        kept = [server.accept()[0] for _ in range(20)]
        before_s = SYSTEM_CLOCK.monotonic_s()
        assert ingest.stop() == 0
        assert SYSTEM_CLOCK.monotonic_s() - before_s < 2 * STOP_S
        for connection in kept:
            connection.close()
    assert not book.fragments


# --- one track, with packets that no server sends


class FakePacket(bytes):
    """A packet as PyAV gives it."""

    pts: int | None
    dts: int | None
    duration = 3600
    is_corrupt = False
    is_keyframe = False

    @classmethod
    def make(cls, data: bytes, pts: int | None, dts: int | None, *, corrupt: bool = False, key: bool = False) -> FakePacket:
        made = cls(data)
        made.pts, made.dts, made.is_corrupt, made.is_keyframe = pts, dts, corrupt, key
        return made

    def has_sidedata(self, name: str) -> bool:
        return False


def fed(packets: list[FakePacket], *, time_base: Fraction = Fraction(1, 90_000), extradata: bytes = b"", framed: bool = True) -> Ear:
    ear = Ear()
    feed = VideoFeed("h264", extradata, (0, 0), time_base, ear, framed=framed)
    for number, packet in enumerate(packets):
        feed.push(packet, number * 40_000_000, number * 0.04)
    feed.flush()
    return ear


def pictures(count: int) -> list[bytes]:
    return [data for data, _, _, _ in encode_video(frames=count).packets]


@pytest.mark.parametrize("without", [1, 2, 5, 25])
def test_packets_without_times_get_theirs_from_the_first_that_has_them(without: int) -> None:
    """Counted back by durations; a stream that never has any is counted from zero."""
    packets = [FakePacket.make(data, *((None, None) if i < without else (i * 3600, i * 3600))) for i, data in enumerate(pictures(25))]
    samples = fed(packets).of()
    assert [sample.dts for sample in samples] == [i * 3600 for i in range(25)]
    assert [sample.pts for sample in samples] == [i * 3600 for i in range(25)]


def test_a_missing_dts_in_the_middle_is_the_one_before_and_a_step() -> None:
    """Also on a keyframe: it is no end of the stream."""
    packets = [FakePacket.make(data, i * 3600, None if i == 7 else i * 3600) for i, data in enumerate(pictures(12))]
    assert [sample.dts for sample in fed(packets).of()] == [i * 3600 for i in range(12)]


def test_other_time_bases_become_ticks_of_a_90000th() -> None:
    """A file counts as it likes."""
    packets = [FakePacket.make(data, i * 512, i * 512) for i, data in enumerate(pictures(10))]
    for packet in packets:
        packet.duration = 512
    assert [sample.dts for sample in fed(packets, time_base=Fraction(1, 12_800)).of()] == [i * 3600 for i in range(10)]


def test_what_libav_calls_corrupt_is_damaged() -> None:
    """And what is too large for a picture is left out, with damage behind it."""
    data = pictures(6)
    packets = [FakePacket.make(picture, i * 3600, i * 3600, corrupt=i == 2) for i, picture in enumerate(data)]
    packets[4] = FakePacket.make(data[4] + bytes([7]) * SAMPLE_BYTES_MAX, 4 * 3600, 4 * 3600)
    samples = fed(packets).of()
    assert [(sample.dts // 3600, sample.damaged) for sample in samples] == [(0, False), (1, False), (2, True), (3, False), (5, True)]


def test_a_frame_that_libav_held_arrived_when_the_one_before_came_out() -> None:
    """RTP does not say where a frame ends until the next one begins."""
    packets = [FakePacket.make(data, i * 3600, i * 3600) for i, data in enumerate(pictures(5))]
    assert [round(sample.arrival_s / 0.04) for sample in fed(packets, framed=False).of()] == [0, 0, 1, 2, 3]
    assert [round(sample.arrival_s / 0.04) for sample in fed(packets).of()] == [0, 1, 2, 3, 4]


def in_pieces(slices: int, *, timed: bool, gops: int = 3) -> tuple[list[bytes], list[FakePacket]]:
    """Pictures of several slices; each slice of a keyframe comes in a packet of its own, parameter sets in front of it."""
    encoded = encode_video(frames=gops * 5, options=(("slices", str(slices)), ("g", "5")))
    packets = []
    for i, (data, _, _, keyframe) in enumerate(encoded.packets):
        times = (i * 3600, i * 3600) if timed or i > 1 else (None, None)
        nals = split_annexb(data)
        first = next(n for n, nal in enumerate(nals) if nal[0] & 31 == 5) + 1 if keyframe else len(nals)
        sets = [nal for nal in nals if nal[0] & 31 in (7, 8)]
        packets.append(FakePacket.make(join_annexb(nals[:first]), *times, key=keyframe))
        packets += [FakePacket.make(join_annexb([*sets, nal]), *times, key=keyframe) for nal in nals[first:]]
    return [join_lengths(split_annexb(data)) for data, _, _, _ in encoded.packets], packets


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("slices", [1, 2, 4])
def test_the_slices_of_a_keyframe_become_one_picture(slices: int, timed: bool) -> None:
    """GStreamer's server puts parameter sets in front of each of them, and libav takes each of them for a picture."""
    whole, packets = in_pieces(slices, timed=timed)
    assert len(packets) == len(whole) + 3 * (slices - 1)
    samples = fed(packets, framed=False).of()
    assert [split_lengths(sample.data) for sample in samples] == [split_lengths(data) for data in whole]
    assert [sample.keyframe for sample in samples] == [i % 5 == 0 for i in range(15)]
    assert [sample.dts - samples[0].dts for sample in samples] == [i * 3600 for i in range(15)]


def test_a_piece_of_another_keyframe_joins_none() -> None:
    """Its first slice was lost: it stays what it is, and the picture before it too."""
    whole, packets = in_pieces(2, timed=True)
    del packets[6]  # the first half of the second keyframe
    samples = fed(packets, framed=False).of()
    assert len(samples) == 15
    assert split_lengths(samples[4].data) == split_lengths(whole[4])
    assert len(split_lengths(samples[5].data)) < len(split_lengths(whole[5]))
    assert [split_lengths(sample.data) for sample in samples[6:]] == [split_lengths(data) for data in whole[6:]]


@pytest.mark.parametrize("by", [-4700, 7000])
def test_the_slices_of_a_keyframe_stay_together_when_times_are_put_right_between_them(by: int) -> None:
    """libav does that once, with the first sender report, wherever it comes."""
    whole, packets = in_pieces(2, timed=True)
    for packet in packets[7:]:  # from the second half of the second keyframe on
        packet.pts, packet.dts = (packet.pts or 0) + by, (packet.dts or 0) + by
    samples = fed(packets, framed=False).of()
    assert [split_lengths(sample.data) for sample in samples] == [split_lengths(data) for data in whole]


def test_keyframes_that_come_whole_are_not_kept_waiting() -> None:
    """After the first few of them a keyframe goes out when it comes."""
    packets = [FakePacket.make(data, i * 3600, i * 3600, key=True) for i, data in enumerate(encode_video(frames=1).packets[0][:1] * 8)]
    ear = Ear()
    feed = VideoFeed("h264", b"", (0, 0), Fraction(1, 90_000), ear, framed=False)
    out = []
    for packet in packets:
        feed.push(packet, 0, 0.0)
        out.append(len(ear.of()))
    assert out == [0, 1, 2, 4, 5, 6, 7, 8]


# --- more than can be handled


def test_readers_stand_still_while_too_much_waits_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """One handler for all: when it falls behind, cameras wait, and it works off what there is."""
    monkeypatch.setattr("nvrstore.ingest.pyav.PACKETS_WAITING_MAX", 16)
    stands = threading.Event()
    waiting: list[int] = []
    take, wait_room = PyavSource.take, PyavEngine.wait_room

    def slow(source: PyavSource, *packet: Any) -> None:
        stands.wait(10)
        take(source, *packet)

    def counted(engine: PyavEngine, stopping: threading.Event) -> None:
        waiting.append(len(engine.queue))
        stands.set()
        wait_room(engine, stopping)

    monkeypatch.setattr(PyavSource, "take", slow)
    monkeypatch.setattr(PyavEngine, "wait_room", counted)
    with Farm(SMALL) as farm, session(farm.url(0)) as (source, ear):
        ear.hear(100)
        assert source.heard_until_s > 0
        (sent,) = farm.stop_sending()
    assert waiting
    assert max(waiting) <= 17
    assert len(ear.of()) == sent.count


def test_cameras_are_opened_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many per second, and none while much waits, within bounds; a source that is told to end waits no longer."""
    engine, stopping, clock = PyavEngine(), threading.Event(), ManualClock()
    waits: list[float] = []
    monkeypatch.setattr(stopping, "wait", lambda seconds: waits.append(round(seconds * OPENS_PER_S, 3)))
    for _ in range(3):
        engine.wait_turn(clock, stopping)
    assert waits == [0, 1, 2]
    engine.queue.extend([(None, None, 0, 0.0)] * PACKETS_WAITING_MAX)  # type: ignore[list-item]
    engine.wait_turn(clock, stopping)
    assert len(waits) == 4 + OPEN_WAITS_MAX
    stopping.set()
    monkeypatch.undo()
    engine.wait_turn(clock, stopping)


def test_a_source_connects_from_its_turn_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not from its start: what it waits for the others is not the camera's doing."""
    turn = threading.Event()
    waits = threading.Event()

    def wait_turn(*_: Any) -> None:
        waits.set()
        assert turn.wait(WAIT_S)

    monkeypatch.setattr(PyavEngine, "wait_turn", wait_turn)
    with Farm(SMALL) as farm, session(farm.url(0)) as (source, ear):
        assert waits.wait(WAIT_S)
        assert source.connecting_s == math.inf
        given_s = SYSTEM_CLOCK.monotonic_s()
        turn.set()
        ear.hear(1)
        assert given_s <= source.connecting_s < math.inf


# --- memory


def test_memory_that_opening_took_is_given_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A while after the last camera was opened, and not again until another one is."""
    given: list[float] = []
    monkeypatch.setattr("nvrstore.ingest.pyav.OPENING_S", 0.2)
    monkeypatch.setattr("nvrstore.ingest.pyav.give_back", lambda: given.append(SYSTEM_CLOCK.monotonic_s()))
    with Farm(SMALL) as farm, session(farm.url(0)) as (_, ear):
        ear.hear(60)
        assert len(given) == 1


def test_memory_is_given_back_where_the_c_library_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """glibc can; where it cannot, nothing happens."""
    assert give_back()
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not give_back()
