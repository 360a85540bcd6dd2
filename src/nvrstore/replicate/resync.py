"""Bringing members to the same volumes: list, compare by id, copy what is missing, in both directions: a union.

    survey ──▶ plan_resync (pure) ──▶ 1 recover what is not settled   2 copy what a member lacks, newest first
                    ▲                                                 3 refuge copies that every member has now: release
                    └──────────────── again, until `synced` names every member that answers

Nothing is ever overwritten here: what differs is a conflict, and is reported. What has expired, or was never wanted on
a target, is not copied. A copy that was interrupted is continued. How fast all this goes is the driver's business:
`Pace` says how long to wait after each call; live writes have workers of their own, and come first (upkeep/yielding.py).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from nvrstore.errors import FencedError, FormatError, NvrstoreError, TargetError, TargetIOError, TargetUnavailableError
from nvrstore.failover.terms import ClaimKey
from nvrstore.journal.index import volume_index
from nvrstore.journal.names import VolumeName
from nvrstore.journal.scan import ScanResult
from nvrstore.limits import KEEPER_PIECE_BYTES
from nvrstore.replicate.copying import Copied, Progress, copy_volume
from nvrstore.replicate.floor import Floor, expired
from nvrstore.replicate.inventory import Survey, Volume, scan_copy
from nvrstore.replicate.recover import due_for_recovery
from nvrstore.replicate.truth import choose_truth
from nvrstore.targets.contract import Call, Steps, Verb


@dataclass(frozen=True, slots=True)
class CopyJob:
    """One volume that `target` lacks. `sources`: targets that have all of it."""

    volume: Volume
    target: str
    sources: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class ResyncPlan:
    """What is to be done, in this order; `synced` lack nothing that is known."""

    recover: tuple[Volume, ...]
    copies: tuple[CopyJob, ...]
    release: tuple[Volume, ...]  # their copy in the refuge is no longer needed
    synced: frozenset[str]
    conflicts: tuple[str, ...]  # paths under which targets hold different volumes


def plan_resync(
    seen: Survey,
    members: Sequence[str],
    *,
    recorder: str,
    held_s: float,
    refuge: str | None = None,
    busy: Collection[str] = (),
    floors: Mapping[str, Floor] | None = None,
    wanted: Callable[[Volume, str], bool] = lambda volume, target: True,
    held: Mapping[str, Collection[str]] | None = None,
    known: Mapping[str, VolumeName] | None = None,
) -> ResyncPlan:
    """Plan for one journal.

    `busy`: paths that are being written now. `wanted(volume, target)`: the policy (a standby that keeps a window).
    `held`: for volumes that recovery could not close yet, the targets that have all there is (`Recovered.holders`).
    `known`: volumes that the catalog knows on configured targets: one that no target shows now is lacking everywhere.
    `recorder`, `held_s`: see `due_for_recovery`.
    """
    floors, held = floors or {}, held or {}
    recover: list[Volume] = []
    urgent: list[CopyJob] = []
    copies: list[CopyJob] = []
    release: list[Volume] = []
    lacking: set[str] = {target for target in members if target not in seen.answered}
    paths: dict[str, set[str]] = {}
    for volume in seen.volumes:
        paths.setdefault(volume.name.path, set()).add(volume.volume_id)
    conflicts = {path for path, ids in paths.items() if len(ids) > 1}

    for volume in reversed(seen.volumes):
        due = [t for t in members if not expired(volume.name, floors, t) and wanted(volume, t)]
        if any(copy.path in busy for copy in volume.copies.values()):
            lacking |= {t for t in due if t not in volume.copies}
            continue
        holders = tuple(volume.copies) if volume.settled else tuple(t for t in volume.copies if t in held.get(volume.volume_id, ()))
        lacks = [t for t in due if t not in holders]
        lacking |= set(lacks)
        if not volume.settled and volume.volume_id not in held:
            if due_for_recovery(volume, recorder=recorder, held_s=held_s):
                recover.append(volume)
            continue
        for target in lacks:
            if target in volume.copies or target not in seen.answered or not holders:
                continue  # a copy that lacks something is recovery's; so is one that nobody has whole
            if volume.name.path in conflicts and any(v != volume.volume_id for v in _ids_at(seen, target, volume.name.path)):
                continue
            job = CopyJob(volume, target, holders, max(volume.copies[t].size for t in holders))
            (urgent if refuge in holders else copies).append(job)
        if refuge in volume.copies and holders and not lacks and any(t in holders for t in members):
            release.append(volume)
    shown = {volume.volume_id for volume in seen.volumes}
    for volume_id, name in (known or {}).items():
        if volume_id not in shown:
            lacking |= {t for t in members if not expired(name, floors, t)}
    return ResyncPlan(
        recover=tuple(recover),
        copies=(*urgent, *copies),
        release=tuple(release),
        synced=frozenset(members) - lacking,
        conflicts=tuple(sorted(conflicts)),
    )


def _ids_at(seen: Survey, target: str, path: str) -> Iterable[str]:
    return (v.volume_id for v in seen.volumes if target in v.copies and v.copies[target].path == path)


@dataclass(slots=True)
class ResyncReport:
    """What a run of `resync` did."""

    copied: list[Copied] = field(default_factory=list)
    failed: dict[tuple[str, str], NvrstoreError] = field(default_factory=dict)  # by (target, path)


def expect(progress: Progress, jobs: Sequence[CopyJob]) -> None:
    """These are to be done, too."""
    progress.bytes_total += sum(job.bytes for job in jobs)
    progress.volumes_total += len(jobs)


def resync(jobs: Sequence[CopyJob], *, own: ClaimKey, progress: Progress | None = None) -> Steps[ResyncReport]:
    """Carry out copy jobs one after the other. A target that does not answer, is full or fenced gets no further ones.

    What is to be done in all is written into `progress` by whoever has all the jobs (`expect`).
    """
    report = ResyncReport()
    given_up: dict[str, NvrstoreError] = {}
    for job in jobs:
        path = job.volume.name.path
        if job.target in given_up:
            report.failed[job.target, path] = given_up[job.target]
            continue
        try:
            report.copied.append((yield from copy_one(job, own=own, progress=progress)))
        except (TargetError, FencedError, FormatError) as error:
            report.failed[job.target, path] = error
            if _ends_the_target(error, job.target):
                given_up[job.target] = error
        if progress is not None:
            progress.volumes_done += 1
    if progress is not None:
        progress.current = ""
    return report


def copy_one(job: CopyJob, *, own: ClaimKey, progress: Progress | None = None) -> Steps[Copied]:
    """Copy one volume to a member that lacks it, closed where its copies are. Raises as `copy_volume` does."""
    scans: dict[str, ScanResult] = {}
    trouble: TargetError | None = None
    for source in job.sources:
        copy = job.volume.copies[source]
        try:
            scans[source] = yield from scan_copy(source, copy.path, copy.size)
        except TargetError as error:
            trouble = error
    truth = choose_truth(scans)
    if truth is None:
        raise trouble or FormatError("no copy of the volume has a readable header", path=job.volume.name.path)
    sources = {t: job.volume.copies[t].path for t in scans if t not in truth.conflicts}
    index = volume_index(truth.header, truth.batches) if truth.closed else b""
    return (yield from copy_volume(truth, sources, job.target, job.volume.name.path, own=own, index=index, progress=progress))


def _ends_the_target(error: NvrstoreError, target: str) -> bool:
    match error:
        case FencedError() | TargetUnavailableError():
            return error.target == target
        case TargetIOError():
            return error.target == target and error.errno in (
                errno.ENOSPC,
                errno.EDQUOT,
                errno.EROFS,
                errno.ENODEV,
                errno.ESTALE,
                errno.EIO,
            )
        case _:
            return False


class Pace:
    """A token bucket for whoever drives resync: `delay_s` after each call keeps to `bytes_per_s` on average. No clock of its own.

    What may go at once is what a second brings, and at most a few pieces.
    """

    def __init__(self, bytes_per_s: float) -> None:
        if bytes_per_s <= 0:
            raise ValueError("a pace is more than nothing")
        self.bytes_per_s = bytes_per_s
        self._burst_bytes = min(bytes_per_s, 4.0 * KEEPER_PIECE_BYTES)
        self._credit = self._burst_bytes
        self._last_s: float | None = None

    def delay_s(self, call: Call, now_s: float) -> float:
        """How long to wait before the call that follows `call`: only written bytes count, since reads feed them."""
        if self._last_s is not None:
            self._credit = min(self._burst_bytes, self._credit + (now_s - self._last_s) * self.bytes_per_s)
        self._last_s = now_s
        if call.request.verb is Verb.WRITE:
            self._credit -= len(call.request.data)
        return max(0.0, -self._credit / self.bytes_per_s)
