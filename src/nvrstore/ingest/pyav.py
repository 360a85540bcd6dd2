"""The engine that opens whatever libav can: one daemon thread per session.

    resolve ─▶ av.open(url with login, libav's own `timeout`) ─▶ demux ─▶ VideoFeed, AudioFeed ─▶ Receiver

Never `av.open(timeout=...)`: its callback takes the GIL for every read. Nothing of libav's log is turned on: PyAV drops
it in C by default, and whoever turns it on does so for a whole process. `stop` wakes a thread that waits in libav by
shutting its socket down (unblock.py); a thread that waits elsewhere (a name server) is left behind by `join`.

Invariants: the URL with the login is built here, given to libav, and dropped; everything told to others has it taken
out. No path of a target is ever opened here. Per packet as little Python as possible: it is the cost of this engine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

import av
import av.error

from nvrstore.clock import Clock
from nvrstore.config import url_with_login
from nvrstore.errors import SourceEndedError, SourceError, SourceNotVideoError, redact
from nvrstore.ingest.audio import AudioFeed
from nvrstore.ingest.contract import Endpoint, Receiver, SourceRequest
from nvrstore.ingest.errors import opening_failed, reading_failed
from nvrstore.ingest.unblock import shut_down_awaited
from nvrstore.ingest.video import VideoFeed
from nvrstore.limits import STOP_S
from nvrstore.media.init import STORED_VIDEO
from nvrstore.telemetry import get_logger

_WAKE_S: Final = 0.02  # `join` looks again after this: libav waits in slices of 0.1 s, and may be between two of them
_RTSP: Final = ("rtsp://", "rtsps://")
_PACED: Final = ("file:", "http:", "https:")

# libav's defaults look at five seconds of a stream before they give any of it.
_OPTIONS: Final = {"fpsprobesize": "0", "probesize": "500000", "analyzeduration": "500000"}

_log = get_logger("ingest.pyav")


class PyavSource:
    """One session through libav. See `Source`."""

    engine: Final = "pyav"

    def __init__(self, request: SourceRequest, receiver: Receiver, clock: Clock) -> None:
        self._request = request
        self._receiver = receiver
        self._clock = clock
        self._stopping = threading.Event()
        self._leave_s = 0.0  # told to stop, it delivers what libav and the socket still hold, until then
        self._thread = threading.Thread(target=self._run, name=f"nvrstore-{request.stream}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if not self._stopping.is_set():
            self._leave_s = self._clock.monotonic_s() + STOP_S / 2
            self._stopping.set()
        tid = self._thread.native_id
        if tid is not None and self._thread.is_alive():
            shut_down_awaited(tid)

    def join(self, timeout_s: float) -> bool:
        if self._thread.ident is None:
            return True
        deadline_s = self._clock.monotonic_s() + timeout_s
        while self._thread.is_alive():
            left_s = deadline_s - self._clock.monotonic_s()
            if left_s <= 0:
                return False
            self._thread.join(min(_WAKE_S, left_s))
            if self._stopping.is_set() and self._thread.is_alive():
                self.stop()
        return True

    # --- in the thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            error = self._session()
        except SourceError as refused:
            error = refused
        except Exception as broken:  # noqa: BLE001  # one stream's trouble, whatever it is, stays its own
            _log.error("session.failed", stream=self._request.stream, kind=type(broken).__name__, reason=str(broken))
            error = SourceError(redact(f"{self._request.stream}: {type(broken).__name__}: {broken}"))
        self._receiver.on_ended(error)

    def _session(self) -> SourceError:
        endpoint = self._resolve()
        if self._stopping.is_set():
            return _stopped()
        container, error = self._open(endpoint)
        if container is None:
            return error or _stopped()
        try:
            feeds = self._feeds(container, endpoint.url)
            found = self._read(container, feeds, self._pacer(container, endpoint.url))
        finally:
            container.close()
        if self._stopping.is_set():
            return _stopped()
        return reading_failed(found, endpoint.url, self._request.timeout_s)

    def _resolve(self) -> Endpoint:
        failed = ""
        try:
            return self._request.resolve()
        except SourceError:
            raise
        except Exception as error:  # noqa: BLE001  # somebody else's hook; its text may hold what it looked up
            failed = type(error).__name__
        raise SourceError(f"{self._request.stream}: the address and login could not be resolved ({failed})")

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
        timeout_us = str(round(request.timeout_s * 1e6))
        options: dict[str, str] = {}
        if url.lower().startswith(_RTSP):
            options = {**_OPTIONS, "timeout": timeout_us, "rtsp_transport": request.transport}
            if request.transport == "udp":
                options["buffer_size"] = str(8 << 20)  # as much as net.core.rmem_max allows: a keyframe comes in one burst
            if request.audio == "off":
                options["allowed_media_types"] = "video"
        elif url.lower().startswith(("http:", "https:", "tcp:")):
            options = {"timeout": timeout_us} if url[:3] == "tcp" else {"rw_timeout": timeout_us}
        return {**options, **request.options}

    def _feeds(self, container: Any, url: str) -> dict[int, Callable[[Any, int, float], None]]:
        """What takes the packets of each track: the first video that MP4 carries, and the first sound."""
        videos = [stream for stream in container.streams.video if stream.codec_context is not None]
        video = next((stream for stream in videos if stream.codec_context.name in STORED_VIDEO), None)
        if video is None:
            names = ", ".join(stream.codec_context.name for stream in videos)
            what = f"{names} video, which cannot be recorded" if names else "no video"
            raise SourceNotVideoError(f"{redact(url)}: there is {what}", hint="set the camera to H.264 or H.265" if names else None)
        context = video.codec_context
        size = (context.width, context.height)
        self._video = VideoFeed(context.name, bytes(context.extradata or b""), size, video.time_base, self._receiver)
        feeds: dict[int, Callable[[Any, int, float], None]] = {video.index: self._video.push}
        if self._request.audio != "off":
            audio = next((stream for stream in container.streams.audio if stream.codec_context is not None), None)
            feed = None if audio is None else AudioFeed(audio, self._request.audio, self._request.stream, self._receiver)
            if audio is not None and feed is not None and feed.wanted:
                feeds[audio.index] = feed.push
        return feeds

    def _pacer(self, container: Any, url: str) -> Callable[[Any], None] | None:
        """A recording is played at the speed at which it was made; a camera sets the speed itself."""
        if container.duration is None or ("://" in url and not url.lower().startswith(_PACED)):
            return None
        began_s = self._clock.monotonic_s()

        def wait(packet: Any) -> None:
            if packet.dts is not None:
                self._stopping.wait(max(0.0, began_s + float(packet.dts * packet.time_base) - self._clock.monotonic_s()))

        return wait

    def _read(
        self, container: Any, feeds: dict[int, Callable[[Any, int, float], None]], wait: Callable[[Any], None] | None
    ) -> Exception | None:
        """Deliver until the end; libav's error, or None at the end of the stream."""
        utc_ns, monotonic_s, stopping = self._clock.utc_ns, self._clock.monotonic_s, self._stopping.is_set
        streams = [container.streams[index] for index in feeds]
        try:
            for packet in container.demux(streams):
                if not packet.size:  # PyAV's mark of the end; a missing DTS is not one
                    continue
                if wait is not None:
                    wait(packet)
                now_s = monotonic_s()
                feeds[packet.stream_index](packet, utc_ns(), now_s)
                if stopping() and (wait is not None or now_s > self._leave_s):
                    break
        except (av.error.FFmpegError, OSError) as error:
            return error
        finally:
            self._video.flush()
        return None


def _stopped() -> SourceError:
    return SourceEndedError("stopped")
