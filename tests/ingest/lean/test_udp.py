"""The lean engine over UDP: whose packets are taken, in which order, what is torn, and what is left behind."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import pytest
from tests.support.camera import WAIT_S, Camera, Peer, pictures
from tests.support.ingest import Ear, recording
from tests.support.lean import session
from tests.support.packets import Wire

from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.config import StreamConfig
from nvrstore.errors import SourceEndedError, SourceError, SourceSilentError
from nvrstore.farm import Farm, FarmConfig, is_intact, parse_sei
from nvrstore.ingest.errors import SourceUnsupportedError
from nvrstore.ingest.lean import LeanSource, connection, udp
from nvrstore.ingest.lean.rtsp import Client
from nvrstore.ingest.lean.udp import Datagrams
from nvrstore.media.nal import split_lengths
from nvrstore.model import Cause, Media

pytestmark = pytest.mark.slow

SMALL = FarmConfig(width=160, height=120, bitrate_bps=1_000_000, fps=25, gop=25)


over_udp = partial(session, transport="udp")


def hear_all(camera: Camera, count: int) -> LeanSource:
    """Hear so many pictures to their end; each is whole, and none is missing."""
    with over_udp(camera.url) as (source, ear):
        ear.hear(count - 1)
        source.stop()
        ear.end()
    assert_whole(ear, count)
    return source


def datagram_sockets() -> int:
    """How many UDP sockets this process has open."""
    inodes = {line.split()[9] for name in ("udp", "udp6") for line in Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]}
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found += os.readlink(entry).removeprefix("socket:[").rstrip("]") in inodes
        except OSError:
            continue
    return found


def assert_whole(ear: Ear, count: int) -> None:
    """So many pictures, the camera's first ones, in order, none of them flagged."""
    expected = pictures()
    assert [split_lengths(sample.data) for sample in ear.of()] == [next(expected) for _ in range(count)]
    assert not any(sample.damaged for sample in ear.of())


def test_pictures_come_over_a_pair_of_ports_and_nothing_is_left_behind() -> None:
    """An even port and the one above it (RFC 3550 11); the session ends with TEARDOWN, and its sockets with it."""
    before = datagram_sockets()
    with Camera() as camera:
        with over_udp(camera.url) as (source, ear):
            ear.hear(29)
            assert datagram_sockets() == before + 4  # two of them are the camera's
            source.stop()
            ear.end()
            (setup,) = [request for request in camera.requests if request.method == "SETUP"]
            port = camera.peers[0].ports
            assert port % 2 == 0
            assert setup.headers["transport"] == f"RTP/AVP;unicast;client_port={port}-{port + 1}"
            assert camera.asked("TEARDOWN") == 1
        assert_whole(ear, 30)
        assert source.packets_lost == 0
    assert datagram_sockets() == before


