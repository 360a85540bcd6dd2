"""File systems that lack something, or fail in a sync: the worker goes on without, says so, and believes no sync twice.

The system calls are made to fail inside this process, with the worker in a thread.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.targets import PATIENCE_S, answers, append, ask, block, open_volume, run

from nvrstore.limits import BLOCK_BYTES, MIB
from nvrstore.targets.contract import Verb
from nvrstore.targets.directory import DirectoryTarget, Limitation, medium_of
from nvrstore.targets.identity import identify, init_target
from nvrstore.targets.pool import Pool
from nvrstore.targets.steps import read_all
from nvrstore.worker import wire


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool(4 * MIB)
    yield made
    made.close()


@pytest.fixture
def in_thread(tmp_path: Path) -> Iterator[DirectoryTarget]:
    made = DirectoryTarget("t", tmp_path, isolation="thread")
    run(made, init_target("t"))
    yield made
    assert made.close(PATIENCE_S)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[DirectoryTarget]:
    made = DirectoryTarget("t", tmp_path)
    run(made, init_target("t"))
    yield made
    assert made.close(PATIENCE_S)


def test_without_direct_io_it_goes_through_the_page_cache_and_says_so(
    in_thread: DirectoryTarget, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EINVAL for O_DIRECT is no reason not to record."""
    really = os.open

    def without_direct(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no O_DIRECT here")
        return really(path, flags, mode)

    dropped: list[int] = []
    monkeypatch.setattr(os, "open", without_direct)
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, offset, length, advice: dropped.append(advice))
    assert ask(in_thread, Verb.PREPARE, "j/.next/p", length=MIB).ok
    appender = in_thread.start_appender(pool)
    open_volume(appender, pool)
    append(appender, block(pool, b"x"), offset=BLOCK_BYTES)
    assert all(answer.ok for answer in answers(appender, 2))
    whole = run(in_thread, read_all("t", "j/day/v.mp4", fresh=True))
    assert whole[: 2 * BLOCK_BYTES] == b"H" * BLOCK_BYTES + b"x" * BLOCK_BYTES
    assert set(dropped) == {os.POSIX_FADV_DONTNEED}, "a fresh read asks the page cache to forget first"
    assert Limitation.BUFFERED in in_thread.limitations()
    assert appender.close(PATIENCE_S)


