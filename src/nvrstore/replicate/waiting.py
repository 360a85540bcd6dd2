"""What waits to be built into a batch: fragments and records of one lane, in order, within bounds.

put --> [fragments] --select(volume)--> next batch        a fragment that the present volume cannot take stays, and all
record --> [records] --select---------> next batch        later ones of its track with it: nobody overtakes
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from nvrstore.extents import Loan
from nvrstore.journal.records import pack_record
from nvrstore.limits import BATCH_BYTES_CUT, RECORDS_BYTES_MAX
from nvrstore.model import Fragment, Record, TrackKey
from nvrstore.replicate.buffer import ReplayBuffer

RECORDS_BYTES_CUT: Final = RECORDS_BYTES_MAX * 3 // 4  # of one batch; the last record may exceed it by one record


class Waiting:
    """See the module. Its bytes count in the replay buffer; those of a window do so by their extents, as long as one fragment is there."""

    def __init__(self, buffer: ReplayBuffer) -> None:
        self._buffer = buffer
        self.fragments: deque[Fragment] = deque()
        self.records: deque[Record] = deque()
        self.bytes = 0
        self._repeated: deque[Record] = deque()  # the standing records that the present volume still has to repeat

    def __bool__(self) -> bool:
        return bool(self.fragments or self.records)

    def put(self, fragment: Fragment) -> None:
        self.fragments.append(fragment)
        self._count(fragment, 1)

    def put_back(self, fragments: list[Fragment], records: list[Record], place: Callable[[Fragment], int | None]) -> None:
        """In front of everything newer, since they are owed again. `place`: in the order of building, where a fragment is owed."""
        owed = list(fragments)
        while self.fragments and place(self.fragments[0]) is not None:
            owed.append(self.fragments.popleft())
        owed.sort(key=lambda fragment: place(fragment) or 0)
        self.fragments.extendleft(reversed(owed))
        self.records.extendleft(reversed(records))
        for fragment in fragments:
            self._count(fragment, 1)

    def drop_oldest(self) -> Fragment | None:
        """The oldest fragment, given up."""
        if not self.fragments:
            return None
        fragment = self.fragments.popleft()
        self._count(fragment, -1)
        if fragment.loan is not None:
            fragment.loan.leave()
        return fragment

    def repeat(self, standing: Iterable[Record]) -> None:
        """A volume begins: its first batches carry what stands."""
        self._repeated = deque(standing)

    def select(
        self,
        fits: Callable[[Fragment], bool],
        *,
        until: Callable[[Fragment], bool] = lambda fragment: False,
        cut_bytes: int = BATCH_BYTES_CUT,
    ) -> tuple[list[Fragment], list[Fragment]]:
        """The next batch, from the front up to one where `until` says so: its fragments, and those that wait for another volume."""
        chosen: list[Fragment] = []
        skipped: list[Fragment] = []
        blocked: set[TrackKey] = set()
        length = 0
        for fragment in self.fragments:
            if length >= cut_bytes or until(fragment):
                break
            if fragment.track in blocked or not fits(fragment):
                blocked.add(fragment.track)
                skipped.append(fragment)
            else:
                chosen.append(fragment)
                length += fragment.length
        return chosen, skipped

    def select_records(self) -> tuple[list[Record], int]:
        """The records of the next batch, and how many of them are repeated ones."""
        chosen: list[Record] = []
        length = repeated = 0
        for source in (self._repeated, self.records):
            for record in source:
                if length >= RECORDS_BYTES_CUT:
                    return chosen, repeated
                chosen.append(record)
                length += len(pack_record(record))
                repeated += source is self._repeated
        return chosen, repeated

    @property
    def laid_out(self) -> bool:
        """Whether a batch that an ingest worker has laid out comes next."""
        return bool(self.fragments) and self.fragments[0].loan is not None

    def taken(self, chosen: list[Fragment], skipped: list[Fragment], records: int, repeated: int) -> None:
        """What was selected is in a batch now."""
        rest = list(self.fragments)[len(chosen) + len(skipped) :]
        self.fragments = deque(skipped + rest)
        for fragment in chosen:
            self._count(fragment, -1)
            if fragment.loan is not None:
                fragment.loan.leave()
        for _ in range(repeated):
            self._repeated.popleft()
        for _ in range(records - repeated):
            self.records.popleft()

    def _count(self, fragment: Fragment, sign: int) -> None:
        self.bytes += sign * fragment.length
        if fragment.loan is None:
            self._buffer.waiting_bytes += sign * fragment.length


def whole_loan(fragments: Sequence[Fragment], size: int) -> Loan | None:
    """The loan of `size` bytes whose fragments these are, all of them and nothing else: as they were laid out."""
    loan = fragments[0].loan if fragments else None
    if loan is None or not loan.whole or loan.count != len(fragments) or loan.extent.length != size:
        return None
    return loan if all(fragment.loan is loan for fragment in fragments) else None
