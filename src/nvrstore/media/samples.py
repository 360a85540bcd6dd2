"""The samples of a fragment, for those who read: sizes from `trun`, bytes from `mdat`. Reads only what media/fragment.py writes."""

from __future__ import annotations

import struct
from typing import NamedTuple

from nvrstore.checksum import Buffer
from nvrstore.errors import FormatError
from nvrstore.media.fragment import ENTRIES_AT, ENTRY_BYTES, MDAT_HEADER_BYTES, SYNC, TRUN_AT


class StoredSample(NamedTuple):
    """One sample. `offset` is the composition offset in ticks: pts - dts."""

    data: memoryview
    duration: int
    keyframe: bool
    offset: int


def samples_of(fragment: Buffer) -> list[StoredSample]:
    """The samples of `moof` + `mdat`, without copying. Raises FormatError for anything else."""
    view = memoryview(fragment)
    if len(view) < ENTRIES_AT or bytes(view[4:8]) != b"moof" or bytes(view[TRUN_AT + 4 : TRUN_AT + 8]) != b"trun":
        raise FormatError("this is no fragment")
    (count,) = struct.unpack_from(">I", view, TRUN_AT + 12)
    at = ENTRIES_AT + ENTRY_BYTES * count + MDAT_HEADER_BYTES
    samples: list[StoredSample] = []
    if at > len(view):
        raise FormatError("its `trun` does not fit")
    for duration, size, flags, offset in struct.iter_unpack(">IIIi", view[ENTRIES_AT : ENTRIES_AT + ENTRY_BYTES * count]):
        samples.append(StoredSample(view[at : at + size], duration, flags == SYNC, offset))
        at += size
    if at != len(view):
        raise FormatError("its samples do not fill its `mdat`")
    return samples
