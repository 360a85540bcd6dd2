"""What the client says next: the way to PLAY, logins, redirects, oddities of servers. No sockets: messages in, bytes out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvrstore.errors import SourceEndedError, SourceError, SourceNotVideoError, SourceRefusedError, SourceSilentError
from nvrstore.ingest.errors import SourceUnsupportedError
from nvrstore.ingest.lean import sdp
from nvrstore.ingest.lean.auth import Login
from nvrstore.ingest.lean.messages import Call, Response, parse
from nvrstore.ingest.lean.rtsp import REDIRECTS_MAX, Client, State, resolve_control

URL = "rtsp://10.0.0.5/main"
SDP = b"v=0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:trackID=0\r\nm=audio 0 RTP/AVP 8\r\na=control:trackID=1\r\n"


def everything(description: sdp.Description) -> Sequence[sdp.Section]:
    return description.sections


def reply(text: str, body: bytes = b"") -> Response:
    """A response as a camera writes it: `"200 OK | Session: 5 | Public: OPTIONS"`."""
    status, *headers = [part.strip() for part in text.split(" | ")]
    found = parse("\r\n".join([f"RTSP/1.0 {status}", *headers]).encode() + b"\r\n\r\n" + body)
    assert isinstance(found, Response)
    return found


class Talk:
    """A client, and what it said last."""

    def __init__(
        self, url: str = URL, login: tuple[str, str] | None = None, choose: Callable[..., Sequence[sdp.Section]] = everything
    ) -> None:
        self.client = Client(url, Login(*login) if login else None, choose)
        self.said = self.client.start()

    def hears(self, text: str, body: bytes = b"") -> str:
        """Answer; the first line of what is said then."""
        self.said = self.client.receive(reply(text, body))
        return self.line

    @property
    def line(self) -> str:
        return self.said.decode().partition("\r\n")[0]

    def header(self, name: str) -> str:
        found = re.search(rf"(?m)^{name}: (.*?)\r$", self.said.decode())
        return found[1] if found else ""

    def described(self, headers: str = "", body: bytes = SDP) -> str:
        """Up to the first SETUP."""
        self.hears("200 OK | Public: OPTIONS, DESCRIBE, GET_PARAMETER")
        return self.hears("200 OK" + (f" | {headers}" if headers else ""), body)

    def plays(self, session: str = "Session: 12345678;timeout=60") -> None:
        """Up to PLAYING."""
        self.described()
        self.hears(f"200 OK | {session} | Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
        self.hears(f"200 OK | {session} | Transport: RTP/AVP/TCP;unicast;interleaved=2-3")
        assert self.line.startswith("PLAY ")
        self.hears("200 OK")
        assert self.client.state is State.PLAYING


def test_the_way_to_play() -> None:
    """OPTIONS, DESCRIBE, a SETUP for each track, PLAY; one number more each time, the session's id from the first SETUP on."""
    talk = Talk()
    assert talk.line == f"OPTIONS {URL} RTSP/1.0"
    assert talk.hears("200 OK | Public: OPTIONS") == f"DESCRIBE {URL} RTSP/1.0"
    assert talk.header("Accept") == "application/sdp"
    assert talk.hears("200 OK | Content-Base: rtsp://10.0.0.5/main/", SDP) == f"SETUP {URL}/trackID=0 RTSP/1.0"
    assert talk.header("Transport") == "RTP/AVP/TCP;unicast;interleaved=0-1"
    assert talk.header("Session") == ""
    talk.hears("200 OK | Session: ab-1 ; timeout = 20 | Transport: RTP/AVP/TCP;unicast;interleaved=0-1;ssrc=1")
    assert talk.line == f"SETUP {URL}/trackID=1 RTSP/1.0"
    assert (talk.header("Session"), talk.header("Transport")) == ("ab-1", "RTP/AVP/TCP;unicast;interleaved=2-3")
    assert talk.hears("200 OK | Session: ab-1 | Transport: RTP/AVP/TCP;interleaved=2-3") == f"PLAY {URL}/ RTSP/1.0"
    assert talk.header("CSeq") == "5"
    assert talk.hears("200 OK | RTP-Info: nonsense;seq=0") == ""
    assert [setup.channel for setup in talk.client.setups] == [0, 2]
    assert talk.client.keepalive_s == 10
    assert talk.client.teardown().startswith(f"TEARDOWN {URL}/ RTSP/1.0".encode())
    assert talk.client.teardown() == b""


