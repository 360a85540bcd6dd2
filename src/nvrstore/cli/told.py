"""Events as sentences for people, as the foot of `record` shows them. What is told elsewhere on the screen is no sentence here."""

from __future__ import annotations

from nvrstore import events
from nvrstore.cli.common import human_bytes, human_s
from nvrstore.errors import redact
from nvrstore.model import NS_PER_S, Role
from nvrstore.times import iso


def told(event: events.Event) -> str:
    """`12:04:15Z target a is lost: Input/output error`; empty for what needs no telling."""
    sentence = redact(_sentence(event))
    return f"{_clock(event.utc_ns)} {sentence}" if sentence else ""


def _clock(utc_ns: int) -> str:
    return iso(utc_ns)[11:19] + "Z"


def _sentence(event: events.Event) -> str:
    match event:
        case events.TargetLost():
            return f"target {event.target} is lost{_why(event.reason)}"
        case events.TargetJoined():
            return f"target {event.target} takes new footage"
        case events.TargetSynced():
            return f"target {event.target} lacks nothing"
        case events.TargetChanged() if event.after in ("drained", "away"):
            return f"target {event.target} is {event.after}{_why(event.reason)}"
        case events.SetChanged():
            names = ", ".join(member.target for member in event.members if member.role is not Role.REFUGE)
            degraded = f": fewer than the {event.wanted} copies that are wanted" if event.degraded else ""
            return f"{event.journal} {event.epoch} on {names or 'no target'}{degraded}"
        case events.FailedOver():
            return f"{event.journal} goes on without {event.target}: next commit {human_s(event.ttr_s)} after the loss"
        case events.RefugeEntered():
            return f"NO TARGET of {event.journal} LIVES: recording to the state disk"
        case events.GapOpened():
            return f"{event.gap.stream}: nothing is stored since {_clock(event.gap.start_ns)}, {event.gap.cause}{_why(event.gap.detail)}"
        case events.GapClosed():
            length_s = ((event.gap.end_ns or event.gap.start_ns) - event.gap.start_ns) / NS_PER_S
            return f"{event.gap.stream}: stored again after {human_s(length_s)} ({event.gap.cause})"
        case events.VolumePruned():
            return f"target {event.target}: {event.path} was removed{_why(event.reason)}"
        case events.FragmentsDropped():
            return f"{event.stream}: footage was dropped, {event.cause}"
        case events.Alarm():
            return f"ALARM, {event.what}: {event.sentence}"
        case events.ResyncProgress() if event.done_bytes >= event.total_bytes:
            return f"target {event.target} was given {human_bytes(event.total_bytes)} that it missed"
        case events.EventsDropped():
            return f"{event.count} events are not shown"
        case _:
            return ""


def _why(reason: str) -> str:
    return f": {reason}" if reason else ""
