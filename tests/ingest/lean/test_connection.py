"""Sessions of the lean engine over real sockets, with cameras that do what the test says."""

from __future__ import annotations

import struct
import threading
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.support.camera import Camera, Peer, pictures
from tests.support.ingest import Ear
from tests.support.lean import session
from tests.support.packets import Wire, framed

from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.errors import (
    SourceEndedError,
    SourceError,
    SourceRefusedError,
    SourceSilentError,
)
from nvrstore.ingest.contract import Endpoint, SourceRequest
from nvrstore.ingest.errors import SourceUnsupportedError
from nvrstore.ingest.lean import LeanEngine, LeanSource
from nvrstore.ingest.lean.connection import LEAVE_S
from nvrstore.limits import STOP_S
from nvrstore.media.nal import split_lengths

pytestmark = pytest.mark.slow


def whole(ear: Ear) -> bool:
    """Whether the samples are the camera's first pictures, all of them, in order."""
    expected = pictures()
    return all(split_lengths(sample.data) == next(expected) for sample in ear.of()) and not any(s.damaged for s in ear.of())


def test_a_session_is_ended_with_a_teardown() -> None:
    """Cameras that are left without a word keep the session, and serve one client fewer. What comes until the answer counts."""
    with Camera() as camera, session(camera.url) as (source, ear):
        ear.hear(30)
        assert whole(ear)
        source.stop()
        assert source.join(STOP_S)
        camera.wait(lambda: camera.asked("TEARDOWN"))
        assert camera.requests[-1].headers["session"] == "42"
        assert isinstance(ear.end(), SourceEndedError)


def test_a_camera_that_does_not_answer_teardown_is_left_all_the_same() -> None:
    """After a bounded wait."""
    with Camera(answers={"TEARDOWN": None}) as camera, session(camera.url) as (_, ear):
        ear.hear(30)


@pytest.mark.parametrize("method", ["OPTIONS", "DESCRIBE", "SETUP", "PLAY"])
def test_a_camera_that_falls_silent_while_connecting_is_given_up(method: str) -> None:
    """Each wait for an answer is bounded by the timeout."""
    with Camera(answers={method: None}) as camera, session(camera.url, timeout_s=0.3) as (_, ear):
        assert isinstance(ear.end(), SourceSilentError)
        assert camera.requests[-1].method in (method, "TEARDOWN")


def test_a_camera_that_falls_silent_while_playing_is_given_up() -> None:
    """Nothing for as long as the timeout: what came before is there."""
    with Camera() as camera, session(camera.url, timeout_s=0.3) as (_, ear):
        error = ear.end()
        assert isinstance(error, SourceSilentError)
        assert "no picture" in error.message
        assert len(ear.of()) == 30


def stand_still(source: LeanSource, camera: Camera, seconds: float) -> None:
    """The loop's thread does nothing for so long, while thirty more pictures come."""
    stands, goes_on = threading.Event(), threading.Event()

    def stand() -> None:
        stands.set()
        goes_on.wait(30)

    loop = source._loop
    assert loop is not None
    assert loop.call(stand)
    assert stands.wait(30)
    camera.peers[-1].play(30)
    threading.Event().wait(seconds)
    goes_on.set()


def test_a_machine_that_stood_still_takes_no_camera_for_silent() -> None:
    """What came meanwhile lies in the socket: it is read before the clock is believed."""
    with Camera() as camera, session(camera.url, timeout_s=0.5) as (source, ear):
        ear.hear(30)
        stand_still(source, camera, 0.6)
        ear.hear(60)
        assert whole(ear)
        source.stop()
        assert isinstance(ear.end(), SourceEndedError)


def test_what_came_before_the_end_is_recorded_however_late_it_is_read() -> None:
    """A machine under load may come to it only when the time for leaving is over."""
    with Camera(answers={"TEARDOWN": None}) as camera, session(camera.url) as (source, ear):
        ear.hear(30)
        source.stop()
        camera.wait(lambda: camera.asked("TEARDOWN"))
        stand_still(source, camera, LEAVE_S + 0.1)
        assert source.join(STOP_S)
        assert len(ear.of()) == 60
        assert whole(ear)


def test_nothing_is_told_behind_the_end() -> None:
    """A camera answers TEARDOWN, and sends pictures right behind: in the same read."""
    late: list[Any] = []

    class Late(Ear):
        def on_samples(self, samples: Any) -> None:
            if self.ends:
                late.append(samples)
            else:
                super().on_samples(samples)

    class Chatty(Camera):
        def answer(self, peer: Peer, request: Any) -> None:
            if request.method != "TEARDOWN":
                super().answer(peer, request)
                return
            end = b"RTSP/1.0 200 OK\r\nCSeq: %b\r\n\r\n" % request.headers["cseq"].encode()
            peer.send(end + b"".join(b"".join(peer.wire.unit(next(peer.pictures), 900_000 + i)) for i in range(0, 36_000, 3600)))

    with Chatty() as camera, session(camera.url, ear=Late()) as (source, ear):
        ear.hear(30)
        source.stop()
        assert source.join(STOP_S)
        assert isinstance(ear.end(), SourceEndedError)
    assert len(ear.of()) == 30
    assert not late


