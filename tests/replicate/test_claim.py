"""Claiming a term on several targets: who may, what stands afterwards, what failures and races leave behind."""

from __future__ import annotations

import dataclasses
import errno
from random import Random

import pytest
from tests.support.steps import Stopped, drive, memory_targets, mixed, put, tree

from nvrstore.errors import FencedError, JournalInUseError, TargetError, TargetIOError
from nvrstore.failover.terms import Claim, Verdict, judge, owners, pack_claim, parse_claim
from nvrstore.replicate.claim import (
    CLAIMS_KEPT,
    Claimant,
    Claimed,
    bring_claim,
    claim_term,
    hold_term,
    in_use_by,
    look_for_higher,
    put_claim,
    read_claims,
)
from nvrstore.targets.contract import UNAVAILABLE, Request, Verb
from nvrstore.targets.look import look_request
from nvrstore.targets.memory import MemoryTarget

UTC_NS = 1_700_000_000_000_000_000
ME = Claimant("nvr-1", "a" * 32, 1)
ME_LATER = Claimant("nvr-1", "a" * 32, 2)
OTHER = Claimant("nvr-2", "b" * 32, 7)
Targets = dict[str, MemoryTarget]


def claim(targets: Targets, me: Claimant = ME, *, state_term: int = 0, take_over: bool = False, names: str = "") -> Claimed:
    return drive(claim_term(list(names or targets), "main", me, utc_ns=UTC_NS, state_term=state_term, take_over=take_over), targets)


def look(targets: Targets, who: Claimant, counter: int) -> None:
    for target in targets.values():
        request = look_request(look_id=who.recorder_id, counter=counter, journals=["main"], target_id=target.id)
        assert target.keeper.call(request, 0).ok


def test_the_first_claim_is_term_one_on_every_target() -> None:
    """The file is whole and durable under its name on each of them."""
    targets = memory_targets("ab")
    claimed = claim(targets)
    assert (claimed.claim.term, claimed.targets, claimed.failed, claimed.refuge) == (1, ("a", "b"), {}, False)
    for target in targets.values():
        target.crash()
        assert parse_claim(tree(target)[f"main/epochs/{claimed.claim.key.name}"]) == claimed.claim


@pytest.mark.parametrize(("state_term", "lease_term", "on_b", "expected"), [(0, 0, 0, 1), (5, 0, 0, 6), (0, 9, 2, 10), (3, 4, 8, 9)])
def test_a_term_is_above_everything_known(state_term: int, lease_term: int, on_b: int, expected: int) -> None:
    """Lease, state disk and each reachable target count."""
    targets = memory_targets("ab")
    if on_b:
        drive(put_claim("b", Claim("main", on_b, "nvr-1", ME.recorder_id, 0, UTC_NS)), targets)
    steps = claim_term(["a", "b"], "main", ME, utc_ns=UTC_NS, state_term=state_term, lease_term=lease_term)
    assert drive(steps, targets).claim.term == expected


def test_one_target_is_enough_and_none_means_refuge() -> None:
    """A target that fails is named with its error, and stops nobody."""
    targets = memory_targets("abc")
    targets["a"].fault = lambda request: UNAVAILABLE
    targets["b"].fault = lambda request: errno.EROFS if request.verb is Verb.PUT else 0
    claimed = claim(targets)
    assert claimed.targets == ("c",)
    assert {name: type(error) for name, error in claimed.failed.items()}.keys() == {"a", "b"}
    targets["c"].fault = lambda request: errno.EIO
    claimed = claim(targets, state_term=4)
    assert claimed.refuge
    assert claimed.claim.term == 5


def test_another_recorder_is_refused_with_its_name() -> None:
    """The newest claim names the owner; the sentence says who it is, the hint what to do."""
    targets = memory_targets("ab")
    claim(targets)
    with pytest.raises(JournalInUseError, match="'nvr-1'") as caught:
        claim(targets, OTHER)
    assert "--take-over" in caught.value.hint
    assert claim(targets, ME_LATER).claim.term == 2, "the same recorder starts again without asking"
    assert claim(targets, OTHER, take_over=True).claim.term == 3
    with pytest.raises(JournalInUseError, match="'nvr-2'"):
        claim(targets, ME_LATER)


