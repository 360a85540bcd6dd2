"""The holes of one stream, with both their ends (pure; policy's are the gate's).

    last stored end ──╴ opened: cause, no end yet ╶── reconnects, failures ──╴ closed: begin of the first fragment behind it

A gap opens once per interruption, whatever is tried meanwhile; only a login that is refused, or accepted again, makes a
new one, since somebody has to act on it. Damage (frames that arrived incomplete) is a span from the first damaged frame
to the next whole keyframe. Every method returns the gaps that changed, to be written down in that order.

Invariant: between the first start and the last fragment every instant lies in a fragment or in a gap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from nvrstore.model import Cause, Gap, new_id

DETAIL_MAX = 200  # characters: a sentence, not a dump


class StreamGaps:
    """Open gaps of one stream, and where the next one would begin."""

    def __init__(self, stream: str, start_ns: int, *, open_gaps: Iterable[Gap] = (), id_factory: Callable[[], str] = new_id) -> None:
        self._stream = stream
        self._new_id = id_factory
        self._open = list(open_gaps)
        self._start_ns = start_ns
        self._end_ns = start_ns  # where what is known to be stored ends
        self._damaged_ns: int | None = None

    @property
    def open_gap(self) -> Gap | None:
        """The gap that is open now: the youngest, if there are several."""
        return self._open[-1] if self._open else None

    @property
    def end_ns(self) -> int:
        """Where the footage ends, or the time of the start."""
        return self._end_ns

    @property
    def damaged(self) -> bool:
        """Whether frames are damaged now."""
        return self._damaged_ns is not None

    def interrupted(self, cause: Cause, detail: str, now_ns: int) -> list[Gap]:
        """Nothing comes any more, or not yet."""
        current = self.open_gap
        if current is None:
            return [self._begin(cause, detail, self._end_ns)]
        if current.cause in (Cause.RECORDER, Cause.POLICY):  # we are up again, and willing: from the start on it is the camera's
            closed = self._close_all(max(current.start_ns, self._start_ns))
            return [*closed, self._begin(cause, detail, max(current.start_ns, self._start_ns))]
        if (current.cause is Cause.REFUSED) is not (cause is Cause.REFUSED):
            at_ns = max(current.start_ns, now_ns)
            return [*self._close_all(at_ns), self._begin(cause, detail, at_ns)]
        return []

    def stored(self, utc_ns: int, end_ns: int) -> list[Gap]:
        """A fragment of footage from `utc_ns` to `end_ns` goes on its way."""
        self._end_ns = end_ns
        return self._close_all(utc_ns) if self._open else []

    def missing(self, cause: Cause, detail: str, start_ns: int, end_ns: int) -> list[Gap]:
        """A hole inside a session, known from both sides. None while a gap is open anyway."""
        if self._open or end_ns <= start_ns:
            return []
        return [Gap(self._new_id(), self._stream, cause, start_ns, end_ns, detail[:DETAIL_MAX])]

    def frame(self, utc_ns: int, *, damaged: bool, keyframe: bool) -> list[Gap]:
        """A frame of video came, whole or not."""
        if damaged:
            if self._damaged_ns is None:
                self._damaged_ns = utc_ns
        elif keyframe:
            return self.mended(utc_ns)
        return []

    def mended(self, utc_ns: int) -> list[Gap]:
        """Damage, if there is any, ends here."""
        if self._damaged_ns is None:
            return []
        start_ns, self._damaged_ns = self._damaged_ns, None
        return [Gap(self._new_id(), self._stream, Cause.NETWORK, start_ns, max(start_ns, utc_ns), "damaged: packets were lost")]

    def _begin(self, cause: Cause, detail: str, start_ns: int) -> Gap:
        gap = Gap(self._new_id(), self._stream, cause, start_ns, None, detail[:DETAIL_MAX])
        self._open.append(gap)
        return gap

    def _close_all(self, at_ns: int) -> list[Gap]:
        closed = [replace(gap, end_ns=max(gap.start_ns, at_ns)) for gap in self._open]
        self._open.clear()
        return closed
