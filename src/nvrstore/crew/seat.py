"""What the crew keeps of its workers: who sits where, what was heard of each; and what may be sent to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from nvrstore.crew.messages import Freed, Sit
from nvrstore.crew.process import Process
from nvrstore.crew.stream import RemoteStream
from nvrstore.errors import SourceError
from nvrstore.extents import Window
from nvrstore.ingest.contract import Endpoint
from nvrstore.model import TrackConfig, TrackKey
from nvrstore.telemetry import ROOT

SHORT_LIFE_S: Final = 10.0


@dataclass(slots=True, eq=False)
class Seat:
    """A place for a worker, and the streams that it receives."""

    number: int
    window: Window  # of the pool, where its worker lays batches out
    process: Process | None = None
    streams: list[RemoteStream] = field(default_factory=list)
    ended: int = 0  # workers that sat here
    reason: str = ""  # why the last one ended
    short_lives: int = 0  # in a row
    seated_s: float = 0.0

    def sit(self, process: Process | None, now_s: float) -> None:
        self.process, self.seated_s = process, now_s
        if process is not None:
            self.window.open(
                lambda taken: process.post(Sit(self.window.offset, self.window.length, taken)),
                lambda extent: process.post(Freed(extent)),
            )

    def lost(self, reason: str, now_s: float) -> None:
        self.process = None
        self.ended += 1
        self.reason = reason
        self.short_lives = self.short_lives + 1 if now_s - self.seated_s < SHORT_LIFE_S else 0


@dataclass(slots=True)
class Heard:
    """What was heard of one worker. Used by the thread that hears it, but for `streams`, which grow under the lock."""

    seat: Seat | None = None
    streams: dict[str, RemoteStream] = field(default_factory=dict)
    tracks: dict[int, tuple[TrackKey, TrackConfig]] = field(default_factory=dict)
    end: int = 0  # of the ring, as far as it was copied
    waiting_bytes: int = 0
    stuck: int = 0
    torn: bool = False  # a batch is missing: nothing more of it is heard


def plain_endpoint(endpoint: Endpoint) -> Endpoint:
    """The same of plain texts: classes of the host's are unknown in a worker."""
    login = endpoint.login
    return Endpoint("".join(endpoint.url), None if login is None else ("".join(login[0]), "".join(login[1])))


def plain_error(error: SourceError) -> SourceError:
    """The same as an error of this library's: a class of the host's is unknown in a worker."""
    kind = next(kind for kind in type(error).__mro__ if kind.__module__.startswith(f"{ROOT}."))
    plain: SourceError = kind(error.message, hint=error.hint)
    return plain
