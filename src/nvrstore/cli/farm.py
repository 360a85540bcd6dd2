"""`nvrstore farm`: simulated cameras in the foreground.

    nvrstore farm --streams 8              people: the URLs; at the end, what was sent
    nvrstore farm --streams 300 --json     programs: {"event": "farm.started", "port": ...}, at the end
                                           {"event": "farm.stopped", "frames_sent": ..., "streams": [...]}
    nvrstore farm --json --control         and JSON lines on standard input: {"do": "stop"}, {"do": "sent"}, {"do": "quit"},
                                           and what scripts know: {"do": "mute", "streams": "0-3", "for_s": 5}

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
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from nvrstore.cli.common import JsonFlag, human_bytes, print_event, say
from nvrstore.errors import NvrstoreError, UsageError
from nvrstore.farm import Auth, Codec, Farm, FarmConfig, Script, SentFrames, load_script, parse_act

_AMOUNT: Final = re.compile(r"(\d+(?:\.\d+)?)([kM]?)")
_SIZE: Final = re.compile(r"(\d+)x(\d+)")


def command(
    streams: Annotated[int, typer.Option(help="How many cameras.")] = 8,
    port: Annotated[int, typer.Option(help="TCP port; 0: the kernel chooses.")] = 8554,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    codec: Annotated[Codec, typer.Option(help="Video codec.")] = Codec.H264,
    size: Annotated[str, typer.Option(help="Picture size; 1920x1080, with --burn 640x360.", metavar="WxH")] = "",
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
    script: Annotated[Path | None, typer.Option(help="What is wrong with which streams, and when (TOML).", metavar="FILE")] = None,
    burn: Annotated[bool, typer.Option("--burn", help="Name, clock and frame number in the picture; at most 8 streams.")] = False,
    seed: Annotated[int, typer.Option(help="Of everything that is random.")] = 1,
    seconds: Annotated[float, typer.Option(help="Stop after so long; 0: run until a signal.")] = 0.0,
    linger: Annotated[float, typer.Option(help="Seconds for which connections stay open after the last frame.")] = 1.0,
    control: Annotated[bool, typer.Option("--control", help="Read JSON commands from standard input; its end ends the farm.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Simulated cameras over real RTSP: rtsp://HOST:PORT/cam0, /cam1, ... Every frame is numbered."""
    user, _, password = login.partition(":")
    story = Script() if script is None else load_script(script, streams)
    width, height = _size(size or ("640x360" if burn else "1920x1080"))
    config = FarmConfig(
        streams=streams,
        port=port,
        host=host,
        codec=codec,
        width=width,
        height=height,
        fps=fps,
        bitrate_bps=_bitrate(bitrate),
        gop=gop,
        b_frames=b_frames,
        audio=_audio(audio),
        loss=loss / 100,
        jitter_s=jitter / 1000,
        auth=auth,
        user=user,
        password=password,
        burn=burn,
        traits=story.traits,
        script=story.acts,
        seed=seed,
    )
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


def _size(text: str) -> tuple[int, int]:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is no picture size", hint="write 1920x1080")
    return int(match[1]), int(match[2])


def _bitrate(text: str) -> int:
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is no bitrate", hint="write 4M, 512k, or 4000000")
    return round(float(match[1]) * {"": 1, "k": 1_000, "M": 1_000_000}[match[2]])


def _audio(text: str) -> Literal["aac", "pcma"] | None:
    match text:
        case "none":
            return None
        case "aac" | "pcma":
            return text
        case _:
            raise UsageError(f"{text!r} is no audio codec of the farm", hint="aac, pcma or none")


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
                case deed:
                    farm.act(parse_act(wanted, farm.config.streams))
                    print_event({"event": "act.done", "do": deed})
        except (ValueError, TypeError, KeyError, NvrstoreError) as error:
            print_event({"event": "command.refused", "line": line.strip(), "reason": str(error)})
    end.set()
