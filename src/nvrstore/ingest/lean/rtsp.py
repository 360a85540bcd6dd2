"""A client's side of one RTSP session (RFC 2326), its packets interleaved or over UDP: what to say next. Pure: messages in, bytes out.

    OPTIONS ─▶ DESCRIBE ─▶ SETUP (each track) ─▶ PLAY ─▶ PLAYING ─keepalives─ ... ─▶ TEARDOWN ─▶ CLOSED
        any of them ─401─▶ the same again, with the login          DESCRIBE ─3xx─▶ `redirect`: a new connection

One request is under way at a time until PLAYING; answers are taken in order, whatever their CSeq says. Of RTP-Info and Range
nothing is read: cameras are creative there, and packets say it themselves.

What a camera cannot give over the transport that is asked for, or what this engine does not speak, is a `SourceUnsupportedError`.
Of `ssrc=` in answers nothing is read: cameras write another one than they send.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from urllib.parse import urlsplit

from nvrstore.errors import SourceEndedError, SourceError, SourceNotVideoError, SourceRefusedError, SourceSilentError, redact
from nvrstore.ingest.errors import SourceUnsupportedError
from nvrstore.ingest.lean import sdp
from nvrstore.ingest.lean.auth import Login, challenges
from nvrstore.ingest.lean.messages import Call, Response, answer, request

SESSION_TIMEOUT_S: Final = 60.0  # RFC 2326 12.37: where the camera does not say
KEEPALIVE_S_MIN: Final = 0.5
REDIRECTS_MAX: Final = 5
TRIES_MAX: Final = 3  # of one request: without a login, with it, with a fresh nonce

_INTERLEAVED: Final = re.compile(r"interleaved\s*=\s*\"?(\d{1,3})", re.IGNORECASE)
_SERVER_PORT: Final = re.compile(r"server_port\s*=\s*\"?(\d{1,5})(?:\s*-\s*(\d{1,5}))?", re.IGNORECASE)
_SOURCE: Final = re.compile(r"source\s*=\s*\"?([0-9a-f.:]+)", re.IGNORECASE)
_TIMEOUT: Final = re.compile(r"timeout\s*=\s*\"?(\d{1,6})", re.IGNORECASE)
_REDIRECTS: Final = frozenset({300, 301, 302, 303, 305, 307, 308})


class State(StrEnum):
    """What the session waits for."""

    OPTIONS = "OPTIONS"
    DESCRIBE = "DESCRIBE"
    SETUP = "SETUP"
    PLAY = "PLAY"
    PLAYING = "PLAYING"
    TEARDOWN = "TEARDOWN"
    CLOSED = "CLOSED"


@dataclass(frozen=True, slots=True)
class Setup:
    """A track that was set up, and the channel its RTP comes on; RTCP is on the next one.

    Over UDP: the camera's ports for both, and its address, where it says another one than that of the connection.
    """

    section: sdp.Section
    channel: int
    ports: tuple[int, int] | None = None
    source: str = ""


class Client:
    """One session. `choose` says which sections are wanted; it may raise `SourceError`."""

    def __init__(self, url: str, login: Login | None, choose: Callable[[sdp.Description], Sequence[sdp.Section]]) -> None:
        self.state = State.OPTIONS
        self.setups: list[Setup] = []
        self.redirect: str | None = None
        self.timeout_s = SESSION_TIMEOUT_S
        self.avoid: set[int] = set()  # channels on which somebody else's packets came
        self.open_ports: Callable[[], int] | None = (
            None  # over UDP: makes a pair for the next track, says the first; may raise `SourceError`
        )
        self.url: str = url
        self._login, self._choose = login, choose
        self._home = urlsplit(url).hostname
        self._redirects = 0
        self._base = self._aggregate = url
        self._wanted: list[sdp.Section] = []
        self._session = ""
        self._cseq = self._tries = self._offer = 0
        self._last: tuple[str, str, dict[str, str]] = ("", "", {})
        self._methods: frozenset[str] = frozenset()
        self._keepalive = "GET_PARAMETER"

    @property
    def where(self) -> str:
        return redact(self.url)

    @property
    def keepalive_s(self) -> float:
        """Seconds between keepalives: half of what the camera allows."""
        return max(KEEPALIVE_S_MIN, self.timeout_s / 2)

    # --- saying

    def start(self) -> bytes:
        """The first request on a new connection."""
        self.state = State.OPTIONS
        return self._ask("OPTIONS", self.url)

    def keepalive(self) -> bytes:
        """Say that somebody still listens."""
        return self._ask(self._keepalive, self._aggregate)

    def teardown(self) -> bytes:
        """End the session, if there is one to end: cameras that are left without a word go on sending, even to the next one."""
        if not self._session or self.state in (State.TEARDOWN, State.CLOSED):
            self.state = State.CLOSED
            return b""
        self.state = State.TEARDOWN
        return self._ask("TEARDOWN", self._aggregate)

    def _ask(self, method: str, url: str, headers: dict[str, str] | None = None) -> bytes:
        self._last = (method, url, headers or {})
        self._tries = 0
        return self._say()

    def _say(self) -> bytes:
        method, url, headers = self._last
        self._cseq += 1
        self._tries += 1
        said = dict(headers)
        if self._session:
            said["Session"] = self._session
        if self._login is not None and self._login.ready:
            said["Authorization"] = self._login.header(method, url)
        return request(method, url, self._cseq, said)

    # --- hearing

    def receive(self, message: Response | Call) -> bytes:
        """Take a message in; what is to be sent now. Raises `SourceError` when the session is over."""
        if isinstance(message, Call):
            if message.method == "REDIRECT":
                raise SourceEndedError(f"{self.where}: the camera sends us elsewhere")
            return answer(message)
        if message.status < 200:
            return b""
        if self.state is State.PLAYING:
            return self._kept_alive(message)
        if self.state in (State.TEARDOWN, State.CLOSED):
            self.state = State.CLOSED
            return b""
        if message.status == 401:
            return self._log_in(message)
        return _HEAR[self.state](self, message)

    def _log_in(self, message: Response) -> bytes:
        basic = urlsplit(self.url).hostname == self._home
        offered = challenges(message.headers.get("www-authenticate", ()))
        if self._login is None:
            raise SourceRefusedError(f"{self.where}: the camera asks for a login, and none is configured")
        if offered and not any(challenge.strength for challenge in offered):
            asked = ", ".join(sorted({challenge.scheme for challenge in offered}))
            raise SourceUnsupportedError(f"{self.where}: the camera wants a login of a kind that this engine does not know ({asked})")
        if self._tries >= TRIES_MAX or not self._login.accept(offered, basic=basic):
            raise SourceRefusedError(f"{self.where}: the camera refuses the login (401 {message.reason})")
        return self._say()

    def _kept_alive(self, message: Response) -> bytes:
        """An answer to a keepalive. None of them ends a session from which packets come."""
        if message.status == 401 and self._login is not None:
            offered = challenges(message.headers.get("www-authenticate", ()))
            if self._tries < TRIES_MAX and self._login.accept(offered, basic=urlsplit(self.url).hostname == self._home):
                return self._say()
        elif message.status in (400, 405, 500, 501, 551) and self._keepalive != "OPTIONS":
            self._keepalive = "OPTIONS"
        return b""

    def _optioned(self, message: Response) -> bytes:
        public = ",".join((*message.headers.get("public", ()), *message.headers.get("allow", ())))
        self._methods = frozenset(name.strip().upper() for name in public.split(",") if name.strip())
        if self._methods and "GET_PARAMETER" not in self._methods:
            self._keepalive = "OPTIONS"
        self.state = State.DESCRIBE
        return self._ask("DESCRIBE", self.url, {"Accept": "application/sdp"})

    def _described(self, message: Response) -> bytes:
        if message.status in _REDIRECTS and message.header("location"):
            return self._redirected(message.header("location"))
        if message.status >= 300:
            raise self._refusal(message)
        description = sdp.parse(message.body)
        self._base = self._aggregate = self._based(message)
        if _absolute(description.control):
            self._aggregate = description.control
        self._wanted = list(self._choose(description))
        if not self._wanted:
            raise SourceNotVideoError(f"{self.where}: there is no video")
        return self._set_up()

    def _redirected(self, location: str) -> bytes:
        self._redirects += 1
        if self._redirects > REDIRECTS_MAX:
            raise SourceSilentError(f"{self.where}: more than {REDIRECTS_MAX} redirects")
        if not _absolute(location):
            raise SourceUnsupportedError(f"{self.where}: redirected to {redact(location)}, which this engine does not speak")
        self.url = self._base = self._aggregate = location
        self._session = ""
        if self._login is not None:
            self._login.forget()
        self.redirect = location
        self.state = State.OPTIONS
        return b""

    def _based(self, message: Response) -> str:
        """What controls are relative to (RFC 2326 C.1.1); headers that are no URL count as missing."""
        for name in ("content-base", "content-location"):
            if _absolute(message.header(name)):
                return message.header(name)
        return self.url

    def _set_up(self) -> bytes:
        """Ask for the next track, or to play when there is none left."""
        if len(self.setups) == len(self._wanted):
            self.state = State.PLAY
            return self._ask("PLAY", self._aggregate, {"Range": "npt=0.000-"})
        self.state = State.SETUP
        taken = {channel for setup in self.setups for channel in (setup.channel, setup.channel + 1)} | self.avoid
        channel = next((even for even in range(0, 255, 2) if even not in taken and even + 1 not in taken), 0)
        section = self._wanted[len(self.setups)]
        self._offer = channel
        if self.open_ports is None:
            transport = f"RTP/AVP/TCP;unicast;interleaved={channel}-{channel + 1}"
        else:
            port = self.open_ports()
            transport = f"RTP/AVP;unicast;client_port={port}-{port + 1}"
        return self._ask("SETUP", resolve_control(self._base, section.control), {"Transport": transport})

    def _was_set_up(self, message: Response) -> bytes:
        name_of, other = ("TCP", "udp") if self.open_ports is None else ("UDP", "tcp")
        if message.status == 461:
            raise SourceUnsupportedError(
                f"{self.where}: the camera does not send over {name_of} (461)", hint=f'set `transport = "{other}"`'
            )
        if message.status >= 300:
            raise self._refusal(message)
        transport = message.header("transport")
        ports, source = self._udp(transport) if self.open_ports is not None else (None, "")
        datagrams = re.match(r"\s*RTP/S?AVPF?(?!/TCP)", transport, re.IGNORECASE) and not _INTERLEAVED.search(transport)
        if ports is None and (datagrams or self.open_ports is not None):
            raise SourceUnsupportedError(f"{self.where}: the camera does not send over {name_of}", hint=f'set `transport = "{other}"`')
        name, _, rest = message.header("session").partition(";")
        self._session = name.strip() or self._session
        allowed = _TIMEOUT.search(rest)
        if allowed is not None and int(allowed[1]) > 0:
            self.timeout_s = float(allowed[1])
        found = _INTERLEAVED.search(transport)
        channel = int(found[1]) if found is not None else self._offer
        if channel > 254 or any(abs(channel - setup.channel) < 2 for setup in self.setups):
            raise SourceUnsupportedError(f"{self.where}: the camera sends two tracks on one channel")
        self.setups.append(Setup(self._wanted[len(self.setups)], channel, ports, source))
        return self._set_up()

    def _udp(self, transport: str) -> tuple[tuple[int, int] | None, str]:
        """From which ports a camera sends over UDP, if it does, and from which address, if it says one."""
        found = _SERVER_PORT.search(transport)
        if found is None or "/TCP" in transport.upper() or "multicast" in transport.lower():
            return None, ""
        first = int(found[1])
        second = int(found[2] or first + 1)
        said = _SOURCE.search(transport)
        try:
            source = ipaddress.ip_address(said[1]) if said is not None else None
        except ValueError:
            source = None
        if not 0 < first < 65_536 or not 0 < second < 65_536:
            return None, ""
        return (first, second), "" if source is None or source.is_unspecified or source.is_multicast else str(source)

    def _plays(self, message: Response) -> bytes:
        if message.status >= 300:
            raise self._refusal(message)
        self.state = State.PLAYING
        return b""

    def _refusal(self, message: Response) -> SourceError:
        """Why a request came to nothing."""
        said = f"RTSP {message.status}" + (f" {message.reason}" if message.reason else "")
        match message.status:
            case 403:
                return SourceRefusedError(f"{self.where}: the camera refuses the login ({said})")
            case 404 | 410:
                return SourceNotVideoError(f"{self.where}: there is nothing at this path ({said})")
            case _:
                return SourceSilentError(f"{self.where}: the camera answers {self._last[0]}, and gives no video ({said})")


_HEAR: Final[dict[State, Callable[[Client, Response], bytes]]] = {
    State.OPTIONS: Client._optioned,
    State.DESCRIBE: Client._described,
    State.SETUP: Client._was_set_up,
    State.PLAY: Client._plays,
}


def _absolute(url: str) -> bool:
    return url.lower().startswith(("rtsp://", "rtsps://"))


def resolve_control(base: str, control: str) -> str:
    """The URL of a track. Cameras expect what players do: appending, also behind a query (RFC 1808 would cut the query off)."""
    if _absolute(control):
        return control
    if control in ("", "*"):
        return base
    if control.startswith("/"):
        parts = re.match(r"[^/]*//[^/]*", base)
        return (parts[0] if parts is not None else "") + control
    return base + ("" if base.endswith("/") else "/") + control
