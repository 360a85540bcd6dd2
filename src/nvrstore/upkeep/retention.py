"""Which copies of which volumes go, so that the policy is kept and recording never stops. Pure: a plan, no hands.

    1 EXPIRED      past the policy: older than `age`, beyond `bytes`          gone everywhere, or on that target
    2 REDUNDANT    another verified copy lies on a target that has room       gone here, wherever it is oldest
    3 OVERWRITTEN  what is left, the oldest first                             a ledger entry where it was the last copy

1 always; 2 and 3 only while a target has less free space than wanted. Whole volumes only, oldest first: in the order in
which a lane wrote them, a wall clock that steps reorders nothing there; between lanes by time, since one may be cut every
minute and the other every hour. Never the open volume, never one under a hold.

Age waits for a day where more than a day's footage would go at once: a recorder was off for long, or a clock leapt ahead.

A copy elsewhere counts only where there is room: between two full disks "the other one has it too" would be said by
both in turn, until a mirror had become a stripe with one copy of everything.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate
from typing import Final

from nvrstore.journal.names import VolumeName
from nvrstore.model import NS_PER_S, Cause, Gap
from nvrstore.replicate.floor import JOURNAL, Floor

#: A target has room while it has this share of itself more free than wanted: two volumes, since one is at most 1/32.
ROOM_SHARE: Final = 16
RETENTION_GAP: Final = "retention-"  # of the ids of gaps that retention enters
#: Age counts from the newest footage plus this at most: a clock that starts in a wrong year deletes nothing before it records.
AHEAD_NS_MAX: Final = 86_400 * NS_PER_S
#: What is older than its policy asks by more than this should have gone long ago, if the clock is right.
OVERDUE_NS_MAX: Final = 86_400 * NS_PER_S


@dataclass(frozen=True, slots=True)
class Keep:
    """What a journal's policy asks. None: no bound of that kind."""

    age_ns: int | None = None
    bytes_max: int | None = None  # on each target
    free_bytes: int = 0  # of each target, to be left free; the share of its size is added
    free_share: float = 0.0

    def free_of(self, total_bytes: int) -> int:
        return self.free_bytes + int(self.free_share * total_bytes)


@dataclass(frozen=True, slots=True)
class Space:
    """A target that can be reached now."""

    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Span:
    """Of when a volume holds footage of one stream. Also a hold: footage of that stream in that time stays."""

    stream: str
    start_ns: int
    end_ns: int

    def meets(self, other: Span) -> bool:
        return self.stream == other.stream and self.start_ns < other.end_ns and other.start_ns < self.end_ns


@dataclass(frozen=True, slots=True)
class StoredCopy:
    """One file."""

    target: str
    bytes: int
    verified: bool = True


@dataclass(frozen=True, slots=True)
class StoredVolume:
    """A volume and all its known copies, those on targets that are away included."""

    volume_id: str
    name: VolumeName
    end_ns: int  # of its newest footage
    copies: tuple[StoredCopy, ...]
    open: bool = False  # being written or recovered now (one that merely could not be closed yet is not: it must be able to go)
    spans: tuple[Span, ...] = ()


class Reason(StrEnum):
    """Why a copy goes."""

    EXPIRED = "expired"
    REDUNDANT = "redundant"
    OVERWRITTEN = "overwritten"


