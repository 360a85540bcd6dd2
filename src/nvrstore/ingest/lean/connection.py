"""One camera's connection: socket, TLS, timers; what the pure parts decide is done here. Over UDP: with the sockets of udp.py.

    CONNECTING ─▶ (SECURING) ─▶ TALKING: rtsp.py asks, interleaved.py tells bytes apart, tracks.py reads them
          any of them ─ stop, error, silence ─▶ LEAVING: TEARDOWN said, heard to the end, LEAVE_S at most ─▶ closed, `on_end`

All in the loop's thread. Whatever a camera does ends its own session with a `SourceError`, told once.
Every wait for the camera is bounded by `timeout_s`; what it is told and does not take, by OUT_BYTES_MAX.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
import ssl
from collections.abc import Callable
from math import inf
from typing import Any, Final

from nvrstore.errors import SourceEndedError, SourceError, SourceSilentError, redact
from nvrstore.ingest.contract import Receiver, SourceRequest
from nvrstore.ingest.errors import opening_failed, reading_failed
from nvrstore.ingest.lean import tracks
from nvrstore.ingest.lean.interleaved import Demux
from nvrstore.ingest.lean.loop import BUFFER_BYTES, Loop
from nvrstore.ingest.lean.messages import MessageError, parse
from nvrstore.ingest.lean.rtp import STRANGERS_MAX, receiver_report
from nvrstore.ingest.lean.rtsp import Client, State
from nvrstore.ingest.lean.tls import failed as tls_failed
from nvrstore.ingest.lean.udp import Datagrams
from nvrstore.telemetry import get_logger

LEAVE_S: Final = 0.5  # for a TEARDOWN to be answered
PROMPT_S: Final = 1.0  # packets are read when they come, at first: their arrival tells the timeline where they belong
READS_MAX: Final = 16  # of up to BUFFER_BYTES, when a session that is being left ends: more than a kernel keeps
REPORT_S: Final = 5.0  # between receiver reports (RFC 3550 6.2)
OUT_BYTES_MAX: Final = 65_536

_log = get_logger("ingest.lean")

Address = tuple[int, Any]  # family, sockaddr


class Connection:
    """One TCP connection of one session. See `loop.Handler`."""

    def __init__(
        self,
        loop: Loop,
        request: SourceRequest,
        receiver: Receiver,
        client: Client,
        addresses: list[Address],
        secure: tuple[ssl.SSLContext, str] | None,
        on_end: Callable[[SourceError | None], None],
    ) -> None:
        self.client: Final = client
        self.tracks: list[tuple[tracks.Track, tracks.Reports, int]] = []  # with their RTCP channel
        self.sock: socket.socket
        self._loop, self._clock = loop, loop.clock
        self._request, self._receiver = request, receiver
        self._addresses, self._secure, self._on_end = addresses, secure, on_end
        self._demux = Demux(self._message, self._stranger)
        self._tls: ssl.SSLSocket | None = None
        self._connected = self._secured = self._playing = self._patient = self._writing = self._ended = False
        self._leaving: SourceError | None = None
        self._strangers: set[int] = set()
        self._out = bytearray()
        self._rest = b""
        self._deadline_s = self._keepalive_s = self._report_s = self._patient_s = 0.0
        self._own_ssrc = secrets.randbits(32)
        self._udp: Datagrams | None = None
        client.open_ports = self._open_ports if request.transport == "udp" else None

    # --- connecting

    def open(self) -> None:
        """Try the next address."""
        family, address = self._addresses.pop(0)
        self._deadline_s = self._clock.monotonic_s() + self._request.timeout_s
        try:
            self.sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError as error:
            self._failed_to_connect(error, known=False)
            return
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = self.sock.connect_ex(address)
        if code in (0, errno.EINPROGRESS):
            self._loop.add(self)
        else:
            self._failed_to_connect(OSError(code, os.strerror(code)), known=False)

    def _failed_to_connect(self, error: OSError, *, known: bool = True) -> None:
        if known:
            self._loop.remove(self)
            self.sock.close()
        if self._addresses:
            self.open()
        else:
            self._finish(opening_failed(error, self.client.where, 0.0, self._request.timeout_s), known=False)

    def writable(self) -> None:
        """The socket takes something."""
        if not self._connected:
            code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self._failed_to_connect(OSError(code, os.strerror(code)))
                return
            self._connected = True
            if self._secure is not None:
                context, host = self._secure
                self._loop.remove(self)
                self.sock = self._tls = context.wrap_socket(self.sock, server_hostname=host, do_handshake_on_connect=False)
                self._loop.add(self)
                self._shake_hands()
                return
            self._greet()
        elif self._secure is not None and not self._secured:
            self._shake_hands()
        self._flush()

    def _shake_hands(self) -> None:
        tls = self._tls
        if tls is None:
            return
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            self._loop.watch(self, playing=False, writing=False)
        except ssl.SSLWantWriteError:
            self._loop.watch(self, playing=False, writing=True)
        except OSError as error:
            self._finish(tls_failed(error, self.client.where))
        else:
            self._secured = True
            self._greet()

    def _greet(self) -> None:
        self._writing = True
        self._send(self.client.start())

    # --- writing

    def _send(self, data: bytes) -> None:
        """Say something, as far as the socket takes it; the rest waits."""
        if not data or self._ended:
            return
        if len(self._out) + len(data) > OUT_BYTES_MAX:
            self._finish(SourceSilentError(f"{self.client.where}: the camera does not read what it is told"))
            return
        self._out += data
        if self._leaving is None:  # else a camera that asks on and on would never be left
            self._deadline_s = max(self._deadline_s, self._clock.monotonic_s() + self._request.timeout_s)
        self._flush()

    def _flush(self) -> None:
        if self._ended:
            return
        try:
            while self._out:
                done = self.sock.send(self._out)
                del self._out[:done]
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            self._broken(error)
            return
        if bool(self._out) is not self._writing:
            self._writing = bool(self._out)
            self._loop.watch(self, playing=self._patient, writing=self._writing)

    # --- reading

    def readable(self, buffer: bytearray, view: memoryview) -> bool:
        """Read what has come, once; more of it makes the socket readable again. Whether anything had come."""
        if not self._connected:
            self.writable()
            return False
        if self._tls is not None and not self._secured:
            self._shake_hands()
            return False
        rest = len(self._rest)
        buffer[:rest] = self._rest
        try:
            count = self.sock.recv_into(view[rest:]) if self._tls is None else self._decrypted(self._tls, view[rest:])
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError as error:
            self._broken(error)
            return False
        if not count:
            self._finish(self._leaving or self._hung_up())
            return False
        arrival_ns, now_s = self._clock.utc_ns(), self._clock.monotonic_s()
        for track, reports, _ in self.tracks:
            track.arrival_ns, track.arrival_s, reports.arrival_s = arrival_ns, now_s, now_s
        end = rest + count
        if self._leaving is None and (self._udp is None or not self._playing):  # over UDP answers are no pictures
            self._deadline_s = now_s + self._request.timeout_s
        try:
            used = self._demux.feed(buffer, end)
        except MessageError as error:
            silent = SourceSilentError(f"{self.client.where}: connected, and no sensible answer ({error})", hint=_PORT_HINT)
        else:
            if self._ended:
                return True  # within this read: nothing comes behind the end
            for track, _, _ in self.tracks:
                track.deliver()
            self._rest = bytes(view[used:end]) if used < end else b""
            if len(self._rest) < BUFFER_BYTES // 2:
                return True
            silent = SourceSilentError(f"{self.client.where}: connected, and no sensible answer (a message that does not end)")
        self._finish(silent)
        return False

    def _decrypted(self, tls: ssl.SSLSocket, view: memoryview) -> int:
        """As `recv_into`, of all records that are there: those that OpenSSL holds make no socket readable."""
        count = tls.recv_into(view)
        while 0 < count < len(view):
            try:
                more = tls.recv_into(view[count:])
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            if not more:
                break
            count += more
        return count

    def _hung_up(self) -> SourceError:
        if self.client.state is State.PLAYING:
            return SourceEndedError(f"{self.client.where}: the camera closed the connection")
        return SourceSilentError(f"{self.client.where}: connected, and no sensible answer (it closed the connection)", hint=_PORT_HINT)

    def _message(self, data: bytes) -> None:
        message = parse(data)
        if message is None or self._ended:
            return
        client = self.client
        failed: SourceError | None = None
        try:
            said = client.receive(message)
        except SourceError as error:
            failed = error
        if failed is not None:
            self.leave(failed)
            return
        if client.redirect is not None and client.state is State.OPTIONS:
            self._finish(None)
            return
        if client.state is State.PLAY and not self.tracks:
            self._listen()
        self._send(said)
        if client.state is State.PLAYING and not self._playing:
            self._play()
        elif client.state is State.CLOSED and self._leaving is not None:
            self._finish(self._leaving)

    def _listen(self) -> None:
        """PLAY is about to be said: some cameras send before they answer it."""
        arrival_ns, now_s = self._clock.utc_ns(), self._clock.monotonic_s()
        for setup in self.client.setups:
            track, reports = tracks.read(setup, self._request, self._receiver)
            track.sequence.strangers = self._strangers
            track.arrival_ns, track.arrival_s = arrival_ns, now_s
            self.tracks.append((track, reports, setup.channel + 1))
            if self._udp is None:
                self._demux.readers[setup.channel], self._demux.readers[setup.channel + 1] = track, reports
            else:
                self._udp.listen(setup, track, reports)

    def _open_ports(self) -> int:
        """A pair of UDP ports for the next track; the first of them. Raises `SourceError`."""
        if self._udp is None:
            self._udp = Datagrams(self._loop, self.sock, self._heard_by_udp, self.broke)
        return self._udp.open_pair()

    def _heard_by_udp(self, now_s: float) -> None:
        if self._leaving is None:
            self._deadline_s = now_s + self._request.timeout_s

    def _play(self) -> None:
        self._playing = True
        now_s = self._clock.monotonic_s()
        self._keepalive_s, self._report_s, self._patient_s = now_s + self.client.keepalive_s, now_s + REPORT_S, now_s + PROMPT_S

    def _stranger(self, channel: int, ssrc: int) -> None:
        """A packet on a channel that nobody set up. Before PLAY it can only be of an old session."""
        if not self.tracks and len(self._strangers) < STRANGERS_MAX:
            self._strangers.add(ssrc)
            self.client.avoid.add(channel)

    # --- time

    def due(self, now_s: float) -> None:
        """What is due by the clock."""
        if now_s >= self._deadline_s and not self._heard():
            self._timed_out()
        if self._ended or not self._playing or self._leaving is not None:
            return
        if now_s >= self._patient_s:
            self._patient_s = inf
            if self._udp is not None:
                self._udp.gather()
            else:
                self._patient = True
                self._loop.watch(self, playing=True, writing=self._writing)
        if now_s >= self._keepalive_s:
            self._keepalive_s = now_s + self.client.keepalive_s
            self._send_kept(self.client.keepalive())
        if now_s >= self._report_s:
            self._report_s = now_s + REPORT_S
            for track, reports, channel in self.tracks:
                if track.sequence.ssrc >= 0:
                    report = receiver_report(self._own_ssrc, track.sequence, reports.middle, now_s - reports.heard_s)
                    if self._udp is not None:
                        self._udp.report(channel, report)
                    else:
                        self._send_kept(b"$%c%b%b" % (channel, len(report).to_bytes(2, "big"), report))

    def _send_kept(self, data: bytes) -> None:
        """Say something that does not count as hearing from the camera, and that can be left out where it does not take it."""
        if len(self._out) + len(data) <= OUT_BYTES_MAX // 2 and not self._ended:
            self._out += data
            self._flush()

    def _heard(self) -> bool:
        """Look into the socket before silence is declared: where this machine stood still, what came meanwhile lies there.

        A session that is being left is read to its end instead: that is all there will be of it.
        """
        if not self._connected or (self._secure is not None and not self._secured):
            return False
        heard = self._loop.read(self)
        if self._udp is not None and self._playing and not self._ended:
            return self._udp.read() and self._leaving is None  # what still comes when it is left, its end reads
        for _ in range(READS_MAX if self._leaving is not None else 0):
            if not heard:
                break
            heard = self._loop.read(self)
        return heard and self._leaving is None

    def _timed_out(self) -> None:
        if self._ended:
            return
        where, timeout_s = self.client.where, self._request.timeout_s
        if self._leaving is not None:
            self._finish(self._leaving)
        elif not self._connected:
            self._failed_to_connect(TimeoutError(errno.ETIMEDOUT, "timed out"))
        elif not self._playing:
            self.leave(SourceSilentError(f"{where}: connected, and no answer within {timeout_s:g} s"))
        else:
            hint = None if self._udp is None else _UDP_HINT
            self.leave(SourceSilentError(f"{where}: connected, and no picture for {timeout_s:g} s", hint=hint))

    # --- the end

    def leave(self, error: SourceError) -> None:
        """End the session in order: say TEARDOWN where there is a session, hear what the camera still sends."""
        if self._ended or self._leaving is not None:
            return
        self._leaving = error
        said = self.client.teardown() if self._connected else b""
        if said and len(self._out) == 0:
            self._deadline_s = self._clock.monotonic_s() + LEAVE_S
            self._send_kept(said)
        else:
            self._finish(error)

    def broke(self, error: Exception) -> None:
        """Something raised: a mistake of this program, or of whoever receives."""
        if isinstance(error, SourceError):
            self._finish(error)
            return
        _log.error("session.failed", stream=self._request.stream, kind=type(error).__name__, reason=str(error))
        self._finish(SourceError(redact(f"{self._request.stream}: {type(error).__name__}: {error}")))

    def _broken(self, error: OSError) -> None:
        self._finish(self._leaving or reading_failed(error, self.client.where, self._request.timeout_s))

    def _finish(self, error: SourceError | None, *, known: bool = True) -> None:
        """Close, give out what is held, tell the end; None: another connection follows."""
        if self._ended:
            return
        self._ended = True
        if known:
            self._loop.remove(self)
            self.sock.close()
        ends: list[Callable[[], None]] = [track.flush for track, _, _ in self.tracks]
        for end in ends if self._udp is None else [self._udp.end, *ends, self._udp.close]:
            try:
                end()
            except Exception as broken:  # noqa: BLE001  # the receiver's trouble: the end is told all the same
                _log.error("session.failed", stream=self._request.stream, kind=type(broken).__name__, reason=str(broken))
        self._on_end(error)


_UDP_HINT: Final = "does a firewall let UDP through from the camera?"
_PORT_HINT: Final = "is that an RTSP port? the camera may be full, or starting"
