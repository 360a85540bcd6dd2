"""One stream that a worker receives, as the recorder sees it. See `StreamHand`.

What was heard of it is kept here and outlives the worker: where its footage ended, which gaps are open, how many samples
there were. Whoever goes on with it begins with that, so no sample's number is used twice and no gap is left open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import replace

from nvrstore.config import StreamConfig
from nvrstore.crew.messages import Add, Command, Retry, Tapping, Trigger
from nvrstore.events import Event, GapOpened, StreamChanged
from nvrstore.ingest.contract import LaneIntake
from nvrstore.ingest.status import StreamState, StreamStatus
from nvrstore.ingest.taps import Tap
from nvrstore.model import Cause, Fragment, Gap, Media, Record, RecordKind, Sample, TrackConfig, new_id


class RemoteStream:
    """Reports about it come from one thread at a time; everything else is thread-safe. `post` tells its present worker something."""

    def __init__(
        self,
        config: StreamConfig,
        intake: LaneIntake,
        fragment_s: float,
        open_gaps: Iterable[Gap],
        before: RemoteStream | None,
        on_event: Callable[[Event], None],
    ) -> None:
        self.config, self.intake, self._on_event = config, intake, on_event
        self._fragment_s = fragment_s
        self.post: Callable[[Command], None] = lambda _: None
        self.next_index: dict[Media, int] = dict(before.next_index) if before is not None else {}
        self.end_ns: int | None = None  # of the footage that was handed over
        # Where its tracks lie in the recorder: of another seat's lanes nothing can be said here, nor of another journal's.
        self.seat: int = before.seat if before is not None and before.config.journal == config.journal else 0
        self.lanes: dict[Media, int] = dict(before.lanes) if before is not None and self.seat else {}
        self.removed: Future[bool] = Future()
        self._open_gaps = {gap.id: gap for gap in open_gaps}
        self._taps: tuple[Tap, ...] = ()
        self._status = _idle(config)
        self._before = self._status  # counters of workers that are gone

    @property
    def open_gaps(self) -> tuple[Gap, ...]:
        return tuple(self._open_gaps.values())

    # --- what the user asks for

    def status(self) -> StreamStatus:
        now, before = self._status, self._before
        return replace(
            now,
            samples=before.samples + now.samples,
            skipped=before.skipped + now.skipped,
            packets_lost=before.packets_lost + now.packets_lost,
            reconnects=before.reconnects + now.reconnects,
        )

    def retry_now(self) -> None:
        self.post(Retry(self.config.id))

    def trigger(self, name: str, *, pre_s: float, post_s: float) -> None:
        self.post(Trigger(self.config.id, name, pre_s, post_s))

    def add_tap(self, tap: Tap) -> None:
        self._taps = (*self._taps, tap)
        if len(self._taps) == 1:
            self.post(Tapping(self.config.id, True))

    def remove_tap(self, tap: Tap) -> None:
        before, self._taps = self._taps, tuple(other for other in self._taps if other is not tap)
        if before and not self._taps:
            self.post(Tapping(self.config.id, False))

    # --- its life

    def begin(self, post: Callable[[Command], None], seat: int) -> None:
        """A worker gets it, and goes on where the one before was."""
        self.post = post
        if seat != self.seat:
            self.seat, self.lanes = seat, {}
        post(Add(self.config, self._fragment_s, tuple(self._open_gaps.values()), dict(self.next_index), dict(self.lanes)))
        if self._taps:
            post(Tapping(self.config.id, True))

    def orphaned(self, reason: str, now_ns: int) -> None:
        """Its worker is gone: what it had not handed over is lost, and said to be."""
        self.post = lambda _: None
        before = self.status()
        self._before = replace(before, gap=None)
        sentence = f"the ingest worker of this stream ended ({reason}); another one goes on"
        self._status = replace(_idle(self.config), state=StreamState.WAITING, reason=sentence)
        if not self._open_gaps:
            start_ns = min(self.end_ns or now_ns, now_ns)
            self.gap(Gap(new_id(), self.config.id, Cause.RECORDER, start_ns, None, f"the ingest worker ended ({reason})"), now_ns)
        self._status = replace(self._status, gap=next(iter(self._open_gaps.values()), None))
        self._on_event(StreamChanged(utc_ns=now_ns, stream=self.config.id, state=str(StreamState.WAITING), reason=sentence))

    def gap(self, gap: Gap, now_ns: int) -> None:
        """Open one, in the ledger and for those who listen."""
        self.record(gap.record())
        self._on_event(GapOpened(utc_ns=now_ns, gap=gap))

    # --- what its worker tells

    def handed_over(self, fragment: Fragment) -> None:
        """A fragment is here: whoever goes on with this stream begins behind it."""
        media = fragment.track.media
        self.next_index[media] = fragment.index + fragment.samples
        if media is Media.VIDEO or Media.VIDEO not in self.next_index:
            self.end_ns = max(fragment.end_ns, self.end_ns or 0)

    def record(self, record: Record) -> None:
        if record.kind == RecordKind.GAP:
            gap = Gap.of(record)
            if gap.end_ns is None:
                self._open_gaps[gap.id] = gap
            else:
                self._open_gaps.pop(gap.id, None)
        self.intake.record(record)

    def looked(self, status: StreamStatus) -> None:
        self._status = status

    def told(self, event: Event) -> None:
        if isinstance(event, StreamChanged):
            self._status = replace(self._status, state=StreamState(event.state), reason=event.reason, hint=event.hint)
        self._on_event(event)

    def tapped(self, sample: Sample, config: TrackConfig, utc_ns: int, dropped: int) -> None:
        for tap in self._taps:
            if dropped:
                tap.missed(dropped)
            tap.offer(sample, config, utc_ns)


def _idle(config: StreamConfig) -> StreamStatus:
    """Nothing is known of it yet."""
    return StreamStatus(
        id=config.id,
        name=config.title,
        state=StreamState.IDLE,
        reason="",
        hint="",
        engine="",
        engine_reason="",
        mode="off",
        codec="",
        width=0,
        height=0,
        audio_codec="",
        fps=0.0,
        bitrate_bps=0.0,
        last_sample_ns=None,
        footage_end_ns=None,
        connected_ns=None,
        next_try_s=None,
        samples=0,
        skipped=0,
        packets_lost=0,
        reconnects=0,
        stuck=0,
        gap=None,
    )
