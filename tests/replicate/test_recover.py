"""Recovery: what two or three copies hold together is what is there afterwards, on all of them."""

from __future__ import annotations

from random import Random

import pytest
from tests.support.copies import (
    MINE,
    closed,
    closed_at,
    copies,
    cut_at,
    flipped,
    look,
    make_volume,
    path_of,
    recover,
    store,
    targets_with_claim,
    torn,
)
from tests.support.steps import content, drive, put, tree
from tests.support.volumes import GATE, ORIGIN_NS, scan

from nvrstore.failover.terms import Claim
from nvrstore.journal.scan import SEARCH_BYTES
from nvrstore.model import Record, RecordKind
from nvrstore.replicate.claim import put_claim
from nvrstore.replicate.recover import FOREIGN_AFTER_S, CopyStatus, due_for_recovery, recover_volume
from nvrstore.targets.contract import UNAVAILABLE
from nvrstore.targets.memory_files import MemoryFile


def test_open_copies_that_are_whole_are_closed() -> None:
    """Preallocated zeroes go, the index comes, and every copy gets the same bytes."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "ab")
    path = store(targets, volume, a=volume.data + bytes(1 << 20), b=volume.data)
    [result] = recover(targets)
    assert copies(targets, path) == {"a": closed(volume), "b": closed(volume)}
    assert result.closed_length == len(closed(volume))
    assert [r.status for r in result.copies.values()] == [CopyStatus.WHOLE, CopyStatus.WHOLE]
    assert result.ends_ns[GATE] == ORIGIN_NS + round((60 + 3 + 0.2) * 1e9), "five frames at 25 a second behind the last start"
    assert scan(closed(volume)).closed
    assert recover(targets) == [], "nothing is left to do"


def test_the_longest_prefix_is_the_truth() -> None:
    """The shorter copy gets its missing batches, the torn one of the other goes."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "ab", batches=6)
    path = store(targets, volume, a=cut_at(volume, 2), b=torn(volume, 5, Random(1), tail=8192))
    [result] = recover(targets)
    assert copies(targets, path) == {"a": closed_at(volume, 4), "b": closed_at(volume, 4)}
    assert [b.number for b in result.batches] == [0, 1, 2, 3, 4]
    assert not result.missing


def test_a_batch_that_one_copy_lost_is_mended_from_the_other() -> None:
    """Damage in front of good batches is never a tail, also when each copy is damaged elsewhere."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "ab", batches=6, lag=6)
    a = flipped(volume.data, volume.batches[1].offset + 30)  # a header
    b = flipped(volume.data, volume.batches[3].offset + volume.batches[3].entries[0].offset + 90)  # a payload
    path = store(targets, volume, a=a, b=b)
    [result] = recover(targets)
    assert copies(targets, path) == {"a": closed(volume), "b": closed(volume)}
    assert {(f.target, f.damage.batch, f.mended) for f in result.damage} == {("a", 1, True), ("b", 3, True)}


def test_a_batch_that_is_damaged_differently_on_each_copy_is_put_together() -> None:
    """No copy has it whole, all of them together have."""
    targets = targets_with_claim("abc")
    volume = make_volume(targets, "abc", batches=3, lag=3)
    batch = volume.batches[1]
    first, second = (batch.offset + entry.offset + 80 for entry in batch.entries)
    path = store(
        targets, volume, a=flipped(volume.data, first), b=flipped(volume.data, second), c=flipped(flipped(volume.data, first), second)
    )
    [result] = recover(targets)
    assert copies(targets, path) == dict.fromkeys("abc", closed(volume))
    assert all(f.mended for f in result.damage)


def test_what_nobody_has_whole_is_kept_and_said() -> None:
    """One broken fragment costs no other: nothing is cut, the volume is closed around it, the damage is in the result."""
    targets = targets_with_claim("a")
    volume = make_volume(targets, "a", batches=4, lag=4)
    place = volume.batches[1].offset + volume.batches[1].entries[0].offset + 80
    path = store(targets, volume, a=flipped(volume.data, place))
    [result] = recover(targets)
    assert content(targets["a"], path) == flipped(closed(volume), place)
    assert result.copies["a"].status is CopyStatus.DAMAGED
    assert [(f.damage.batch, f.mended) for f in result.damage] == [(1, False)]


def test_what_is_broken_everywhere_is_not_exchanged_for_other_breakage() -> None:
    """Two copies with different bits gone in the same fragment: each stays what it is."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "ab", batches=4, lag=4)
    place = volume.batches[1].offset + volume.batches[1].entries[0].offset + 80
    path = store(targets, volume, a=flipped(volume.data, place), b=flipped(volume.data, place + 7))
    [result] = recover(targets)
    assert copies(targets, path) == {"a": flipped(closed(volume), place), "b": flipped(closed(volume), place + 7)}
    assert {r.status for r in result.copies.values()} == {CopyStatus.DAMAGED}


