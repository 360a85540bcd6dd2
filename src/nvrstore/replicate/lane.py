"""One lane: a sequence of volumes for up to LANE_TRACKS_MAX tracks.

    waiting fragments --tick--> batch in an extent --append--> every copy --answers--> settled, in order: commit
    volume: opened on every member, cut by size, age, a set change or a new codec; closed when every batch is settled

Order of durability: the header is durable on a copy before its first batch is (one ordered queue); a batch counts on a copy
when that copy's own sync has returned; batches are committed in the order they were built. The lane queues; ports act.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Hashable, Iterable
from typing import Final

from nvrstore.journal.batch import VolumeBuilder
from nvrstore.journal.model import VolumeHeader, VolumeTrack
from nvrstore.journal.names import volume_path
from nvrstore.limits import BATCH_BYTES_CUT, CUT_COALESCE_S, LANE_TRACKS_MAX, ORIGIN_MARGIN_S
from nvrstore.model import NS_PER_S, Fragment, Record, TrackConfig, TrackKey, new_id
from nvrstore.replicate.closing import Closer, Closing
from nvrstore.replicate.contract import LaneHost
from nvrstore.replicate.port import Op, Rate
from nvrstore.replicate.prepare import Preparers
from nvrstore.replicate.settling import Debts, Settling, identity_of
from nvrstore.replicate.volume import Copy, CopyState, OpenVolume, Submitted
from nvrstore.replicate.waiting import Waiting, whole_loan
from nvrstore.targets.contract import Answer, Request, Verb
from nvrstore.telemetry import get_logger

log = get_logger("replicate.lane")

RECORDS_ALONE_S: Final = 3.0  # records of a lane without any track wait this long for a camera, then get a volume of their own
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Lane:
    """See the module."""

    def __init__(self, host: LaneHost, number: int) -> None:
        self.host, self.number = host, number
        self.tracks: dict[TrackKey, tuple[str, TrackConfig]] = {}
        self.group: Hashable = None  # whose tracks it takes
        self.waiting = Waiting(host.buffer)
        self.volume: OpenVolume | None = None
        self.finishing: list[OpenVolume] = []
        self._volumes = self._built = 0
        self._prepared = Preparers(host)
        self._headers: dict[TrackKey, TrackConfig] = {}  # what the present volume's `moov` says
        self._changed = False  # a track that the present volume lacks is waiting
        self._cut_s = float("-inf")
        self._tick_s, self.built_s = 0.0, 0.0  # when the next batch is due, when the last one was built
        self._late = False  # one was due, and no target had a place for it
        self._records_since_s: float | None = None
        self.rate = Rate(host.clock.monotonic_s())
        self._ended = False
        self._debts = Debts()
        self._settling = Settling(host, self._debts)
        self._closing = Closer(host, self._enqueue, self._failed)

    # --- what comes in

    @property
    def room(self) -> int:
        """Tracks that this lane can still take."""
        return LANE_TRACKS_MAX - len(self.tracks)

    def declare(self, track: TrackKey, name: str, config: TrackConfig) -> None:
        self.tracks[track] = (name, config)
        have = self._headers.get(track)
        self._changed = self._changed or have is None or not have.continues(config)

    def put(self, fragment: Fragment) -> None:
        self.waiting.put(fragment)
        self.rate.add(fragment.length)

    # --- the step

    def step(self, now_s: float, *, flush: bool = False) -> None:
        """Everything that is due now. `flush`: the recorder stops, nothing waits for a tick."""
        self.rate.look(now_s)
        if not self._ended:
            self._prepare(now_s)
        if self.volume is not None and self._changed and (now_s - self._cut_s >= CUT_COALESCE_S or flush):
            self.cut()
        due = flush or self._late or now_s >= self._tick_s or self.waiting.bytes >= BATCH_BYTES_CUT or self.waiting.laid_out
        if self.volume is not None and now_s - self.volume.opened_s > self.host.spec.volume_age_s:
            self.cut()
        if self.volume is None and not self._ended and self._should_open(now_s, due, flush):
            self._open(now_s)
        if due:
            self._tick_s = now_s + self.host.spec.tick_s
            while self._build(now_s) and (self.waiting.bytes >= BATCH_BYTES_CUT or self._owed is not None):
                pass
            self._late = bool(self.waiting) and self.built_s < now_s
        self._settling.step(self.volumes(), now_s)
        for volume in list(self.finishing):
            self._finish(volume)

    @property
    def due_s(self) -> float:
        return self._tick_s

    @property
    def _owed(self) -> int | None:
        """The place in the order of what comes next, where that is owed again."""
        return self._debts.of(self.waiting.fragments[0]) if self.waiting.fragments else None

    def _prepare(self, now_s: float) -> None:
        for member in self.host.members():
            self._prepared.on(member.target).want(self.host.volume_bytes(self.rate.bps), now_s)
        for volume in self.volumes():
            for copy in volume.copies.values():
                if copy.state is CopyState.PREPARING:
                    self._send_open(volume, copy)
            self._prepared.give_up(volume, now_s)

    # --- open and cut

    def _should_open(self, now_s: float, due: bool, flush: bool) -> bool:
        if not due or not self.host.members():
            return False
        if self.tracks:
            return bool(self.waiting) or self.host.set_durable < self.host.epoch.set
        if not self.waiting.records:
            self._records_since_s = None
            return False
        self._records_since_s = now_s if self._records_since_s is None else self._records_since_s
        return flush or now_s - self._records_since_s >= RECORDS_ALONE_S

    def _open(self, now_s: float) -> None:
        host = self.host
        first: dict[TrackKey, TrackConfig] = {}
        oldest_ns = now_ns = host.clock.utc_ns()
        for fragment in self.waiting.fragments:
            first.setdefault(fragment.track, fragment.config)
            oldest_ns = min(oldest_ns, fragment.utc_ns)
        # Fragments of an older configuration may still wait: they go first, the newer ones cut once more.
        tracks = tuple(VolumeTrack(key, name, first.get(key, config)) for key, (name, config) in self.tracks.items())
        members = host.members()
        header = VolumeHeader(
            volume_id=new_id(),
            journal=host.spec.name,
            journal_id=host.spec.journal_id,
            recorder=host.spec.recorder,
            session=host.spec.session,
            epoch=host.epoch,
            lane=self.number,
            number=self._volumes,
            members=tuple(members),
            created_ns=now_ns,
            origin_ns=oldest_ns - ORIGIN_MARGIN_S * NS_PER_S,
            tracks=tracks,
        )
        builder = VolumeBuilder(header)
        raw = builder.header_bytes
        held = host.buffer.hold(len(raw))
        if held is None:
            return  # the buffer is full; the engine makes room
        held.view[: len(raw)] = raw
        self._volumes += 1
        bytes_max = max(host.volume_bytes(self.rate.bps), len(raw) + BATCH_BYTES_CUT // 8)
        volume = OpenVolume(
            header=header,
            path=volume_path(header),
            builder=builder,
            header_held=held,
            header_length=len(raw),
            copies={m.target: Copy(m.target, host.ports[m.target].handle(), host.ports[m.target].generation) for m in members},
            opened_s=now_s,
            bytes_max=bytes_max,
        )
        self.volume = volume
        self._cut_s = now_s
        self._headers = {track.track: track.config for track in tracks}
        self.waiting.repeat(host.standing())
        self._changed = any(not self._headers[key].continues(config) for key, (_, config) in self.tracks.items())
        self._prepare(now_s)

    def _send_open(self, volume: OpenVolume, copy: Copy) -> None:
        port = self.host.ports[copy.target]
        if copy.generation != port.generation:
            return
        prepared = self._prepared.on(copy.target).take()
        if prepared is None:
            return
        copy.state = CopyState.OPENING
        request = Request(
            Verb.OPEN,
            path=prepared,
            path2=volume.path,
            handle=copy.handle,
            extent=volume.header_held.extent.offset,
            length=volume.header_length,
        )
        port.enqueue(Op(request, lambda op, answer: self._opened(volume, copy, op, answer), self, volume.header_held))
        for op in copy.deferred:
            port.enqueue(op)
            if op.held:
                op.held.drop()  # the use it had while deferred; the port holds its own now
        copy.deferred.clear()

    def _opened(self, volume: OpenVolume, copy: Copy, op: Op, answer: Answer) -> None:
        if not answer.ok:
            self._prepared.on(copy.target).discard(op.request.path)
        if not copy.counts:
            return
        if not answer.ok:
            self._failed(volume, copy, answer, "opening a volume")
            return
        copy.state = CopyState.OPEN
        self.host.observer.volume_opened(volume.header, volume.path, copy.target)
        self.host.header_durable(volume.header, copy.target)

    def cut(self) -> None:
        """No new batches for the present volume: what was built for it finishes there."""
        if self.volume is not None:
            self.volume.cut = True
            self.finishing.append(self.volume)
            self.volume = None
            self._headers = {}
            self._tick_s = 0.0  # the next volume is opened at once: a change of set is durable only with its header

    # --- build

    def _build(self, now_s: float) -> bool:
        host, volume = self.host, self.volume
        if volume is None or not any(host.ports[copy.target].room or copy.state is CopyState.PREPARING for copy in volume.live()):
            return False
        owed = self._owed
        fragments, skipped = self.waiting.select(
            self._fits,
            until=lambda fragment: self._debts.of(fragment) != owed,  # what is owed keeps its place, so it goes alone
            cut_bytes=min(BATCH_BYTES_CUT, volume.bytes_max // 2),  # on a small disk: what was prepared for a volume holds its batches
        )
        records, repeated = self.waiting.select_records()
        # What has to wait needs another volume: another configuration, or an origin before it.
        self._changed = self._changed or bool(skipped)
        if not fragments and not records:
            return False
        size = volume.builder.size(fragments, records)
        if volume.batches and volume.builder.offset + size > volume.bytes_max:
            self.cut()
            self._open(now_s)
            return self._build(now_s) if self.volume is not None else False
        loan = whole_loan(fragments, size) if not records else None
        held = host.buffer.hold(size) if loan is None else host.buffer.keep(loan)
        if held is None:
            return False
        batch = volume.builder.build(
            held.view[:size],
            fragments,
            records,
            last_committed=volume.committed,
            utc_now_ns=host.clock.utc_ns(),
            in_place=loan is not None,
        )
        self.waiting.taken(fragments, skipped, len(records), repeated)
        volume.batches.append(batch)
        self.built_s = now_s
        pending = {copy.target for copy in volume.live()}
        self._built += 1
        order = self._built if owed is None else owed
        sub = Submitted(batch, held, pending, set(), volume.header.epoch.set, order, now_s)
        volume.submitted.append(sub)
        for copy in volume.live():
            self._append(volume, copy, sub)
        return True

    def _fits(self, fragment: Fragment) -> bool:
        """Whether the present volume can take it."""
        have = self._headers.get(fragment.track)
        if self.volume is None or have is None or not (have is fragment.config or have.continues(fragment.config)):
            return False
        return fragment.utc_ns >= self.volume.header.origin_ns

    def _append(self, volume: OpenVolume, copy: Copy, sub: Submitted) -> None:
        batch = sub.batch
        request = Request(Verb.APPEND, handle=copy.handle, offset=batch.offset, extent=sub.held.extent.offset, length=batch.length)
        self._enqueue(copy, Op(request, lambda _, answer: self._appended(volume, copy, sub, answer), self, sub.held))

    def _enqueue(self, copy: Copy, op: Op) -> None:
        if copy.state is CopyState.PREPARING:
            if op.held:
                op.held.take()
            copy.deferred.append(op)
        elif copy.generation == self.host.ports[copy.target].generation:
            self.host.ports[copy.target].enqueue(op)

    def _appended(self, volume: OpenVolume, copy: Copy, sub: Submitted, answer: Answer) -> None:
        if not copy.counts:
            return
        if answer.ok:
            sub.pending.discard(copy.target)
            sub.acked.add(copy.target)
        else:
            self._failed(volume, copy, answer, "writing a batch")

    def _failed(self, volume: OpenVolume, copy: Copy, answer: Answer, doing: str) -> None:
        host = self.host
        below = f" (below its file system: {os.strerror(answer.value)})" if answer.value > 0 else ""
        why = f"{doing}: {os.strerror(answer.errno)}{below}"
        if answer.errno in _FULL:
            # Preallocation makes this rare: only this volume is given up there, its tail is owed by resync.
            log.warning("volume.abandoned", target=copy.target, path=volume.path, reason=why)
            self._leave(volume, copy.target, None)
            if volume is self.volume:
                self.cut()
            host.abandoned(copy.target, volume.header, why)
            host.observer.needs_space(host.spec.name, copy.target)
        else:
            host.ports[copy.target].fail(why, answer.errno)

    # --- a member leaves

    def require(self, set_needed: int) -> None:
        """The numbers of sets begin anew (another term): what is not acknowledged yet waits for this one."""
        for volume in self.volumes():
            for sub in volume.submitted:
                if not sub.committed:
                    sub.set_needed = set_needed

    def leave(self, target: str, set_needed: int) -> None:
        """`target` is no longer in the set: cut, and owe again what only it had."""
        self.cut()
        for volume in reversed(self.finishing):  # what is owed goes in front each time: the oldest last
            self._leave(volume, target, set_needed)

    def _leave(self, volume: OpenVolume, target: str, set_needed: int | None) -> None:
        copy = volume.copies.get(target)
        if copy is not None and copy.counts:
            self.host.copy_left(volume.path, target, copy.generation)
            port = self.host.ports[target]
            if port.up and port.generation == copy.generation and copy.state is not CopyState.PREPARING:
                port.enqueue(Op(Request(Verb.CLOSE, handle=copy.handle), lambda _op, _answer: None, self))
        self._owe(volume, volume.leave(target, set_needed))

    def _owe(self, volume: OpenVolume, orphans: Iterable[Submitted]) -> None:
        """Put the contents of batches that no copy has back in front of the queue."""
        fragments: list[Fragment] = []
        records: list[Record] = []
        for sub in orphans:
            self._debts.owe(owed := sub.fragments(volume.header), sub.order)
            fragments.extend(owed)
            records.extend(sub.batch.records)
            sub.held.drop()
        self.waiting.put_back(fragments, records, self._debts.of)
        if fragments:
            self.cut()  # they go into a volume of their own: in each, batches are committed in their order

    def drop_oldest(self) -> Fragment | None:
        """The oldest fragment that waits, given up."""
        fragment = self.waiting.drop_oldest()
        if fragment is not None:
            self._debts.repaid({identity_of(fragment)})
        return fragment

    # --- settle and finish

    def _finish(self, volume: OpenVolume) -> None:
        if volume.submitted:
            return
        done = self._closing.step(volume)
        if done is Closing.PENDING:
            return
        self.finishing.remove(volume)
        volume.header_held.drop()
        if volume.closing is not None:
            volume.closing.drop()
        if done is Closing.CLOSED:
            names = [copy.target for copy in volume.live()]
            self.host.observer.volume_closed(volume.header, volume.path, volume.length, len(volume.batches), names)
        else:
            self.host.observer.volume_left(volume.header, volume.path)

    def end(self) -> None:
        """Nothing more is opened: give the prepared files back."""
        self._prepared.drop()
        self._ended = True

    @property
    def begun(self) -> int:
        """How many volumes it has begun in this session: the number of the next one."""
        return self._volumes

    def volumes(self) -> list[OpenVolume]:
        """Those that are being written, oldest first."""
        return [*self.finishing, self.volume] if self.volume is not None else list(self.finishing)

    @property
    def owes(self) -> bool:
        """Something waits to be committed."""
        return bool(self.waiting) or any(volume.submitted for volume in self.volumes())

    @property
    def idle(self) -> bool:
        """Nothing waits, nothing is on its way."""
        return not self.waiting and not self.finishing and (self.volume is None or not self.volume.submitted)
