"""Volumes on memory targets: put there whole, torn or broken, recovered, and compared."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from random import Random

from tests.support.steps import content, drive, memory_targets, put, tree
from tests.support.volumes import GATE, YARD, Volume, fragment, header

from nvrstore.failover.terms import Claim
from nvrstore.journal.index import volume_index
from nvrstore.journal.names import volume_path
from nvrstore.model import MemberRef, Role
from nvrstore.replicate.claim import put_claim
from nvrstore.replicate.copying import Progress
from nvrstore.replicate.inventory import Survey, survey
from nvrstore.replicate.recover import Recovered, recover_volume
from nvrstore.replicate.resync import ResyncPlan, ResyncReport, expect, plan_resync, resync
from nvrstore.targets.memory import MemoryTarget

Targets = dict[str, MemoryTarget]
MINE = Claim("main", 9, "nvr-1", "a" * 32, 77, 0)


def targets_with_claim(names: str) -> Targets:
    """Targets that all hold this recorder's claim."""
    targets = memory_targets(names)
    for name in names:
        drive(put_claim(name, MINE), targets)
    return targets


def members(targets: Mapping[str, MemoryTarget], names: str) -> tuple[MemberRef, ...]:
    return tuple(MemberRef(n, targets[n].id, Role.PRIMARY if i == 0 else Role.STANDBY) for i, n in enumerate(names))


def make_volume(
    targets: Mapping[str, MemoryTarget],
    names: str,
    *,
    batches: int = 4,
    number: int = 42,
    closed: bool = False,
    lag: int = 1,
    volume_id: str = "",
    sizes: int = 40,
    **changes: object,
) -> Volume:
    """A volume whose header names `names` as members; each batch knows those before it as committed, `lag` behind."""
    volume_id = volume_id or f"{number:032x}"
    volume = Volume.begin(header(members=members(targets, names), number=number, volume_id=volume_id, **changes))
    for n in range(batches):
        fragments = [fragment(GATE, at_s=60 + n, index=5 * n, sizes=sizes), fragment(YARD, at_s=60.2 + n, index=5 * n, sizes=sizes)]
        volume.add(fragments, last_committed=max(-1, n - lag))
    if closed:
        volume.close()
    return volume


def path_of(volume: Volume) -> str:
    return volume_path(volume.builder.header)


def store(targets: Mapping[str, MemoryTarget], volume: Volume, **copies: bytes | bytearray) -> str:
    """Put these bytes under the volume's path on the targets named; returns the path."""
    for name, data in copies.items():
        put(targets[name], path_of(volume), bytes(data))
    return path_of(volume)


def cut_at(volume: Volume, batch: int, extra: int = 0) -> bytes:
    """The volume's bytes up to the end of `batch` (-1: the header only), plus `extra`."""
    end = volume.batches[batch].end if batch >= 0 else volume.batches[0].offset
    return bytes(volume.data[: end + extra])


def torn(volume: Volume, batch: int, rng: Random, *, tail: int = 0) -> bytes:
    """The volume's bytes as a power cut leaves them: `batch` half written, preallocated zeroes behind."""
    place = volume.batches[batch]
    data = bytearray(volume.data[: place.offset])
    half = bytearray(place.length)
    for sector in range(0, place.length, 512):
        if rng.random() < 0.5:
            half[sector : sector + 512] = volume.data[place.offset + sector : place.offset + sector + 512]
    if bytes(half) == bytes(volume.data[place.offset : place.end]):
        half[-512:] = bytes(512)
        half[:512] = bytes(512)
    return bytes(data + half) + bytes(tail)


def flipped(data: bytes | bytearray, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 0x10
    return bytes(changed)


def look(targets: Targets, names: str = "") -> Survey:
    return drive(survey(list(names or targets), "main"), targets)


def recover(
    targets: Targets,
    *,
    names: str = "",
    configured: str = "",
    in_place_ok: Callable[[str, str], bool] = lambda target, path: True,
    changes_max: int | None = None,
    only: Collection[str] = (),
    deep: bool = False,
) -> list[Recovered]:
    """Recover everything that is not settled (all with `deep`), as the recorder would."""
    seen = look(targets, names)
    results = []
    for volume in seen.volumes:
        if (volume.settled and not deep) or (only and volume.volume_id not in only):
            continue
        steps = recover_volume(
            volume,
            own=MINE.key,
            configured={n: targets[n].id for n in configured or targets},
            answered=seen.answered,
            in_place_ok=in_place_ok,
            deep=deep,
        )
        results.append(drive(steps, targets, changes_max=changes_max))
    return results


def copies(targets: Mapping[str, MemoryTarget], path: str) -> dict[str, bytes]:
    """The bytes of each copy at `path`."""
    return {name: content(target, path) for name, target in targets.items() if path in target.files.files}


def closed(volume: Volume) -> bytes:
    """What every copy shall be: all batches, and the index."""
    return bytes(volume.data[: volume.batches[-1].end]) + volume_index(volume.builder.header, volume.batches)


def closed_at(volume: Volume, batch: int) -> bytes:
    return cut_at(volume, batch) + volume_index(volume.builder.header, volume.batches[: batch + 1])


def plan(targets: Targets, members: str, **options: object) -> ResyncPlan:
    return plan_resync(look(targets), list(members), recorder="nvr-1", held_s=0, **options)  # type: ignore[arg-type]


def run(targets: Targets, the_plan: ResyncPlan, *, changes_max: int | None = None, progress: Progress | None = None) -> ResyncReport:
    if progress is not None:
        expect(progress, the_plan.copies)
    return drive(resync(the_plan.copies, own=MINE.key, progress=progress), targets, changes_max=changes_max)


def volumes(targets: Targets, name: str) -> dict[str, bytes]:
    return {path: data for path, data in tree(targets[name]).items() if path.endswith(".mp4")}


def series(targets: Targets, count: int, *, first: int = 0, sizes: int = 40) -> list[Volume]:
    return [make_volume(targets, "".join(targets)[:2], batches=2, number=first + n, closed=True, sizes=sizes) for n in range(count)]
