"""Commits of one lane, in the order in which its batches were built first.

    acknowledged by every binding member, its set durable, a fresh look --> committed --> told --> extent freed

What was built, lost its last copy on the way and waits again is a *debt*: it keeps its place in the order, in whatever volume
it is built once more. Invariant: commits of a track are in the order of its samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nvrstore.model import Commit, Fragment
from nvrstore.replicate.contract import LaneHost
from nvrstore.replicate.volume import Identity, OpenVolume, Submitted


def identity_of(fragment: Fragment) -> Identity:
    """What the fragment is, in whatever volume."""
    return fragment.track, fragment.session, fragment.index


class Debts:
    """Fragments that are owed again, each with the place in the order that it had when it was built first."""

    def __init__(self) -> None:
        self._owed: dict[Identity, int] = {}

    def __bool__(self) -> bool:
        return bool(self._owed)

    def owe(self, fragments: Iterable[Fragment], order: int) -> None:
        """They wait again."""
        self._owed.update((identity_of(fragment), order) for fragment in fragments)

    def of(self, fragment: Fragment) -> int | None:
        """Its place in the order; None where it is not owed."""
        return self._owed.get(identity_of(fragment)) if self._owed else None

    def repaid(self, identities: Iterable[Identity]) -> None:
        """They are committed, or given up."""
        for identity in identities if self._owed else ():
            self._owed.pop(identity, None)

    def before(self, order: int) -> bool:
        """Whether anything is owed that was built before."""
        return min(self._owed.values(), default=order) < order


class Settling:
    """See the module."""

    def __init__(self, host: LaneHost, debts: Debts) -> None:
        self._host, self._debts = host, debts

    def step(self, volumes: Sequence[OpenVolume], now_s: float) -> None:
        """Commit what may be committed, free what is settled. `volumes`: of the lane, oldest first."""
        due = [(volume, sub) for volume in volumes for sub in volume.submitted if not sub.committed]
        if self._debts:
            due.sort(key=lambda pair: pair[1].order)  # what is owed was built once more behind newer ones
        for volume, sub in due:
            if self._debts.before(sub.order) or not self._may_commit(sub):
                break
            sub.committed = True
            volume.committed = sub.batch.number
            self._tell(volume, sub, now_s)
            tracks = volume.header.tracks
            if self._debts:
                self._debts.repaid((tracks[entry.track_id - 1].track, entry.session, entry.index) for entry in sub.batch.entries)
        for volume in volumes:
            while volume.submitted and volume.submitted[0].committed and not volume.submitted[0].pending:
                volume.submitted.popleft().held.drop()

    def _may_commit(self, sub: Submitted) -> bool:
        host = self._host
        if not sub.acked or host.set_durable < sub.set_needed:
            return False
        if not host.spec.commit_any and any(host.binding(target) for target in sub.pending):
            return False
        return any(host.ports[target].fresh() for target in sub.acked)

    def _tell(self, volume: OpenVolume, sub: Submitted, now_s: float) -> None:
        host = self._host
        stored = [name for name in volume.copies if name in sub.acked]
        copies = [name for name in stored if name != host.spec.refuge]
        commit = None
        if copies:
            commit = Commit(
                host.spec.name,
                volume.header.epoch,
                volume.header.volume_id,
                sub.batch.number,
                len(copies),
                host.spec.copies,
                host.clock.utc_ns(),
            )
        host.observer.batch_stored(volume.header, volume.path, sub.batch, stored, commit)
        if commit is not None:
            host.committed(commit, sub.batch, now_s - sub.built_s)
