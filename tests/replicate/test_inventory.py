"""What lies where: listings, copies brought together, what is not read twice."""

from __future__ import annotations

import errno

from tests.support.copies import (
    cut_at,
    look,
    path_of,
    series,
    store,
    targets_with_claim,
)
from tests.support.steps import drive, put

from nvrstore.errors import TargetUnavailableError
from nvrstore.replicate.inventory import Known, begun_since, list_volumes, survey
from nvrstore.targets.contract import UNAVAILABLE, Answer, Call, Request, Verb


def test_copies_of_one_volume_are_brought_together() -> None:
    """By the id in the header, in the order of writing, over many pages of a listing."""
    targets = targets_with_claim("ab")
    many = series(targets, 3)
    store(targets, many[0], a=many[0].data)
    store(targets, many[1], a=many[1].data, b=many[1].data)
    store(targets, many[2], b=cut_at(many[2], 0))
    put(targets["a"], "main/2026-11-23/notes.txt", b"x")
    put(targets["a"], "main/.next/abc", b"x")
    seen = look(targets)
    assert [(v.name.number, "".join(v.copies), v.settled) for v in seen.volumes] == [(0, "a", True), (1, "ab", True), (2, "b", False)]
    assert [v.header is None for v in seen.volumes] == [True, True, False], "headers are large: only open volumes keep theirs"


def test_a_target_that_does_not_answer_is_named_and_the_others_are_listed() -> None:
    """Half a listing is none."""
    targets = targets_with_claim("ab")
    [one] = series(targets, 1)
    store(targets, one, a=one.data, b=one.data)
    lists = 0

    def second(request: Request) -> int:
        nonlocal lists
        lists += request.verb is Verb.LIST
        return UNAVAILABLE if lists >= 2 else 0

    targets["b"].fault = second
    seen = look(targets)
    assert seen.answered == ("a",)
    assert isinstance(seen.failed["b"], TargetUnavailableError)
    assert set(seen.volumes[0].copies) == {"a"}


def test_what_the_catalog_knows_is_not_read_again() -> None:
    """A closed copy of the known length costs no read; any other length does."""
    targets = targets_with_claim("a")
    one, two = series(targets, 2)
    store(targets, one, a=one.data)
    store(targets, two, a=two.data)
    known = {
        ("a", path_of(one)): Known(one.builder.header.volume_id, len(one.data)),
        ("a", path_of(two)): Known(two.builder.header.volume_id, 4096),
    }
    reads: list[str] = []

    def note(call: Call, answer: Answer) -> None:
        if call.request.verb is Verb.READ:
            reads.append(call.request.path)

    seen = drive(survey(["a"], "main", known), targets, seen=note)
    assert set(reads) == {path_of(two)}
    assert [(v.volume_id, v.settled) for v in seen.volumes] == [(v.builder.header.volume_id, True) for v in (one, two)]


def test_a_file_that_vanishes_while_it_is_listed_is_no_error() -> None:
    """Retention goes on beside it."""
    targets = targets_with_claim("a")
    one, two = series(targets, 2)
    store(targets, one, a=one.data)
    store(targets, two, a=two.data)
    targets["a"].fault = lambda r: errno.ENOENT if r.verb is Verb.READ and r.path == path_of(one) else 0
    assert [v.name.number for v in look(targets).volumes] == [1]
    assert len(drive(list_volumes("a", "main"), targets)) == 2


def test_what_a_writer_began_during_a_survey_is_named() -> None:
    """By its number in its lane; what it began before, and what others wrote, is not."""
    targets = targets_with_claim("a")
    many = series(targets, 3)
    for volume in many:
        store(targets, volume, a=volume.data)
    seen = look(targets)
    tag = seen.volumes[0].name.tag
    assert begun_since(seen, tag, {0: 2}) == {path_of(many[2])}
    assert begun_since(seen, tag, {}) == {path_of(volume) for volume in many}, "a lane that is new"
    assert begun_since(seen, "00000000", {0: 0}) == set()
