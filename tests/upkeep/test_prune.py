"""Removing volumes: who may, what a crash or a takeover in the middle leaves, how the next owner takes it back."""

from __future__ import annotations

import errno
from random import Random

import pytest
from tests.support.steps import Stopped, drive, memory_targets, put, tree

from nvrstore.errors import FencedError, TargetIOError, TargetUnavailableError
from nvrstore.failover.terms import Claim, ClaimKey
from nvrstore.journal.names import VolumeName, parse_volume_path, trash_path
from nvrstore.replicate.claim import put_claim
from nvrstore.targets.contract import UNAVAILABLE, Answer, Call, Verb
from nvrstore.targets.memory import MemoryTarget
from nvrstore.upkeep.prune import make_trash, prune, restore_trash

Targets = dict[str, MemoryTarget]
MINE = Claim("main", 8, "nvr-1", "a" * 32, 1, 0)
THEIRS = Claim("main", 9, "nvr-2", "b" * 32, 2, 0)


def name(number: int, day: str = "2026-11-23") -> VolumeName:
    found = parse_volume_path(f"main/{day}/07-45-10Z.t0008-9f2c41aa.l0.v{number:06d}.mp4")
    assert found is not None
    return found


def stored(*names: VolumeName) -> Targets:
    targets = memory_targets("a")
    drive(put_claim("a", MINE), targets)
    for each in names:
        put(targets["a"], each.path, each.path.encode())
    return targets


def volumes(targets: Targets) -> set[str]:
    """Paths of everything but claims and the identity."""
    return {path for path in tree(targets["a"]) if path.endswith(".mp4")}


def test_a_volume_goes_and_an_empty_day_with_it() -> None:
    """The last volume of a day takes the folder along, unless volumes may be opened in it now."""
    targets = stored(name(0), name(1), name(0, "2026-11-24"))
    assert drive(prune("a", name(0), MINE.key), targets)
    assert volumes(targets) == {name(1).path, name(0, "2026-11-24").path}
    assert drive(prune("a", name(1), MINE.key), targets)
    assert drive(prune("a", name(0, "2026-11-24"), MINE.key, busy_days={"2026-11-24"}), targets)
    assert volumes(targets) == set()
    assert "main/2026-11-23" not in targets["a"].files.dirs
    assert "main/2026-11-24" in targets["a"].files.dirs


def test_what_is_gone_already_is_no_error() -> None:
    """Pruning again, after a crash or by mistake, says so and changes nothing."""
    targets = stored(name(0))
    assert drive(prune("a", name(0), MINE.key), targets)
    assert not drive(prune("a", name(0), MINE.key), targets)


def test_a_superseded_writer_moves_nothing() -> None:
    """The higher term is seen before the first change."""
    targets = stored(name(0))
    drive(put_claim("a", THEIRS), targets)
    before = tree(targets["a"])
    with pytest.raises(FencedError) as caught:
        drive(prune("a", name(0), MINE.key), targets)
    assert (caught.value.term, caught.value.term_seen) == (8, 9)
    assert tree(targets["a"]) == before


def test_who_is_superseded_while_the_rename_hangs_puts_it_back() -> None:
    """The claim of the new owner arrives between the first look and the second."""
    targets = stored(name(0))

    def take_over(call: Call, answer: Answer) -> None:
        if call.request.verb is Verb.RENAME and answer.ok:
            drive(put_claim("a", THEIRS), targets)

    with pytest.raises(FencedError):
        drive(prune("a", name(0), MINE.key), targets, seen=take_over)
    assert volumes(targets) == {name(0).path}


@pytest.mark.parametrize("code", [errno.EIO, UNAVAILABLE])
def test_nothing_is_unlinked_on_doubt(code: int) -> None:
    """Where epochs/ cannot be read after the rename, the volume goes back."""
    targets = stored(name(0))
    lists = 0

    def fault(request: object) -> int:
        nonlocal lists
        lists += getattr(request, "verb", None) is Verb.LIST
        return code if lists == 2 and getattr(request, "verb", None) is Verb.LIST else 0

    targets["a"].fault = fault
    with pytest.raises((TargetIOError, TargetUnavailableError)):
        drive(prune("a", name(0), MINE.key), targets)
    assert volumes(targets) == {name(0).path}


