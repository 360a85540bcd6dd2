"""One target as the engine sees it: an ordered queue to its appender, and its looks.

    engine --enqueue--> [queue] --at most IN_FLIGHT_MAX--> appender --answers--> op.done(op, answer)
                         `-- can be taken back                  `-- abandoned: extents stay pinned until it is gone

Shared by all journals and lanes that use the target. Everything runs in the engine's thread and never blocks.
A port that failed stays down until `start`; `generation` counts starts, so that whoever shared it notices.
Once it is drained in every journal that uses it, it comes to rest: its workers end, and nothing is asked of the target.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final

from nvrstore.clock import Clock
from nvrstore.errors import NvrstoreError
from nvrstore.failover.detector import Deadlines, Health, Observation, Verdict, deadlines, judge
from nvrstore.limits import IN_FLIGHT_MAX, LOOK_FRESH_S, LOOK_S
from nvrstore.replicate.buffer import Held
from nvrstore.replicate.measures import Latencies
from nvrstore.targets.contract import UNAVAILABLE, Answer, Appender, LookResult, Request, Target, Verb
from nvrstore.targets.look import look_request, look_result
from nvrstore.targets.pool import Pool
from nvrstore.telemetry import get_logger

log = get_logger("replicate.port")

NOT_STARTED: Final = "not started"
IDLE_SLACK_S: Final = 0.02  # the round of one tick is not to wait for that of the next because it came a moment early


@dataclass(slots=True)
class Op:
    """One request on its way, with the memory it needs and whom to tell."""

    request: Request
    done: Callable[[Op, Answer], None]
    owner: object
    held: Held | None = None
    submitted_s: float = 0.0


@dataclass(slots=True)
class _Grave:
    """An abandoned appender and the extents that it may still read."""

    appender: Appender
    held: list[Held] = field(default_factory=list)
    in_order: bool = False  # it was not abandoned: it ends by itself


class Port:
    """A target's appender, keeper looks and health."""

    def __init__(
        self,
        target: Target,
        pool: Pool,
        clock: Clock,
        *,
        target_id: str,
        look_id: str,
        journals: Sequence[str],
        late_s: float | None = None,
        lost_s: float | None = None,
        post: Callable[[Callable[[], None]], None],
    ) -> None:
        """`target_id`: the uuid that its `target.json` must show. `post` hands a callable to the engine's thread."""
        self.target, self.name = target, target.name
        self._pool, self._clock, self._post = pool, clock, post
        self.target_id, self._look_id, self._journals = target_id, look_id, tuple(journals)
        self._late_s, self._lost_s = late_s, lost_s
        self.appender: Appender | None = None
        self.generation = 0
        self.reason = NOT_STARTED
        self.failed_s: float | None = None  # when the first call failed of those that took it out; None: no call did
        self.down_since_s = clock.monotonic_s()
        self._queue: deque[Op] = deque()
        self._flying: dict[int, Op] = {}
        self._graves: list[_Grave] = []
        self._handles = 0
        self._drained: set[str] = set()  # journals that shall not use it
        self._rest_since_s: float | None = None
        self.latencies = Latencies()
        self._p99_s, self._p99_at_s = 0.0, 0.0
        self.paused_s = 0.0  # how long the last unusual pause of the engine's thread was
        # looks
        self.look: LookResult | None = None  # the last good one
        self.look_ok_s = float("-inf")
        self._place: tuple[int, int] | None = None
        self._look_since_s: float | None = None
        self._look_next_s = 0.0
        self._called_s = 0.0  # when the last call was handed over, an append or a look
        self._counter = 0

    # --- life

    @property
    def up(self) -> bool:
        return self.appender is not None

    @property
    def deadlines(self) -> Deadlines:
        return deadlines(self.target.medium, late_s=self._late_s, lost_s=self._lost_s)

    def start(self) -> bool:
        """Start an appender; False (with `reason`) where that cannot be done now."""
        if self.appender is not None:
            return True
        if self.resting:
            self.reason = "drained"
            return False
        try:
            self.appender = self.target.start_appender(self._pool)
        except (NvrstoreError, OSError) as error:
            self.reason = str(error)
            return False
        self.generation += 1
        self.reason, self.failed_s = "", None
        return True

    def fail(self, reason: str, code: int = 0) -> None:
        """Take the target out: abandon its appender, take back what was not submitted, tell nobody (they see the generation).

        `code`: the error number that a call came back with; 0 where none did.
        """
        if self.appender is None:
            if self.generation == 0:
                self.reason = reason  # it has been away since the recorder started: this is why, as of now
            return
        now_s = self._clock.monotonic_s()
        log.warning("target.lost", target=self.name, reason=reason)
        failed_s = self.target.first_failure_s() if code else None
        grave = _Grave(self.appender, [op.held for op in self._flying.values() if op.held])
        self.appender.abandon()
        self.appender = None
        self._graves.append(grave)
        self.reason, self.failed_s, self.down_since_s = reason, failed_s, now_s
        for op in self._queue:
            if op.held:
                op.held.drop()
        self._queue.clear()
        self._flying.clear()
        self.look_ok_s = float("-inf")
        self.reap()

    def reap(self) -> None:
        """Free the extents of abandoned appenders that are gone."""
        for grave in [g for g in self._graves if g.appender.gone()]:
            for held in grave.held:
                held.drop()
            if grave.in_order:
                grave.appender.close(0.0)
            self._graves.remove(grave)

    @property
    def haunted(self) -> bool:
        """Whether an abandoned appender may still write."""
        return bool(self._graves)

    @property
    def pinned_bytes(self) -> int:
        """Memory that nobody may use before abandoned appenders are gone."""
        held = {id(held): held for grave in tuple(self._graves) for held in tuple(grave.held)}  # copied at once: as `backlog_bytes`
        return sum(one.extent.length for one in held.values())

    def close(self, timeout_s: float) -> None:
        """End the appender in order."""
        if self.appender is not None:
            self.appender.close(timeout_s)
            self.appender = None
            self.reason = "closed"
        for grave in self._graves:
            if grave.in_order:
                grave.appender.close(timeout_s)

    # --- rest

    def drained(self, journal: str, reason: str) -> None:
        """`journal` uses it no more. Where none does, everything that was submitted finishes, and its workers end."""
        self._drained.add(journal)
        if self._rest_since_s is None and self._drained.issuperset(self._journals):
            self._rest_since_s = self.down_since_s = self._clock.monotonic_s()
            self.look_ok_s, self._look_since_s = float("-inf"), None
            self.target.keeper.rest()
            if self.appender is None:
                self.reason = reason

    def returned(self, journal: str) -> None:
        """Maintenance is over. What left a volume there comes back by other workers, so that none can still write to it."""
        self._drained.discard(journal)
        if self.appender is not None:
            self.fail("returned by the operator")
        if self._rest_since_s is not None:
            self._rest_since_s, self._look_next_s = None, 0.0
            self.target.keeper.wake()

    @property
    def resting(self) -> bool:
        """Whether nothing may be asked of the target."""
        return self._rest_since_s is not None

    @property
    def at_rest(self) -> bool:
        """Whether nothing of it is open there any more: it can be unmounted."""
        return self.resting and self.appender is None and not self._graves and self.target.at_rest()

    def _come_to_rest(self) -> None:
        late = self._rest_since_s is not None and self._clock.monotonic_s() - self._rest_since_s > max(self.deadlines.lost_s, LOOK_S)
        if self.appender is not None and not self._queue and not self._flying:
            self.appender.wind_up()
            self._graves.append(_Grave(self.appender, in_order=True))
            self.appender, self.reason = None, "drained"
        elif self.appender is not None and late:
            self.fail("drained while it hung")
        if late:  # whoever has not ended by now never will by itself
            for grave in self._graves:
                if grave.in_order:
                    grave.in_order = False
                    grave.appender.abandon()
            if self.target.keeper.running_since_s() is not None:
                self.target.keeper.restart()

    # --- the queue

    def handle(self) -> int:
        """A fresh handle number for OPEN."""
        self._handles += 1
        return self._handles

    def enqueue(self, op: Op) -> None:
        """Put an op behind the others. Its extent is held from now on."""
        if op.held:
            op.held.take()
        self._queue.append(op)

    def pump(self) -> bool:
        """Deliver answers, then hand over as much as may be in flight. Whether there were any answers."""
        appender = self.appender
        if appender is None:
            return False
        heard = False
        now_s = self._clock.monotonic_s()
        for answer in appender.answers():
            heard = True
            op = self._flying.pop(answer.number, None)
            if op is None:
                continue
            if op.request.verb is Verb.APPEND and answer.ok:
                self.latencies.add(now_s - op.submitted_s)
            if op.held and self._finished(answer):
                op.held.drop()
            elif op.held:
                # The worker died with it: what the kernel still does with this memory is unknown until it is gone.
                self._graves.append(_Grave(appender, [op.held]))
            op.done(op, answer)
            if self.appender is not appender:
                return True  # the answer took the target out
        while self._queue and len(self._flying) < IN_FLIGHT_MAX:
            op = self._queue.popleft()
            op.submitted_s = self._called_s = now_s
            self._flying[appender.submit(op.request)] = op
        return heard

    @staticmethod
    def _finished(answer: Answer) -> bool:
        return answer.errno != errno.ESRCH

    @property
    def room(self) -> bool:
        """Whether the next op would be handed over at once."""
        return self.up and not self._queue and len(self._flying) < IN_FLIGHT_MAX

    @property
    def busy(self) -> bool:
        """Whether a live write is on its way or waits: asked from other threads, too."""
        return bool(self._flying or self._queue)

    @property
    def backlog_bytes(self) -> int:
        """Bytes that wait for this target, submitted or not."""
        return sum(op.request.length for op in (*self._queue, *self._flying.values()))  # copied at once: `status` asks from other threads

    # --- health

    def verdict(self, *, resumed_s: float) -> Verdict:
        """What the detector thinks now. A port that is down is lost."""
        if self.appender is None:
            return Verdict(Health.LOST, self.reason)
        now_s = self._clock.monotonic_s()
        blind_s = now_s - max(self.look_ok_s, resumed_s)
        if blind_s > max(LOOK_FRESH_S, self.deadlines.lost_s) + LOOK_S:
            # Its keeper cannot be started, or dies again and again: what is written there could not be acknowledged any more.
            return Verdict(Health.LOST, f"no look has succeeded for {blind_s:.0f} s")
        if now_s - self._p99_at_s > 1.0:
            self._p99_s, self._p99_at_s = self.latencies.quantile(0.99, without=IN_FLIGHT_MAX), now_s
        oldest = min((op.submitted_s for op in self._flying.values()), default=None)
        seen = Observation(now_s, self.appender.running_since_s(), oldest, self._look_since_s, self._p99_s, resumed_s, self.paused_s)
        return judge(seen, self.deadlines)

    def fresh(self) -> bool:
        """Whether the last good look is young enough to acknowledge on."""
        return self._clock.monotonic_s() - self.look_ok_s <= LOOK_FRESH_S

    def tick(self) -> None:
        """Send the next look when it is due; replace a keeper that is stuck."""
        self.reap()
        if self.resting:
            self._come_to_rest()
            return
        now_s = self._clock.monotonic_s()
        if self._look_since_s is not None:
            if now_s - self._look_since_s > max(self.deadlines.lost_s, LOOK_S) and self.appender is None and self.target.keeper.restart():
                self._look_since_s = None  # the stuck one was abandoned; its answer, should it come, is that of another keeper
            return
        if now_s >= self._look_next_s:
            self._send_look(now_s)

    def look_if_idle(self, tick_s: float) -> None:
        """A tick has gone by in which nothing had to be written: look, as nothing else would notice now that it is broken."""
        now_s = self._clock.monotonic_s()
        busy = self.busy or self._look_since_s is not None or self.resting
        if self.appender is not None and not busy and now_s - self._called_s >= tick_s - IDLE_SLACK_S:
            self._send_look(now_s)

    def suspect(self) -> None:
        """Have the next look now, not in a second."""
        self._look_next_s = 0.0

    def _send_look(self, now_s: float) -> None:
        self._look_next_s = now_s + LOOK_S
        self._look_since_s = self._called_s = now_s
        self._counter += 1
        future = self.target.keeper.submit(
            look_request(look_id=self._look_id, counter=self._counter, journals=self._journals, target_id=self.target_id)
        )
        future.add_done_callback(lambda done: self._post(lambda: self._looked(done, now_s)))

    def _looked(self, done: Future[Answer], since_s: float) -> None:
        if self._look_since_s != since_s:
            return  # of a keeper that was replaced meanwhile, or of a time before it was drained
        self._look_since_s = None
        answer = done.result()
        if answer.errno == UNAVAILABLE:
            self.target.keeper.restart()  # its process died; one look is lost, the target is not
            return
        if not answer.ok:
            self.fail(f"look: {os.strerror(answer.errno)}", answer.errno)
            return
        look = look_result(answer, self.name)
        problem = self._problem(look)
        if problem:
            self.fail(problem, errno.ENOENT)
            return
        self.look = look
        self.look_ok_s = self._clock.monotonic_s()

    def _problem(self, look: LookResult) -> str:
        if look.identity is None:
            return "there is no target.json: unmounted, moved or never initialised"
        place = (look.identity.device, look.identity.inode)
        if not self.target_id:
            # Never seen before, and away when the recorder started: what is found first is who it is from now on.
            self.target_id, self._place = look.identity.id, place
            return ""
        if look.identity.id != self.target_id:
            return "another target is mounted at its path"
        if self.appender is None:
            self._place = place  # a remounted target may come back under another device number
        elif self._place is not None and place != self._place:
            return "the directory was moved or mounted over"
        if look.counter != self._counter and not look.counter_errno:
            return "the look block reads back other bytes than were written"
        self._place = place
        return ""

    @property
    def answering(self) -> bool:
        """Whether a look has succeeded since it went down, and lately."""
        return self.look_ok_s >= self.down_since_s and self.fresh()

    def stats(self) -> dict[str, object]:
        """For `status`: JSON values."""
        return {
            "medium": str(self.target.medium),
            "latency_ms_p50": round(self.latencies.quantile(0.5) * 1e3, 3),
            "latency_ms_p99": round(self.latencies.quantile(0.99) * 1e3, 3),
            "total_bytes": self.look.total_bytes if self.look else None,
            "free_bytes": self.look.free_bytes if self.look else None,
            "backlog_bytes": self.backlog_bytes,
            "workers_stuck": self.target.workers_stuck(),
            "pinned_bytes": self.pinned_bytes,
            "reason": self.reason,
        }
