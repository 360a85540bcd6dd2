"""Where a drill can break anything: simulated cameras, targets of its own, a recorder, all below one folder.

    farm --RTSP--> recorder (in this process, or a child) --> places a, b, c (places.py)
                        `--> Stage: what a scenario sees and steers; a thread notes the recorder's state all along

The farm stops first, the recorder drains, and only then is anything looked up: so every frame that was sent counts.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final, TypeVar

from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.config import Config
from nvrstore.drills.places import Place, made
from nvrstore.drills.recording import Child, Heard, InProcess, Recording
from nvrstore.drills.report import Moment, Sample
from nvrstore.drills.witness import Witness
from nvrstore.errors import NvrstoreError
from nvrstore.farm import Farm, SentFrames

T = TypeVar("T")

JOURNAL: Final = "main"
WAIT_S: Final = 40.0
POLL_S: Final = 0.02
QUIET_S: Final = 0.5  # no new frame for so long: nothing is on its way from the sockets any more


class DrillError(NvrstoreError):
    """A drill did not come to its end: what it waited for did not happen."""


@dataclass
class Sandbox:
    """Folder, cameras, targets, configuration."""

    folder: Path
    farm: Farm
    places: Mapping[str, Place]
    journal: Mapping[str, Any]

    def tables(self) -> dict[str, Any]:
        """The configuration as tables."""
        journal = {"name": JOURNAL, "targets": list(self.places), "copies": 2, "hold_down_s": 0.5, "volume_bytes": 4 << 20, **self.journal}
        return {
            "format": 1,
            "recorder": {"name": "drill", "state": str(self.folder / "state")},
            # ssd: a target behind FUSE would otherwise be given the patience that network storage needs
            "target": [{"name": name, "path": str(place.path), "medium": "ssd"} for name, place in self.places.items()],
            "journal": [journal],
            "stream": [{"id": f"cam{i}", "url": self.farm.url(i)} for i in range(self.farm.config.streams)],
        }

    def config(self) -> Config:
        return Config.parse(self.tables())

    def write(self) -> Path:
        """The configuration as a file, for a recorder in a process of its own."""
        tables = self.tables()
        lines = ["format = 1", "[recorder]", *(f"{key} = {json.dumps(value)}" for key, value in tables["recorder"].items())]
        for kind in ("target", "journal", "stream"):
            for table in tables[kind]:
                lines += [f"[[{kind}]]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
        file = self.folder / "nvr.toml"
        file.write_text("\n".join(lines) + "\n")
        return file


@contextmanager
def sandbox(
    folder: Path, farm: Farm, kinds: Mapping[str, Sequence[str]], journal: Mapping[str, Any], *, filesystem: str | None = None
) -> Iterator[Sandbox]:
    """Targets by name, each of the first kind that this machine has, on `filesystem`. Raises FaultError where one has none."""
    with ExitStack() as stack:
        places = {name: stack.enter_context(made(name, folder, wanted, filesystem=filesystem)) for name, wanted in kinds.items()}
        yield Sandbox(folder, farm, places, journal)


@dataclass
class Stage:
    """What a scenario sees and steers, and what is noted while it runs."""

    box: Sandbox
    random: Random
    child: bool
    draw: int = 0  # which of several ways a scenario is done: each in its turn
    innocent: Collection[str] = ()  # targets that nothing is done to
    recording: Recording = field(init=False)
    moments: list[Moment] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    sent: list[SentFrames] | None = None
    stop_s: float | None = None
    how: str = ""  # how the fault was made, where the place does not say it
    fault_s: float | None = None  # the first fault
    interval_before: dict[str, float] = field(default_factory=dict)
    may_lose: set[str] = field(default_factory=set)  # what a scenario breaks that it drew, beside what it always breaks
    witness: Witness = field(init=False)
    _past: list[Heard] = field(default_factory=list)
    begin_s: float = field(default_factory=SYSTEM_CLOCK.monotonic_s)
    _running: bool = False
    _ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._frames_before = 0
        self.start()
        self.witness = Witness({name: self.places[name].path.parent for name in self.innocent})
        self._thread = threading.Thread(target=self._watch, name="nvrstore-drill-watch", daemon=True)
        self._thread.start()

    @property
    def places(self) -> Mapping[str, Place]:
        return self.box.places

    # --- the recorder

    def start(self) -> None:
        """A recorder, the first or the next."""
        if self.child:
            self.recording = Child(self.box.write(), self.box.folder / "state")
        else:
            self.recording = InProcess(self.box.config(), self.places)
        self._running = True

    def stop(self) -> None:
        """End the recorder in order."""
        if self._running:
            self._running = False
            self.stop_s = self.recording.stop()
            self._retire()

    def kill(self) -> None:
        """The recorder dies with its workers. Only where it has a process of its own."""
        self._running = False
        if not isinstance(self.recording, Child):
            raise TypeError("a recorder in this process cannot be killed")
        self.recording.kill()
        self._retire()

    def _retire(self) -> None:
        self._past += self.recording.events
        self.recording.events = []

    def close(self) -> None:
        """End what still runs, whatever happened."""
        self._ended.set()
        self._thread.join()
        self.witness.close()
        if self._running:
            self._running = False
            self.recording.stop()

    # --- what a scenario says

    def fault(self, text: str, target: str = "") -> float:
        """It is broken from now on; the moment."""
        now_s = SYSTEM_CLOCK.monotonic_s()
        if self.fault_s is None:
            self.fault_s = now_s
            self.interval_before = self.recording.intervals()
        self.note("fault", text, target)
        return now_s

    def drawn(self, ways: Sequence[T]) -> T:
        """The way whose turn it is: over repeats, and over file systems, each of them comes."""
        return ways[self.draw % len(ways)]

    def healed(self, text: str, target: str = "") -> None:
        self.note("healed", text, target)

    def note(self, kind: str, text: str, target: str = "", t_s: float | None = None) -> None:
        """Something for the report's timeline."""
        self.moments.append(Moment((SYSTEM_CLOCK.monotonic_s() if t_s is None else t_s) - self.begin_s, kind, text, target))

    # --- time

    def sleep(self, seconds: float) -> None:
        """Let the recorder go on."""
        self._ended.wait(seconds)

    def wait(self, holds: Callable[[], object], what: str, timeout_s: float = WAIT_S) -> None:
        """Until something holds that can only be asked for. Raises DrillError."""
        deadline_s = SYSTEM_CLOCK.monotonic_s() + timeout_s
        while not holds():
            if SYSTEM_CLOCK.monotonic_s() > deadline_s:
                raise DrillError(f"waited {timeout_s:.0f} s in vain: {what}; the recorder says {self.states()}")
            self._ended.wait(POLL_S)

    # --- what the recorder says

    def heard(self) -> list[Heard]:
        """All events so far, of all recorders of this run."""
        return [*self._past, *self.recording.events]

    def happened(self, name: str, target: str | None = None, after_s: float = 0.0) -> Heard | None:
        """The first event of that name (and target) since a moment."""
        for heard in self.heard():
            if heard.name == name and heard.t_s >= after_s and (target is None or heard.event.get("target") == target):
                return heard
        return None

    def wait_event(self, name: str, target: str | None = None, after_s: float = 0.0, timeout_s: float = WAIT_S) -> Heard:
        """Raises DrillError when it does not happen in time."""
        self.wait(lambda: self.happened(name, target, after_s), f"{name} of {target or 'any target'}", timeout_s)
        found = self.happened(name, target, after_s)
        if found is None:
            raise DrillError(f"{name}: it was there a moment ago")
        return found

    def status(self) -> Mapping[str, Any] | None:
        return self.recording.status() if self._running else None

    def states(self) -> dict[str, str]:
        """Targets and their states; empty while nobody answers."""
        status = self.status()
        return {} if status is None else {target["target"]: target["state"] for target in status["journals"][0]["targets"]}

    def durable(self) -> bool:
        """Whether every stream has something durable."""
        status = self.status()
        return status is not None and bool(status["streams"]) and all(stream["durable_ns"] for stream in status["streams"])

    def synced(self) -> bool:
        """Whether as many targets as there shall be copies lack nothing, the preferred ones first."""
        states = self.states()
        return all(states.get(name) == "synced" for name in list(self.places)[:2])

    # --- the end

    def stop_farm(self) -> None:
        """The cameras stop; everything they sent is taken in."""
        if self.sent is None:
            self.sent = self.box.farm.stop_sending()
            self.note("note", "the cameras stop")
            quiet_s, frames = SYSTEM_CLOCK.monotonic_s(), -1

            def quiet() -> bool:
                nonlocal quiet_s, frames
                status = self.status()
                now = -1 if status is None else sum(stream["samples"] for stream in status["streams"])
                if now != frames:
                    frames, quiet_s = now, SYSTEM_CLOCK.monotonic_s()
                return SYSTEM_CLOCK.monotonic_s() - quiet_s > QUIET_S

            self.wait(quiet, "frames still arrive")

    # --- beside it all

    def _watch(self) -> None:
        pause_s = 0.05 if self.box.farm.config.streams <= 16 else 0.1  # asking costs, too
        last = 0
        while not self._ended.wait(pause_s):
            now_s = SYSTEM_CLOCK.monotonic_s()
            try:
                status = self.status()
            except (NvrstoreError, KeyError, RuntimeError):
                status = None  # it starts or ends in this moment
            if status is None:
                self.samples.append(Sample(now_s - self.begin_s, self._frames_before + last, 0, None, ()))
                continue
            frames = sum(stream["samples"] for stream in status["streams"])
            if frames < last:
                self._frames_before += last  # another recorder counts from nought
            last = frames
            ages = [stream["durable_age_s"] for stream in status["streams"]]
            age_s = None if not ages or None in ages else max(ages)
            journal = status["journals"][0]
            targets = tuple((target["target"], target["state"]) for target in journal["targets"])
            self.samples.append(Sample(now_s - self.begin_s, self._frames_before + frames, journal["commits"], age_s, targets))
