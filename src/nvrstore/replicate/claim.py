"""Claiming a term: who owns the journal, and how the next owner says so on every target that it reaches.

    read_claims ──▶ in_use_by? ──yes──▶ wait `takeover_s`, read again: did the owner's look counters move?
                        │ no
                        ▼
    claim_term: epochs/ read again, term = max + 1, one file put on each target, read back on any doubt, rivals looked for

One target that holds the claim is enough; with none the recorder goes on in its refuge (`Claimed.refuge`) and brings the
claim to each target that returns (`bring_claim`). Invariant: a claim that is reported as held was read, or written and
synced, there. Waiting, and keeping the term on the state disk before recording begins, are the caller's.
All of it is `Steps`: no I/O here, and a target that fails never stops the work on the others.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from nvrstore.errors import FencedError, FormatError, JournalInUseError, TargetError, TargetIOError
from nvrstore.failover.terms import Claim, ClaimKey, Verdict, judge, keys_in, next_term, owners, pack_claim, parse_claim
from nvrstore.journal.names import epochs_dir
from nvrstore.targets.contract import UNAVAILABLE, Call, Request, Steps, Verb
from nvrstore.targets.look import LOOKS_DIR, look_counter
from nvrstore.targets.steps import ask, expect, list_all, read_all

#: Older claims stay for people to read; beyond these they go, a few at each claim, so that starts can be without number.
CLAIMS_KEPT: Final = 64
CLAIMS_TRIMMED_MAX: Final = 64
#: Two recorders that start in the same moment outbid each other at most so often.
ROUNDS_MAX: Final = 4


@dataclass(frozen=True, slots=True)
class Claimant:
    """Who claims: a recorder's name, the id of its state directory, this start's session."""

    recorder: str
    recorder_id: str
    session: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What one pass over the targets saw. Targets that failed are in `failed`, and nowhere else."""

    keys: Mapping[str, tuple[ClaimKey, ...]]  # by target
    claims: Mapping[ClaimKey, Claim]  # the owners' claims, those whose text could be read
    counters: Mapping[tuple[str, str], int | None]  # (target, an owner's recorder id): its look counter; None: it never looked there
    failed: Mapping[str, TargetError]
    term: int  # the highest seen, also on targets that failed a moment later; 0 where there is none

    @property
    def owners(self) -> tuple[ClaimKey, ...]:
        return owners(key for keys in self.keys.values() for key in keys)


@dataclass(frozen=True, slots=True)
class Claimed:
    """A term that is this writer's own. `targets` hold the claim; on `failed` ones it is unknown whether they do."""

    claim: Claim
    targets: tuple[str, ...]
    failed: Mapping[str, TargetError]

    @property
    def refuge(self) -> bool:
        """No target holds the claim: record into the refuge until one returns."""
        return not self.targets


def read_claims(targets: Sequence[str], journal: str) -> Steps[Reading]:
    """Read `epochs/` on every target, and the look counters of those who own the journal there."""
    keys: dict[str, tuple[ClaimKey, ...]] = {}
    failed: dict[str, TargetError] = {}
    for target in targets:
        try:
            keys[target] = yield from _keys(target, journal)
        except TargetError as error:
            failed[target] = error
    claims: dict[ClaimKey, Claim] = {}
    counters: dict[tuple[str, str], int | None] = {}
    top = owners(key for some in keys.values() for key in some)
    for target in list(keys):
        try:
            for recorder_id in sorted({key.recorder_id for key in top}):
                counters[target, recorder_id] = yield from _counter(target, recorder_id)
            for key in top:
                if key in keys[target] and key not in claims:
                    claim = yield from _text(target, journal, key)
                    if claim is not None:
                        claims[key] = claim
        except TargetError as error:
            failed[target] = error
            del keys[target]
    return Reading(keys, claims, counters, failed, max((key.term for key in top), default=0))


def in_use_by(reading: Reading, recorder_id: str, earlier: Reading | None = None) -> ClaimKey | None:
    """The other recorder that owns the journal, or None when it is free, or this recorder's own.

    With a reading made `takeover_s` `earlier`: an owner whose look counters stood still on every target that answers
    now, and answered then, is gone. A target that answered only now says nothing yet.
    """
    for key in reading.owners:
        if key.recorder_id == recorder_id:
            continue
        if earlier is None or key not in earlier.owners:
            return key
        for target in reading.keys:
            place = (target, key.recorder_id)
            if place not in earlier.counters or earlier.counters[place] != reading.counters[place]:
                return key
    return None


