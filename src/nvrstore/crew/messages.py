"""What the recorder and its ingest workers tell each other, and the pipe on which they do.

    recorder ──▶ worker      Sit, Freed, Add, Remove, Retry, Trigger, Tapping, Resolved, Stop
    worker ──▶ recorder      Declared, LaidOut, Recorded, Told, Asked, Removed, Tapped, Looked, Logged, Stopped

Both ends are the same version of the same program, and nobody else can write to their socket pair: messages are pickled,
lists of them at a time. Footage does not travel here: what is recorded lies in the worker's window of the pool, laid out as
the batch that it will be; live samples go through the ring (ring.py).
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple

from nvrstore.config import StreamConfig
from nvrstore.config.models import RecorderConfig
from nvrstore.errors import SourceError
from nvrstore.events import Event
from nvrstore.extents import Extent
from nvrstore.ingest.contract import Endpoint
from nvrstore.ingest.status import StreamStatus
from nvrstore.model import Gap, Media, Record, TrackConfig, TrackKey

_PROTOCOL: Final = 5


# --- to the worker


class Setup(NamedTuple):
    """The first message: who records."""

    session: int
    recorder: RecorderConfig
    ticks_s: dict[str, float]  # by journal: how often it commits
    log_level: int  # of the recorder's logger `nvrstore`
    pid: int  # of the recorder


class Sit(NamedTuple):
    """The window that is the worker's from now on: `length` bytes at `offset` of the pool. What is `taken` there is still needed."""

    offset: int
    length: int
    taken: tuple[Extent, ...]


class Freed(NamedTuple):
    """An extent of the window may be filled again."""

    extent: Extent


class Add(NamedTuple):
    """Record a stream. `first_index`, `open_gaps`: where somebody else left off; `lanes`: where its tracks were."""

    config: StreamConfig
    fragment_s: float
    open_gaps: tuple[Gap, ...]
    first_index: Mapping[Media, int]
    lanes: Mapping[Media, int]


class Remove(NamedTuple):
    stream: str
    timeout_s: float


class Retry(NamedTuple):
    stream: str


class Trigger(NamedTuple):
    stream: str
    name: str
    pre_s: float
    post_s: float


class Tapping(NamedTuple):
    """Whether somebody wants the live samples of a stream."""

    stream: str
    wanted: bool


class Resolved(NamedTuple):
    """The answer to `Asked`."""

    ask: int
    endpoint: Endpoint | None
    error: SourceError | None


class Stop(NamedTuple):
    timeout_s: float


# --- to the recorder


class Declared(NamedTuple):
    """A track, or its new configuration, gets a number in this worker. `lane`: what is batched together, counted from 0."""

    number: int
    track: TrackKey
    name: str
    config: TrackConfig
    lane: int


class Put(NamedTuple):
    """A fragment. `number` says its track and configuration; its bytes are at `position` of its batch."""

    number: int
    first: int
    samples: int
    utc_ns: int
    duration: int
    flags: int
    arrival_s: float
    position: int
    length: int


class LaidOut(NamedTuple):
    """A batch of one lane: all but what its volume decides. Its extent is the recorder's until it is `Freed`."""

    extent: Extent
    puts: tuple[Put, ...]


class Recorded(NamedTuple):
    stream: str
    record: Record


class Told(NamedTuple):
    event: Event


class Asked(NamedTuple):
    """URL and login of a stream are wanted: hooks and secrets are the recorder's."""

    ask: int
    stream: str


class Removed(NamedTuple):
    stream: str
    gone: bool


class Tapped(NamedTuple):
    """A live sample. `dropped`: so many are missing in front of it. Its bytes are in the ring."""

    number: int
    pts: int
    dts: int
    keyframe: bool
    arrival_ns: int
    arrival_s: float
    damaged: bool
    utc_ns: int
    dropped: int
    position: int
    length: int


class Looked(NamedTuple):
    """How the streams are."""

    statuses: tuple[StreamStatus, ...]
    waiting_bytes: int  # that the recorder has not taken yet


class Logged(NamedTuple):
    name: str
    level: int
    line: str
    fields: dict[str, Any]


class Stopped(NamedTuple):
    stuck: int


Command = Sit | Freed | Add | Remove | Retry | Trigger | Tapping | Resolved | Stop
Report = Declared | LaidOut | Recorded | Told | Asked | Removed | Tapped | Looked | Logged | Stopped


def send(pipe: Connection, messages: Iterable[object]) -> None:
    """Write messages, all in one piece. Raises OSError when nobody listens any more. May wait until there is room."""
    pipe.send_bytes(pickle.dumps(list(messages), _PROTOCOL))


def receive(pipe: Connection) -> list[Any]:
    """Wait for the next messages. Raises EOFError or OSError at the end."""
    messages: list[Any] = pickle.loads(pipe.recv_bytes())
    return messages
