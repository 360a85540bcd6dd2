"""How much room is kept ready, and what goes first on a disk that is so full that nothing can be written down."""

from __future__ import annotations

from nvrstore.journal.names import parse_volume_path
from nvrstore.limits import GIB, MIB
from nvrstore.model import Cause
from nvrstore.upkeep.pruning import first_room
from nvrstore.upkeep.retention import Reason, Removal, StoredCopy, StoredVolume
from nvrstore.upkeep.room import Room, room_for, too_small

SIZE = 9 * MIB


def volume(number: int, *targets: str) -> StoredVolume:
    name = parse_volume_path(f"main/2026-11-23/07-45-10Z.t0008-9f2c41aa.l0.v{number:06d}.mp4")
    assert name is not None
    return StoredVolume(f"{number:032x}", name, number, tuple(StoredCopy(target, SIZE) for target in targets))


def removals(*volumes: StoredVolume) -> list[Removal]:
    """A plan takes everything from one target, then from the next."""
    targets = sorted({copy.target for v in volumes for copy in v.copies})
    return [
        Removal(target, v, SIZE, Reason.OVERWRITTEN, Cause.STORAGE, last=target == max(copy.target for copy in v.copies))
        for target in targets
        for v in volumes
        if any(copy.target == target for copy in v.copies)
    ]


def test_room_is_made_while_what_arrives_until_it_is_made_still_fits() -> None:
    """A volume for each lane, and some seconds of footage; as much again as volumes need is made at once."""
    room = room_for(lanes=2, volume_bytes=GIB, bytes_per_s=150 * MIB, total_bytes=1000 * GIB)
    assert room == Room(2 * GIB + 750 * MIB, 2 * GIB)
    assert room.high_bytes == room.low_bytes + 2 * GIB
    assert room + room == Room(2 * room.low_bytes, 4 * GIB)


def test_a_disk_that_is_small_for_what_arrives_is_not_left_empty() -> None:
    """At most a quarter of it is kept ready, but always what the next volumes need."""
    assert room_for(lanes=1, volume_bytes=9 * MIB, bytes_per_s=20 * MIB, total_bytes=280 * MIB) == Room(70 * MIB, 9 * MIB)
    assert room_for(lanes=4, volume_bytes=9 * MIB, bytes_per_s=20 * MIB, total_bytes=100 * MIB).low_bytes == 36 * MIB
    assert room_for(lanes=0, volume_bytes=9 * MIB, bytes_per_s=0.0, total_bytes=280 * MIB).low_bytes == 9 * MIB


def test_a_disk_that_is_full_within_seconds_is_too_small() -> None:
    """Its reserve is cut short: somebody has to be told."""
    assert too_small(bytes_per_s=20 * MIB, total_bytes=300 * MIB)
    assert not too_small(bytes_per_s=20 * MIB, total_bytes=500 * MIB)
    assert not too_small(bytes_per_s=0.0, total_bytes=MIB)


def test_full_disks_get_room_first_by_copies_of_which_another_one_stays() -> None:
    """The entry about what is lost with a last copy is not durable yet: nothing that is a last copy goes."""
    plan = removals(*(volume(number, "a", "b") for number in range(8)))
    chosen = first_room(plan, {"a": 2 * SIZE, "b": SIZE + 1})
    assert [(one.target, one.volume.name.number) for one in chosen] == [("a", 0), ("a", 1), ("b", 2), ("b", 3)]
    assert first_room(plan, {}) == []
    assert [one.target for one in first_room(plan, {"b": SIZE})] == ["b"]


def test_where_there_is_no_second_copy_the_oldest_goes_all_the_same() -> None:
    """Recording never stops."""
    plan = removals(volume(1, "a"), volume(2, "a"), volume(3, "a", "b"))
    assert [one.volume.name.number for one in first_room(plan, {"a": 2 * SIZE})] == [3, 1]