def test_a_server_that_does_not_know_options_is_asked_all_the_same() -> None:
    """It is a courtesy, not a condition."""
    talk = Talk()
    assert talk.hears("501 Not Implemented").startswith("DESCRIBE ")


# --- logins (26)


def digest_of(said: Talk, password: str, algorithm: str = "md5") -> str:
    """What RFC 7616 3.4.1 says the response must be."""
    fields = dict(re.findall(r'(\w+)="?([^",]*)"?', said.header("Authorization")))
    method, uri = said.line.split()[:2]
    assert fields["uri"] == uri

    def digest(text: str) -> str:
        return hashlib.new(algorithm, text.encode()).hexdigest()

    secret = digest(f"{fields['username']}:{fields['realm']}:{password}")
    if fields.get("algorithm", "").endswith("-sess"):
        secret = digest(f"{secret}:{fields['nonce']}:{fields['cnonce']}")
    middle = f"{fields['nonce']}:{fields['nc']}:{fields['cnonce']}:{fields['qop']}" if "qop" in fields else fields["nonce"]
    assert fields["response"] == digest(f"{secret}:{middle}:{digest(f'{method}:{uri}')}")
    return str(fields.get("nc", ""))


def test_camera_26_digest_with_md5_and_no_qop() -> None:
    """What most cameras do; made anew for every request."""
    talk = Talk(login=("admin", "p:w d"))
    assert talk.header("Authorization") == ""
    assert talk.hears('401 Unauthorized | WWW-Authenticate: Digest realm="cam", nonce="n1"') == f"OPTIONS {URL} RTSP/1.0"
    digest_of(talk, "p:w d")
    talk.described()
    digest_of(talk, "p:w d")


@pytest.mark.parametrize(
    ("algorithm", "name"), [("SHA-256", "sha256"), ("sha-256", "sha256"), ("MD5-sess", "md5"), ("SHA-512-256", "sha512_256")]
)
def test_camera_26_other_algorithms_and_qop(algorithm: str, name: str) -> None:
    """RFC 7616; the count of uses of a nonce goes up."""
    talk = Talk(login=("admin", "x"))
    talk.hears(f'401 No | WWW-Authenticate: Digest realm="c", nonce="n", algorithm={algorithm}, qop="auth,auth-int", opaque="o=1,2"')
    assert digest_of(talk, "x", name) == "00000001"
    assert 'opaque="o=1,2"' in talk.header("Authorization")
    talk.hears("200 OK")
    assert digest_of(talk, "x", name) == "00000002"


def test_camera_26_the_strongest_challenge_that_is_known_is_taken() -> None:
    """Several headers, several in one header, unknown schemes and algorithms among them."""
    talk = Talk(login=("admin", "x"))
    talk.hears(
        '401 No | WWW-Authenticate: Negotiate, Basic realm="c", Digest realm="c", nonce="1", algorithm=TIGER | '
        'WWW-Authenticate: Digest realm="c", nonce="2", algorithm=MD5 | WWW-Authenticate: Digest realm="c", nonce="3", algorithm=SHA-256'
    )
    assert 'nonce="3"' in talk.header("Authorization")
    digest_of(talk, "x", "sha256")


def test_camera_26_basic_where_nothing_better_is_offered() -> None:
    """Bytes of the name and the password in UTF-8."""
    talk = Talk(login=("admin", "pä:ss"))
    talk.hears('401 No | www-authenticate : basic realm="c"')
    assert talk.header("Authorization") == "Basic YWRtaW46cMOkOnNz"


def test_camera_26_an_unknown_kind_of_login_is_left_to_the_other_engine() -> None:
    """Not the password is wrong."""
    talk = Talk(login=("admin", "x"))
    with pytest.raises(SourceUnsupportedError, match="negotiate"):
        talk.hears("401 No | WWW-Authenticate: Negotiate")


