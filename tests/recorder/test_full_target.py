"""A target that is full when the recorder starts: room is made on it, and it joins by itself."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.recorder import JOURNAL, Site, small_farm

from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.config import TargetConfig
from nvrstore.farm import Farm
from nvrstore.limits import MIB
from nvrstore.recorder.core import REFUGE, RecorderCore
from nvrstore.recorder.wiring import make_target
from nvrstore.targets.contract import Request, Target, Verb
from nvrstore.targets.memory import MemoryTarget
from nvrstore.targets.memory_files import MemoryFiles

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

SIZE = 64 * MIB


class Disks:
    """Disks in memory that stay when the recorder ends. On a full one nothing fits, a folder neither."""

    def __init__(self) -> None:
        self.files: dict[str, MemoryFiles] = {}

    def make(self, config: TargetConfig, worker_python: str | None, lock_fd: int | None) -> Target:
        if config.name == REFUGE:
            return make_target(config, worker_python, lock_fd)
        target = MemoryTarget(config.name, clock=SYSTEM_CLOCK, capacity_bytes=SIZE)
        files = target.files = self.files.setdefault(config.name, target.files)

        def fault(request: Request) -> int:
            new_folder = request.verb is Verb.MKDIR and request.path not in files.dirs
            return errno.ENOSPC if new_folder and files.used_bytes >= SIZE else 0

        target.fault = fault
        return target

    def volumes(self, name: str) -> list[str]:
        return sorted(path for path in list(self.files[name].files) if path.endswith(".mp4"))

    def put(self, name: str, path: str, size: int) -> None:
        self.files[name].create(path, 0, synced=True).size = size


@pytest.fixture
def farm() -> Iterator[Farm]:
    with small_farm(2, bitrate_bps=8_000_000) as running:
        yield running


def record(site: Site, disks: Disks, enough: Callable[[dict[str, str]], bool]) -> None:
    """A recorder, until something holds of its targets' states."""
    core = RecorderCore(site.config(), make=disks.make)
    core.start()
    pause = threading.Event()
    try:
        while not enough({name: str(state) for name, state in core.engines[JOURNAL].states().items()}):
            pause.wait(0.05)
    finally:
        core.stop()


@pytest.mark.parametrize("killed", [True, False], ids=["after a kill", "after an orderly stop"])
def test_a_target_that_is_full_when_the_recorder_starts_joins_by_itself(tmp_path: Path, farm: Farm, killed: bool) -> None:
    """What a killed session had prepared goes, the oldest volumes go, the claim is put there, and everything is in step again."""
    site = Site(tmp_path, farm, journal={"volume_bytes": MIB, "keep": {"days": 30}})
    disks = Disks()
    record(site, disks, lambda states: set(states.values()) == {"synced"} and len(disks.volumes("b")) >= 10)
    leftover = f"{JOURNAL}/.next/{1:016x}-1-killed"
    if killed:
        disks.put("b", leftover, MIB)
    disks.put("b", "somebody.tar", SIZE - disks.files["b"].used_bytes)
    before = disks.volumes("b")
    record(site, disks, lambda states: states["b"] == "synced" and len(disks.volumes("a")) >= len(before) + 3)
    assert leftover not in disks.files["b"].files
    went = [path for path in before if path not in disks.volumes("b")]
    assert went == before[: len(went)], "the oldest"
    assert set(disks.volumes("a")) >= set(before), "where there was room, nothing went"
