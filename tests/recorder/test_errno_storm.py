"""System calls of a target's workers that fail at random, for seconds: no crash, no leak, no frame lost, and equal copies afterwards.

The workers run in threads of this process, so that each of their calls can be made to fail. NVRSTORE_SEED=17 draws one storm again.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final

import anyio
import anyio.to_thread
import pytest
from tests.support.prove import seeds
from tests.support.recorder import Site, small_farm, until

import nvrstore
from nvrstore.targets.directory import DirectoryTarget, Isolation
from nvrstore.worker.calls import Calls

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

STRIKES: Final = 3  # of each storm, at least
SHARE: Final = 0.05  # of the calls fail
STORMS: Final = (("a",), ("b",), ("a", "b"))
#: What each call may answer; whatever is not named here never fails.
ANSWERS: Final[dict[str, tuple[int, ...]]] = {
    "open": (errno.EMFILE, errno.EIO, errno.ENOSPC),
    "pwritev": (errno.ENOSPC, errno.EIO, errno.EDQUOT),
    "pwrite": (errno.ENOSPC, errno.EIO),
    "write": (errno.ENOSPC, errno.EIO),
    "fdatasync": (errno.EIO, errno.ENOSPC),
    "fsync": (errno.EIO, errno.EROFS, errno.ENOSPC),
    "link": (errno.EIO, errno.EMLINK, errno.ENOSPC),
    "rename": (errno.EIO, errno.ENOSPC),
    "unlink": (errno.EIO, errno.EROFS),
    "mkdir": (errno.ENOSPC, errno.EIO),
    "listdir": (errno.EIO, errno.EMFILE),
    "stat": (errno.EIO, errno.ESTALE),
    "fstat": (errno.EIO,),
    "preadv": (errno.EIO,),
    "statvfs": (errno.EIO,),
    "fallocate64": (errno.ENOSPC,),
}


class Storm:
    """Stands in for `Calls.__call__`."""

    def __init__(self, seed: int) -> None:
        self._random, self._really = Random(f"storm {seed}"), Calls.__call__
        self._targets: tuple[str, ...] = ()
        self.strikes = 0

    def begin(self, targets: tuple[str, ...]) -> None:
        """From now on the workers of these are hit; of none: it is over."""
        self._targets, self.strikes = targets, 0

    def __call__(self, calls: Calls, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        possible = ANSWERS.get(getattr(function, "__name__", ""))
        where = threading.current_thread().name.rpartition("-")[2]  # named after the target that it works for
        if possible and where in self._targets and self._random.random() < SHARE:
            code = self._random.choice(possible)
            self.strikes += 1

            def fails(*_: Any, **__: Any) -> Any:
                raise OSError(code, os.strerror(code))

            return self._really(calls, fails)
        return self._really(calls, function, *args, **options)


def in_a_thread(config: Any, python: str | None, lock_fd: int | None) -> DirectoryTarget:
    return DirectoryTarget(config.name, config.path, isolation=Isolation.THREAD, lock_fd=lock_fd, medium=config.medium)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("seed", seeds(usual=1, proving=20))
async def test_an_errno_storm_costs_no_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """ENOSPC, EIO, EMFILE, ESTALE from every twentieth call, on one target, on the other, and on both."""
    storm = Storm(seed)
    monkeypatch.setattr(Calls, "__call__", lambda calls, function, *args, **options: storm(calls, function, *args, **options))
    with small_farm(2) as farm:
        site = Site(tmp_path, farm, journal={"volume_age_s": 1})
        async with nvrstore.Recorder(site.config(), make=in_a_thread) as recorder:

            def synced() -> bool:
                return {t["state"] for t in recorder.statistics()["journals"][0]["targets"]} == {"synced"}

            await until(lambda: synced() and all(stream.durable_until() is not None for stream in recorder.streams()))
            for targets in STORMS:
                storm.begin(targets)
                await until(lambda: storm.strikes >= STRIKES, timeout_s=60)
                storm.begin(())
                await until(synced, timeout_s=60)
            sent = await anyio.to_thread.run_sync(farm.stop_sending)
            await until(lambda: synced() and site.differences() == [], timeout_s=60)  # what a storm left open is closed by the next round
    assert site.lost(sent) == {}
    assert site.account().damage == site.account("b").damage == ()
    assert site.differences() == []
