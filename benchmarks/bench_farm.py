"""What do simulated cameras cost?   Run: python benchmarks/bench_farm.py [--streams 300] [--seconds 10] [--udp]

Question: how much of a core does the farm need for N cameras of 4 Mbit/s, so that a benchmark of a recorder measures the recorder?
Method: the farm is a process of its own (`nvrstore farm`); its CPU time is read from /proc over the measured seconds. The
client is one more process: one epoll loop that plays every stream, counts the stamps that arrive, and throws the rest away.
Reports: JSON lines {bench, host, unit, value, ...}. Before it counts: every frame that the farm calls sent was counted by the
client, and no stream sent less than 99 % of its frames.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import socket
import subprocess
import sys
import time
from typing import Any, Final

from nvrstore.farm.stamp import UUID

RECV_BYTES: Final = 1 << 20
_SOL_UDP, _UDP_GRO = 17, 104  # linux/udp.h: datagrams of one run in one read
_SO_RCVBUFFORCE: Final = 33  # asm-generic/socket.h: beyond rmem_max, for root
TICK: Final = os.sysconf("SC_CLK_TCK")


class Drain:
    """One client of one stream: plays it, counts stamps."""

    def __init__(self, port: int, stream: int, *, udp: bool) -> None:
        self.frames = self.octets = 0
        self._tail = b""
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        url = f"rtsp://127.0.0.1:{port}/cam{stream}"
        self.media = socket.socket(socket.AF_INET, socket.SOCK_DGRAM) if udp else self.sock
        transport = "RTP/AVP/TCP;unicast;interleaved=0-1"
        if udp:
            self.media.bind(("127.0.0.1", 0))
            self.media.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
            self.media.setsockopt(_SOL_UDP, _UDP_GRO, 1)
            ours = self.media.getsockname()[1]
            transport = f"RTP/AVP;unicast;client_port={ours}-{ours + 1}"
        answer = self._ask(f"SETUP {url}/trackID=0 RTSP/1.0\r\nCSeq: 1\r\nTransport: {transport}\r\n\r\n")
        session = answer.partition(b"Session: ")[2].partition(b";")[0].decode()
        rest = self._ask(f"PLAY {url} RTSP/1.0\r\nCSeq: 2\r\nSession: {session}\r\n\r\n")
        if not udp:
            self.count(rest, len(rest))
        self.media.setblocking(False)

    def _ask(self, request: str) -> bytes:
        self.sock.sendall(request.encode())
        data = b""
        while b"\r\n\r\n" not in data:
            data += self.sock.recv(65_536)
        if not data.startswith(b"RTSP/1.0 200"):
            raise SystemExit(f"the farm refused: {data[:100]!r}")
        return data.partition(b"\r\n\r\n")[2] if request.startswith("PLAY") else data

    def count(self, data: bytes | bytearray, size: int) -> None:
        """Count the stamps, also one that lies across two reads."""
        self.octets += size
        self.frames += data.count(UUID, 0, size) + (self._tail + data[: min(15, size)]).count(UUID)
        self._tail = bytes(data[size - 15 : size]) if size >= 15 else (self._tail + bytes(data[:size]))[-15:]


def drain(port: int, streams: int, *, udp: bool) -> None:
    """The client process: plays everything, until its standard input ends; prints what it counted."""
    epoll = select.epoll()
    clients = {}
    for stream in range(streams):
        client = Drain(port, stream, udp=udp)
        clients[client.media.fileno()] = client
        epoll.register(client.media.fileno(), select.EPOLLIN)
    print(json.dumps({"connected": len(clients)}), flush=True)
    epoll.register(0, select.EPOLLIN)
    buffer = bytearray(RECV_BYTES)
    while True:
        for fd, _ in epoll.poll():
            if fd == 0:
                print(json.dumps([clients[fd].frames for fd in sorted(clients)]), flush=True)
                return
            client = clients[fd]
            try:
                while True:
                    size = client.media.recv_into(buffer)
                    client.count(buffer, size)
                    if not udp:
                        break
            except BlockingIOError:
                continue
        time.sleep(0.02)  # fewer, larger reads: the client is not what is measured


def cpu_s(pid: int) -> tuple[float, float]:
    """User and system seconds of a process so far."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return int(fields[11]) / TICK, int(fields[12]) / TICK


def measure(streams: int, seconds: float, bitrate: int, codec: str, *, udp: bool) -> dict[str, Any]:
    """One run. Raises SystemExit where frames are missing."""
    command = [sys.executable, "-m", "nvrstore", "farm", "--json", "--control", "--port", "0"]
    command += ["--streams", str(streams), "--bitrate", str(bitrate), "--codec", codec]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as farm:
        if farm.stdin is None or farm.stdout is None:
            raise SystemExit("no pipes")
        started = json.loads(farm.stdout.readline())
        client_command = [sys.executable, __file__, "--drain", str(started["port"]), "--streams", str(streams)] + (["--udp"] if udp else [])
        with subprocess.Popen(client_command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
            if client.stdin is None or client.stdout is None:
                raise SystemExit("no pipes")
            begun = time.monotonic()
            client.stdout.readline()
            connect_s = time.monotonic() - begun
            time.sleep(2.5)  # every camera has met its first key unit
            before, start = cpu_s(farm.pid), time.monotonic()
            time.sleep(seconds)
            after, wall_s = cpu_s(farm.pid), time.monotonic() - start
            farm.stdin.write('{"do": "stop"}\n')
            farm.stdin.flush()
            report = json.loads(farm.stdout.readline())
            time.sleep(0.5)
            client.stdin.close()
            counted = json.loads(client.stdout.readline())
        farm.stdin.close()
    sent = sum(entry["sent"] for entry in report["streams"])
    if sum(counted) != sent or report["frames_dropped"]:
        raise SystemExit(f"sent {sent}, dropped {report['frames_dropped']}, arrived {sum(counted)}")
    least = min(entry["sent"] for entry in report["streams"])
    if least < 0.99 * seconds * 25:
        raise SystemExit(f"a stream sent only {least} frames, {report}"[:400])
    user_s, system_s = after[0] - before[0], after[1] - before[1]
    return {
        "bench": "farm",
        "host": f"{platform.machine()} {platform.release()} {os.cpu_count()} cores",
        "unit": "share of one core",
        "value": round((user_s + system_s) / wall_s, 4),
        "user": round(user_s / wall_s, 4),
        "system": round(system_s / wall_s, 4),
        "us_per_frame": round((user_s + system_s) / (wall_s * streams * 25) * 1e6, 1),
        "streams": streams,
        "codec": codec,
        "transport": "udp" if udp else "tcp",
        "bitrate_bps": started["bitrate_bps"],
        "frames": sent,
        "lateness_ms_max": report["lateness_ms_max"],
        "connect_s": round(connect_s, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="What simulated cameras cost.")
    parser.add_argument("--streams", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--bitrate", type=int, default=4_000_000)
    parser.add_argument("--codec", default="h264")
    parser.add_argument("--udp", action="store_true")
    parser.add_argument("--drain", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drain is not None:
        drain(options.drain, options.streams, udp=options.udp)
        return
    print(json.dumps(measure(options.streams, options.seconds, options.bitrate, options.codec, udp=options.udp)))


if __name__ == "__main__":
    main()
