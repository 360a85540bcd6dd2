"""What recovery costs: it reads what was open, whatever else there is."""

from __future__ import annotations

import pytest
from tests.support.copies import MINE, closed, cut_at, make_volume, path_of, series, store, targets_with_claim
from tests.support.steps import drive

from nvrstore.limits import MIB
from nvrstore.replicate.inventory import Known, survey
from nvrstore.replicate.recover import recover_volume
from nvrstore.replicate.resync import plan_resync
from nvrstore.targets.contract import Answer, Call, Verb

#: Headers, ends and what is searched behind them: of a volume however short.
SMALL_BYTES = MIB


def bytes_read(*, archive: int, batches: int) -> tuple[int, int]:
    """Bytes that a start reads which finds so many closed volumes, known to its catalog, and one that was open; and that one's length."""
    targets = targets_with_claim("ab")
    known: dict[tuple[str, str], Known] = {}
    for volume in series(targets, archive):
        store(targets, volume, a=volume.data, b=volume.data)
        known |= {(name, path_of(volume)): Known(volume.builder.header.volume_id, len(volume.data)) for name in "ab"}
    left = make_volume(targets, "ab", batches=batches, number=archive, sizes=20_000)
    store(targets, left, a=left.data, b=cut_at(left, batches - 2))
    read = 0

    def count(call: Call, answer: Answer) -> None:
        nonlocal read
        read += len(answer.data) if call.request.verb is Verb.READ else 0

    seen = drive(survey(["a", "b"], "main", known), targets, seen=count)
    plan = plan_resync(seen, ["a", "b"], recorder="nvr-1", held_s=0)
    assert [volume.name.number for volume in plan.recover] == [archive]
    assert not plan.copies
    ids = {name: target.id for name, target in targets.items()}
    steps = recover_volume(plan.recover[0], own=MINE.key, configured=ids, answered=seen.answered, in_place_ok=lambda target, path: True)
    done = drive(steps, targets, seen=count)
    assert done.closed_length == len(closed(left))
    return read, len(left.data)


def test_what_recovery_reads_does_not_grow_with_the_archive() -> None:
    """Forty times as many closed volumes: not one byte more."""
    assert bytes_read(archive=80, batches=4)[0] == bytes_read(archive=2, batches=4)[0]


@pytest.mark.parametrize("batches", [2, 8, 32])
def test_what_recovery_reads_is_bounded_by_what_was_left_open(batches: int) -> None:
    """Its length once on each of its targets, at most: recovery takes as long as a volume is large."""
    read, length = bytes_read(archive=5, batches=batches)
    assert read <= 2 * length + SMALL_BYTES
