"""What a running recorder tells its host: one frozen value per kind of event.

A dead camera or target is a state and an event, never an exception. Every event has `utc_ns`, when it was noticed, and
`as_json()`. Events are handed out by `Recorder.events(...)`, bounded: a slow listener loses the oldest and is told how many.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from nvrstore.model import Cause, Epoch, Gap, MemberRef, Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of all events."""

    utc_ns: int

    def as_json(self) -> dict[str, Any]:
        """The event as JSON values, its kind under `event`."""
        return {"event": type(self).__name__, **_plain(asdict(self))}


# --- cameras


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamChanged(Event):
    """A stream's connection changed: `state`, `reason` and `hint` as in `Stream.status()`."""

    stream: str
    state: str
    reason: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GapOpened(Event):
    """From `gap.start_ns` on, something is not stored."""

    gap: Gap


@dataclass(frozen=True, slots=True, kw_only=True)
class GapClosed(Event):
    """A gap has both its ends now."""

    gap: Gap


@dataclass(frozen=True, slots=True, kw_only=True)
class FragmentsDropped(Event):
    """A bounded buffer was full: what was dropped is in the ledger."""

    stream: str
    cause: Cause


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestWorkerLost(Event):
    """A process that received streams ended (`[recorder] workers`): another one goes on with them."""

    worker: int
    reason: str
    streams: int


# --- targets


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetChanged(Event):
    """A target went from one state to another in a journal (failover/machine.py)."""

    journal: str
    target: str
    before: str
    after: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetLost(TargetChanged):
    """A member left the set because of an error, a hang, a wrong identity, or because it lagged behind.

    `since_failure_s`: from the first write, sync or look that failed there (EIO, EROFS, ...) to this declaration, by the stamp of the
    worker that called; None where no call failed: it hung, or was not itself.
    """

    since_failure_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetJoined(TargetChanged):
    """A target takes new batches again; it may still lack older ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSynced(TargetChanged):
    """A target lacks nothing any more, checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetChanged(Event):
    """Other members take new footage than before; `degraded` while they are fewer than wanted.

    Comes before the first commit on fewer copies, and only when all members take part: whoever is told of two may count on two.
    """

    journal: str
    epoch: Epoch
    members: tuple[MemberRef, ...]
    wanted: int

    @property
    def degraded(self) -> bool:
        return sum(member.role is not Role.REFUGE for member in self.members) < self.wanted

    def as_json(self) -> dict[str, Any]:
        return {**Event.as_json(self), "degraded": self.degraded}


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedOver(Event):
    """The first commit after a member was lost. `ttr_s`: from the declaration of the loss to this commit, in real time."""

    journal: str
    target: str
    reason: str
    ttr_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RefugeEntered(Event):
    """No member lives: footage goes to the state disk, and is not counted as committed."""

    journal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResyncProgress(Event):
    """Copying what a target lacks."""

    journal: str
    target: str
    done_bytes: int
    total_bytes: int


# --- the listener itself


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsDropped(Event):
    """Whoever gets this was too slow: `count` events are missing before the next one. Told to each listener, whatever it asked for."""

    count: int


# --- storage


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeClosed(Event):
    """A volume is complete on `targets`."""

    journal: str
    volume_id: str
    path: str
    length: int
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumePruned(Event):
    """Retention removed a copy of a volume."""

    journal: str
    path: str
    target: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm(Event):
    """Something a person should look at: the catalog's disk, a fenced writer, a target that cannot be repaired."""

    what: str
    sentence: str
    data: dict[str, Any] = field(default_factory=dict)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, int | float | bool) or value is None else str(value)
