"""Batches: what one group commit writes, built once in an extent of the pool, parsed and checked by scanners.

    uuid(batch header)  [uuid(records)]  { prft moof mdat } x n  free…4096            lengths, structs, seeds: layout.py

A fragment depends on its volume in three fields only (`mfhd` sequence, `track_ID`, `tfdt`); they are set here, in the
extent, when the batch is built, also on replay. Its bytes are copied once, here or where an ingest worker lays the batch out,
and read once, by the checksum.

Invariants: a batch is a function of the volume's header, of the batches before it and of its arguments; a built batch
is never changed. `tfdt` never runs backwards within a track of a volume. Knows no file and no target.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Final

from nvrstore.checksum import Buffer, crc32c
from nvrstore.errors import DamagedError, FormatError
from nvrstore.journal.header import header_crc, pack_header
from nvrstore.journal.layout import (
    BATCH_FIXED,
    BATCH_HEAD_MIN,
    BATCH_UUID,
    CRC,
    ENTRY,
    PRFT,
    UUID_HEAD,
    padded,
    padding,
    seed,
)
from nvrstore.journal.model import Batch, Damage, DamageKind, FragmentEntry, VolumeHeader
from nvrstore.journal.records import pack_records, parse_records
from nvrstore.limits import BATCH_BYTES_MAX, BLOCK_BYTES, RECORDS_BYTES_MAX
from nvrstore.media.boxes import HEADER
from nvrstore.model import MFHD_SEQUENCE_AT, NS_PER_S, TFDT_TIME_AT, TFHD_TRACK_AT, Fragment, FragmentFlag, Record

NTP_EPOCH_S: Final = 2_208_988_800  # 1900 to 1970 (RFC 5905 6)
PRFT_FLAGS: Final = 24  # ISO/IEC 14496-12 8.16.5: the UTC at which the frame was captured
BATCH_SIGNATURE: Final = b"uuid" + BATCH_UUID  # at byte 4 of every batch: what a search looks for
_VERSION: Final = 1
_FLAGS: Final = tuple(FragmentFlag(value) for value in range(16))
_DISCONTINUITY: Final = FragmentFlag.DISCONTINUITY.value
_U32: Final = struct.Struct(">I")
_U64: Final = struct.Struct(">Q")


def batch_size(fragments: Sequence[Fragment], records_length: int = 0) -> int:
    """Exact bytes of a batch of `fragments` and a box of records: a multiple of 4096."""
    body = sum(fragment.length for fragment in fragments) + len(fragments) * (PRFT.size + ENTRY.size)
    return padded(BATCH_HEAD_MIN + records_length + body)


def positions(lengths: Sequence[int]) -> list[int]:
    """Where fragments of these lengths begin in a batch without records."""
    at = BATCH_HEAD_MIN + len(lengths) * ENTRY.size
    return [at + PRFT.size * (i + 1) + before for i, before in enumerate(accumulate(lengths[:-1], initial=0))] if lengths else []


def lay_out(view: memoryview, fragments: Sequence[Fragment]) -> None:
    """Copy `fragments` to where they stand in a batch without records (`positions`).

    `view` has `batch_size(fragments)` bytes. `VolumeBuilder.build` makes the batch of it, in place: for processes that
    gather what another one will write.
    """
    for fragment, at in zip(fragments, positions([fragment.length for fragment in fragments]), strict=True):
        for part in fragment.parts:
            end = at + len(part)
            view[at:end] = part
            at = end


class VolumeBuilder:
    """Builds one volume: `header_bytes`, which it begins with, and then its batches in order.

    State: where the next batch goes, the chain, and per track the end of its last fragment. A failed `build` leaves it as it was.
    """

    def __init__(self, header: VolumeHeader) -> None:
        self.header: Final = header
        self.header_bytes: Final = pack_header(header)
        self.number = 0  # of the next batch
        self.offset = len(self.header_bytes)  # of the next batch
        self._previous_crc = header_crc(self.header_bytes)
        self._sequence = 1  # mfhd of the next fragment
        self._tracks: Final = {t.track: (i, t.config.timescale) for i, t in enumerate(header.tracks, start=1)}
        self._ends: dict[int, tuple[int, int, int]] = {}  # track_ID: end in ticks, session, index of the sample that would follow

    def fits(self, fragment: Fragment) -> bool:
        """Whether `fragment` can stand in this volume: its track does, unchanged, and it is not older than the volume's origin."""
        known = self._tracks.get(fragment.track)
        if known is None or fragment.utc_ns < self.header.origin_ns:
            return False
        return self.header.tracks[known[0] - 1].config.continues(fragment.config)

    def size(self, fragments: Sequence[Fragment], records: Sequence[Record] = ()) -> int:
        """Exact bytes of the batch that `build` would make: a multiple of 4096."""
        return batch_size(fragments, len(pack_records(records)))

    def build(
        self,
        view: memoryview,
        fragments: Sequence[Fragment],
        records: Sequence[Record],
        *,
        last_committed: int,
        utc_now_ns: int,
        in_place: bool = False,
    ) -> Batch:
        """Write the next batch into `view`, which has exactly `size(fragments, records)` bytes.

        `in_place`: `lay_out` has put these fragments there, and there are no records.
        Raises ValueError for what the caller should have asked `fits` or `size` about; nothing of it counts then.
        """
        offset, origin_ns, sequence = self.offset, self.header.origin_ns, self._sequence
        head_length = BATCH_HEAD_MIN + len(fragments) * ENTRY.size
        records_box = pack_records(records)
        at = head_length + len(records_box)
        if len(view) > BATCH_BYTES_MAX:
            raise ValueError(f"a batch of {len(view)} bytes is larger than {BATCH_BYTES_MAX}")
        if not -1 <= last_committed < self.number:
            raise ValueError(f"batch {last_committed} cannot be committed before batch {self.number} is built")
        if in_place and records:
            raise ValueError("records stand in front of fragments: no place was left for them")
        view[head_length:at] = records_box
        entries: list[FragmentEntry] = []
        ends = self._ends.copy()
        line = UUID_HEAD.size + BATCH_FIXED.size
        for fragment in fragments:
            known = self._tracks.get(fragment.track)
            if known is None:
                raise ValueError(f"the volume has no track {fragment.track}")
            track_id, timescale = known
            session, index, flags, utc_ns, duration = fragment.session, fragment.index, fragment.flags, fragment.utc_ns, fragment.duration
            bits = flags.value  # the operators of an IntFlag cost a microsecond each
            last = ends.get(track_id)
            if last is not None and last[1] == session and last[2] == index and not bits & _DISCONTINUITY:
                tfdt = last[0]
            else:  # the run's first fragment in this volume
                tfdt = (utc_ns - origin_ns) * timescale // NS_PER_S
                if tfdt < 0:
                    raise ValueError(f"a fragment of {fragment.track} is older than the volume's origin")
                if last is not None and tfdt < last[0]:
                    tfdt = last[0]
            ends[track_id] = (tfdt + duration, session, index + fragment.samples)

            seconds, rest_ns = divmod(utc_ns, NS_PER_S)
            ntp = (seconds + NTP_EPOCH_S & 0xFFFFFFFF) << 32 | (rest_ns << 32) // NS_PER_S
            moof = at + PRFT.size
            PRFT.pack_into(view, at, PRFT.size, b"prft", 1 << 24 | PRFT_FLAGS, track_id, ntp, tfdt)
            prft_crc = crc32c(view[at:moof])
            at = moof
            for part in fragment.parts:
                end = at + len(part)
                if not in_place:
                    view[at:end] = part
                at = end
            if in_place and bytes(view[moof + 4 : moof + 8]) != b"moof":
                raise ValueError(f"there is no fragment of {fragment.track} at byte {moof} of the batch")
            if at - moof != fragment.length:
                raise ValueError(f"the parts of a fragment of {fragment.track} have {at - moof} bytes, not {fragment.length}")
            _U32.pack_into(view, moof + MFHD_SEQUENCE_AT, sequence)
            _U32.pack_into(view, moof + TFHD_TRACK_AT, track_id)
            _U64.pack_into(view, moof + TFDT_TIME_AT, tfdt)
            sequence += 1
            crc = crc32c(view[moof:at])
            length, samples = fragment.length, fragment.samples
            ENTRY.pack_into(view, line, track_id, moof, length, samples, utc_ns, tfdt, duration, session, index, bits, crc, prft_crc, 0)
            line += ENTRY.size
            entries.append(FragmentEntry(track_id, moof, length, utc_ns, duration, samples, session, index, flags, crc, tfdt, prft_crc))
        if padded(at) != len(view):
            raise ValueError(f"a batch of {padded(at)} bytes was given {len(view)}")
        view[at:] = padding(at)

        records_crc = crc32c(records_box)
        UUID_HEAD.pack_into(view, 0, head_length, b"uuid", BATCH_UUID)
        BATCH_FIXED.pack_into(
            view,
            UUID_HEAD.size,
            _VERSION,
            0,
            len(entries),
            self.number,
            last_committed,
            utc_now_ns,
            len(view),
            self._previous_crc,
            len(records_box),
            records_crc,
            bytes(32),
        )
        header_crc = crc32c(view[: head_length - CRC.size], seed(self.header.volume_id, offset))
        CRC.pack_into(view, head_length - CRC.size, header_crc)
        batch = Batch(
            number=self.number,
            offset=offset,
            length=len(view),
            last_committed=last_committed,
            header_crc=header_crc,
            entries=tuple(entries),
            records=tuple(records),
            previous_crc=self._previous_crc,
            built_ns=utc_now_ns,
            head_length=head_length,
            records_length=len(records_box),
            records_crc=records_crc,
            head=bytes(view[: head_length + len(records_box)]),
        )
        self._ends, self._sequence, self._previous_crc = ends, sequence, header_crc
        self.number += 1
        self.offset += len(view)
        return batch


