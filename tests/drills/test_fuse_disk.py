"""A file system that hangs and fails on demand, against real workers: needs root and FUSE."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.targets import PATIENCE_S, answers, append, ask, block, open_volume, run

from nvrstore.drills.fuse_disk import FuseDisk
from nvrstore.limits import BLOCK_BYTES, MIB
from nvrstore.targets.contract import UNAVAILABLE, Request, Verb
from nvrstore.targets.directory import DirectoryTarget
from nvrstore.targets.identity import identify, init_target
from nvrstore.targets.look import look_request, look_result
from nvrstore.targets.pool import Pool
from nvrstore.targets.steps import read_all

pytestmark = [pytest.mark.root]
SHORT_S = 0.05  # of a call that is meant to run out of time


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool(4 * MIB)
    yield made
    made.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FuseDisk]:
    for name in ("backing", "disk"):
        (tmp_path / name).mkdir()
    with FuseDisk.mounted(tmp_path / "backing", tmp_path / "disk") as made:
        yield made


@pytest.fixture
def target(disk: FuseDisk) -> Iterator[DirectoryTarget]:
    made = DirectoryTarget("t", disk.path)
    run(made, init_target("t"))
    assert ask(made, Verb.PREPARE, "j/.next/p", length=MIB).ok
    yield made
    assert made.close(PATIENCE_S)


def test_a_target_works_through_fuse_and_counts_as_network_storage(target: DirectoryTarget, pool: Pool) -> None:
    """Whatever lies behind a user-space file system: appended, looked at, read back; synced by fdatasync after each append."""
    appender = target.start_appender(pool)
    open_volume(appender, pool)
    append(appender, block(pool, b"x", 64), offset=BLOCK_BYTES)
    assert [answer.errno for answer in answers(appender, 2)] == [0, 0]
    assert run(target, read_all("t", "j/day/v.mp4", fresh=True))[: 65 * BLOCK_BYTES] == b"H" * BLOCK_BYTES + b"x" * 64 * BLOCK_BYTES
    request = look_request(look_id="r", counter=3, journals=("j",), target_id=run(target, identify("t")).id)
    assert look_result(target.keeper.call(request, PATIENCE_S), "t").counter == 3
    assert target.medium == "network"
    assert appender.close(PATIENCE_S)


@pytest.mark.parametrize(("op", "code"), [("write", errno.EIO), ("write", errno.EDQUOT), ("fsync", errno.EIO), ("write", errno.ESTALE)])
def test_an_error_of_the_file_system_is_the_answer_to_the_append(
    target: DirectoryTarget, disk: FuseDisk, pool: Pool, op: str, code: int
) -> None:
    """The same number, and the rest of the volume refused, also when all is well again."""
    appender = target.start_appender(pool)
    open_volume(appender, pool)
    assert answers(appender, 1)[0].ok
    disk.fail(code, op)
    append(appender, block(pool, b"x"), offset=BLOCK_BYTES)
    assert answers(appender, 1)[0].errno == code
    disk.clear()
    append(appender, block(pool, b"x"), offset=BLOCK_BYTES)
    assert answers(appender, 1)[0].errno == errno.EIO
    assert appender.close(PATIENCE_S)


def test_a_mount_on_which_everything_hangs_hangs_nobody_here(target: DirectoryTarget, disk: FuseDisk, pool: Pool) -> None:
    """Also stat and open: callers come back in time, workers are given up, and when it lives again all goes on."""
    appender = target.start_appender(pool)
    open_volume(appender, pool)
    assert answers(appender, 1)[0].ok
    disk.hang()
    append(appender, block(pool, b"x"), offset=BLOCK_BYTES)
    for verb in (Verb.STAT, Verb.LIST, Verb.SPACE):
        assert target.keeper.call(Request(verb), SHORT_S).errno == UNAVAILABLE
    while appender.running_since_s() is None or target.keeper.running_since_s() is None:
        pass  # bounded by the test's own timeout
    appender.abandon()
    target.keeper.restart()
    assert target.keeper.call(Request(Verb.SPACE), SHORT_S).errno == UNAVAILABLE
    disk.clear()
    while not appender.gone():
        pass
    while not target.keeper.restart():
        pass
    assert ask(target, Verb.SPACE).ok


def test_a_connection_that_is_cut_is_an_error_not_a_hang(target: DirectoryTarget, disk: FuseDisk, pool: Pool) -> None:
    """As when a disk is pulled: what hung comes back with an error, what comes after fails at once."""
    appender = target.start_appender(pool)
    open_volume(appender, pool)
    assert answers(appender, 1)[0].ok
    disk.hang("write")
    append(appender, block(pool, b"x"), offset=BLOCK_BYTES)
    disk.abort()
    assert answers(appender, 1)[0].errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.EINTR)
    assert ask(target, Verb.STAT, "target.json").errno == errno.ENOTCONN
    assert appender.close(PATIENCE_S)
