"""A recorder over simulated cameras and two directories, in this process or in one that can be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

import nvrstore
from nvrstore.drills.account import Account, differences, take_account
from nvrstore.farm import Farm, FarmConfig, SentFrames
from nvrstore.farm.ranges import FrameRange, subtract
from nvrstore.targets.directory import DirectoryTarget
from nvrstore.targets.identity import init_target
from nvrstore.targets.steps import run_steps

JOURNAL = "main"
SMALL = FarmConfig(streams=2, width=320, height=240, bitrate_bps=200_000, gop=25)


@contextmanager
def small_farm(streams: int = 2, **changes: Any) -> Iterator[Farm]:
    """Cheap cameras."""
    values = {"width": 320, "height": 240, "bitrate_bps": 200_000, "gop": 25, **changes}
    with Farm(FarmConfig(streams=streams, **values)) as farm:
        yield farm


@dataclass
class Site:
    """A configuration on disk: targets initialised, a state directory, cameras of a farm."""

    folder: Path
    farm: Farm
    targets: Sequence[str] = ("a", "b")
    journal: dict[str, Any] = field(default_factory=dict)
    streams: Sequence[int] | None = None
    recorder: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.targets:
            init(self.folder / name)
        self.file.write_text("")
        self.write()

    @property
    def file(self) -> Path:
        return self.folder / "nvr.toml"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def tables(self) -> dict[str, Any]:
        """The configuration as tables."""
        streams = range(self.farm.config.streams) if self.streams is None else self.streams
        journal = {
            "name": JOURNAL,
            "targets": list(self.targets),
            "copies": 2,
            "hold_down_s": 0.2,
            "volume_bytes": 4 << 20,
            **self.journal,
        }
        return {
            "format": 1,
            "recorder": {"name": "nvr-test", "state": str(self.state), **self.recorder},
            "target": [{"name": name, "path": str(self.folder / name), "medium": "ssd"} for name in self.targets],
            "journal": [journal],
            "stream": [{"id": f"cam{i}", "url": self.farm.url(i)} for i in streams],
        }

    def config(self) -> nvrstore.Config:
        return nvrstore.Config.parse(self.tables())

    def write(self) -> None:
        """The configuration as a file, for the command line."""
        tables = self.tables()
        lines = ["format = 1"]
        for key in ("recorder",):
            lines += [f"[{key}]", *(f"{k} = {toml(v)}" for k, v in tables[key].items())]
        for key in ("target", "journal", "stream"):
            for table in tables[key]:
                lines += [f"[[{key}]]", *(f"{k} = {toml(v)}" for k, v in table.items())]
        self.file.write_text("\n".join(lines) + "\n")

    def account(self, target: str = "a") -> Account:
        return take_account(self.folder / target, JOURNAL)

    def differences(self) -> list[str]:
        return differences(self.folder / self.targets[0], self.folder / self.targets[1], JOURNAL)

    def lost(self, sent: Sequence[SentFrames], account: Account | None = None) -> dict[str, tuple[FrameRange, ...]]:
        """Frames that were sent and are not stored, by stream; empty: nothing is missing."""
        account = account or self.account()
        found = {}
        for i, frames in enumerate(sent):
            report = account.reports.get(f"cam{i}")
            missing = subtract(frames.ranges, report.ranges if report is not None else ())
            if missing:
                found[f"cam{i}"] = missing
        return found


async def until(holds: Callable[[], object], timeout_s: float = 30.0) -> None:
    """Wait until something holds that can only be asked for."""
    with anyio.fail_after(timeout_s):
        while not holds():  # noqa: ASYNC110 - there is nothing to wait on: a snapshot is asked for again
            await anyio.sleep(0.05)


def toml(value: Any) -> str:
    """A value as TOML writes it; tables in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value)


def init(path: Path) -> None:
    """Make a directory a target."""
    target = DirectoryTarget(path.name, path)
    try:
        run_steps(init_target(path.name), {path.name: target}, timeout_s=10.0)
    finally:
        target.close(2.0)


class Process:
    """`nvrstore record --json` in a process of its own; events are collected as they come."""

    def __init__(self, site: Site, *arguments: str) -> None:
        command = [*self.command(site), *arguments]
        self.events: list[dict[str, Any]] = []
        self._condition = threading.Condition()
        self._errors: list[str] = []
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._threads = [threading.Thread(target=self._read), threading.Thread(target=self._read_errors)]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def command(site: Site) -> list[str]:
        """What is run."""
        return [sys.executable, "-m", "nvrstore", "record", str(site.file), "--json"]

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def errors(self) -> str:
        return "".join(self._errors)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._condition:
                try:
                    self.events.append(json.loads(line))
                except ValueError:
                    self._errors.append(line)
                self._condition.notify_all()
        with self._condition:
            self._condition.notify_all()

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._condition:
                self._errors.append(line)
                self._condition.notify_all()

    def wait_for(self, wanted: Any, timeout_s: float = 30.0) -> dict[str, Any]:
        """The first event for which `wanted(event)` holds, past or future."""
        seen = 0
        with self._condition:
            while True:
                for event in self.events[seen:]:
                    if wanted(event):
                        return event
                seen = len(self.events)
                if not self._condition.wait(timeout_s) or (self.process.poll() is not None and seen == len(self.events)):
                    raise AssertionError(f"it did not happen; last: {self.events[-3:]}; {self.errors}")

    def wait_for_error(self, sentence: str, timeout_s: float = 30.0) -> None:
        """Until it says `sentence` on standard error."""
        with self._condition:
            if not self._condition.wait_for(lambda: sentence in self.errors, timeout_s):
                raise AssertionError(f"it did not say {sentence!r}; {self.errors}")

    def wait_recording(self, streams: int) -> dict[str, Any]:
        """Until so many streams have something durable."""
        return self.wait_for(lambda e: e.get("event") == "status" and sum(s["durable_ns"] is not None for s in e["streams"]) >= streams)

    def workers(self) -> list[int]:
        """Its child processes."""
        found = []
        for task in os.listdir(f"/proc/{self.pid}/task"):
            try:
                with open(f"/proc/{self.pid}/task/{task}/children") as file:
                    found += [int(pid) for pid in file.read().split()]
            except (FileNotFoundError, ProcessLookupError):
                pass  # the thread has ended meanwhile
        return found

    def end(self, number: int = signal.SIGTERM, timeout_s: float = 20.0) -> int:
        """Send a signal and wait for the end."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            status = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            for thread in self._threads:
                thread.join(timeout_s)
            for pipe in (self.process.stdout, self.process.stderr):
                if pipe is not None:
                    pipe.close()
        return status