def test_a_datagram_to_each_of_the_camera_s_ports_opens_firewalls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is asked to play: an RTP packet, and an empty receiver report; reports go on over UDP."""
    heard: list[bytes] = []

    def on_play(peer: Peer) -> None:
        heard.extend(sock.recv(100) for sock in peer.udp)
        peer.play(30)

    monkeypatch.setattr(connection, "REPORT_S", 0.2)
    with Camera(on_play=on_play) as camera, over_udp(camera.url) as (_, ear):
        ear.hear(29)
        report = camera.peers[0].udp[1].recv(100)
    assert [len(packet) for packet in heard] == [12, 8]
    assert heard[0][0] == heard[1][0] == 0x80
    assert heard[1][1] == report[1] == 201
    assert struct.unpack_from(">I", report, 8) == (7,)  # the SSRC that is reported on


def test_datagrams_that_overtook_each_other_or_came_twice_cost_nothing() -> None:
    """Within the reach of the jitter buffer: the pictures are whole, none is flagged, no packet counts as lost."""
    random = Random(5)

    def on_play(peer: Peer) -> None:
        frames = [frame for unit in peer.next(60, cut=100) for frame in unit]
        order = frames[:1] + [frame for _, frame in sorted((at + random.uniform(0, 12), frame) for at, frame in enumerate(frames[1:]))]
        peer.throw(frame for frame in order for _ in range(1 + (random.random() < 0.1)))

    with Camera(on_play=on_play) as camera:
        source = hear_all(camera, 60)
    assert source.packets_lost == 0


def test_camera_28_every_torn_picture_is_flagged_and_no_whole_one_is() -> None:
    """3 % of the packets are lost: what lacks bytes says so, and the count of lost packets is exact.

    A picture of which nothing is left that could be kept is told with the next one, which is whole: the ledger has to know.
    """
    random = Random(28)
    lost = 0

    def on_play(peer: Peer) -> None:
        nonlocal lost
        for number, unit in enumerate(peer.next(151, cut=100)):
            kept = [frame for frame in unit if number in (0, 150) or random.random() >= 0.03]
            lost += len(unit) - len(kept)
            peer.throw(kept)

    with Camera(on_play=on_play) as camera, over_udp(camera.url) as (source, ear):
        ear.wait(lambda: ear.of() and ear.of()[-1].pts == 150 * 3600)
        source.stop()
        ear.end()
    came = {sample.pts // 3600: sample for sample in ear.of()}
    torn = 0
    for number, expected in zip(range(151), pictures(), strict=False):
        if number not in came:
            assert came[number + 1].damaged
            continue
        whole = split_lengths(came[number].data) == expected
        torn += not whole
        assert came[number].damaged is (not whole or (number > 0 and number - 1 not in came)), f"picture {number}"
    assert torn >= 10
    assert source.packets_lost == lost > torn


def test_camera_28_what_udp_lost_is_a_gap_of_the_network_and_nothing_else_is_missing() -> None:
    """Against the farm, which keeps count of the frames that it sent as a whole; through the engine that `auto` takes.

    Where of a frame its SEI alone is left, that stands in front of the next one, as if it were its own stamp.
    """
    with Farm(replace(SMALL, loss=0.01)) as farm:
        config = StreamConfig.model_validate({"id": "gate", "url": farm.url(0), "transport": "udp"})
        with recording(config) as (ingest, book):
            book.wait(lambda: book.samples() >= 150)
            (sent,) = farm.stop_sending()
            status = ingest.supervisor("gate").status()
        assert status.engine == "lean"
        assert status.packets_lost > 0
        whole = {number for span in sent.ranges for number in range(span.first, span.last + 1)}
        lost = {number for span in book.report().lost(sent) for number in range(span.first, span.last + 1)}
        assert not [number for number in lost if number - 1 in whole]
        assert not book.report().duplicated
        assert book.gaps()
        assert {gap.cause for gap in book.gaps()} == {Cause.NETWORK}
        book.check()


def test_camera_28_flags_are_right_for_h265_too() -> None:
    """A frame whose stamp and slices agree is whole and not flagged; one whose slices do not is flagged."""
    with Farm(replace(SMALL, codec="h265", loss=0.02)) as farm, over_udp(farm.url(0)) as (source, ear):
        ear.hear(150)
        farm.stop_sending()
    torn = [sample for sample in ear.of() if parse_sei(sample.data) is not None and not is_intact(sample.data)]
    whole = [sample for sample in ear.of() if is_intact(sample.data)]
    assert torn
    assert all(sample.damaged for sample in torn)
    stamps = [stamp for sample in ear.of() if (stamp := parse_sei(sample.data)) is not None]
    came = {stamp.number for stamp in stamps}
    flagged = [stamp for sample in whole if sample.damaged and (stamp := parse_sei(sample.data)) is not None]
    assert not [stamp.number for stamp in flagged if stamp.number - 1 in came]
    assert source.packets_lost


def stranger(address: str) -> socket.socket:
    """A socket of somebody else."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, 0))
    sock.settimeout(WAIT_S)
    return sock


def test_what_strangers_send_is_not_read() -> None:
    """From another address from the beginning; from another port of the camera's address, once its own is known."""

    def on_play(peer: Peer) -> None:
        with stranger("127.0.0.2") as foreign, stranger("127.0.0.1") as neighbour:
            for unit in peer.next(30):
                false = [frame[:16] + bytes(len(frame) - 16) for frame in unit]
                peer.throw(false, sock=foreign)
                peer.throw(unit[:1])
                peer.throw(false, sock=neighbour)
                peer.throw(unit[1:])

    with Camera(on_play=on_play) as camera:
        source = hear_all(camera, 30)
    assert (source.packets_lost, source._lost) == (0, 0)


@pytest.mark.parametrize("seed", range(3))
def test_datagrams_that_are_no_packets_cost_nothing(seed: int) -> None:
    """Of any length, none included, to both ports; and single packets of other sources."""
    random = Random(seed)

    def garbage() -> bytes:
        first = random.choice((0x00, 0x40, 0x80, 0xC0, 0xB1))
        data = bytes((first,)) + random.randbytes(random.choice((0, 6, 7, 10, 11, 12, 40, 1400)))
        return data if random.random() < 0.9 else b""

    def on_play(peer: Peer) -> None:
        for unit in peer.next(30):
            for frame in unit:
                for sock, port in zip(peer.udp, (peer.ports, peer.ports + 1), strict=True):
                    sock.sendto(garbage(), ("127.0.0.1", port))
                peer.throw([frame])

    with Camera(on_play=on_play) as camera:
        source = hear_all(camera, 30)
    assert source.packets_lost == 0


