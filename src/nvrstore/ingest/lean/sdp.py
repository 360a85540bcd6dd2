"""What a camera says about itself in DESCRIBE (RFC 8866), as far as a recorder needs it. Pure.

    v=0 ...                                    a=control:*          session level
    m=video 0 RTP/AVP 96                                            one `Section` per m= line
    a=rtpmap:96 H264/90000   a=fmtp:96 packetization-mode=1;...     a=control:trackID=0

Read as cameras write it, not as they should: lines end anyhow, anything may be missing, stand twice, or be surrounded by spaces.
Invariant: no bytes make this raise; what cannot be read is as if it were not there. At most SECTIONS_MAX sections are kept.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

SECTIONS_MAX: Final = 32
CLOCK_HZ_MAX: Final = 400_000  # higher ones than any codec's are nonsense

#: RFC 3551 table 4 and 5: what payload types mean where nothing else is said.
_STATIC: Final[Mapping[int, tuple[str, int, int]]] = {
    0: ("PCMU", 8000, 1),
    3: ("GSM", 8000, 1),
    4: ("G723", 8000, 1),
    8: ("PCMA", 8000, 1),
    9: ("G722", 8000, 1),
    10: ("L16", 44100, 2),
    11: ("L16", 44100, 1),
    14: ("MPA", 90000, 1),
    26: ("JPEG", 90000, 1),
    32: ("MPV", 90000, 1),
    33: ("MP2T", 90000, 1),
}
_MEDIA: Final = re.compile(r"(\w+)\s+\S+\s+(\S+)\s*(.*)")
_RTPMAP: Final = re.compile(r"(\d{1,3})\s+([^/\s]+)\s*/\s*(\d{1,9})(?:\s*/\s*(\d{1,3}))?")
_FMTP: Final = re.compile(r"(\d{1,3})\s+(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Section:
    """One track that a camera offers."""

    kind: str  # "video", "audio", "application" ...
    payload_type: int
    encoding: str  # upper case: "H264", "MPEG4-GENERIC"; empty where it is not said
    clock_hz: int
    channels: int
    control: str
    parameters: Mapping[str, str] = field(default_factory=dict)  # of fmtp; names in lower case
    to_camera: bool = False  # a=sendonly: a back channel, for sound towards the camera


@dataclass(frozen=True, slots=True)
class Description:
    """All that a camera offers."""

    control: str = ""
    sections: tuple[Section, ...] = ()


class _Media:
    """An m= line and what follows it."""

    def __init__(self, kind: str, formats: list[int]) -> None:
        self.kind, self.formats = kind, formats
        self.maps: dict[int, tuple[str, int, int]] = {}
        self.parameters: dict[int, dict[str, str]] = {}
        self.control = ""
        self.to_camera = False

    def section(self) -> Section:
        known = {**_STATIC, **self.maps}
        payload_type = next((number for number in self.formats if number in known), self.formats[0] if self.formats else -1)
        encoding, clock_hz, channels = known.get(payload_type, ("", 0, 1))
        parameters = self.parameters.get(payload_type, {})
        return Section(self.kind, payload_type, encoding, clock_hz, channels, self.control, parameters, self.to_camera)


def parse(body: bytes) -> Description:
    """What `body` describes."""
    control = ""
    found: list[_Media] = []
    current: _Media | None = None
    for line in re.split(r"[\r\n]+", body.decode("utf-8", "replace")):
        line = line.strip(" \t\0")
        name, equals, value = line.partition("=")
        if not equals:
            continue
        name, value = name.strip(), value.strip()
        if name == "m":
            current = _media(value) if len(found) < SECTIONS_MAX else None
            if current is None:
                current = _Media("", [])  # what belongs to it must not be taken for its predecessor's
                continue
            found.append(current)
        elif name == "a":
            attribute, _, text = value.partition(":")
            attribute, text = attribute.strip().lower(), text.strip()
            if current is not None:
                _attribute(current, attribute, text)
            elif attribute == "control":
                control = text
    return Description(control, tuple(media.section() for media in found))


def _media(value: str) -> _Media | None:
    match = _MEDIA.fullmatch(value)
    if match is None:
        return None
    return _Media(match[1].lower(), [int(text) for text in match[3].split()[:64] if text.isdecimal() and len(text) < 4 and int(text) < 128])


def _attribute(media: _Media, name: str, text: str) -> None:
    match name:
        case "control":
            media.control = text
        case "sendonly":
            media.to_camera = True
        case "rtpmap":
            found = _RTPMAP.match(text)
            if found is not None and 0 < int(found[3]) <= CLOCK_HZ_MAX:
                media.maps[int(found[1])] = (found[2].upper(), int(found[3]), max(1, int(found[4] or 1)))
        case "fmtp":
            found = _FMTP.fullmatch(text)
            if found is not None:
                media.parameters[int(found[1])] = _parameters(found[2])
        case _:
            pass


def _parameters(text: str) -> dict[str, str]:
    """`name=value;name=value`; a value may hold more equals signs (base64)."""
    pairs = (part.partition("=") for part in text.split(";"))
    return {name.strip().lower(): value.strip() for name, _, value in pairs if name.strip()}


def parameter_sets(section: Section) -> list[bytes]:
    """The NAL units in the description (RFC 6184 8.1, RFC 7798 7.1), start codes in front of them taken away; unreadable ones left out."""
    names = ("sprop-parameter-sets", "sprop-vps", "sprop-sps", "sprop-pps")
    found = []
    for text in ",".join(section.parameters.get(name, "") for name in names).split(",")[:64]:
        try:
            nal = base64.b64decode(text.strip() + "=" * (-len(text.strip()) % 4), validate=True)
        except (binascii.Error, ValueError):
            continue
        for start in (b"\0\0\0\1", b"\0\0\1"):
            nal = nal.removeprefix(start)
        if nal:
            found.append(nal)
    return found
