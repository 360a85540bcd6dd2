"""The engine records, targets fail, the power goes: recovery and resync of a new start must show everything that was committed."""

from __future__ import annotations

import errno
from random import Random

import pytest
from tests.support.engine import RECORDER, Rig
from tests.support.steps import Stopped, drive, tree
from tests.support.volumes import scan

from nvrstore.failover.terms import Claim
from nvrstore.replicate.claim import Claimant, claim_term
from nvrstore.replicate.inventory import survey
from nvrstore.replicate.recover import recover_volume
from nvrstore.replicate.resync import plan_resync, resync
from nvrstore.targets.contract import Verb
from nvrstore.targets.memory import MemoryTarget

Targets = dict[str, MemoryTarget]
ROUNDS_MAX = 6


def upkeep(targets: Targets, claim: Claim, *, changes_max: int | None = None) -> frozenset[str]:
    """One round as the recorder does it: recover what is open, copy what is missing. Returns who is synced."""
    names = [name for name in targets if name != "refuge"]
    held: dict[str, frozenset[str]] = {}
    for _ in range(ROUNDS_MAX):
        seen = drive(survey(list(targets), "main"), targets)
        plan = plan_resync(seen, names, recorder="nvr-1", held_s=0, refuge="refuge", held=held)
        if not plan.recover and not plan.copies:
            return plan.synced
        for volume in plan.recover:
            steps = recover_volume(
                volume,
                own=claim.key,
                configured={name: target.id for name, target in targets.items()},
                answered=seen.answered,
                in_place_ok=lambda *_: True,
            )
            result = drive(steps, targets, changes_max=changes_max)
            held[result.volume_id] = result.holders
        drive(resync(plan.copies, own=claim.key), targets, changes_max=changes_max)
    raise AssertionError("upkeep never comes to its end")


def stored(target: MemoryTarget) -> set[tuple[str, int, int]]:
    """Identities of all fragments that lie on `target`, every checksum checked."""
    found: set[tuple[str, int, int]] = set()
    for path, data in tree(target).items():
        if not path.endswith(".mp4") or "/.next/" in path:
            continue
        result = scan(data, deep=True)
        assert result.header is not None
        assert result.damage == ()
        for batch in result.batches:
            found |= {(result.header.tracks[e.track_id - 1].track.stream, e.session, e.index) for e in batch.entries}
    return found


def volumes(target: MemoryTarget) -> dict[str, bytes]:
    return {path: data for path, data in tree(target).items() if path.endswith(".mp4")}


def disturb(rig: Rig, rng: Random) -> None:
    """One fault of one target, or its end. Never all targets destroyed: what is durable stays."""
    target = rig.targets[rng.choice(sorted(rig.targets))]
    match rng.randrange(6):
        case 0:
            target.crash(rng)
        case 1:
            target.hold()
        case 2:
            target.fault = lambda request: errno.EIO if request.verb in (Verb.APPEND, Verb.OPEN) else 0
        case 3:
            target.kill_workers()
        case 4:
            target.fault = lambda request: errno.ENOSPC if request.verb in (Verb.PREPARE, Verb.APPEND) else 0
        case _:
            target.fault = None
            if target.held:
                target.release()


@pytest.mark.parametrize("seed", range(24))
def test_everything_committed_is_there_after_a_power_cut(seed: int) -> None:
    """Two or three targets with a refuge, faults at random, then the power goes everywhere; the next start loses nothing committed."""
    rng = Random(seed)
    names = "abc"[: rng.choice([2, 2, 3])]
    rig = Rig(names, refuge=rng.random() < 0.5, volume_bytes=rng.choice([1 << 18, 1 << 20]))
    try:
        rig.camera("gate", size=1500)
        rig.camera("yard", size=700)
        rig.run(1.5)
        for _ in range(rng.randrange(1, 7)):
            rig.sync()
            disturb(rig, rng)
            rig.run(rng.choice([0.3, 1.2, 3.0, 35.0]), step_s=0.1)
        if rng.random() < 0.3:
            rig.finish(2.0)
        targets: Targets = dict(rig.targets)
        for target in targets.values():
            target.crash(rng)
            target.fault = None
            target.held = False
        acked = set(rig.heard.acked)
        assert acked, "the run recorded something"

        me = Claimant("nvr-1", RECORDER, 99)
        claim = drive(claim_term(sorted(targets), "main", me, utc_ns=0, state_term=1), targets).claim
        for _ in range(rng.randrange(4)):
            try:
                upkeep(targets, claim, changes_max=rng.randrange(1, 30))
            except Stopped:
                pass
            for target in targets.values():
                target.crash(rng)
        assert upkeep(targets, claim) == set(names)
        for name in names:
            assert acked <= stored(targets[name])
        assert len({tuple(sorted(volumes(targets[name]).items())) for name in names}) == 1, "copies are equal byte for byte"
        before = {name: tree(target) for name, target in targets.items()}
        assert upkeep(targets, claim) == set(names)
        assert {name: tree(target) for name, target in targets.items()} == before, "a second run changes nothing"
    finally:
        rig.close()


def test_a_request_that_was_never_answered_does_no_harm() -> None:
    """A batch that one target kept and nobody heard of: recovery keeps it, on all members."""
    rig = Rig("ab")
    try:
        rig.camera("gate")
        rig.run(2.0)
        rig.sync()
        rig.targets["a"].hold()
        rig.run(0.4, step_s=0.1)
        rig.targets["a"].perform(1)
        rig.targets["b"].hold()
        rig.run(0.2)
        targets: Targets = dict(rig.targets)
        for target in targets.values():
            target.crash()
            target.held = False
        acked = set(rig.heard.acked)
        claim = drive(claim_term(["a", "b"], "main", Claimant("nvr-1", RECORDER, 99), utc_ns=0, state_term=1), targets).claim
        assert upkeep(targets, claim) == {"a", "b"}
        assert acked <= stored(targets["a"]) == stored(targets["b"])
        assert volumes(targets["a"]) == volumes(targets["b"])
    finally:
        rig.close()