def fragment_of(entry: FragmentEntry, batch: memoryview, header: VolumeHeader) -> Fragment:
    """The fragment that `entry` describes, over the bytes of its batch, for replay into another volume.

    It borrows `batch` (no copy): that memory must stay until the fragment was built into its next batch, which sets the
    three volume-dependent fields again.
    """
    track = header.tracks[entry.track_id - 1]
    return Fragment(
        track=track.track,
        config=track.config,
        session=entry.session,
        index=entry.index,
        samples=entry.samples,
        utc_ns=entry.utc_ns,
        duration=entry.duration,
        flags=entry.flags,
        parts=(batch[entry.offset : entry.offset + entry.length],),
        length=entry.length,
    )


# --- reading ---------------------------------------------------------------------------------------------------


def head_length(prefix: Buffer) -> int | None:
    """Bytes of the batch header and the records box behind it, as the first 104 bytes say; None where they begin no batch.

    Only a claim, until `parse_batch` has checked it; bounded by what a batch can hold.
    """
    if len(prefix) < UUID_HEAD.size + BATCH_FIXED.size:
        return None
    size, kind, extended = UUID_HEAD.unpack_from(prefix)
    if kind != b"uuid" or extended != BATCH_UUID or not BATCH_HEAD_MIN <= size <= BATCH_BYTES_MAX:
        return None
    records_length: int = BATCH_FIXED.unpack_from(prefix, UUID_HEAD.size)[8]
    return int(size) + records_length if records_length <= RECORDS_BYTES_MAX else int(size)


