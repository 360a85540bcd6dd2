"""Debian's ffmpeg beside a recorder: a client of the same cameras, and a player of what was stored."""

from __future__ import annotations

import hashlib
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import av

from nvrstore.farm.nal import H264_AUD, H265_AUD, Codec, is_parameter_set, nal_type, split

WAIT_S: Final = 60.0  # bound of every wait: only a broken program comes near it
_AUD: Final = {Codec.H264: H264_AUD, Codec.H265: H265_AUD}


class Client:
    """`ffmpeg -c copy` of a camera into a Matroska file."""

    def __init__(self, url: str, path: Path) -> None:
        command = ["ffmpeg", "-v", "error", "-nostdin", "-rtsp_transport", "tcp", "-i", url, "-c", "copy"]
        self.path = path
        self._process = subprocess.Popen(
            [*command, "-progress", "pipe:1", "-stats_period", "0.2", str(path)], stdout=subprocess.PIPE, text=True
        )
        self._condition = threading.Condition()
        self._seconds = 0.0
        self._ended = False
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            key, _, value = line.strip().partition("=")
            if key == "out_time_us" and value.lstrip("-").isdigit():
                with self._condition:
                    self._seconds = int(value) / 1e6
                    self._condition.notify_all()
        with self._condition:
            self._ended = True
            self._condition.notify_all()

    def has(self, seconds: float) -> None:
        """Wait until it has so many seconds."""
        with self._condition:
            assert self._condition.wait_for(lambda: self._ended or self._seconds >= seconds, WAIT_S), "the camera is slower than life"
            assert self._seconds >= seconds, "ffmpeg ended early"

    def end(self) -> None:
        """Stop it in order."""
        self._process.terminate()  # it writes its trailer
        try:
            self._process.wait(WAIT_S)
        finally:
            self._process.kill()
            self._process.wait()
            self._thread.join(WAIT_S)
            assert self._process.stdout is not None
            self._process.stdout.close()


@contextmanager
def client(url: str, path: Path) -> Iterator[Client]:
    """Run one; it is ended in any case."""
    running = Client(url, path)
    try:
        yield running
    finally:
        running.end()


@dataclass(frozen=True)
class Track:
    """One track as libav reads it: data, PTS and duration of every packet, in seconds."""

    codec: str
    rate: int
    packets: tuple[tuple[bytes, float, float], ...]

    @property
    def nals(self) -> list[tuple[str, float]]:
        """Video: a digest of every NAL unit but delimiters and parameter sets, and the PTS of its packet, in decode order."""
        codec = Codec.H264 if self.codec == "h264" else Codec.H265
        return [(digest(nal), pts) for data, pts, _ in self.packets for nal in split(data) if not _is_frame_work(codec, nal)]

    def since(self, begin_s: float) -> Track:
        """Without what begins earlier."""
        return replace(self, packets=tuple(packet for packet in self.packets if packet[1] >= begin_s))

    @property
    def span_s(self) -> tuple[float, float]:
        """From its first PTS to the end of its last packet."""
        _, last, duration = max(self.packets, key=lambda packet: packet[1])
        return min(pts for _, pts, _ in self.packets), last + duration


def tracks(path: Path) -> dict[str, Track]:
    """The tracks of a file by kind ("video", "audio")."""
    with av.open(str(path)) as container:
        streams: list[Any] = list(container.streams.get())
        found: dict[int, list[tuple[bytes, float, float]]] = {stream.index: [] for stream in streams}
        for packet in container.demux():
            if packet.size:
                base = float(packet.time_base)
                found[packet.stream.index].append((bytes(packet), float(packet.pts or 0) * base, float(packet.duration or 0) * base))
        kinds = {s.type: (s.codec_context.name, getattr(s.codec_context, "sample_rate", 0) or 0, tuple(found[s.index])) for s in streams}
        assert len(kinds) == len(streams), "two tracks of one kind"
        return {kind: Track(*facts) for kind, facts in kinds.items()}


def _is_frame_work(codec: Codec, nal: bytes) -> bool:
    return is_parameter_set(codec, nal) or nal_type(codec, nal) == _AUD[codec]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def place_of(part: list[Any], whole: list[Any]) -> int | None:
    """Where `part` stands in `whole`, unbroken; None where it does not."""
    return next((i for i in range(len(whole) - len(part) + 1) if whole[i : i + len(part)] == part), None)


def complaints(path: Path, *, frames: int | None = None) -> str:
    """What ffmpeg says while it decodes every track that holds anything; empty: nothing is wrong. `frames`: decode so many only."""
    # Times as they are: ffmpeg would otherwise round them to its guess of the frame rate, and complain about its own rounding.
    times = ["-vsync", "passthrough", "-enc_time_base", "-1"]
    with av.open(str(path)) as container:
        indices = sorted({packet.stream.index for packet in container.demux() if packet.size})
    if not indices:
        return ""  # no picture went into it before its successor was opened: there is nothing to decode
    held = [word for index in indices for word in ("-map", f"0:{index}")]
    limit = [] if frames is None else ["-frames:v", str(frames)]
    command = ["ffmpeg", "-v", "error", "-xerror", "-nostdin", "-i", str(path), *held, *times, *limit, "-f", "null", "-"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    return done.stderr + ("" if done.returncode == 0 else f"status {done.returncode}")


def probed(path: Path) -> list[str]:
    """Codecs of a file's tracks, as `ffprobe` says."""
    command = ["ffprobe", "-v", "error", "-show_entries", "stream=codec_name", "-of", "csv=p=0", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=True).stdout.split()
