"""Recovery under failing targets and power cuts: whatever interrupts it, the next run comes to the same end."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.copies import (
    closed,
    closed_at,
    copies,
    cut_at,
    flipped,
    make_volume,
    path_of,
    recover,
    store,
    targets_with_claim,
    torn,
)
from tests.support.steps import Stopped, content
from tests.support.volumes import Volume

from nvrstore.replicate.recover import CopyStatus
from nvrstore.targets.contract import UNAVAILABLE, Verb
from nvrstore.targets.memory import MemoryTarget


@pytest.mark.parametrize("verb", [Verb.WRITE, Verb.SYNC, Verb.TRUNCATE, Verb.READ])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, UNAVAILABLE])
def test_a_target_that_fails_costs_only_its_own_copy(verb: Verb, code: int) -> None:
    """Whatever fails there, the other copy is brought to its end, and the failed one later."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "ab")
    path = store(targets, volume, a=torn(volume, 3, Random(5), tail=4096), b=volume.data)
    targets["a"].fault = lambda request: code if request.verb is verb and "epochs" not in request.path else 0
    recover(targets)
    everything = {closed(volume), bytes(volume.data)}  # closed, unless a's copy could not be heard
    assert content(targets["b"], path) in everything
    targets["a"].fault = None
    targets["a"].crash(Random(6))
    recover(targets)
    assert copies(targets, path) == {"a": closed(volume), "b": closed(volume)}


def test_a_failed_sync_is_not_believed_the_second_time() -> None:
    """After the error the page cache shows the bytes and the next sync succeeds; the disk does not have them."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "ab")
    path = store(targets, volume, a=cut_at(volume, 1), b=volume.data)
    syncs = 0

    def fail_second(request: object) -> int:
        nonlocal syncs
        syncs += getattr(request, "verb", None) is Verb.SYNC
        return errno.EIO if syncs == 2 and getattr(request, "verb", None) is Verb.SYNC else 0

    targets["a"].fault = fail_second
    [result] = recover(targets)
    assert result.copies["a"].status is CopyStatus.PARTIAL
    targets["a"].fault = None
    recover(targets)
    targets["a"].crash()
    assert copies(targets, path) == {"a": closed(volume), "b": closed(volume)}


def test_places_that_cannot_be_read_are_mended_where_a_peer_has_them() -> None:
    """A latent sector error in front of good batches."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "ab", batches=4, lag=4, sizes=4000)
    path = store(targets, volume, a=volume.data, b=volume.data)
    bad = range(volume.batches[1].offset, volume.batches[1].offset + 4096)
    mended = False

    def fault(request: object) -> int:
        nonlocal mended
        verb, offset, length = (getattr(request, name) for name in ("verb", "offset", "length"))
        if verb is Verb.WRITE and offset <= bad.start:
            mended = True
        return errno.EIO if verb is Verb.READ and not mended and offset < bad.stop and bad.start < offset + length else 0

    targets["a"].fault = fault
    recover(targets)
    assert mended
    assert copies(targets, path) == {"a": closed(volume), "b": closed(volume)}


def test_a_tail_that_cannot_be_read_is_unknown_and_never_cut() -> None:
    """It may hold more than the peer has."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "ab", batches=4)
    path = store(targets, volume, a=volume.data, b=cut_at(volume, 1))
    dead = volume.batches[2].offset
    targets["a"].fault = lambda request: errno.EIO if request.verb is Verb.READ and request.offset + request.length > dead else 0
    [result] = recover(targets)
    assert result.closed_length is None
    assert content(targets["a"], path) == volume.data
    targets["a"].fault = None
    recover(targets)
    assert copies(targets, path) == {"a": closed(volume), "b": closed(volume)}


@st.composite
def disasters(draw: st.DrawFn) -> tuple[int, int, list[tuple[str, int]], list[int]]:
    """A seed, a number of batches, a state per copy, and after how many changes each attempt is stopped."""
    batches = draw(st.integers(1, 5))
    names = draw(st.sampled_from([1, 2, 3]))
    states = [(draw(st.sampled_from(["whole", "cut", "torn", "flip", "absent"])), draw(st.integers(0, batches - 1))) for _ in range(names)]
    return draw(st.integers(0, 1 << 16)), batches, states, draw(st.lists(st.integers(0, 12), max_size=4))


@settings(max_examples=80, deadline=None)
@given(disasters(), st.booleans())
def test_whatever_happened_all_copies_end_equal_with_everything_that_was_whole_anywhere(
    disaster: tuple[int, int, list[tuple[str, int]], list[int]], in_place: bool
) -> None:
    """Copies are whole, cut, torn or damaged; recovery is stopped and the power cut several times; then it runs through.

    At the end every batch that any copy had whole, and whose predecessors some copy had, is on every copy.
    """
    seed, count, states, stops = disaster
    rng = Random(seed)
    names = "abc"[: len(states)]
    targets = targets_with_claim(names)
    volume = make_volume(targets, names, batches=count, lag=count)
    had: set[int] = set()
    for name, (state, at) in zip(names, states, strict=True):
        if state == "whole":
            store(targets, volume, **{name: volume.data + bytes(rng.choice([0, 8192]))})
            had |= set(range(count))
        elif state == "cut":
            store(targets, volume, **{name: cut_at(volume, at, extra=-rng.choice([0, 512, 4096]))})
            had |= set(range(at + 1))
        elif state == "torn":
            store(targets, volume, **{name: torn(volume, at, rng, tail=rng.choice([0, 4096]))})
            had |= set(range(at))
        elif state == "flip":
            store(targets, volume, **{name: flipped(volume.data, volume.batches[at].offset + 30)})
            had |= set(range(count)) - {at}
    path = path_of(volume)
    if "cut" in {state for state, _ in states}:
        had = _whole_anywhere(targets, volume)
    expected = next((n for n in range(count) if n not in had), count)
    stray = any(n > expected for n in had)
    for changes_max in stops:
        try:
            recover(targets, changes_max=changes_max, in_place_ok=lambda *_: in_place)
        except Stopped:
            pass
        for target in targets.values():
            target.crash(rng)
    recover(targets)
    after = copies(targets, path)
    if stray or not after:
        assert all(_whole(volume, data) >= expected for data in after.values())
        return
    assert set(after.values()) == {closed_at(volume, expected - 1)}
    assert recover(targets) == []


def _whole(volume: Volume, data: bytes) -> int:
    """How many batches from the first are there, byte for byte."""
    return next((b.number for b in volume.batches if data[b.offset : b.end] != volume.data[b.offset : b.end]), len(volume.batches))


def _whole_anywhere(targets: Mapping[str, MemoryTarget], volume: Volume) -> set[int]:
    found = copies(targets, path_of(volume)).values()
    return {b.number for b in volume.batches for data in found if data[b.offset : b.end] == volume.data[b.offset : b.end]}


def test_recovery_is_stopped_before_each_of_its_changes() -> None:
    """One after the other, with a power cut each time; the next run always comes to the same end."""
    count = 0
    while True:
        targets = targets_with_claim("ab")
        volume = make_volume(targets, "ab", batches=4, lag=4)
        path = store(targets, volume, a=flipped(volume.data, volume.batches[1].offset + 30), b=torn(volume, 3, Random(2), tail=8192))
        try:
            recover(targets, changes_max=count)
            finished = True
        except Stopped:
            finished = False
        for target in targets.values():
            target.crash(Random(count))
        recover(targets)
        assert copies(targets, path) == {"a": closed(volume), "b": closed(volume)}, count
        if finished:
            assert count > 6
            return
        count += 1
