"""`Farm`: simulated cameras over real RTSP, for tests, demos and benchmarks of one's own system.

    with Farm(FarmConfig(streams=8)) as farm:
        ...                                # record farm.url(0) ... farm.url(7)
        sent = farm.stop_sending()         # the farm stops first: connections stay open, the recorder drains
    report = check_access_units(units_of_camera_0)
    assert not report.lost(sent[0])

The farm runs in a thread of its own; every method may be called from any thread.
"""

from __future__ import annotations

import errno
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from typing import Final, Literal, Self, TypeVar
from urllib.parse import quote

from nvrstore.clock import SYSTEM_CLOCK, Clock
from nvrstore.errors import ClosedError, UsageError
from nvrstore.farm.auth import Auth, Guard
from nvrstore.farm.burn import BURN_STREAMS_MAX
from nvrstore.farm.camera import Look
from nvrstore.farm.connection import BACKLOG_BYTES_MAX
from nvrstore.farm.nal import Codec
from nvrstore.farm.oddities import PLAIN, Act, Traits
from nvrstore.farm.ranges import SentFrames
from nvrstore.farm.reels import AudioSpec, VideoReel, VideoSpec, audio_reel, video_reel
from nvrstore.farm.server import Server, ServerConfig
from nvrstore.farm.stamp import STREAM_MAX
from nvrstore.farm.studio import Studio, StudioConfig

T = TypeVar("T")
CLOSE_S: Final = 5.0
AUDIO_HZ: Final = {"aac": 16_000, "pcma": 8_000}


@dataclass(frozen=True, slots=True)
class FarmConfig:
    """What the farm simulates. The defaults are a usual camera; tests take a small picture."""

    streams: int = 1
    host: str = "127.0.0.1"
    port: int = 0  # 0: the kernel chooses
    codec: Codec | str = Codec.H264
    width: int = 1920
    height: int = 1080
    fps: float = 25
    bitrate_bps: int = 4_000_000
    gop: int = 50  # frames from key unit to key unit
    b_frames: int = 0
    audio: Literal["aac", "pcma"] | None = None
    loss: float = 0.0  # share of RTP packets that are not sent
    jitter_s: float = 0.0  # units are sent late by up to this, at random
    auth: Auth | str = Auth.NONE
    user: str = "admin"
    password: str = field(default="farm", repr=False)
    burn: bool = False  # name and clock in the picture, for at most 8 streams
    traits: Mapping[int, Traits] = field(default_factory=dict)  # by stream: what is wrong with it
    script: tuple[Act, ...] = ()  # what happens, and when
    seed: int = 1
    send_buffer_bytes: int = 0  # of each connection's socket; 0: the kernel's choice
    backlog_bytes_max: int = BACKLOG_BYTES_MAX  # what waits for a client that reads too slowly


def _check(config: FarmConfig) -> None:
    problems = []
    if not 1 <= config.streams <= STREAM_MAX:
        problems.append(f"streams: 1 to {STREAM_MAX}, not {config.streams}")
    if not 0 <= config.port <= 65_535:
        problems.append(f"port: 0 to 65535, not {config.port}")
    if not 0 < config.fps <= 240:
        problems.append(f"fps: over 0 and up to 240, not {config.fps}")
    if not 1 <= config.gop <= 3000:
        problems.append(f"gop: 1 to 3000, not {config.gop}")
    if config.bitrate_bps < 16_000:
        problems.append(f"bitrate: at least 16000 bit/s, not {config.bitrate_bps}")
    if not 0 <= config.loss <= 1:
        problems.append(f"loss: a share from 0 to 1, not {config.loss}")
    if config.jitter_s < 0:
        problems.append(f"jitter: not below 0, as {config.jitter_s} is")
    if config.width % 2 or config.height % 2 or not (16 <= config.width <= 8192 and 16 <= config.height <= 8192):
        problems.append(f"size: even numbers from 16 to 8192, not {config.width}x{config.height}")
    if config.burn and (config.streams > BURN_STREAMS_MAX or config.b_frames):
        problems.append(f"burn: at most {BURN_STREAMS_MAX} streams, without B-frames")
    strangers = [stream for stream in config.traits if not 0 <= stream < config.streams]
    strangers += [stream for act in config.script for stream in act.streams or () if not 0 <= stream < config.streams]
    if strangers:
        problems.append(f"traits and script: {strangers[0]} is not one of the {config.streams} streams")
    if problems:
        raise UsageError("a farm cannot be made like this: " + "; ".join(problems))


