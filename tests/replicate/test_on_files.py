"""Claim, recovery, resync and pruning on real directories with real workers: the model and the system calls must agree."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from tests.support.volumes import GATE, YARD, Volume, fragment, header, scan

from nvrstore.failover.terms import Claim
from nvrstore.journal.names import volume_path
from nvrstore.model import MemberRef, Role
from nvrstore.replicate.claim import Claimant, claim_term, hold_term
from nvrstore.replicate.inventory import list_volumes, survey
from nvrstore.replicate.recover import recover_volume
from nvrstore.replicate.resync import plan_resync, resync
from nvrstore.targets.contract import Steps
from nvrstore.targets.directory import DirectoryTarget
from nvrstore.targets.identity import init_target
from nvrstore.targets.steps import run_steps
from nvrstore.upkeep.prune import prune, restore_trash

T = TypeVar("T")
ME = Claimant("nvr-1", "a" * 32, 3)


class Place:
    """Three directory targets and a claimed journal."""

    def __init__(self, root: Path, isolation: str) -> None:
        self.roots = {name: root / name for name in "abc"}
        self.targets = {name: DirectoryTarget(name, path, isolation=isolation) for name, path in self.roots.items()}
        self.ids = {name: self.run(init_target(name)).id for name in self.targets}
        self.claim: Claim = self.run(claim_term(list("abc"), "main", ME, utc_ns=0, state_term=0)).claim

    def run(self, steps: Steps[T]) -> T:
        return run_steps(steps, self.targets, timeout_s=30)

    def close(self) -> None:
        for target in self.targets.values():
            target.close(5)


@pytest.fixture(params=["thread", "process"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path, request.param)
    yield made
    made.close()


def a_volume(place: Place) -> Volume:
    members = (MemberRef("a", place.ids["a"], Role.PRIMARY), MemberRef("b", place.ids["b"], Role.STANDBY))
    volume = Volume.begin(header(members=members))
    for n in range(4):
        fragments = [fragment(GATE, at_s=60 + n, index=5 * n, sizes=90_000), fragment(YARD, at_s=60.5 + n, index=5 * n, sizes=150_000)]
        volume.add(fragments, last_committed=max(-1, n - 1))
    return volume


def test_what_was_torn_is_recovered_copied_and_pruned(place: Place) -> None:
    """One copy torn with preallocated zeroes behind, one short, one absent: all equal and closed; then one goes and comes back."""
    volume = a_volume(place)
    path = volume_path(volume.builder.header)
    for name, data in [("a", bytes(volume.data[:-5000]) + bytes(3 << 20)), ("b", bytes(volume.data[: volume.batches[1].end]))]:
        file = place.roots[name] / path
        file.parent.mkdir(parents=True)
        file.write_bytes(data)
    seen = place.run(survey(list("abc"), "main"))
    assert [(v.settled, set(v.copies)) for v in seen.volumes] == [(False, {"a", "b"})]
    result = place.run(
        recover_volume(
            seen.volumes[0],
            own=place.claim.key,
            configured=place.ids,
            answered=seen.answered,
            in_place_ok=lambda target, _: target == "a",  # b gets a new file
        )
    )
    assert [batch.number for batch in result.batches] == [0, 1, 2]
    plan = plan_resync(place.run(survey(list("abc"), "main")), list("abc"), recorder="nvr-1", held_s=0)
    assert [(job.target, job.sources) for job in plan.copies] == [("c", ("a", "b"))]
    assert place.run(resync(plan.copies, own=place.claim.key)).failed == {}
    contents = {(root / path).read_bytes() for root in place.roots.values()}
    assert len(contents) == 1
    found = scan(next(iter(contents)), deep=True)
    assert found.closed
    assert found.damage == ()
    assert plan_resync(place.run(survey(list("abc"), "main")), list("abc"), recorder="nvr-1", held_s=0).synced == set("abc")

    [copy] = place.run(list_volumes("c", "main"))
    place.run(hold_term("c", "main", place.claim.key))
    assert place.run(prune("c", copy.name, place.claim.key))
    assert not (place.roots["c"] / path).exists()
    assert not (place.roots["c"] / path).parent.exists()
    trash = place.roots["b"] / "main/trash/0001"
    trash.mkdir(parents=True)
    (place.roots["b"] / path).rename(trash / f"{copy.name.day}_{Path(path).name}")
    assert [name.path for name in place.run(restore_trash("b", "main")).volumes] == [path]
    assert (place.roots["b"] / path).read_bytes() in contents