def parse_batch(buffer: Buffer, offset: int, header: VolumeHeader, *, path: str = "") -> Batch:
    """The batch whose header box begins `buffer` and lies at `offset` of the volume: header and directory, without records.

    Raises FormatError where there is no batch header, DamagedError where its CRC does not match. Says nothing about
    what follows the header (`read_records`, `check_payload`), nor about the chain.
    """
    view = memoryview(buffer)
    length = head_length(view)
    if length is None:
        raise FormatError("there is no batch header here", path=path, offset=offset)
    (size,) = _U32.unpack_from(view)
    if len(view) < size:
        raise FormatError("a batch header is cut off", path=path, offset=offset)
    (crc,) = CRC.unpack_from(view, size - CRC.size)
    if crc32c(view[: size - CRC.size], seed(header.volume_id, offset)) != crc:
        raise DamagedError("a batch header does not match its checksum", path=path, offset=offset)
    fixed = BATCH_FIXED.unpack_from(view, UUID_HEAD.size)
    version, flags, count, number, last_committed, built_ns, batch_length, previous_crc, records_length, records_crc, _ = fixed
    if version != _VERSION:
        raise FormatError(f"a batch header of version {version}: this program reads version {_VERSION}", path=path, offset=offset)
    if size != BATCH_HEAD_MIN + count * ENTRY.size:
        raise FormatError("a batch header has another length than its directory", path=path, offset=offset)
    lines = ENTRY.iter_unpack(view[UUID_HEAD.size + BATCH_FIXED.size : size - CRC.size])
    batch = Batch(
        number=number,
        offset=offset,
        length=batch_length,
        last_committed=last_committed,
        header_crc=crc,
        entries=tuple(
            FragmentEntry(track, at, length, utc_ns, duration, samples, session, index, _flags(bits), crc, tfdt, prft_crc)
            for track, at, length, samples, utc_ns, tfdt, duration, session, index, bits, crc, prft_crc, _ in lines
        ),
        records=(),
        previous_crc=previous_crc,
        built_ns=built_ns,
        flags=flags,
        head_length=size,
        records_length=records_length,
        records_crc=records_crc,
    )
    if (reason := _nonsense(batch, len(header.tracks))) is not None:
        raise FormatError(f"a batch header says nonsense: {reason}", path=path, offset=offset)
    return batch


