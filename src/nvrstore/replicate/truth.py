"""What a volume holds, decided from scans of its copies. Pure.

    a: 0 1 2 3 .        truth = the longest chain of batches that begins at the header, taken over all copies:
    b: 0 1 x 3 4   ──▶  0 1 2 3 4     (2 from a, 4 from b: each header carries the CRC of the one before it)

A batch belongs to the truth when its header is whole on some copy and follows the chain; a copy *has* it when its payload
is whole there too. Where a copy is closed, its batches are the truth: closed content never changes.
Invariants: what a header says was committed is never beyond the truth unnoticed (`complete`); a copy that holds other
valid bytes at the same place is a `conflict`, which nobody overwrites.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nvrstore.journal.model import Batch, DamageKind, VolumeHeader
from nvrstore.journal.scan import ScanResult
from nvrstore.model import TrackKey

_Node = tuple[int, int]  # number and CRC of a batch's header; (-1, CRC) of the volume's header

#: Damage that makes a batch not whole. An erased fragment is as somebody wanted it.
_HARMLESS = frozenset({DamageKind.ERASED, DamageKind.INDEX, DamageKind.VOLUME_HEADER})


@dataclass(frozen=True, slots=True)
class Truth:
    """What a volume holds, and who has which part of it."""

    header: VolumeHeader
    header_length: int
    batches: tuple[Batch, ...]  # 0 to n without a hole
    closed: bool  # some copy is closed over exactly these
    holders: tuple[tuple[str, ...], ...]  # per batch: the targets that have it whole
    committed: int  # the last batch that any copy knows to be committed
    stray: bool  # valid batches lie behind a hole that no copy can fill
    conflicts: frozenset[str]  # targets with other valid bytes

    @property
    def end(self) -> int:
        """Where the next batch would begin."""
        return self.batches[-1].end if self.batches else self.header_length

    @property
    def complete(self) -> bool:
        """Whether nothing is known to be missing: no committed batch, none in the middle."""
        return len(self.batches) > self.committed and not self.stray

    def has(self, target: str, batch: Batch) -> bool:
        return target in self.holders[batch.number]

    def missing(self, target: str) -> list[Batch]:
        """The batches that `target` does not have whole."""
        return [batch for batch in self.batches if not self.has(target, batch)]

    def ends_ns(self) -> dict[TrackKey, int]:
        """UTC at which the last durable sample of each track ends."""
        ends: dict[TrackKey, int] = {}
        for batch in self.batches:
            for entry in batch.entries:
                track = self.header.tracks[entry.track_id - 1]
                end_ns = entry.utc_ns + entry.duration * 1_000_000_000 // track.config.timescale
                ends[track.track] = max(end_ns, ends.get(track.track, end_ns))
        return ends


def choose_truth(scans: Mapping[str, ScanResult]) -> Truth | None:
    """The truth over scans of one volume's copies, by target; None where no copy's header is readable."""
    found = {target: scan for target, scan in scans.items() if scan.header is not None}
    if not found:
        return None
    best: dict[_Node, Batch] = {}
    places: dict[_Node, list[str]] = {}
    for target, scan in found.items():
        places.setdefault((-1, scan.header_crc), []).append(target)
        for batch in scan.batches:
            node = (batch.number, batch.header_crc)
            places.setdefault(node, []).append(target)
            if node not in best or (batch.head and not best[node].head):
                best[node] = batch
    reached = _reachable(found, best)
    leaf, closed = _leaf(found, reached, places)
    path = [leaf]
    while path[-1][0] >= 0:
        path.append((path[-1][0] - 1, best[path[-1]].previous_crc))
    path.reverse()
    root = next(scan for scan in found.values() if scan.header_crc == path[0][1])
    if root.header is None:
        raise AssertionError("scans without a header were left out")
    on_path = set(path)
    conflicts = {
        target
        for target, scan in found.items()
        if scan.header_crc != path[0][1]
        or any((b.number, b.header_crc) not in on_path and (b.number <= leaf[0] or closed) for b in scan.batches)
    }
    return Truth(
        header=root.header,
        header_length=root.header_length,
        batches=tuple(best[node] for node in path[1:]),
        closed=closed,
        holders=tuple(tuple(t for t in places[node] if t not in conflicts and _is_whole(found[t], node[0])) for node in path[1:]),
        committed=max(scan.last_committed for target, scan in found.items() if target not in conflicts or len(conflicts) == len(found)),
        stray=any(b.number > leaf[0] for t, scan in found.items() if t not in conflicts for b in scan.batches),
        conflicts=frozenset(conflicts),
    )


def _reachable(scans: Mapping[str, ScanResult], best: Mapping[_Node, Batch]) -> dict[_Node, int]:
    """The nodes that hang on a volume header by an unbroken chain, with the offset behind each."""
    reached: dict[_Node, int] = {(-1, scan.header_crc): scan.header_length for scan in scans.values()}
    for node in sorted(best):
        batch = best[node]
        if reached.get((batch.number - 1, batch.previous_crc)) == batch.offset:
            reached[node] = batch.end
    return reached


def _leaf(scans: Mapping[str, ScanResult], reached: Mapping[_Node, int], places: Mapping[_Node, list[str]]) -> tuple[_Node, bool]:
    """Where the truth ends, and whether a closed copy says so. The longest wins, then the one with more copies."""

    def rank(node: _Node) -> tuple[int, int, int]:
        return node[0], len(places[node]), node[1]

    closed: set[_Node] = set()
    for scan in scans.values():
        last = scan.batches[-1] if scan.batches else None
        node = (last.number, last.header_crc) if last else (-1, scan.header_crc)
        if scan.closed and node in reached:
            closed.add(node)
    return max(closed or reached, key=rank), bool(closed)


def _is_whole(scan: ScanResult, number: int) -> bool:
    return not any(damage.batch == number and damage.kind not in _HARMLESS for damage in scan.damage)
