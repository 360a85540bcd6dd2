"""Moving a volume's bytes from copy to copy: nothing is written that was not checked, nothing is trusted that was not synced.

    sources ──read ≤ 1 MiB──▶ batches, each checked against its header and CRCs ──write ≤ 1 MiB──▶ destination
              a little ahead  what one copy has damaged is taken from the next

A whole copy is written to `<journal>/.resync/<volume id>.part`, synced, and renamed: readers see all of it or nothing. A
partial file that is there already is checked from its start and continued. Damage that no copy can mend is copied as it is
and reported: the rest of the volume is worth a second copy too.
All of it is `Steps`; reads go past the page cache, which after a failed sync shows what the disk does not have.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from nvrstore.checksum import Buffer, crc32c
from nvrstore.errors import FormatError, TargetError, TargetIOError
from nvrstore.failover.terms import ClaimKey
from nvrstore.journal.batch import parse_batch, payload_damage
from nvrstore.journal.header import read_header
from nvrstore.journal.model import Batch, Damage, DamageKind, VolumeHeader
from nvrstore.journal.names import journal_dir
from nvrstore.limits import KEEPER_PIECE_BYTES
from nvrstore.replicate.claim import hold_term
from nvrstore.replicate.truth import Truth
from nvrstore.targets.contract import Call, Request, Steps, Verb
from nvrstore.targets.steps import ask, expect, list_all

RESYNC_DIR: Final = ".resync"
AHEAD: Final = 6  # pieces that are read early: the source reads while the destination writes


class ReadBackError(TargetIOError):
    """What was written and synced is not what is read there: the place does not take it."""


@dataclass(slots=True)
class Progress:
    """How far a piece of work is, for whoever looks: written by the steps, read by anybody."""

    bytes_total: int = 0
    bytes_done: int = 0  # copied, or found to be there already
    volumes_total: int = 0
    volumes_done: int = 0
    current: str = ""  # path of the volume at hand

    def seconds_left(self, taken_s: float) -> int | None:
        """How long the rest takes at the pace of the first `taken_s`; None while nothing is done."""
        return round(taken_s * max(0, self.bytes_total - self.bytes_done) / self.bytes_done) if self.bytes_done else None


@dataclass(frozen=True, slots=True)
class Copied:
    """A volume that now lies on one more target. `damage` is what no source had whole."""

    target: str
    path: str
    length: int
    bytes_written: int
    damage: tuple[Damage, ...] = field(default=())


class ConflictError(TargetError):
    """Other bytes stand where a volume's copy should go: neither is overwritten."""

    hint = "`nvrstore verify` tells which volumes these are; move one of the files out of the journal's folder"


def part_path(journal: str, volume_id: str) -> str:
    """Where a copy grows before it gets its name."""
    return f"{journal_dir(journal)}/{RESYNC_DIR}/{volume_id}.part"


def copy_volume(
    truth: Truth,
    sources: Mapping[str, str],
    target: str,
    path: str,
    *,
    own: ClaimKey,
    index: bytes = b"",
    replace: bool = False,
    progress: Progress | None = None,
) -> Steps[Copied]:
    """Write a whole copy of what `truth` says to `target` under `path`, closed by `index` where it is given.

    `sources` are the paths of the copies by target; a source may be `target` itself. `replace`: a copy that stands
    there is known, and goes. Raises FencedError, ConflictError, FormatError when no source has the header, and
    TargetError when the destination fails, or no source can be read at all.
    """
    header = truth.header
    part = part_path(header.journal, header.volume_id)
    yield from hold_term(target, header.journal, own)
    if not replace:
        yield from _must_be_free(target, path)
    front = yield from fetch_header(truth, sources)
    yield from ask(target, Request(Verb.MKDIR, _folder(part)), f"make {_folder(part)}")
    there = yield from _resume(target, part, front, truth)
    if progress is not None:
        progress.current = path
        progress.bytes_done += there
    written = 0
    damage: list[Damage] = []
    if there == 0:
        yield from write_at(target, part, 0, front)
        there = len(front)
        written += len(front)
    stretches = _stretches([batch for batch in truth.batches if batch.end > there])
    writes: list[Call] = []  # of the stretch before: they go on while the next one is read
    for n, stretch in enumerate(stretches):
        data, found = yield from _fetch(stretch, truth, sources, ahead=stretches[n + 1 : n + 1 + AHEAD], beside=writes)
        damage += found
        yield from _written(writes, progress)
        writes = _write_calls(target, part, stretch[0].offset, data)
        written += len(data)
    yield from _written(writes, progress)
    if index:
        yield from write_at(target, part, truth.end, index, progress)
        written += len(index)
    length = truth.end + len(index)
    stat = (yield from ask(target, Request(Verb.STAT, part), f"look at {part}")).json()
    if stat["size"] != length:  # an earlier, longer try
        yield from ask(target, Request(Verb.TRUNCATE, part, length=length), f"truncate {part}")
    yield from ask(target, Request(Verb.SYNC, part), f"sync {part}")
    yield from hold_term(target, header.journal, own)
    yield from ask(target, Request(Verb.MKDIR, _folder(path)), f"make {_folder(path)}")
    if not replace:
        yield from _must_be_free(target, path)
    yield from ask(target, Request(Verb.RENAME, part, path2=path), f"name {path}")
    return Copied(target, path, length, written, tuple(damage))


