"""What a simulated camera says about itself in DESCRIBE (RFC 8866; fmtp of RFC 6184 8.1, RFC 7798 7.1, RFC 3640 4.1)."""

from __future__ import annotations

import base64
from typing import Final, Literal

from nvrstore.farm.nal import Codec
from nvrstore.farm.reels import AudioReel, VideoReel
from nvrstore.farm.rtp import AAC_PT, PCMA_PT, VIDEO_HZ, VIDEO_PT

VIDEO_CONTROL: Final = "trackID=0"
AUDIO_CONTROL: Final = "trackID=1"

#: How parameter sets stand in the SDP: as they should, not at all, with start codes in front, or as bytes that mean nothing.
Sets = Literal["full", "none", "annex-b", "garbage"]


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _sets(reel: VideoReel, sets: Sets) -> list[str]:
    match sets:
        case "full":
            return [_b64(nal) for nal in reel.parameter_sets]
        case "annex-b":
            return [_b64(b"\x00\x00\x00\x01" + nal) for nal in reel.parameter_sets]
        case "garbage":
            return [_b64(b"\xff" * 5) for _ in reel.parameter_sets]
        case "none":
            return []


def _video_fmtp(reel: VideoReel, sets: Sets) -> str:
    values = _sets(reel, sets)
    if reel.spec.codec is Codec.H264:
        parts = ["packetization-mode=1"]
        if sets == "full":
            parts.append(f"profile-level-id={reel.parameter_sets[0][1:4].hex()}")
        if values:
            parts.append(f"sprop-parameter-sets={','.join(values)}")
        return ";".join(parts)
    names = ("sprop-vps", "sprop-sps", "sprop-pps")
    return ";".join(f"{name}={value}" for name, value in zip(names, values, strict=False))


def describe(
    name: str, session: int, video: VideoReel, audio: AudioReel | None, *, sets: Sets = "full", audio_config: bool = True
) -> bytes:
    """The session description of a camera."""
    lines = [
        "v=0",
        f"o=- {session} 1 IN IP4 127.0.0.1",
        f"s={name}",
        "c=IN IP4 0.0.0.0",
        "t=0 0",
        "a=control:*",
        "a=range:npt=now-",
        f"m=video 0 RTP/AVP {VIDEO_PT}",
        f"a=rtpmap:{VIDEO_PT} {'H264' if video.spec.codec is Codec.H264 else 'H265'}/{VIDEO_HZ}",
    ]
    fmtp = _video_fmtp(video, sets)
    if fmtp:
        lines.append(f"a=fmtp:{VIDEO_PT} {fmtp}")
    lines += [f"a=framerate:{float(video.spec.fps):g}", f"a=control:{VIDEO_CONTROL}"]
    if audio is not None:
        spec = audio.spec
        if spec.codec == "pcma":
            lines += [
                f"m=audio 0 RTP/AVP {PCMA_PT}",
                f"a=rtpmap:{PCMA_PT} PCMA/{spec.rate}" + (f"/{spec.channels}" if spec.channels > 1 else ""),
            ]
        else:
            config = f";config={audio.config.hex()}" if audio_config else ""
            lines += [
                f"m=audio 0 RTP/AVP {AAC_PT}",
                f"a=rtpmap:{AAC_PT} mpeg4-generic/{spec.rate}/{spec.channels}",
                f"a=fmtp:{AAC_PT} streamtype=5;profile-level-id=1;mode=AAC-hbr;sizelength=13;indexlength=3;indexdeltalength=3{config}",
            ]
        lines.append(f"a=control:{AUDIO_CONTROL}")
    return "\r\n".join(lines).encode() + b"\r\n"
