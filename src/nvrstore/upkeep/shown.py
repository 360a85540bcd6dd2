"""What the targets themselves show, for a plan of retention while the catalog cannot be written or read. All of it is `Steps`.

    a: main/2026-11-23/07-45-10Z….mp4 ─┐  names, sizes, times: no file is opened
    b: main/2026-11-23/07-45-10Z….mp4 ─┴─▶ StoredVolume ─▶ plan ─▶ of what goes with a last copy, the spans, from its own bytes

A volume's path stands for its id: names carry their writer's tag, and every member keeps its copy under the same one. Copies on
targets that do not answer are not seen, so that the ledger may name as gone what such a target still has: never the other way round.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from nvrstore.errors import TargetError
from nvrstore.journal.names import VolumeName
from nvrstore.model import NS_PER_S, Media
from nvrstore.replicate.inventory import VolumeCopy, list_volumes, scan_copy
from nvrstore.replicate.truth import choose_truth
from nvrstore.targets.contract import Steps
from nvrstore.telemetry import get_logger
from nvrstore.upkeep.retention import Span, StoredCopy, StoredVolume

log = get_logger("upkeep.shown")


def shown_volumes(targets: Iterable[str], journal: str) -> Steps[list[StoredVolume]]:
    """The volumes of a journal on the targets that can be listed, none of them open. Copies of one length count as verified."""
    files: dict[str, list[VolumeCopy]] = {}
    for target in targets:
        try:
            listed = yield from list_volumes(target, journal)
        except TargetError as error:
            log.warning("target.unlisted", target=target, journal=journal, reason=str(error))
            continue
        for copy in listed:
            files.setdefault(copy.path, []).append(copy)
    following: dict[tuple[int, str, int], VolumeName] = {}  # by lane: the volume that was made next
    found = []
    for copies in sorted(files.values(), key=lambda some: some[0].name, reverse=True):
        name = copies[0].name
        lane = (name.term, name.tag, name.lane)
        same = len({copy.size for copy in copies}) == 1
        stored = tuple(StoredCopy(copy.target, copy.size, verified=same) for copy in copies)
        found.append(StoredVolume(name.path, name, _end_ns(copies, following.get(lane)), stored))
        following[lane] = name
    return found[::-1]


def _end_ns(copies: Collection[VolumeCopy], following: VolumeName | None) -> int:
    """When it was written last: a copy that came by resync was so later, but not the lane's next volume."""
    made_ns, end_ns = min(copy.name.made_ns for copy in copies), min(copy.mtime_ns for copy in copies)
    if following is not None and following.made_ns >= made_ns:
        end_ns = min(end_ns, following.made_ns + NS_PER_S)  # names count whole seconds
    return max(end_ns, made_ns)


def spans_in(target: str, volume: StoredVolume) -> Steps[tuple[Span, ...]]:
    """Of when the copy on `target` holds footage, by stream; nothing where it cannot be read."""
    size = next(copy.bytes for copy in volume.copies if copy.target == target)
    try:
        truth = choose_truth({target: (yield from scan_copy(target, volume.name.path, size, fresh=False))})
    except TargetError as error:
        log.warning("volume.unread", path=volume.name.path, target=target, reason=str(error))
        return ()
    if truth is None:
        return ()
    video: dict[str, Span] = {}
    other: dict[str, Span] = {}
    for batch in truth.batches:
        for entry in batch.entries:
            track = truth.header.tracks[entry.track_id - 1]
            stream, spans = track.track.stream, video if track.track.media is Media.VIDEO else other
            start_ns, end_ns = entry.utc_ns, entry.utc_ns + entry.duration * NS_PER_S // track.config.timescale
            known = spans.get(stream, Span(stream, start_ns, end_ns))
            spans[stream] = Span(stream, min(known.start_ns, start_ns), max(known.end_ns, end_ns))
    return tuple(span for _, span in sorted((other | video).items()))
