"""Where a camera's bytes enter the lean engine: one function per entry point, which takes any bytes and may raise nothing.

    messages  sdp  auth  rtsp  interleaved  rtcp  h264  hevc  aac  g711  opus        each part by itself
    connection                                                                       all of them, behind a socket that is none

Pure, so that they run under hypothesis (test_fuzz.py) and under a fuzzer that is led by coverage (fuzz.py) alike. Bytes are read as
`Script` says: a few of them choose, the others are what a camera sends; so that what is tried gets past the first check.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

from tests.support.packets import BUFFER_BYTES, Line, framed, packet

from nvrstore.clock import ManualClock
from nvrstore.errors import SourceError
from nvrstore.ingest.contract import Endpoint, SourceRequest
from nvrstore.ingest.lean import sdp, tracks
from nvrstore.ingest.lean.auth import Login, challenges
from nvrstore.ingest.lean.connection import OUT_BYTES_MAX, Connection
from nvrstore.ingest.lean.interleaved import Demux
from nvrstore.ingest.lean.loop import BUFFER_BYTES as LOOP_BUFFER_BYTES
from nvrstore.ingest.lean.loop import Loop
from nvrstore.ingest.lean.messages import BODY_BYTES_MAX, HEAD_BYTES_MAX, MessageError, find_end, parse
from nvrstore.ingest.lean.rtp import Sequence as Numbers
from nvrstore.ingest.lean.rtp import receiver_report, sender_report
from nvrstore.ingest.lean.rtsp import Client, Setup
from nvrstore.limits import SAMPLE_BYTES_MAX
from nvrstore.model import Media, Sample, TrackConfig

URL: Final = "rtsp://10.0.0.5/main"
SPS, PPS = "Z0LACtoPCaQE", "aM4xsg=="  # 160 x 120
VIDEO: Final = {
    "h264": f"m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1;sprop-parameter-sets={SPS},{PPS}\r\n",
    "hevc": "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H265/90000\r\n",
}
AAC: Final = "streamtype=5;mode=AAC-hbr;config=1408;sizelength=13;indexlength=3;indexdeltalength=3"
SOUND: Final = {
    "aac": f"m=audio 0 RTP/AVP 97\r\na=rtpmap:97 MPEG4-GENERIC/16000/1\r\na=fmtp:97 {AAC}\r\n",
    "g711": "m=audio 0 RTP/AVP 97\r\na=rtpmap:97 PCMA/8000\r\n",
    "opus": "m=audio 0 RTP/AVP 97\r\na=rtpmap:97 OPUS/48000/2\r\n",
}


class Script:
    """Bytes, taken from the front as numbers and pieces; after their end everything is 0 and empty."""

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def number(self, size: int = 1) -> int:
        taken, self.rest = self.rest[:size], self.rest[size:]
        return int.from_bytes(taken.ljust(size, b"\0"), "big")

    def piece(self) -> bytes:
        """Up to 65,535 bytes behind their length: one byte of it, or 255 and two."""
        size = self.number()
        size = self.number(2) if size == 255 else size
        taken, self.rest = self.rest[:size], self.rest[size:]
        return taken


class Strict:
    """A receiver that holds engines to the contract."""

    def __init__(self) -> None:
        self.configs: dict[Media, TrackConfig] = {}
        self.samples = 0
        self.ends: list[SourceError] = []

    def on_track(self, config: TrackConfig) -> None:
        assert not self.ends
        self.configs[config.media] = config

    def on_sample(self, sample: Sample) -> None:
        assert not self.ends
        assert sample.media in self.configs
        assert type(sample.data) is bytes
        assert 0 < len(sample.data) <= SAMPLE_BYTES_MAX
        self.samples += 1

    def on_samples(self, samples: Sequence[Sample]) -> None:
        assert samples
        for sample in samples:
            self.on_sample(sample)

    def on_reference(self, media: Media, pts: int, utc_ns: int) -> None:
        assert not self.ends

    def on_ended(self, error: SourceError) -> None:
        assert not self.ends
        self.ends.append(error)


def request_of(audio: str = "aac") -> SourceRequest:
    return SourceRequest("gate", lambda: Endpoint(URL), audio=cast("Any", audio))


def messages(data: bytes) -> None:
    """Where a message ends, and what it says."""
    at = 0
    try:
        while at < len(data):
            end = find_end(data, at, len(data))
            if not end:
                assert len(data) - at < HEAD_BYTES_MAX + BODY_BYTES_MAX
                break
            assert at < end <= len(data)
            parse(data[at:end])
            at = end
    except MessageError:
        pass
    parse(data)


def description(data: bytes) -> None:
    """SDP, and what is chosen of it."""
    found = sdp.parse(data)
    assert len(found.sections) <= sdp.SECTIONS_MAX
    for section in found.sections:
        sdp.parameter_sets(section)
    for strict in (False, True):
        try:
            sections = tracks.choose(found, request_of(), URL, strict=strict)
        except SourceError:
            continue
        for number, section in enumerate(sections):
            tracks.read(Setup(section, 2 * number), request_of(), Strict())


def auth(data: bytes) -> None:
    """Challenges, and the answer to the strongest: one line, whatever was asked."""
    script = Script(data)
    login = Login('us"er', "pass\\word")
    for _ in range(3):
        basic = bool(script.number() & 1)
        if login.accept(challenges([script.piece().decode("latin-1"), script.piece().decode("latin-1")]), basic=basic):
            said = login.header("DESCRIBE", URL)
            assert said.split(" ")[0] in ("Basic", "Digest")
            assert basic or not said.startswith("Basic")


def session(data: bytes) -> None:
    """A client that hears one answer after the other."""
    script = Script(data)
    client = Client(
        URL,
        Login("admin", "x") if script.number() & 1 else None,
        lambda found: tracks.choose(found, request_of(), URL, strict=False),
    )
    client.start()
    while script.rest:
        heard = parse(script.piece() + b"\r\n\r\n" + script.piece())
        if heard is None:
            continue
        try:
            said = client.receive(heard)
        except SourceError:
            break
        assert said.count(b"\r\n\r\n") == bool(said)
        if client.redirect is not None:
            client.redirect = None
            client.start()
    client.keepalive()
    client.teardown()
    assert len(client.setups) <= 2


class Taker:
    """A reader of a channel that takes one frame at a time."""

    def __init__(self) -> None:
        self.frames = 0

    def take(self, buffer: bytearray, at: int, end: int) -> int:
        assert buffer[at] == 0x24
        following = at + 4 + (buffer[at + 2] << 8 | buffer[at + 3])
        assert following <= end
        self.frames += 1
        return following


def interleaved(data: bytes) -> None:
    """Frames, messages and stray bytes in reads of any size."""
    script = Script(data)
    flags = script.number()
    demux = Demux(lambda message: None, lambda channel, ssrc: None)
    for channel in (0, 1, 2, 255):
        if flags & 1 << channel % 8:
            demux.readers[channel] = Taker()
    buffer, rest = bytearray(BUFFER_BYTES), b""
    try:
        while script.rest:
            rest += script.piece()
            buffer[: len(rest)] = rest
            used = demux.feed(buffer, len(rest))
            assert 0 <= used <= len(rest)
            rest = rest[used:]
            assert len(rest) <= 4 + 0xFFFF + HEAD_BYTES_MAX + BODY_BYTES_MAX
    except MessageError:
        pass


def rtcp(data: bytes) -> None:
    """Sender reports, and what they are answered with."""
    report = sender_report(data)
    numbers = Numbers()
    script = Script(data)
    for _ in range(len(data) // 4):
        number, ssrc = script.number(2), script.number(2)
        if (number != numbers.expected or ssrc != numbers.ssrc) and not numbers.accept(number, ssrc):
            continue
        numbers.expected = number + 1 & 0xFFFF
    assert numbers.lost >= 0
    answer = receiver_report(7, numbers, report.ntp_middle if report is not None else 1, script.number(4) - 2.0**31)
    assert len(answer) % 4 == 0


def _packets(script: Script, payload_type: int, channel: int) -> bytes:
    """Interleaved packets as the bytes say: mostly in order, of one source, with a payload of any kind."""
    made, number, timestamp, ssrc = b"", 1, 3600, 7
    while script.rest:
        flags = script.number()
        number += 1 if not flags & 2 else script.number(2)
        timestamp += 3600 if flags & 4 else script.number(4) if flags & 8 else 0
        ssrc ^= flags >> 4 & 1
        first = script.number() if flags & 32 else 0x80
        kind = script.number() & 127 if flags & 64 else payload_type
        body = script.piece()
        data = packet(body, number, timestamp, ssrc=ssrc, payload_type=kind, marker=bool(flags & 1), first=first)
        made += framed(data[:0xFFFF], channel)
    return made


def _video(codec: str, data: bytes) -> None:
    script = Script(data)
    size = script.number(2) or 1
    line = Line(codec)
    stream = _packets(script, 96, 0)
    try:
        line.feed_in(stream, [size] * 64)
    except MessageError:
        pass
    line.reader.flush()
    assert line.reader.sequence.lost >= 0
    for unit in line.units:
        assert unit.nals


def h264(data: bytes) -> None:
    """RFC 6184, to access units."""
    _video("h264", data)


def hevc(data: bytes) -> None:
    """RFC 7798, to access units."""
    _video("hevc", data)


def _sound(codec: str, data: bytes) -> None:
    script = Script(data)
    section = sdp.parse((VIDEO["h264"] + SOUND[codec]).encode()).sections[1]
    receiver = Strict()
    reader, reports = tracks.read(Setup(section, 2), request_of("pcm" if script.number() & 1 else "aac"), receiver)
    buffer = bytearray(_packets(script, 97, 2))
    at = 0
    while at < len(buffer):
        following = reader.take(buffer, at, len(buffer))
        if following == at:
            break
        at = following
    reports.take(bytearray(framed(data[:0xFFFF], 3)), 0, 4 + min(len(data), 0xFFFF))
    reader.flush()


def aac(data: bytes) -> None:
    """RFC 3640; as it is, and decoded."""
    _sound("aac", data)


def g711(data: bytes) -> None:
    """RFC 3551, to AAC or PCM."""
    _sound("g711", data)


def opus(data: bytes) -> None:
    """RFC 7587."""
    _sound("opus", data)


class _Wire:
    """A socket from which a script comes, and into which everything goes."""

    def __init__(self, reads: list[bytes]) -> None:
        self.reads, self.closed = reads, False

    def recv_into(self, view: memoryview) -> int:
        if not self.reads:
            raise BlockingIOError
        piece = self.reads.pop(0)[: len(view)]
        view[: len(piece)] = piece
        return len(piece)

    def send(self, data: bytes | bytearray) -> int:
        assert len(data) <= OUT_BYTES_MAX
        return len(data)

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class _Still:
    """A loop that does nothing by itself."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.buffer = bytearray(LOOP_BUFFER_BYTES)
        self.view = memoryview(self.buffer)

    def watch(self, handler: object, *, playing: bool, writing: bool) -> None: ...

    def remove(self, handler: object) -> None: ...

    def read(self, handler: Connection) -> bool:
        return handler.readable(self.buffer, self.view)


