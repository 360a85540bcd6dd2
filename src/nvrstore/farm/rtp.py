"""RTP packets: payload formats, headers, and sender reports. Pure.

    interleaved frame (RFC 2326 10.12)  '$' channel length16
    RTP header (RFC 3550 5.1)           80 M|PT seq16 timestamp32 ssrc32
    payload                             H.264 RFC 6184: single, STAP-A, FU-A      AAC RFC 3640 (AAC-hbr)
                                        H.265 RFC 7798: single, AP, FU            G.711 RFC 3551

Payloads do not depend on the session, headers do; a header is always written in front of a payload that is shared.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

from nvrstore.farm.nal import Codec

HEADER_BYTES: Final = 12
FRAMING_BYTES: Final = 4
PACKET_BYTES_MAX: Final = 1400  # payload: with headers under the usual MTU of 1500
VIDEO_PT: Final = 96
AAC_PT: Final = 97
PCMA_PT: Final = 8
VIDEO_HZ: Final = 90_000
MARKER: Final = 0x80
NTP_UNIX_S: Final = 2_208_988_800  # from 1900 to 1970

_RTP: Final = struct.Struct(">BBHII")
_FRAMED: Final = struct.Struct(">BBHBBHII")  # framing and RTP header in one
_SENDER: Final = struct.Struct(">BBHIIIIII")
_STAP_A: Final = 24
_FU_A: Final = 28
_AP_H265: Final = 48
_FU_H265: Final = 49

#: Access unit delimiters, any picture type (H.264 7.3.2.4, H.265 7.3.2.5).
DELIMITER: Final = {Codec.H264: b"\x09\xf0", Codec.H265: b"\x46\x01\x50"}


def video_payloads(codec: Codec, nals: Iterable[bytes], packet_bytes_max: int = PACKET_BYTES_MAX) -> tuple[bytes, ...]:
    """RTP payloads for NAL units: one each, in fragments where they are too large for one packet."""
    out: list[bytes] = []
    for nal in nals:
        if len(nal) <= packet_bytes_max:
            out.append(nal)
            continue
        if codec is Codec.H264:  # RFC 6184 5.8
            skip, indicator, kind = 1, bytes((nal[0] & 0xE0 | _FU_A,)), nal[0] & 0x1F
        else:  # RFC 7798 4.4.3
            skip, indicator, kind = 2, bytes((nal[0] & 0x81 | _FU_H265 << 1, nal[1])), nal[0] >> 1 & 0x3F
        step = packet_bytes_max - len(indicator) - 1
        for at in range(skip, len(nal), step):
            flags = (0x80 if at == skip else 0) | (0x40 if at + step >= len(nal) else 0)
            out.append(b"%b%c%b" % (indicator, flags | kind, nal[at : at + step]))
    return tuple(out)


def aggregated(codec: Codec, nals: Sequence[bytes]) -> bytes:
    """One payload for several small NAL units: STAP-A (RFC 6184 5.7.1), AP (RFC 7798 4.4.2)."""
    header = bytes((max(nal[0] & 0x60 for nal in nals) | _STAP_A,)) if codec is Codec.H264 else bytes((_AP_H265 << 1, 1))
    return header + b"".join(struct.pack(">H", len(nal)) + nal for nal in nals)


def aac_payload(frame: bytes) -> bytes:
    """One AAC frame behind its AU header: 13 bits of size, 3 of index (RFC 3640 3.3.6)."""
    return struct.pack(">HH", 16, len(frame) << 3) + frame


def rtp_header(payload_type: int, seq: int, timestamp: int, ssrc: int, *, marker: bool) -> bytes:
    """Fixed RTP header."""
    return _RTP.pack(0x80, payload_type | (MARKER if marker else 0), seq & 0xFFFF, timestamp & 0xFFFFFFFF, ssrc)


def framed_header(channel: int, size: int, payload_type: int, seq: int, timestamp: int, ssrc: int, *, marker: bool) -> bytes:
    """Interleaved framing and RTP header for a payload of `size` bytes."""
    kind = payload_type | (MARKER if marker else 0)
    return _FRAMED.pack(0x24, channel, size + HEADER_BYTES, 0x80, kind, seq & 0xFFFF, timestamp & 0xFFFFFFFF, ssrc)


def framed_packets(
    channel: int, payloads: Sequence[bytes], payload_type: int, seq: int, timestamp: int, ssrc: int, *, mark_last: bool
) -> list[bytes]:
    """Headers and payloads in turn, for `b"".join`: the interleaved image of a run of packets. The marker is set on the last one only."""
    pack = _FRAMED.pack
    timestamp &= 0xFFFFFFFF
    out: list[bytes] = []
    for payload in payloads:
        out.append(pack(0x24, channel, len(payload) + HEADER_BYTES, 0x80, payload_type, seq & 0xFFFF, timestamp, ssrc))
        out.append(payload)
        seq += 1
    if out and mark_last:
        out[-2] = framed_header(channel, len(out[-1]), payload_type, seq - 1, timestamp, ssrc, marker=True)
    return out


def framed(channel: int, packet: bytes) -> bytes:
    """One packet in its interleaved framing."""
    return struct.pack(">BBH", 0x24, channel, len(packet)) + packet


def sender_report(ssrc: int, utc_ns: int, timestamp: int, packets: int, octets: int, cname: bytes) -> bytes:
    """A sender report and its source description: both must be in each compound packet (RFC 3550 6.1)."""
    seconds, rest_ns = divmod(utc_ns, 1_000_000_000)
    ntp_s = (seconds + NTP_UNIX_S) & 0xFFFFFFFF
    ntp_fraction = (rest_ns << 32) // 1_000_000_000
    report = _SENDER.pack(0x80, 200, 6, ssrc, ntp_s, ntp_fraction, timestamp & 0xFFFFFFFF, packets & 0xFFFFFFFF, octets & 0xFFFFFFFF)
    item = b"\x01%c%b\x00" % (len(cname), cname)
    chunk = struct.pack(">I", ssrc) + item + bytes(-len(item) % 4)
    return report + struct.pack(">BBH", 0x81, 202, len(chunk) // 4) + chunk


def goodbye(ssrc: int) -> bytes:
    """RTCP BYE (RFC 3550 6.6)."""
    return struct.pack(">BBHI", 0x81, 203, 1, ssrc)
