"""What a volume begins with: `ftyp moov uuid(volume header) free`, a multiple of 4096 bytes.

    ftyp | moov | uuid box head 24 | fixed 72 | JSON | CRC-32C of every byte before it, from offset 0 | free, zeroes

The fixed part: version u16, flags u16, bytes of JSON u32, volume id 16, session u64, term u64, number u64, created_ns i64,
origin_ns i64, set u32, lane u32. The JSON: {"journal", "journal_id", "recorder", "members": [[target, target id, role]],
"tracks": [[stream, media, codec, width, height, sample rate, channels]]}, one per `trak` of the `moov`, in its order (the
sample entry of an MP4 cannot say rates over 65,535 Hz). Timescales and the streams' human names stand in the `moov` alone.

Invariant: `read_header(pack_header(h))` is `h` again (but for track_ID and handler name, which `moov` sets in each `trak`).
Every bit of the header is checked: by the CRC, or because the `free` box can have only one value. Reads no file: whoever
does asks `header_length` how much to read.
"""

from __future__ import annotations

import json
from typing import Any, Final

from nvrstore.checksum import Buffer, crc32c
from nvrstore.errors import DamagedError, FormatError
from nvrstore.journal.layout import CRC, FORMAT_VERSION, UUID_HEAD, VOLUME_FIXED, VOLUME_UUID, padded, padding
from nvrstore.journal.model import VolumeHeader, VolumeTrack
from nvrstore.limits import BLOCK_BYTES, HEADER_BYTES_MAX, LANE_TRACKS_MAX
from nvrstore.media.boxes import HEADER
from nvrstore.media.moov import ftyp, moov, tracks_of
from nvrstore.model import Epoch, Media, MemberRef, Role, TrackConfig, TrackKey

_ORDER: Final = (b"ftyp", b"moov", b"uuid")


def pack_header(header: VolumeHeader) -> bytes:
    """The bytes that a volume begins with. Raises ValueError for what no volume can hold: too many tracks, one track twice."""
    if len(header.tracks) > LANE_TRACKS_MAX:
        raise ValueError(f"a volume has at most {LANE_TRACKS_MAX} tracks, not {len(header.tracks)}")
    if len({track.track for track in header.tracks}) != len(header.tracks):
        raise ValueError("a track stands twice in a volume")
    body = json.dumps(
        {
            "journal": header.journal,
            "journal_id": header.journal_id,
            "recorder": header.recorder,
            "members": [[member.target, member.target_id, member.role.value] for member in header.members],
            "tracks": [_line(track) for track in header.tracks],
        },
        ensure_ascii=False,
        separators=(",", ":"),
    ).encode()
    fixed = VOLUME_FIXED.pack(
        FORMAT_VERSION,
        0,
        len(body),
        bytes.fromhex(header.volume_id),
        header.session,
        header.epoch.term,
        header.number,
        header.created_ns,
        header.origin_ns,
        header.epoch.set,
        header.lane,
    )
    head = UUID_HEAD.pack(UUID_HEAD.size + len(fixed) + len(body) + CRC.size, b"uuid", VOLUME_UUID)
    front = b"".join((ftyp(), moov(header.tracks), head, fixed, body))
    whole = front + CRC.pack(crc32c(front))
    if padded(len(whole)) > HEADER_BYTES_MAX:
        raise ValueError(f"a volume header of {len(whole)} bytes is larger than {HEADER_BYTES_MAX}")
    return whole + padding(len(whole))