def drop_parts(target: str, journal: str, wanted: Sequence[str] = ()) -> Steps[int]:
    """Remove partial copies, except those of `wanted` volume ids; returns how many went. Raises TargetError."""
    folder = f"{journal_dir(journal)}/{RESYNC_DIR}"
    keep = {part_path(journal, volume_id).rpartition("/")[2] for volume_id in wanted}
    gone = 0
    for file in (yield from list_all(target, folder, missing_ok=True)):
        if file.name not in keep and not file.directory:
            yield from ask(target, Request(Verb.UNLINK, f"{folder}/{file.name}"), f"remove {folder}/{file.name}")
            gone += 1
    return gone


def fetch_header(truth: Truth, sources: Mapping[str, str]) -> Steps[bytes]:
    """The bytes of the volume's header, from the first copy that has them whole. Raises FormatError when none has."""
    for target, path in sources.items():
        data = yield from _read(target, path, 0, truth.header_length)
        if data is None:
            continue
        try:
            header, length = read_header(data, path)
        except FormatError:
            continue
        if header.volume_id == truth.header.volume_id and length == truth.header_length:
            return bytes(data)
    raise FormatError(f"no readable copy has a whole header of volume {truth.header.volume_id}", path=next(iter(sources.values()), ""))


def fetch_batch(
    batch: Batch, header: VolumeHeader, sources: Mapping[str, str], *, whole_on: Sequence[str] = ()
) -> Steps[tuple[bytearray, list[Damage]]]:
    """A batch's bytes, put together from the copies until all of it is whole; and what is not whole on any.

    Copies named in `whole_on` are asked first. Raises TargetError when none can be read at all, or when one that has it whole
    does not answer: what is only away is no damage, and no copy without it is made.
    """
    silent: list[str] = []
    best: bytearray | None = None
    damage: list[Damage] = []
    for target in sorted(sources, key=lambda name: name not in whole_on):
        read = yield from _read(target, sources[target], batch.offset, batch.length)
        if read is None:
            silent.append(target)
            continue
        data = bytearray(read).ljust(batch.length, b"\0")
        if best is None:
            best = data
        else:
            for hole in damage:
                at = hole.offset - batch.offset
                patched = bytearray(best)
                patched[at : at + hole.length] = data[at : at + hole.length]
                if len(batch_damage(patched, batch, header)) < len(batch_damage(best, batch, header)):
                    best = patched
        damage = batch_damage(best, batch, header)
        if not damage:
            return best, []
    if best is None:
        raise TargetError(f"batch {batch.number} of volume {header.volume_id} can be read nowhere", target=", ".join(sources))
    if away := [target for target in silent if target in whole_on]:
        raise TargetError(
            f"batch {batch.number} of volume {header.volume_id} is whole there, and cannot be read now", target=", ".join(away)
        )
    return best, damage


def _stretches(batches: Sequence[Batch]) -> list[list[Batch]]:
    """Batches that are read and written at once: small ones in a row, as many as one piece holds."""
    found: list[list[Batch]] = []
    for batch in batches:
        if found and batch.end - found[-1][0].offset <= KEEPER_PIECE_BYTES:
            found[-1].append(batch)
        else:
            found.append([batch])
    return found


def _fetch(
    stretch: Sequence[Batch], truth: Truth, sources: Mapping[str, str], *, ahead: Sequence[Sequence[Batch]], beside: Sequence[Call]
) -> Steps[tuple[bytes | bytearray, list[Damage]]]:
    """The bytes of some batches in a row: in one go from a copy that has all of them whole, or else batch by batch.

    `ahead`: the batches that are fetched next. `beside`: calls that follow when these are there.
    """
    header = truth.header
    source = next((t for t in sources if all(t in truth.holders[batch.number] for batch in stretch)), None)
    if source is not None:
        places = [(other[0].offset, other[-1].end - other[0].offset) for other in ahead]
        start = stretch[0].offset
        # Not past the page cache: the checksums say whether these are the bytes, wherever they came from.
        length = stretch[-1].end - start
        data = yield from _read(source, sources[source], start, length, ahead=places, beside=beside, fresh=False)
        if data is not None and len(data) == length:
            view = memoryview(data)
            if not any(batch_damage(view[batch.offset - start : batch.end - start], batch, header) for batch in stretch):
                return data, []
    whole, damage = bytearray(), list[Damage]()
    for batch in stretch:
        piece, found = yield from fetch_batch(batch, header, sources, whole_on=truth.holders[batch.number])
        whole += piece
        damage += found
    return whole, damage


