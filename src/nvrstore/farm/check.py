"""Which frames are there, intact, once: the answer from the access units alone.

    access units of an archive --> parse_sei --> FrameStamp --> CRC of the slices == stamp.crc ?  --> FrameReport
    Farm.sent(i) -> SentFrames ----------------------------------------------------------------------> .lost(sent)

An access unit is given as it lies in `mdat` (4-byte lengths) or in Annex B form. It counts as *intact* if it carries a whole
stamp and its slices have the checksum that the stamp names. Nothing is decoded, and nothing but the farm's own stamp is believed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nvrstore.checksum import Buffer
from nvrstore.farm import nal as _nal
from nvrstore.farm.nal import Codec
from nvrstore.farm.ranges import FrameRange, Ranges, SentFrames, subtract
from nvrstore.farm.stamp import FrameStamp, parse_stamp


@dataclass(frozen=True, slots=True)
class FrameReport:
    """What was found of one stream.

    `missing` are the holes between the first and the last intact frame; `lost` compares with what was sent.
    """

    stream: int | None  # None: no stamp at all
    frames: int  # distinct frames that are there and intact
    ranges: tuple[FrameRange, ...]  # their numbers
    missing: tuple[FrameRange, ...]
    duplicated: tuple[int, ...]  # numbers that are there more than once, intact
    damaged: tuple[int, ...]  # numbers of stamps whose slices have another checksum
    unstamped: int  # access units without a whole stamp
    disordered: int  # intact frames that come after a frame with a higher number

    @property
    def whole(self) -> bool:
        """No hole, no duplicate, no damage, in order."""
        return not (self.missing or self.duplicated or self.damaged or self.unstamped or self.disordered)

    def lost(self, sent: SentFrames) -> tuple[FrameRange, ...]:
        """Frames that were sent and are not here intact."""
        return subtract(sent.ranges, self.ranges)


def _stamp_of(nals: list[bytes]) -> tuple[Codec, FrameStamp] | None:
    for unit in nals:
        found = parse_stamp(unit)
        if found is not None:
            return found
    return None


def parse_sei(au: Buffer) -> FrameStamp | None:
    """The stamp of an access unit; None where it has none, or a damaged one."""
    found = _stamp_of(_nal.split(au))
    return None if found is None else found[1]


def is_intact(au: Buffer) -> bool:
    """Whether the access unit carries a stamp, and its slices are the bytes that were stamped."""
    nals = _nal.split(au)
    found = _stamp_of(nals)
    return found is not None and _nal.slices_crc(found[0], nals) == found[1].crc


def check_access_units(units: Iterable[Buffer]) -> FrameReport:
    """Look at every access unit of one stream. Raises `ValueError` where stamps of two streams are mixed."""
    stream: int | None = None
    seen: set[int] = set()
    duplicated: set[int] = set()
    damaged: set[int] = set()
    unstamped = disordered = 0
    newest = -1
    for au in units:
        nals = _nal.split(au)
        found = _stamp_of(nals)
        if found is None:
            unstamped += 1
            continue
        codec, stamp = found
        if stream is None:
            stream = stamp.stream
        elif stream != stamp.stream:
            raise ValueError(f"access units of streams {stream} and {stamp.stream} are mixed")
        if _nal.slices_crc(codec, nals) != stamp.crc:
            damaged.add(stamp.number)
            continue
        if stamp.number in seen:
            duplicated.add(stamp.number)
            continue
        seen.add(stamp.number)
        disordered += stamp.number < newest
        newest = max(newest, stamp.number)
    ranges = Ranges(sorted(seen))
    return FrameReport(
        stream=stream,
        frames=len(seen),
        ranges=ranges.frozen(),
        missing=ranges.holes(),
        duplicated=tuple(sorted(duplicated)),
        damaged=tuple(sorted(damaged)),
        unstamped=unstamped,
        disordered=disordered,
    )
