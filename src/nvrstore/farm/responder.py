"""What the farm answers to each RTSP method (RFC 2326 section 10).

    OPTIONS DESCRIBE SETUP PLAY PAUSE GET_PARAMETER SET_PARAMETER TEARDOWN

Streams are addressed as `/cam0` ... ; their tracks as `/cam0/trackID=0` (video) and `/cam0/trackID=1` (audio). A session belongs to
the connection that set it up, and ends with it.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Protocol

from nvrstore.farm.auth import Guard
from nvrstore.farm.camera import Camera
from nvrstore.farm.connection import Connection
from nvrstore.farm.feed import Feed
from nvrstore.farm.reels import AudioReel, VideoReel
from nvrstore.farm.rtsp import METHODS, Request, Transport, parse_transport, response
from nvrstore.farm.sdp import AUDIO_CONTROL, VIDEO_CONTROL, describe
from nvrstore.farm.session import Session, TcpSession, UdpSession

SESSION_TIMEOUT_S = 60


class Studio(Protocol):
    """What the responder needs from the farm's server."""

    cameras: Mapping[str, Camera]
    guard: Guard

    def reels(self, camera: Camera) -> tuple[VideoReel, AudioReel | None]:
        """What the camera sends."""

    def udp_session(self, session_id: str, camera: Camera, connection: Connection) -> UdpSession | None:
        """A session over UDP; None where the farm has none."""

    def udp_ports(self) -> tuple[int, int]:
        """The farm's own RTP and RTCP ports."""

    def tcp_session(self, session_id: str, camera: Camera, connection: Connection) -> TcpSession:
        """A session over the connection."""

    def play(self, session: Session) -> Feed:
        """Begin to send, from the next key unit."""

    def pause(self, session: Session) -> None:
        """Stop to send."""


def respond(request: Request, connection: Connection, studio: Studio) -> bytes:
    """Answer one request."""
    match request.method:
        case "OPTIONS":
            return response(request, 200, {"Public": ", ".join(METHODS)})
        case "GET_PARAMETER" | "SET_PARAMETER":
            return response(request, 200, _session_header(request))
        case "DESCRIBE" | "SETUP" | "PLAY" | "PAUSE" | "TEARDOWN":
            pass
        case _:
            return response(request, 501)
    if request.method in ("PLAY", "PAUSE", "TEARDOWN"):
        session = connection.sessions.get(request.session)
        if session is None:
            return response(request, 454)
        return _steer(request, session, connection, studio)
    camera, track = _find(request, studio)
    if camera is None:
        return response(request, 404)
    if not studio.guard.admits(request):
        return response(request, 401, extra=studio.guard.challenge())
    if request.method == "DESCRIBE":
        return _describe(request, camera, studio)
    return _setup(request, camera, track, connection, studio)


def _session_header(request: Request) -> dict[str, str]:
    return {"Session": request.session} if request.session else {}


def _find(request: Request, studio: Studio) -> tuple[Camera | None, str]:
    """The camera and the track that the URL names."""
    parts = request.path.strip("/").split("/")
    camera = studio.cameras.get(parts[0])
    return (camera if len(parts) <= 2 else None), (parts[1] if len(parts) == 2 else "")


def _describe(request: Request, camera: Camera, studio: Studio) -> bytes:
    video, audio = studio.reels(camera)
    body = describe(camera.name, 1 + camera.index, video, audio)
    base = request.url.partition("?")[0].rstrip("/") + "/"
    return response(request, 200, {"Content-Base": base, "Content-Type": "application/sdp"}, body)


def _setup(request: Request, camera: Camera, track: str, connection: Connection, studio: Studio) -> bytes:
    transport = parse_transport(request.headers.get("transport", ""))
    if transport is None:
        return response(request, 461)
    if track not in (VIDEO_CONTROL, AUDIO_CONTROL) or (track == AUDIO_CONTROL and studio.reels(camera)[1] is None):
        return response(request, 404) if track else response(request, 459)
    session = connection.sessions.get(request.session) if request.session else None
    if request.session and (session is None or session.camera is not camera):
        return response(request, 454)
    if session is None:
        made = _new_session(camera, transport, connection, studio)
        if made is None:
            return response(request, 461)
        session = made
    if session.playing:
        return response(request, 455)
    value = _set_track(session, transport, studio, audio=track == AUDIO_CONTROL)
    if value is None:
        return response(request, 461)
    connection.sessions[session.id] = session
    return response(request, 200, {"Transport": value, "Session": f"{session.id};timeout={SESSION_TIMEOUT_S}"})


def _new_session(camera: Camera, transport: Transport, connection: Connection, studio: Studio) -> Session | None:
    session_id = f"{secrets.randbits(32):08X}"
    if transport.interleaved is not None:
        return studio.tcp_session(session_id, camera, connection)
    return studio.udp_session(session_id, camera, connection)


def _set_track(session: Session, transport: Transport, studio: Studio, *, audio: bool) -> str | None:
    """Set a track's channels or ports; the Transport header of the answer, or None where session and transport do not fit."""
    if isinstance(session, TcpSession) and transport.interleaved is not None:
        if audio:
            session.audio = transport.interleaved
        else:
            session.video = transport.interleaved
        return f"RTP/AVP/TCP;unicast;interleaved={transport.interleaved[0]}-{transport.interleaved[1]}"
    if isinstance(session, UdpSession) and transport.ports is not None:
        if audio:
            session.audio = transport.ports
        else:
            session.video = transport.ports
        ours = studio.udp_ports()
        return f"RTP/AVP;unicast;client_port={transport.ports[0]}-{transport.ports[1]};server_port={ours[0]}-{ours[1]}"
    return None


def _steer(request: Request, session: Session, connection: Connection, studio: Studio) -> bytes:
    headers = {"Session": session.id}
    match request.method:
        case "PLAY":
            feed = studio.play(session)
            base = request.url.rstrip("/")
            info = f"url={base}/{VIDEO_CONTROL};seq={feed.seq & 0xFFFF};rtptime={feed.timestamp_of(feed.number) & 0xFFFFFFFF}"
            if feed.audio is not None and session.has_audio:
                clock = feed.audio.timestamp_0 + feed.audio.count * feed.audio.reel.samples_per_frame
                info += f",url={base}/{AUDIO_CONTROL};seq={feed.audio.seq & 0xFFFF};rtptime={clock & 0xFFFFFFFF}"
            return response(request, 200, headers | {"Range": "npt=now-", "RTP-Info": info})
        case "PAUSE":
            studio.pause(session)
            return response(request, 200, headers)
        case _:
            session.close()
            del connection.sessions[session.id]
            return response(request, 200, headers)