def test_camera_26_a_stale_nonce_is_replaced_and_a_wrong_password_is_not_tried_again() -> None:
    """One more try with a new nonce, or where the camera says `stale`; the same nonce again means no."""
    talk = Talk(login=("admin", "x"))
    talk.hears('401 No | WWW-Authenticate: Digest realm="c", nonce="1"')
    talk.described()
    assert talk.hears('401 No | WWW-Authenticate: Digest realm="c", nonce="2"').startswith("SETUP ")
    assert 'nonce="2"' in talk.header("Authorization")
    talk.hears("200 OK | Session: 1 | Transport: RTP/AVP/TCP;interleaved=0-1")
    assert talk.hears('401 No | WWW-Authenticate: Digest realm="c", nonce="2", stale=TRUE').startswith("SETUP ")
    with pytest.raises(SourceRefusedError):
        talk.hears('401 No | WWW-Authenticate: Digest realm="c", nonce="2"')


@pytest.mark.parametrize(
    "challenge", ["", "WWW-Authenticate: Digest", 'WWW-Authenticate: Digest realm="c", nonce="2"', "WWW-Authenticate: ,,="]
)
def test_camera_26_odd_401s_end_in_a_refusal(challenge: str) -> None:
    """Without a challenge, with half of one, with a new nonce each time: a bounded number of tries."""
    talk = Talk(login=("admin", "secret-x"))

    def hammer() -> None:
        for number in range(10):
            talk.hears("401 No" + (f" | {challenge}" if challenge else "").replace('"2"', f'"{number}"'))

    with pytest.raises((SourceRefusedError, SourceUnsupportedError)) as raised:
        hammer()
    assert "secret-x" not in str(raised.value)


def test_camera_26_without_a_login_the_hint_is_to_configure_one() -> None:
    """Told apart from a wrong one."""
    with pytest.raises(SourceRefusedError, match="none is configured"):
        Talk().hears('401 No | WWW-Authenticate: Basic realm="c"')


# --- addresses


@pytest.mark.parametrize(
    ("base", "control", "expected"),
    [
        ("rtsp://h/a/", "trackID=1", "rtsp://h/a/trackID=1"),
        ("rtsp://h/a", "trackID=1", "rtsp://h/a/trackID=1"),
        ("rtsp://h/a?x=1&y=2", "trackID=1", "rtsp://h/a?x=1&y=2/trackID=1"),
        ("rtsp://h/a?x=1/", "trackID=1", "rtsp://h/a?x=1/trackID=1"),
        ("rtsp://h:8554/a/b", "/c", "rtsp://h:8554/c"),
        ("rtsp://h/a", "rtsp://10.1.1.1:554/b", "rtsp://10.1.1.1:554/b"),
        ("rtsp://h/a", "RTSP://h/b", "RTSP://h/b"),
        ("rtsp://h/a", "*", "rtsp://h/a"),
        ("rtsp://h/a", "", "rtsp://h/a"),
        ("rtsp://h/a", "?ctype=video", "rtsp://h/a/?ctype=video"),
    ],
)
def test_controls_are_joined_as_players_do(base: str, control: str, expected: str) -> None:
    """Cameras expect their own base with the control behind it, queries included."""
    assert resolve_control(base, control) == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ("", "rtsp://10.0.0.5/main/trackID=0"),
        ("Content-Base: rtsp://10.0.0.5/other/", "rtsp://10.0.0.5/other/trackID=0"),
        ("Content-Location: rtsp://10.0.0.5/there", "rtsp://10.0.0.5/there/trackID=0"),
        ("Content-Base: /main/", "rtsp://10.0.0.5/main/trackID=0"),
        ("Content-Base:", "rtsp://10.0.0.5/main/trackID=0"),
        ("content-base :  rtsp://192.168.0.1:554/x ", "rtsp://192.168.0.1:554/x/trackID=0"),
    ],
)
def test_camera_29_content_base_may_be_missing_or_odd(headers: str, expected: str) -> None:
    """What is no URL counts as missing."""
    talk = Talk()
    assert talk.described(headers) == f"SETUP {expected} RTSP/1.0"


def test_a_session_wide_control_is_what_is_played() -> None:
    """If it is a URL of its own."""
    talk = Talk()
    talk.described(body=b"a=control:rtsp://10.0.0.5/all\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n")
    assert talk.hears("200 OK | Session: 1 | Transport: RTP/AVP/TCP;interleaved=0-1") == "PLAY rtsp://10.0.0.5/all RTSP/1.0"