_STILL: Final = _Still()  # its buffer is a megabyte: it is made once


def handshake(video: str, sound: str) -> list[bytes]:
    """What an orderly camera answers up to PLAY, its sessions ending after a second."""
    body = (VIDEO[video] + SOUND[sound]).encode()
    ok = b"RTSP/1.0 200 OK\r\nSession: 1;timeout=1\r\n"
    return [ok + b"\r\n", ok + b"Content-Length: %d\r\n\r\n" % len(body) + body, ok + b"\r\n", ok + b"\r\n", ok + b"\r\n"]


def opened(reads: list[bytes], *, login: Login | None = None) -> tuple[Connection, Strict]:
    """A connection that is about to hear `reads`; more may be put behind them."""
    receiver = Strict()
    client = Client(URL, login, lambda found: tracks.choose(found, request_of(), URL, strict=False))
    over = lambda error: receiver.on_ended(error or SourceError("redirect"))  # noqa: E731
    made = Connection(cast("Loop", _STILL), request_of(), receiver, client, [], None, over)
    made.sock = cast("socket.socket", _Wire(reads))
    made._connected = True
    made._greet()
    return made, receiver


def hear(made: Connection, *, passes_s: float = 0.0) -> None:
    """Read once, as the loop does; so much time passes behind it."""
    _STILL.read(made)
    if passes_s:
        _STILL.clock.advance(passes_s)
        made.due(_STILL.clock.monotonic_s())


