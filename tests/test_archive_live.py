"""The archive beside a real recorder: what a viewer sees while targets die, and what is there when the recorder is gone."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.support.recorder import Process, Site, small_farm, until

import nvrstore
from nvrstore.catalog.store import CATALOG_FILE
from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.farm import Farm
from nvrstore.model import NS_PER_S, Cause, Media
from nvrstore.recorder.wiring import make_target
from nvrstore.targets.faulty import FaultyTarget

pytestmark = [pytest.mark.slow, pytest.mark.anyio]


@pytest.fixture
def farm() -> Iterator[Farm]:
    with small_farm(2) as running:
        yield running


@pytest.fixture
def site(tmp_path: Path, farm: Farm) -> Site:
    return Site(tmp_path, farm)


class Viewer:
    """Watches one stream live, and keeps what it saw."""

    def __init__(self) -> None:
        self.fragments: list[nvrstore.StoredFragment] = []
        self.holes: list[Any] = []

    async def watch(self, archive: nvrstore.Archive, stream: str, start_ns: int) -> None:
        async with archive.read(stream, start_ns, None, media=Media.VIDEO) as pieces:
            async for piece in pieces:
                if isinstance(piece, nvrstore.StoredFragment):
                    self.fragments.append(piece)
                else:
                    self.holes.append(piece)

    @property
    def samples(self) -> int:
        return sum(fragment.samples for fragment in self.fragments)

    @property
    def unbroken(self) -> bool:
        """Every fragment follows the one before it."""
        return [f.index for f in self.fragments[1:]] == [f.index + f.samples for f in self.fragments[:-1]]


async def test_a_viewer_keeps_watching_when_the_target_it_watches_dies(site: Site, farm: Farm) -> None:
    """The primary fails for the recorder and its directory is gone for the reader: no fragment is missing, none comes twice."""
    made: dict[str, FaultyTarget] = {}

    def make(config: Any, python: str | None, lock_fd: int | None) -> FaultyTarget:
        made[config.name] = FaultyTarget(make_target(config, python, lock_fd))
        return made[config.name]

    viewer = Viewer()
    started_ns = SYSTEM_CLOCK.utc_ns()
    async with nvrstore.Recorder(site.config(), make=make) as recorder, nvrstore.Archive(site.config()) as archive:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(viewer.watch, archive, "cam0", started_ns)
            await until(lambda: viewer.samples >= 25)
            assert {f.target for f in viewer.fragments} == {"a"}
            made["a"].fail(errno.EIO)
            await anyio.Path(site.folder / "a").rename(site.folder / "unmounted")
            seen = viewer.samples
            await until(lambda: viewer.samples >= seen + 50)
            assert viewer.fragments[-1].target == "b"
            tasks.cancel_scope.cancel()
        await anyio.to_thread.run_sync(farm.stop_sending)
        await recorder.stream("cam0").wait_durable(started_ns)
        coverage = await archive.coverage("cam0", viewer.fragments[0].utc_ns, viewer.fragments[-1].end_ns)
    assert viewer.unbroken
    assert viewer.holes == []
    assert coverage.unexplained == ()
    assert coverage.gaps == ()


@pytest.mark.parametrize("keep_catalog", [True, False])
async def test_after_a_kill_everything_that_was_seen_is_still_there(site: Site, farm: Farm, keep_catalog: bool) -> None:
    """SIGKILL: the archive finds the tail behind the catalog's last transaction, or everything without a catalog, and exports it."""
    viewer = Viewer()
    started_ns = SYSTEM_CLOCK.utc_ns()
    process = Process(site)
    try:
        async with nvrstore.Archive(site.config()) as archive, anyio.create_task_group() as tasks:
            tasks.start_soon(viewer.watch, archive, "cam1", started_ns)
            await until(lambda: viewer.samples >= 50)
            await anyio.to_thread.run_sync(process.end, signal.SIGKILL)
            tasks.cancel_scope.cancel()
    finally:
        await anyio.to_thread.run_sync(process.end, signal.SIGKILL)
    if not keep_catalog:
        for suffix in ("", "-wal", "-shm"):
            await anyio.Path(site.state / f"{CATALOG_FILE}{suffix}").unlink(missing_ok=True)
    async with nvrstore.Archive(site.config()) as archive:
        async with archive.read("cam1", started_ns, SYSTEM_CLOCK.utc_ns() + NS_PER_S, media=Media.VIDEO) as pieces:
            found = {(p.session, p.index): p.data async for p in pieces if isinstance(p, nvrstore.StoredFragment)}
        assert all(found.get((f.session, f.index)) == f.data for f in viewer.fragments)
        assert len(found) >= len(viewer.fragments)
        report = await archive.export(["cam1"], started_ns, SYSTEM_CLOCK.utc_ns(), site.folder / "clip.mp4")
        assert report.frames >= viewer.samples
        assert (await archive.verify()).damage == ()


async def test_the_time_between_two_recorders_is_a_gap_with_a_cause(site: Site, farm: Farm) -> None:
    """One recorder ends, another one starts: the hole between their footage is in the ledger, with both ends."""
    started_ns = SYSTEM_CLOCK.utc_ns()
    for _ in range(2):
        async with nvrstore.Recorder(site.config()) as recorder:
            await until(lambda: all(stream.durable_until() is not None for stream in recorder.streams()))
            await anyio.sleep(1.2)
    async with nvrstore.Archive(site.config()) as archive:
        for stream in ("cam0", "cam1"):
            (info,) = [s for s in await archive.streams() if s.stream == stream]
            coverage = await archive.coverage(stream, info.first_ns, info.last_ns)
            assert coverage.unexplained == ()
            assert [gap.cause for gap in coverage.gaps] == [Cause.RECORDER]
            assert coverage.recorded_ms > 2000
    assert started_ns < SYSTEM_CLOCK.utc_ns()
