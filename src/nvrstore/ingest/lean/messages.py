"""RTSP 1.0 messages as a client reads and writes them (RFC 2326). Pure.

    request("SETUP", url, 3, {...}) -> bytes          find_end(buffer, ...) -> where a message ends -> parse(bytes) -> Response | Call

Read as cameras write them: any version, any case, line ends of any kind, headers without colons, with spaces, or twice.
Invariant: no bytes make `parse` raise; a head is at most HEAD_BYTES_MAX, a body at most BODY_BYTES_MAX, or the session is over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

HEAD_BYTES_MAX: Final = 16_384
BODY_BYTES_MAX: Final = 65_536
HEADERS_MAX: Final = 128

_HEAD_END: Final = re.compile(rb"\r?\n\r?\n")
_STATUS: Final = re.compile(r"RTSP/\d[.\d]*\s+(\d{3})\b\s*(.*)", re.IGNORECASE)
_CALL: Final = re.compile(r"([A-Z_]{3,20})\s+(\S+)\s+RTSP/\d[.\d]*\s*")
_LENGTH: Final = re.compile(rb"(?im)^content-length\s*:\s*(\d{1,9})\s*?$")


class MessageError(ValueError):
    """Bytes that are no RTSP message: there is no telling where the next one begins."""


@dataclass(frozen=True, slots=True)
class Response:
    """A camera's answer. Names of headers are lower case; of those that stand more than once all values are kept, in order."""

    status: int
    reason: str
    headers: Mapping[str, tuple[str, ...]]
    body: bytes = b""

    def header(self, name: str) -> str:
        """Its first value, or an empty text."""
        return self.headers.get(name, ("",))[0]


@dataclass(frozen=True, slots=True)
class Call:
    """A request of the camera to us: rare, and wants an answer."""

    method: str
    headers: Mapping[str, tuple[str, ...]]


def request(method: str, url: str, cseq: int, headers: Mapping[str, str]) -> bytes:
    """One request. Line ends in values are taken out."""
    lines = [f"{method} {url} RTSP/1.0", f"CSeq: {cseq}", "User-Agent: nvrstore", *(f"{name}: {value}" for name, value in headers.items())]
    return "".join(re.sub(r"[\r\n]", "", line) + "\r\n" for line in lines).encode("utf-8", "replace") + b"\r\n"


def answer(call: Call) -> bytes:
    """What a camera's own request gets: consent."""
    cseq = re.sub(r"[^\d]", "", call.headers.get("cseq", ("",))[0])[:10]
    return f"RTSP/1.0 200 OK\r\nCSeq: {cseq}\r\n\r\n".encode()


def find_end(buffer: bytes | bytearray, start: int, end: int) -> int:
    """Where the message that begins at `start` ends; 0 while it is not there as a whole. Raises `MessageError`."""
    found = _HEAD_END.search(buffer, start, min(end, start + HEAD_BYTES_MAX))
    if found is None:
        if end - start >= HEAD_BYTES_MAX:
            raise MessageError("a head that does not end")
        return 0
    length = _LENGTH.search(buffer, start, found.end())
    if length is None:
        return found.end()
    if int(length[1]) > BODY_BYTES_MAX:
        raise MessageError("a body that is too long")
    whole = found.end() + int(length[1])
    return whole if whole <= end else 0


def parse(data: bytes) -> Response | Call | None:
    """One whole message; None for what is neither an answer nor a request."""
    found = _HEAD_END.search(data)
    head, body = (data, b"") if found is None else (data[: found.start()], data[found.end() :])
    lines = re.split(r"\r?\n", head.decode("latin-1"))
    headers: dict[str, tuple[str, ...]] = {}
    for line in lines[1:HEADERS_MAX]:
        name, colon, value = line.partition(":")
        if colon:
            name = name.strip().lower()
            headers[name] = (*headers.get(name, ()), value.strip())
    status = _STATUS.match(lines[0].strip())
    if status is not None:
        return Response(int(status[1]), status[2].strip(), headers, body)
    call = _CALL.fullmatch(lines[0].strip())
    return None if call is None else Call(call[1], headers)
