"""The recorder of a step, in a process of its own: `python -m nvrstore.bench.child FILE`, FILE being its configuration as JSON.

    {"do": "state"}  -> {"recording": n}
    {"do": "begin"}  -> latencies are counted from here
    {"do": "look"}   -> commits, their p50 and p99, stored bytes, threads by kernel id, targets that left the set
    {"do": "stop"}   -> takes in what lies in the sockets, commits, closes; ends

The end of standard input ends it too.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any, Final

from nvrstore.config import Config
from nvrstore.events import Event, TargetLost
from nvrstore.recorder.bus import Mailbox
from nvrstore.recorder.core import RecorderCore
from nvrstore.replicate.measures import Latencies

LATENCIES_MAX: Final = 200_000  # every commit of the measured time, not the last 256 that the detector looks at
QUIET_S: Final = 1.0
DRAIN_TRIES: Final = 30


class Recording:
    """See the module."""

    def __init__(self, config: Config) -> None:
        self._lost: list[str] = []
        self.core = RecorderCore(config)
        self._box: Mailbox[Event] = Mailbox(1024, self._hear)
        self.core.bus.listen((TargetLost,), self._box)
        self.core.start()
        self._engine = self.core.engines["main"]
        self._latencies = self._engine.commit_latencies

    def _hear(self) -> None:
        self._lost += [event.target for event in self._box.take() if isinstance(event, TargetLost)]

    def _samples(self) -> int:
        return sum(self.core.supervisor(stream).status().samples for stream in self.core.stream_ids())

    def state(self) -> dict[str, Any]:
        states = [str(self.core.supervisor(stream).status().state) for stream in self.core.stream_ids()]
        return {"recording": states.count("recording")}

    def begin(self) -> dict[str, Any]:
        self._latencies = self._engine.commit_latencies = Latencies(LATENCIES_MAX)
        return self.look()

    def look(self) -> dict[str, Any]:
        return {
            "commits": self._engine.commits,
            "commit_ms_p50": self._latencies.quantile(0.5) * 1e3,
            "commit_ms_p99": self._latencies.quantile(0.99) * 1e3,
            "stored_bytes": sum(self.core.durability.stored_bytes(stream) for stream in self.core.stream_ids()),
            "threads": {str(thread.native_id): thread.name for thread in threading.enumerate()},
            "targets_lost": sorted(set(self._lost)),
        }

    def stop(self) -> dict[str, Any]:
        before, pause = -1, threading.Event()
        for _ in range(DRAIN_TRIES):  # what is in the sockets when the cameras have stopped
            if (now := self._samples()) == before:
                break
            before = now
            pause.wait(QUIET_S)
        return {"in_order": self.core.stop(), "targets_lost": sorted(set(self._lost))}


def main(file: Path) -> None:
    """Record until told otherwise."""
    recording = Recording(Config.parse(json.loads(file.read_text())))
    ended = False
    try:
        for line in sys.stdin:
            do = json.loads(line)["do"]
            ended = do == "stop"
            answer = {"state": recording.state, "begin": recording.begin, "look": recording.look, "stop": recording.stop}[do]()
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
            if ended:
                break
    finally:
        if not ended:
            recording.core.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
