"""What the farm answers to each RTSP method (RFC 2326 section 10).

    OPTIONS DESCRIBE SETUP PLAY PAUSE GET_PARAMETER SET_PARAMETER TEARDOWN

Streams are addressed as `/cam0` ... ; their tracks as `/cam0/trackID=0` (video) and `/cam0/trackID=1` (audio). A session belongs to
the connection that set it up, and ends with it.
"""

from __future__ import annotations

import secrets
from typing import Final, Protocol

from nvrstore.farm.auth import Guard
from nvrstore.farm.camera import Camera
from nvrstore.farm.connection import Connection
from nvrstore.farm.rtsp import METHODS, Request, Transport, parse_transport, response
from nvrstore.farm.sdp import AUDIO_CONTROL, VIDEO_CONTROL, describe
from nvrstore.farm.session import Session, TcpSession, UdpSession
from nvrstore.farm.studio import Studio

SESSION_TIMEOUT_S: Final = 60


class Desk(Protocol):
    """What the responder needs from the farm's server."""

    studio: Studio
    guard: Guard

    def udp_session(self, session_id: str, camera: Camera, connection: Connection) -> UdpSession:
        """A session over UDP."""

    def udp_ports(self) -> tuple[int, int]:
        """The farm's own RTP and RTCP ports."""

    def tcp_session(self, session_id: str, camera: Camera, connection: Connection) -> TcpSession:
        """A session over the connection."""


def respond(request: Request, connection: Connection, desk: Desk) -> bytes | None:
    """Answer one request; empty: no answer, None: the connection is to be closed."""
    camera, track = _find(request, desk.studio)
    if camera is not None:
        if camera.hung:
            return b""
        if camera.away:
            return None
    match request.method:
        case "OPTIONS":
            return response(request, 200, {"Public": ", ".join(METHODS)})
        case "GET_PARAMETER" | "SET_PARAMETER":
            return response(request, 200, {"Session": request.session} if request.session else {})
        case "PLAY" | "PAUSE" | "TEARDOWN":
            session = connection.sessions.get(request.session)
            return response(request, 454) if session is None else _steer(request, session, connection, desk.studio)
        case "DESCRIBE" | "SETUP":
            if camera is None:
                return response(request, 404)
            if camera.refused or not desk.guard.admits(request):
                return response(request, 401, extra=desk.guard.challenge())
            return _describe(request, camera) if request.method == "DESCRIBE" else _setup(request, camera, track, connection, desk)
        case _:
            return response(request, 501)


def _find(request: Request, studio: Studio) -> tuple[Camera | None, str]:
    """The camera and the track that the URL names."""
    parts = request.path.strip("/").split("/")
    camera = studio.cameras.get(parts[0])
    return (camera if len(parts) <= 2 else None), (parts[1] if len(parts) == 2 else "")


def _describe(request: Request, camera: Camera) -> bytes:
    look = camera.look
    sets, config = look.traits.sdp_sets, look.traits.audio_config
    body = describe(camera.name, 1 + camera.index, look.video, look.audio, sets=sets, audio_config=config)
    base = request.url.partition("?")[0].rstrip("/") + "/"
    return response(request, 200, {"Content-Base": base, "Content-Type": "application/sdp"}, body)


def _setup(request: Request, camera: Camera, track: str, connection: Connection, desk: Desk) -> bytes:
    transport = parse_transport(request.headers.get("transport", ""))
    if transport is None:
        return response(request, 461)
    if track not in (VIDEO_CONTROL, AUDIO_CONTROL) or (track == AUDIO_CONTROL and camera.look.audio is None):
        return response(request, 404) if track else response(request, 459)
    session = connection.sessions.get(request.session) if request.session else None
    if request.session and (session is None or session.camera is not camera):
        return response(request, 454)
    if session is None:
        limit = camera.look.traits.clients_max
        if limit is not None and len(camera.sessions) >= limit:
            return response(request, 453)
        session = _new_session(camera, transport, connection, desk)
    if session.playing:
        return response(request, 455)
    value = _set_track(session, transport, desk, audio=track == AUDIO_CONTROL)
    if value is None:
        return response(request, 461)
    connection.sessions[session.id] = session
    return response(request, 200, {"Transport": value, "Session": f"{session.id};timeout={SESSION_TIMEOUT_S}"})


def _new_session(camera: Camera, transport: Transport, connection: Connection, desk: Desk) -> Session:
    session_id = f"{secrets.randbits(32):08X}"
    if transport.interleaved is not None:
        return desk.tcp_session(session_id, camera, connection)
    return desk.udp_session(session_id, camera, connection)


def _set_track(session: Session, transport: Transport, desk: Desk, *, audio: bool) -> str | None:
    """Set a track's channels or ports; the Transport header of the answer, or None where session and transport do not fit."""
    pair = transport.interleaved if isinstance(session, TcpSession) else transport.ports
    if pair is None:
        return None
    if audio:
        session.audio = pair
    else:
        session.video = pair
    if isinstance(session, TcpSession):
        return f"RTP/AVP/TCP;unicast;interleaved={pair[0]}-{pair[1]}"
    ours = desk.udp_ports()
    return f"RTP/AVP;unicast;client_port={pair[0]}-{pair[1]};server_port={ours[0]}-{ours[1]}"


def _steer(request: Request, session: Session, connection: Connection, studio: Studio) -> bytes:
    headers = {"Session": session.id}
    match request.method:
        case "PLAY":
            feed = studio.play(session)
            base = request.url.rstrip("/")
            info = f"url={base}/{VIDEO_CONTROL};seq={feed.seq & 0xFFFF};rtptime={feed.timestamp_of(feed.number) & 0xFFFFFFFF}"
            if feed.audio is not None and session.audio is not None:
                track = feed.audio
                info += f",url={base}/{AUDIO_CONTROL};seq={track.seq & 0xFFFF};rtptime={track.next_timestamp & 0xFFFFFFFF}"
            return response(request, 200, headers | {"Range": "npt=now-", "RTP-Info": info})
        case "PAUSE":
            studio.pause(session)
            return response(request, 200, headers)
        case _:
            session.close()
            del connection.sessions[session.id]
            return response(request, 200, headers)
