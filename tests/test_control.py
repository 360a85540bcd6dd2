"""The control socket."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nvrstore.control import ControlServer, NotRunningError, RemoteError, call
from nvrstore.errors import UsageError


def refuse(args: dict[str, Any]) -> None:
    raise UsageError("open rtsp://admin:secret@10.0.0.5/main is no use", hint="try another")


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    server = ControlServer(tmp_path / "control.sock", {"echo": lambda args: args, "refuse": refuse, "bug": lambda args: 1 / 0})
    server.start()
    yield tmp_path / "control.sock"
    server.close()


def test_a_verb_gets_its_arguments_and_its_result_comes_back(path: Path) -> None:
    """JSON in, JSON out."""
    assert call(path, "echo", a=1, b=["x"]) == {"a": 1, "b": ["x"]}


def test_only_the_owner_may_speak_to_it(path: Path) -> None:
    """Whoever may steer a recorder may stop it."""
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_an_error_comes_back_as_sentence_hint_and_exit_status_without_credentials(path: Path) -> None:
    """The command line shows it as if it had happened there."""
    with pytest.raises(RemoteError) as caught:
        call(path, "refuse")
    assert "***@10.0.0.5" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.hint == "try another"
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("verb", ["bug", "no-such-verb"])
def test_a_bug_or_an_unknown_verb_does_not_end_the_server(path: Path, verb: str) -> None:
    """The next caller is served."""
    with pytest.raises(RemoteError):
        call(path, verb)
    assert call(path, "echo") == {}


@pytest.mark.parametrize("line", [b"\n", b"{\n", b"[]\n", b'{"v": 99, "verb": "echo"}\n', b"\xff\xfe\n"])
def test_garbage_is_answered_with_an_error_or_a_hang_up(path: Path, line: bytes) -> None:
    """Nothing a client sends concerns another one."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        sock.sendall(line)
        sock.shutdown(socket.SHUT_WR)
        answer = sock.makefile("rb").readline()
    assert b'"ok": true' not in answer
    assert call(path, "echo") == {}


def test_without_a_recorder_the_error_says_how_to_start_one(tmp_path: Path) -> None:
    """A missing socket and a dead one look the same to the user."""
    with pytest.raises(NotRunningError) as caught:
        call(tmp_path / "control.sock", "status")
    assert "nvrstore record" in caught.value.hint
    assert caught.value.exit_status == 3


def test_a_socket_left_by_a_killed_recorder_is_replaced(tmp_path: Path) -> None:
    """Its state directory is locked by us: nobody else can be listening."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "control.sock"))
    server = ControlServer(tmp_path / "control.sock", {"echo": lambda args: args})
    server.start()
    try:
        assert call(tmp_path / "control.sock", "echo") == {}
    finally:
        server.close()
    assert not (tmp_path / "control.sock").exists()


def test_a_long_path_works_too(tmp_path: Path) -> None:
    """The kernel's limit of 108 bytes is not the user's problem."""
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    server = ControlServer(folder / "control.sock", {"echo": lambda args: args})
    server.start()
    try:
        assert call(folder / "control.sock", "echo") == {}
    finally:
        server.close()