@dataclass(frozen=True, slots=True)
class Removal:
    """One copy that goes. `cause` is what the ledger says where it was the last one: policy no longer wanted it, or storage was short."""

    target: str
    volume: StoredVolume = field(repr=False)
    bytes: int
    reason: Reason
    cause: Cause
    last: bool
    trusts: tuple[str, ...] = ()  # it goes since one of these has it: read there, and its checksums compared, before it goes


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, in this order: floors and gaps into the ledger and durable, then the removals in order."""

    removals: tuple[Removal, ...]
    floors: Mapping[tuple[str, str], Floor]  # (journal, place): those that rise, with their new value
    short: Mapping[str, int]  # bytes that stay missing on a target: everything left is open or held
    overdue: Mapping[str, int] = field(default_factory=dict)  # by how much (ns) the oldest volume is too old, by journal, if by far


def plan_retention(
    volumes: Iterable[StoredVolume],
    spaces: Mapping[str, Space],
    keep: Mapping[str, Keep],
    *,
    now_ns: int,
    keep_at: Mapping[tuple[str, str], Keep] | None = None,
    holds: Sequence[Span] = (),
    unsynced: Collection[str] = (),
    room: Mapping[str, int] | None = None,
    floors: Mapping[tuple[str, str], Floor] | None = None,
    ripe: Collection[str] = (),
) -> Plan:
    """Plan for all journals at once, since they share targets.

    `spaces`: the targets that answer now; copies elsewhere are known but not touched. `keep`: by journal. `keep_at`: by
    (journal, target), a narrower window for a standby; it applies only to what is kept in full elsewhere. `unsynced`:
    ids of volumes that a wanted member still lacks. `room`: bytes about to be needed, beyond what the policy leaves free.
    `ripe`: journals in which age has waited long enough for what is overdue.
    """
    work = _Work(list(volumes), spaces, keep, keep_at or {}, holds, frozenset(unsynced), room or {}, floors or {})
    work.expire(now_ns, ripe)
    short = {target: missing for target in sorted(spaces) if (missing := work.make_room(target)) > 0}
    return Plan(tuple(work.removals), work.raised, short, work.overdue)


def ledger_entries(removals: Iterable[Removal], known: Mapping[str, Gap] | None = None) -> list[Gap]:
    """What the ledger says about last copies that go: one growing gap per stream and cause, not one per volume.

    `known` are the gaps that earlier plans led to, by id; what is returned replaces them. Footage that still lies
    inside such a gap (it was written later, out of order) counts before the gap.
    """
    gaps: dict[str, Gap] = {}
    for removal in removals:
        if not removal.last:
            continue
        for span in removal.volume.spans:
            gap_id = f"{RETENTION_GAP}{removal.cause}-{span.stream}"
            old = gaps.get(gap_id) or (known or {}).get(gap_id)
            start_ns = span.start_ns if old is None else min(span.start_ns, old.start_ns)
            end_ns = span.end_ns if old is None or old.end_ns is None else max(span.end_ns, old.end_ns)
            gaps[gap_id] = Gap(gap_id, span.stream, removal.cause, start_ns, end_ns, _DETAIL[removal.cause])
    return [gaps[gap_id] for gap_id in sorted(gaps)]


_DETAIL: Final = {Cause.POLICY: "no longer wanted by the retention policy", Cause.STORAGE: "overwritten: storage was full before its time"}


class _Work:
    """One planning run: what is left of each volume, what was freed where."""

    def __init__(
        self,
        volumes: list[StoredVolume],
        spaces: Mapping[str, Space],
        keep: Mapping[str, Keep],
        keep_at: Mapping[tuple[str, str], Keep],
        holds: Sequence[Span],
        unsynced: frozenset[str],
        room: Mapping[str, int],
        floors: Mapping[tuple[str, str], Floor],
    ) -> None:
        self.spaces, self.keep, self.keep_at, self.unsynced, self.room, self.floors = spaces, keep, keep_at, unsynced, room, floors
        self.volumes = _oldest_first(volumes)
        self.left = {volume.volume_id: {copy.target: copy for copy in volume.copies} for volume in volumes}
        self.freed = dict.fromkeys(spaces, 0)
        journals = sorted({volume.name.journal for volume in volumes} | set(keep))
        self.wanted = {
            target: room.get(target, 0) + max((self.policy(j, target).free_of(space.total_bytes) for j in journals), default=0)
            for target, space in spaces.items()
        }
        self.removals: list[Removal] = []
        self.raised: dict[tuple[str, str], Floor] = {}
        self.overdue: dict[str, int] = {}
        self.now_ns: dict[str, int] = {}
        held_streams = {hold.stream for hold in holds}
        self.fixed = {
            volume.volume_id
            for volume in volumes
            if volume.open or any(span.stream in held_streams and any(span.meets(hold) for hold in holds) for span in volume.spans)
        }

    def policy(self, journal: str, target: str) -> Keep:
        return self.keep_at.get((journal, target)) or self.keep.get(journal, Keep())

    def removable(self, target: str) -> list[StoredVolume]:
        return [v for v in self.volumes if target in self.left[v.volume_id] and v.volume_id not in self.fixed]

    def remove(self, volume: StoredVolume, target: str, reason: Reason, cause: Cause, place: str, trusts: Collection[str] = ()) -> None:
        copies = self.left[volume.volume_id]
        copy = copies.pop(target)
        self.freed[target] += copy.bytes
        self.removals.append(Removal(target, volume, copy.bytes, reason, cause, not copies, tuple(sorted(trusts))))
        key = (volume.name.journal, place)
        floor = self.raised.get(key) or self.floors.get(key, Floor())
        if not floor.covers(volume.name):
            self.raised[key] = floor.raised([volume.name])

    # --- past the policy

    def expire(self, now_ns: int, ripe: Collection[str]) -> None:
        newest_ns: dict[str, int] = {}
        for volume in self.volumes:
            newest_ns[volume.name.journal] = max(volume.end_ns, newest_ns.get(volume.name.journal, 0))
        self.now_ns = {journal: min(now_ns, newest + AHEAD_NS_MAX) for journal, newest in newest_ns.items()}
        for volume, target in self._reachable():
            place, late_ns = self._past_age(volume, target)
            if late_ns > OVERDUE_NS_MAX and not self._was_due(volume, place):
                self.overdue[volume.name.journal] = max(late_ns, self.overdue.get(volume.name.journal, 0))
        waiting = self.overdue.keys() - set(ripe)
        for volume, target in self._reachable():
            place, late_ns = self._past_age(volume, target)
            if late_ns > 0 and (volume.name.journal not in waiting or self._was_due(volume, place)):
                trusts = self.kept_in_full(volume, target) if place != JOURNAL else ()
                self.remove(volume, target, Reason.EXPIRED, Cause.POLICY, place, trusts)
        for journal in sorted(newest_ns):
            for target in sorted(self.spaces):
                self._expire_bytes(journal, target)

    def _reachable(self) -> list[tuple[StoredVolume, str]]:
        """Copies that could go, in order."""
        volumes = (volume for volume in self.volumes if volume.volume_id not in self.fixed)
        return [(volume, target) for volume in volumes for target in sorted(self.left[volume.volume_id]) if target in self.spaces]

    def _past_age(self, volume: StoredVolume, target: str) -> tuple[str, int]:
        """Where it is too old, everywhere or on that target, and by how much (ns); not positive: it is not."""
        journal = volume.name.journal
        age_ns, window = self.keep.get(journal, Keep()).age_ns, self.keep_at.get((journal, target))
        old_ns = self.now_ns[journal] - volume.end_ns
        if age_ns is not None and old_ns > age_ns:
            return JOURNAL, old_ns - age_ns
        if window is not None and window.age_ns is not None and old_ns > window.age_ns and self.kept_in_full(volume, target):
            return target, old_ns - window.age_ns
        return JOURNAL, 0

    def _was_due(self, volume: StoredVolume, place: str) -> bool:
        """Whether an earlier plan said so already: a target had been away."""
        return self.floors.get((volume.name.journal, place), Floor()).covers(volume.name)

    def _expire_bytes(self, journal: str, target: str) -> None:
        bytes_max = self.policy(journal, target).bytes_max
        if bytes_max is None:
            return
        here = [
            self.left[v.volume_id][target].bytes for v in self.volumes if v.name.journal == journal and target in self.left[v.volume_id]
        ]
        excess = sum(here) - bytes_max
        window = (journal, target) in self.keep_at
        for volume in self.removable(target):
            if excess <= 0:
                return
            trusts = self.kept_in_full(volume, target) if window else []
            if volume.name.journal == journal and (not window or trusts):
                excess -= self.left[volume.volume_id][target].bytes
                self.remove(volume, target, Reason.EXPIRED, Cause.POLICY, target, trusts)

    # --- short of space

    def missing(self, target: str) -> int:
        """Bytes that must go so that the target has free what its journals want, and what is about to be needed."""
        return self.wanted[target] - self.spaces[target].free_bytes - self.freed[target]

    def kept_in_full(self, volume: StoredVolume, target: str) -> list[str]:
        """The targets that answer, keep more than a window, and have a verified copy; none where a wanted member lacks one."""
        return [other for other in self._verified(volume, target) if (volume.name.journal, other) not in self.keep_at]

    def kept_elsewhere(self, volume: StoredVolume, target: str) -> list[str]:
        """The targets that answer, are not short themselves, and have a verified copy; none where a wanted member lacks one."""
        return [other for other in self._verified(volume, target) if self.missing(other) <= -(self.spaces[other].total_bytes // ROOM_SHARE)]

    def _verified(self, volume: StoredVolume, target: str) -> list[str]:
        if volume.volume_id in self.unsynced:
            return []
        copies = self.left[volume.volume_id]
        return [other for other, copy in copies.items() if copy.verified and other in self.spaces and other != target]

    def make_room(self, target: str) -> int:
        """Plan until the target has what it wants; returns what stays missing."""
        for redundant in (True, False):
            if self.missing(target) <= 0:
                break
            for volume in self.removable(target):
                if self.missing(target) <= 0:
                    break
                if redundant and (trusts := self.kept_elsewhere(volume, target)):
                    self.remove(volume, target, Reason.REDUNDANT, Cause.POLICY, target, trusts)
                elif not redundant:
                    # where the policy names an age, footage that is not yet of that age goes against the policy
                    wanted_longer = self.policy(volume.name.journal, target).age_ns is not None
                    self.remove(volume, target, Reason.OVERWRITTEN, Cause.STORAGE if wanted_longer else Cause.POLICY, target)
        return self.missing(target)


def _oldest_first(volumes: list[StoredVolume]) -> list[StoredVolume]:
    """The oldest footage first, over all lanes and journals; in the order of writing within a lane and from term to term.

    Numbers count per lane, and lanes are cut at different rates: between them only time can tell. The time that counts
    is that of the oldest footage from there on: monotone within a lane, and within a journal, whatever clocks did.
    """
    lanes: dict[tuple[str, int, str, int], list[StoredVolume]] = {}
    for volume in sorted(volumes, key=lambda v: v.name):
        name = volume.name
        lanes.setdefault((name.journal, name.term, name.tag, name.lane), []).append(volume)
    terms: dict[tuple[str, int], list[tuple[int, VolumeName, StoredVolume]]] = {}
    for (journal, term, *_), written in lanes.items():
        terms.setdefault((journal, term), []).extend(
            (oldest_ns, volume.name, volume) for oldest_ns, volume in zip(_monotone(v.end_ns for v in written), written, strict=True)
        )
    journals: dict[str, list[StoredVolume]] = {}
    for journal, term in sorted(terms):
        journals.setdefault(journal, []).extend(volume for *_, volume in sorted(terms[journal, term], key=lambda entry: entry[:2]))
    keyed = [
        (oldest_ns, journal, position, volume)
        for journal, ordered in journals.items()
        for position, (oldest_ns, volume) in enumerate(zip(_monotone(v.end_ns for v in ordered), ordered, strict=True))
    ]
    return [volume for *_, volume in sorted(keyed, key=lambda entry: entry[:3])]


def _monotone(times_ns: Iterable[int]) -> list[int]:
    """Each time, or the least of those behind it."""
    return list(accumulate(reversed(list(times_ns)), min))[::-1]
