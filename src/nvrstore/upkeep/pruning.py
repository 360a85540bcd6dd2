"""Retention on a running recorder: what the catalog knows becomes a plan, the plan becomes durable, then files go.

    catalog -> plan (retention.py) -> floors and gaps into the ledger, durable -> row to garbage -> trash -> unlink (prune.py)

Order of durability: what expired, and what is lost with a last copy, is written down before the first file goes; the
catalog's row goes before the file does, so that no row promises bytes that are not there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from nvrstore.catalog.query import CatalogReader
from nvrstore.catalog.schema import CopyState
from nvrstore.catalog.views import VolumeInfo
from nvrstore.config import KeepConfig
from nvrstore.errors import FencedError, TargetError
from nvrstore.events import VolumePruned
from nvrstore.failover.machine import MEMBER, State
from nvrstore.journal.names import parse_volume_path
from nvrstore.model import NS_PER_S, Gap, Record, RecordKind
from nvrstore.replicate.floor import Floor, floors_of
from nvrstore.targets.contract import Request, Steps, Verb
from nvrstore.targets.steps import ask
from nvrstore.telemetry import get_logger
from nvrstore.upkeep.host import Runner, UpkeepHost
from nvrstore.upkeep.prune import prune
from nvrstore.upkeep.retention import Keep, Plan, Removal, Space, Span, StoredCopy, StoredVolume, ledger_entries, plan_retention

log = get_logger("upkeep.pruning")

DURABLE_S = 5.0  # the ledger entries of a plan become durable within this, or the plan is made again later
_HELD = frozenset({CopyState.LIVE, CopyState.COMPLETE, CopyState.PARTIAL, CopyState.DAMAGED})


def keep_of(keep: KeepConfig, total_bytes: int) -> Keep:
    """A configured policy, shares of a target turned into bytes."""
    return Keep(
        age_ns=None if keep.days is None else int(keep.days * 86_400 * NS_PER_S),
        bytes_max=None if keep.bytes is None else keep.bytes.of(total_bytes),
        free_bytes=0 if keep.free is None else keep.free.of(total_bytes),
    )


class Pruning:
    """See the module. Used by one thread of upkeep."""

    def __init__(self, host: UpkeepHost, runner: Runner) -> None:
        self._host, self._runner = host, runner
        self._floors: dict[tuple[str, str], Floor] = {}
        self._gaps: dict[str, Gap] = {}
        self.recovering: set[str] = set()  # volumes that recovery is at work on now
        self.removed = 0
        self.short: Mapping[str, int] = {}

    def learn(self, journal: str, records: Iterable[Record]) -> None:
        """What earlier sessions wrote down: floors, and how far retention's own gaps reach."""
        everything = list(records)
        for place, floor in floors_of(everything).items():
            self._floors[journal, place] = self._floors.get((journal, place), Floor()).merged(floor)
        for record in everything:
            if record.kind == RecordKind.GAP and record.id.startswith("retention-"):
                self._gaps[record.id] = Gap.of(record)

    @property
    def floors(self) -> Mapping[tuple[str, str], Floor]:
        return self._floors

    def run(self, room: Mapping[str, int] | None = None) -> int:
        """Plan and carry out; how many copies went. `room`: bytes that are about to be needed, by target."""
        host = self._host
        if any(engine.fenced for engine in host.engines.values()):
            return 0  # a superseded writer deletes nothing, anywhere
        spaces = self._spaces(room or {})
        if not spaces:
            return 0
        host.catalog.flush()
        with CatalogReader(host.catalog.path) as reader:
            volumes = self._volumes(reader)
        total = min(space.total_bytes for space in spaces.values())
        keep = {journal.name: keep_of(journal.keep, total) for journal in host.config.journals}
        plan = plan_retention(
            volumes,
            spaces,
            keep,
            now_ns=host.clock.utc_ns(),
            keep_at=self._windows(total),
            unsynced=self._unsynced(volumes),
            room=room,
            floors=self._floors,
        )
        self.short = plan.short
        return self._carry_out(plan) if plan.removals else 0

    def _spaces(self, room: Mapping[str, int]) -> dict[str, Space]:
        """Fresh where it matters: a plan over old figures would delete twice."""
        spaces = {}
        for target in self._members():
            try:
                answer = self._runner.run(_space(target))
            except TargetError:
                continue
            spaces[target] = Space(answer["total"], answer["free"])
        return spaces

    def _members(self) -> list[str]:
        names: dict[str, None] = {}
        for engine in self._host.engines.values():
            for name, state in engine.states().items():
                if state in MEMBER or state is State.READY:
                    names[name] = None
        return list(names)

    def _windows(self, total: int) -> dict[tuple[str, str], Keep]:
        """The standbys' narrower windows, while there is a primary that keeps everything."""
        windows = {}
        for journal in self._host.config.journals:
            if journal.standby_keep is not None:
                engine = self._host.engines[journal.name]
                members = engine.members()
                whole = len(members) >= journal.copies and all(engine.states().get(m.target) is State.SYNCED for m in members)
                for member in members[1:] if whole else ():
                    windows[journal.name, member.target] = keep_of(journal.standby_keep, total)
        return windows

    def _volumes(self, reader: CatalogReader) -> list[StoredVolume]:
        infos = list(reader.volumes())
        # Asked behind the rows: what is among them and no longer written is not opened again.
        busy = {path for engine in self._host.engines.values() for path in self._host.hub.ask(engine.paths_in_use)}
        stored = []
        for info in infos:
            name = parse_volume_path(info.path)
            copies = tuple(StoredCopy(c.target, c.length, c.state is CopyState.COMPLETE) for c in info.copies if c.state in _HELD)
            if name is not None and copies:
                stored.append(
                    StoredVolume(info.volume_id, name, _end(info), copies, info.path in busy or info.volume_id in self.recovering)
                )
        return self._with_spans(reader, stored)

    @staticmethod
    def _with_spans(reader: CatalogReader, stored: list[StoredVolume]) -> list[StoredVolume]:
        """What each volume holds of which stream: for ledger entries and holds."""
        found: dict[str, dict[str, Span]] = {}
        for stream in reader.streams():
            for span in reader.spans(stream.stream):
                here = found.setdefault(span.volume_id, {})
                old = here.get(stream.stream)
                start_ns = span.start_ns if old is None else min(old.start_ns, span.start_ns)
                end_ns = span.end_ns if old is None else max(old.end_ns, span.end_ns)
                here[stream.stream] = Span(stream.stream, start_ns, end_ns)
        return [StoredVolume(v.volume_id, v.name, v.end_ns, v.copies, v.open, tuple(found.get(v.volume_id, {}).values())) for v in stored]

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

    def _carry_out(self, plan: Plan) -> int:
        host = self._host
        gaps = ledger_entries(plan.removals, self._gaps)
        for (journal, place), floor in plan.floors.items():
            if not host.wait_record(journal, floor.record(place), DURABLE_S):
                log.warning("pruning.postponed", journal=journal, reason="its ledger entry did not become durable")
                return 0
            self._floors[journal, place] = floor
        for gap in gaps:
            journal = next(r.volume.name.journal for r in plan.removals if any(s.stream == gap.stream for s in r.volume.spans))
            if not host.wait_record(journal, gap.record(), DURABLE_S):
                return 0
            self._gaps[gap.id] = gap
        return sum(self._remove(removal) for removal in plan.removals)

    def _remove(self, removal: Removal) -> bool:
        host, name = self._host, removal.volume.name
        engine = host.engines[name.journal]
        busy = {name.day, _today(host)}
        host.catalog.volume_removed(removal.volume.volume_id, removal.target)
        try:
            gone = self._runner.run(prune(removal.target, name, engine.spec.claim, busy_days=busy))
        except (FencedError, TargetError) as error:
            log.warning("volume.kept", path=name.path, target=removal.target, reason=str(error))
            return False
        self.removed += 1
        host.publish(
            VolumePruned(
                utc_ns=host.clock.utc_ns(), journal=name.journal, path=name.path, target=removal.target, reason=str(removal.reason)
            )
        )
        return gone


def _space(target: str) -> Steps[dict[str, int]]:
    answer = yield from ask(target, Request(Verb.SPACE), "ask for its free space")
    space: dict[str, int] = answer.json()
    return space


def _end(info: VolumeInfo) -> int:
    return info.last_ns or info.created_ns


def _today(host: UpkeepHost) -> str:
    return datetime.fromtimestamp(host.clock.utc_ns() / NS_PER_S, UTC).date().isoformat()