def test_a_redirect_asks_for_a_new_connection_and_a_new_login() -> None:
    """3xx with a location; a bounded number of times; the nonce of the old server is nobody's business."""
    talk = Talk(login=("admin", "x"))
    talk.hears('401 No | WWW-Authenticate: Digest realm="c", nonce="1"')
    talk.hears("200 OK")
    assert talk.hears("302 Moved | Location: rtsp://10.0.0.6:8554/main") == ""
    assert talk.client.redirect == "rtsp://10.0.0.6:8554/main"
    talk.said = talk.client.start()
    assert talk.line == "OPTIONS rtsp://10.0.0.6:8554/main RTSP/1.0"
    assert talk.header("Authorization") == ""

    def run_round() -> None:
        for _ in range(REDIRECTS_MAX + 1):
            talk.hears("200 OK")
            talk.hears("301 Moved | Location: rtsp://10.0.0.6/main")
            talk.client.start()

    with pytest.raises(SourceSilentError, match="redirects"):
        run_round()


def test_basic_is_never_shown_to_another_host() -> None:
    """Who answers in the camera's name must not learn the password by sending us elsewhere."""
    talk = Talk(login=("admin", "x"))
    talk.hears("200 OK")
    talk.hears("302 Moved | Location: rtsp://10.0.0.66/main")
    talk.client.start()
    with pytest.raises(SourceRefusedError):
        talk.hears('401 No | WWW-Authenticate: Basic realm="c"')


def test_a_redirect_to_something_else_is_left_to_the_other_engine() -> None:
    """HTTP, for example."""
    talk = Talk()
    talk.hears("200 OK")
    with pytest.raises(SourceUnsupportedError):
        talk.hears("302 Moved | Location: http://10.0.0.6/main")


# --- oddities of the session (24, 25, 29)


@pytest.mark.parametrize(
    ("transport", "channel"),
    [
        ("RTP/AVP/TCP;unicast;interleaved=0-1", 0),
        ("RTP/AVP/TCP; unicast; interleaved = 4-5 ; mode=play", 4),
        ("rtp/avp/tcp;INTERLEAVED=6", 6),
        ('RTP/AVP/TCP;interleaved="8-9"', 8),
        ("RTP/AVP/TCP;unicast", 0),
        ("", 0),
        ("RTP/AVP;unicast;interleaved=2-3", 2),
    ],
)
def test_camera_29_transport_headers_are_read_as_cameras_write_them(transport: str, channel: int) -> None:
    """Spaces, quotes, one channel, none, no header at all: then it is what was asked for."""
    talk = Talk()
    talk.described()
    talk.hears("200 OK | Session: 1" + (f" | Transport: {transport}" if transport else ""))
    assert talk.client.setups[0].channel == channel


@pytest.mark.parametrize(
    "answer",
    [
        "461 Unsupported Transport",
        "200 OK | Session: 1 | Transport: RTP/AVP;unicast;client_port=1-2;server_port=3-4",
        "200 OK | Session: 1 | Transport: RTP/AVP/UDP;unicast;client_port=1-2",
        "200 OK | Session: 1 | Transport: RTP/AVP/TCP;unicast;interleaved=999",
    ],
)
def test_a_camera_that_does_not_send_over_tcp_is_left_to_the_other_engine(answer: str) -> None:
    """461, or an answer that speaks of ports."""
    talk = Talk()
    talk.described()
    with pytest.raises(SourceUnsupportedError):
        talk.hears(answer)


def over_udp(ports: Sequence[int] = (5000, 5002)) -> Talk:
    """A client that asks for UDP, up to its first SETUP."""
    talk = Talk()
    talk.client.open_ports = iter(ports).__next__
    talk.described()
    return talk


def test_the_way_to_play_over_udp() -> None:
    """Each track is asked for with a pair of ports; the camera's own, and its address, stand in the answer."""
    talk = over_udp()
    assert talk.header("Transport") == "RTP/AVP;unicast;client_port=5000-5001"
    talk.hears("200 OK | Session: 1 | Transport: RTP/AVP;unicast;client_port=5000-5001;server_port=6970-6971;ssrc=ABCD")
    assert talk.header("Transport") == "RTP/AVP;unicast;client_port=5002-5003"
    talk.hears("200 OK | Session: 1 | Transport: RTP/AVP/UDP;unicast;source=10.0.0.6;server_port=6972-6973")
    assert talk.line.startswith("PLAY ")
    assert [(setup.channel, setup.ports, setup.source) for setup in talk.client.setups] == [
        (0, (6970, 6971), ""),
        (2, (6972, 6973), "10.0.0.6"),
    ]


