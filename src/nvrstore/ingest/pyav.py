"""The engine that opens whatever libav can: one daemon thread per session, and one that handles what they read.

    resolve ─▶ av.open(url with login, libav's own `timeout`) ─▶ demux ─┐   one reader per session: next to no Python
    resolve ─▶ av.open ─▶ demux ────────────────────────────────────────┼─▶ queue ─▶ handler ─▶ VideoFeed, AudioFeed ─▶ Receiver
    ...                                                                 ┘   one for all: hundreds of packets at a time

Many threads that each run a little Python keep throwing each other's code out of the caches, and quarrel for the GIL;
one that runs it for hundreds of packets at a time costs half. When it falls behind, readers stand still until it has worked
off half of what waits (TCP makes the cameras wait): then nobody quarrels with it. Cameras are opened OPENS_PER_S at most, and
none while much waits: opening decodes pictures, and would take the processor from those that are recorded.

Never `av.open(timeout=...)`: its callback takes the GIL for every read. Nothing of libav's log is turned on: PyAV drops
it in C by default, and whoever turns it on does so for a whole process. `stop` wakes a reader that waits in libav by
shutting its socket down (unblock.py); one that waits elsewhere (for a name server) is left behind by `join`.

Invariants: the URL with the login is built here, given to libav, and dropped; everything told to others has it taken
out. No path of a target is ever opened here.
Does not see what libav hides: pictures torn by RTP packets that were lost over UDP come as whole ones (`is_corrupt` is never set),
and so may the one in the middle of which a session ends. libav's log alone tells. TCP loses none.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any, Final

import av
import av.error

from nvrstore.clock import Clock
from nvrstore.config import url_with_login
from nvrstore.errors import SourceEndedError, SourceError, SourceNotVideoError, redact
from nvrstore.ingest.audio import AudioFeed
from nvrstore.ingest.contract import Endpoint, Receiver, SourceRequest, resolved
from nvrstore.ingest.errors import opening_failed, reading_failed
from nvrstore.ingest.heap import give_back
from nvrstore.ingest.udp_buffer import UDP_BUFFER_BYTES, warn_of_udp
from nvrstore.ingest.unblock import shut_down_awaited
from nvrstore.ingest.video import VideoFeed
from nvrstore.limits import PACKET_WAIT_S, PACKETS_WAITING_MAX, STOP_S
from nvrstore.media.init import STORED_VIDEO
from nvrstore.telemetry import get_logger

OPENS_PER_S: Final = 16  # each costs 40 ms of a core
OPEN_WAITS_MAX: Final = 40  # of PACKET_WAIT_S
ROOM_WAIT_S: Final = 0.25
OPENING_S: Final = 5.0  # without another camera being opened: then what opening took is given back
_WAKE_S: Final = 0.02  # `join` looks again after this: libav waits in slices of 0.1 s, and may be between two of them
_RTSP: Final = ("rtsp://", "rtsps://")
_PACED: Final = ("file:", "http:", "https:")

# libav's defaults look at five seconds of a stream before they give any of it.
_OPTIONS: Final = {"fpsprobesize": "0", "probesize": "500000", "analyzeduration": "500000"}

_TIMEOUT_US_MAX: Final = 2_000_000_000  # libav's TCP refuses to connect with more than 31 bits of microseconds

_log = get_logger("ingest.pyav")

Push = Callable[[Any, int, float], None]


class PyavEngine:
    """Makes sources, and runs the handler thread while there are any. See `SourceFactory`."""

    def __init__(self) -> None:
        self.queue: Final[deque[tuple[PyavSource, Any, int, float]]] = deque()  # packet, or None at a session's end
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._sources = 0
        self._opened_s: float | None = None  # when the last camera was opened, until that memory was given back
        self._turn_s = 0.0  # when the next camera may be opened
        self._full = False  # more waits than should; readers wait for `_room`
        self._room = threading.Event()
        self._thread: threading.Thread | None = None

    def __call__(self, request: SourceRequest, receiver: Receiver, clock: Clock) -> PyavSource:
        return PyavSource(self, request, receiver, clock)

    def begin(self) -> None:
        """A source starts."""
        with self._lock:
            self._sources += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._handle, name="nvrstore-pyav", daemon=True)
                self._thread.start()

    def wait_turn(self, clock: Clock, stopping: threading.Event) -> None:
        """Wait until a camera may be opened."""
        with self._lock:
            self._turn_s = max(self._turn_s + 1 / OPENS_PER_S, clock.monotonic_s())
            turn_s = self._turn_s
        stopping.wait(max(0.0, turn_s - clock.monotonic_s()))
        for _ in range(OPEN_WAITS_MAX):  # bounded: what waits may be more than can ever be worked off
            if len(self.queue) < PACKETS_WAITING_MAX // 16 or stopping.wait(PACKET_WAIT_S):
                return

    def wait_room(self, stopping: threading.Event) -> None:
        """Wait until half of what waits is handled."""
        self._room.clear()
        self._full = True
        # Looked at again and again: all may have been handled before this was said, and then nobody tells.
        while self._full and len(self.queue) > PACKETS_WAITING_MAX // 2 and not stopping.is_set():
            self._room.wait(ROOM_WAIT_S)

    def opened(self, now_s: float) -> None:
        """A camera was opened, which takes much more memory than recording it."""
        self._opened_s = now_s

    def wake(self) -> None:
        """Something in the queue should not wait."""
        self._wake.set()

    def settle(self, timeout_s: float) -> None:
        """Wait for the handler's end, if there is nothing left for it to do."""
        with self._lock:
            thread = None if self._sources else self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    def _handle(self) -> None:
        queue, wake = self.queue, self._wake
        while True:
            wake.wait(PACKET_WAIT_S)
            wake.clear()
            while queue:
                source, packet, arrival_ns, arrival_s = queue.popleft()
                if self._full and len(queue) <= PACKETS_WAITING_MAX // 2:
                    self._full = False
                    self._room.set()
                if packet is not None:
                    source.take(packet, arrival_ns, arrival_s)
                    if self._opened_s is not None and arrival_s - self._opened_s > OPENING_S:
                        self._opened_s = None
                        give_back()
                    continue
                source.over()
                with self._lock:
                    self._sources -= 1
                    if not self._sources:
                        self._thread = None
                        return


