"""Retention on a running recorder: what the catalog knows becomes a plan, the plan becomes durable, then files go.

    catalog -> plan (retention.py) -> floors and gaps into the ledger, durable -> row to garbage -> trash -> unlink (prune.py)

Order of durability: what expired, and what is lost with a last copy, is written down before the first file goes; the
catalog's row goes before the file does, so that no row promises bytes that are not there.
A disk that is so full that nothing can be written down any more gets room first, by copies of which another one stays.
A catalog that cannot be written or read stops none of it: then the targets are listed (shown.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from nvrstore.catalog.query import CatalogReader
from nvrstore.catalog.schema import CopyState
from nvrstore.catalog.views import VolumeInfo
from nvrstore.config import JournalConfig, KeepConfig
from nvrstore.errors import CatalogError, FencedError, TargetError
from nvrstore.events import Alarm, VolumePruned
from nvrstore.failover.machine import MEMBER, State
from nvrstore.failover.members import choose_primary
from nvrstore.journal.names import parse_volume_path
from nvrstore.model import NS_PER_S, Gap, Media, Record, RecordKind
from nvrstore.replicate.floor import Floor, floors_of
from nvrstore.targets.contract import Request, Steps, Verb
from nvrstore.targets.steps import ask
from nvrstore.telemetry import get_logger
from nvrstore.upkeep.host import UpkeepHost, Work, do
from nvrstore.upkeep.prune import prune
from nvrstore.upkeep.retention import (
    RETENTION_GAP,
    Keep,
    Plan,
    Removal,
    Space,
    Span,
    StoredCopy,
    StoredVolume,
    ledger_entries,
    plan_retention,
)
from nvrstore.upkeep.room import FULL_S_MIN, Room, room_for, too_small
from nvrstore.upkeep.shown import shown_volumes, spans_in
from nvrstore.upkeep.trust import Trust
from nvrstore.upkeep.waits import WAIT_S, Waits

log = get_logger("upkeep.pruning")

DURABLE_S = 1.5  # the ledger entries of a plan become durable within this, or the plan is made again
FLUSH_S = 2.0  # a state disk that takes longer is not waited for: what arrives meanwhile needs room
PLAN_SHARE = 20.0  # planning without need takes at most this part of the time: a large archive has many volumes
_HELD = frozenset({CopyState.LIVE, CopyState.COMPLETE, CopyState.PARTIAL, CopyState.DAMAGED})


def keep_of(keep: KeepConfig, total_bytes: int) -> Keep:
    """A configured policy, shares of a target turned into bytes."""
    return Keep(
        age_ns=None if keep.days is None else int(keep.days * 86_400 * NS_PER_S),
        bytes_max=None if keep.bytes is None else keep.bytes.of(total_bytes),
        free_bytes=0 if keep.free is None else keep.free.of(total_bytes),
    )


class Pruning:
    """See the module. Used by one thread of upkeep at a time."""

    def __init__(self, host: UpkeepHost) -> None:
        self._host = host
        self._trust = Trust(host, lambda: self.recovering)
        self.hurried: Callable[[], bool] = lambda: False  # whether somebody waits until this round is over
        self._floors: dict[tuple[str, str], Floor] = {}
        self._gaps: dict[str, Gap] = {}
        self._gone: set[tuple[str, str]] = set()  # (path, target) of copies that went, and that rows may still name
        self.recovering: set[str] = set()  # volumes that recovery is at work on now, by id and by path
        self.full: set[tuple[str, str]] = set()  # (journal, target): it has no room for the claim, without which it cannot join
        self.removed = 0
        self.short: Mapping[str, int] = {}
        self._plan_next_s = 0.0
        self._narrow: frozenset[tuple[str, str]] = frozenset()  # (journal, target): where the last plan kept less than elsewhere
        self._small: set[str] = set()  # targets about which somebody was told
        self._waits = Waits(host.saved_waits(), host.save_waits)

    def learn(self, journal: str, records: Iterable[Record]) -> None:
        """What earlier sessions wrote down: floors, and how far retention's own gaps reach."""
        everything = list(records)
        for place, floor in floors_of(everything, journal).items():
            self._floors[journal, place] = self._floors.get((journal, place), Floor()).merged(floor)
        for record in everything:
            if record.kind == RecordKind.GAP and record.id.startswith(RETENTION_GAP):
                gap, known = Gap.of(record), self._gaps.get(record.id)
                if known is not None:  # it only grows; volumes come in any order
                    ends = (gap.end_ns or 0, known.end_ns or 0)
                    gap = replace(gap, start_ns=min(gap.start_ns, known.start_ns), end_ns=max(ends))
                self._gaps[record.id] = gap

    @property
    def mending(self) -> frozenset[str]:
        """The volume that is mended for retention's sake now, by id and by path."""
        return self._trust.mending

    @property
    def floors(self) -> Mapping[tuple[str, str], Floor]:
        return self._floors

    def room(self) -> dict[str, Room]:
        """What is to be kept ready on every member. Read without waiting for the engines: its parts may be a moment apart."""
        rooms: dict[str, Room] = {}
        arriving: dict[str, tuple[float, int]] = {}  # bytes a second of all journals, and the target's size
        for engine in self._host.engines.values():
            lanes = list(engine.lanes)
            rates = [lane.rate.bps for lane in lanes]
            size = engine.volume_bytes(max(rates, default=0.0))
            for target in self._members():
                look = engine.ports[target].look if target in engine.spec.targets else None
                if look is not None:
                    one = room_for(lanes=len(lanes), volume_bytes=size, bytes_per_s=sum(rates), total_bytes=look.total_bytes)
                    rooms[target] = rooms.get(target, Room()) + one
                    arriving[target] = arriving.get(target, (0.0, 0))[0] + sum(rates), look.total_bytes
        for target, (bytes_per_s, total_bytes) in arriving.items():
            if target not in self._small and too_small(bytes_per_s=bytes_per_s, total_bytes=total_bytes):
                self._small.add(target)
                self._tell_small(target, total_bytes / bytes_per_s)
        return rooms

    def _tell_small(self, target: str, full_s: float) -> None:
        sentence = (
            f"target {target!r} holds {full_s:.0f} s of what is recorded now: with less than {FULL_S_MIN:.0f} s, "
            "room cannot always be made in time; use a larger target, or record less on it"
        )
        log.warning("target.small", target=target, full_s=round(full_s, 1))
        self._host.publish(Alarm(utc_ns=self._host.clock.utc_ns(), what="retention", sentence=sentence))

    def scarce(self) -> list[str]:
        """Members on which room has to be made now, as their last looks show."""
        found = []
        for target, room in self.room().items():
            port = next(port for engine in self._host.engines.values() if (port := engine.ports.get(target)) is not None)
            if port.look is not None and port.look.free_bytes < room.low_bytes:
                found.append(target)
        return found

    def run(self) -> Work[int]:
        """Plan and carry out; how many copies went."""
        host = self._host
        if any(engine.fenced for engine in host.engines.values()):
            return 0  # a superseded writer deletes nothing, anywhere
        spaces = yield from self._spaces()
        if not spaces:
            return 0
        room = self.room()
        started_s = host.clock.monotonic_s()
        enough = all(space.free_bytes >= room.get(target, Room()).low_bytes for target, space in spaces.items())
        if enough and started_s < self._plan_next_s:
            return 0
        plan = yield from self._plan(spaces, {target: wanted.high_bytes for target, wanted in room.items()})
        now_s = host.clock.monotonic_s()
        self._plan_next_s = now_s + PLAN_SHARE * (now_s - started_s)
        self._tell_overdue(plan.overdue, spaces, now_s)
        self.short = plan.short
        full = [target for target, space in spaces.items() if target in room and space.free_bytes < room[target].volumes_bytes]
        return (yield from self._carry_out(plan, full)) if plan.removals else 0

    def _tell_overdue(self, overdue: Mapping[str, int], spaces: Collection[str], now_s: float) -> None:
        sure = [name for name, engine in self._host.engines.items() if set(engine.spec.targets) <= set(spaces)]
        for journal in self._waits.look(overdue, sure, now_s):
            days = overdue[journal] / NS_PER_S / 86_400
            sentence = (
                f"journal {journal!r} holds footage that should have gone for its age {days:.1f} days ago: it goes after "
                f"{WAIT_S / 3600:.0f} hours of recording; if the clock of this machine is wrong, correct it before that"
            )
            log.warning("retention.overdue", journal=journal, days=round(days, 1))
            self._host.publish(Alarm(utc_ns=self._host.clock.utc_ns(), what="retention", sentence=sentence))

    def _plan(self, spaces: Mapping[str, Space], room: Mapping[str, int]) -> Work[Plan]:
        host = self._host
        if host.catalog.flush(FLUSH_S):
            try:
                with host.catalog.reader() as reader:
                    plan = self._planned(self._known(reader), spaces, room)
                    streams = [info.stream for info in reader.streams()] if plan.removals else []
                    return replace(plan, removals=_with_spans(plan.removals, lambda r: _known_spans(reader, r, streams)))
            except (CatalogError, OSError) as error:
                log.warning("catalog.unread", reason=str(error))
        # Rows that were not written would be planned for again and again, and what was recorded since has none.
        shown: list[StoredVolume] = []
        for journal in host.engines:
            shown += yield from do(shown_volumes(spaces, journal))
        plan = self._planned(shown, spaces, room)
        spans = {}
        for removal in plan.removals:
            if removal.last:
                spans[removal.volume.name.path] = yield from do(spans_in(removal.target, removal.volume))
        return replace(plan, removals=_with_spans(plan.removals, lambda r: spans[r.volume.name.path]))

    def _planned(self, volumes: list[StoredVolume], spaces: Mapping[str, Space], room: Mapping[str, int]) -> Plan:
        host = self._host
        # Asked behind the list: what is in it and no longer written is not opened again.
        busy = {path for engine in host.engines.values() for path in host.hub.ask(engine.paths_in_use)} | self.recovering
        volumes = [replace(self._trust.doubted(v), open=v.name.path in busy or v.volume_id in busy) for v in volumes]
        total = min(space.total_bytes for space in spaces.values())
        windows = self._windows(total)
        self._narrow = frozenset(windows)
        return plan_retention(
            volumes,
            spaces,
            {journal.name: keep_of(journal.keep, total) for journal in host.config.journals},
            now_ns=host.clock.utc_ns(),
            keep_at=windows,
            unsynced=self._unsynced(volumes),
            room=room,
            floors=self._floors,
            ripe=self._waits.ripe(),
        )

    def _spaces(self) -> Work[dict[str, Space]]:
        """Fresh where it matters: a plan over old figures would delete twice."""
        spaces = {}
        for target in self._members():
            try:
                answer = yield from do(_space(target))
            except TargetError:
                continue
            spaces[target] = Space(answer["total"], answer["free"])
        return spaces

    def _members(self) -> list[str]:
        names: dict[str, None] = {}
        for engine in self._host.engines.values():
            for name, state in engine.states().items():
                full = state is State.HOLD_DOWN and (engine.spec.name, name) in self.full and engine.ports[name].answering
                if state in MEMBER or state is State.READY or full:
                    names[name] = None
        return list(names)

    def _windows(self, total: int) -> dict[tuple[str, str], Keep]:
        """The standbys' narrower windows, while there is a primary that keeps everything."""
        return {
            (journal.name, target): keep_of(journal.standby_keep, total)
            for journal in self._host.config.journals
            if journal.standby_keep is not None
            for target in self._standbys(journal)
        }

    def _standbys(self, journal: JournalConfig) -> list[str]:
        """The members beside a primary that stays one: who takes its role back in a moment keeps everything."""
        engine = self._host.engines[journal.name]
        states, names = engine.states(), [member.target for member in engine.members()]
        whole = len(names) == journal.copies and all(states.get(name) is State.SYNCED for name in names)
        if not whole or choose_primary(engine.spec.targets, states, names[0], failback=engine.spec.failback_auto) != names[0]:
            return []
        return names[1:]

    def _still(self, removal: Removal) -> bool:
        """Whether it may go now: writing it down, and reading the other copy, takes a while, in which a standby may have become
        the only one, and somebody else the writer."""
        journal = removal.volume.name.journal
        if self._host.engines[journal].fenced:
            return False
        return (journal, removal.target) not in self._narrow or removal.target in self._standbys(self._host.config.journal(journal))

    def _known(self, reader: CatalogReader) -> list[StoredVolume]:
        """What the catalog knows, without what went."""
        infos = list(reader.volumes())
        self._gone &= {(info.path, copy.target) for info in infos for copy in info.copies}
        stored = []
        for info in infos:
            name = parse_volume_path(info.path)
            held = [c for c in info.copies if c.state in _HELD and (info.path, c.target) not in self._gone]
            copies = tuple(StoredCopy(c.target, c.length, c.state is CopyState.COMPLETE) for c in held)
            if name is not None and copies:
                stored.append(StoredVolume(info.volume_id, name, _end(info), copies))
        return stored

    def _unsynced(self, volumes: list[StoredVolume]) -> set[str]:
        """Volumes that a member which is being resynced still lacks."""
        lacking = set()
        for journal in self._host.config.journals:
            engine = self._host.engines[journal.name]
            behind = [name for name, state in engine.states().items() if state in (State.JOINING, State.LIVE)]
            for volume in volumes:
                if volume.name.journal == journal.name and any(name not in {c.target for c in volume.copies} for name in behind):
                    lacking.add(volume.volume_id)
        return lacking

    def _carry_out(self, plan: Plan, full: Collection[str]) -> Work[int]:
        removals: Sequence[Removal] = plan.removals
        if not (yield from self._written(plan)):
            log.warning("pruning.postponed", reason="its ledger entry did not become durable", full=sorted(full))
            removals = self._first_room(plan, full)
        gone, kept = 0, set[str]()
        for removal in removals:
            volume_id = removal.volume.volume_id
            unread = bool(removal.trusts) and volume_id not in kept and self._still(removal)
            # Reading takes seconds: whoever waits for room goes first. Where the other copy is not whole, none goes in this round.
            if unread and (self.hurried() or not (yield from self._trust.stays_elsewhere(removal))):
                kept.add(volume_id)
            if volume_id not in kept and self._still(removal):
                gone += yield from self._remove(removal)
        return gone

    def _first_room(self, plan: Plan, full: Collection[str]) -> list[Removal]:
        """What goes before its entry is durable: enough that all that waits can be written, the entry behind it."""
        waiting = max((engine.buffer.bytes for engine in self._host.engines.values()), default=0)
        removals = first_room(plan.removals, {t: waiting + room.volumes_bytes for t, room in self.room().items() if t in full})
        for removal in removals:  # or resync would bring back what it finds missing
            place = (removal.volume.name.journal, removal.target)
            self._floors[place] = self._floors.get(place, Floor()).raised([removal.volume.name])
        return removals

    def _written(self, plan: Plan) -> Work[bool]:
        """Whether floors and gaps are durable: handed over all at once, they are in one batch."""
        host = self._host
        gaps = ledger_entries(plan.removals, self._gaps)
        entries = [(journal, floor.record(place, journal=journal)) for (journal, place), floor in plan.floors.items()]
        for gap in gaps:
            journal = next(r.volume.name.journal for r in plan.removals if any(s.stream == gap.stream for s in r.volume.spans))
            entries.append((journal, gap.record()))
        if not (yield from do(host.wait_records(entries, DURABLE_S))):
            return False
        self._floors.update(plan.floors)
        self._gaps.update((gap.id, gap) for gap in gaps)
        return True

    def _remove(self, removal: Removal) -> Work[bool]:
        host, name = self._host, removal.volume.name
        engine = host.engines[name.journal]
        busy = {name.day, _today(host)}
        host.catalog.volume_removed(removal.volume.volume_id, removal.target)
        try:
            gone = yield from do(prune(removal.target, name, engine.spec.claim, busy_days=busy))
        except (FencedError, TargetError) as error:
            log.warning("volume.kept", path=name.path, target=removal.target, reason=str(error))
            return False
        self._gone.add((name.path, removal.target))
        if not gone:
            return False  # nothing was freed: it went before, and its row stayed
        self.removed += 1
        host.publish(
            VolumePruned(
                utc_ns=host.clock.utc_ns(), journal=name.journal, path=name.path, target=removal.target, reason=str(removal.reason)
            )
        )
        return True


