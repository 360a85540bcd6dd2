"""A recorder under a drill: in this process, or in one of its own that can be killed.

    InProcess   RecorderCore as a host embeds it; its targets are wrapped, its clock can be stepped
    Child       `nvrstore record CONFIG --json`, as an operator runs it; events come from its output

Both give the same: a status, events with the moment at which they were heard (monotonic seconds), an end with its duration.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from nvrstore.clock import SYSTEM_CLOCK, Clock
from nvrstore.config import Config, TargetConfig
from nvrstore.control import call
from nvrstore.drills.places import Place
from nvrstore.errors import NvrstoreError
from nvrstore.events import Event
from nvrstore.ingest.taps import Tap
from nvrstore.model import Media, Sample, TrackConfig
from nvrstore.recorder.bus import Mailbox
from nvrstore.recorder.core import RecorderCore
from nvrstore.recorder.wiring import make_target
from nvrstore.targets.faulty import FaultyTarget

END_S: Final = 20.0  # a recorder that does not end within this is killed, and the drill has failed


@dataclass(frozen=True, slots=True)
class Heard:
    """One event of the recorder, and when it was heard."""

    t_s: float
    event: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.event.get("event", ""))


class SteppingClock:
    """The machine's clocks, with a wall clock that can be stepped."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock, self._offset_ns = clock, 0

    def monotonic_s(self) -> float:
        return self._clock.monotonic_s()

    def utc_ns(self) -> int:
        return self._clock.utc_ns() + self._offset_ns

    def step(self, seconds: float) -> None:
        """As NTP or a person does."""
        self._offset_ns += round(seconds * 1e9)


class Intervals(Tap):
    """How long the recorder went without a new frame of one stream. Called in ingest's threads; keeps no samples."""

    def __init__(self) -> None:
        super().__init__()
        self.longest_s, self._last_s = 0.0, 0.0

    def offer(self, sample: Sample, config: TrackConfig, utc_ns: int) -> None:
        if sample.media is not Media.VIDEO:
            return
        now_s = SYSTEM_CLOCK.monotonic_s()
        if self._last_s:
            self.longest_s = max(self.longest_s, now_s - self._last_s)
        self._last_s = now_s

    def restart(self) -> float:
        """The longest so far; measuring begins anew."""
        longest_s, self.longest_s = self.longest_s, 0.0
        return longest_s


class Recording(Protocol):
    """What the runner needs of either."""

    events: list[Heard]

    def status(self) -> Mapping[str, Any] | None:
        """None while it does not answer."""

    def intervals(self) -> dict[str, float]:
        """Longest time without a frame since it was last asked, in seconds by stream; empty where it cannot be known."""

    def stop(self) -> float:
        """End it in order; how long that took."""

    def worker_pids(self, place: Place, kind: str = "appender") -> list[int]:
        """Its worker processes of one target."""


class InProcess:
    """See the module."""

    def __init__(self, config: Config, places: Mapping[str, Place]) -> None:
        self.clock = SteppingClock()
        self.events: list[Heard] = []
        self._places = places
        self.core = RecorderCore(config, clock=self.clock, make=self._make)
        self._box: Mailbox[Event] = Mailbox(4096, self._hear)
        self.core.bus.listen((), self._box)
        self.core.start()
        self._intervals = {stream: Intervals() for stream in self.core.stream_ids()}
        for stream, tap in self._intervals.items():
            self.core.supervisor(stream).add_tap(tap)

    def _make(self, target: TargetConfig, python: str | None, lock_fd: int | None) -> FaultyTarget:
        faulty = FaultyTarget(make_target(target, python, lock_fd))
        if target.name in self._places:
            self._places[target.name].faulty = faulty
        return faulty

    def _hear(self) -> None:
        now_s = SYSTEM_CLOCK.monotonic_s()
        self.events += [Heard(now_s, event.as_json()) for event in self._box.take()]

    def status(self) -> Mapping[str, Any] | None:
        return self.core.status()

    def intervals(self) -> dict[str, float]:
        return {stream: tap.restart() for stream, tap in self._intervals.items()}

    def stop(self) -> float:
        begin_s = SYSTEM_CLOCK.monotonic_s()
        self.core.stop()
        return SYSTEM_CLOCK.monotonic_s() - begin_s

    def worker_pids(self, place: Place, kind: str = "appender") -> list[int]:
        return workers_of(os.getpid(), place.path, kind)


@dataclass
class Child:
    """See the module."""

    file: Path
    state: Path
    events: list[Heard] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        command = [sys.executable, "-m", "nvrstore", "record", str(self.file), "--json"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._offset_s = SYSTEM_CLOCK.utc_ns() / 1e9 - SYSTEM_CLOCK.monotonic_s()
        self._threads = [threading.Thread(target=self._read, daemon=True), threading.Thread(target=self._read_words, daemon=True)]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            try:
                event = json.loads(line)
            except ValueError:
                self.words.append(line)
                continue
            if event.get("event") != "status":
                self.events.append(Heard(event["utc_ns"] / 1e9 - self._offset_s, event))

    def _read_words(self) -> None:
        self.words.extend(self.process.stderr or ())

    def status(self) -> Mapping[str, Any] | None:
        try:
            status: Mapping[str, Any] = call(self.state / "control.sock", "status", timeout_s=2.0)
        except (NvrstoreError, OSError):
            return None
        return status

    def intervals(self) -> dict[str, float]:
        return {}

    def stop(self) -> float:
        return self.end(signal.SIGTERM)

    def kill(self) -> float:
        """SIGKILL, to its workers too: as when the machine dies."""
        for pid in workers_of(self.process.pid, None, ""):
            kill_process(pid)
        return self.end(signal.SIGKILL)

    def end(self, number: int) -> float:
        """Send a signal; how long its end took."""
        begin_s = SYSTEM_CLOCK.monotonic_s()
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        took_s = SYSTEM_CLOCK.monotonic_s() - begin_s
        for thread in self._threads:
            thread.join(2.0)  # workers that are stuck hold no end of its pipes: this is a bound, not a wait
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        return took_s

    def worker_pids(self, place: Place, kind: str = "appender") -> list[int]:
        return workers_of(self.process.pid, place.path, kind)


def workers_of(parent: int, root: Path | None, kind: str) -> list[int]:
    """Worker processes of a recorder; of one target and kind where they are given."""
    found = []
    for task in Path(f"/proc/{parent}/task").iterdir():
        try:
            children = (task / "children").read_text().split()
        except OSError:
            continue
        for pid in children:
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if (
                any(word.endswith("worker/main.py") for word in words)
                and (root is None or str(root) in words)
                and (not kind or kind in words)
            ):
                found.append(int(pid))
    return found


def kill_process(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it ended by itself
