"""Credentials of cameras: read when they are needed, and shown by nothing."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from nvrstore.config import Config, StreamConfig
from nvrstore.config.login import resolve_login, split_url, url_with_login
from nvrstore.errors import ConfigError, SourceError, redact

HEAD = """
recorder = { name = "nvr-1", state = "/var/lib/nvrstore" }
target = [ { name = "a", path = "/mnt/a" }, { name = "b", path = "/mnt/b" } ]
journal = [ { name = "main", targets = ["a", "b"] } ]
"""


def test_credentials_in_a_url_are_taken_out_of_it(caplog: pytest.LogCaptureFixture) -> None:
    """They serve for connecting and are shown by nothing: not repr, not dumps, not warnings, not errors."""
    url = "rtsp://admin:hunter2@10.0.0.5:554/main?subtype=0&password=hunter2"
    config = Config.parse(HEAD + f"stream = [{{ id = 'x', url = '{url}', options = {{ passphrase = 'hunter2' }} }}]")
    (stream,) = config.streams
    assert stream.resolve_login() == ("admin", "hunter2")
    assert stream.url.startswith("rtsp://10.0.0.5:554/main?")
    ((place, sentence),) = config.warnings()
    logging.getLogger("nvrstore").warning("%s %r", config, config)
    shown = [repr(config), str(config), config.model_dump_json(), str(config.model_dump()), place, sentence, caplog.text]
    assert "hunter2" not in "".join(shown)


def test_two_configurations_that_differ_in_a_password_are_not_equal() -> None:
    """Applying a new configuration reconnects a camera whose password changed."""
    one, two, same = (StreamConfig(id="x", url=f"rtsp://u:{password}@h/") for password in ("a", "b", "a"))
    assert one != two
    assert one == same


@pytest.mark.parametrize(
    ("url", "clean", "login"),
    [
        ("rtsp://h/x", "rtsp://h/x", None),
        ("rtsp://h:554/cam@1", "rtsp://h:554/cam@1", None),
        ("rtsp://[fe80::1]:554/x", "rtsp://[fe80::1]:554/x", None),
        ("rtsp://u:p@h:554/x", "rtsp://h:554/x", "u:p"),
        ("rtsp://u:p%40%2F%3A@h/x", "rtsp://h/x", "u:p@/:"),
        ("rtsp://u:p@ss@h/x", "rtsp://h/x", "u:p@ss"),
        ("rtsp://u:p/ss@h/x", "rtsp://h/x", "u:p/ss"),
        ("rtsp://u@[::1]/x", "rtsp://[::1]/x", "u:"),
        ("file:///media/a@b.mp4", "file:///media/a@b.mp4", None),
        ("/media/a@b.mp4", "/media/a@b.mp4", None),
    ],
)
def test_user_info_is_found_where_people_write_it(url: str, clean: str, login: str | None) -> None:
    """Also with characters that a URL may not hold: a password in the path would end up in logs."""
    assert split_url(url) == (clean, login)
    if login is not None:
        user, _, password = login.partition(":")
        assert split_url(url_with_login(clean, (user, password))) == (clean, login)


@pytest.mark.parametrize(
    "rest",
    [
        "admin:p@ss/w:rd%?#&ü@10.0.0.5:554/main",
        "admin:12/45@10.0.0.5/main",
        "admin:p@s/s@gate.example/main",
        "u:p@s?s@10.0.0.5",
        "u:1/2@gate:554",
    ],
)
def test_a_password_that_cannot_be_told_from_a_path_is_refused_and_not_shown(rest: str) -> None:
    """Where a URL could be read in two ways, it is not guessed: half a password would be a host name, and be shown as one."""
    with pytest.raises(ConfigError) as caught:
        Config.parse(HEAD + f"stream = [{{ id = 'x', url = 'rtsp://{rest}' }}]")
    assert "%2F" in str(caught.value)
    assert rest.split("@")[-2][:4] not in str(caught.value).replace("'stream[0]'", "")
    assert "w:rd" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://h/a.cgi?mail=x@y.z&n=1", "rtsp://h/live@hd/1", "http://h/a@b.mp4", "rtsp://u:p%40@h:554/x@1.sdp"])
def test_an_at_sign_in_a_path_is_allowed(url: str) -> None:
    """Some cameras have one there."""
    (stream,) = Config.parse(HEAD + f"stream = [{{ id = 'x', url = '{url}' }}]").streams
    assert stream.url.endswith(url.rpartition("@")[2])


@pytest.mark.parametrize(
    "url",
    [
        "rtsp://10.0.0.5/user=admin&password=hunter2&channel=1&stream=0.sdp",
        "rtsp://10.0.0.5/user=hunter2_password=hun_ter2_channel=1_stream=0.sdp?real_stream",
        "http://10.0.0.5/videostream.cgi?loginuse=hunter2&loginpas=hunter2",
        "http://10.0.0.5/x?usr=a&pwd=hunter2#t",
    ],
)
def test_credentials_that_a_camera_wants_in_its_path_are_hidden(url: str) -> None:
    """They go to the camera as they are, and are shown by nothing."""
    (stream,) = Config.parse(HEAD + f"stream = [{{ id = 'x', url = '{url}' }}]").streams
    assert stream.url == url
    for text in (redact(f"open {url} failed"), repr(stream), stream.model_dump_json()):
        assert "hunter2" not in text
        assert "ter2" not in text
        assert "10.0.0.5" in text


def test_logins_are_read_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the environment or a file, at that moment; a rotated secret is seen at the next connect."""
    secret = tmp_path / "gate"
    secret.write_text("admin:one:two\n")
    assert resolve_login(f"file:{secret}") == ("admin", "one:two")
    monkeypatch.setenv("GATE", "u:p")
    assert resolve_login("env:GATE") == ("u", "p")


@pytest.mark.parametrize("login", ["env:NOT_THERE_AT_ALL", "file:/nonexistent", "hunter2", "file:{tmp}"])
def test_a_login_that_is_not_there_is_an_error_without_a_secret(login: str, tmp_path: Path) -> None:
    """The error names the variable or the file, and never what stands in it."""
    file = tmp_path / "login"
    file.write_text("hunter2")
    with pytest.raises(SourceError) as caught:
        resolve_login(login.format(tmp=file))
    assert "hunter2" not in str(caught.value) + caught.value.hint