def test_batches_behind_a_hole_that_nobody_can_fill_are_never_cut() -> None:
    """They stay where they are, open and readable, and the result says that something is missing."""
    targets = targets_with_claim("a")
    volume = make_volume(targets, "a", batches=5, lag=5)
    data = flipped(volume.data, volume.batches[2].offset + 30)
    path = store(targets, volume, a=data)
    [result] = recover(targets)
    assert content(targets["a"], path) == data
    assert result.missing
    assert result.closed_length is None
    assert [b.number for b in result.batches] == [0, 1]


def test_nothing_committed_is_cut_while_a_peer_may_have_it() -> None:
    """A batch that was committed is bad on the only copy that answers: the file stays as it is until the other returns."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "ab", batches=4)
    data = bytearray(volume.data)
    data[volume.batches[2].offset : volume.batches[2].end] = bytes(volume.batches[2].length)  # batch 3 says: 2 is committed
    store(targets, volume, a=data, b=volume.data)
    path = path_of(volume)
    targets["b"].fault = lambda request: UNAVAILABLE
    [result] = recover(targets)
    assert content(targets["a"], path) == bytes(data)
    assert result.missing
    targets["b"].fault = None
    [result] = recover(targets)
    assert copies(targets, path) == {"a": closed(volume), "b": closed(volume)}


def test_a_volume_stays_open_until_every_member_was_heard() -> None:
    """A member that is away may hold more: the others are made equal and cut, but not closed."""
    targets = targets_with_claim("abc")
    volume = make_volume(targets, "abc", batches=6)
    path = store(targets, volume, a=cut_at(volume, 2) + bytes(1 << 20), b=cut_at(volume, 3), c=volume.data)
    targets["c"].fault = lambda request: UNAVAILABLE
    [result] = recover(targets)
    assert result.closed_length is None
    assert content(targets["a"], path) == content(targets["b"], path) == cut_at(volume, 3)
    assert result.holders == {"a", "b"}
    [again] = recover(targets)
    assert not any(r.changed for r in again.copies.values())
    targets["c"].fault = None
    recover(targets)
    assert copies(targets, path) == dict.fromkeys("abc", closed(volume))


@pytest.mark.parametrize("other_id", [False, True])
def test_a_member_that_was_struck_from_the_configuration_is_not_waited_for(other_id: bool) -> None:
    """Nor one whose name belongs to another target now."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "ab")
    path = store(targets, volume, a=volume.data)
    targets["b"].fault = lambda request: UNAVAILABLE
    [result] = recover(targets)
    assert result.closed_length is None
    if other_id:
        seen = look(targets)
        steps = recover_volume(
            seen.volumes[0],
            own=MINE.key,
            configured={"a": targets["a"].id, "b": "0" * 32},
            answered=seen.answered,
            in_place_ok=lambda *_: True,
        )
        drive(steps, targets)
    else:
        recover(targets, configured="a")
    assert content(targets["a"], path) == closed(volume)


def test_a_member_that_answers_and_has_no_copy_was_heard() -> None:
    """It was lost before its copy was opened; resync will give it one."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "ab")
    path = store(targets, volume, a=volume.data)
    [result] = recover(targets)
    assert result.closed_length == len(closed(volume))
    assert set(copies(targets, path)) == {"a"}


def test_a_torn_tail_is_kept_while_a_member_is_away_and_the_rest_of_the_file_goes() -> None:
    """What was under way may be wanted; what was never written is only space."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "ab", batches=4)
    data = torn(volume, 3, Random(3))
    path = store(targets, volume, a=data)
    targets["a"].files.files[path].size = SEARCH_BYTES * 3
    targets["b"].fault = lambda request: UNAVAILABLE
    recover(targets)
    file = targets["a"].files.files[path]
    assert file.seen_size == volume.batches[2].end + SEARCH_BYTES
    assert file.read(0, len(data), fresh=True) == data
    recover(targets, configured="a")
    assert content(targets["a"], path) == closed_at(volume, 2)


