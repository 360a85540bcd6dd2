"""Plans of resync: who gets what in which order, what is left alone, who is synced."""

from __future__ import annotations

from tests.support.copies import (
    MINE,
    make_volume,
    path_of,
    plan,
    recover,
    run,
    series,
    store,
    targets_with_claim,
    volumes,
)
from tests.support.steps import content, drive

from nvrstore.journal.names import VolumeName
from nvrstore.replicate.floor import Floor
from nvrstore.replicate.inventory import list_volumes
from nvrstore.replicate.resync import resync
from nvrstore.targets.contract import UNAVAILABLE


def test_members_get_what_they_lack_newest_first() -> None:
    """In both directions; who lacks nothing is synced."""
    targets = targets_with_claim("abc")
    many = series(targets, 4)
    for number, names in enumerate(["a", "b", "ab", "a"]):
        store(targets, many[number], **dict.fromkeys(names, many[number].data))
    the_plan = plan(targets, "ab")
    jobs = [(job.volume.name.number, job.target, job.sources) for job in the_plan.copies]
    assert jobs == [
        (3, "b", ("a",)),
        (1, "a", ("b",)),
        (0, "b", ("a",)),
    ]
    assert the_plan.synced == frozenset()
    run(targets, the_plan)
    assert volumes(targets, "a") == volumes(targets, "b") == {path_of(v): bytes(v.data) for v in many}
    again = plan(targets, "ab")
    assert again.copies == ()
    assert again.synced == {"a", "b"}
    assert volumes(targets, "c") == {}


def test_what_expired_does_not_come_back() -> None:
    """Under the journal's floor nobody gets it, under a target's floor that target does not."""
    targets = targets_with_claim("ab")
    many = series(targets, 3)
    for volume in many:
        store(targets, volume, b=volume.data)
    names = [c.name for c in drive(list_volumes("b", "main"), targets)]
    the_plan = plan(targets, "ab", floors={"*": Floor().raised(names[:1]), "a": Floor().raised(names[:2])})
    assert [job.volume.name.number for job in the_plan.copies] == [2]
    assert plan(targets, "ab", floors={"b": Floor().raised(names)}).synced == {"b"}
    assert plan(targets, "ab", floors={"a": Floor().raised(names)}).synced == {"a", "b"}


def test_the_policy_decides_what_a_standby_gets() -> None:
    """A window is a predicate."""
    targets = targets_with_claim("ab")
    many = series(targets, 3)
    for volume in many:
        store(targets, volume, a=volume.data)
    the_plan = plan(targets, "ab", wanted=lambda volume, target: target == "a" or volume.name.number >= 2)
    assert [job.volume.name.number for job in the_plan.copies] == [2]


def test_volumes_that_are_written_now_are_left_alone() -> None:
    """Not copied, not recovered; a member that has no part in them is not synced yet."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "a", batches=2)
    path = store(targets, volume, a=volume.data)
    the_plan = plan(targets, "ab", busy={path})
    assert (the_plan.copies, the_plan.recover, the_plan.synced) == ((), (), frozenset({"a"}))


def test_what_only_a_target_that_is_away_has_is_lacking() -> None:
    """The catalog knows of it: nobody is called synced before it was copied."""
    targets = targets_with_claim("ab")
    one, two = series(targets, 2)
    store(targets, one, a=one.data, b=one.data)
    name = VolumeName(path_of(two), "main", "2026-11-23", "07-45-10", 8, "9f2c41aa", 0, 1)
    known = {two.builder.header.volume_id: name, one.builder.header.volume_id: name}
    assert plan(targets, "ab").synced == {"a", "b"}
    assert plan(targets, "ab", known=known).synced == frozenset()
    assert plan(targets, "ab", known=known, floors={"*": Floor().raised([name])}).synced == {"a", "b"}


def test_unsettled_volumes_are_recovered_first_and_copied_then() -> None:
    """One that cannot be closed yet, since a member is away, is copied as far as it goes."""
    targets = targets_with_claim("abc")
    volume = make_volume(targets, "ac", batches=3)
    path = store(targets, volume, a=volume.data + bytes(8192))
    targets["c"].fault = lambda request: UNAVAILABLE
    first = plan(targets, "ab")
    assert [v.name.number for v in first.recover] == [42]
    assert first.copies == ()
    [result] = recover(targets)
    held = {result.volume_id: result.holders}
    second = plan(targets, "ab", held=held)
    run(targets, second)
    assert content(targets["b"], path) == content(targets["a"], path) == volume.data
    targets["c"].fault = None
    recover(targets)
    assert plan(targets, "ab").synced == {"a", "b"}
    assert volumes(targets, "a") == volumes(targets, "b")


def test_the_refuge_comes_first_and_is_released_when_everybody_has_it() -> None:
    """What lies on the state disk alone is the most urgent; its copy goes only after the others are durable."""
    targets = targets_with_claim("abr")
    many = series(targets, 3)
    store(targets, many[0], r=many[0].data)
    store(targets, many[1], a=many[1].data)
    store(targets, many[2], a=many[2].data)
    first = plan(targets, "ab", refuge="r")
    assert [(job.volume.name.number, job.target) for job in first.copies] == [(0, "a"), (0, "b"), (2, "b"), (1, "b")]
    assert first.release == ()
    drive(resync(first.copies[:1], own=MINE.key), targets)
    assert plan(targets, "ab", refuge="r").release == (), "b still lacks it"
    run(targets, first)
    second = plan(targets, "ab", refuge="r")
    assert [v.name.number for v in second.release] == [0]
    assert second.copies == ()
    assert plan(targets, "", refuge="r").release == (), "while no member lives nothing is released"
