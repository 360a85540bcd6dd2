"""What of a stream is recorded: always, on events, or not at all (pure; the hands are the supervisor's).

                      mode "always" or a trigger's span ──────────────────────────▶ stored
    Fragment ──▶ Gate mode "event" ──▶ [ last pre_event_s, bounded bytes ] ─trigger─▶ stored
                      mode "off", and what falls out of the buffer ─────────────────▶ gap with cause `policy`

`now -> mode` is asked for the UTC of every fragment, not for the time at which it happens to be looked at: a schedule
changes where the footage says so. Fragments leave the gate in the order in which they came, those that a trigger
rescues from the buffer included, and from a keyframe on where the buffer holds one.

Invariant: every fragment that enters is either returned once, or waits in the buffer, or lies inside a policy gap.
Lives in the supervisor's lock; knows neither clocks nor intakes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from nvrstore.config import RecordMode
from nvrstore.limits import PRE_EVENT_BYTES_MAX
from nvrstore.model import NS_PER_S, Cause, Fragment, FragmentFlag, Gap, Media, TrackKey, new_id

_BEGINS: Final = FragmentFlag.DISCONTINUITY | FragmentFlag.SEGMENT


@dataclass(frozen=True, slots=True)
class Passed:
    """What the gate decided: fragments to store, and gaps that opened or closed, each in order."""

    fragments: tuple[Fragment, ...] = ()
    gaps: tuple[Gap, ...] = ()


NOTHING: Final = Passed()


class Gate:
    """The policy of one stream. `mode_at` is a pure function of UTC nanoseconds."""

    def __init__(
        self,
        stream: str,
        mode_at: Callable[[int], RecordMode],
        *,
        pre_event_s: float,
        bytes_max: int = PRE_EVENT_BYTES_MAX,
        id_factory: Callable[[], str] = new_id,
    ) -> None:
        self._stream = stream
        self._mode_at = mode_at
        self._pre_ns = round(pre_event_s * NS_PER_S)
        self._bytes_max = bytes_max
        self._new_id = id_factory
        self._buffer: deque[Fragment] = deque()
        self._bytes = 0
        self._until_ns = 0  # a trigger asked for everything that begins before this
        self._gap: Gap | None = None
        self._stored_end_ns: int | None = None  # of the video, else of whatever there is
        self._broken: set[TrackKey] = set()  # tracks whose next stored fragment stands behind a hole
        self._mode: RecordMode = "always"

    @property
    def mode(self) -> RecordMode:
        """What the schedule said of the last fragment."""
        return self._mode

    @property
    def open_gap(self) -> Gap | None:
        return self._gap

    @property
    def waiting_bytes(self) -> int:
        return self._bytes

    def push(self, fragment: Fragment) -> Passed:
        """Decide about the next fragment."""
        self._mode = mode = self._mode_at(fragment.utc_ns)
        if mode == "always" or (mode == "event" and fragment.utc_ns < self._until_ns):
            if not self._buffer:
                return self._store([fragment])
            # An event schedule ended, or the trigger came a moment before: from the last keyframe on, for a clean beginning.
            return self._rescue(fragment.utc_ns, fragment)
        if mode == "off":
            return Passed(gaps=self._leave_out([*self._drain(), fragment]))
        self._buffer.append(fragment)
        self._bytes += fragment.length
        return Passed(gaps=self._leave_out(self._evicted()))

    def trigger(self, now_ns: int, *, pre_s: float, post_s: float) -> Passed:
        """Store from `pre_s` before `now_ns` (as far as the buffer reaches) to `post_s` behind it; spans of several triggers unite.

        Where the schedule says "off", a trigger changes nothing.
        """
        self._until_ns = max(self._until_ns, now_ns + round(post_s * NS_PER_S))
        return self._rescue(now_ns - round(pre_s * NS_PER_S)) if self._buffer else NOTHING

    def close(self) -> tuple[Gap, ...]:
        """The stream ends here: what waits is left out; a gap that is open stays so, its end is not known."""
        return self._leave_out(self._drain())

    def _store(self, fragments: list[Fragment]) -> Passed:
        gaps: tuple[Gap, ...] = ()
        if self._gap is not None:
            gaps = (replace(self._gap, end_ns=max(self._gap.start_ns, min(f.utc_ns for f in fragments))),)
            self._gap = None
        if self._broken:
            fragments = [self._mend(fragment) for fragment in fragments]
        for fragment in fragments:
            if fragment.track.media is Media.VIDEO or self._stored_end_ns is None:
                self._stored_end_ns = fragment.end_ns
        return Passed(tuple(fragments), gaps)

    def _mend(self, fragment: Fragment) -> Fragment:
        """The first fragment of a track behind a hole begins a run."""
        if fragment.track not in self._broken:
            return fragment
        self._broken.discard(fragment.track)
        return replace(fragment, flags=fragment.flags | _BEGINS)

    def _leave_out(self, fragments: list[Fragment]) -> tuple[Gap, ...]:
        """These are not stored: say so, once per hole."""
        if not fragments:
            return ()
        self._broken.update(fragment.track for fragment in fragments)
        if self._gap is not None:
            return ()
        start_ns = min(fragment.utc_ns for fragment in fragments)
        if self._stored_end_ns is not None and self._stored_end_ns < start_ns:
            start_ns = self._stored_end_ns
        self._gap = Gap(self._new_id(), self._stream, Cause.POLICY, start_ns, None, f"record = {self._mode}")
        return (self._gap,)

    def _rescue(self, from_ns: int, *following: Fragment) -> Passed:
        """Store what the buffer holds from the last keyframe at or before `from_ns`, then `following`; what is older is left out."""
        waiting = self._drain()
        begin = next((i for i, fragment in enumerate(waiting) if fragment.end_ns > from_ns), len(waiting))
        clean = bool(following) and begin == len(waiting) and _is_entry(following[0])
        entries = [] if clean else [i for i, fragment in enumerate(waiting[: begin + 1]) if _is_entry(fragment)]
        if entries:
            begin = entries[-1]
        opened = self._leave_out(waiting[:begin])
        rescued = [*waiting[begin:], *following]
        if not rescued:
            return Passed(gaps=opened)
        passed = self._store(rescued)
        return Passed(passed.fragments, opened + passed.gaps)

    def _evicted(self) -> list[Fragment]:
        """What the buffer need not, or must not, hold any longer: whole groups of pictures, oldest first."""
        gone: list[Fragment] = []
        keep_from_ns = self._buffer[-1].end_ns - self._pre_ns
        while self._buffer:
            following = next((i for i in range(1, len(self._buffer)) if _is_entry(self._buffer[i])), None)
            if self._bytes > self._bytes_max:
                count = following or 1
            elif following is not None and self._buffer[following].utc_ns <= keep_from_ns:
                count = following
            elif following is None and not any(_is_entry(f) for f in self._buffer) and self._buffer[0].end_ns <= keep_from_ns:
                count = 1  # no keyframes at all: by time alone
            else:
                break
            for _ in range(count):
                fragment = self._buffer.popleft()
                self._bytes -= fragment.length
                gone.append(fragment)
        return gone

    def _drain(self) -> list[Fragment]:
        waiting = list(self._buffer)
        self._buffer.clear()
        self._bytes = 0
        return waiting


def _is_entry(fragment: Fragment) -> bool:
    """Whether playback can begin here."""
    return fragment.track.media is Media.VIDEO and bool(fragment.flags & FragmentFlag.KEYFRAME)
