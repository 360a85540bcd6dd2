"""What must hold whatever happens: the checks of a simulation. Each names the invariant that it watches.

    promise 1 kept · 2 uninterrupted · 3 honest · 4 checkable · 5 single-minded
    in simulation_members.py: I8 claims · I16 nothing behind a failed write · I24 delay · I25 flapping · I26 false alarms · I29 said before
    I27 has no check of its own: under the fault "clock-step" all the others hold
    I1 durability · I2 no acknowledgement before the sync · I3 contiguous · I4/I5 nothing vanishes unsaid · I6 unique
    I7 terms rise · I9 a lower term is not accepted again · I10 closed is immutable · I11 only the owner destroys
    I12 retention · I13 copies equal · I14 union · I15 in-sync first
    I17 nothing committed is cut · I19 recovery is idempotent · I22/I23 bounds · I28 recording resumes

Cheap ones run when a thing happens (an acknowledgement, a call that is carried out) and after every step; the whole content
of all disks is read at the end, when everything has healed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tests.support.simulation_disks import View
from tests.support.simulation_members import MemberChecks
from tests.support.volumes import scan

from nvrstore.checksum import crc32c
from nvrstore.extents import Extent
from nvrstore.failover.machine import State
from nvrstore.failover.terms import ClaimKey, keys_in
from nvrstore.journal.model import Batch, VolumeHeader
from nvrstore.journal.names import parse_volume_path, untrash_path
from nvrstore.limits import ABANDONED_WORKERS_MAX, LOOK_FRESH_S, LOOK_S
from nvrstore.model import Commit, Record, RecordKind, Role
from nvrstore.replicate.floor import Floor
from nvrstore.replicate.resync import ResyncPlan
from nvrstore.targets.contract import Request, Verb
from nvrstore.upkeep.retention import Reason, Removal

if TYPE_CHECKING:
    from tests.support.simulation_node import Node
    from tests.support.simulation_world import World

Identity = tuple[str, int, int]

FENCE_S = LOOK_FRESH_S + LOOK_S + 0.5  # an acknowledgement may rest on a look this old
SLACK_BYTES = 128 << 10  # what one step may add beyond the bound


class Violation(AssertionError):
    """An invariant does not hold."""


class Checks:
    """See the module."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.members = MemberChecks(world)
        self.acked: set[Identity] = set()
        self.kept_in_refuge: set[Identity] = set()
        self.records: dict[tuple[int, str], Record] = {}
        self.where: dict[Identity, set[str]] = {}  # the volumes in which it was acknowledged
        self.ends: dict[str, int] = {}  # per volume's path: end of its last acknowledged batch
        self.batches: dict[str, list[Batch]] = {}
        self.closed_as: dict[str, tuple[str, bytes]] = {}  # per volume id: path, content
        self.terms: dict[str, int] = {}
        self.claimed_s: dict[tuple[str, ClaimKey], float] = {}  # when a claim appeared on a disk
        self.tidied_at: dict[tuple[str, ClaimKey], float] = {}
        self.newest_ns: dict[str, int] = {}  # per volume's path: UTC of its newest footage
        self.expired: dict[str, str] = {}  # volume id -> path: retention let it go
        self.paths: dict[str, str] = {}  # of volumes, by id
        self.windowed: set[tuple[str, str]] = set()  # (volume id, target): gone there alone, from a standby's window
        self.gone: set[str] = set()  # paths of volumes that retention took somewhere
        self.acks = self.steps = self.writes = 0

    def fail(self, which: str, what: str) -> None:
        raise Violation(
            f"[{which}] {what}   (seed {self.world.seed}, {self.world.now_s:.1f} s; faults: {', '.join(self.world.history[-12:])})"
        )

    # --- terms

    def claimed(self, node: Node, key: ClaimKey) -> None:
        last = self.terms.get(node.recorder_id, 0)
        if key.term <= last:
            self.fail("I7", f"{node.who} claims term {key.term} after {last}")
        self.terms[node.recorder_id] = key.term
        self.members.claimed(node, key)

    def highest(self, disk: str) -> tuple[ClaimKey | None, float]:
        files = self.world.disks[disk].files
        keys = keys_in(name.rpartition("/")[2] for name in files.files if name.startswith("main/epochs/"))
        if not keys:
            return None, 0.0
        return keys[-1], self.claimed_s.get((disk, keys[-1]), self.world.now_s)

    def tidied(self, node: Node, target: str) -> None:
        if node.engine is not None:
            self.tidied_at[target, node.engine.spec.claim] = self.world.now_s

    # --- what is carried out

    def carrying_out(self, view: View, request: Request) -> None:
        """`request` is about to be carried out on `view`, whoever asked for it, whenever."""
        match request.verb:
            case Verb.APPEND | Verb.OPEN:
                self._writing(view, request)
            case Verb.PUT:
                key = ClaimKey.of(request.path.rpartition("/")[2])
                if key is not None:
                    self.claimed_s.setdefault((view.name, key), self.world.now_s)
            case Verb.TRUNCATE:
                self._cutting(view, request)
            case Verb.RENAME:
                self._copied(view, request)
            case Verb.UNLINK:
                self._unlinking(view, request.path)
            case Verb.WRITE:
                self._patching(view, request)

    def _writing(self, view: View, request: Request) -> None:
        given = view.written.get(id(request))
        self.writes += 1
        if given is None:
            return
        _, pool, crc = given
        if crc32c(pool.view(Extent(request.extent, request.length))) != crc:
            self.fail(
                "memory, promise 1", f"a write to {view.name} finds other bytes in its memory than it was given: it was reused too early"
            )

    def _cutting(self, view: View, request: Request) -> None:
        """A whole committed batch is never cut off, on no copy."""
        file = view.files.files.get(request.path)
        for batch in self.batches.get(request.path, ()) if file is not None and request.length < self.ends.get(request.path, 0) else ():
            if batch.end > request.length and file is not None and self._whole(file.data, batch):
                self.fail("I17", f"{request.path} on {view.name} is cut to {request.length}, below committed batch {batch.number}")

    @staticmethod
    def _whole(file: bytearray, batch: Batch) -> bool:
        data = memoryview(file)[batch.offset : batch.end]
        if len(data) != batch.length or bytes(data[: len(batch.head)]) != batch.head:
            return False
        return all(crc32c(data[entry.offset : entry.offset + entry.length]) == entry.crc for entry in batch.entries)

    def _copied(self, view: View, request: Request) -> None:
        """A copy gets its name: never one of what its recorder knows to be gone for good."""
        name = parse_volume_path(request.path2)
        node = self.world.node_of(view.who)
        if name is None or node is None or request.path2 not in self.expired.values() or view.name == "refuge":
            return
        if (
            request.path in view.files.files
            and request.path2 not in view.files.files
            and any(floor.covers(name) for place, floor in node.all_floors.items() if place in ("*", view.name))
        ):
            self.fail("I12, promise 5", f"{request.path2} expired, and {node.who} brings it back to {view.name}")

    def _unlinking(self, view: View, path: str) -> None:
        if path not in view.files.files:
            return
        if parse_volume_path(path) is not None and view.name != "refuge":
            self.fail("I11", f"a volume is unlinked without the trash: {path}")
        name = untrash_path(path)
        if name is None:
            return
        if any(other in view.files.files and view.files.files[other] is view.files.files[path] for other in [name.path]):
            return  # its other name stays
        key, _ = self.highest(view.name)
        if key is None:
            return
        term = int(path.split("/")[2])
        tidied = self.tidied_at.get((view.name, key))
        if key.term > term and key.recorder_id != self.world.ids[view.who] and tidied is not None and self.world.now_s > tidied:
            self.fail("I11, promise 5", f"{view.who} (term {term}) deletes {name.path} on {view.name}, which term {key.term} owns")
        if name.path not in self.gone:
            self.fail("I12", f"{name.path} is deleted on {view.name}, and no plan said so")

    def _patching(self, view: View, request: Request) -> None:
        """Closed content never changes, but to what it was."""
        if not request.path.endswith(".mp4") or request.path not in view.files.files:
            return
        for volume_id, (path, content) in self.closed_as.items():
            piece = content[request.offset : request.offset + len(request.data)]
            if volume_id in self.expired:
                continue  # a copy on a target that was away, not yet taken along
            if path == request.path and piece and piece != bytes(request.data)[: len(piece)]:
                self.fail("I10", f"closed volume {volume_id} is changed on {view.name} at {request.offset}")

    # --- acknowledgements

    def stored(self, node: Node, header: VolumeHeader, path: str, batch: Batch, targets: Sequence[str], commit: Commit | None) -> None:
        identities = [(header.tracks[entry.track_id - 1].track.stream, entry.session, entry.index) for entry in batch.entries]
        self.members.stored(node, path, batch, targets, committed=commit is not None)
        for identity in identities:
            node.due.pop(identity, None)
        for target in targets:
            self._durable(target if target != "refuge" else f"refuge-{node.who}", path, batch)
        if commit is None:
            node.refuged.update(identities)
            self.kept_in_refuge.update(identities)
            return
        self.acks += 1
        self._lawful(node, header, path, targets)
        for identity in identities:
            # Once more in another volume is how what only a lost target had is brought to the others.
            if header.volume_id in self.where.setdefault(identity, set()):
                self.fail("I6", f"{identity} is committed twice")
            self.acked.add(identity)
            node.acked.add(identity)
            self.where[identity].add(header.volume_id)
        self.paths[header.volume_id] = path
        for record in batch.records:
            self.records[record.kind, record.id] = record
            node.acked_records[record.kind, record.id] = record
        self.batches.setdefault(path, []).append(batch)
        self.ends[path] = max(self.ends.get(path, 0), batch.end)
        self.newest_ns[path] = max([self.newest_ns.get(path, 0), *(entry.utc_ns for entry in batch.entries)])
        self._contiguous(node, identities)

    def _durable(self, disk: str, path: str, batch: Batch) -> None:
        """The bytes are on the medium: not in a cache, not on their way."""
        file = self.world.disks[disk].files.files.get(path)
        if file is None or not self._whole(file.data, batch):
            self.fail("I2, promise 1", f"batch {batch.number} of {path} is acknowledged, and is not on {disk}")

    def _lawful(self, node: Node, header: VolumeHeader, path: str, targets: Sequence[str]) -> None:
        engine = node.engine
        if engine is None:
            return
        states = engine.states()
        counted = [target for target in targets if target != "refuge"]
        if not engine.spec.commit_any and not self.world.full:
            for member in header.members:
                # One that left since, or is still joining, is not waited for.
                if member.target in states and states[member.target] is State.SYNCED and member.target not in targets:
                    self.fail("I2", f"{path} is acknowledged without {member.target}, which is a member")
        own = engine.spec.claim
        for target in counted:
            key, since_s = self.highest(target)
            if key is not None and key.term > own.term and key.recorder_id != own.recorder_id and self.world.now_s - since_s > FENCE_S:
                self.fail(
                    "I9, promise 5",
                    f"{node.who} (term {own.term}) counts on {target}, which shows term {key.term} for {self.world.now_s - since_s:.1f} s",
                )

    def _contiguous(self, node: Node, identities: Sequence[Identity]) -> None:
        for stream, session, index in identities:
            if session != node.session:
                continue
            due = node.next_index.get(stream, 0)
            for missed in range(due, index):
                identity = (stream, session, missed)
                if identity in node.put and identity not in node.acked and identity not in node.refuged and identity not in node.dropped:
                    self.fail("I3, promise 3", f"{identity} is skipped: {index} is acknowledged before it")
            node.next_index[stream] = max(due, index + 1)

    def closed(self, node: Node, volume_id: str, path: str, length: int, targets: Sequence[str]) -> None:
        for target in targets:
            name = target if target != "refuge" else f"refuge-{node.who}"
            file = self.world.disks[name].files.files.get(path)
            if file is None:
                continue
            content = file.read(0, length, fresh=True)
            if self.closed_as.setdefault(volume_id, (path, content)) != (path, content) and volume_id not in self.expired:
                self.fail("I10, I13", f"{path} is closed with other bytes on {target}")

    # --- retention

    def removing(self, node: Node, removal: Removal) -> None:
        plan = self.world.plan
        path = removal.volume.name.path
        self.gone.add(path)
        if node.engine is not None and path in node.engine.paths_in_use():
            self.fail("I12", f"{path} goes while it is being written")
        if removal.reason is not Reason.EXPIRED:
            self.fail("I12", f"{path} goes from {removal.target} because it is {removal.reason}, and there is room")
        newest = self.newest_ns.get(path)
        if plan.window_s is not None and not self._old(newest, plan.keep_s):
            self._out_of_window(node, removal, newest, plan.window_s)
            return
        if not self._old(newest, plan.keep_s):
            self.fail("I12", f"{path} goes before its time")
        self.expired[removal.volume.volume_id] = path

    def _old(self, newest_ns: int | None, keep_s: float | None) -> bool:
        """Whether footage is older than it is kept, as far as clocks can be trusted."""
        if keep_s is None or newest_ns is None:
            return keep_s is not None
        return newest_ns <= self.world.clock.utc_ns() - int((keep_s - self.world.stepped_back_s) * 1e9) + 1_000_000

    def _out_of_window(self, node: Node, removal: Removal, newest_ns: int | None, window_s: float) -> None:
        """A standby keeps less than the primary, which has it, whole."""
        path, target = removal.volume.name.path, removal.target
        if not self._old(newest_ns, window_s):
            self.fail("I12", f"{path} goes from {target} before it is out of its window")
        members = node.engine.members() if node.engine is not None else []
        known = self.closed_as.get(removal.volume.volume_id)
        kept = [
            member.target
            for member in members
            if member.target != target
            and (file := self.world.disks[member.target].files.files.get(path)) is not None
            and (known is None or file.read(0, len(known[1]), fresh=True) == known[1])
        ]
        if not kept:
            self.fail("I12", f"{path} goes from the window of {target}, and no member has it")
        self.windowed.add((removal.volume.volume_id, target))

    def planned(self, node: Node, plan: ResyncPlan) -> None:
        if plan.conflicts:
            self.fail("I6, I10", f"different volumes under one name: {plan.conflicts}")

    # --- what is not stored

    def dropping(self, node: Node) -> None:
        """The bound of the buffer was met: only where nobody could take it."""
        engine = node.engine
        if engine is None:
            return
        for name, state in engine.states().items():
            view = self.world.views[node.who][name]
            port = engine.ports[name]
            healthy = state in (State.LIVE, State.SYNCED) and not view.held and view.rule is None and view.mounted
            if healthy and not port.backlog_bytes and not self.world.full and port.fresh() and port.up:
                self.fail("promise 2", f"footage is dropped, and {name} could take it")

    def stopped(self, node: Node) -> None:
        """It was stopped in order, on healthy targets: what a camera sent is stored, or the ledger says that it is not."""
        engine = node.engine
        if engine is None or engine.fenced:
            return
        if not engine.idle:
            self.fail("I28", f"{node.who} does not come to its end: {engine.states()}")
        gaps = [record.body for record in self.records.values() if record.kind == RecordKind.GAP]
        for identity, utc_ns in node.put.items():
            if identity in node.acked or identity in node.refuged:
                continue
            if identity not in node.dropped:
                self.fail("I5, promise 3", f"{identity} was neither stored nor dropped")
            if not any(
                gap["stream"] == identity[0] and gap["start_ns"] <= utc_ns and gap["end_ns"] is not None and utc_ns < gap["end_ns"]
                for gap in gaps
            ):
                self.fail("I4, promise 3", f"{identity} was dropped, and no gap says so: {gaps}")

    # --- after every step

    def step(self) -> None:
        self.steps += 1
        for node in self.world.living():
            engine = node.engine
            if engine is None or node.frozen:
                continue
            self.members.step(node)
            bound = self.world.plan.pool_bytes
            burst = sum(window.length for window in node.pool.windows)  # what was laid out while it was frozen
            if node.buffer.bytes > bound + SLACK_BYTES + burst:
                self.fail("I22", f"{node.buffer.bytes} bytes are held, {bound} are allowed")
            waiting = [fragment for lane in engine.lanes for fragment in lane.waiting.fragments]
            if node.buffer.waiting_bytes != sum(fragment.length for fragment in waiting if fragment.loan is None):
                self.fail("I22", "the replay buffer has lost count")
            for name in engine.ports:
                # Not those that somebody else killed while they were stuck: a recorder cannot bound them.
                if (stuck := self.world.views[node.who][name].given_up()) > ABANDONED_WORKERS_MAX:
                    self.fail("I23", f"{stuck} abandoned workers of {name} are still there")
            members = engine.members()
            states = engine.states()
            first = next((m for m in members if m.role is Role.PRIMARY), None)
            if first is not None and states[first.target] is not State.SYNCED:
                better = [m.target for m in members if m is not first and states[m.target] is State.SYNCED]
                if better and not node.primary_may_wait(first.target):
                    self.fail("I15", f"{first.target} is primary and lacks something; {better[0]} lacks nothing")

    # --- the end: everything has healed, one recorder has brought all together

    def end(self, node: Node) -> None:
        world = self.world
        names = [name for name in world.disks if not name.startswith("refuge")]
        contents = {name: world.volumes(name) for name in names}
        found: dict[str, dict[Identity, bytes]] = {}
        records: dict[str, dict[tuple[int, str], Record]] = {}
        for name in names:
            found[name], records[name] = self._read(name, contents[name])
        floors = node.floors()
        allowed = set(self.expired)
        for identity in sorted(self.acked):
            if self.where[identity] & allowed:
                continue
            for name in names:
                if identity not in found[name] and not all(self._let_go(node, volume, name) for volume in self.where[identity]):
                    where = sorted(n for n in names if identity in found[n])
                    self.fail("I1, promise 1", f"{identity} was committed, and is not on {name} (it is on {where or 'none'})")
        for identity in sorted(self.kept_in_refuge - self.acked):
            if not world.plan.keep_s and not any(identity in found[name] for name in names):
                self.fail("I14, promise 3", f"{identity} was kept in a refuge, and was never merged")
        if not world.plan.keep_s:
            for key in self.records:
                for name in names if world.plan.window_s is None else ():
                    if key[0] == RecordKind.MARK and key not in records[name]:
                        self.fail("I1, promise 3", f"record {key} was committed, and is not on {name}")
        reference = contents[names[0]]
        for name in names[1:]:
            differing = sorted(p for p in set(reference) | set(contents[name]) if reference.get(p) != contents[name].get(p))
            if world.plan.window_s is not None:  # a standby's window: what is there all the same, is the same
                differing = [p for p in differing if p in reference and p in contents[name]]
            if differing:
                self.fail("I13", f"{names[0]} and {name} differ in {differing[:3]}")
        for volume_id, path in self.expired.items():
            for name in names:
                parsed = parse_volume_path(path)
                if path in contents[name] and parsed is not None and Floor(floors).covers(parsed):
                    self.fail("I12, promise 5", f"volume {volume_id} expired, and is on {name} again: {path}")

    def _let_go(self, node: Node, volume_id: str, name: str) -> bool:
        """Whether a standby's window took the volume there, or was beyond it before the target could get it."""
        parsed, floor = parse_volume_path(self.paths.get(volume_id, "")), node.all_floors.get(name)
        return (volume_id, name) in self.windowed or (parsed is not None and floor is not None and floor.covers(parsed))

    def _read(self, name: str, contents: dict[str, bytes]) -> tuple[dict[Identity, bytes], dict[tuple[int, str], Record]]:
        found: dict[Identity, bytes] = {}
        records: dict[tuple[int, str], Record] = {}
        for path, data in contents.items():
            result = scan(data, deep=True)
            if result.header is None or result.damage:
                self.fail("I18, promise 4", f"{path} on {name}: {result.problem or result.damage}")
                return found, records
            if not result.closed:
                self.fail("I28", f"{path} on {name} was never closed")
            known = self.closed_as.get(result.header.volume_id)
            if known is not None and known[1] != data:
                self.fail("I10", f"{path} on {name} was closed with other bytes")
            for batch in result.batches:
                if not self._whole(bytearray(data), batch):
                    self.fail("I18, promise 4", f"batch {batch.number} of {path} on {name} is not what its checksums say")
                for record in batch.records:
                    records[record.kind, record.id] = record
                for entry in batch.entries:
                    stream = result.header.tracks[entry.track_id - 1].track.stream
                    identity = (stream, entry.session, entry.index)
                    payload = self.world.payload(identity)
                    at = batch.offset + entry.offset
                    if data[at : at + entry.length][-len(payload) :] != payload:
                        self.fail("I1, I6", f"{identity} on {name} is not what its camera sent")
                    found[identity] = payload
        return found, records