@pytest.mark.parametrize(
    ("transport", "ports", "source"),
    [
        ("RTP/AVP;unicast;server_port = 6000", (6000, 6001), ""),
        ('RTP/AVP;unicast;Server_Port="6000-6007";source="fd00::5"', (6000, 6007), "fd00::5"),
        ("RTP/AVP;server_port=6000-6001;source=0.0.0.0", (6000, 6001), ""),
        ("RTP/AVP;server_port=6000-6001;source=camera.local", (6000, 6001), ""),
        ("RTP/AVP;server_port=6000-6001;source=1.2.3", (6000, 6001), ""),
    ],
)
def test_answers_about_ports_are_read_as_cameras_write_them(transport: str, ports: tuple[int, int], source: str) -> None:
    """One port, spaces, quotes; names and addresses that are none count as missing."""
    talk = over_udp()
    talk.hears(f"200 OK | Session: 1 | Transport: {transport}")
    assert (talk.client.setups[0].ports, talk.client.setups[0].source) == (ports, source)


@pytest.mark.parametrize(
    "answer",
    [
        "461 Unsupported Transport",
        "200 OK | Session: 1",
        "200 OK | Session: 1 | Transport: RTP/AVP;unicast;client_port=1-2",
        "200 OK | Session: 1 | Transport: RTP/AVP/TCP;unicast;interleaved=0-1;server_port=3-4",
        "200 OK | Session: 1 | Transport: RTP/AVP;multicast;destination=239.0.0.1;server_port=3-4",
        "200 OK | Session: 1 | Transport: RTP/AVP;unicast;server_port=0-1",
        "200 OK | Session: 1 | Transport: RTP/AVP;unicast;server_port=99999-3",
    ],
)
def test_a_camera_that_does_not_send_over_udp_is_left_to_the_other_engine(answer: str) -> None:
    """461, an answer without ports or with such as there are none, TCP, multicast."""
    talk = over_udp()
    with pytest.raises(SourceUnsupportedError, match="over UDP"):
        talk.hears(answer)


def test_two_tracks_on_one_channel_are_left_to_the_other_engine() -> None:
    """They could not be told apart."""
    talk = Talk()
    talk.described()
    talk.hears("200 OK | Session: 1 | Transport: RTP/AVP/TCP;interleaved=0-1")
    with pytest.raises(SourceUnsupportedError, match="one channel"):
        talk.hears("200 OK | Session: 1 | Transport: RTP/AVP/TCP;interleaved=1-2")


def test_camera_24_channels_on_which_an_old_session_sends_are_avoided() -> None:
    """Some servers go on serving a dead connection's session into the next one that gets its descriptor."""
    talk = Talk()
    talk.client.avoid |= {0, 3}
    talk.described()
    assert talk.header("Transport").endswith("interleaved=4-5")
    talk.hears("200 OK | Session: 1 | Transport: RTP/AVP/TCP;interleaved=4-5")
    assert talk.header("Transport").endswith("interleaved=6-7")


@pytest.mark.parametrize(
    ("session", "keepalive_s"),
    [
        ("Session: 1", 30.0),
        ("Session: 1;timeout=10", 5.0),
        ("Session: 1; Timeout=4", 2.0),
        ("Session: 1;timeout=1", 0.5),
        ("Session: 1;timeout=0", 30.0),
        ("Session: 1;timeout=soon", 30.0),
        ("Session: 1;timeout=99999", 49_999.5),
    ],
)
def test_camera_25_keepalives_come_at_half_the_session_timeout(session: str, keepalive_s: float) -> None:
    """Also where that is shorter than any client's habit."""
    talk = Talk()
    talk.plays(session)
    assert talk.client.keepalive_s == keepalive_s


@pytest.mark.parametrize(
    ("public", "method"), [("OPTIONS, GET_PARAMETER", "GET_PARAMETER"), ("OPTIONS, PLAY", "OPTIONS"), ("", "GET_PARAMETER")]
)
def test_camera_25_keepalives_use_a_method_that_the_camera_knows(public: str, method: str) -> None:
    """GET_PARAMETER, or OPTIONS where the camera says, or shows, that it does not know that."""
    talk = Talk()
    talk.hears("200 OK" + (f" | Public: {public}" if public else ""))
    talk.hears("200 OK", SDP)
    for _ in range(2):
        talk.hears("200 OK | Session: 7")
    talk.hears("200 OK")
    talk.said = talk.client.keepalive()
    assert talk.line.startswith(method)
    assert talk.header("Session") == "7"
    assert talk.hears("551 Option not supported") == ""
    assert talk.client.keepalive().startswith(b"OPTIONS")


