"""Real faults of real file systems against real workers: needs root and loop devices."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.targets import PATIENCE_S, answers, append, ask, block, open_volume, run

from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.drills.faults import FaultError, LoopDisk, covered, filled, frozen, moved_away, small_tmpfs
from nvrstore.errors import TargetUnavailableError
from nvrstore.limits import BLOCK_BYTES, MIB
from nvrstore.targets.contract import UNAVAILABLE, Request, Verb
from nvrstore.targets.directory import DirectoryTarget
from nvrstore.targets.identity import identify, init_target
from nvrstore.targets.look import look_request, look_result
from nvrstore.targets.pool import Pool
from nvrstore.targets.steps import list_all, read_all

pytestmark = [pytest.mark.root]
SHORT_S = 0.05  # of a call that is meant to run out of time


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool(4 * MIB)
    yield made
    made.close()


@pytest.fixture(params=["ext4", "xfs", "btrfs"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LoopDisk]:
    with LoopDisk.mounted(request.param, tmp_path / "image", tmp_path / "disk") as made:
        yield made


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[LoopDisk]:
    with LoopDisk.mounted("ext4", tmp_path / "image", tmp_path / "disk", options="errors=remount-ro") as made:
        yield made


def ready(path: Path) -> DirectoryTarget:
    target = DirectoryTarget("t", path)
    run(target, init_target("t"))
    return target


def prepare(target: DirectoryTarget, length: int = MIB) -> None:
    assert ask(target, Verb.PREPARE, "j/.next/p", length=length).ok


def test_a_target_works_on_every_local_file_system(disk: LoopDisk, pool: Pool) -> None:
    """Prepared, opened, appended, looked at; the bytes are on the medium; the worker knows where it is."""
    target = ready(disk.path)
    prepare(target)
    appender = target.start_appender(pool)
    open_volume(appender, pool)
    append(appender, block(pool, b"x", 16), offset=BLOCK_BYTES)
    assert all(answer.ok for answer in answers(appender, 2))
    assert appender.close(PATIENCE_S)
    request = look_request(look_id="r", counter=7, journals=("j",), target_id=run(target, identify("t")).id)
    assert look_result(target.keeper.call(request, PATIENCE_S), "t").counter == 7
    whole = run(target, read_all("t", "j/day/v.mp4", fresh=True))
    assert whole[: 17 * BLOCK_BYTES] == b"H" * BLOCK_BYTES + b"x" * 16 * BLOCK_BYTES
    assert target.storage is not None
    assert target.storage["fstype"] == disk.fstype
    assert target.limitations() == frozenset()
    assert target.close(PATIENCE_S)


@pytest.fixture(params=["ext4", "xfs"])
def frail(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LoopDisk]:
    """A disk whose power can be cut."""
    with LoopDisk.mounted(request.param, tmp_path / "image", tmp_path / "disk") as made:
        yield made


@pytest.mark.parametrize("batches", [0, 8])
def test_an_acknowledged_append_survives_a_power_cut(frail: LoopDisk, pool: Pool, batches: int) -> None:
    """The last thing that happens is an append, or the opening: no later sync of anything else makes it durable by accident."""
    target = ready(frail.path)
    prepare(target)
    appender = target.start_appender(pool)
    open_volume(appender, pool)
    for i in range(batches):
        append(appender, block(pool, bytes([i + 1])), offset=(1 + i) * BLOCK_BYTES)
    assert all(answer.ok for answer in answers(appender, 1 + batches))
    frail.shut_down()
    assert appender.close(PATIENCE_S)
    assert target.close(PATIENCE_S)
    frail.power_on()
    target = DirectoryTarget("t", frail.path)
    whole = run(target, read_all("t", "j/day/v.mp4", fresh=True))
    assert whole[: (1 + batches) * BLOCK_BYTES] == b"H" * BLOCK_BYTES + b"".join(bytes([i + 1]) * BLOCK_BYTES for i in range(batches))
    assert run(target, list_all("t", "j/.next")) == []
    assert target.close(PATIENCE_S)


DURABLE: list[tuple[Verb, dict[str, object], set[str]]] = [
    (Verb.MKDIR, {"path": "new/deep"}, {"a", "d", "new", "target.json"}),
    (Verb.PUT, {"path": "new", "data": b"x"}, {"a", "d", "new", "target.json"}),
    (Verb.PREPARE, {"path": "new", "length": MIB}, {"a", "d", "new", "target.json"}),
    (Verb.RENAME, {"path": "a", "path2": "new"}, {"d", "new", "target.json"}),
    (Verb.LINK, {"path": "a", "path2": "new"}, {"a", "d", "new", "target.json"}),
    (Verb.UNLINK, {"path": "a"}, {"d", "target.json"}),
    (Verb.RMDIR, {"path": "d"}, {"a", "target.json"}),
    (Verb.TRUNCATE, {"path": "a", "length": 3}, {"a", "d", "target.json"}),
    (Verb.WRITE, {"path": "new", "data": b"x"}, {"a", "d", "target.json"}),
]


@pytest.mark.parametrize(("verb", "fields", "names"), DURABLE, ids=[verb.name for verb, _, _ in DURABLE])
def test_what_a_keeper_answered_survives_a_power_cut(frail: LoopDisk, verb: Verb, fields: dict[str, object], names: set[str]) -> None:
    """Each verb on its own, last before the cut; a bare WRITE alone promises nothing, and here nothing is there of it."""
    target = ready(frail.path)
    assert ask(target, Verb.PUT, "a", data=b"12345").ok
    assert ask(target, Verb.MKDIR, "d").ok
    assert target.keeper.call(Request(verb, **fields), PATIENCE_S).ok  # type: ignore[arg-type]
    frail.shut_down()
    assert target.close(PATIENCE_S)
    frail.power_on()
    target = DirectoryTarget("t", frail.path)
    assert {entry.name for entry in run(target, list_all("t", ""))} - {"lost+found"} == names
    if verb is Verb.TRUNCATE:
        assert run(target, read_all("t", "a")) == b"123"
    if verb is Verb.MKDIR:
        assert ask(target, Verb.STAT, "new/deep").ok
    assert target.close(PATIENCE_S)


def test_a_disk_that_is_shut_down_answers_with_an_error(ext4: LoopDisk, pool: Pool) -> None:
    """Append, look, read past the cache: none of them hangs or succeeds; the worker stamps when the first of them failed."""
    target = ready(ext4.path)
    prepare(target)
    appender = target.start_appender(pool)
    open_volume(appender, pool)
    assert answers(appender, 1)[0].ok
    target_id = run(target, identify("t")).id
    ext4.shut_down()
    before_s = SYSTEM_CLOCK.monotonic_s()
    append(appender, block(pool, b"x"), offset=BLOCK_BYTES)
    assert answers(appender, 1)[0].errno == errno.EIO
    first_s = target.first_failure_s()
    assert first_s is not None
    assert before_s <= first_s <= SYSTEM_CLOCK.monotonic_s()
    assert target.keeper.call(look_request(look_id="r", counter=1, journals=("j",), target_id=target_id), PATIENCE_S).errno == errno.EIO
    assert appender.close(PATIENCE_S)
    assert target.close(PATIENCE_S)


def test_a_disk_that_turned_read_only_says_erofs(ext4: LoopDisk, pool: Pool) -> None:
    """The append is what says so; statvfs need not."""
    target = ready(ext4.path)
    prepare(target)
    appender = target.start_appender(pool)
    open_volume(appender, pool)
    assert answers(appender, 1)[0].ok
    ext4.turn_read_only()
    append(appender, block(pool, b"x"), offset=BLOCK_BYTES)
    assert answers(appender, 1)[0].errno in (errno.EROFS, errno.EIO)
    assert ask(target, Verb.PREPARE, "j/.next/q", length=MIB).errno == errno.EROFS
    assert appender.close(PATIENCE_S)
    assert target.close(PATIENCE_S)


def test_a_full_disk_takes_what_was_prepared_and_refuses_the_next(ext4: LoopDisk, pool: Pool) -> None:
    """Space that was preallocated is there when it is needed; PREPARE says ENOSPC and leaves nothing; looks go on."""
    target = ready(ext4.path)
    target_id = run(target, identify("t")).id
    prepare(target)
    assert ask(target, Verb.MKDIR, "j/day").ok, "a directory takes a block of its own"
    first = look_request(look_id="r", counter=1, journals=("j",), target_id=target_id)
    assert target.keeper.call(first, PATIENCE_S).ok
    appender = target.start_appender(pool)
    with filled(ext4.path):
        assert ask(target, Verb.PREPARE, "j/.next/q", length=MIB).errno == errno.ENOSPC
        assert [entry.name for entry in run(target, list_all("t", "j/.next"))] == ["p"]
        open_volume(appender, pool)
        append(appender, block(pool, b"x", 16), offset=BLOCK_BYTES)
        assert [answer.errno for answer in answers(appender, 2)] == [0, 0]
        again = look_request(look_id="r", counter=2, journals=("j",), target_id=target_id)
        assert look_result(target.keeper.call(again, PATIENCE_S), "t").counter == 2
        other = look_request(look_id="other", counter=1, journals=("j",), target_id=target_id)
        seen = look_result(target.keeper.call(other, PATIENCE_S), "t")
        assert (seen.counter, seen.counter_errno) == (0, errno.ENOSPC), "a full target is told from a broken one"
    assert ask(target, Verb.PREPARE, "j/.next/q", length=MIB).ok
    assert appender.close(PATIENCE_S)
    assert target.close(PATIENCE_S)


def test_an_append_beyond_the_space_that_is_left_says_enospc(tmp_path: Path, pool: Pool) -> None:
    """Half of it fits: that is a short write, whose reason is asked for; the rest of the volume is refused."""
    with small_tmpfs(tmp_path / "small", size_bytes=MIB) as path:
        target = ready(path)
        prepare(target, length=0)
        appender = target.start_appender(pool)
        open_volume(appender, pool)
        append(appender, block(pool, b"x", 300), offset=BLOCK_BYTES)
        append(appender, block(pool, b"y"), offset=301 * BLOCK_BYTES)
        assert [answer.errno for answer in answers(appender, 3)] == [0, errno.ENOSPC, errno.EIO]
        assert appender.close(PATIENCE_S)
        assert target.close(PATIENCE_S)


def test_a_frozen_disk_hangs_its_workers_and_nobody_else(ext4: LoopDisk, pool: Pool) -> None:
    """A worker in a state that SIGKILL does not end: it is left behind, counted, and holds its memory until the disk thaws."""
    target = ready(ext4.path)
    prepare(target)
    appender = target.start_appender(pool)
    open_volume(appender, pool)
    assert answers(appender, 1)[0].ok
    with frozen(ext4.path):
        append(appender, block(pool, b"x"), offset=BLOCK_BYTES)
        hung = target.keeper.submit(Request(Verb.WRITE, "f", data=b"x"))
        while appender.running_since_s() is None or target.keeper.running_since_s() is None:
            pass  # bounded by the test's own timeout
        assert target.keeper.call(Request(Verb.SPACE), SHORT_S).errno == UNAVAILABLE
        appender.abandon()
        assert not target.keeper.restart() or target.workers_stuck() == 2
        assert hung.result(PATIENCE_S).errno == UNAVAILABLE
        assert not appender.gone()
        assert target.workers_stuck() == 2
        with pytest.raises(TargetUnavailableError):
            target.start_appender(pool)
        assert not target.close(SHORT_S)
        assert target.workers_stuck() == 2
    while not appender.gone():
        pass
    assert target.close(PATIENCE_S)


def test_a_directory_that_was_moved_is_seen_by_a_look_and_taken_for_nothing(tmp_path: Path, pool: Pool) -> None:
    """The open volume goes on taking writes, wherever it is now; the look finds no identity; nothing new is written at the path."""
    root = tmp_path / "root"
    root.mkdir()
    target = ready(root)
    target_id = run(target, identify("t")).id
    prepare(target)
    appender = target.start_appender(pool)
    open_volume(appender, pool)
    assert answers(appender, 1)[0].ok
    request = look_request(look_id="r", counter=1, journals=("j",), target_id=target_id)
    before = look_result(target.keeper.call(request, PATIENCE_S), "t").identity
    with moved_away(root):
        append(appender, block(pool, b"x"), offset=BLOCK_BYTES)
        assert answers(appender, 1)[0].ok
        assert look_result(target.keeper.call(request, PATIENCE_S), "t").identity is None
        assert ask(target, Verb.PREPARE, "j/.next/q", length=MIB).errno == errno.ENODEV
        assert list(root.iterdir()) == []
    with covered(root):
        assert look_result(target.keeper.call(request, PATIENCE_S), "t").identity is None
        assert ask(target, Verb.MKDIR, "x").errno == errno.ENODEV
    assert look_result(target.keeper.call(request, PATIENCE_S), "t").identity == before
    assert appender.close(PATIENCE_S)
    assert target.close(PATIENCE_S)


def test_a_fault_that_cannot_be_had_is_said_so(tmp_path: Path) -> None:
    """An error with a hint, and nothing left mounted."""
    with pytest.raises(FaultError, match="ntfs"), LoopDisk.mounted("ntfs", tmp_path / "image", tmp_path / "disk"):
        pass
    with LoopDisk.mounted("btrfs", tmp_path / "image", tmp_path / "disk") as disk, pytest.raises(FaultError, match="btrfs"):
        disk.shut_down()
