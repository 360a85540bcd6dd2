"""What every engine promises, over real RTSP: one suite, one parameter per engine."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from tests.support.ingest import Ear

from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.errors import (
    SourceEndedError,
    SourceError,
    SourceNotVideoError,
    SourceRefusedError,
    SourceSilentError,
    SourceUnreachableError,
)
from nvrstore.farm import Farm, FarmConfig
from nvrstore.farm.oddities import Act, Traits
from nvrstore.ingest.contract import Endpoint, Source, SourceFactory, SourceRequest
from nvrstore.ingest.engines import default_engines
from nvrstore.limits import STOP_S
from nvrstore.media.nal import is_keyframe, split_lengths
from nvrstore.model import Media

pytestmark = pytest.mark.slow

SMALL = FarmConfig(width=160, height=120, bitrate_bps=200_000, fps=50, gop=25)
PASSWORD = "p@ss:w/rd?#%"


@pytest.fixture(params=["lean", "lean-udp", "pyav"])
def factory(request: pytest.FixtureRequest) -> SourceFactory:
    """A factory of one engine, over TCP or UDP."""
    engine, _, transport = str(request.param).partition("-")
    made = default_engines()[engine]
    return made if not transport else lambda asked, receiver, clock: made(replace(asked, transport="udp"), receiver, clock)


@contextmanager
def session(factory: SourceFactory, url: str, *, login: tuple[str, str] | None = None, **request: Any) -> Iterator[tuple[Source, Ear]]:
    """A running source and who hears it; stopped and gone at the end."""
    ear = Ear()
    source = factory(SourceRequest("gate", lambda: Endpoint(url, login), **{"timeout_s": 5.0, **request}), ear, SYSTEM_CLOCK)
    source.start()
    try:
        yield source, ear
    finally:
        source.stop()
        assert source.join(STOP_S), "the source is stuck"
        assert len(ear.ends) == 1


@contextmanager
def listener(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A camera's port that does what `answer` does with every connection."""
    kept: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            try:
                while True:
                    connection, _ = server.accept()
                    kept.append(connection)
                    answer(connection)
            except OSError:
                return

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"rtsp://127.0.0.1:{server.getsockname()[1]}/main"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in kept:
        connection.close()


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_every_frame_that_was_sent_arrives_once_in_order_and_intact(factory: SourceFactory, codec: str) -> None:
    """Also the last one, which engines hold until they know that it is whole: it comes when the source is told to end."""
    with Farm(replace(SMALL, codec=codec)) as farm:
        with session(factory, farm.url(0)) as (_, ear):
            ear.hear(60)
            (sent,) = farm.stop_sending()
        report = ear.report()
    assert report.whole
    assert not report.lost(sent)
    assert [config.codec for config in ear.configs] == ["hevc" if codec == "h265" else codec]
    assert (ear.configs[0].width, ear.configs[0].height) == (160, 120)


def test_keyframes_are_marked_and_carry_their_parameter_sets(factory: SourceFactory) -> None:
    """Every keyframe can be decoded by itself; nothing else is called one."""
    with Farm(SMALL) as farm, session(factory, farm.url(0)) as (_, ear):
        ear.hear(60)
    for sample in ear.of():
        nals = split_lengths(sample.data)
        assert sample.keyframe is is_keyframe("h264", nals)
        if sample.keyframe:
            assert {7, 8} <= {nal[0] & 31 for nal in nals}
    assert sum(sample.keyframe for sample in ear.of()) >= 2


def test_times_are_those_of_the_camera_and_those_of_arrival(factory: SourceFactory) -> None:
    """DTS in ticks of 1/90,000 s, steady; arrival on both clocks of this machine, and all callbacks from one thread."""
    before_ns = SYSTEM_CLOCK.utc_ns()
    with Farm(SMALL) as farm, session(factory, farm.url(0)) as (_, ear):
        ear.hear(40)
    samples = ear.of()
    assert {b.dts - a.dts for a, b in pairwise(samples)} == {1800}
    assert all(sample.pts == sample.dts for sample in samples)
    assert before_ns <= samples[0].arrival_ns <= samples[-1].arrival_ns <= SYSTEM_CLOCK.utc_ns()
    assert samples[0].arrival_s <= samples[-1].arrival_s <= SYSTEM_CLOCK.monotonic_s()


@pytest.mark.parametrize(("audio", "codec", "rate"), [("aac", "aac", 16_000), ("pcma", "aac", 8_000)])
def test_sound_comes_as_a_track_of_its_own(factory: SourceFactory, audio: Any, codec: str, rate: int) -> None:
    """AAC as it is, G.711 as AAC; samples follow each other without a hole."""
    with Farm(replace(SMALL, audio=audio)) as farm, session(factory, farm.url(0)) as (_, ear):
        ear.hear(5, Media.AUDIO)
    (config,) = [config for config in ear.configs if config.media is Media.AUDIO]
    assert (config.codec, config.sample_rate, config.timescale) == (codec, rate, rate)
    sound = ear.of(Media.AUDIO)
    assert {b.dts - a.dts for a, b in pairwise(sound)} == {1024}


def test_sound_that_is_off_is_not_asked_for(factory: SourceFactory) -> None:
    """No track, no packets."""
    with Farm(replace(SMALL, audio="aac")) as farm, session(factory, farm.url(0), audio="off") as (_, ear):
        ear.hear(20)
    assert [config.media for config in ear.configs] == [Media.VIDEO]


@pytest.mark.parametrize("auth", ["basic", "digest"])
def test_a_login_with_special_characters_is_understood(factory: SourceFactory, auth: str) -> None:
    """Whatever stands in a password, and both ways to prove it."""
    with (
        Farm(replace(SMALL, auth=auth, password=PASSWORD)) as farm,
        session(factory, farm.url(0, login=False), login=("admin", PASSWORD)) as (_, ear),
    ):
        ear.hear(5)


