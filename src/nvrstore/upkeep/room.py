"""How much room is kept ready on a target, so that retention has done its work before anything is short of space. Pure.

    |<------------------------------- a full disk ------------------------------------>|
    | footage                                                    |....high....|...low..|
                                                                 ^ made free again     ^ from here on room is made

What goes is written into the ledger first, and that entry needs a volume that is open: a disk must not be full when
retention begins. So room is made while what arrives until it is done still fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: What arrives in this time still fits when room begins to be made: a look (1 s), a plan, a commit of the entry, the deletions.
RESERVE_S: Final = 5.0
#: More than this share of a target is never kept free for that.
RESERVE_SHARE: Final = 4
#: A target that is full sooner than this is too small for what is recorded: room is not always made in time.
FULL_S_MIN: Final = RESERVE_S * RESERVE_SHARE


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes: below `low` room is made, until `high` are free."""

    low_bytes: int = 0
    volumes_bytes: int = 0  # one volume for each lane: with less, nothing can be opened

    @property
    def high_bytes(self) -> int:
        return self.low_bytes + self.volumes_bytes

    def __add__(self, other: Room) -> Room:
        return Room(self.low_bytes + other.low_bytes, self.volumes_bytes + other.volumes_bytes)


def room_for(*, lanes: int, volume_bytes: int, bytes_per_s: float, total_bytes: int) -> Room:
    """Of one journal on one target: the next volume of each lane, what arrives meanwhile, and one volume more to make."""
    volumes = max(1, lanes) * volume_bytes
    return Room(min(volumes + round(bytes_per_s * RESERVE_S), max(volumes, total_bytes // RESERVE_SHARE)), volumes)


def too_small(*, bytes_per_s: float, total_bytes: int) -> bool:
    """Whether a target holds so little of what is recorded that the reserve had to be cut short: recording may have to wait for it."""
    return bytes_per_s * FULL_S_MIN > total_bytes > 0  # some network file systems know no size
