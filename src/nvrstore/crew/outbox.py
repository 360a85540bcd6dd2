"""What a worker has to hand over, in order, and the thread that does it.

    sources' threads ──▶ items: fragments ──▶ batches, laid out in the window (batcher.py) ─┐
                              records, events, behind the fragments before them ────────────┼─▶ pipe
    taps ──▶ live samples ──▶ ring, while it is not a quarter full ─────────────────────────┘

Nobody here waits for the recorder but this thread. A recorder that does not take what comes makes it wait in memory, up to
BACKLOG_BYTES_MAX; what comes then is dropped, and in the ledger.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Final, NamedTuple

from nvrstore.clock import Clock
from nvrstore.crew.batcher import Batcher, Lane
from nvrstore.crew.messages import Declared, Recorded, Removed, Report, Stopped, Tapped, Told, send
from nvrstore.crew.ring import RING_BYTES, RingWriter
from nvrstore.events import Event, FragmentsDropped, GapClosed, GapOpened
from nvrstore.ingest.taps import Tap
from nvrstore.limits import BATCH_BYTES_CUT, MIB
from nvrstore.losses import Losses
from nvrstore.model import Cause, Fragment, Gap, TrackConfig, TrackKey

BACKLOG_BYTES_MAX: Final = 256 * MIB
GATHER_S: Final = 0.02  # many fragments in one message cost what one does
LOOK_S: Final = 1.0
ROOM_WAIT_S: Final = 0.005
TAPS_BYTES_MAX: Final = RING_BYTES // 4  # that may wait in the ring while live samples are put there
MESSAGES_MAX: Final = 256  # at a time
#: Told behind all fragments that came before: what a worker takes with it into its death must not be said to be there, nor to be over.
_BEHIND: Final = (Declared, Recorded, Told, Removed, Stopped)


class Outbox:
    """Thread-safe, but for `run`. `look` makes the report that is due every LOOK_S: it is also the sign of life."""

    def __init__(self, pipe: Connection, ring: RingWriter, clock: Clock, look: Callable[[int], Report]) -> None:
        self._pipe, self._ring, self._clock, self._look = pipe, ring, clock, look
        self.batches: Final = Batcher()
        self._items: deque[Report | _Waiting] = deque()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._pause = threading.Event()  # never set: waiting with a bound
        self._numbers: dict[tuple[TrackKey, TrackConfig], int] = {}
        self._losses = Losses("the recorder did not take what its ingest worker had")
        self._bytes = 0
        self._look_s = 0.0  # when the next report is due
        self._taps: dict[str, Tap] = {}
        self._ended = False

    # --- what is handed in

    def post(self, report: Report) -> None:
        self._items.append(report)
        self._wake.set()

    def declare(self, track: TrackKey, name: str, config: TrackConfig, *, journal: str, tick_s: float) -> None:
        """See `Intake`. `journal`: of the stream, which commits every `tick_s`."""
        with self._lock:
            number = self._numbers.setdefault((track, config), len(self._numbers))
        self.post(Declared(number, track, name, config, self.batches.lane(track, journal, tick_s).number))

    def put(self, fragment: Fragment) -> None:
        """See `Intake`."""
        with self._lock:
            if self._bytes + fragment.length > BACKLOG_BYTES_MAX:
                self._drop(fragment)
                return
            if self._losses and self._bytes <= BACKLOG_BYTES_MAX // 2 and (gap := self._losses.over(fragment.track.stream)) is not None:
                self._gap(gap, GapClosed(utc_ns=self._clock.utc_ns(), gap=gap))
            self._bytes += fragment.length
            self._items.append(_Waiting(self._numbers[fragment.track, fragment.config], fragment))
        self._wake.set()

    def _drop(self, fragment: Fragment) -> None:
        gap = self._losses.dropped(fragment)
        if gap is not None:
            now_ns, stream = self._clock.utc_ns(), fragment.track.stream
            self._gap(gap, GapOpened(utc_ns=now_ns, gap=gap))
            self._items.append(Told(FragmentsDropped(utc_ns=now_ns, stream=stream, cause=Cause.STORAGE)))

    def _gap(self, gap: Gap, event: Event) -> None:
        self._items += (Recorded(gap.stream, gap.record()), Told(event))

    def tap(self, stream: str) -> Tap:
        """A tap whose samples go to the recorder."""
        tap = Tap(self._wake.set, audio=True)
        self._taps = {**self._taps, stream: tap}
        return tap

    def untap(self, stream: str) -> Tap | None:
        tap = self._taps.get(stream)
        self._taps = {name: other for name, other in self._taps.items() if name != stream}
        return tap

    # --- the thread

    def run(self) -> None:
        """Hand over until `end` was called and nothing waits. Raises OSError when the recorder is not there any more."""
        while True:
            self._wake.wait(min(LOOK_S, max(0.0, self.batches.due_s - self._clock.monotonic_s())))
            ended = self._ended
            self._wake.clear()
            if not ended:
                self._pause.wait(GATHER_S)
            self._hand_over(math.inf if ended else self._clock.monotonic_s())
            if ended and not self._items:
                return

    def end(self) -> None:
        """Nothing more comes: `run` returns when everything is handed over."""
        self._ended = True
        self._wake.set()

    def _hand_over(self, now_s: float) -> None:
        """What there is, and the batches that are due at `now_s`."""
        lot: list[Report] = []
        self._look_when_due(lot)
        while self._items:
            item = self._items.popleft()
            if isinstance(item, _Waiting):
                lane = self.batches.add(item.number, item.fragment, self._clock.monotonic_s())
                if lane.bytes >= BATCH_BYTES_CUT:
                    self._laid_out(lane, lot)
                continue
            if isinstance(item, _BEHIND):
                self._all_laid_out(math.inf, lot)
            lot.append(item)
            if len(lot) >= MESSAGES_MAX:
                self._send(lot)
        self._all_laid_out(now_s, lot)
        for stream, tap in self._taps.items():
            self._tapped(stream, tap, lot)
        self._send(lot)

    def _look_when_due(self, lot: list[Report]) -> None:
        now_s = self._clock.monotonic_s()
        if now_s >= self._look_s:
            self._look_s = now_s + LOOK_S
            lot.append(self._look(self._bytes))

    def _send(self, lot: list[Report]) -> None:
        if lot:
            send(self._pipe, lot)
            lot.clear()

    def _all_laid_out(self, now_s: float, lot: list[Report]) -> None:
        for lane in self.batches.due(now_s):
            self._laid_out(lane, lot)

    def _laid_out(self, lane: Lane, lot: list[Report]) -> None:
        length = lane.bytes
        while (report := self.batches.lay_out(lane)) is None:
            self._look_when_due(lot)  # who waits for a recorder that waits for its targets is not dead
            self._send(lot)  # what is in front of it gives its room back only when it is told
            self._pause.wait(ROOM_WAIT_S)
        with self._lock:
            self._bytes -= length
        lot.append(report)

    def _tapped(self, stream: str, tap: Tap, lot: list[Report]) -> None:
        """Live samples come behind everything that is recorded, and take no room from it."""
        while self._ring.waiting_bytes < TAPS_BYTES_MAX and (taken := tap.take(1)):
            sample, config, utc_ns, dropped = taken[0].sample, taken[0].config, taken[0].utc_ns, taken[0].dropped_before
            position = self._ring.place((sample.data,), len(sample.data))
            if position is None:
                tap.missed(dropped + 1)
                return
            lot.append(
                Tapped(
                    self._numbers[TrackKey(stream, sample.media), config],
                    sample.pts,
                    sample.dts,
                    sample.keyframe,
                    sample.arrival_ns,
                    sample.arrival_s,
                    sample.damaged,
                    utc_ns,
                    dropped,
                    position,
                    len(sample.data),
                )
            )


class _Waiting(NamedTuple):
    """A fragment on its way to its lane."""

    number: int
    fragment: Fragment
