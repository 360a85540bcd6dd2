"""What an interrupted recorder left open: every volume brought to what its copies hold together, then closed.

    per copy: sync, scan past the page cache ──▶ truth (truth.py) ──▶ per copy: 1 write what is missing  2 sync, read back
                                                                              3 cut the torn tail        4 append the index

Recording goes on in new volumes meanwhile; this is run for the old ones, in any order, as often as wanted. Invariants:

- nothing at or below the last committed batch, nor anything valid that any copy holds, is ever cut or overwritten;
- a volume is closed only when every member that its header names was heard (scanned, or found without a copy), or is no
  longer configured, and nothing is known to be missing; until then it stays open, and readable;
- every step may be the last: run again, it comes to the same end;
- a file is changed in place only where no worker that had it open can still write; elsewhere, and where it does not
  take what is written, a whole new copy replaces it.

All of it is `Steps`. A target that fails leaves its own copy as it is, and stops no other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from nvrstore.errors import FencedError, FormatError, TargetError
from nvrstore.failover.terms import ClaimKey
from nvrstore.journal.index import volume_index
from nvrstore.journal.model import Batch, Damage, DamageKind, VolumeHeader
from nvrstore.journal.scan import SEARCH_BYTES, ScanResult
from nvrstore.model import Record, TrackKey
from nvrstore.replicate.claim import hold_term
from nvrstore.replicate.copying import ReadBackError, copy_volume, fetch_batch, fetch_header, write_checked
from nvrstore.replicate.inventory import Volume, VolumeCopy, scan_copy
from nvrstore.replicate.truth import Truth, choose_truth
from nvrstore.targets.contract import UNAVAILABLE, Call, Request, Steps, Verb
from nvrstore.targets.steps import ask, expect

#: Another recorder's open volumes are left alone until the journal has been this recorder's own for so long.
FOREIGN_AFTER_S: Final = 3600.0


class CopyStatus(StrEnum):
    """What became of one copy."""

    WHOLE = "whole"  # has everything; closed if the volume is
    OPEN = "open"  # has everything, but is still to be cut or closed: somebody may still have it open
    PARTIAL = "partial"  # lacks something: an error, a claim of another writer
    DAMAGED = "damaged"  # has what no copy has whole
    CONFLICT = "conflict"  # holds other valid bytes than the rest; untouched
    AWAY = "away"  # could not be scanned


@dataclass(frozen=True, slots=True)
class CopyResult:
    """One copy after recovery. `length`: of its valid bytes. `changed`: whether recovery wrote to it."""

    target: str
    status: CopyStatus
    length: int
    changed: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """Damage that was found on a copy, and whether it was mended from another."""

    target: str
    damage: Damage
    mended: bool


@dataclass(frozen=True, slots=True)
class Recovered:
    """What is known of a volume now: for the catalog (`batches`, `copies`, `closed_length`), the ledger (`ends_ns`), and people."""

    volume_id: str
    path: str
    header: VolumeHeader | None  # None: no copy's header is readable, and nothing was done
    batches: tuple[Batch, ...]
    closed_length: int | None  # the closed file's length; None: the volume stays open
    copies: Mapping[str, CopyResult]
    damage: tuple[Found, ...]
    ends_ns: Mapping[TrackKey, int]  # UTC at which the last durable sample of each track ends
    missing: bool  # something is known to be missing that a copy which did not answer may have

    @property
    def records(self) -> tuple[Record, ...]:
        return tuple(record for batch in self.batches for record in batch.records)

    @property
    def holders(self) -> frozenset[str]:
        """Targets that have all there is."""
        return frozenset(t for t, copy in self.copies.items() if copy.status in (CopyStatus.WHOLE, CopyStatus.OPEN, CopyStatus.DAMAGED))


def due_for_recovery(volume: Volume, *, recorder: str, held_s: float, busy: Collection[str] = ()) -> bool:
    """Whether to recover a volume now: not settled, not being written (`busy` paths), and the writer is known to be gone.

    Earlier sessions of the same recorder are (one runs per state directory); of another recorder that is certain only some
    time after its journal was taken over: `held_s` is how long the own claim stands.
    """
    if volume.settled or any(copy.path in busy for copy in volume.copies.values()):
        return False
    return volume.header is None or volume.header.recorder == recorder or held_s >= FOREIGN_AFTER_S


def recover_volume(
    volume: Volume,
    *,
    own: ClaimKey,
    configured: Mapping[str, str],
    answered: Collection[str],
    in_place_ok: Callable[[str, str], bool],
    deep: bool = False,
) -> Steps[Recovered]:
    """Recover one volume.

    `configured`: ids of the journal's targets by name, "" where it is not known yet (never seen by this state directory); a member
    that is not among them is struck. `answered`: targets that were listed: one without a copy has none.
    `in_place_ok(target, path)`: every worker that had the file open is gone.
    `deep`: check every payload, of closed copies too.
    """
    scans, results = yield from _scan_all(volume, deep)
    truth = choose_truth(scans)
    if truth is None:
        nothing = {t: CopyResult(t, CopyStatus.PARTIAL, 0, error=scan.problem) for t, scan in scans.items()}
        return Recovered(volume.volume_id, volume.name.path, None, (), None, results | nothing, (), {}, True)
    work = _Work(volume, truth, scans, own, in_place_ok)
    # A target that was listed, and then did not give its copy, was not heard: what it holds may be longer.
    work.heard = _all_heard(truth.header, scans, configured, set(answered) - set(results))
    work.decide()
    for target in scans:
        if target in truth.conflicts:
            results[target] = CopyResult(target, CopyStatus.CONFLICT, scans[target].valid_length, error="holds other bytes than its peers")
        else:
            results[target] = yield from work.settle(target)
    done = {t: r.status for t, r in results.items()}
    found = [
        Found(t, damage, mended=done[t] in (CopyStatus.WHOLE, CopyStatus.OPEN) and damage.kind is not DamageKind.ERASED)
        for t, scan in scans.items()
        for damage in scan.damage
    ]
    closed = bool(work.index is not None and any(r.status in (CopyStatus.WHOLE, CopyStatus.DAMAGED) for r in results.values()))
    return Recovered(
        volume_id=volume.volume_id,
        path=volume.name.path,
        header=truth.header,
        batches=truth.batches,
        closed_length=work.length if closed else None,
        copies=results,
        damage=tuple(found),
        ends_ns=truth.ends_ns(),
        missing=not truth.complete,
    )


def _scan_all(volume: Volume, deep: bool) -> Steps[tuple[dict[str, ScanResult], dict[str, CopyResult]]]:
    """Sync and scan every copy; a copy whose header is damaged is scanned with a peer's."""
    scans: dict[str, ScanResult] = {}
    away: dict[str, CopyResult] = {}
    header: VolumeHeader | None = None
    for target, copy in volume.copies.items():
        try:
            scans[target] = yield from _scan(copy, deep=deep)
            header = header or scans[target].header
        except TargetError as error:
            away[target] = CopyResult(target, CopyStatus.AWAY, 0, error=error.message)
    for target, scan in list(scans.items()):
        if scan.header is None and header is not None:
            try:
                scans[target] = yield from _scan(volume.copies[target], deep=deep, header=header)
            except TargetError as error:
                del scans[target]
                away[target] = CopyResult(target, CopyStatus.AWAY, 0, error=error.message)
    return scans, away