def test_an_address_that_the_camera_names_is_the_camera_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some send from another interface than the one that they answer on; firewalls are opened for both."""
    heard: list[bytes] = []

    def set_up(peer: Peer, transport: str) -> str:
        peer.ports = int(transport.partition("client_port=")[2].partition("-")[0])
        peer.udp = [stranger("127.0.0.2"), stranger("127.0.0.2")]
        ports = "-".join(str(sock.getsockname()[1]) for sock in peer.udp)
        return f"{transport};source=127.0.0.2;server_port={ports}"

    def on_play(peer: Peer) -> None:
        heard.append(peer.udp[0].recv(100))
        peer.play(30)

    monkeypatch.setattr(Peer, "set_up", set_up)
    with Camera(on_play=on_play) as camera:
        hear_all(camera, 30)
    assert len(heard) == 1


def test_what_lies_in_a_port_before_playing_is_an_old_session_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead recorder's port is given to the next one: what its camera goes on sending is left out by its SSRC."""
    old = Wire(ssrc=99, seq=500)
    stale = [frame for number in range(40) for frame in old.unit([bytes((0x65,)) * 3000], number * 3600)]
    set_up = Peer.set_up

    def set_up_and_send(peer: Peer, transport: str) -> str:
        answer = set_up(peer, transport)
        peer.throw(stale[:3])
        return answer

    def on_play(peer: Peer) -> None:
        for number, unit in enumerate(peer.next(30)):
            peer.throw(unit[:1] + stale[3 * number + 3 : 3 * number + 6] + unit[1:])

    monkeypatch.setattr(Peer, "set_up", set_up_and_send)
    with Camera(on_play=on_play) as camera:
        source = hear_all(camera, 30)
    assert source.packets_lost == 0


@pytest.mark.parametrize(
    "answer",
    [
        b"RTSP/1.0 461 Unsupported Transport\r\nCSeq: CSEQ\r\n\r\n",
        b"RTSP/1.0 200 OK\r\nCSeq: CSEQ\r\nSession: 1\r\nTransport: RTP/AVP;unicast;client_port=2-3\r\n\r\n",
        b"RTSP/1.0 200 OK\r\nCSeq: CSEQ\r\nSession: 1\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n\r\n",
    ],
)
def test_a_camera_that_does_not_send_over_udp_is_left_to_the_other_engine(answer: bytes) -> None:
    """With the key of the configuration that helps; the ports are closed."""
    before = datagram_sockets()
    with Camera(answers={"SETUP": answer}) as camera, over_udp(camera.url) as (_, ear):
        error = ear.end()
    assert isinstance(error, SourceUnsupportedError)
    assert "does not send over UDP" in error.message
    assert 'transport = "tcp"' in error.hint
    assert datagram_sockets() == before


def test_rtsps_is_not_spoken_over_udp() -> None:
    """Pictures would come in the clear: who asked for TLS is told."""
    with over_udp("rtsps://127.0.0.1:1/main") as (_, ear):
        error = ear.end()
    assert isinstance(error, SourceUnsupportedError)
    assert 'transport = "tcp"' in error.hint


def test_a_camera_whose_datagrams_do_not_come_is_given_up_though_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A firewall in between: keepalives are answered, pictures do not come, and the hint says where to look."""
    monkeypatch.setattr(Client, "keepalive_s", 0.2)
    with Camera(on_play=lambda peer: None) as camera, over_udp(camera.url, timeout_s=1.0) as (_, ear):
        error = ear.end()
        assert camera.asked("GET_PARAMETER")
    assert isinstance(error, SourceSilentError)
    assert "no picture" in error.message
    assert "UDP" in error.hint


def test_the_end_of_the_connection_ends_the_session_and_what_came_is_there() -> None:
    """Also what is held behind a hole: flagged, and not lost."""

    def on_play(peer: Peer) -> None:
        *units, last = peer.next(30, cut=100)
        peer.throw(frame for unit in units for frame in unit)
        peer.throw(last[:1] + last[2:])
        peer.sock.shutdown(socket.SHUT_RDWR)

    with Camera(on_play=on_play) as camera, over_udp(camera.url) as (_, ear):
        assert isinstance(ear.end(), SourceEndedError)
    assert len(ear.of()) == 30
    assert [sample.damaged for sample in ear.of()] == [False] * 29 + [True]


def test_reports_of_the_camera_s_clock_come_by_a_port_of_their_own() -> None:
    """Sound too has a pair of ports."""
    with Farm(replace(SMALL, audio="aac")) as farm, over_udp(farm.url(0)) as (_, ear):
        ear.wait(lambda: {media for media, _, _ in ear.references} == {Media.VIDEO, Media.AUDIO})
        ear.hear(30)
    assert ear.report().whole


class _Loop:
    clock = SYSTEM_CLOCK


def test_ports_come_in_pairs_and_where_there_are_none_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even and the next one, each time; tries are bounded, and nothing of them stays open."""
    before = datagram_sockets()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        datagrams = Datagrams(_Loop(), sock, lambda now_s: None, lambda error: None)  # type: ignore[arg-type]
        ports = [datagrams.open_pair() for _ in range(4)]
        assert all(port % 2 == 0 for port in ports)
        assert len(set(ports)) == 4
        assert datagram_sockets() == before + 8
        monkeypatch.setattr(udp, "TRIES_MAX", 0)
        with pytest.raises(SourceError, match="no pair"):
            datagrams.open_pair()
        datagrams.close()
    assert datagram_sockets() == before