def test_without_hard_links_a_name_is_reserved_and_never_overwritten(
    in_thread: DirectoryTarget, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """exFAT and some network file systems: the volume still gets its name only if that is free."""

    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    appender = in_thread.start_appender(pool)
    for handle in (1, 2):
        assert ask(in_thread, Verb.PREPARE, f"j/.next/{handle}", length=MIB).ok
        open_volume(appender, pool, handle=handle, prepared=f"j/.next/{handle}")
    append(appender, block(pool, b"x"), offset=BLOCK_BYTES, handle=1)
    assert [answer.errno for answer in answers(appender, 3)] == [0, errno.EEXIST, 0]
    assert run(in_thread, read_all("t", "j/day/v.mp4"))[BLOCK_BYTES : 2 * BLOCK_BYTES] == b"x" * BLOCK_BYTES
    assert Limitation.NO_LINKS in in_thread.limitations()
    assert appender.close(PATIENCE_S)


def test_without_dsync_every_append_is_followed_by_a_sync_whose_failure_fails_the_append(
    in_thread: DirectoryTarget, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On file systems that are not known to honour RWF_DSYNC, fdatasync is asked, and believed once."""
    monkeypatch.setattr("nvrstore.worker.calls.DSYNC_FILE_SYSTEMS", frozenset())
    failing = threading.Event()
    really = os.fdatasync

    def sync(fd: int) -> None:
        if failing.is_set():
            raise OSError(errno.EIO, "the disk says no")
        really(fd)

    monkeypatch.setattr(os, "fdatasync", sync)
    assert ask(in_thread, Verb.PREPARE, "j/.next/p", length=MIB).ok
    appender = in_thread.start_appender(pool)
    open_volume(appender, pool)
    assert answers(appender, 1)[0].ok
    failing.set()
    append(appender, block(pool, b"x"), offset=BLOCK_BYTES)
    assert answers(appender, 1)[0].errno == errno.EIO
    failing.clear()
    append(appender, block(pool, b"y"), offset=2 * BLOCK_BYTES)
    assert answers(appender, 1)[0].errno == errno.EIO, "a sync that works again proves nothing"
    assert Limitation.NO_DSYNC in in_thread.limitations()
    assert appender.close(PATIENCE_S)


def test_both_directories_are_synced_after_a_volume_got_its_name(
    in_thread: DirectoryTarget, tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most local file systems write all names with any sync; POSIX promises those of the synced directory alone."""
    happened: list[str] = []
    link, fsync = os.link, os.fsync

    def linked(path: str, path2: str) -> None:
        happened.append("link")
        link(path, path2)

    def synced(fd: int) -> None:
        happened.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    monkeypatch.setattr(os, "link", linked)
    monkeypatch.setattr(os, "fsync", synced)
    assert ask(in_thread, Verb.PREPARE, "j/.next/p", length=MIB).ok
    assert happened[-1] == str(tmp_path / "j" / ".next")
    appender = in_thread.start_appender(pool)
    open_volume(appender, pool)
    assert answers(appender, 1)[0].ok
    assert {str(tmp_path / "j" / "day"), str(tmp_path / "j" / ".next")} <= set(happened[happened.index("link") :])
    assert str(tmp_path / "j") in happened, "where the day's directory was made"
    assert appender.close(PATIENCE_S)


def test_a_failed_early_sync_is_remembered_until_its_own_sync(in_thread: DirectoryTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    """More files are written at once than descriptors are kept: whoever asks for the sync hears of the failure."""
    really = os.fdatasync

    def fail_once(fd: int) -> None:
        monkeypatch.setattr(os, "fdatasync", really)
        raise OSError(errno.EIO, "the disk says no")

    monkeypatch.setattr(os, "fdatasync", fail_once)
    paths = [f"f{i}" for i in range(wire.WRITING_MAX + 1)]
    for path in paths:
        assert ask(in_thread, Verb.WRITE, path, data=b"x").ok
    assert [ask(in_thread, Verb.SYNC, path).errno for path in paths] == [errno.EIO, *[0] * wire.WRITING_MAX]


@pytest.mark.parametrize(
    ("storage", "medium"),
    [
        ({"fstype": "ext4", "source": "/dev/sda1", "rotational": 1}, "disk"),
        ({"fstype": "ext4", "source": "/dev/nvme0n1p1", "rotational": 0}, "ssd"),
        ({"fstype": "xfs", "source": "/dev/md0", "rotational": 0}, "disk"),
        ({"fstype": "nfs4", "source": "nas:/video"}, "network"),
        ({"fstype": "fuse.sshfs", "source": "x"}, "network"),
        ({"fstype": "tmpfs", "source": "tmpfs", "rotational": -1}, "ssd"),
        ({"fstype": "overlay", "source": "overlay", "rotational": -1}, "disk"),
        ({}, "disk"),
    ],
)
def test_the_medium_follows_from_file_system_and_device(storage: dict[str, object], medium: str) -> None:
    """When in doubt, the careful class of the local ones."""
    assert medium_of(storage) == medium


def test_the_medium_is_found_out_by_the_worker(target: DirectoryTarget) -> None:
    """And until it has answered, or when it never does, it is the careful local class."""
    target.wait_ready(PATIENCE_S)
    assert target.storage is not None
    assert target.storage["fstype"]
    assert target.medium == medium_of(target.storage)
    assert run(target, identify("t")).format == 1


@pytest.mark.parametrize(("offset", "code"), [(BLOCK_BYTES, errno.EIO), (MIB, errno.ENOSPC)])
def test_no_space_for_what_was_preallocated_comes_from_below_and_beyond_it_from_the_file_system(
    in_thread: DirectoryTarget, pool: Pool, monkeypatch: pytest.MonkeyPatch, offset: int, code: int
) -> None:
    """There is plenty of free space in both cases: retention may just have made it, or it counts for somebody else's quota."""
    assert ask(in_thread, Verb.PREPARE, "j/.next/p", length=MIB).ok
    appender = in_thread.start_appender(pool)
    open_volume(appender, pool)
    assert answers(appender, 1)[0].ok

    def no_space(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwritev", no_space)
    append(appender, block(pool, b"x"), offset=offset)
    (answer,) = answers(appender, 1)
    assert answer.errno == code
    assert appender.close(PATIENCE_S)
