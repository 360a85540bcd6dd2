"""What dead sessions could not write down themselves: when no recorder ran, and how the gaps ended that they left open.

    footage of session A |···· down ····|·starting·| footage of session B      |<-------------->| gap "recorder" of B
    footage of session A |···· down ····|·starting·|camera is away| ...        |<-->| ends where the next gap takes over

Read from the catalog, which by then has everything that the targets which answer hold. Every change of session is looked
at, back to the last one that is written down already: a recorder that was killed before it could say so is spoken for by
the next one. Entries of one session have one id, so what a target that returns late adds corrects them.

Invariant: between two things that are stored, of two sessions, every instant lies in a gap; an entry with the higher
session is written after those of the ones before it, so that the newest that is durable vouches for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from nvrstore.catalog.query import END_OF_TIME_NS, CatalogReader, Footage
from nvrstore.errors import CatalogError
from nvrstore.model import Cause, Gap, Media
from nvrstore.telemetry import get_logger
from nvrstore.upkeep.host import UpkeepHost

log = get_logger("upkeep.downtime")

PREFIX: Final = "recorder-"  # of the ids of the entries made here
DETAIL: Final = "the recorder was down"
WALK_SPANS_MAX: Final = 5000  # a session of more spans than that ran for hours, and wrote its own entry down
WALK_SPANS: Final = 200


@dataclass(frozen=True, slots=True)
class Boundary:
    """Where footage of one session ends and that of another begins. `begin_ns` None: nothing of it is stored yet."""

    session: int
    end_ns: int  # of what was stored before
    begin_ns: int | None


def boundaries(spans: Iterable[Footage], own: int, told: Callable[[int], bool]) -> list[Boundary]:
    """The changes of session in `spans` (the latest first), oldest first, back to a session that is `told`."""
    found: list[Boundary] = []
    session, begin_ns = own, None
    for span in spans:
        if span.session != session:
            found.append(Boundary(session, span.end_ns, begin_ns))
            if told(span.session):
                break
            session, begin_ns = span.session, None
        begin_ns = span.start_ns if begin_ns is None else min(begin_ns, span.start_ns)
    return found[::-1]


def taken_over_ns(boundary: Boundary, gaps: Sequence[Gap], since_ns: int) -> int | None:
    """Where the gap "recorder" ends: other gaps reach from there to the footage. None: neither footage nor a gap is there yet.

    `gaps` are the stream's others. `since_ns`: when the present session began; without footage, its gaps are what there is.
    """
    at_ns = boundary.begin_ns
    if at_ns is None:
        at_ns = min((gap.start_ns for gap in gaps if gap.start_ns >= since_ns), default=None)
    if at_ns is None:
        return None
    for gap in sorted(gaps, key=lambda gap: gap.start_ns, reverse=True):
        end_ns = END_OF_TIME_NS if gap.end_ns is None else gap.end_ns
        if boundary.end_ns < gap.start_ns < at_ns <= end_ns:
            at_ns = gap.start_ns
    return at_ns


class Downtime:
    """Writes the entries. Used by the long thread of upkeep."""

    def __init__(self, host: UpkeepHost) -> None:
        self._host = host
        self._told: dict[str, bool] = {}  # stream: whether what is known is told; False: told once, and something came since
        self._begin_ns: dict[str, int] = {}  # stream: where this session's account begins

    def changed(self) -> None:
        """Footage or records of earlier sessions were found: what was told is to be looked at again."""
        self._told = dict.fromkeys(self._told, False)

    def tell(self, journal: str) -> bool:
        """Enter what can be said of the streams of `journal`; False while something is still to come."""
        host = self._host
        streams = host.streams_of(journal)
        if all(self._told.get(stream) for stream in streams):
            return True
        host.catalog.flush()
        try:
            with host.catalog.reader() as reader:
                gaps: dict[str, list[Gap]] = {}
                for gap in reader.gaps():
                    gaps.setdefault(gap.stream, []).append(gap)
                waiting = [stream for stream in streams if not self._tell(journal, reader, stream, gaps.get(stream, []))]
                return not waiting
        except CatalogError as error:
            log.warning("catalog.unread", reason=str(error))
            return True  # a later recorder tells it, or this one when the catalog was mended

    def _tell(self, journal: str, reader: CatalogReader, stream: str, gaps: Sequence[Gap]) -> bool:
        if self._told.get(stream):
            return True
        host = self._host
        known = {gap.id: gap for gap in gaps}
        others = [self._ended(reader, journal, gap) for gap in gaps if not gap.id.startswith(PREFIX)]
        again = stream in self._told
        whole = True
        spans = self._back(reader, stream)
        for boundary in boundaries(spans, host.session, lambda session: not again and _id(session, stream) in known):
            end_ns = taken_over_ns(boundary, others, host.started_ns)
            if end_ns is None:
                whole = False
                continue
            if boundary.session == host.session:
                self._begin_ns.setdefault(stream, end_ns)
            gap = Gap(_id(boundary.session, stream), stream, Cause.RECORDER, boundary.end_ns, end_ns, DETAIL)
            if end_ns > boundary.end_ns and known.get(gap.id) != gap:
                host.record_gap(journal, gap)
        if whole:
            self._told[stream] = True
        return whole

    def _ended(self, reader: CatalogReader, journal: str, gap: Gap) -> Gap:
        """One that an earlier session left open ends with the next footage, or where this session began to account."""
        if gap.end_ns is not None or gap.start_ns >= self._host.started_ns:
            return gap
        next_ns = reader.next_start(gap.stream, gap.start_ns)
        end_ns = self._host.started_ns if next_ns is None else min(next_ns, self._host.started_ns)
        ended = replace(gap, end_ns=max(gap.start_ns, end_ns))
        self._host.record_gap(journal, ended)
        return ended

    def _back(self, reader: CatalogReader, stream: str) -> Iterator[Footage]:
        """A stream's spans, the latest first: from where this session began, where that is known."""
        before_ns = self._begin_ns.get(stream, END_OF_TIME_NS - 1) + 1
        media = Media.VIDEO if reader.footage_before(stream, before_ns, 1, Media.VIDEO) else None
        walked = 0
        while walked < WALK_SPANS_MAX:
            spans = reader.footage_before(stream, before_ns, WALK_SPANS, media)
            yield from spans
            walked += len(spans)
            if len(spans) < WALK_SPANS:
                return
            before_ns = spans[-1].start_ns


def _id(session: int, stream: str) -> str:
    return f"{PREFIX}{session:016x}-{stream}"
