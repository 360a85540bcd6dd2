"""Drills on a running recorder: one target of its configuration is broken, and everything else is watched.

    control socket --status, many times a second--> states, commits, ages --> TTD, TTR of losses.py, as fine as it is asked (POLL_S)
    catalog --gaps with the cause storage or recorder, since the drill began--> what was lost

Real cameras do not number their frames, so here the ledger is the judge, where in a sandbox every frame is looked up. Only faults
that take themselves back, and that touch nothing but the chosen target, are offered; a file system is frozen or filled only where
the target is a mount point of its own, and neither the root nor the disk of the recorder's state.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, Final

from nvrstore.catalog.query import CatalogReader
from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.config import Config, JournalConfig
from nvrstore.control import call
from nvrstore.drills import faults
from nvrstore.drills.recording import kill_process, workers_of
from nvrstore.drills.report import Moment, Run, Sample, StreamResult
from nvrstore.errors import NvrstoreError, UsageError
from nvrstore.model import Cause

POLL_S: Final = 0.03
LOSE_S: Final = 30.0  # a fault that was not noticed by then never will be
BACK_S: Final = 900.0  # hold-down and resync of what was missed
HOLD_S: Final = 3.0
OURS: Final = frozenset({Cause.STORAGE, Cause.RECORDER})

#: Scenario -> what is done to the target.
LIVE: Final[Mapping[str, str]] = {
    "drain": "it is taken out in order, as for maintenance, and brought back",
    "hang": "its file system is frozen: no write comes back (root; a mount point of its own)",
    "fill": "no byte is left on it (a mount point of its own)",
    "unmount": "another file system is mounted over it (root)",
    "kill-worker": "its appender is killed",
}
_LOSES: Final = frozenset({"hang", "unmount", "drain"})


class LiveDrill:
    """One scenario on one target of a running recorder."""

    def __init__(self, config: Config, target: str, name: str, *, seed: str) -> None:
        """Raises UsageError for what cannot be done to this target."""
        if name not in LIVE:
            raise UsageError(f"{name!r} cannot be done to a running recorder", hint=f"one of {', '.join(LIVE)}; anything else: --sandbox")
        try:
            place = config.target(target)
        except KeyError:
            raise UsageError(f"there is no target {target!r}", hint="targets: " + ", ".join(t.name for t in config.targets)) from None
        if place.path is None:
            raise UsageError(f"target {target!r} is not a directory", hint="only directories can be drilled")
        self._config, self._target, self._path, self._name = config, target, place.path, name
        self._journal = next((journal for journal in config.journals if target in journal.targets), None)
        if self._journal is None:
            raise UsageError(f"no journal uses target {target!r}")
        _spare_others(config, self._journal, self._path, name)
        self._random = Random(seed)
        self._run = Run(name, seed, how=f"on the running recorder: {LIVE[name]}")
        self._socket = config.recorder.state / "control.sock"
        self._begin_s, self._begin_ns = SYSTEM_CLOCK.monotonic_s(), SYSTEM_CLOCK.utc_ns()
        self._pause = threading.Event()
        self._commits = -1

    def run(self) -> Run:
        """Break, watch, heal, watch until the target is in step again. Raises NotRunningError where no recorder answers."""
        run = self._run
        before = self._status()
        if self._state(before) != "synced":
            raise UsageError(
                f"target {self._target!r} is {self._state(before)}, not in step: no moment for a drill", hint="`nvrstore status`"
            )
        others = [name for name, state in self._states(before).items() if name != self._target and state == "synced"]
        if not others:
            raise UsageError("no other target is in step: footage would be lost", hint="`nvrstore status`")
        self._watch_for(self._random.uniform(0.5, 2.0))
        fault_s = self._note("fault", LIVE[self._name])
        try:
            with self._broken():
                if self._name in _LOSES:
                    run.ttd_s = self._until(lambda status: self._state(status) in ("away", "drained"), LOSE_S, "noticed") - fault_s
                    lost_s = self._note("lost", f"{self._target} declared lost")
                    commits = self._commits
                    run.ttr_s = self._until(lambda _: self._commits > commits, LOSE_S, "followed by a commit") - lost_s
                    run.recovery_s = self._note("recovered", "commits again") - fault_s
                self._watch_for(HOLD_S)
            self._note("healed", "the fault is over")
            self._until(lambda status: self._state(status) == "synced", BACK_S, "over: the target in step again")
            self._note("synced", f"{self._target} lacks nothing")
        except (NvrstoreError, OSError) as error:
            run.problems.append(str(error))
        self._count(before)
        return run

    # --- breaking

    @contextmanager
    def _broken(self) -> Iterator[None]:
        match self._name:
            case "hang":
                with faults.frozen(self._path):
                    yield
            case "fill":
                with faults.filled(self._path):
                    yield
            case "unmount":
                with faults.covered(self._path):
                    yield
            case "kill-worker":
                for pid in workers_of(_recorder_pid(self._socket), self._path, "appender"):
                    kill_process(pid)
                yield
            case _:
                call(self._socket, "drain", timeout_s=LOSE_S, target=self._target)
                try:
                    yield
                finally:
                    call(self._socket, "return", target=self._target)

    # --- watching

    def _status(self) -> dict[str, Any]:
        status: dict[str, Any] = call(self._socket, "status")
        journal = self._of(status)
        ages = [stream["durable_age_s"] for stream in status["streams"]]
        frames = sum(stream["samples"] for stream in status["streams"])
        age_s = None if not ages or None in ages else max(ages)
        targets = tuple((target["target"], target["state"]) for target in journal["targets"])
        self._run.samples.append(Sample(SYSTEM_CLOCK.monotonic_s() - self._begin_s, frames, journal["commits"], age_s, targets))
        self._commits = journal["commits"]
        return status

    def _of(self, status: Mapping[str, Any]) -> Mapping[str, Any]:
        name = self._journal.name if self._journal is not None else ""
        found: Mapping[str, Any] = next(journal for journal in status["journals"] if journal["journal"] == name)
        return found

    def _states(self, status: Mapping[str, Any]) -> dict[str, str]:
        return {target["target"]: target["state"] for target in self._of(status)["targets"]}

    def _state(self, status: Mapping[str, Any]) -> str:
        return self._states(status)[self._target]

    def _until(self, holds: Callable[[Mapping[str, Any]], bool], timeout_s: float, what: str) -> float:
        """The moment at which it was seen to hold."""
        deadline_s = SYSTEM_CLOCK.monotonic_s() + timeout_s
        while SYSTEM_CLOCK.monotonic_s() < deadline_s:
            if holds(self._status()):
                return SYSTEM_CLOCK.monotonic_s()
            self._pause.wait(POLL_S)
        raise NvrstoreError(f"after {timeout_s:.0f} s the fault was not {what}")

    def _watch_for(self, seconds: float) -> None:
        end_s = SYSTEM_CLOCK.monotonic_s() + seconds
        while SYSTEM_CLOCK.monotonic_s() < end_s:
            self._status()
            self._pause.wait(POLL_S)

    def _note(self, kind: str, text: str) -> float:
        now_s = SYSTEM_CLOCK.monotonic_s()
        self._run.moments.append(Moment(now_s - self._begin_s, kind, text, self._target))
        return now_s

    # --- judging

    def _count(self, before: Mapping[str, Any]) -> None:
        """Frames are those that the recorder accepted; what of them is not stored stands in the ledger."""
        run, first = self._run, {stream["stream"]: stream["samples"] for stream in before["streams"]}
        try:
            with CatalogReader(self._config.recorder.state / "catalog.sqlite") as reader:
                gaps = [gap for gap in reader.gaps(None, self._begin_ns) if gap.cause in OURS]
        except NvrstoreError as error:
            run.problems.append(f"the ledger cannot be read: {error}")
            return
        for stream in self._status()["streams"]:
            frames = max(0, stream["samples"] - first.get(stream["stream"], stream["samples"]))
            missing_s = sum(((gap.end_ns or SYSTEM_CLOCK.utc_ns()) - gap.start_ns) / 1e9 for gap in gaps if gap.stream == stream["stream"])
            lost = min(frames, round(missing_s * (stream["fps"] or 0)))
            run.streams.append(StreamResult(stream["stream"], frames, frames - lost, lost, 0, 0, 0, None, None))
        run.problems += lost_as_well(run.samples, self._target)
        run.problems += [f"{gap.stream}: a gap with the cause {gap.cause}: {gap.detail}" for gap in gaps]
        run.notes.append("live: frames are those that the recorder accepted; what is lost is what its ledger says")


def lost_as_well(samples: Sequence[Sample], target: str) -> list[str]:
    """Other targets that were in step at the beginning, and were seen to be lost, in words."""
    in_step = {name for name, state in samples[0].targets if state == "synced"} if samples else set()
    lost = {name for sample in samples for name, state in sample.targets if state == "away"} & in_step - {target}
    return [f"a false alarm, or another fault: nothing was done to {name}, and it was declared lost" for name in sorted(lost)]


def _spare_others(config: Config, journal: JournalConfig, path: Path, name: str) -> None:
    """Nothing but the chosen target may be hit."""
    if len(journal.targets) < 2:
        raise UsageError(f"journal {journal.name!r} has no other target", hint="a drill would cost footage")
    if name in ("hang", "fill"):
        device = os.stat(path).st_dev
        shared = {os.stat("/").st_dev, os.stat(config.recorder.state).st_dev}
        shared |= {os.stat(t.path).st_dev for t in config.targets if t.path is not None and t.path != path}
        if not faults.is_mounted(path) or device in shared:
            raise UsageError(
                f"{path} is no file system of its own: more than this target would be hit", hint="drain, unmount, or --sandbox"
            )


def _recorder_pid(path: Path) -> int:
    """The process behind a control socket, as the kernel knows it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect(str(path))
        return int(struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
