"""The floor under every recorder: N cameras received over RTSP/TCP, and their bytes written twice, without a look at them.

Run by bench_streams.py (`--engine floor`). One thread takes 1 MB at a time out of the sockets, every 0.2 s, as the lean engine
does; what came in a quarter of a second is written to two files past the page cache and synced, by a thread each. No RTP, no
pictures, no times, no checksums, no index: what is above this is what recording costs.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import select
import socket
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

GATHER_S, TICK_S = 0.2, 0.25
BUFFER_BYTES = 256 << 20
BLOCK = 4096


def connect(port: int, i: int) -> socket.socket:
    """A camera that plays: DESCRIBE, SETUP of its first track, PLAY."""
    sock = socket.create_connection(("127.0.0.1", port))
    url = f"rtsp://127.0.0.1:{port}/cam{i}"

    def ask(method: str, target: str, *headers: str) -> str:
        number["n"] += 1
        lines = [f"{method} {target} RTSP/1.0", f"CSeq: {number['n']}", *headers, "", ""]
        sock.sendall("\r\n".join(lines).encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += sock.recv(1 if method == "PLAY" else 65536)  # behind PLAY pictures follow
        return answer.decode(errors="replace")

    number = {"n": 0}
    description = ask("DESCRIBE", url, "Accept: application/sdp")
    base = re.search(r"(?im)^content-base: *(\S+)", description)
    while (track := re.search(r"(?s)m=video.*?a=control:(\S+)", description)) is None:
        description += sock.recv(65536).decode()
    control = track[1] if "://" in track[1] else (base[1] if base else url + "/").rstrip("/") + "/" + track[1]
    setup = ask("SETUP", control, "Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
    session = re.search(r"(?im)^session: *([^;\s]+)", setup)
    assert session is not None, setup
    ask("PLAY", url, f"Session: {session[1]}", "Range: npt=0-")
    sock.setblocking(False)
    return sock


def main(folder: Path, port: int, n: int) -> None:
    begun = time.monotonic()
    socks = [connect(port, i) for i in range(n)]
    print(json.dumps({"connected_s": round(time.monotonic() - begun, 2)}), flush=True)
    buffers = [mmap.mmap(-1, BUFFER_BYTES) for _ in range(2)]
    files = [os.open(folder / name / "floor.bin", os.O_WRONLY | os.O_CREAT | os.O_DIRECT | os.O_DSYNC, 0o644) for name in "ab"]
    view, filled, total, offset, turn = memoryview(buffers[0]), 0, 0, 0, 0
    pending: list[tuple[Future[int], int]] = []
    tick = time.monotonic() + TICK_S

    def write(fd: int, data: memoryview, at: int) -> int:
        return os.pwrite(fd, data, at)

    with ThreadPoolExecutor(2) as pool:
        while not select.select([sys.stdin], [], [], GATHER_S)[0]:
            for sock in socks:
                try:
                    count = sock.recv_into(view[filled : filled + (1 << 20)])
                except BlockingIOError:
                    continue
                filled += count
            if time.monotonic() >= tick and filled:
                tick = time.monotonic() + TICK_S
                length = -(-filled // BLOCK) * BLOCK
                assert all(future.result() == size for future, size in pending), "a write was short"
                pending = [(pool.submit(write, fd, view[:length], offset), length) for fd in files]
                offset, total, filled, turn = offset + length, total + filled, 0, 1 - turn
                view = memoryview(buffers[turn])
    print(json.dumps({"bytes": total, "stopped": True}), flush=True)
    os._exit(0)  # the mapped buffers are still looked at


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
