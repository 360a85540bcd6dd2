"""The archive's public face, on asyncio and trio."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiofiles  # type: ignore[import-untyped]
import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from tests.support.footage import SESSION, T0, Footage, video
from tests.support.media import payloads

from nvrstore.archive import Archive, Pieces
from nvrstore.catalog.coverage import Hole, HoleReason
from nvrstore.catalog.store import CATALOG_FILE, Catalog
from nvrstore.config import Config
from nvrstore.errors import ClosedError, ForkedError, NotFoundError, UsageError
from nvrstore.model import NS_PER_S, Cause, Fragment, Gap, Mark, Media
from nvrstore.playback.reader import StoredFragment

START = datetime.fromtimestamp(T0 // NS_PER_S, UTC)
GAP = Gap("g", "gate", Cause.CAMERA, T0 + 6 * NS_PER_S, T0 + 8 * NS_PER_S, "rebooted")
MARK = Mark("m", "gate", "person", T0 + NS_PER_S, T0 + 2 * NS_PER_S, {"score": 0.93})

pytestmark = pytest.mark.anyio


def made(tmp_path: Path, *, seconds: int = 6, close_last: bool = True, catalog: bool = True) -> tuple[Config, Footage]:
    """Footage on two directories, the configuration that names them, and the catalog that a recorder left."""
    footage = Footage.record(seconds=seconds, per_volume_s=2.0, gaps={0: [GAP]}, close_last=close_last)
    last = footage.volumes[-1]
    if not last.closed:
        last.volume.add([], [MARK.record()])
    for name in "ab":
        footage.to_directory(tmp_path / name, name)
    state = tmp_path / "state"
    state.mkdir()
    if catalog:
        written = Catalog(state / CATALOG_FILE, interval_s=60.0)
        footage.feed(written)
        written.refreshed()
        assert written.close()
    return configuration(tmp_path), footage


def configuration(tmp_path: Path) -> Config:
    return Config.parse(
        {
            "recorder": {"name": "nvr-1", "state": str(tmp_path / "state")},
            "target": [{"name": n, "path": str(tmp_path / n), "isolation": "thread"} for n in "ab"],
            "journal": [{"name": "main", "targets": ["a", "b"]}],
            "stream": [{"id": "new", "url": "rtsp://127.0.0.1/new"}],
        }
    )


@asynccontextmanager
async def opened(config: Config) -> AsyncIterator[Archive]:
    async with Archive(config) as archive:
        yield archive


async def test_footage_is_read_by_datetimes_and_by_nanoseconds(tmp_path: Path) -> None:
    """The same pieces, whichever way a time is given; every sample of the camera, and the gap behind them."""
    config, footage = made(tmp_path)
    async with Archive(config) as archive:
        found: list[list[Any]] = []
        for start, end in ((START, START + timedelta(seconds=8)), (T0, T0 + 8 * NS_PER_S)):
            async with archive.read("gate", start, end, media=Media.VIDEO) as pieces:
                found.append([piece async for piece in pieces])
        assert [type(p) for p in found[0]] == [StoredFragment] * 6 + [Gap]
        assert [getattr(p, "index", p) for p in found[0]] == [getattr(p, "index", p) for p in found[1]]
        samples = [p for f in found[0] if isinstance(f, Fragment) for p in payloads(f)]
        assert samples == [s.data for s in footage.samples("gate")]
        assert found[0][-1] == GAP


async def test_what_is_stored_is_told(tmp_path: Path) -> None:
    """Streams, volumes, spans, gaps, marks, coverage."""
    config, footage = made(tmp_path, close_last=False)
    async with Archive(config) as archive:
        assert [(s.stream, s.name) for s in await archive.streams()] == [("gate", "gate camera"), ("yard", "yard camera")]
        assert [v.path for v in await archive.volumes("main")] == [s.path for s in footage.volumes]
        assert await archive.volumes("other") == []
        assert await archive.gaps() == [GAP]
        assert await archive.gaps("yard") == []
        assert await archive.gaps("gate", START + timedelta(seconds=9)) == []
        assert await archive.marks("gate", START, START + timedelta(seconds=9)) == [MARK]
        assert {s.track.media for s in await archive.spans("gate")} == {Media.VIDEO, Media.AUDIO}
        coverage = await archive.coverage("gate", START, START + timedelta(seconds=10))
        assert (coverage.recorded_ms, coverage.gaps_ms, coverage.unexplained_ms, coverage.outside_ms) == (6000, {"camera": 2000}, 0, 2000)


async def test_a_clip_goes_to_a_path_or_a_file_object(tmp_path: Path, anyio_backend_name: str) -> None:
    """The same bytes to a path, to a synchronous file object, to anyio's, and on asyncio to aiofiles'."""
    config, _ = made(tmp_path)
    end = START + timedelta(seconds=4)
    async with Archive(config) as archive:
        progress: list[int] = []
        report = await archive.export(["gate"], START, end, tmp_path / "clip.mp4", on_progress=lambda p: progress.append(p.bytes_done))
        clip = await anyio.Path(tmp_path / "clip.mp4").read_bytes()
        assert report.sha256 == hashlib.sha256(clip).hexdigest()
        assert progress
        assert progress == sorted(progress)
        sink = io.BytesIO()
        assert (await archive.export(["gate"], START, end, sink)).sha256 == report.sha256
        assert sink.getvalue() == clip
        async with await anyio.open_file(tmp_path / "anyio.mp4", "wb") as file:
            await archive.export(["gate"], START, end, file)
        assert await anyio.Path(tmp_path / "anyio.mp4").read_bytes() == clip
        if anyio_backend_name == "asyncio":
            async with aiofiles.open(tmp_path / "aiofiles.mp4", "wb") as other:
                await archive.export(["gate"], START, end, other)
            assert await anyio.Path(tmp_path / "aiofiles.mp4").read_bytes() == clip


async def test_a_live_reader_gets_what_becomes_durable(tmp_path: Path) -> None:
    """end=None: history, then the tail, until the reader leaves."""
    config, footage = made(tmp_path, close_last=False, catalog=False)
    catalog = Catalog(tmp_path / "state" / CATALOG_FILE, interval_s=60.0)
    *before, last = footage.volumes
    try:
        Footage(footage.tracks, before).feed(catalog)
        assert catalog.flush()
        seen: list[bytes] = []
        async with Archive(config) as archive:
            with anyio.fail_after(30):
                async with archive.read("gate", START, None, media=Media.VIDEO) as pieces:
                    async for piece in pieces:
                        seen += payloads(piece) if isinstance(piece, Fragment) else []
                        if (
                            len(seen) == 25 * sum(f.utc_ns < last.header.created_ns for f in footage.fragments("gate"))
                            and last in footage.volumes
                        ):
                            footage.volumes.remove(last)
                            Footage(footage.tracks, [last]).feed(catalog)
                            assert catalog.flush()
                        if len(seen) == 150:
                            break
        assert seen == [s.data for s in footage.samples("gate")]
    finally:
        assert catalog.close()


async def test_a_cancelled_receive_loses_nothing() -> None:
    """What a thread was reading when the receiver was cancelled comes with the next receive."""
    reading, go_on = anyio.Event(), threading.Event()
    holes = [Hole("gate", HoleReason.OUTSIDE, n, n + 1) for n in range(5)]

    def source() -> Iterator[Hole]:
        anyio.from_thread.run_sync(reading.set)
        assert go_on.wait(30)
        yield from holes

    pieces = Pieces(source(), anyio.to_thread.run_sync)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pieces.receive)
        await reading.wait()
        tasks.cancel_scope.cancel()
        go_on.set()
    assert [piece async for piece in pieces] == holes


async def test_an_archive_without_a_catalog_or_a_recorder_looks_at_the_targets(tmp_path: Path) -> None:
    """Nothing but the targets: the same footage, ledger included."""
    config, footage = made(tmp_path, catalog=False, close_last=False)
    async with Archive(config) as archive:
        assert await archive.gaps() == [GAP]
        async with archive.read("gate", T0, T0 + 6 * NS_PER_S, media=Media.VIDEO) as pieces:
            assert sum([p.samples async for p in pieces if isinstance(p, Fragment)]) == len(footage.samples("gate"))
    assert not (tmp_path / "state" / CATALOG_FILE).exists(), "reading writes nothing"


async def test_a_target_that_is_not_there_is_passed_over(tmp_path: Path) -> None:
    """One target unmounted, its copies are known to the catalog: everything is read from the other."""
    config, footage = made(tmp_path)
    await anyio.Path(tmp_path / "a").rename(tmp_path / "elsewhere")
    async with Archive(config) as archive:
        async with archive.read("gate", T0, T0 + 6 * NS_PER_S, media=Media.VIDEO) as pieces:
            assert {p.target async for p in pieces if isinstance(p, StoredFragment)} == {"b"}
        report = await archive.verify()
    assert list(report.unreachable) == ["a"]
    assert report.damage == ()
    assert not report.ok
    assert report.copies == len(footage.volumes)


async def test_verify_counts_everything_that_has_a_checksum(tmp_path: Path) -> None:
    """Both copies of every volume, all of their fragments; with the reference implementation too."""
    config, footage = made(tmp_path)
    fragments = sum(len(b.entries) for s in footage.volumes for b in s.volume.batches)
    async with Archive(config) as archive:
        for reference in (False, True):
            report = await archive.verify(reference=reference)
            assert report.ok
            assert (report.volumes, report.copies, report.fragments) == (len(footage.volumes), 2 * len(footage.volumes), 2 * fragments)
        assert (await archive.verify(["a"])).copies == len(footage.volumes)
        with pytest.raises(UsageError, match="no target 'c'"):
            await archive.verify(["c"])


async def test_the_refuge_on_the_state_disk_is_read_too(tmp_path: Path) -> None:
    """Footage that no target could take lies on the state disk until it is written back."""
    config, footage = made(tmp_path, catalog=False)
    kept = Footage.record([video("gate", seconds=2, start_s=20.0, session=SESSION + 1)], session=SESSION + 1, term=2)
    kept.to_directory(tmp_path / "state" / "refuge", "refuge")
    async with Archive(config) as archive, archive.read("gate", T0 + 20 * NS_PER_S, T0 + 22 * NS_PER_S) as pieces:
        assert [p.target async for p in pieces if isinstance(p, StoredFragment)] == ["refuge"] * 2
    assert footage.volumes


async def test_what_nobody_knows_is_a_sentence(tmp_path: Path) -> None:
    """An unknown stream, naive datetimes, an end before the start, streams as a string."""
    config, _ = made(tmp_path)
    async with Archive(config) as archive:
        with pytest.raises(NotFoundError, match="'gte'"):
            await archive.coverage("gte", T0, T0 + 1)
        with pytest.raises(NotFoundError):
            async with archive.read("gte", T0, T0 + 1):
                pass
        with pytest.raises(UsageError, match="time zone"):
            await archive.coverage("gate", datetime(2023, 11, 14), START)  # noqa: DTZ001 - that is the point
        with pytest.raises(UsageError, match="before the start"):
            await archive.coverage("gate", T0 + 1, T0)
        with pytest.raises(UsageError, match="list of ids"):
            await archive.export("gate", T0, T0 + 1, tmp_path / "clip.mp4")
        coverage = await archive.coverage("new", T0, T0 + NS_PER_S)
        assert coverage.holes == (Hole("new", HoleReason.OUTSIDE, T0, T0 + NS_PER_S),), "configured, and nothing stored yet"


async def test_an_archive_is_used_inside_its_block_and_once(tmp_path: Path) -> None:
    """Before and after it is closed; a second time is refused; a stream of pieces is closed with its block."""
    config, _ = made(tmp_path)
    archive = Archive(config)
    with pytest.raises(ClosedError):
        await archive.streams()
    async with archive:
        with pytest.raises(UsageError):
            await archive.__aenter__()
        async with archive.read("gate", T0, T0 + 6 * NS_PER_S) as pieces:
            await pieces.receive()
        with pytest.raises(anyio.ClosedResourceError):
            await pieces.receive()
    with pytest.raises(ClosedError):
        await archive.streams()
    with pytest.raises(UsageError):
        async with archive:
            pass


async def test_a_fork_of_the_process_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers belong to the process that started them."""
    config, _ = made(tmp_path)
    async with Archive(config) as archive, archive.read("gate", T0, T0 + NS_PER_S) as pieces:
        with monkeypatch.context() as patched:
            real = os.getpid()
            patched.setattr(os, "getpid", lambda: real + 1)
            with pytest.raises(ForkedError):
                await archive.streams()
            with pytest.raises(ForkedError):
                await pieces.receive()
        assert await archive.streams()


async def test_the_loop_is_never_blocked(tmp_path: Path) -> None:
    """Whatever waits for a target waits in a thread that is not the loop's."""
    config, _ = made(tmp_path)
    loop = threading.get_ident()
    async with Archive(config) as archive:
        core = archive._core
        assert core is not None
        for target in core.copies.targets.values():
            keeper = target.keeper
            submit = keeper.submit

            def watched(request: Any, submit: Any = submit) -> Any:
                assert threading.get_ident() != loop
                return submit(request)

            keeper.submit = watched  # type: ignore[method-assign]
        async with archive.read("gate", T0, T0 + 6 * NS_PER_S) as pieces:
            assert [p async for p in pieces]
        assert (await archive.verify()).ok
        await archive.export(["gate"], T0, T0 + NS_PER_S, io.BytesIO())
