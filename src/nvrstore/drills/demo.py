"""The demonstration: simulated cameras, two targets, the first of them fails and returns, every frame is accounted for.

    farm --RTSP--> recorder --> a (fails with EIO in the middle, comes back)
                           `--> b
    at the end: the farm stops first, the recorder drains, copies are compared, every frame is looked up, a clip is exported

Everything is real but the cameras and the fault: sockets, workers, files, the recorder as any host embeds it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import anyio
import av

from nvrstore import events
from nvrstore.archive import Archive
from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.config import Config
from nvrstore.drills.account import differences, take_account
from nvrstore.farm import Farm, FarmConfig
from nvrstore.farm.burn import BURN_STREAMS_MAX
from nvrstore.farm.ranges import FrameRange, count, subtract
from nvrstore.recorder.facade import Recorder
from nvrstore.recorder.wiring import make_target
from nvrstore.targets.directory import DirectoryTarget
from nvrstore.targets.faulty import FaultyTarget
from nvrstore.targets.identity import init_target
from nvrstore.targets.steps import run_steps

JOURNAL: Final = "main"
FAIL_AT, RETURN_AT = 0.35, 0.6  # shares of the recording time
SYNC_S: Final = 20.0  # the returned target has everything again within this
DRAIN_S: Final = 5.0
CLIP_S: Final = 5.0

Say = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Failover:
    """A loss as it was seen. `ttd_ms`: from the fault to its declaration; `ttr_ms`: from there to the next commit."""

    target: str
    cause: str
    ttd_ms: float
    ttr_ms: float | None


@dataclass(slots=True)
class DemoReport:
    """What came of it; the JSON object of `nvrstore demo --json`."""

    streams: int
    seconds: float
    frames_sent: int = 0
    frames_durable: int = 0
    frames_lost: int = 0
    frames_duplicated: int = 0
    frames_damaged: int = 0
    failovers: list[Failover] = field(default_factory=list)
    targets_equal: bool = False
    volumes: int = 0
    bytes_per_copy: int = 0
    problems: list[str] = field(default_factory=list)
    clip: dict[str, Any] = field(default_factory=dict)
    directory: str = ""

    @property
    def passed(self) -> bool:
        """Nothing lost, nothing twice, copies equal, the clip plays."""
        return not (self.frames_lost or self.frames_duplicated or self.frames_damaged or self.problems) and self.targets_equal


class Demo:
    """One run in `folder`, which must be empty. `say(event, figures)` is told the story while it happens."""

    def __init__(self, folder: Path, *, streams: int, seconds: float, say: Say = lambda *_: None) -> None:
        self._folder, self._streams, self._seconds, self._say = folder, streams, seconds, say
        self._faulty: dict[str, FaultyTarget] = {}
        self._broken_ns = 0
        self._lost: events.TargetLost | None = None
        self.report = DemoReport(streams, seconds, directory=str(folder))

    async def run(self) -> DemoReport:
        """Record, break, mend, count."""
        await anyio.to_thread.run_sync(self._prepare)
        async with AsyncExitStack() as stack:
            farm = await anyio.to_thread.run_sync(self._start_farm)
            stack.callback(farm.close)
            config = self._config(farm)
            await self._record(config, farm)
            sent = [farm.sent(i) for i in range(self._streams)]
        self._say("counting", {"frames_sent": sum(s.count for s in sent)})
        await anyio.to_thread.run_sync(self._count, sent)
        await self._export(config)
        return self.report

    # --- set up

    def _prepare(self) -> None:
        for name in ("a", "b"):
            target = DirectoryTarget(name, self._folder / name)
            try:
                run_steps(init_target(name), {name: target}, timeout_s=5.0)
            finally:
                target.close(1.0)

    def _start_farm(self) -> Farm:
        # Name and clock in the picture, where the cameras are few: what is exported can be looked at.
        burn = self._streams <= BURN_STREAMS_MAX
        width, height = (640, 360) if burn else (1280, 720)
        return Farm(FarmConfig(streams=self._streams, width=width, height=height, bitrate_bps=2_000_000, gop=25, burn=burn)).__enter__()

    def _config(self, farm: Farm) -> Config:
        return Config.parse(
            {
                "format": 1,
                "recorder": {"name": "demo", "state": str(self._folder / "state")},
                "target": [{"name": name, "path": str(self._folder / name)} for name in ("a", "b")],
                # The hold-down is short so that the return is seen; half a minute is usual.
                "journal": [{"name": JOURNAL, "targets": ["a", "b"], "copies": 2, "hold_down_s": 1, "volume_bytes": "64MiB"}],
                "stream": [{"id": f"cam{i}", "name": f"Camera {i}", "url": farm.url(i)} for i in range(self._streams)],
            }
        )

    # --- the story

    async def _record(self, config: Config, farm: Farm) -> None:
        def make(target: Any, python: str | None, lock_fd: int | None) -> FaultyTarget:
            faulty = self._faulty[target.name] = FaultyTarget(make_target(target, python, lock_fd))
            return faulty

        start_s = SYSTEM_CLOCK.monotonic_s()
        async with Recorder(config, make=make) as recorder, recorder.events() as happened, anyio.create_task_group() as tasks:
            synced = anyio.Event()
            tasks.start_soon(self._listen, happened, synced)
            tasks.start_soon(self._tell, recorder)
            await self._until(start_s + FAIL_AT * self._seconds)
            self._broken_ns = SYSTEM_CLOCK.utc_ns()
            fault = self._faulty["a"].fail(errno.EIO)
            self._say("broken", {"target": "a", "error": "EIO on every call"})
            await self._until(start_s + RETURN_AT * self._seconds)
            fault.remove()
            self._say("mended", {"target": "a"})
            await self._until(start_s + self._seconds)
            await anyio.to_thread.run_sync(farm.stop_sending)
            self._say("stopped", {})
            with anyio.move_on_after(SYNC_S):
                await synced.wait()
            await self._drained(recorder)
            tasks.cancel_scope.cancel()

    async def _until(self, moment_s: float) -> None:
        await anyio.sleep(max(0.0, moment_s - SYSTEM_CLOCK.monotonic_s()))

    async def _listen(self, happened: Any, synced: anyio.Event) -> None:
        async for event in happened:
            match event:
                case events.TargetLost():
                    self._lost = event
                    self._say("lost", {"target": event.target, "reason": event.reason, "ttd_ms": self._ttd_ms(event)})
                case events.FailedOver() if self._lost is not None:
                    ttr_ms = round(event.ttr_s * 1e3, 1)
                    self.report.failovers.append(Failover(event.target, event.reason, self._ttd_ms(self._lost), ttr_ms))
                    self._say("failed over", {"target": event.target, "ttr_ms": ttr_ms})
                case events.TargetJoined() if self._lost is not None:
                    self._say("joined", {"target": event.target})
                case events.TargetSynced() if self._lost is not None and event.target == self._lost.target:
                    self._say("synced", {"target": event.target})
                    synced.set()
                case _:
                    pass

    def _ttd_ms(self, lost: events.TargetLost) -> float:
        return round((lost.utc_ns - self._broken_ns) / 1e6, 1)

    async def _tell(self, recorder: Recorder) -> None:
        while True:
            await anyio.sleep(1.0)
            status = recorder.statistics()
            recording = [stream for stream in status["streams"] if stream["state"] == "recording"]
            ages = [stream["durable_age_s"] for stream in status["streams"] if stream["durable_age_s"] is not None]
            self._say(
                "recording",
                {
                    "recording": len(recording),
                    "frames": sum(stream["samples"] for stream in status["streams"]),
                    "stored_bytes": sum(stream["stored_bytes"] for stream in status["streams"]),
                    "oldest_durable_s": max(ages, default=None),
                    "targets": {t["target"]: t["state"] for t in status["journals"][0]["targets"]},
                    "epoch": status["journals"][0]["epoch"],
                },
            )

    async def _drained(self, recorder: Recorder) -> None:
        """Wait until no frame is on its way from the sockets: the counters stand still."""
        with anyio.move_on_after(DRAIN_S):
            before = -1
            while True:
                frames = sum(stream.status().samples for stream in recorder.streams())
                if frames == before:
                    return
                before = frames
                await anyio.sleep(0.5)

    # --- the proof

    def _count(self, sent: list[Any]) -> None:
        report = self.report
        accounts = {name: take_account(self._folder / name, JOURNAL) for name in ("a", "b")}
        account = accounts["a"]
        for name, one in accounts.items():
            report.problems += [f"{name}: {damage}" for damage in one.damage]
        for i, frames in enumerate(sent):
            found = account.reports.get(f"cam{i}")
            there: tuple[FrameRange, ...] = found.ranges if found is not None else ()
            report.frames_sent += frames.count
            report.frames_durable += count(there)
            report.frames_lost += count(subtract(frames.ranges, there))
            if found is not None:
                report.frames_duplicated += len(found.duplicated)
                report.frames_damaged += len(found.damaged)
        differing = differences(self._folder / "a", self._folder / "b", JOURNAL)
        report.targets_equal = not differing
        report.volumes, report.bytes_per_copy = account.volumes, account.bytes
        if not report.failovers:
            report.problems.append("the failing target was never declared lost")

    async def _export(self, config: Config) -> None:
        """A clip across the failure, decoded to the last frame."""
        path = self._folder / "clip.mp4"
        start_ns = self._broken_ns - int(CLIP_S / 2 * 1e9)
        try:
            async with Archive(config) as archive:
                await archive.export(["cam0"], start_ns, start_ns + int(CLIP_S * 1e9), path)
            frames = await anyio.to_thread.run_sync(decode, path)
        except (av.FFmpegError, OSError) as error:
            self.report.problems.append(f"the clip cannot be decoded: {error}")
            return
        self.report.clip = {"path": str(path), "frames_decoded": frames, "bytes": path.stat().st_size}
        if frames < CLIP_S * 20:
            self.report.problems.append(f"the clip has only {frames} frames")


def decode(path: Path) -> int:
    """How many frames of the file's video a decoder gives."""
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))
