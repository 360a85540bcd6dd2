"""`ftyp` and the `moov` of a volume: all its tracks, named after their streams (ISO/IEC 14496-12 8.2).

    ftyp
    moov
      mvhd
      trak x N    from TrackConfig.trak, with track_ID = position from 1 and handler name = the stream's name
      mvex
        trex x N

Invariant: a pure function of names and configurations, so every copy of a volume has the same bytes; and
`moov(tracks_of(moov(tracks)))` is `moov(tracks)`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from nvrstore.errors import FormatError
from nvrstore.media.boxes import Box, box, find, full_box, walk
from nvrstore.model import Media, TrackConfig

NAME_BYTES_MAX: Final = 255  # of a handler name; longer ones are cut
_MATRIX: Final = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
_HANDLERS: Final = {b"vide": Media.VIDEO, b"soun": Media.AUDIO}
_CODECS: Final = {
    b"avc1": "h264",
    b"avc3": "h264",
    b"hev1": "hevc",
    b"hvc1": "hevc",
    b"Opus": "opus",
    b"sowt": "pcm_s16le",
    b"twos": "pcm_s16be",
}
# Object types in `esds` (ISO/IEC 14496-1 table 5, and mp4ra.org).
_OBJECT_TYPES: Final = {0x40: "aac", 0x69: "mp3", 0x6B: "mp3", 0x6C: "mjpeg", 0x20: "mpeg4"}


class NamedTrack(Protocol):
    """A track as a volume knows it."""

    @property
    def name(self) -> str:
        """The stream's human name."""

    @property
    def config(self) -> TrackConfig: ...


@dataclass(frozen=True, slots=True)
class FoundTrack:
    """A track that was read from a `moov`. Its `config.trak` is the `trak` box as it stands there."""

    track_id: int
    name: str
    config: TrackConfig
    sample_entry: bytes  # the four characters of its sample entry: b"avc1", b"mp4a", ...


def ftyp() -> bytes:
    """File type: fragmented MP4 whose fragments stand by themselves (iso6: default-base-is-moof), streaming brands included."""
    return box(b"ftyp", b"iso6", struct.pack(">I", 512), b"iso6", b"iso5", b"mp41")


def moov(tracks: Sequence[NamedTrack]) -> bytes:
    """The `moov` of a fragmented file with `tracks` in this order."""
    traks = [_named(track.config.trak, number, track.name) for number, track in enumerate(tracks, 1)]
    trex = [full_box(b"trex", 0, 0, struct.pack(">5I", number, 1, 0, 0, 0)) for number in range(1, len(tracks) + 1)]
    mvhd = full_box(
        b"mvhd",
        0,
        0,
        struct.pack(">IIII", 0, 0, 1000, 0),  # created, modified, timescale, duration: the fragments know
        struct.pack(">IH10x", 0x10000, 0x100),
        _MATRIX,
        struct.pack(">24xI", len(tracks) + 1),
    )
    return box(b"moov", mvhd, *traks, box(b"mvex", *trex))


def _named(trak: bytes, number: int, name: str) -> bytes:
    """`trak` with its track_ID and handler name set. Every box around a changed one is written anew, the others are copied."""
    parts = []
    for child in walk(trak, find(trak, "trak").body):
        whole = trak[child.start : child.end]
        if child.type == b"tkhd":
            header = bytearray(whole)
            struct.pack_into(">I", header, 8 + (20 if header[8] else 12), number)
            whole = bytes(header)
        elif child.type == b"mdia":
            whole = box(
                b"mdia",
                *(_handler(trak, c, name) if c.type == b"hdlr" else trak[c.start : c.end] for c in walk(trak, child.body, child.end)),
            )
        parts.append(whole)
    return box(b"trak", *parts)


def _handler(trak: bytes, hdlr: Box, name: str) -> bytes:
    """The `hdlr` box with another name (8.4.3): version, pre_defined, type and reserved words stay."""
    encoded = name.replace("\0", "").encode()[:NAME_BYTES_MAX].decode(errors="ignore").encode()
    return box(b"hdlr", trak[hdlr.body : hdlr.body + 24], encoded, b"\0")


def tracks_of(data: bytes) -> list[FoundTrack]:
    """The tracks of a `moov`, given as the box itself or as a file that begins with `ftyp moov`.

    Raises `FormatError` where it cannot be read.
    """
    outer = find(data, "moov")
    try:
        return [_track(data, child) for child in walk(data, outer.body, outer.end) if child.type == b"trak"]
    except (struct.error, IndexError) as error:
        raise FormatError(f"a track of the `moov` is cut off: {error}", offset=outer.start) from error


def _track(data: bytes, trak: Box) -> FoundTrack:
    def inside(path: str) -> Box:
        return find(data, path, trak.body, trak.end)

    tkhd, mdhd, hdlr = inside("tkhd"), inside("mdia/mdhd"), inside("mdia/hdlr")
    (track_id,) = struct.unpack_from(">I", data, tkhd.body + (20 if data[tkhd.body] else 12))
    (timescale,) = struct.unpack_from(">I", data, mdhd.body + (20 if data[mdhd.body] else 12))
    media = _HANDLERS.get(data[hdlr.body + 8 : hdlr.body + 12])
    name = data[hdlr.body + 24 : hdlr.end].split(b"\0")[0].decode(errors="replace")
    stsd = inside("mdia/minf/stbl/stsd")
    entry = next(walk(data, stsd.body + 8, stsd.end), None)
    if media is None or entry is None or timescale == 0:
        raise FormatError("a track that is neither video nor sound", offset=trak.start)
    width = height = rate = channels = 0
    if media is Media.VIDEO:
        width, height = struct.unpack_from(">HH", data, entry.body + 24)
    else:
        channels, _, _, rate = struct.unpack_from(">HHII", data, entry.body + 16)
        rate >>= 16
    config = TrackConfig(media, _codec(data, entry, media), timescale, data[trak.start : trak.end], width, height, rate, channels)
    return FoundTrack(track_id, name, config, entry.type)


def _codec(data: bytes, entry: Box, media: Media) -> str:
    """libav's name of the codec that a sample entry describes."""
    inner = entry.body + (78 if media is Media.VIDEO else 28)
    if entry.type == b"ipcm":
        flags = data[find(data, "pcmC", inner, entry.end).body + 4]
        return "pcm_s16le" if flags & 1 else "pcm_s16be"
    if entry.type in (b"mp4a", b"mp4v"):
        esds = find(data, "esds", inner, entry.end)
        return _OBJECT_TYPES.get(_object_type(data[esds.body + 4 : esds.end]), entry.type.decode())
    return _CODECS.get(entry.type, entry.type.decode("latin-1"))


def _object_type(esds: bytes) -> int:
    """objectTypeIndication of an ES descriptor (ISO/IEC 14496-1 7.2.6.5): tag 3, length, ES_ID, flags, tag 4, length, type."""
    at = _content(esds, 0)
    flags = esds[at + 2]
    at += 3 + (2 if flags & 0x80 else 0)
    if flags & 0x40:
        at += 1 + esds[at]
    at += 2 if flags & 0x20 else 0
    return esds[_content(esds, at)]


def _content(descriptor: bytes, at: int) -> int:
    """Where the content of a descriptor begins: behind its tag and a length of one to four bytes."""
    at += 1
    while descriptor[at] & 0x80:
        at += 1
    return at + 1
