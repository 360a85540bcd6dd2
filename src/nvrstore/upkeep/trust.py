"""Before a copy goes because another one stays, that one is read, all of it; the catalog's word is not enough.

    b: 2026-11-23/07-45-10Z….mp4 ──every batch, every payload, past the page cache──▶ whole: the copy on a may go
                                                                                └──▶ else: a's stays, b's is mended from it

Removing waits for the reading. A target on which room is made has some left for that: of what arrives, a volume for each lane
and five seconds (room.py), while a volume is read in the part of its time by which the other target is faster than the cameras.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Final

from nvrstore.catalog.schema import CopyState
from nvrstore.errors import FencedError, FormatError, TargetError
from nvrstore.events import Alarm
from nvrstore.failover.terms import ClaimKey
from nvrstore.journal.model import DamageKind
from nvrstore.replicate.inventory import Volume, VolumeCopy, scan_copy
from nvrstore.replicate.recover import CopyStatus, Recovered, recover_volume
from nvrstore.targets.contract import Request, Steps, Verb
from nvrstore.targets.steps import ask
from nvrstore.telemetry import get_logger
from nvrstore.upkeep.host import UpkeepHost, Work, do
from nvrstore.upkeep.retention import Removal, StoredVolume

log = get_logger("upkeep.trust")

#: A copy that was not whole when it was read is not read again so soon; until then nothing goes for its sake.
DOUBT_S: Final = 600.0


class Trust:
    """Which copies stay. Used by whoever prunes, one thread at a time."""

    def __init__(self, host: UpkeepHost, recovering: Callable[[], Collection[str]]) -> None:
        """`recovering`: the volumes that recovery is at work on now, by id and by path."""
        self._host, self._recovering = host, recovering
        self.mending: frozenset[str] = frozenset()  # the volume that is mended here now, by id and by path
        self._doubts: dict[tuple[str, str], float] = {}  # (path, target): when it was read, and not whole

    def doubted(self, volume: StoredVolume) -> StoredVolume:
        """The same volume; copies that were found not whole lately count as not verified."""
        if not self._doubts:
            return volume
        since_s = self._host.clock.monotonic_s() - DOUBT_S
        doubted = {target for (path, target), at_s in self._doubts.items() if path == volume.name.path and at_s > since_s}
        return replace(volume, copies=tuple(replace(c, verified=c.verified and c.target not in doubted) for c in volume.copies))

    def stays_elsewhere(self, removal: Removal) -> Work[bool]:
        """Whether a copy for whose sake this one is to go is whole, now. Those that are not are mended from it, if they can be."""
        path = removal.volume.name.path
        for target in removal.trusts:
            try:
                if (yield from do(is_whole(target, removal.volume))):
                    self._doubts.pop((path, target), None)
                    return True
            except TargetError as error:
                log.warning("volume.unread", path=path, target=target, reason=str(error))
                continue  # of the target, not of this copy: it is asked again when the target answers
            self._doubts[path, target] = self._host.clock.monotonic_s()
        if not any((path, target) in self._doubts for target in removal.trusts):
            return False
        self.mending = frozenset({removal.volume.volume_id, path})  # said before the other thread is asked, as it does: never both
        try:
            if self.mending.isdisjoint(self._recovering()):
                yield from self._mend(removal)
        finally:
            self.mending = frozenset()
        return False

    def _mend(self, removal: Removal) -> Work[None]:
        host, volume = self._host, removal.volume
        own = host.engines[volume.name.journal].spec.claim
        try:
            done = yield from do(mend_copies(volume, {removal.target, *removal.trusts}, own))
        except (FencedError, TargetError, FormatError) as error:
            log.warning("volume.unmended", path=volume.name.path, reason=str(error))
            return
        for found in done.damage:
            log.warning("volume.damaged", path=done.path, target=found.target, what=str(found.damage), mended=found.mended)
            if not found.mended:
                sentence = f"{done.path} on target {found.target!r}: {found.damage}"
                host.publish(Alarm(utc_ns=host.clock.utc_ns(), what="retention", sentence=sentence))
        if done.header is None:
            return
        for target, copy in done.copies.items():
            whole = copy.status is CopyStatus.WHOLE
            if whole:
                self._doubts.pop((done.path, target), None)
            if whole or copy.status is CopyStatus.DAMAGED:
                state = CopyState.COMPLETE if whole else CopyState.DAMAGED
                host.catalog.copy_changed(done.header.volume_id, target, copy.length, state)


def is_whole(target: str, volume: StoredVolume) -> Steps[bool]:
    """Whether the copy on `target` is closed and as it was written, but for what somebody had erased. Raises TargetError."""
    path = volume.name.path
    size = (yield from ask(target, Request(Verb.STAT, path), f"look at {path}")).json()["size"]
    scan = yield from scan_copy(target, path, size, deep=True)
    if scan.header is None or volume.volume_id not in (scan.header.volume_id, path):
        return False
    return scan.closed and not scan.unreadable and all(found.kind is DamageKind.ERASED for found in scan.damage)


def mend_copies(volume: StoredVolume, targets: Collection[str], own: ClaimKey) -> Steps[Recovered]:
    """Bring the copies of a closed volume on `targets` to what they hold together, each change in a new file."""
    name = volume.name
    copies = {c.target: VolumeCopy(c.target, name.path, c.bytes, 0, name, closed=True) for c in volume.copies if c.target in targets}
    return (
        yield from recover_volume(
            Volume(volume.volume_id, name, copies),
            own=own,
            configured={},
            answered=list(copies),
            in_place_ok=lambda target, path: False,
            deep=True,
        )
    )