# --- an old session on a new connection (24)


def stale(peer: Peer) -> None:
    """What an old session goes on sending: whole pictures of another source."""
    old = Wire(seq=500, ssrc=666)
    peer.send(b"".join(old.unit(next(pictures()), 77_000)))


def test_camera_24_frames_of_an_old_session_are_not_recorded() -> None:
    """They come before the first answer, between answers, and between the new session's own pictures, on the channel of their own."""

    def play(peer: Peer) -> None:
        for _ in range(30):
            stale(peer)
            peer.play()

    with Camera(on_connect=stale, on_play=play) as camera, session(camera.url) as (_, ear):
        ear.hear(30)
        assert len(ear.of()) == 30
        assert whole(ear)
        setup = next(request for request in camera.requests if request.method == "SETUP")
        assert "interleaved=2-3" in setup.headers["transport"]


def test_camera_24_also_if_the_server_insists_on_the_old_channel() -> None:
    """Then the source tells them apart: it was known before PLAY."""

    def play(peer: Peer) -> None:
        for _ in range(30):
            stale(peer)
            peer.play()

    answers: dict[str, str | bytes | None] = {"SETUP": "Session: 42\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1"}
    with Camera(on_connect=stale, on_play=play, answers=answers) as camera, session(camera.url) as (_, ear):
        ear.hear(30)
        assert len(ear.of()) == 30
        assert whole(ear)


def test_pictures_that_come_before_the_answer_to_play_are_recorded() -> None:
    """Some cameras are that quick."""
    answers: dict[str, str | bytes | None] = {"PLAY": b""}

    def early(peer: Peer) -> None:
        peer.play(5)
        peer.send(b"RTSP/1.0 200 OK\r\nCSeq: 4\r\n\r\n")
        peer.play(5)

    class Early(Camera):
        def answer(self, peer: Peer, request: Any) -> None:
            super().answer(peer, request)
            if request.method == "PLAY":
                early(peer)

    with Early(answers=answers) as camera, session(camera.url) as (_, ear):
        ear.hear(10)
        assert whole(ear)


# --- keepalives (25)


@pytest.mark.parametrize("answered", [True, False])
def test_camera_25_sessions_shorter_than_any_habit_are_kept_alive(answered: bool) -> None:
    """At half of two seconds, for as long as it takes, whether it is answered or not."""
    answers: dict[str, str | bytes | None] = {"SETUP": "Session: 42;timeout=1\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1"}
    if not answered:
        answers["GET_PARAMETER"] = None
    with Camera(answers=answers) as camera, session(camera.url) as (_, ear):
        camera.wait(lambda: camera.asked("GET_PARAMETER") >= 2)
        camera.peers[0].play(5)
        ear.hear(35)
        assert not ear.ends
        kept = [request for request in camera.requests if request.method == "GET_PARAMETER"]
        assert {request.headers["session"] for request in kept} == {"42"}


def test_receiver_reports_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 3550 6.4.2: cameras that wait for them hear what came and what was lost."""
    monkeypatch.setattr("nvrstore.ingest.lean.connection.REPORT_S", 0.2)

    def play(peer: Peer) -> None:
        peer.play(10)
        peer.wire.seq += 3
        report = struct.pack(">BBHIIIIII", 0x80, 200, 6, 7, 0xE0000001, 0x80000000, 0, 0, 0)
        peer.send(framed(report, peer.wire.channel + 1))
        peer.play(10)

    with Camera(on_play=play) as camera, session(camera.url) as (source, ear):
        ear.hear(20)
        seen = len(camera.reports)
        camera.wait(lambda: len(camera.reports) >= seen + 2)
        version, kind, _, own, ssrc, lost, highest, _, middle, _ = struct.unpack_from(">BBHIIIIIII", camera.reports[-1])
        assert (version, kind, ssrc, lost & 0xFFFFFF, middle) == (0x81, 201, 7, 3, 0x00018000)
        assert highest & 0xFFFF == camera.peers[0].wire.seq - 1
        assert own != ssrc
        assert source.packets_lost == 3
        assert [sample.damaged for sample in ear.of()] == [False] * 10 + [True] + [False] * 9


# --- elsewhere


def test_a_redirect_is_followed() -> None:
    """To another port, with a new connection."""
    with Camera() as there:
        moved = f"RTSP/1.0 302 Moved\r\nCSeq: CSEQ\r\nLocation: {there.url}\r\n\r\n".encode()
        with Camera(answers={"DESCRIBE": moved}) as camera, session(camera.url) as (_, ear):
            ear.hear(30)
            assert whole(ear)
    assert not camera.asked("SETUP")


def test_an_address_that_does_not_answer_is_followed_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may have several."""
    with Camera() as camera:
        port = int(camera.url.rpartition(":")[2].partition("/")[0])
        found = [(2, 1, 6, "", ("127.0.0.1", 1)), (2, 1, 6, "", ("127.0.0.1", port))]
        monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: found)
        with session("rtsp://camera.example/main") as (_, ear):
            ear.hear(30)