def _cast(config: FarmConfig) -> tuple[list[Look], dict[VideoSpec, VideoReel]]:
    """Encode everything that the farm will send: the looks of all streams, and every reel that the script asks for."""
    fps = Fraction(config.fps).limit_denominator(1001)
    base = VideoSpec(Codec(config.codec), config.width, config.height, fps, config.bitrate_bps, config.gop, config.b_frames)
    base_audio = None if config.audio is None else AudioSpec(config.audio, AUDIO_HZ[config.audio])
    looks = []
    for stream in range(config.streams):
        traits = config.traits.get(stream, PLAIN)
        traits = replace(traits, jitter_s=traits.jitter_s or config.jitter_s)
        audio = traits.audio_spec(base_audio)
        looks.append(Look(video_reel(traits.video_spec(base)), None if audio is None else audio_reel(audio), traits))
    reels = {look.video.spec: look.video for look in looks}
    specs = set(reels)
    for act in config.script:
        if act.do == "change":
            specs |= {act.changed(spec) for spec in specs}
    return looks, reels | {spec: video_reel(spec) for spec in specs}


class Farm:
    """Simulated cameras. A context manager: sockets, thread and connections end with it."""

    def __init__(self, config: FarmConfig | None = None, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.config = FarmConfig() if config is None else config
        _check(self.config)
        self._clock = clock
        self._server: Server | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        config = self.config
        looks, reels = _cast(config)
        studio = Studio(StudioConfig(looks, reels, config.seed, config.burn), self._clock)
        guard = Guard(Auth(config.auth), config.user, config.password, secrets.token_hex(16))
        inner = ServerConfig(config.host, config.port, config.loss, config.seed, config.send_buffer_bytes, config.backlog_bytes_max)
        try:
            server = Server(inner, guard, studio, self._clock)
        except OSError as error:
            hint = "choose another port, or 0" if error.errno == errno.EADDRINUSE else "is the address one of this machine?"
            raise UsageError(f"cannot listen at {config.host}:{config.port}: {error.strerror}", hint=hint) from None
        server.schedule(config.script, self._clock.monotonic_s())
        self._server = server
        self._thread = threading.Thread(target=server.run, name="nvrstore-farm", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection, and end the thread. What was sent can still be asked for."""
        if self._thread is None or self._server is None or not self._thread.is_alive():
            return
        self._server.call(self._server.stop)
        self._thread.join(CLOSE_S)

    @property
    def _running(self) -> Server:
        if self._server is None or self._thread is None:
            raise ClosedError("the farm has not been started", hint="use it as a context manager: `with Farm(...) as farm:`")
        return self._server

    def _ask(self, function: Callable[[], T]) -> T:
        """Run `function` in the farm's thread."""
        server = self._running
        if self._thread is None or not self._thread.is_alive():
            raise ClosedError("the farm has ended")
        return server.call(function).result(CLOSE_S)

    @property
    def port(self) -> int:
        """The TCP port of all streams."""
        return self._running.port

    @property
    def bitrate_bps(self) -> float:
        """What the video of the first stream came to, stamps and packet headers not counted."""
        return self._running.studio.cameras["cam0"].look.video.bitrate_bps

    @property
    def lateness_s_max(self) -> float:
        """How late a unit was handed to its sockets, at the worst: over some ten milliseconds the machine is overloaded."""
        return self._running.studio.lateness_s_max

    def url(self, stream: int, *, login: bool = True) -> str:
        """The RTSP URL of a stream, with its login where one is asked for."""
        if not 0 <= stream < self.config.streams:
            raise UsageError(f"stream {stream} is not one of the farm's {self.config.streams}")
        user = ""
        if login and Auth(self.config.auth) is not Auth.NONE:
            user = f"{quote(self.config.user, safe='')}:{quote(self.config.password, safe='')}@"
        return f"rtsp://{user}{self.config.host}:{self.port}/cam{stream}"

    def listeners(self, stream: int) -> int:
        """How many sessions play a stream now."""
        self.url(stream)  # raises where there is no such stream
        return len(self._running.studio.cameras[f"cam{stream}"].sessions)

    def sent(self, stream: int) -> SentFrames:
        """Which frames of a stream were written to a socket to their last byte."""
        self.url(stream)  # raises where there is no such stream
        server = self._running
        camera = server.studio.cameras[f"cam{stream}"]
        if self._thread is None or not self._thread.is_alive():
            return camera.sent()
        return self._ask(camera.sent)

    def act(self, act: Act) -> None:
        """Let something happen now (`at_s` and `every_s` are not looked at). Raises `UsageError` where it cannot."""
        for stream in act.streams or ():
            self.url(stream)
        server = self._running
        if act.do == "change":
            looks = [camera.look for camera in server.studio.cameras.values()]
            for spec in {act.changed(look.video.spec) for look in looks}:
                server.studio.know(video_reel(spec))  # encoded here, in the caller's thread
        self._ask(partial(server.act, act))

    def stop_sending(self, *, drain_s: float = 5.0) -> list[SentFrames]:
        """Stop at a frame's end, write what is begun, leave connections open; what was sent, by stream.

        A client that does not read for `drain_s` keeps its rest unwritten: those frames do not count as sent.
        """
        server = self._running
        self._ask(server.stop_sending)
        end_s = self._clock.monotonic_s() + drain_s
        pause = threading.Event()
        while self._ask(server.backlog_bytes) and self._clock.monotonic_s() < end_s:
            pause.wait(0.01)
        return [self.sent(stream) for stream in range(self.config.streams)]
