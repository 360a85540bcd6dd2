"""RTSP 1.0 as a server speaks it (RFC 2326): requests in, responses out. Pure: bytes and values, no sockets.

    Parser.feed(bytes) -> Request | Interleaved ...       response(request, 200, ...) -> bytes

A `Parser` is bounded: a head over `HEAD_BYTES_MAX` or a body over `BODY_BYTES_MAX` ends the connection.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urlsplit

HEAD_BYTES_MAX: Final = 16_384
BODY_BYTES_MAX: Final = 65_536
METHODS: Final = ("OPTIONS", "DESCRIBE", "SETUP", "PLAY", "PAUSE", "GET_PARAMETER", "SET_PARAMETER", "TEARDOWN")
REASONS: Final[Mapping[int, str]] = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    453: "Not Enough Bandwidth",
    454: "Session Not Found",
    455: "Method Not Valid in This State",
    459: "Aggregate Operation Not Allowed",
    461: "Unsupported Transport",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
}


class ProtocolError(ValueError):
    """The client does not speak RTSP: the connection is of no further use."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request. Header names are lower case."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def cseq(self) -> str:
        return self.headers.get("cseq", "0")

    @property
    def path(self) -> str:
        """The path of the URL, without query and trailing slash: `/cam0/track0`."""
        return unquote(urlsplit(self.url).path).rstrip("/")

    @property
    def session(self) -> str:
        return self.headers.get("session", "").partition(";")[0].strip()


@dataclass(frozen=True, slots=True)
class Interleaved:
    """An interleaved packet from the client: RTCP as a rule."""

    channel: int
    data: bytes


class Parser:
    """Cuts a byte stream into requests and interleaved packets."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Request | Interleaved]:
        """Everything that is complete now. Raises `ProtocolError`."""
        self._buffer += data
        while self._buffer:
            item = self._interleaved() if self._buffer[0] == 0x24 else self._request()
            if item is None:
                return
            yield item

    def _interleaved(self) -> Interleaved | None:
        if len(self._buffer) < 4:
            return None
        end = 4 + int.from_bytes(self._buffer[2:4])
        if len(self._buffer) < end:
            return None
        item = Interleaved(self._buffer[1], bytes(self._buffer[4:end]))
        del self._buffer[:end]
        return item

    def _request(self) -> Request | None:
        while self._buffer[:2] == b"\r\n":  # some clients keep alive with empty lines
            del self._buffer[:2]
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > HEAD_BYTES_MAX:
                raise ProtocolError("the head of a request is too long")
            return None
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        words = lines[0].split()
        if len(words) != 3 or not words[2].startswith("RTSP/"):
            raise ProtocolError("the first line of a request is no request line")
        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if colon:
                headers[name.strip().lower()] = value.strip()
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > BODY_BYTES_MAX:
            raise ProtocolError("a request has an impossible length")
        body_end = end + 4 + int(length)
        if len(self._buffer) < body_end:
            return None
        request = Request(words[0].upper(), words[1], headers, bytes(self._buffer[end + 4 : body_end]))
        del self._buffer[:body_end]
        return request


def response(
    request: Request, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"", *, extra: tuple[tuple[str, str], ...] = ()
) -> bytes:
    """A response to `request`. `extra` is for headers that occur more than once."""
    lines = [f"RTSP/1.0 {status} {REASONS[status]}", f"CSeq: {request.cseq}", "Server: nvrstore-farm"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    lines += [f"{name}: {value}" for name, value in extra]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass(frozen=True, slots=True)
class Transport:
    """What a client asks for in SETUP: interleaved channels, or its own UDP ports."""

    interleaved: tuple[int, int] | None = None
    ports: tuple[int, int] | None = None


def parse_transport(value: str) -> Transport | None:
    """The first alternative that the farm can serve (RFC 2326 12.39); None where there is none."""
    for choice in value.split(","):
        fields = [part.strip() for part in choice.split(";")]
        protocol = fields[0].upper()
        options = {name.strip().lower(): text.strip() for name, _, text in (part.partition("=") for part in fields[1:])}
        if "multicast" in options:
            continue
        if protocol == "RTP/AVP/TCP":
            pair = _pair(options.get("interleaved", "0-1"), 255)
            if pair is not None:
                return Transport(interleaved=pair)
        elif protocol in ("RTP/AVP", "RTP/AVP/UDP"):
            pair = _pair(options.get("client_port", ""), 65_535)
            if pair is not None:
                return Transport(ports=pair)
    return None


_PAIR: Final = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")


def _pair(text: str, highest: int) -> tuple[int, int] | None:
    match = _PAIR.fullmatch(text)
    if match is None:
        return None
    first = int(match[1])
    second = int(match[2]) if match[2] else first + 1
    return (first, second) if max(first, second) <= highest else None


@dataclass(frozen=True, slots=True)
class Header:
    """A header value with parameters, as in `Digest realm="x", nonce="y"`."""

    scheme: str
    fields: Mapping[str, str] = field(default_factory=dict)


_FIELD: Final = re.compile(r'(\w[\w-]*)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,]+))')


def parse_authorization(value: str) -> Header:
    """Scheme (lower case) and parameters of an `Authorization` header. Basic has one, named `token`."""
    scheme, _, rest = value.strip().partition(" ")
    if scheme.lower() == "basic":
        return Header("basic", {"token": rest.strip()})
    return Header(scheme.lower(), {name.lower(): re.sub(r"\\(.)", r"\1", quoted) or bare for name, quoted, bare in _FIELD.findall(rest)})