@pytest.mark.parametrize("login", [None, ("admin", "s3cr3t-wrong")])
def test_a_refused_login_is_told_and_never_shown(factory: SourceFactory, login: tuple[str, str] | None) -> None:
    """401 is an error of its own, and no credential is in it, nor in what it came from."""
    with Farm(replace(SMALL, auth="digest")) as farm, session(factory, farm.url(0, login=False), login=login) as (_, ear):
        error = ear.end()
    assert isinstance(error, SourceRefusedError)
    assert "s3cr3t" not in repr(error) + str(error) + error.hint
    assert error.__cause__ is None
    assert error.__context__ is None


def test_a_port_where_nobody_listens_is_unreachable(factory: SourceFactory) -> None:
    """Connection refused."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with session(factory, f"rtsp://127.0.0.1:{port}/main") as (_, ear):
        assert isinstance(ear.end(), SourceUnreachableError)


def test_a_path_where_nothing_is_is_no_video(factory: SourceFactory) -> None:
    """404, and the hint says where to look."""
    with Farm(SMALL) as farm, session(factory, farm.url(0).replace("cam0", "nothing")) as (_, ear):
        error = ear.end()
    assert isinstance(error, SourceNotVideoError)
    assert "path" in error.hint


def test_a_camera_that_is_full_says_so(factory: SourceFactory) -> None:
    """453: no wrong login, no wrong address."""
    with Farm(replace(SMALL, traits={0: Traits(clients_max=0)})) as farm, session(factory, farm.url(0)) as (_, ear):
        assert isinstance(ear.end(), SourceSilentError)


def test_a_camera_that_hangs_up_ends_the_session(factory: SourceFactory) -> None:
    """What it sent before is there, whole."""
    with Farm(SMALL) as farm, session(factory, farm.url(0)) as (_, ear):
        ear.hear(20)
        farm.act(Act("disconnect"))
        error = ear.end()
        assert isinstance(error, SourceEndedError)
        assert ear.report().whole
        assert not ear.report().lost(farm.sent(0))


def test_a_server_that_never_answers_is_given_up_after_the_timeout(factory: SourceFactory) -> None:
    """Bounded by `timeout_s`, and told apart from a port that is closed."""
    with listener(lambda _: None) as url, session(factory, url, timeout_s=0.3) as (_, ear):
        assert isinstance(ear.end(), SourceSilentError)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\n\r\n", b"\0" * 4096, b""])
def test_a_server_that_speaks_something_else_is_no_camera(factory: SourceFactory, answer: bytes) -> None:
    """Garbage, and a connection that is closed at once."""

    def babble(connection: socket.socket) -> None:
        connection.recv(1)
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_RDWR)

    with listener(babble) as url, session(factory, url, timeout_s=2.0) as (_, ear):
        assert isinstance(ear.end(), SourceError)


def test_stopping_does_not_wait_for_a_camera_that_hangs(factory: SourceFactory) -> None:
    """Whether it hangs while connecting or later: the source is gone long before its own timeout of an hour."""
    with listener(lambda _: None) as url, session(factory, url, timeout_s=3600.0):
        pass
    with Farm(SMALL) as farm, session(factory, farm.url(0), timeout_s=3600.0) as (_, ear):
        ear.hear(5)
        farm.act(Act("hang"))


def test_stopping_before_anything_happened_is_fine(factory: SourceFactory) -> None:
    """A source that was never started, and one that is stopped at once."""
    source = factory(SourceRequest("gate", lambda: Endpoint("rtsp://127.0.0.1:1/main")), Ear(), SYSTEM_CLOCK)
    source.stop()
    assert source.join(0)


def test_a_resolve_hook_is_asked_at_every_connect_and_may_fail(factory: SourceFactory) -> None:
    """Its errors are the session's; foreign ones lose their text, which may hold what was looked up."""
    for error, kind in ((SourceError("the vault is sealed"), "sealed"), (KeyError("s3cr3t"), "KeyError")):
        ear = Ear()

        def resolve(error: Exception = error) -> Endpoint:
            raise error

        source = factory(SourceRequest("gate", resolve), ear, SYSTEM_CLOCK)
        source.start()
        found = ear.end()
        assert source.join(STOP_S)
        assert kind in str(found)
        assert "s3cr3t" not in f"{found!r} {found.__context__!r} {found.__cause__!r}"


def test_a_source_that_waits_where_no_socket_is_is_left_behind(factory: SourceFactory) -> None:
    """`join` says so in time; nothing is heard of it until it comes back by itself."""
    gate = threading.Event()

    def resolve() -> Endpoint:
        gate.wait()
        return Endpoint("rtsp://127.0.0.1:1/main")

    ear = Ear()
    source = factory(SourceRequest("gate", resolve), ear, SYSTEM_CLOCK)
    source.start()
    source.stop()
    assert not source.join(0.05)
    assert not ear.ends
    gate.set()
    assert source.join(STOP_S)
    assert len(ear.ends) == 1


def test_the_camera_s_clock_is_handed_on(factory: SourceFactory) -> None:
    """RTCP sender reports (RFC 3550 6.4.1): UTC of a PTS, right to the transport's delay."""
    with Farm(SMALL) as farm, session(factory, farm.url(0)) as (_, ear):
        ear.wait(lambda: ear.references)
        ear.hear(30)
    media, pts, utc_ns = ear.references[0]
    (sample,) = [sample for sample in ear.of() if sample.pts == pts]
    assert media is Media.VIDEO
    assert abs(sample.arrival_ns - utc_ns) < 5_000_000_000