def test_a_full_disk_on_which_no_folder_can_be_made_is_pruned_all_the_same() -> None:
    """Through the folder of an earlier term: whoever takes trash back looks into all of them."""
    targets = stored(name(0), name(1))
    assert drive(make_trash("a", "main", 5), targets)
    targets["a"].fault = lambda request: errno.ENOSPC if request.verb is Verb.MKDIR else 0
    assert drive(prune("a", name(0), MINE.key), targets)
    for count in range(1, 4):
        try:
            drive(prune("a", name(1), MINE.key), targets, changes_max=count)
        except Stopped:
            targets["a"].fault = None
            assert [n.number for n in drive(restore_trash("a", "main"), targets).volumes] in ([1], [])
            assert volumes(targets) == {name(1).path}
            assert drive(make_trash("a", "main", 5), targets)
            targets["a"].fault = lambda request: errno.ENOSPC if request.verb is Verb.MKDIR else 0
    bare = stored(name(0))
    bare["a"].fault = targets["a"].fault
    with pytest.raises(TargetIOError):
        drive(prune("a", name(0), MINE.key), bare)
    assert volumes(bare) == {name(0).path}


def test_the_next_owner_takes_all_trash_back() -> None:
    """Of any term, under the very same name and content; empty folders go."""
    targets = stored(name(0), name(2))
    for number, term in [(1, 7), (3, 9), (4, 9)]:
        put(targets["a"], trash_path(name(number), term), name(number).path.encode())
    put(targets["a"], "main/trash/0009/notes.txt", b"not ours")
    restored = drive(restore_trash("a", "main"), targets)
    assert {n.number for n in restored.volumes} == {1, 3, 4}
    assert restored.failed == {"main/trash/0009/notes.txt": "no volume"}
    assert volumes(targets) == {name(n).path for n in range(5)}
    assert all(data == path.encode() for path, data in tree(targets["a"]).items() if path.endswith(".mp4"))
    assert "main/trash/0007" not in targets["a"].files.dirs


def test_taking_back_replaces_nothing() -> None:
    """A file that stands under the name stays as it is; the trash keeps the other."""
    targets = stored(name(0))
    put(targets["a"], trash_path(name(0), 7), b"other")
    restored = drive(restore_trash("a", "main"), targets)
    assert restored.volumes == ()
    assert list(restored.failed.values()) == ["a file of that name exists"]
    assert tree(targets["a"])[name(0).path] == name(0).path.encode()


def test_trash_comes_back_where_there_are_no_links() -> None:
    """File systems without hard links get a look and a rename."""
    targets = stored()
    put(targets["a"], trash_path(name(0), 7), b"x")
    targets["a"].fault = lambda request: errno.EPERM if request.verb is Verb.LINK else 0
    assert len(drive(restore_trash("a", "main"), targets).volumes) == 1
    assert volumes(targets) == {name(0).path}


def test_a_crash_anywhere_loses_nothing_that_the_next_owner_cannot_take_back() -> None:
    """Stopped before each of its changes and cut from power, the volume is in its place, in the trash, or was to go."""
    for count in range(10):
        targets = stored(name(0), name(1))
        unlinked = False

        def note(call: Call, answer: Answer) -> None:
            nonlocal unlinked
            unlinked = unlinked or (call.request.verb is Verb.UNLINK and answer.ok)

        try:
            drive(prune("a", name(0), MINE.key), targets, changes_max=count, seen=note)
            finished = True
        except Stopped:
            finished = False
        targets["a"].crash(Random(count))
        drive(restore_trash("a", "main"), targets)
        assert volumes(targets) == ({name(1).path} if unlinked else {name(0).path, name(1).path})
        if finished:
            assert unlinked
            return
    raise AssertionError("it never came to its end")


def test_a_crash_while_taking_back_is_taken_up_again() -> None:
    """Stopped anywhere, the second try ends with one file under one name."""
    for count in range(8):
        targets = stored()
        put(targets["a"], trash_path(name(0), 7), b"x")
        try:
            drive(restore_trash("a", "main"), targets, changes_max=count)
        except Stopped:
            pass
        targets["a"].crash(Random(count))
        assert drive(restore_trash("a", "main"), targets).failed == {}
        assert volumes(targets) == {name(0).path}


def test_a_key_of_the_same_term_fences_nobody() -> None:
    """Equal terms of two writers harm nothing: both may prune what they hold."""
    targets = stored(name(0))
    drive(put_claim("a", Claim("main", 8, "nvr-2", "b" * 32, 2, 0)), targets)
    assert drive(prune("a", name(0), ClaimKey(8, "a" * 32, 1)), targets)