def batch_damage(data: Buffer, batch: Batch, header: VolumeHeader) -> list[Damage]:
    """What of a batch's bytes is not as it was written. Erased fragments are as somebody wanted them."""
    found = [damage for damage in payload_damage(data, batch) if damage.kind is not DamageKind.ERASED]
    try:
        whole = parse_batch(data, batch.offset, header).header_crc == batch.header_crc
    except FormatError:
        whole = False
    if not whole:
        found.insert(0, Damage(DamageKind.BATCH_HEADER, batch.offset, batch.head_length, batch.number))
    return found


def write_at(target: str, path: str, offset: int, data: bytes | bytearray, progress: Progress | None = None) -> Steps[None]:
    """Write `data` in pieces. Not durable before a SYNC. Raises TargetError."""
    yield from _written(_write_calls(target, path, offset, data), progress)


def _write_calls(target: str, path: str, offset: int, data: bytes | bytearray) -> list[Call]:
    view = memoryview(data)
    return [
        Call(target, Request(Verb.WRITE, path, offset=offset + at, data=view[at : at + KEEPER_PIECE_BYTES]))
        for at in range(0, len(view), KEEPER_PIECE_BYTES)
    ]


def _written(calls: Sequence[Call], progress: Progress | None) -> Steps[None]:
    """Carry out writes. Raises TargetError."""
    for call in calls:
        path, length = call.request.path, len(call.request.data)
        answer = expect((yield call), call.target, f"write {path}")
        if answer.value != length:
            raise TargetIOError(call.target, errno.EIO, doing=f"write {path}: {answer.value} of {length} bytes")
        if progress is not None:
            progress.bytes_done += length


def write_checked(target: str, path: str, pieces: Sequence[tuple[int, bytes | bytearray]]) -> Steps[None]:
    """Write `pieces` (offset, bytes) into a file, sync it, and read them back past the page cache.

    Raises ReadBackError where they are not there afterwards, TargetError when that cannot be told.
    """
    for offset, data in pieces:
        yield from write_at(target, path, offset, data)
    yield from ask(target, Request(Verb.SYNC, path), f"sync {path}")
    for offset, data in pieces:
        back = yield from _read(target, path, offset, len(data))
        if back is None or len(back) != len(data) or crc32c(back) != crc32c(data):
            raise ReadBackError(target, errno.EIO, doing=f"read back byte {offset} of {path}")


def _resume(target: str, part: str, front: bytes, truth: Truth) -> Steps[int]:
    """Up to where a partial file is what would be written: it is checked, not believed."""
    there = yield from _read(target, part, 0, len(front))
    if there is None or there != front:
        return 0
    end = len(front)
    for batch in truth.batches:
        data = yield from _read(target, part, batch.offset, batch.length)
        if data is None or len(data) != batch.length or batch_damage(data, batch, truth.header):
            break
        end = batch.end
    return end


def _read(
    target: str,
    path: str,
    offset: int,
    length: int,
    *,
    ahead: Sequence[tuple[int, int]] = (),
    beside: Sequence[Call] = (),
    fresh: bool = True,
) -> Steps[bytes | None]:
    """`length` bytes at `offset`, shorter at the end of the file; zeroes where a place cannot be read, None where nothing can.

    `ahead`: offsets and lengths that will be read behind it; `beside`: calls that follow when it was read. `fresh`: past the page cache.
    """
    calls = [piece for place in ((offset, length), *ahead) for piece in _pieces(target, path, *place, fresh=fresh)]
    parts: list[bytes] = []
    known = False
    for n, call in enumerate(calls[: -(-length // KEEPER_PIECE_BYTES)]):
        want = call.request.length
        answer = yield Call(target, call.request, ahead=(*beside, *calls[n + 1 : n + 1 + AHEAD]))
        if not answer.ok and answer.errno != errno.EIO:
            return None
        known = known or answer.ok
        parts.append(answer.data if answer.ok else bytes(want))
        if len(parts[-1]) < want:
            break
    if not known:
        return None
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _pieces(target: str, path: str, offset: int, length: int, *, fresh: bool) -> list[Call]:
    """The reads of a place, as long as a keeper carries out at once."""
    return [
        Call(target, Request(Verb.READ, path, offset=offset + at, length=min(KEEPER_PIECE_BYTES, length - at), fresh=fresh))
        for at in range(0, length, KEEPER_PIECE_BYTES)
    ]


def _must_be_free(target: str, path: str) -> Steps[None]:
    stat = yield Call(target, Request(Verb.STAT, path))
    if stat.errno == errno.ENOENT:
        return
    expect(stat, target, f"look at {path}")
    raise ConflictError(f"target {target!r}: {path} exists, and is not this volume", target=target)


def _folder(path: str) -> str:
    return path.rpartition("/")[0]