def claim_term(
    targets: Sequence[str],
    journal: str,
    me: Claimant,
    *,
    utc_ns: int,
    state_term: int,
    lease_term: int = 0,
    take_over: bool = False,
    earlier: Reading | None = None,
) -> Steps[Claimed]:
    """Claim the next term of `journal` on every target that answers.

    `state_term`: the greatest term that the state disk remembers. `earlier`: see `in_use_by`. Raises `JournalInUseError`
    when another recorder owns the journal, unless `take_over`, or when one that starts in this very moment is first.
    """
    reading = yield from read_claims(targets, journal)
    holder = in_use_by(reading, me.recorder_id, earlier)
    if holder is not None and not take_over:
        raise _in_use(journal, holder, reading)
    known = {key for keys in reading.keys.values() for key in keys}
    highest = max(state_term, lease_term, reading.term)
    for _ in range(ROUNDS_MAX):
        claim = Claim(journal, next_term(highest), me.recorder, me.recorder_id, me.session, utc_ns)
        held: list[str] = []
        failed = dict(reading.failed)
        rivals: set[ClaimKey] = set()
        for target in reading.keys:
            try:
                yield from put_claim(target, claim)
                held.append(target)
                seen = yield from _keys(target, journal)
                rivals |= {key for key in seen if key.term >= claim.term and key.recorder_id != me.recorder_id} - known
            except TargetError as error:
                failed[target] = error
        if not rivals:
            for target in held:
                yield from _trim(target, claim, reading.keys[target])
            return Claimed(claim, tuple(held), failed)
        # Somebody claimed between our reading and now. Either sees the other: the one who wrote last does for certain.
        # The greater name claims again, above both; the smaller one yields, or is fenced if it saw nothing.
        if max(rivals) > claim.key:
            for target in held:  # or the winner, started again, would find two owners
                yield Call(target, Request(Verb.UNLINK, f"{epochs_dir(journal)}/{claim.key.name}"))
            raise _in_use(journal, max(rivals), reading)
        highest = claim.term
    raise JournalInUseError(f"journal {journal!r}: other recorders claim it in this very moment")


def bring_claim(target: str, claim: Claim, answered: frozenset[int] = frozenset()) -> Steps[Verdict]:
    """Put a claim that stands elsewhere on a target that returned, unless a higher one is there: then say what that means."""
    verdict = yield from look_for_higher(target, claim.journal, claim.key, answered)
    if verdict is Verdict.OK:
        yield from put_claim(target, claim)
        verdict = yield from look_for_higher(target, claim.journal, claim.key, answered)
    return verdict


def put_claim(target: str, claim: Claim) -> Steps[None]:
    """Have the claim on `target`, durable. Raises TargetError when that is not certain."""
    directory = epochs_dir(claim.journal)
    path, data = f"{directory}/{claim.key.name}", pack_claim(claim)
    answer = yield Call(target, Request(Verb.PUT, path, data=data))
    if answer.errno == errno.ENOENT:
        yield from ask(target, Request(Verb.MKDIR, directory), f"make {directory}")
        answer = yield Call(target, Request(Verb.PUT, path, data=data))
    if answer.ok:
        return
    if answer.errno not in (errno.EEXIST, UNAVAILABLE):
        expect(answer, target, f"claim term {claim.term}")
    # It may be there: an answer was lost, or this is a second try (nobody else has this name).
    there = yield from _text(target, claim.journal, claim.key)
    if there is None:
        expect(answer, target, f"claim term {claim.term}")
    yield from ask(target, Request(Verb.SYNC, path), f"sync {path}")
    yield from ask(target, Request(Verb.SYNC, directory), f"sync {directory}")


def look_for_higher(target: str, journal: str, own: ClaimKey, answered: frozenset[int] = frozenset()) -> Steps[Verdict]:
    """What the claims on `target` mean for the holder of `own`. Raises TargetError when they cannot be read."""
    keys = yield from _keys(target, journal)
    verdicts = {judge(own, key, answered) for key in keys}
    return next((verdict for verdict in (Verdict.SUPERSEDED, Verdict.STALE_SELF) if verdict in verdicts), Verdict.OK)


def hold_term(target: str, journal: str, own: ClaimKey) -> Steps[None]:
    """Go on only with the highest term on `target`: asked before anything that another writer could not undo.

    Raises FencedError where any higher claim is seen (an earlier session of this recorder's too: claim above it first),
    TargetError where nothing can be read.
    """
    keys = yield from _keys(target, journal)
    higher = [key for key in keys if key.term > own.term]
    if higher:
        raise FencedError(target, term=own.term, term_seen=max(higher).term)


def _keys(target: str, journal: str) -> Steps[tuple[ClaimKey, ...]]:
    entries = yield from list_all(target, epochs_dir(journal), missing_ok=True)
    return tuple(keys_in(entry.name for entry in entries if not entry.directory))


def _counter(target: str, recorder_id: str) -> Steps[int | None]:
    path = f"{LOOKS_DIR}/{recorder_id}"
    answer = yield Call(target, Request(Verb.READ, path, length=4096, fresh=True))
    return None if answer.errno == errno.ENOENT else look_counter(expect(answer, target, f"read {path}").data)


def _text(target: str, journal: str, key: ClaimKey) -> Steps[Claim | None]:
    """The claim's text; None where it is damaged, or is not there (any more): the name alone counts."""
    path = f"{epochs_dir(journal)}/{key.name}"
    try:
        claim = parse_claim((yield from read_all(target, path, fresh=True)), path=path)
    except FormatError:
        return None
    except TargetIOError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return claim if claim.key == key else None


def _trim(target: str, claim: Claim, keys: Sequence[ClaimKey]) -> Steps[None]:
    """Unlink the oldest claims. The highest term stays, so this changes nothing for anybody; failures are no matter."""
    older = [key for key in keys if key.term < claim.term]
    for key in older[: max(0, len(older) - CLAIMS_KEPT)][:CLAIMS_TRIMMED_MAX]:
        answer = yield Call(target, Request(Verb.UNLINK, f"{epochs_dir(claim.journal)}/{key.name}"))
        if not answer.ok:
            return


def _in_use(journal: str, holder: ClaimKey, reading: Reading) -> JournalInUseError:
    claim = reading.claims.get(holder)
    who = f"recorder {claim.recorder!r}" if claim is not None else f"recorder {holder.recorder_id}"
    return JournalInUseError(f"journal {journal!r} belongs to {who} (term {holder.term})")
