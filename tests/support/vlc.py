"""VLC's RTSP server for tests: a camera that nobody here wrote, and that sends over UDP alone.

    with vlc_server() as url: ...        a film of FILM_S seconds, made by ffmpeg, played once

VLC refuses to run as root, so root starts it as `nobody`, from a directory that everybody can read. Linux ends it with the
thread that started it, so it outlives nobody, not even a test run that was killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

FILM_S: Final = 60
START_S: Final = 30.0
END_S: Final = 5.0
NOBODY: Final = 65534

_PICTURE: Final = ("-f", "lavfi", "-i", "testsrc2=size=320x240:rate=25")
_SOUND: Final = ("-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000")
_CODECS: Final = ("-c:v", "libx264", "-preset", "ultrafast", "-g", "25", "-bf", "0", "-b:v", "300k", "-c:a", "aac", "-b:a", "64k")


def has_vlc() -> bool:
    """Whether VLC and ffmpeg are installed."""
    return all(shutil.which(name) is not None for name in ("cvlc", "ffmpeg", "setpriv"))


def _serves(port: int, path: str) -> bool:
    """Whether there is something to play by now."""
    request = f"DESCRIBE rtsp://127.0.0.1:{port}/{path} RTSP/1.0\r\nCSeq: 1\r\nAccept: application/sdp\r\n\r\n"
    try:
        with socket.create_connection(("127.0.0.1", port), 1.0) as asked:
            asked.sendall(request.encode())
            return b"m=video" in asked.recv(4096)
    except OSError:
        return False


@contextlib.contextmanager
def vlc_server() -> Iterator[str]:
    """Run VLC with a film; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:  # VLC cannot let the kernel choose
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="nvrstore-vlc-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        film = folder / "film.mp4"
        subprocess.run(["ffmpeg", "-v", "error", *_PICTURE, *_SOUND, "-t", str(FILM_S), *_CODECS, str(film)], check=True, timeout=START_S)
        home = folder / "home"
        home.mkdir()
        home.chmod(0o777)
        become = ["--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"] if os.geteuid() == 0 else []
        command = ["setpriv", *become, "--pdeathsig", "KILL", "cvlc", "--quiet", "--play-and-exit", str(film)]
        server = subprocess.Popen(
            [*command, "--sout", f"#rtp{{sdp=rtsp://127.0.0.1:{port}/film}}"],
            env={"PATH": os.environ["PATH"], "HOME": str(home)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            end_s = time.monotonic() + START_S
            while not _serves(port, "film"):
                if server.poll() is not None or time.monotonic() > end_s:
                    raise RuntimeError("VLC's RTSP server did not start: are vlc-bin and vlc-plugin-base installed?")
                time.sleep(0.1)
            yield f"rtsp://127.0.0.1:{port}/film"
        finally:
            server.terminate()
            try:
                server.wait(END_S)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
