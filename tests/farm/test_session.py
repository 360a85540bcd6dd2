"""RTSP as the farm speaks it: methods, errors, logins."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.rtp_client import RtspClient

from nvrstore.farm import Auth, Farm, FarmConfig
from nvrstore.farm.rtsp import Interleaved, Parser, ProtocolError, Request, parse_authorization, parse_transport


def test_every_method_answers(small: FarmConfig) -> None:
    """OPTIONS, DESCRIBE, SETUP, PLAY, GET_PARAMETER, PAUSE, TEARDOWN: 200; what RTSP does not know: 501."""
    with Farm(small) as farm, RtspClient(farm.url(0)) as client:
        assert "GET_PARAMETER" in client.ask("OPTIONS").headers["public"]
        client.play()
        client.units(2)
        for method in ("GET_PARAMETER", "OPTIONS", "SET_PARAMETER", "PAUSE", "PLAY", "TEARDOWN"):
            assert client.ask(method).status == 200, method
        assert client.ask("RECORD").status == 501
        assert farm.listeners(0) == 0


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("DESCRIBE", "/cam7", {}, 404),
        ("DESCRIBE", "/", {}, 404),
        ("DESCRIBE", "/cam0/trackID=0/more", {}, 404),
        ("SETUP", "/cam0/trackID=0", {"Transport": "RTP/AVP;multicast"}, 461),
        ("SETUP", "/cam0/trackID=0", {"Transport": "RTP/SAVP;unicast;client_port=5000-5001"}, 461),
        ("SETUP", "/cam0/trackID=0", {}, 461),
        ("SETUP", "/cam0/trackID=1", {"Transport": "RTP/AVP/TCP;unicast;interleaved=0-1"}, 404),
        ("SETUP", "/cam0", {"Transport": "RTP/AVP/TCP;unicast;interleaved=0-1"}, 459),
        ("SETUP", "/cam0/trackID=0", {"Transport": "RTP/AVP/TCP;unicast", "Session": "12345678"}, 454),
        ("PLAY", "/cam0", {"Session": "12345678"}, 454),
        ("TEARDOWN", "/cam0", {}, 454),
        ("FLY", "/cam0", {}, 501),
    ],
)
def test_what_cannot_be_done_is_said_with_the_right_status(
    small: FarmConfig, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    """Unknown streams, tracks, transports, sessions, methods; the connection stays usable."""
    with Farm(small) as farm, RtspClient(farm.url(0)) as client:
        assert client.ask(method, f"rtsp://127.0.0.1:{farm.port}{path}", **headers).status == status
        assert client.ask("DESCRIBE").status == 200


@pytest.mark.parametrize("auth", [Auth.BASIC, Auth.DIGEST, Auth.DIGEST_SHA256])
def test_logins_are_asked_for_and_checked(small: FarmConfig, auth: Auth) -> None:
    """401 with a challenge; the right answer opens, a wrong password does not."""
    with Farm(replace(small, auth=auth, user="operator", password="s3cret,=\u00fc")) as farm:
        with RtspClient(farm.url(0, login=False)) as client:
            answer = client.ask("DESCRIBE")
            assert answer.status == 401
            assert answer.headers["www-authenticate"].startswith("Basic " if auth is Auth.BASIC else "Digest ")
        if auth is not Auth.BASIC:
            with RtspClient(farm.url(0, login=False)) as client:
                client.login = ("operator", "s3cret,=\u00fc")
                client.play()
                assert len(client.units(2)) == 2
            with RtspClient(farm.url(0, login=False)) as client:
                client.login = ("operator", "wrong")
                assert client.ask("DESCRIBE").status == 401


def test_authorization_headers_are_taken_apart() -> None:
    """Quoted strings with escapes, and bare tokens (RFC 7235 2.1)."""
    header = parse_authorization('Digest username="a\\"b", realm="x", qop=auth, nc=00000001, response="00ff"')
    assert header.scheme == "digest"
    assert header.fields == {"username": 'a"b', "realm": "x", "qop": "auth", "nc": "00000001", "response": "00ff"}


GARBAGE = [b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"A" * 20_000, b"DESCRIBE rtsp://x RTSP/1.0\r\nContent-Length: 99999999\r\n\r\n"]


def test_garbage_closes_the_connection_and_nothing_else(small: FarmConfig) -> None:
    """A client that speaks HTTP, or nothing at all, is shown the door."""
    with Farm(small) as farm:
        for garbage in GARBAGE:
            with RtspClient(farm.url(0)) as client:
                client.sock.sendall(garbage)
                assert client.sock.recv(100) == b""
        with RtspClient(farm.url(0)) as client:
            client.play()
            assert client.units(1)


def test_requests_are_found_whatever_the_pieces_they_come_in() -> None:
    """One byte at a time, with interleaved packets and keep-alive lines between."""
    data = b"\r\nOPTIONS rtsp://h/cam0 RTSP/1.0\r\nCSeq: 1\r\n\r\n$\x01\x00\x03abcSET_PARAMETER rtsp://h/cam0/ RTSP/1.0\r\n"
    data += b"cseq:2\r\nContent-Length: 4\r\n\r\nbody"
    parser = Parser()
    items = [item for at in range(len(data)) for item in parser.feed(data[at : at + 1])]
    assert [type(item) for item in items] == [Request, Interleaved, Request]
    first, middle, last = items
    assert isinstance(first, Request)
    assert isinstance(last, Request)
    assert (first.method, first.cseq, first.path) == ("OPTIONS", "1", "/cam0")
    assert middle == Interleaved(1, b"abc")
    assert (last.body, last.cseq, last.path) == (b"body", "2", "/cam0")


@given(st.binary(max_size=400))
def test_no_bytes_break_the_parser(data: bytes) -> None:
    """It yields items or says that this is no RTSP; nothing else comes out."""
    try:
        for item in Parser().feed(data):
            if isinstance(item, Request):
                parse_transport(item.headers.get("transport", ""))
                parse_authorization(item.headers.get("authorization", ""))
    except ProtocolError:
        return


@given(st.text(st.characters(max_codepoint=255), max_size=100))
def test_no_header_breaks_its_parser(text: str) -> None:
    """Transport and Authorization take any text."""
    parse_transport(text)
    parse_authorization(text)
