"""Frames and messages in one byte stream: told apart in reads of any size, found again behind stray bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.packets import Line, Wire, framed, packet

from nvrstore.ingest.lean import interleaved
from nvrstore.ingest.lean.interleaved import Demux
from nvrstore.ingest.lean.messages import BODY_BYTES_MAX, HEAD_BYTES_MAX, Call, MessageError, Response, parse

PICTURE = b"\x41\x9a" + bytes(range(256)) * 12
ANSWER = b"RTSP/1.0 200 OK\r\nCSeq: 7\r\nContent-Length: 5\r\n\r\nhello"


@given(st.lists(st.integers(1, 900), max_size=40), st.integers(0, 5))
def test_messages_stand_between_frames(reads: list[int], answers: int) -> None:
    """Answers to keepalives come in the middle of video; heads and bodies may be cut anywhere."""
    line, wire = Line(), Wire(seq=1)
    data = b""
    for number in range(6):
        data += b"".join(wire.unit([PICTURE], number * 3600))
        data += ANSWER * (number < answers)
    line.feed_in(data, reads)
    assert [unit.nals for unit in line.units] == [[PICTURE]] * 6
    assert line.messages == [ANSWER] * answers


def test_frames_on_channels_that_nobody_set_up_are_told_and_left_out() -> None:
    """An old session's packets: channel and source, nothing else."""
    line, wire = Line(), Wire(seq=1)
    line.feed(framed(packet(b"old", 1, 0, ssrc=99), channel=6) + framed(b"short", channel=8) + b"".join(wire.unit([PICTURE], 0)))
    assert line.strangers == [(6, 99)]
    assert [unit.nals for unit in line.units] == [[PICTURE]]


@pytest.mark.parametrize(
    "stray", [b"\0", b"garbage", b"$", b"$\0\0", b"$\0\0\0", b"$$$$$$$$", b"RTSX", b"\xff" * 5000, b"$\x09\xff\xff\0\0"]
)
def test_camera_29_stray_bytes_between_frames_cost_no_frame_that_is_whole(stray: bytes) -> None:
    """The next frame that looks like one of ours is found; numbers tell whether anything is missing."""
    line, wire = Line(), Wire(seq=1)
    line.feed(b"".join(wire.unit([PICTURE], 0)))
    line.feed(stray + b"".join(wire.unit([PICTURE], 3600)))
    line.feed(b"".join(wire.unit([PICTURE], 7200)))
    assert [unit.timestamp for unit in line.units][-1] == 7200
    assert line.units[-1].nals == [PICTURE]
    if not line.reader.sequence.lost:
        assert [unit.nals for unit in line.units] == [[PICTURE]] * 3


def test_camera_29_empty_lines_between_messages_are_nothing() -> None:
    """Some servers end bodies with one more line end."""
    line = Line()
    line.feed(b"\r\n\r\n" + ANSWER + b"\r\n" + ANSWER)
    assert line.messages == [ANSWER, ANSWER]


def test_a_stream_of_stray_bytes_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not searched for ever."""
    monkeypatch.setattr(interleaved, "STRAY_BYTES_MAX", 10_000)
    line = Line()
    for _ in range(10):
        line.feed(b"\0" * 1000)
    with pytest.raises(MessageError):
        line.feed(b"\0" * 1000)


@pytest.mark.parametrize("data", [b"HTTP/1.1 200 OK\r\n\r\n", b"\0\0\0\0\0", b"\x16\x03\x01\x02\0", b"RTSX/1.0 200 OK\r\n\r\n", b"{}{}{}"])
def test_before_anything_is_set_up_there_is_nothing_to_find_again(data: bytes) -> None:
    """What is no RTSP is told at once."""
    demux = Demux(lambda _: None, lambda *_: None)
    with pytest.raises(MessageError):
        demux.feed(bytearray(data), len(data))


def test_heads_and_bodies_are_bounded() -> None:
    """A head without an end, a body of a gigabyte."""
    demux = Demux(lambda _: None, lambda *_: None)
    head = bytearray(b"RTSP/1.0 200 OK\r\n" + b"X: y\r\n" * HEAD_BYTES_MAX)
    with pytest.raises(MessageError, match="head"):
        demux.feed(head, len(head))
    body = bytearray(b"RTSP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % (BODY_BYTES_MAX + 1))
    with pytest.raises(MessageError, match="body"):
        demux.feed(body, len(body))


@given(st.binary(max_size=2000), st.lists(st.integers(1, 200), max_size=30), st.booleans())
def test_no_bytes_make_it_raise_anything_else(data: bytes, reads: list[int], playing: bool) -> None:
    """Garbage, in reads of any size, before and after tracks are set up; and never more is kept than one message."""
    line = Line()
    if not playing:
        line.demux.readers[0] = None
    try:
        line.feed_in(data, reads)
    except MessageError:
        pass
    line.reader.flush()


@given(st.binary(max_size=600))
def test_no_bytes_make_the_parser_of_messages_raise(data: bytes) -> None:
    """It is an answer, a request, or nothing."""
    for head in (b"", b"RTSP/1.0 200 OK\r\n", b"OPTIONS * RTSP/1.0\r\nCSeq: "):
        found = parse(head + data)
        assert found is None or isinstance(found, Response | Call)


@pytest.mark.parametrize(
    ("text", "status", "reason"),
    [
        (b"RTSP/1.0 200 OK", 200, "OK"),
        (b"RTSP/1.0 401", 401, ""),
        (b"rtsp/2.0   454   Session Not Found ", 454, "Session Not Found"),
        (b"RTSP/1.0 200 OK\nCSeq: 1\n\n", 200, "OK"),
    ],
)
def test_camera_29_first_lines_are_read_as_cameras_write_them(text: bytes, status: int, reason: str) -> None:
    """Any version, any spaces, no reason, bare line feeds."""
    found = parse(text)
    assert isinstance(found, Response)
    assert (found.status, found.reason) == (status, reason)


def test_camera_29_headers_are_read_as_cameras_write_them() -> None:
    """Spaces anywhere, any case, no value, twice, no colon at all."""
    found = parse(b"RTSP/1.0 200 OK\r\n cSEQ :  5 \r\nSession:\r\nnonsense\r\nWWW-Authenticate: a\r\nwww-authenticate: b\r\n\r\n")
    assert isinstance(found, Response)
    assert (found.header("cseq"), found.header("session"), found.header("x")) == ("5", "", "")
    assert found.headers["www-authenticate"] == ("a", "b")