class PyavSource:
    """One session through libav. See `Source`."""

    engine: Final = "pyav"

    def __init__(self, engine: PyavEngine, request: SourceRequest, receiver: Receiver, clock: Clock) -> None:
        self._engine = engine
        self._request = request
        self._receiver = receiver
        self._clock = clock
        self._stopping = threading.Event()
        self.connecting_s = inf  # since when (monotonic); inf: it waits for its turn to
        self._leave_s = 0.0  # told to stop, it delivers what libav and the socket still hold, until then
        self._reader = threading.Thread(target=self._run, name=f"nvrstore-{request.stream}", daemon=True)
        self._over = threading.Event()
        self._feeds: dict[int, Push] = {}
        self._flush: Callable[[], None] = lambda: None
        self._error: SourceError = _stopped()
        self._broken = False

    @property
    def heard_until_s(self) -> float:
        """Up to when everything that came was handed on (monotonic): what came later may wait still."""
        try:
            return self._engine.queue[0][3]
        except IndexError:
            return inf

    @property
    def behind(self) -> bool:
        """Whether all that it has yet to do is to hand on what was read."""
        return self._reader.ident is not None and not self._reader.is_alive() and not self._over.is_set()

    def start(self) -> None:
        self._engine.begin()
        try:
            self._reader.start()
        except RuntimeError:
            self._put_end(_stopped())
            raise

    def stop(self) -> None:
        if not self._stopping.is_set():
            self._leave_s = self._clock.monotonic_s() + STOP_S / 2
            self._stopping.set()
        tid = self._reader.native_id
        if tid is not None and self._reader.is_alive():
            shut_down_awaited(tid)

    def join(self, timeout_s: float) -> bool:
        if self._reader.ident is None:
            return True
        deadline_s = self._clock.monotonic_s() + timeout_s
        while self._reader.is_alive() or not self._over.is_set():
            left_s = deadline_s - self._clock.monotonic_s()
            if left_s <= 0:
                return False
            self._over.wait(min(_WAKE_S, left_s))
            if self._stopping.is_set() and self._reader.is_alive():
                self.stop()
        self._engine.settle(max(0.0, deadline_s - self._clock.monotonic_s()))
        return True

    # --- in the handler's thread

    def take(self, packet: Any, arrival_ns: int, arrival_s: float) -> None:
        """Handle one packet."""
        if self._broken:
            return
        try:
            self._feeds[packet.stream_index](packet, arrival_ns, arrival_s)
        except Exception as error:  # noqa: BLE001  # one stream's trouble, whatever it is, stays its own
            self._break(error)

    def over(self) -> None:
        """Everything was handled: tell the end."""
        try:
            if not self._broken:
                self._flush()
        except Exception as error:  # noqa: BLE001  # as above
            self._break(error)
        try:
            self._receiver.on_ended(self._error)
        except Exception as error:  # noqa: BLE001  # as above: the handler serves the others
            self._unexpected(error)
        self._over.set()

    def _break(self, error: Exception) -> None:
        self._broken = True
        self._error = self._unexpected(error)
        self.stop()

    def _unexpected(self, error: Exception) -> SourceError:
        if isinstance(error, SourceError):
            return error
        _log.error("session.failed", stream=self._request.stream, kind=type(error).__name__, reason=str(error))
        return SourceError(redact(f"{self._request.stream}: {type(error).__name__}: {error}"))

    # --- in the reader's thread

    def _run(self) -> None:
        try:
            error = self._session()
        except Exception as broken:  # noqa: BLE001  # as above
            error = self._unexpected(broken)
        self._put_end(error)

    def _put_end(self, error: SourceError) -> None:
        if not self._broken:
            self._error = error
        self._engine.queue.append((self, None, 0, 0.0))
        self._engine.wake()

    def _session(self) -> SourceError:
        self._engine.wait_turn(self._clock, self._stopping)
        self.connecting_s = self._clock.monotonic_s()
        if self._stopping.is_set():
            return _stopped()  # before anybody's hook is asked, which may take long
        endpoint = resolved(self._request)
        if self._stopping.is_set():
            return _stopped()
        container, error = self._open(endpoint)
        if container is None:
            return error or _stopped()
        try:
            self._prepare(container, endpoint.url)
            self._engine.opened(self._clock.monotonic_s())
            found = self._read(container, self._pacer(container, endpoint.url))
        finally:
            container.close()
        if self._stopping.is_set():
            return _stopped()
        return reading_failed(found, endpoint.url, self._request.timeout_s)

    def _open(self, endpoint: Endpoint) -> tuple[Any, SourceError | None]:
        """The container, or why there is none. The error is made here and not raised: libav's own would follow it as context."""
        timeout_s = self._request.timeout_s
        options = self._options(endpoint.url)
        began_s = self._clock.monotonic_s()
        try:
            return av.open(url_with_login(endpoint.url, endpoint.login), "r", options=options), None
        except (av.error.FFmpegError, OSError, ValueError, LookupError, RuntimeError) as error:
            return None, opening_failed(error, endpoint.url, self._clock.monotonic_s() - began_s, timeout_s)

    def _options(self, url: str) -> dict[str, str]:
        request = self._request
        timeout_us = str(min(round(request.timeout_s * 1e6), _TIMEOUT_US_MAX))
        options: dict[str, str] = {}
        if url.lower().startswith(_RTSP):
            options = {**_OPTIONS, "timeout": timeout_us, "rtsp_transport": request.transport}
            if request.transport == "udp":
                options["buffer_size"] = str(UDP_BUFFER_BYTES)
                warn_of_udp()
            if request.audio == "off":
                options["allowed_media_types"] = "video"
        elif url.lower().startswith(("http:", "https:", "tcp:")):
            options = {"timeout": timeout_us} if url[:3] == "tcp" else {"rw_timeout": timeout_us}
        return {**options, **request.options}

    def _prepare(self, container: Any, url: str) -> None:
        """Choose what is recorded: the first video that MP4 carries, and the first sound."""
        videos = [stream for stream in container.streams.video if stream.codec_context is not None]
        video = next((stream for stream in videos if stream.codec_context.name in STORED_VIDEO), None)
        if video is None:
            names = ", ".join(stream.codec_context.name for stream in videos)
            what = f"{names} video, which cannot be recorded" if names else "no video"
            raise SourceNotVideoError(f"{redact(url)}: there is {what}", hint="set the camera to H.264 or H.265" if names else None)
        context = video.codec_context
        size = (context.width, context.height)
        framed = not url.lower().startswith(_RTSP)
        feed = VideoFeed(context.name, bytes(context.extradata or b""), size, video.time_base, self._receiver, framed=framed)
        self._feeds[video.index], self._flush = feed.push, feed.flush
        audio = next((stream for stream in container.streams.audio if stream.codec_context is not None), None)
        if audio is not None:
            sound = AudioFeed(audio, self._request.audio, self._request.stream, self._receiver)
            if sound.wanted:
                self._feeds[audio.index] = sound.push

    def _pacer(self, container: Any, url: str) -> Callable[[Any], None] | None:
        """A recording is played at the speed at which it was made; a camera sets the speed itself."""
        if container.duration is None or ("://" in url and not url.lower().startswith(_PACED)):
            return None
        began_s = self._clock.monotonic_s()

        def wait(packet: Any) -> None:
            if packet.dts is not None:
                self._stopping.wait(max(0.0, began_s + float(packet.dts * packet.time_base) - self._clock.monotonic_s()))

        return wait

    def _read(self, container: Any, wait: Callable[[Any], None] | None) -> Exception | None:
        """Deliver until the end; libav's error, or None at the end of the stream. As little Python as possible: it is run everywhere."""
        utc_ns, monotonic_s, stopping = self._clock.utc_ns, self._clock.monotonic_s, self._stopping.is_set
        queue = self._engine.queue
        put = queue.append
        streams = [container.streams[index] for index in self._feeds]
        waiting_max = PACKETS_WAITING_MAX * (2 if self._request.transport == "udp" else 1)  # over UDP no camera waits: it loses
        try:
            for packet in container.demux(streams):
                if not packet.size:  # PyAV's mark of the end; a missing DTS is not one
                    continue
                if wait is not None:
                    wait(packet)
                now_s = monotonic_s()
                put((self, packet, utc_ns(), now_s))
                if stopping() and (wait is not None or now_s > self._leave_s):
                    break
                if len(queue) > waiting_max:
                    self._engine.wait_room(self._stopping)
        except (av.error.FFmpegError, OSError) as error:
            return error
        return None


def _stopped() -> SourceError:
    return SourceEndedError("stopped")
