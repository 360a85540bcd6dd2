"""What a running recorder has to do to follow another configuration. Pure: everything is decided before anything is stopped.

    only running  ─▶ remove       both, but different ─▶ change: out and in again, one after the other
    only wanted   ─▶ add          both, and the same  ─▶ keep: it records on

Journals and targets are those of the start: what would need others is refused as a whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from nvrstore.config import StreamConfig
from nvrstore.errors import UsageError


@dataclass(frozen=True, slots=True)
class Changes:
    """Of streams, each in the order of the configuration it is from."""

    remove: tuple[str, ...]
    change: tuple[StreamConfig, ...]
    add: tuple[StreamConfig, ...]
    keep: tuple[str, ...]


def changes(running: Iterable[StreamConfig], wanted: Iterable[StreamConfig], journals: Collection[str]) -> Changes:
    """From the streams that are `running` to those that are `wanted`. Raises UsageError where one wants none of the running `journals`."""
    present = {stream.id: stream for stream in running}
    future = {stream.id: stream for stream in wanted}
    astray = [f"stream {stream.id!r} into journal {stream.journal!r}" for stream in future.values() if stream.journal not in journals]
    if astray:
        raise UsageError(
            f"this recorder was started with the journals {', '.join(map(repr, journals))}, and cannot record "
            f"{', '.join(astray)} before it is started again; nothing was changed",
            hint="restart the recorder: journals and targets are read at the start",
        )
    return Changes(
        remove=tuple(stream_id for stream_id in present if stream_id not in future),
        change=tuple(stream for stream in future.values() if stream.id in present and present[stream.id] != stream),
        add=tuple(stream for stream in future.values() if stream.id not in present),
        keep=tuple(stream_id for stream_id in future if present.get(stream_id) == future[stream_id]),
    )