def test_a_claim_whose_text_is_damaged_still_owns() -> None:
    """The name alone says who claims; a flipped bit in the text must not open the journal to others."""
    targets = memory_targets("a")
    held = claim(targets).claim
    targets["a"].files.files[f"main/epochs/{held.key.name}"].data[3] ^= 1
    with pytest.raises(JournalInUseError, match=ME.recorder_id):
        claim(targets, OTHER)


def test_an_owner_whose_counters_stand_still_is_gone() -> None:
    """Two readings with `takeover_s` between them: the journal is free when no reachable target saw the owner look."""
    targets = memory_targets("ab")
    claim(targets)
    look(targets, ME, 5)
    first = drive(read_claims(["a", "b"], "main"), targets)
    assert in_use_by(first, OTHER.recorder_id) is not None
    second = drive(read_claims(["a", "b"], "main"), targets)
    assert in_use_by(second, OTHER.recorder_id, first) is None
    assert drive(claim_term(["a", "b"], "main", OTHER, utc_ns=UTC_NS, state_term=0, earlier=first), targets).claim.term == 2


def test_an_owner_who_looks_anywhere_is_alive() -> None:
    """One counter that moved on one target is enough; so is a target that did not answer the first time."""
    targets = memory_targets("ab")
    claim(targets)
    look(targets, ME, 5)
    first = drive(read_claims(["a", "b"], "main"), targets)
    look({"b": targets["b"]}, ME, 6)
    assert in_use_by(drive(read_claims(["a", "b"], "main"), targets), OTHER.recorder_id, first) is not None
    only_a = drive(read_claims(["a"], "main"), targets)
    both = drive(read_claims(["a", "b"], "main"), targets)
    assert in_use_by(both, OTHER.recorder_id, only_a) is not None
    assert in_use_by(drive(read_claims(["a"], "main"), targets), OTHER.recorder_id, both) is None


def test_an_owner_that_never_looked_is_gone_after_the_wait_and_a_new_one_is_not() -> None:
    """A recorder that died between its claim and its first look blocks nobody for ever; one that claimed meanwhile does."""
    targets = memory_targets("a")
    claim(targets)
    first = drive(read_claims(["a"], "main"), targets)
    assert in_use_by(drive(read_claims(["a"], "main"), targets), OTHER.recorder_id, first) is None
    claim(targets, ME_LATER)
    assert in_use_by(drive(read_claims(["a"], "main"), targets), OTHER.recorder_id, first) is not None


@pytest.mark.parametrize("code", [errno.EEXIST, UNAVAILABLE])
def test_an_answer_that_was_lost_is_read_back(code: int) -> None:
    """The claim was written, the answer says otherwise: what stands there counts."""
    targets = memory_targets("a")
    mine = Claim("main", 4, ME.recorder, ME.recorder_id, ME.session, UTC_NS)
    put(targets["a"], f"main/epochs/{mine.key.name}", pack_claim(mine))
    targets["a"].fault = lambda request: code if request.verb is Verb.PUT else 0
    drive(put_claim("a", mine), targets)
    drive(put_claim("a", dataclasses.replace(mine, utc_ns=UTC_NS + 1)), targets)  # the same claim, told at another time
    with pytest.raises(TargetError):
        drive(put_claim("a", dataclasses.replace(mine, term=5)), targets)
    targets["a"].files.files[f"main/epochs/{mine.key.name}"].data[3] ^= 1
    with pytest.raises(TargetError):
        drive(put_claim("a", mine), targets)


def test_a_claim_that_could_not_be_synced_is_not_held() -> None:
    """EIO is no doubt but an answer: the term is not reported as held there."""
    targets = memory_targets("a")
    targets["a"].fault = lambda request: errno.EIO if request.verb is Verb.PUT else 0
    with pytest.raises(TargetIOError, match="EIO"):
        drive(put_claim("a", Claim("main", 4, ME.recorder, ME.recorder_id, ME.session, UTC_NS)), targets)


def test_a_crash_anywhere_leaves_a_claim_whole_or_absent_and_the_next_start_goes_above() -> None:
    """Stopped before each of its changes and cut from power, a claim is never torn, and terms only rise."""
    for count in range(20):
        targets = memory_targets("ab")
        claim(targets)
        steps = claim_term(["a", "b"], "main", ME_LATER, utc_ns=UTC_NS, state_term=0)
        finished = True
        try:
            drive(steps, targets, changes_max=count)
        except Stopped:
            finished = False
        for target in targets.values():
            target.crash(Random(count))
            for path, data in tree(target).items():
                if "/epochs/" in path:
                    parse_claim(data)
        again = claim(targets, Claimant("nvr-1", "a" * 32, 3))
        assert again.claim.term in (2, 3)
        assert again.targets == ("a", "b")
        if finished:
            return
    raise AssertionError("the claim never came to its end")


