"""Commits of one lane, in the order in which its batches were built.

    acknowledged by every binding member, its set durable, a fresh look --> committed --> told --> extent freed

What was built, lost its last copy on the way and waits again is a *debt*: it is committed, from the later volume that repays
it, before what was built after it. Invariant: commits of a track are in the order of its samples.
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
    """Fragments that are owed again, together with those that lost their copy at the same time."""

    def __init__(self) -> None:
        self._open: list[set[Identity]] = []

    def owe(self, fragments: Iterable[Fragment]) -> frozenset[Identity]:
        """They wait again; returns what they are."""
        owed = frozenset(map(identity_of, fragments))
        if owed:
            self._open.append(set(owed))
        return owed

    def of(self, fragment: Fragment) -> set[Identity] | None:
        """With which others it is owed; None where it is not."""
        if not self._open:
            return None
        identity = identity_of(fragment)
        return next((debt for debt in self._open if identity in debt), None)

    def repaid(self, identities: set[Identity]) -> None:
        """They are committed, or given up."""
        if self._open:
            for debt in self._open:
                debt -= identities
            self._open = [debt for debt in self._open if debt]

    def hold_up(self, behind: frozenset[Identity]) -> bool:
        """Whether any of these is still owed."""
        return any(not debt.isdisjoint(behind) for debt in self._open)


class Settling:
    """See the module."""

    def __init__(self, host: LaneHost, debts: Debts) -> None:
        self._host, self._debts = host, debts

    def step(self, volumes: Sequence[OpenVolume], now_s: float) -> None:
        """Commit what may be committed, free what is settled. `volumes`: of the lane, oldest first."""
        while self._commit(volumes, now_s):
            pass  # what was owed is committed: what had to wait for it goes on, in its order
        for volume in volumes:
            while volume.submitted and volume.submitted[0].committed and not volume.submitted[0].pending:
                volume.submitted.popleft().held.drop()

    def _commit(self, volumes: Sequence[OpenVolume], now_s: float) -> bool:
        """Commit in the order of building; True when that order has to be walked again."""
        skipped = False
        for volume in volumes:
            for sub in volume.submitted:
                if sub.committed:
                    continue
                if self._debts.hold_up(sub.behind):
                    skipped = True  # fragments before it are owed again, and come in a later volume
                    continue
                if (skipped and not sub.repays) or not self._may_commit(sub):
                    return False
                sub.committed = True
                volume.committed = sub.batch.number
                self._tell(volume, sub, now_s)
                if sub.repays:
                    tracks = volume.header.tracks
                    self._debts.repaid({(tracks[entry.track_id - 1].track, entry.session, entry.index) for entry in sub.batch.entries})
                    if skipped:
                        return True
        return False

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