def header_length(prefix: Buffer, *, path: str = "") -> int:
    """How many bytes of the volume must be read to know its header: the header's whole length, once `prefix` tells it.

    Read that many and ask again, until the answer is not greater than what was read. Raises FormatError for what is no volume.
    """
    at = 0
    for expected in _ORDER:
        if len(prefix) < at + HEADER.size:
            return -(-(at + HEADER.size) // BLOCK_BYTES) * BLOCK_BYTES
        size, kind = HEADER.unpack_from(prefix, at)
        if kind != expected or size < HEADER.size:
            raise FormatError(f"this is no volume: box {expected.decode()!r} is not where it should be", path=path, offset=at)
        at += size
        if at > HEADER_BYTES_MAX:
            raise FormatError(f"a volume header larger than {HEADER_BYTES_MAX} bytes", path=path, offset=at - size)
    return padded(at)


def header_crc(buffer: Buffer, *, path: str = "") -> int:
    """The CRC that stands in a whole volume header: the first link of the chain of batches."""
    return int(CRC.unpack_from(buffer, _parts(buffer, path)[1] - CRC.size)[0])


def read_header(buffer: Buffer, path: str = "") -> tuple[VolumeHeader, int]:
    """The header that `buffer` begins with, and its length in bytes, which is where the first batch begins.

    Raises FormatError where there is none, or only a part of one, or one of a later version; DamagedError where it was changed.
    """
    view = memoryview(buffer)
    uuid, end, length = _parts(view, path)
    if len(view) < length:
        raise FormatError(f"a volume header of {length} bytes is cut off", path=path, offset=len(view))
    if crc32c(view[: end - CRC.size]) != CRC.unpack_from(view, end - CRC.size)[0]:
        raise DamagedError("the volume header does not match its checksum", path=path)
    if bytes(view[end:length]) != padding(end):
        raise DamagedError("the padding of the volume header is not zero", path=path, offset=end)
    kind, extended = UUID_HEAD.unpack_from(view, uuid)[1:]
    if kind != b"uuid" or extended != VOLUME_UUID or end - uuid < UUID_HEAD.size + VOLUME_FIXED.size + CRC.size:
        raise FormatError("this is an MP4 file, but no volume", path=path, offset=uuid)
    fixed = VOLUME_FIXED.unpack_from(view, uuid + UUID_HEAD.size)
    version, _, json_length, volume_id, session, term, number, created_ns, origin_ns, set_number, lane = fixed
    if version != FORMAT_VERSION:
        raise FormatError(f"a volume of format {version}: this program reads format {FORMAT_VERSION}", path=path, offset=uuid)
    at = uuid + UUID_HEAD.size + VOLUME_FIXED.size
    if at + json_length != end - CRC.size:
        raise FormatError("the volume header has another length than its parts", path=path, offset=uuid)
    moov_at = HEADER.unpack_from(view)[0]
    try:
        body = json.loads(bytes(view[at : at + json_length]).decode())
        header = VolumeHeader(
            volume_id=volume_id.hex(),
            journal=str(body["journal"]),
            journal_id=str(body["journal_id"]),
            recorder=str(body["recorder"]),
            session=session,
            epoch=Epoch(term, set_number),
            lane=lane,
            number=number,
            members=tuple(MemberRef(target, target_id, Role(role)) for target, target_id, role in body["members"]),
            created_ns=created_ns,
            origin_ns=origin_ns,
            tracks=_tracks(bytes(view[moov_at:uuid]), body["tracks"]),
        )
    except FormatError as error:
        raise FormatError(f"the `moov` cannot be read: {error.message}", path=path, offset=moov_at) from error
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"the volume header says nonsense: {error!r}", path=path, offset=uuid) from error
    return header, length


def _parts(buffer: Buffer, path: str) -> tuple[int, int, int]:
    """Where the `uuid` box begins and ends, and where the header ends."""
    length = header_length(buffer, path=path)
    at = 0
    for _ in _ORDER:
        if len(buffer) < at + HEADER.size:
            raise FormatError("a volume header is cut off", path=path, offset=len(buffer))
        start, at = at, at + HEADER.unpack_from(buffer, at)[0]
    return start, at, length


def _line(track: VolumeTrack) -> list[str | int]:
    config = track.config
    return [track.track.stream, config.media.value, config.codec, config.width, config.height, config.sample_rate, config.channels]


def _tracks(box: bytes, lines: list[list[Any]]) -> tuple[VolumeTrack, ...]:
    tracks = []
    for found, line in zip(tracks_of(box), lines, strict=True):
        stream, media, codec, width, height, sample_rate, channels = line
        config = TrackConfig(
            Media(media), str(codec), found.config.timescale, found.config.trak, int(width), int(height), int(sample_rate), int(channels)
        )
        tracks.append(VolumeTrack(TrackKey(str(stream), Media(media)), found.name, config))
    return tuple(tracks)
