"""GStreamer's RTSP server for tests: a camera that nobody here wrote.

    with gst_server("h264-aac") as url: ...        pytest's side: starts this very file under the system's Python, which has `gi`

The media are shared: all clients of one server see the same pictures at the same time. The kernel chooses the port. The server
ends when its standard input does, so it outlives nobody, not even a test run that was killed.

Its sources are live, as a camera's are: nobody can seek in them. GStreamer's test sources can be sought in, and then the server does
what every client's `Range: npt=0-` asks for: it throws away what is on its way and begins again from zero, for all clients (rewinds;
version 1.22 also ends in a failed assertion, at times, when two clients join at once).
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

SYSTEM_PYTHON: Final = "/usr/bin/python3"
START_S: Final = 30.0
END_S: Final = 5.0

Kind = Literal["h264-aac", "h265", "h264-pcma"]

_PICTURE: Final = "videotestsrc is-live=true pattern=ball ! video/x-raw,width=320,height=240,framerate=25/1 ! videoconvert"
_SOUND: Final = "audiotestsrc is-live=true wave=sine volume=0.2 ! audioconvert"
_FAST: Final = "tune=zerolatency speed-preset=ultrafast key-int-max=25 bitrate=400"
_H264: Final = f"{_PICTURE} ! x264enc {_FAST} ! rtph264pay name=pay0 pt=96 config-interval=-1"
_H265: Final = f"{_PICTURE} ! x265enc {_FAST} ! rtph265pay name=pay0 pt=96 config-interval=-1"
LAUNCH: Final[dict[str, str]] = {
    "h264-aac": f"( {_H264} {_SOUND} ! audio/x-raw,rate=48000,channels=1 ! avenc_aac ! rtpmp4gpay name=pay1 pt=97 )",
    "h265": f"( {_H265} )",
    "h264-pcma": f"( {_H264} {_SOUND} ! audio/x-raw,rate=8000,channels=1 ! alawenc ! rtppcmapay name=pay1 pt=8 )",
}


def has_gst() -> bool:
    """Whether GStreamer's RTSP server is installed, with its Python bindings."""
    if not Path(SYSTEM_PYTHON).exists() or shutil.which("gst-inspect-1.0") is None:
        return False
    probe = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    return subprocess.run([SYSTEM_PYTHON, "-c", probe], capture_output=True, timeout=START_S, check=False).returncode == 0


@contextlib.contextmanager
def gst_server(kind: Kind) -> Iterator[str]:
    """Run a server for one kind of camera; yields its URL."""
    server = subprocess.Popen([SYSTEM_PYTHON, __file__, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        if server.stdout is None or server.stdin is None:
            raise RuntimeError("no pipes")
        port = server.stdout.readline()
        if not port.strip().isdigit():
            raise RuntimeError(f"GStreamer's RTSP server did not start for {kind!r}: is gir1.2-gst-rtsp-server-1.0 installed?")
        yield f"rtsp://127.0.0.1:{int(port)}/camera"
    finally:
        if server.stdin is not None:
            server.stdin.close()
        if server.stdout is not None:
            server.stdout.close()
        try:
            server.wait(END_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _serve(kind: str) -> None:
    """The server itself, under the system's Python."""
    import gi

    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import GLib, Gst, GstRtspServer

    def unsought(_: object, info: Any) -> Any:
        """Refuse to seek, and to say that one could."""
        if info.type & Gst.PadProbeType.EVENT_UPSTREAM:
            seeks = info.get_event().type == Gst.EventType.SEEK
        else:
            seeks = info.get_query().type == Gst.QueryType.SEEKING
        return Gst.PadProbeReturn.DROP if seeks else Gst.PadProbeReturn.OK

    def configure(_: object, media: Any) -> None:
        upstream = Gst.PadProbeType.EVENT_UPSTREAM | Gst.PadProbeType.QUERY_UPSTREAM
        sources = media.get_element().iterate_sources()
        while (found := sources.next())[0] == Gst.IteratorResult.OK:
            found[1].get_static_pad("src").add_probe(upstream, unsought)

    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service("0")
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(LAUNCH[kind])
    factory.set_shared(True)
    factory.connect("media-configure", configure)
    server.get_mount_points().add_factory("/camera", factory)
    server.attach(None)
    sys.stdout.write(f"{server.get_bound_port()}\n")
    sys.stdout.flush()
    loop = GLib.MainLoop()

    def at_end(*_: object) -> bool:
        loop.quit()
        return False

    GLib.io_add_watch(0, GLib.PRIORITY_DEFAULT, GLib.IOCondition.HUP, at_end)
    loop.run()


if __name__ == "__main__":
    _serve(sys.argv[1])