def connection(data: bytes) -> None:
    """A camera that shakes hands, or not, and then sends anything, while time passes."""
    script = Script(data)
    flags = script.number()
    reads: list[bytes] = []
    if flags & 2:
        reads += handshake("hevc" if flags & 4 else "h264", ("aac", "g711", "opus", "aac")[flags >> 3 & 3])
    if flags & 32:
        reads.append(_packets(script, 96 + (flags >> 6 & 1), flags >> 6 & 2) or b"$")
    while script.rest:
        reads.append(script.piece() or b"$")
    made, receiver = opened(reads, login=Login("admin", "x") if flags & 1 else None)
    while reads and not receiver.ends:
        hear(made, passes_s=1.1 if flags & 128 else 0.0)
    for _ in range(3):
        if not receiver.ends:
            hear(made, passes_s=30.0)
    assert len(receiver.ends) == 1
    assert cast("_Wire", made.sock).closed


ENTRIES: Final[Mapping[str, Callable[[bytes], None]]] = {
    "messages": messages,
    "sdp": description,
    "auth": auth,
    "rtsp": session,
    "interleaved": interleaved,
    "rtcp": rtcp,
    "h264": h264,
    "hevc": hevc,
    "aac": aac,
    "g711": g711,
    "opus": opus,
    "connection": connection,
}