def _scan(copy: VolumeCopy, *, deep: bool, header: VolumeHeader | None = None) -> Steps[ScanResult]:
    # A sync that fails is not the end: what counts is what is read past the page cache afterwards.
    synced = yield Call(copy.target, Request(Verb.SYNC, copy.path))
    if synced.errno == UNAVAILABLE:
        expect(synced, copy.target, f"sync {copy.path}")
    stat = (yield from ask(copy.target, Request(Verb.STAT, copy.path), f"look at {copy.path}")).json()
    return (yield from scan_copy(copy.target, copy.path, stat["size"], header=header, deep=deep))


def _all_heard(header: VolumeHeader, scans: Mapping[str, ScanResult], configured: Mapping[str, str], answered: Collection[str]) -> bool:
    for member in header.members:
        known = configured.get(member.target)
        if known is None or known not in ("", member.target_id):
            continue  # struck: no target has its name, or another one
        if member.target not in scans and member.target not in answered:
            return False
    return True


class _Work:
    """The repair of one volume's copies, once the truth is known."""

    def __init__(
        self, volume: Volume, truth: Truth, scans: Mapping[str, ScanResult], own: ClaimKey, in_place_ok: Callable[[str, str], bool]
    ) -> None:
        self.volume, self.truth, self.scans, self.own, self.in_place_ok = volume, truth, scans, own, in_place_ok
        self.sources = {t: volume.copies[t].path for t in scans if t not in truth.conflicts}
        self.heard = False
        self.index: bytes | None = None  # None: the volume cannot be closed now
        self.length = truth.end

    def decide(self) -> None:
        """Whether the volume can be closed."""
        truth = self.truth
        unread = any(self._unread_tail(target) for target in self.sources)
        may_close = truth.complete and (truth.closed or (self.heard and not truth.conflicts and not unread))
        if may_close and all(batch.head for batch in truth.batches):
            self.index = volume_index(truth.header, truth.batches)
            self.length = truth.end + len(self.index)

    def settle(self, target: str) -> Steps[CopyResult]:
        """Bring one copy to the truth."""
        truth, scan, path = self.truth, self.scans[target], self.volume.copies[target].path
        missing = truth.missing(target)
        bad_front = bool(scan.problem)
        bad_index = truth.closed and any(damage.kind is DamageKind.INDEX for damage in scan.damage)
        final = self._final_length(target)
        if not (missing or bad_front or bad_index) and scan.size == final and scan.closed == (self.index is not None):
            return CopyResult(target, CopyStatus.WHOLE, final)
        try:
            yield from hold_term(target, truth.header.journal, self.own)
            if self.in_place_ok(target, path):
                try:
                    return (yield from self._in_place(target, path, missing, bad_front, final))
                except ReadBackError:
                    pass  # a new file lies elsewhere on the medium; the same place would be tried for ever
            if missing or bad_front or bad_index:
                copied = yield from copy_volume(truth, self.sources, target, path, own=self.own, index=self.index or b"", replace=True)
                status = CopyStatus.DAMAGED if copied.damage else CopyStatus.WHOLE
                return CopyResult(target, status, copied.length, changed=True)
            return CopyResult(target, CopyStatus.OPEN, truth.end)
        except (FencedError, TargetError, FormatError) as error:
            whole = not missing and not bad_front
            length = truth.end if whole else min(scan.whole_length, truth.end)
            return CopyResult(target, CopyStatus.OPEN if whole else CopyStatus.PARTIAL, length, error=error.message)

    def _in_place(self, target: str, path: str, missing: list[Batch], bad_front: bool, final: int) -> Steps[CopyResult]:
        truth, scan = self.truth, self.scans[target]
        unmended = False
        if bad_front:
            yield from write_checked(target, path, [(0, (yield from fetch_header(truth, self.sources)))])
        for batch in missing:
            data, damage = yield from fetch_batch(batch, truth.header, self.sources, whole_on=truth.holders[batch.number])
            unmended = unmended or bool(damage)
            own_damage = sum(found.batch == batch.number for found in scan.damage)
            if damage and any(b.number == batch.number for b in scan.batches) and own_damage <= len(damage):
                continue  # no copy has more of it than this one
            yield from write_checked(target, path, [(batch.offset, data)])
        size = (yield from ask(target, Request(Verb.STAT, path), f"look at {path}")).json()["size"]
        # From here on things are done that a later owner could not undo.
        yield from hold_term(target, truth.header.journal, self.own)
        index_stands = scan.closed and size == self.length and not any(d.kind is DamageKind.INDEX for d in scan.damage)
        cut = final if self.index is None else size if scan.closed and size == self.length else truth.end
        if size > cut:
            yield from ask(target, Request(Verb.TRUNCATE, path, length=cut), f"truncate {path}")
        if self.index is not None and not index_stands:
            yield from write_checked(target, path, [(truth.end, self.index)])
        status = CopyStatus.DAMAGED if unmended else CopyStatus.WHOLE
        return CopyResult(target, status, self.length if self.index is not None else truth.end, changed=True)

    def _final_length(self, target: str) -> int:
        """How long the copy's file shall be. A tail goes only when nothing in it can still be wanted."""
        scan, truth = self.scans[target], self.truth
        if self.index is not None:
            return self.length
        if not truth.complete or truth.conflicts or self._unread_tail(target) or scan.size <= truth.end:
            return max(scan.size, truth.end)
        if scan.torn and not self.heard:
            # Something was under way here; a member that is away may know better. What lies further behind was never written.
            return min(scan.size, truth.end + SEARCH_BYTES)
        return truth.end

    def _unread_tail(self, target: str) -> bool:
        """Whether the device did not give what lies behind the truth: there may be more."""
        return any(offset + length > self.truth.end for offset, length in self.scans[target].unreadable)
