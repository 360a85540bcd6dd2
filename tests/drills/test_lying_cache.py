"""Why a failed sync is never believed again: the page cache lies, to whoever asks next, and to the next process too."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.targets import PATIENCE_S, ask, run

from nvrstore.drills.faults import LoopDisk
from nvrstore.drills.fuse_disk import FuseDisk
from nvrstore.targets.contract import Verb
from nvrstore.targets.directory import DirectoryTarget
from nvrstore.targets.identity import init_target
from nvrstore.targets.steps import read_all

pytestmark = [pytest.mark.root]
OLD, NEW = b"old " * 16_384, b"new " * 16_384


@pytest.fixture
def medium(tmp_path: Path) -> Iterator[FuseDisk]:
    """Where the image of a disk lies."""
    for name in ("backing", "medium"):
        (tmp_path / name).mkdir()
    with FuseDisk.mounted(tmp_path / "backing", tmp_path / "medium") as made:
        yield made


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_after_a_failed_sync_only_the_medium_tells_what_is_there(medium: FuseDisk, tmp_path: Path, code: int) -> None:
    """ext4: the sync fails once, the next one says that all is well, a new process reads what was never written.

    Whether the medium is broken, or has no space left below a file system that has some.

    So workers remember the failure, recovery reads past the page cache, and the tail comes from a peer or from the buffer.
    """
    with LoopDisk.mounted("ext4", medium.path / "image", tmp_path / "disk") as disk:
        target = DirectoryTarget("t", disk.path)
        try:
            run(target, init_target("t"))
            assert ask(target, Verb.WRITE, "x", data=OLD).ok
            assert ask(target, Verb.SYNC, "x").ok
            assert ask(target, Verb.WRITE, "x", data=NEW).ok
            medium.fail(code, "write")
            assert ask(target, Verb.SYNC, "x").errno == code
            medium.clear()
            assert ask(target, Verb.SYNC, "x").ok, "the kernel has told the error once, and forgotten it"
            assert target.keeper.restart()
            assert run(target, read_all("t", "x")) == NEW, "the page cache, which nothing on the medium stands behind"
            assert run(target, read_all("t", "x", fresh=True)) == OLD
        finally:
            assert target.close(PATIENCE_S)