def test_a_copy_with_a_damaged_header_gets_it_back() -> None:
    """The peer's header tells what the copy is."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "ab")
    path = store(targets, volume, a=flipped(volume.data, 700), b=volume.data)
    recover(targets)
    assert copies(targets, path) == {"a": closed(volume), "b": closed(volume)}


def test_a_volume_without_any_readable_header_is_left_alone() -> None:
    """It is listed as a stranger; nothing is written to it."""
    targets = targets_with_claim("a")
    volume = make_volume(targets, "a")
    path = store(targets, volume, a=flipped(volume.data, 700))
    assert recover(targets) == []
    assert [copy.path for copy in look(targets).strangers] == [path]
    assert content(targets["a"], path) == flipped(volume.data, 700)


def test_a_closed_copy_is_the_truth_and_the_others_follow() -> None:
    """One copy was closed before the crash, the other is still open and shorter."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "ab")
    path = store(targets, volume, a=closed(volume), b=cut_at(volume, 1) + bytes(4096))
    recover(targets)
    assert copies(targets, path) == {"a": closed(volume), "b": closed(volume)}


def test_a_closed_volume_is_closed_for_good() -> None:
    """A copy that turns up with more than the closed one has is a conflict: reported, and touched by nobody."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "ab", batches=5)
    path = store(targets, volume, a=closed_at(volume, 2), b=volume.data)
    before = tree(targets["b"])
    [result] = recover(targets)
    assert tree(targets["b"]) == before
    assert result.copies["b"].status is CopyStatus.CONFLICT
    assert content(targets["a"], path) == closed_at(volume, 2)


def test_copies_with_one_id_and_other_bytes_are_a_conflict() -> None:
    """The longer chain is the truth; the other copy is neither overwritten nor mixed in."""
    targets = targets_with_claim("ab")
    one = make_volume(targets, "ab", batches=5)
    other = make_volume(targets, "ab", batches=2)
    other.add([], [Record(RecordKind.MARK, "m", {})])
    path = store(targets, one, a=one.data, b=other.data)
    [result] = recover(targets)
    assert content(targets["b"], path) == other.data
    assert content(targets["a"], path) == one.data, "not closed either: a member says something else"
    assert result.copies["b"].status is CopyStatus.CONFLICT
    assert len(result.batches) == 5


def test_a_file_that_somebody_may_still_write_is_replaced_not_changed() -> None:
    """An abandoned worker keeps its inode; the whole copy under the name is a new one, and stays right when the old one thaws."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "ab")
    path = store(targets, volume, a=cut_at(volume, 1), b=volume.data)
    old = targets["a"].files.files[path]
    [result] = recover(targets, in_place_ok=lambda target, _: target != "a")
    assert content(targets["a"], path) == content(targets["b"], path) == closed(volume)
    assert targets["a"].files.files[path] is not old
    assert bytes(old.data) == cut_at(volume, 1)
    assert result.copies["a"].changed
    assert not [name for name in tree(targets["a"]) if ".resync" in name]


def test_a_file_that_does_not_take_what_is_written_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trying the same place again and again would leave the target behind for ever."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "ab")
    path = store(targets, volume, a=cut_at(volume, 1), b=volume.data)
    worn = targets["a"].files.files[path]
    really = MemoryFile.sync
    monkeypatch.setattr(MemoryFile, "sync", lambda file: file.dirty.clear() if file is worn else really(file))
    [result] = recover(targets)
    assert content(targets["a"], path) == content(targets["b"], path) == closed(volume)
    assert targets["a"].files.files[path] is not worn
    assert [r.status for r in result.copies.values()] == [CopyStatus.WHOLE, CopyStatus.WHOLE]


def test_a_whole_copy_that_may_still_be_written_waits_for_its_close() -> None:
    """Nothing is missing there, so nothing is copied; it is closed another time."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "ab")
    path = store(targets, volume, a=volume.data, b=volume.data)
    [result] = recover(targets, in_place_ok=lambda target, _: target != "a")
    assert result.copies["a"].status is CopyStatus.OPEN
    assert content(targets["a"], path) == volume.data
    assert content(targets["b"], path) == closed(volume)
    recover(targets)
    assert content(targets["a"], path) == closed(volume)


def test_a_superseded_writer_repairs_and_closes_nothing() -> None:
    """Where a higher term is seen, the copy stays as it is; elsewhere the work goes on."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "ab")
    path = store(targets, volume, a=cut_at(volume, 1), b=volume.data)
    drive(put_claim("a", Claim("main", 10, "nvr-2", "b" * 32, 1, 0)), targets)
    [result] = recover(targets)
    assert content(targets["a"], path) == cut_at(volume, 1)
    assert "term 10" in result.copies["a"].error
    assert content(targets["b"], path) == closed(volume)


