"""`nvrstore farm`: simulated cameras in the foreground.

    nvrstore farm --streams 8              people: the URLs; at the end, what was sent
    nvrstore farm --streams 300 --json     programs: {"event": "farm.started", "port": ...}, at the end
                                           {"event": "farm.stopped", "frames_sent": ..., "streams": [...]}
    nvrstore farm --json --control         and JSON lines on standard input: {"do": "stop"}, {"do": "sent"}, {"do": "quit"}

At SIGINT and SIGTERM it stops to send at a frame's end, leaves connections open for `--linger` seconds, and says what was sent.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Annotated, Any, Final

import typer

from nvrstore.cli.common import JsonFlag, human_bytes, print_event, say
from nvrstore.errors import UsageError
from nvrstore.farm import Auth, Codec, Farm, FarmConfig, SentFrames
from nvrstore.farm.connection import BACKLOG_BYTES_MAX

_AMOUNT: Final = re.compile(r"(\d+(?:\.\d+)?)([kM]?)")
_SIZE: Final = re.compile(r"(\d+)x(\d+)")


def command(
    streams: Annotated[int, typer.Option(help="How many cameras.")] = 8,
    port: Annotated[int, typer.Option(help="TCP port; 0: the kernel chooses.")] = 8554,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    codec: Annotated[Codec, typer.Option(help="Video codec.")] = Codec.H264,
    size: Annotated[str, typer.Option(help="Picture size.", metavar="WxH")] = "1920x1080",
    fps: Annotated[float, typer.Option(help="Frames per second.")] = 25,
    bitrate: Annotated[str, typer.Option(help="Bits per second and camera: 4M, 512k.")] = "4M",
    gop: Annotated[int, typer.Option(help="Frames from key frame to key frame.")] = 50,
    b_frames: Annotated[int, typer.Option(help="B-frames between two others.")] = 0,
    audio: Annotated[str, typer.Option(help="aac, pcma or none.")] = "none",
    loss: Annotated[float, typer.Option(help="Percent of RTP packets that are not sent.")] = 0.0,
    jitter: Annotated[float, typer.Option(help="Frames are sent late by up to so many milliseconds.")] = 0.0,
    auth: Annotated[Auth, typer.Option(help="How a login is asked for.")] = Auth.NONE,
    login: Annotated[
        str, typer.Option(help="The login that is asked for.", metavar="USER:PASSWORD", envvar="NVRSTORE_FARM_LOGIN")
    ] = "admin:farm",
    seed: Annotated[int, typer.Option(help="Of everything that is random.")] = 1,
    seconds: Annotated[float, typer.Option(help="Stop after so long; 0: run until a signal.")] = 0.0,
    linger: Annotated[float, typer.Option(help="Seconds for which connections stay open after the last frame.")] = 1.0,
    control: Annotated[bool, typer.Option("--control", help="Read JSON commands from standard input; its end ends the farm.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Simulated cameras over real RTSP: rtsp://HOST:PORT/cam0, /cam1, ... Every frame is numbered."""
    config = _config(streams, port, host, codec, size, fps, bitrate, gop, b_frames, audio, loss, jitter, auth, login, seed)
    end = threading.Event()
    with _signals(end), Farm(config) as farm:
        _started(farm, as_json=as_json)
        if control:
            threading.Thread(target=_obey, args=(farm, end), name="farm-control", daemon=True).start()
        end.wait(seconds or None)
        sent = farm.stop_sending()
        if not control:
            threading.Event().wait(linger)
            _stopped(farm, sent, as_json=as_json)


def _config(
    streams: int,
    port: int,
    host: str,
    codec: Codec,
    size: str,
    fps: float,
    bitrate: str,
    gop: int,
    b_frames: int,
    audio: str,
    loss: float,
    jitter: float,
    auth: Auth,
    login: str,
    seed: int,
) -> FarmConfig:
    dimensions = _SIZE.fullmatch(size)
    if dimensions is None:
        raise UsageError(f"{size!r} is no picture size", hint="write 1920x1080")
    amount = _AMOUNT.fullmatch(bitrate)
    if amount is None:
        raise UsageError(f"{bitrate!r} is no bitrate", hint="write 4M, 512k, or 4000000")
    if audio not in ("none", "aac", "pcma"):
        raise UsageError(f"{audio!r} is no audio codec of the farm", hint="aac, pcma or none")
    user, _, password = login.partition(":")
    return FarmConfig(
        streams=streams,
        port=port,
        host=host,
        codec=codec,
        width=int(dimensions[1]),
        height=int(dimensions[2]),
        fps=fps,
        bitrate_bps=round(float(amount[1]) * {"": 1, "k": 1_000, "M": 1_000_000}[amount[2]]),
        gop=gop,
        b_frames=b_frames,
        audio=None if audio == "none" else audio,  # type: ignore[arg-type]
        loss=loss / 100,
        jitter_s=jitter / 1000,
        auth=auth,
        user=user,
        password=password,
        seed=seed,
        backlog_bytes_max=BACKLOG_BYTES_MAX,
    )


@contextlib.contextmanager
def _signals(end: threading.Event) -> Iterator[None]:
    """SIGINT and SIGTERM end the farm in order."""
    before = {number: signal.signal(number, lambda *_: end.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _started(farm: Farm, *, as_json: bool) -> None:
    config = farm.config
    if as_json:
        facts = {"host": config.host, "port": farm.port, "streams": config.streams, "codec": str(config.codec), "fps": config.fps}
        print_event({"event": "farm.started", **facts, "bitrate_bps": round(farm.bitrate_bps), "url": farm.url(0, login=False)})
        return
    last = f" ... /cam{config.streams - 1}" if config.streams > 1 else ""
    say(f"{farm.url(0, login=False)}{last}")
    say(f"{config.width}x{config.height}, {config.fps:g} fps, {config.codec}, {human_bytes(farm.bitrate_bps / 8)}/s each; end with Ctrl-C")


def _summary(farm: Farm, sent: list[SentFrames]) -> dict[str, Any]:
    return {
        "frames_sent": sum(frames.count for frames in sent),
        "frames_dropped": sum(frames.dropped for frames in sent),
        "lateness_ms_max": round(farm.lateness_s_max * 1000, 1),
        "streams": [
            {"stream": frames.stream, "sent": frames.count, "dropped": frames.dropped, "ranges": [list(piece) for piece in frames.ranges]}
            for frames in sent
        ],
    }


def _stopped(farm: Farm, sent: list[SentFrames], *, as_json: bool) -> None:
    summary = _summary(farm, sent)
    if as_json:
        print_event({"event": "farm.stopped", **summary})
    else:
        say(f"sent {summary['frames_sent']} frames, dropped {summary['frames_dropped']}, at most {summary['lateness_ms_max']} ms late")


def _obey(farm: Farm, end: threading.Event) -> None:
    """Commands from standard input, one JSON object a line."""
    for line in sys.stdin:
        try:
            wanted = json.loads(line)
            match wanted["do"]:
                case "stop":
                    print_event({"event": "farm.stopped", **_summary(farm, farm.stop_sending())})
                case "sent":
                    print_event({"event": "farm.sent", **_summary(farm, [farm.sent(stream) for stream in range(farm.config.streams)])})
                case "quit":
                    break
                case other:
                    raise UsageError(f"{other!r} is nothing that the farm can do")
        except (ValueError, TypeError, KeyError, UsageError) as error:
            print_event({"event": "command.refused", "line": line.strip(), "reason": str(error)})
    end.set()
