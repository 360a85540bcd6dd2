"""Who was heard: a target that does not give what it has is not one that has nothing."""

from __future__ import annotations

import errno

import pytest
from tests.support.copies import MINE, Targets, closed, copies, cut_at, make_volume, recover, store, targets_with_claim
from tests.support.steps import drive

from nvrstore.errors import TargetError
from nvrstore.replicate.copying import fetch_batch
from nvrstore.replicate.inventory import survey
from nvrstore.replicate.recover import Recovered, recover_volume
from nvrstore.targets.contract import Request, Verb


def fails(targets: Targets, name: str, *verbs: Verb, code: int = errno.ENOTCONN) -> None:
    def fault(request: Request) -> int:
        return code if request.verb in verbs else 0

    targets[name].fault = fault


def test_nothing_is_closed_while_a_target_that_was_listed_does_not_give_its_copy() -> None:
    """What it holds may be longer: closed without it, committed batches would be a conflict for ever."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "ab", batches=4, lag=3)
    path = store(targets, volume, a=cut_at(volume, 3), b=cut_at(volume, 1))
    seen = drive(survey(["a", "b"], "main"), targets)
    assert set(seen.answered) == {"a", "b"}
    fails(targets, "a", Verb.STAT, Verb.READ)
    steps = recover_volume(
        seen.volumes[0],
        own=MINE.key,
        configured={name: target.id for name, target in targets.items()},
        answered=seen.answered,
        in_place_ok=lambda target, path: True,
    )
    assert drive(steps, targets).closed_length is None
    targets["a"].fault = None
    recover(targets)
    assert copies(targets, path) == {"a": closed(volume), "b": closed(volume)}


def test_a_member_whose_id_is_not_known_yet_is_waited_for_like_any_other() -> None:
    """A new state directory, and it is away: it may hold what was committed after the others had left."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "ab", batches=6, lag=1)
    path = store(targets, volume, a=cut_at(volume, 2, 4096), b=cut_at(volume, 5, 4096))

    def recovered(*names: str, **ids: str) -> Recovered:
        seen = drive(survey(names, "main"), targets)
        steps = recover_volume(seen.volumes[0], own=MINE.key, configured=ids, answered=seen.answered, in_place_ok=lambda target, path: True)
        return drive(steps, targets)

    known = {name: target.id for name, target in targets.items()}
    assert recovered("a", a=known["a"], b="").closed_length is None
    done = recovered("a", "b", **known)
    assert done.closed_length == len(closed(volume))
    assert copies(targets, path) == {"a": closed(volume), "b": closed(volume)}


@pytest.mark.parametrize("others", [{}, {"b": "ef" * 16}], ids=["no longer configured", "another target has its name"])
def test_a_member_that_is_struck_is_waited_for_no_longer(others: dict[str, str]) -> None:
    """Else its volumes would stay open for ever."""
    targets = targets_with_claim("ab")
    store(targets, volume := make_volume(targets, "ab", batches=6, lag=1), a=cut_at(volume, 2, 4096), b=cut_at(volume, 5, 4096))
    seen = drive(survey(["a"], "main"), targets)
    configured = {"a": targets["a"].id, **others}
    steps = recover_volume(seen.volumes[0], own=MINE.key, configured=configured, answered=("a",), in_place_ok=lambda target, path: True)
    assert drive(steps, targets).closed_length is not None


def test_a_mount_point_that_went_bare_during_the_survey_has_not_answered() -> None:
    """It shows no volume, and holds every one of them."""
    targets = targets_with_claim("ab")
    store(targets, volume := make_volume(targets, "ab"), a=cut_at(volume, 3), b=cut_at(volume, 1))
    targets["a"].unmount()
    seen = drive(survey(["a", "b"], "main"), targets)
    assert seen.answered == ("b",)
    assert "a" in seen.failed


def test_a_batch_that_is_whole_somewhere_is_not_given_with_a_hole() -> None:
    """Its holder is away for a moment: that is no damage."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "ab")
    path = store(targets, volume, a=cut_at(volume, 0), b=cut_at(volume, 3))
    fails(targets, "b", Verb.READ)
    steps = fetch_batch(volume.batches[2], volume.builder.header, {"a": path, "b": path}, whole_on=("b",))
    with pytest.raises(TargetError, match="cannot be read now"):
        drive(steps, targets)
