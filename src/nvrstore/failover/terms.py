"""Who may write a journal: terms, claims, and when a writer has been superseded. Pure.

A recorder claims a term by putting one small file into `<journal>/epochs/` of every target that it reaches:

    name   t0000000008-<recorder id, 32 hex>-<session, 16 hex>.claim
    text   {"format":1,"journal":"main","recorder":"nvr-1","recorder_id":"...","session":"...","term":8,"utc_ns":...}\\n
           crc32c 1f2e3d4c\\n                                        (of the first line, its newline included)

Names order by term, and a name alone says everything that fencing needs: whoever looks at a directory need not read a
file. Invariants: a recorder's terms only rise; two writers never share a name; a claim is never changed once it stands.
Does no I/O: `replicate/claim.py` reads and writes, the engine asks `judge` after every look.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from nvrstore.checksum import crc32c
from nvrstore.errors import DamagedError, FormatError

FORMAT: Final = 1
TERM_MAX: Final = 9_999_999_999  # ten digits in the name: one takeover a second for 300 years
CLAIM_BYTES_MAX: Final = 4096  # a claim is a few hundred bytes; more is not a claim

_NAME: Final = re.compile(r"t(\d{10})-([0-9a-f]{32})-([0-9a-f]{16})\.claim")


@dataclass(frozen=True, slots=True, order=True)
class ClaimKey:
    """What a claim's file name says. Orders by term; the order of equal terms means nothing, but is the same for everybody."""

    term: int
    recorder_id: str  # 32 hex digits, from the recorder's state directory
    session: int  # u64, random at every start

    @property
    def name(self) -> str:
        """The file's name in `epochs/`."""
        return f"t{self.term:010d}-{self.recorder_id}-{self.session:016x}.claim"

    @classmethod
    def of(cls, name: str) -> ClaimKey | None:
        """The key that a file name says, None for any other name."""
        match = _NAME.fullmatch(name)
        return cls(int(match[1]), match[2], int(match[3], 16)) if match else None


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim, with what people want to know about it."""

    journal: str
    term: int
    recorder: str  # its configured name
    recorder_id: str
    session: int
    utc_ns: int  # when it was made, on the claimant's clock: for people, never for decisions

    @property
    def key(self) -> ClaimKey:
        return ClaimKey(self.term, self.recorder_id, self.session)


def pack_claim(claim: Claim) -> bytes:
    """The bytes of a claim's file. Raises ValueError for what a claim cannot say."""
    if not 1 <= claim.term <= TERM_MAX:
        raise ValueError(f"a term is 1 to {TERM_MAX}, not {claim.term}")
    if ClaimKey.of(claim.key.name) != claim.key:
        raise ValueError("a recorder's id is 32 hex digits, a session is an unsigned 64-bit number")
    fields = {
        "format": FORMAT,
        "journal": claim.journal,
        "recorder": claim.recorder,
        "recorder_id": claim.recorder_id,
        "session": f"{claim.session:016x}",
        "term": claim.term,
        "utc_ns": claim.utc_ns,
    }
    line = json.dumps(fields, separators=(",", ":"), sort_keys=True).encode() + b"\n"
    return line + b"crc32c %08x\n" % crc32c(line)


def parse_claim(data: bytes, *, path: str = "") -> Claim:
    """The claim in a file. Raises `FormatError`, `DamagedError` where the checksum disagrees."""
    line, newline, rest = data.partition(b"\n")
    check = re.fullmatch(rb"crc32c ([0-9a-f]{8})\n", rest)
    if not newline or check is None or len(data) > CLAIM_BYTES_MAX:
        raise FormatError("this is not a claim", path=path)
    if crc32c(line + newline) != int(check[1], 16):
        raise DamagedError("a claim's checksum does not match", path=path)
    try:
        fields = json.loads(line)
        if fields["format"] != FORMAT:
            raise FormatError(f"claim format {fields['format']} is newer than this version of nvrstore", path=path)
        claim = Claim(
            journal=str(fields["journal"]),
            term=int(fields["term"]),
            recorder=str(fields["recorder"]),
            recorder_id=str(fields["recorder_id"]),
            session=int(fields["session"], 16),
            utc_ns=int(fields["utc_ns"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"a claim lacks a field ({error})", path=path) from error
    if ClaimKey.of(claim.key.name) != claim.key:
        raise FormatError("a claim says impossible things", path=path)
    return claim


def keys_in(names: Iterable[str]) -> list[ClaimKey]:
    """The claims among file names of `epochs/`, lowest term first; other files are passed over."""
    return sorted(key for key in map(ClaimKey.of, names) if key is not None)


def next_term(*seen: int) -> int:
    """The term to claim: one more than every term known (of the lease, of the state disk, of each reachable target)."""
    term = max(seen, default=0) + 1
    if not 1 <= term <= TERM_MAX:
        raise ValueError(f"there is no term {term}")
    return term


def owners(keys: Iterable[ClaimKey]) -> tuple[ClaimKey, ...]:
    """Who owns a journal: the claims of its highest term. More than one only after a partition, or a race of two starts."""
    everything = set(keys)
    top = max((key.term for key in everything), default=0)
    return tuple(sorted(key for key in everything if key.term == top))


class Verdict(Enum):
    """What a claim that was seen on a target means for the writer who sees it."""

    OK = "ok"  # its own, an older one, or an equal term of somebody else, which harms nothing
    SUPERSEDED = "superseded"  # another writer came later: prune, close, repair nothing any more; append elsewhere
    STALE_SELF = "stale-self"  # an earlier session of this very recorder, whose claim was not seen before: claim max + 1, and cut


def judge(own: ClaimKey, seen: ClaimKey | None, answered: frozenset[int] = frozenset()) -> Verdict:
    """Whether `seen` supersedes the writer who holds `own`.

    One recorder runs per state directory, so another session of the same recorder is normally dead: its claim lay on a
    target that was away when the term was chosen. `answered` are the sessions that were already answered by a higher
    claim; one that claims again above that is alive (a state directory was copied), and supersedes.
    """
    if seen is None or seen.term <= own.term:
        return Verdict.OK
    if seen.recorder_id != own.recorder_id:
        return Verdict.SUPERSEDED
    if seen.session == own.session:
        return Verdict.OK
    return Verdict.SUPERSEDED if seen.session in answered else Verdict.STALE_SELF
