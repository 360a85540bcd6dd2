"""Everything beside recording: claims for targets that return, room on full ones, recovery, resync, retention.

    engine's wishes --> [quick thread]  claims · room on a full target            must not wait behind a copy of gigabytes
                    `-> [long thread]   recovery · resync · retention, also every few seconds without being asked

Two threads of their own: a host's blocked loop delays none of it, and none of it delays a commit. Work is written as
steps (they decide, workers act), is interruptible between two calls, and starts over from what is on the targets: a wish
that is lost costs time, never footage.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

from nvrstore.errors import ClosedError, NvrstoreError, TargetIOError
from nvrstore.events import Alarm
from nvrstore.failover.terms import Claim, ClaimKey, Verdict
from nvrstore.journal.names import NEXT_DIR, journal_dir
from nvrstore.replicate.claim import Claimant, bring_claim, claim_term, hold_term
from nvrstore.targets.contract import Call, Request, Steps, Verb
from nvrstore.targets.identity import ensure_journal
from nvrstore.targets.steps import list_all
from nvrstore.telemetry import get_logger
from nvrstore.upkeep.host import Runner, UpkeepHost, Work, do
from nvrstore.upkeep.mending import Mending
from nvrstore.upkeep.prune import FULL, make_trash, restore_trash
from nvrstore.upkeep.pruning import Pruning

log = get_logger("upkeep.chores")

ROUND_S: Final = 5.0  # retention and a look for what is left to do
SOON_S: Final = 0.5  # while a member is not synced
TURN_S: Final = 1.0  # so long one thread waits for the other to have made room
ROOM_S: Final = 0.25  # how often free space is looked at: looks themselves are a second apart
STOP_S: Final = 1.0


class Chores:
    """The engine's wishes, carried out. `start`, then wishes from any thread, then `stop`."""

    def __init__(self, host: UpkeepHost, refuge: str) -> None:
        self._host, self._refuge = host, refuge
        self._quick, self._long = (Runner(host.targets, host.hub.suspect) for _ in range(2))
        # Room must be made while a resync copies gigabytes: pruning runs in either thread, one at a time.
        self._pruning_lock = threading.Lock()
        self._pruning = Pruning(host)
        self._pruning.hurried = lambda: self._room_waits > 0
        self._room_waits = 0  # how many wait for the lock
        self.mending = Mending(host, refuge, self._pruning, self._long.stopping.wait)
        self._wishes: dict[tuple[str, ...], Callable[[], Work[object]]] = {}
        self._answered: dict[str, set[int]] = {}  # earlier sessions of this recorder that were outbid already
        self._lock = threading.Lock()
        self._quick_bell, self._long_bell = threading.Event(), threading.Event()
        self._threads = [
            threading.Thread(target=self._run_quick, name="nvrstore-chores", daemon=True),
            threading.Thread(target=self._run_long, name="nvrstore-upkeep", daemon=True),
        ]
        self._started = False
        self._room_next_s = 0.0

    def start(self) -> None:
        self._started = True
        for thread in self._threads:
            thread.start()

    def stop(self) -> bool:
        """Interrupt whatever runs; False when a thread did not end in time."""
        for runner, bell in ((self._quick, self._quick_bell), (self._long, self._long_bell)):
            runner.stopping.set()
            bell.set()
        if self._started:
            for thread in self._threads:
                thread.join(STOP_S)
        return not any(thread.is_alive() for thread in self._threads)

    def status(self) -> dict[str, Any]:
        """JSON values."""
        return {"pruned": self._pruning.removed, "short_bytes": dict(self._pruning.short), **self.mending.status()}

    # --- wishes, from the engine's thread: they only queue

    def claim(self, journal: str, target: str) -> None:
        self._wish(("claim", journal, target), lambda: self._bring_claim(journal, target))

    def claim_again(self, journal: str, seen: ClaimKey | None) -> None:
        self._wish(("claim again", journal), lambda: self._claim_again(journal, seen))

    def space(self, journal: str, target: str) -> None:
        self._wish(("space", target), self._make_room)

    def mend(self, journal: str) -> None:
        """A target lacks something, or a volume was left open: the next round of the long thread finds what it is."""
        self._long_bell.set()

    def leftovers(self, journal: str, target: str) -> None:
        self._wish(("leftovers", journal, target), lambda: self._clear_own(journal, target))

    def _wish(self, key: tuple[str, ...], work: Callable[[], Work[object]]) -> None:
        with self._lock:
            self._wishes[key] = work
        self._quick_bell.set()

    # --- the quick thread

    def _run_quick(self) -> None:
        while not self._quick.stopping.is_set():
            self._quick_bell.wait(ROOM_S)
            self._quick_bell.clear()
            self._quick.work(self.quick_round())

    def quick_round(self) -> Work[None]:
        """What was wished for; then a look whether room has to be made."""
        with self._lock:
            wishes, self._wishes = self._wishes, {}
        for key, work in wishes.items():
            yield from self._guarded(" ".join(key), work())
        if not self._quick.stopping.is_set():
            yield from self._guarded("room", self._watch_room())

    def _guarded(self, what: str, work: Work[object]) -> Work[None]:
        try:
            yield from work
        except ClosedError:
            pass  # the recorder stops
        except NvrstoreError as error:
            log.warning("chore.failed", chore=what, reason=str(error))  # it is asked for again as long as it is needed
        except Exception:
            log.exception("chore.broken", chore=what)
            self._host.publish(Alarm(utc_ns=self._host.clock.utc_ns(), what="upkeep", sentence=f"{what} failed: see the log"))

    def _bring_claim(self, journal: str, target: str) -> Work[None]:
        host = self._host
        engine = host.engines[journal]
        key = engine.spec.claim
        claim = Claim(journal, key.term, host.config.recorder.name, key.recorder_id, key.session, host.clock.utc_ns())
        try:
            yield from do(ensure_journal(target, journal, engine.spec.journal_id))
            verdict = yield from do(bring_claim(target, claim, frozenset(self._answered.get(journal, ()))))
        except TargetIOError as error:
            if error.errno in FULL:
                yield from self._room_for_claim(journal, target)
            raise  # it is asked for again
        self._pruning.full.discard((journal, target))
        if verdict is Verdict.OK:
            yield from self._tidy(journal, target)
            host.hub.post(lambda: engine.claimed(target))
        elif verdict is Verdict.STALE_SELF:
            yield from self._claim_again(journal)
        else:
            log.warning("claim.refused", journal=journal, target=target, reason="another recorder took over")

    def _room_for_claim(self, journal: str, target: str) -> Work[None]:
        """It was full when it came, so that nothing can be written there that says whose it is: what is clearly due goes first."""
        yield from do(hold_term(target, journal, self._host.engines[journal].spec.claim))
        yield from self._clear_killed(journal, target)
        self._pruning.full.add((journal, target))
        yield from self._make_room()

    def _tidy(self, journal: str, target: str) -> Work[None]:
        """Before anything is pruned under a new claim: take back what an earlier owner was about to delete; clear leftovers."""
        restored = yield from do(restore_trash(target, journal))
        for path, reason in restored.failed.items():
            log.warning("trash.kept", target=target, path=path, reason=reason)
        yield from do(make_trash(target, journal, self._host.engines[journal].spec.claim.term))
        yield from self._clear_killed(journal, target)

    def _clear_killed(self, journal: str, target: str) -> Work[int]:
        return (yield from do(clear_leftovers(target, journal, keep=f"{self._host.session:016x}-")))

    def _clear_own(self, journal: str, target: str) -> Work[int]:
        """It returned: what this session had prepared there before is nobody's any more, and as large as volumes are."""
        generation = self._host.engines[journal].ports[target].generation
        return (yield from do(clear_leftovers(target, journal, keep=f"{self._host.session:016x}-", before=generation)))

    def _claim_again(self, journal: str, seen: ClaimKey | None = None) -> Work[None]:
        host = self._host
        engine = host.engines[journal]
        if seen is not None:
            self._answered.setdefault(journal, set()).add(seen.session)
        me = Claimant(host.config.recorder.name, host.recorder_id, host.session)
        term = max(engine.spec.claim.term, host.saved_term(journal))
        claimed = yield from do(
            claim_term(list(engine.spec.targets), journal, me, utc_ns=host.clock.utc_ns(), state_term=term, take_over=True)
        )
        host.save_term(journal, claimed.claim.term)
        answered = frozenset(self._answered.get(journal, ()))
        host.hub.post(lambda: engine.reclaimed(claimed.claim.key, answered))

    def _make_room(self) -> Work[int]:
        with self._lock:
            self._room_waits += 1
        mine = self._pruning_lock.acquire(timeout=TURN_S)
        with self._lock:
            self._room_waits -= 1
        if not mine:
            return 0  # the other thread makes room: a claim is not to wait for that
        try:
            return (yield from self._pruning.run())
        finally:
            self._pruning_lock.release()

    def _watch_room(self) -> Work[None]:
        """Before anything is full: what goes has to be written down first, and that needs room too."""
        now_s = self._host.clock.monotonic_s()
        if now_s >= self._room_next_s and self._pruning.scarce():
            yield from self._make_room()
            # Where nothing may go (everything is open, or held), asking four times a second would not help.
            self._room_next_s = now_s + (ROUND_S if self._pruning.short else ROOM_S)

    # --- the long thread

    def _run_long(self) -> None:
        self._long.work(self.begin())
        while not self._long.stopping.is_set():
            self._long.work(self.long_round())
            self._long_bell.wait(SOON_S if self.mending.pending else ROUND_S)
            self._long_bell.clear()

    def begin(self) -> Work[None]:
        """What comes before the first long round."""
        yield from self._guarded("learn", self.mending.learn())
        for journal, engine in self._host.engines.items():
            for target in sorted(engine.spec.claimed_on):
                yield from self._guarded(f"tidy {target}", self._tidy(journal, target))
            if engine.spec.refuge is not None:
                # Nobody else writes there: what a session that was killed had prepared takes room on the state disk for ever.
                yield from self._guarded("tidy the refuge", self._clear_killed(journal, engine.spec.refuge))

    def long_round(self) -> Work[None]:
        """Mend every journal, then let go what retention does not keep."""
        for journal, engine in self._host.engines.items():
            if not engine.fenced:  # else it is somebody else's by now: nothing is repaired
                yield from self._guarded(f"mend {journal}", self.mending.run(journal))
        if not self._long.stopping.is_set():
            yield from self._guarded("retention", self._make_room())


def clear_leftovers(target: str, journal: str, *, keep: str, before: int = 0) -> Steps[int]:
    """Remove what was prepared in `.next` by anybody but the session whose names begin with `keep`; how many files went.

    `before`: what that session prepared while the target was up for an earlier time goes, too (prepare.py: generations).
    """
    folder = f"{journal_dir(journal)}/{NEXT_DIR}"
    gone = 0
    for entry in (yield from list_all(target, folder, missing_ok=True)):
        generation = entry.name.removeprefix(keep).partition("-")[0]
        kept = entry.name.startswith(keep) and not (generation.isdecimal() and int(generation) < before)
        if not entry.directory and not kept:
            answer = yield Call(target, Request(Verb.UNLINK, f"{folder}/{entry.name}"))
            gone += answer.ok
    return gone