@pytest.mark.parametrize("answer", ["454 Session Not Found", "500 Oh", "401 No", "404 What", "200 OK"])
def test_camera_25_no_answer_to_a_keepalive_ends_a_session_that_plays(answer: str) -> None:
    """Packets tell whether it lives."""
    talk = Talk()
    talk.plays()
    talk.client.keepalive()
    assert talk.hears(answer) == ""
    assert talk.client.state is State.PLAYING


def test_camera_25_a_keepalive_with_a_stale_nonce_is_said_again() -> None:
    """Nonces grow old in sessions of days."""
    talk = Talk(login=("admin", "x"))
    talk.hears('401 No | WWW-Authenticate: Digest realm="c", nonce="1"')
    talk.plays()
    talk.client.keepalive()
    assert talk.hears('401 No | WWW-Authenticate: Digest realm="c", nonce="2", stale=true').startswith("GET_PARAMETER")
    assert 'nonce="2"' in talk.header("Authorization")


def test_a_camera_s_own_requests_are_answered() -> None:
    """They are rare, and some servers end the session without an answer; REDIRECT ends it."""
    talk = Talk()
    talk.plays()
    assert talk.client.receive(Call("OPTIONS", {"cseq": ("12\r\nX: y",)})) == b"RTSP/1.0 200 OK\r\nCSeq: 12\r\n\r\n"
    with pytest.raises(SourceEndedError):
        talk.client.receive(Call("REDIRECT", {}))


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("404 Not Found", SourceNotVideoError),
        ("403 Forbidden", SourceRefusedError),
        ("453 Not Enough Bandwidth", SourceSilentError),
        ("503 Service Unavailable", SourceSilentError),
        ("302 Moved", SourceSilentError),
    ],
)
def test_a_refusal_says_what_the_camera_said(answer: str, error: type[SourceError]) -> None:
    """Its status and words, under the error that tells what to do."""
    talk = Talk("rtsp://10.0.0.5/main?password=s3cr3t")
    talk.hears("200 OK")
    with pytest.raises(error, match=answer) as raised:
        talk.hears(answer)
    assert "s3cr3t" not in raised.value.message


def test_a_provisional_answer_is_waited_over() -> None:
    """100 Continue is no answer yet."""
    talk = Talk()
    assert talk.hears("100 Continue") == ""
    assert talk.hears("200 OK").startswith("DESCRIBE")


def test_a_description_without_anything_is_no_video() -> None:
    """An empty body, for example."""
    talk = Talk()
    talk.hears("200 OK")
    with pytest.raises(SourceNotVideoError):
        talk.hears("200 OK", b"")


@given(
    st.lists(
        st.tuples(
            st.sampled_from([100, 200, 200, 200, 301, 302, 401, 403, 404, 453, 461, 500]),
            st.dictionaries(
                st.sampled_from(["session", "transport", "location", "content-base", "public", "www-authenticate", "x"]),
                st.one_of(
                    st.text(max_size=40),
                    st.sampled_from(
                        [
                            "1;timeout=9",
                            "RTP/AVP/TCP;interleaved=0-1",
                            "rtsp://10.0.0.6/a",
                            'Digest realm="r", nonce="n"',
                            'Basic realm="r"',
                            "OPTIONS",
                        ]
                    ),
                ),
                max_size=4,
            ),
            st.one_of(st.just(SDP), st.binary(max_size=60)),
        ),
        max_size=20,
    )
)
def test_no_answers_make_it_raise_anything_but_its_own_errors(answers: list[tuple[int, dict[str, str], bytes]]) -> None:
    """Whatever a server says, in whatever order: the next request, or why there is none; one request has one line per header."""
    client = Client(URL, Login("admin", "x"), everything)
    client.start()
    for status, headers, body in answers:
        try:
            said = client.receive(Response(status, "", {name: (value,) for name, value in headers.items()}, body))
        except SourceError:
            return
        assert said.count(b"\r\n\r\n") == bool(said)
        if client.redirect is not None:
            client.redirect = None
            client.start()
    client.keepalive()
    client.teardown()
