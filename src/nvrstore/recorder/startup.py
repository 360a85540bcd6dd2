"""Before recording begins: which targets are there, who they are, and whose the journals are.

    identify   every target at once, each bounded: its uuid, or why not
    claim      per journal: read the claims; another recorder's are watched until they move (refused) or stand still
               for `takeover_s` (taken over); then the next term is claimed on every target that answers

A target that was known before and does not answer, or shows a bare mount point, is away: recording starts without it. One
that was never known and has no identity is a mistake of the configuration, and is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from nvrstore.clock import Clock
from nvrstore.config.models import TargetConfig
from nvrstore.errors import ClosedError, JournalInUseError, TargetError, TargetIdentityError
from nvrstore.failover.terms import Claim, ClaimKey
from nvrstore.model import new_id
from nvrstore.recorder.state import StateDirectory
from nvrstore.replicate.claim import Claimant, Reading, claim_term, in_use_by, read_claims
from nvrstore.targets.contract import Steps, Target
from nvrstore.targets.identity import ensure_journal, find_journal, identify, init_target
from nvrstore.targets.steps import run_steps
from nvrstore.telemetry import get_logger

log = get_logger("recorder.startup")

ANSWER_S = 3.0  # per call; a target that needs longer joins later
WATCH_S = 1.0  # an owner that lives looks once a second


@dataclass(frozen=True, slots=True)
class ClaimedJournal:
    """A journal that this recorder may write."""

    journal_id: str
    claim: Claim
    targets: tuple[str, ...]  # that hold the claim


def identify_targets(
    targets: Mapping[str, Target], state: StateDirectory, configs: Sequence[TargetConfig]
) -> tuple[dict[str, str], frozenset[str]]:
    """The uuid of every target, found or remembered (one of which neither is known is missing), and the names of those that answered.

    Raises `TargetIdentityError` for a directory that is not a target and never was one here, or is another than configured.
    """
    configured = {config.name: config.id or state.target_ids.get(config.name) for config in configs}
    places = {config.name: str(config.path or config.url) for config in configs}

    def one(name: str) -> str | TargetError:
        expected = configured[name]
        try:
            return run_steps(identify(name, expected_id=expected), targets, timeout_s=ANSWER_S).id
        except TargetError as error:
            return error

    with ThreadPoolExecutor(max_workers=max(1, len(targets)), thread_name_prefix="nvrstore-identify") as pool:
        found = dict(zip(targets, pool.map(one, targets), strict=True))
    ids: dict[str, str] = {}
    for name, result in found.items():
        known = configured[name]
        if isinstance(result, str):
            ids[name] = result
            state.learn_target(name, result)
        elif known is not None:
            log.warning("target.away", target=name, reason=str(result))
            ids[name] = known
        elif isinstance(result, TargetIdentityError):
            raise TargetIdentityError(f"{result}: {places[name]}", target=name, hint=result.hint)
        else:
            log.warning("target.unknown", target=name, reason=str(result))
    if not ids:
        raise next(result for result in found.values() if isinstance(result, TargetError))
    return ids, frozenset(name for name, result in found.items() if isinstance(result, str))


def ensure_refuge(target: Target) -> str:
    """The uuid of the refuge, which is made where it is missing: it lies on the recorder's own disk."""
    targets = {target.name: target}
    try:
        return run_steps(identify(target.name), targets, timeout_s=ANSWER_S).id
    except TargetIdentityError:
        return run_steps(init_target(target.name), targets, timeout_s=ANSWER_S).id


def claim_journal(
    journal: str,
    targets: Mapping[str, Target],
    me: Claimant,
    state: StateDirectory,
    clock: Clock,
    *,
    takeover_s: float,
    take_over: bool,
    wait: Callable[[float], bool] | None = None,
) -> ClaimedJournal:
    """Make `journal` this recorder's. Raises `JournalInUseError` when another one records into it.

    `wait` pauses for so many seconds; True: the recorder shall not start any more (`ClosedError`).
    """
    names = list(targets)
    pause = wait or threading.Event().wait

    def run(steps: Steps[Reading]) -> Reading:
        return run_steps(steps, targets, timeout_s=ANSWER_S)

    first = run(read_claims(names, journal))
    earlier = None
    owner = in_use_by(first, me.recorder_id)
    if owner is not None and not take_over:
        log.warning("claim.watched", journal=journal, owner=owner.recorder_id, seconds=takeover_s)
        _watch(journal, first, lambda: run(read_claims(names, journal)), me, clock, takeover_s, pause)
        earlier = first
    journal_id = _journal_id(journal, targets, names, state)
    steps = claim_term(names, journal, me, utc_ns=clock.utc_ns(), state_term=state.term(journal), take_over=take_over, earlier=earlier)
    claimed = run_steps(steps, targets, timeout_s=ANSWER_S)
    state.save_term(journal, claimed.claim.term)
    log.info("term.claimed", journal=journal, term=claimed.claim.term, targets=list(claimed.targets))
    return ClaimedJournal(journal_id, claimed.claim, claimed.targets)


def _watch(
    journal: str,
    first: Reading,
    read: Callable[[], Reading],
    me: Claimant,
    clock: Clock,
    takeover_s: float,
    pause: Callable[[float], bool],
) -> None:
    """Return when the owner has stood still for `takeover_s`; raise as soon as it moves."""
    start_s = clock.monotonic_s()
    while True:
        if pause(WATCH_S):
            raise ClosedError("the recorder was told to end before it had started")
        reading = read()
        owner = in_use_by(reading, me.recorder_id, first)
        if owner is not None:
            claim = reading.claims.get(owner)
            who = f"recorder {claim.recorder!r}" if claim is not None else f"recorder {owner.recorder_id}"
            raise JournalInUseError(f"journal {journal!r} is being recorded by {who} (term {owner.term})")
        if clock.monotonic_s() - start_s >= takeover_s:
            return


def _journal_id(journal: str, targets: Mapping[str, Target], names: Sequence[str], state: StateDirectory) -> str:
    """Its uuid: from any target that answers, else the state directory, else a new one; brought to those that lack it."""
    known: dict[str, str] = {}
    answering = []
    for name in names:
        try:
            found = run_steps(find_journal(name, journal), targets, timeout_s=ANSWER_S)
        except TargetIdentityError:
            raise
        except TargetError:
            continue
        answering.append(name)
        if found is not None:
            known[name] = found
    journal_id = next(iter(known.values()), None) or state.journal_ids.get(journal) or new_id()
    state.learn_journal(journal, journal_id)
    for name in answering:
        try:
            run_steps(ensure_journal(name, journal, journal_id), targets, timeout_s=ANSWER_S)
        except TargetIdentityError:
            raise
        except TargetError as error:
            log.warning("journal.unsure", journal=journal, target=name, reason=str(error))
    return journal_id


def own_key(claimed: ClaimedJournal) -> ClaimKey:
    """What the engine compares others' claims with."""
    return claimed.claim.key