def _piece(data: bytes) -> bytes:
    """As `Script.piece` reads it."""
    return (bytes((len(data),)) if len(data) < 255 else b"\xff" + len(data).to_bytes(2, "big")) + data


def _payloads(*payloads: bytes) -> bytes:
    """As `_packets` reads them: each an access unit of its own."""
    return b"".join(b"\x05" + _piece(payload) for payload in payloads)


_OK: Final = b"RTSP/1.0 200 OK\r\nCSeq: 1\r\nSession: 1;timeout=60"
_SDP: Final = (VIDEO["h264"] + SOUND["aac"]).encode()
_ASKED: Final = b'Digest realm="r", nonce="n", algorithm=SHA-256, qop="auth,auth-int", stale=true'
_REPORT: Final = bytes.fromhex("80c80006000000070102030405060708000000640000000a00000bb8")

#: What is tried first: something orderly for each entry point.
SEEDS: Final[Mapping[str, tuple[bytes, ...]]] = {
    "messages": (_OK + b"\r\nContent-Length: 3\r\n\r\nabc", b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n"),
    "sdp": (b"v=0\r\na=control:*\r\n" + _SDP, (VIDEO["hevc"] + SOUND["g711"]).encode()),
    "auth": (b"\x01" + _piece(_ASKED) + _piece(b'Basic realm="r"'),),
    "rtsp": (
        b"\x01" + _piece(_OK) + b"\0" + _piece(_OK) + _piece(_SDP) + (_piece(_OK) + b"\0") * 3,
        b"\x01" + _piece(_OK) + b"\0" + _piece(b"RTSP/1.0 401 No\r\nWWW-Authenticate: " + _ASKED) + b"\0",
        b"\0" + _piece(_OK) + b"\0" + _piece(b"RTSP/1.0 302 Moved\r\nLocation: rtsp://10.0.0.6/a") + b"\0",
    ),
    "interleaved": (b"\x01" + _piece(framed(packet(b"\x41abc", 1, 0))) + _piece(_OK + b"\r\n\r\n") + _piece(b"stray$"),),
    "rtcp": (_REPORT,),
    "h264": (
        b"\x01\0"
        + _payloads(b"\x67\x42\xc0\x0a", b"\x65abcdef", b"\x7c\x85abc", b"\x7c\x05def", b"\x7c\x45ghi", b"\x78\0\x02\x41a\0\x01\x41"),
    ),
    "hevc": (b"\x01\0" + _payloads(b"\x40\x01\x0c", b"\x26\x01abc", b"\x62\x01\x93abc", b"\x62\x01\x53def", b"\x60\x01\0\x03\x02\x01a"),),
    "aac": (b"\0" + _payloads(b"\0\x10\0\x18abc", b"\0\x20\0\x10\0\x10abcd"), b"\x01" + _payloads(b"\0\x10\0\x50" + bytes(10))),
    "g711": (b"\0" + _payloads(bytes(160)) * 8,),
    "opus": (b"\x01" + _payloads(b"\xfc\xff\xfe") * 4, b"\0" + _payloads(b"\xfc\xff\xfe")),
    "connection": (
        b"\xa2" + _payloads(b"\x65\x88abc", b"\x41\x9aabc") + _piece(framed(_REPORT, 1)),
        b"\x02" + _piece(framed(packet(b"\x65\x88abc", 1, 0, marker=True))) + _piece(_OK + b"\r\n\r\n"),
        b"\x01" + _piece(b"RTSP/1.0 401 No\r\nWWW-Authenticate: " + _ASKED + b"\r\n\r\n"),
    ),
}
assert set(SEEDS) == set(ENTRIES), "every entry point begins with something orderly"