def read_records(buffer: Buffer, batch: Batch, *, path: str = "") -> Batch:
    """`batch` with its records and its `head`, from the batch's first bytes. Raises DamagedError where their CRC does not match."""
    view = memoryview(buffer)
    end = batch.head_length + batch.records_length
    box = view[batch.head_length : end]
    if len(box) != batch.records_length or crc32c(box) != batch.records_crc:
        raise DamagedError("the records of a batch do not match their checksum", path=path, offset=batch.offset + batch.head_length)
    records = parse_records(box, path=path, offset=batch.offset + batch.head_length) if batch.records_length else ()
    return replace(batch, records=records, head=bytes(view[:end]))


def payload_damage(buffer: Buffer, batch: Batch) -> Iterator[Damage]:
    """Everything behind the header that is not as it was written, in order. `buffer` begins with the batch, and may be cut off."""
    view = memoryview(buffer)[: batch.length]
    at = batch.head_length + batch.records_length
    if crc32c(view[batch.head_length : at]) != batch.records_crc or len(view) < at:
        yield Damage(DamageKind.RECORDS, batch.offset + batch.head_length, batch.records_length, batch.number)
    for entry in batch.entries:
        if entry.offset != at and (crc32c(view[at : entry.offset]) != entry.prft_crc or len(view) < entry.offset):
            yield Damage(DamageKind.PRFT, batch.offset + at, entry.offset - at, batch.number)
        at = entry.offset + entry.length
        whole = view[entry.offset : at]
        if crc32c(whole) != entry.crc or len(whole) != entry.length:
            erased = bytes(whole[:8]) == HEADER.pack(entry.length, b"free")
            kind = DamageKind.ERASED if erased else DamageKind.FRAGMENT
            yield Damage(kind, batch.offset + entry.offset, entry.length, batch.number)
    if bytes(view[at:]) != padding(at):
        yield Damage(DamageKind.PADDING, batch.offset + at, batch.length - at, batch.number)


def check_payload(buffer: Buffer, batch: Batch, *, path: str = "") -> None:
    """Raise DamagedError for the first thing behind the header that is not as it was written."""
    for damage in payload_damage(buffer, batch):
        raise DamagedError(f"{damage.kind} of batch {batch.number}: not as it was written", path=path, offset=damage.offset)


def _flags(bits: int) -> FragmentFlag:
    return _FLAGS[bits] if bits < len(_FLAGS) else FragmentFlag(bits)


def _nonsense(batch: Batch, tracks: int) -> str | None:
    """What a header whose checksum matches can still get wrong, so that nobody reads outside of the batch."""
    at = batch.head_length + batch.records_length
    if not at <= batch.length <= BATCH_BYTES_MAX or batch.length % BLOCK_BYTES:
        return f"a batch of {batch.length} bytes"
    if not -1 <= batch.last_committed < batch.number:
        return f"batch {batch.last_committed} committed before batch {batch.number}"
    for entry in batch.entries:
        if entry.offset - at not in (0, PRFT.size):
            return f"a fragment at byte {entry.offset}"
        if not 1 <= entry.track_id <= tracks:
            return f"a fragment of track {entry.track_id}"
        at = entry.offset + entry.length
    return None if padded(at) == batch.length else f"{at} bytes in a batch of {batch.length}"