def test_a_volume_of_a_header_alone_is_closed_empty() -> None:
    """A set that changed twice within a tick leaves one."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "ab", batches=0)
    path = store(targets, volume, a=volume.data + bytes(8192), b=volume.data)
    [result] = recover(targets)
    assert content(targets["a"], path) == content(targets["b"], path)
    assert scan(content(targets["a"], path)).closed
    assert result.ends_ns == {}


def test_damage_in_closed_copies_is_found_and_mended_on_demand() -> None:
    """With `deep`, every payload of every copy is read."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "ab")
    place = volume.batches[2].offset + volume.batches[2].entries[1].offset + 80
    path = store(targets, volume, a=flipped(closed(volume), place), b=closed(volume))
    assert recover(targets) == []
    recover(targets, deep=True)
    assert copies(targets, path) == {"a": closed(volume), "b": closed(volume)}


def wrong(data: bytes, how: str, place: int) -> bytes:
    """What a bad disk may give back: one bit, zeroes for a block that was never written, two blocks in each other's place, an early end."""
    block = place // 512 * 512
    one, two = data[block : block + 512], data[block + 512 : block + 1024]
    return {
        "a flipped bit": flipped(data, place),
        "a zeroed block": data[:block] + bytes(512) + data[block + 512 :],
        "swapped blocks": data[:block] + two + one + data[block + 1024 :],
        "an early end": data[:block],
    }[how]


@pytest.mark.parametrize("broken", ["a", "b"])
@pytest.mark.parametrize("how", ["a flipped bit", "a zeroed block", "swapped blocks", "an early end"])
def test_whatever_is_wrong_in_one_copy_comes_from_the_other(how: str, broken: str) -> None:
    """Each copy in turn; the other one is not touched."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "ab", sizes=400)
    place = volume.batches[2].offset + volume.batches[2].entries[1].offset + 700
    whole = closed(volume)
    damaged = wrong(whole, how, place)
    assert damaged != whole
    path = store(targets, volume, **{"a": whole, "b": whole, broken: damaged})
    recover(targets, deep=True)
    assert copies(targets, path) == {"a": whole, "b": whole}


@pytest.mark.parametrize("how", ["a flipped bit", "a zeroed block", "swapped blocks", "an early end"])
def test_the_same_wrong_on_both_copies_is_reported_and_nothing_else_is_lost(how: str) -> None:
    """What no copy has is said, as damage or as missing; what is whole in front of it stays."""
    targets = targets_with_claim("ab")
    volume = make_volume(targets, "ab", sizes=400, lag=4)
    place = volume.batches[2].offset + volume.batches[2].entries[1].offset + 700
    damaged = wrong(closed(volume), how, place)
    path = store(targets, volume, a=damaged, b=damaged)
    [result] = recover(targets, deep=True)
    assert [f.mended for f in result.damage if f.mended] == []
    assert result.damage or result.missing or result.closed_length is None or len(result.batches) < len(volume.batches)
    for data in copies(targets, path).values():
        assert data[: volume.batches[1].end] == volume.data[: volume.batches[1].end]


def test_volumes_of_others_are_recovered_only_when_their_writer_is_long_gone() -> None:
    """Own earlier sessions at once; another recorder's an hour after the takeover; what is being written never."""
    targets = targets_with_claim("a")
    volume = make_volume(targets, "a", recorder="nvr-2")
    path = store(targets, volume, a=volume.data)
    [found] = look(targets).volumes
    assert due_for_recovery(found, recorder="nvr-2", held_s=0)
    assert not due_for_recovery(found, recorder="nvr-2", held_s=0, busy={path})
    assert not due_for_recovery(found, recorder="nvr-1", held_s=FOREIGN_AFTER_S - 1)
    assert due_for_recovery(found, recorder="nvr-1", held_s=FOREIGN_AFTER_S)
    recover(targets)
    assert not due_for_recovery(look(targets).volumes[0], recorder="nvr-2", held_s=0)


def test_a_file_that_is_no_volume_disturbs_nobody() -> None:
    """Somebody's clip under a volume's name."""
    targets = targets_with_claim("a")
    volume = make_volume(targets, "a")
    path = store(targets, volume, a=volume.data)
    put(targets["a"], path.replace("v000042", "v000043"), b"\0\0\0\x08free" * 3)
    recover(targets)
    assert content(targets["a"], path) == closed(volume)