@pytest.mark.parametrize("seed", [*range(40), 795])  # 795: a claim was taken back while the third one read it
def test_of_two_that_start_in_one_moment_one_is_left(seed: int) -> None:
    """However their calls are mixed, one holds the highest term, and the other was refused or is superseded by it."""
    targets = memory_targets("ab")
    works = {
        who.recorder: claim_term(["a", "b"], "main", who, utc_ns=UTC_NS, state_term=0)
        for who in (ME, OTHER, Claimant("nvr-3", "c" * 32, 9))
    }
    results = mixed(works, targets, Random(seed))
    winners = [result.claim.key for result in results.values() if isinstance(result, Claimed)]
    assert winners
    assert all(isinstance(result, Claimed | JournalInUseError) for result in results.values())
    top = max(winners)
    assert [key for key in winners if key.term == top.term] == [top]
    assert all(judge(key, top) is Verdict.SUPERSEDED for key in winners if key != top)
    seen = drive(read_claims(["a", "b"], "main"), targets)
    assert owners(key for keys in seen.keys.values() for key in keys) == (top,)


def test_a_claim_is_brought_to_a_target_that_returns() -> None:
    """The target lacks it, and gets it before anything else; a higher one there is not overbid behind its back."""
    targets = memory_targets("ab")
    targets["b"].fault = lambda request: UNAVAILABLE
    mine = claim(targets, state_term=4).claim
    targets["b"].fault = None
    assert drive(bring_claim("b", mine), targets) is Verdict.OK
    assert drive(bring_claim("b", mine), targets) is Verdict.OK
    assert f"main/epochs/{mine.key.name}" in tree(targets["b"])
    theirs = drive(claim_term(["b"], "main", OTHER, utc_ns=UTC_NS, state_term=0, take_over=True), targets).claim
    assert drive(bring_claim("b", mine), targets) is Verdict.SUPERSEDED
    assert drive(look_for_higher("a", "main", mine.key), targets) is Verdict.OK
    drive(hold_term("a", "main", mine.key), targets)
    with pytest.raises(FencedError) as caught:
        drive(hold_term("b", "main", mine.key), targets)
    assert (caught.value.term, caught.value.term_seen) == (mine.term, theirs.term)


def test_a_stale_claim_of_ones_own_is_answered_once() -> None:
    """A target that was away shows a higher term of this recorder's earlier session: claim above it; seen again, it is alive."""
    targets = memory_targets("ab")
    old = Claim("main", 9, "nvr-1", ME.recorder_id, ME.session, UTC_NS)
    drive(put_claim("b", old), targets)
    mine = claim(targets, ME_LATER, names="a").claim
    assert drive(bring_claim("b", mine), targets) is Verdict.STALE_SELF
    higher = drive(claim_term(["a", "b"], "main", ME_LATER, utc_ns=UTC_NS, state_term=mine.term), targets)
    assert higher.claim.term == 10
    assert drive(bring_claim("b", higher.claim, frozenset({old.session})), targets) is Verdict.OK
    drive(put_claim("b", dataclasses.replace(old, term=11)), targets)
    assert drive(bring_claim("b", higher.claim, frozenset({old.session})), targets) is Verdict.SUPERSEDED


def test_claims_of_many_starts_do_not_pile_up() -> None:
    """The newest stay; the highest term never sinks."""
    targets = memory_targets("a")
    for session in range(CLAIMS_KEPT + 30):
        claimed = claim(targets, Claimant("nvr-1", "a" * 32, session))
    names = sorted(path for path in tree(targets["a"]) if "/epochs/" in path)
    assert len(names) == CLAIMS_KEPT + 1
    assert names[-1].endswith(claimed.claim.key.name)
    assert claimed.claim.term == CLAIMS_KEPT + 30


def test_an_unrelated_file_in_epochs_is_no_claim() -> None:
    """Leftovers of other programs neither own nor fence."""
    targets = memory_targets("a")
    put(targets["a"], "main/epochs/zzz", b"hello")
    targets["a"].keeper.call(Request(Verb.MKDIR, "main/epochs/t0000000009"), 0)
    assert claim(targets).claim.term == 1