@pytest.mark.parametrize("url", ["rtsp://no-such-host.invalid/main", "rtsp:///main", "rtsp://127.0.0.1:99999/main", "rtsp://[::1/main"])
def test_an_address_that_is_none_is_told(url: str) -> None:
    """A sentence, not an exception of a library."""
    with session(url) as (_, ear):
        assert isinstance(ear.end(), SourceError)
        assert ear.ends[0].__context__ is None


# --- one camera's trouble is its own


def test_what_one_camera_does_disturbs_no_other() -> None:
    """Garbage, a flood, a receiver that raises: the neighbour's pictures are whole, and the loop lives."""

    class Broken(Ear):
        def on_samples(self, samples: Any) -> None:
            raise RuntimeError("s3cr3t bug")

    def babble(peer: Peer) -> None:
        peer.send(b"\xff\x00$\x01" * 500_000)

    engine = LeanEngine()
    sane = threading.Event()

    def steady(peer: Peer) -> None:
        peer.play(10)
        sane.wait(20)
        peer.play(20)

    with Camera(on_play=steady) as neighbour, session(neighbour.url, engine=engine) as (_, ear):
        ear.hear(10)
        with Camera(on_play=babble) as camera, session(camera.url, engine=engine) as (_, other):
            assert isinstance(other.end(), SourceSilentError)
        broken = Broken()
        with Camera() as camera:
            source = engine(SourceRequest("broken", lambda: Endpoint(camera.url)), broken, SYSTEM_CLOCK)
            source.start()
            assert isinstance(broken.end(), SourceError)
            assert source.join(STOP_S)
        sane.set()
        ear.hear(30)
        assert whole(ear)


def test_a_server_that_never_ends_its_answer_is_given_up() -> None:
    """A head of megabytes is not collected."""
    endless = b"RTSP/1.0 200 OK\r\n" + b"X-Header: yes\r\n" * 200_000
    with Camera(answers={"OPTIONS": endless}) as camera, session(camera.url) as (_, ear):
        assert isinstance(ear.end(), SourceSilentError)


def test_a_login_that_is_refused_while_setting_up_is_a_refusal() -> None:
    """401 to a later request, with the nonce that was just used."""
    no = b'RTSP/1.0 401 Unauthorized\r\nCSeq: CSEQ\r\nWWW-Authenticate: Digest realm="c", nonce="1"\r\n\r\n'
    with Camera(answers={"SETUP": no}) as camera, session(camera.url, login=("admin", "x")) as (_, ear):
        assert isinstance(ear.end(), SourceRefusedError)


def test_all_sources_share_one_thread_that_ends_with_the_last() -> None:
    """However many there are."""
    engine = LeanEngine()
    before = threading.active_count()
    with Camera(on_play=lambda peer: peer.play(3)) as camera:
        ears = [Ear() for _ in range(5)]
        sources = [engine(SourceRequest(f"cam{i}", lambda: Endpoint(camera.url)), ear, SYSTEM_CLOCK) for i, ear in enumerate(ears)]
        for source in sources:
            source.start()
        for ear in ears:
            ear.hear(3)
        assert len({thread for ear in ears for thread in ear.threads}) == 1
        assert sum(thread.name == "nvrstore-lean" for thread in threading.enumerate()) == 1
        for source in sources:
            source.stop()
        assert all(source.join(STOP_S) for source in sources)
        assert not any(thread.name == "nvrstore-lean" for thread in threading.enumerate())
    assert threading.active_count() <= before


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/clip.mp4", "rtmp://127.0.0.1:{port}/live", "http://127.0.0.1:x/clip.mp4"])
def test_what_is_not_rtsp_is_left_to_the_other_engine_untried(url: str) -> None:
    """Whatever port it names: RTSP spoken to a web server makes three sessions of nonsense before libav has its turn."""
    with Camera() as camera:
        with session(url.format(port=urlsplit(camera.url).port)) as (_, ear):
            error = ear.end()
        assert camera.requests == []
    assert isinstance(error, SourceUnsupportedError)
    assert "rtsp and rtsps alone" in error.message