def first_room(removals: Sequence[Removal], need: Mapping[str, int]) -> list[Removal]:
    """For disks on which nothing can be written down: `need` bytes on each, by copies of which another one stays.

    Where there is no second copy, the oldest goes all the same: recording never stops, and the entry is on its way.
    """
    chosen: list[Removal] = []
    left = dict(need)
    taken: set[str] = set()  # volumes of which a copy goes: the others stay
    for spare in (True, False):
        for target in sorted(left):
            for removal in removals if left[target] > 0 else ():
                volume = removal.volume
                if (
                    removal.target == target
                    and removal not in chosen
                    and (not spare or len(volume.copies) > 1)
                    and volume.volume_id not in taken
                ):
                    chosen.append(removal)
                    taken.add(volume.volume_id)
                    left[target] -= removal.bytes
                    if left[target] <= 0:
                        break
    return chosen


def _with_spans(removals: Iterable[Removal], spans_of: Callable[[Removal], tuple[Span, ...]]) -> tuple[Removal, ...]:
    """What goes with a last copy, for the ledger. Of those volumes alone: all spans of an archive are millions."""
    return tuple(replace(r, volume=replace(r.volume, spans=spans_of(r) if r.last else ())) for r in removals)


def _known_spans(reader: CatalogReader, removal: Removal, streams: Iterable[str]) -> tuple[Span, ...]:
    spans = []
    for stream in streams:
        held = reader.spans_of(removal.volume.volume_id, stream, Media.VIDEO) or reader.spans_of(removal.volume.volume_id, stream)
        if held:
            spans.append(Span(stream, min(span.start_ns for span in held), max(span.end_ns for span in held)))
    return tuple(spans)


def _space(target: str) -> Steps[dict[str, int]]:
    answer = yield from ask(target, Request(Verb.SPACE), "ask for its free space")
    space: dict[str, int] = answer.json()
    return space


def _end(info: VolumeInfo) -> int:
    return info.last_ns or info.created_ns


def _today(host: UpkeepHost) -> str:
    return datetime.fromtimestamp(host.clock.utc_ns() / NS_PER_S, UTC).date().isoformat()
