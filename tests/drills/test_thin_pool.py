"""A file system with plenty of room on a medium that has none left. Needs root, FUSE, loop devices; with a recorder: drill thin-pool."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.targets import PATIENCE_S, answers, append, ask, block, open_volume, run

from nvrstore.drills.faults import LoopDisk
from nvrstore.drills.fuse_disk import FuseDisk
from nvrstore.limits import BLOCK_BYTES, MIB
from nvrstore.targets.contract import Verb
from nvrstore.targets.directory import DirectoryTarget
from nvrstore.targets.identity import init_target
from nvrstore.targets.pool import Pool
from nvrstore.targets.steps import read_all

pytestmark = [pytest.mark.root]


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool(4 * MIB)
    yield made
    made.close()


def test_a_thin_pool_that_is_full_at_the_sync_is_a_failed_write_and_no_work_for_retention(pool: Pool, tmp_path: Path) -> None:
    """Preallocated space, and ENOSPC from below: answered as EIO that says why; when there is space again, the volume stays refused."""
    for name in ("backing", "medium"):
        (tmp_path / name).mkdir()
    with (
        FuseDisk.mounted(tmp_path / "backing", tmp_path / "medium") as medium,
        LoopDisk.mounted("ext4", medium.path / "image", tmp_path / "disk", features=("-O", "^has_journal")) as disk,
    ):
        target = DirectoryTarget("t", disk.path)
        try:
            run(target, init_target("t"))
            assert ask(target, Verb.PREPARE, "j/.next/p", length=MIB).ok
            appender = target.start_appender(pool)
            open_volume(appender, pool)
            append(appender, block(pool, b"x"), offset=BLOCK_BYTES)
            assert [answer.errno for answer in answers(appender, 2)] == [0, 0]
            medium.fail(errno.ENOSPC, "write")
            append(appender, block(pool, b"y"), offset=2 * BLOCK_BYTES)
            (answer,) = answers(appender, 1)
            assert (answer.errno, answer.value) == (errno.EIO, errno.ENOSPC)
            assert target.first_failure_s() is not None, "a broken target, not a full one"
            medium.clear()
            append(appender, block(pool, b"y"), offset=2 * BLOCK_BYTES)
            assert answers(appender, 1)[0].errno == errno.EIO, "no second sync is believed"
            assert run(target, read_all("t", "j/day/v.mp4", fresh=True))[: 2 * BLOCK_BYTES] == b"H" * BLOCK_BYTES + b"x" * BLOCK_BYTES
            assert appender.close(PATIENCE_S)
        finally:
            assert target.close(PATIENCE_S)
