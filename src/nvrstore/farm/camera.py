"""A simulated camera: what it sends, its number, its frames, and who listens.

Frame numbers count units that were made while somebody listened, over all connections: a number is never used twice for
different frames, also after a reconnect. What counts as sent is kept per session, and united when asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvrstore.clock import Clock
from nvrstore.farm.feed import Feed
from nvrstore.farm.oddities import PLAIN, Traits
from nvrstore.farm.on_air import OnAir
from nvrstore.farm.ranges import Ranges, SentFrames, union
from nvrstore.farm.reels import AudioReel, VideoReel
from nvrstore.farm.stamp import build_stamp

if TYPE_CHECKING:
    from nvrstore.farm.session import Session


@dataclass(frozen=True, slots=True)
class Look:
    """What a camera sends."""

    video: VideoReel
    audio: AudioReel | None
    traits: Traits = PLAIN


class Camera:
    """One stream of the farm."""

    def __init__(self, index: int, look: Look) -> None:
        self.index = index
        self.name = f"cam{index}"
        self.look = look
        self.feed: Feed | None = None
        self.own_feed = look.traits.own_feed
        self.number = 0  # of the next frame
        self.sessions: tuple[Session, ...] = ()  # replaced, never changed: a session may end while frames are handed out
        self.joining = False  # somebody waits for a key unit
        self.muted, self.refused = look.traits.mute, look.traits.refuse
        self.away, self.hung = look.traits.away, look.traits.hang
        self._sent: list[Ranges] = []

    def listen(self, session: Session) -> None:
        """A session begins to play: with the next key unit, unless it takes what comes."""
        if session not in self.sessions:
            self.sessions = (*self.sessions, session)
            self._sent.append(session.sent)
            self.joining = self.joining or session.waiting

    def leave(self, session: Session) -> None:
        """A session ends or pauses."""
        self.sessions = tuple(other for other in self.sessions if other is not session)

    def emit(self, on_air: OnAir, clock: Clock) -> None:
        """Stamp a unit and hand it to everybody who listens."""
        if self.joining and not self._admit(on_air):
            return
        number = self.number
        self.number = number + 1
        stamp = build_stamp(on_air.codec, self.index, number, clock.utc_ns(), on_air.unit.crc)
        for session in self.sessions:
            session.send_unit(on_air, stamp, number)

    def _admit(self, on_air: OnAir) -> bool:
        """Let waiting sessions in at a key unit. False while nobody gets this unit: no frame is made."""
        if on_air.key:
            self.joining = False
            for session in self.sessions:
                session.waiting = False
            return True
        return any(not session.waiting for session in self.sessions)

    def sent(self) -> SentFrames:
        """What left the farm so far."""
        return SentFrames(self.index, union(*(ranges.frozen() for ranges in self._sent)), self.number)
