"""`nvrstore farm` as another program uses it: JSON lines, commands, signals, exit status."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.rtp_client import RtspClient

from nvrstore.farm import check_access_units

pytestmark = pytest.mark.slow

SMALL = ["--port", "0", "--size", "160x120", "--bitrate", "400k", "--fps", "50", "--gop", "10"]


class FarmProcess:
    """The farm as a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.started = self.line()

    def line(self) -> dict[str, Any]:
        """The next JSON line."""
        assert self.process.stdout is not None
        line: dict[str, Any] = json.loads(self.process.stdout.readline())
        return line

    def ask(self, **command: object) -> dict[str, Any]:
        """One command and its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self.line()

    def url(self, stream: int) -> str:
        return f"rtsp://127.0.0.1:{self.started['port']}/cam{stream}"


@contextlib.contextmanager
def farm_process(*options: str) -> Iterator[FarmProcess]:
    """Run `nvrstore farm --json`; it is gone afterwards."""
    command = [sys.executable, "-m", "nvrstore", "farm", "--json", *SMALL, *options]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield FarmProcess(process)
    finally:
        process.kill()
        process.communicate()


def test_another_program_steers_the_farm_by_json_lines() -> None:
    """started, sent, an act, a mistake, stop: what was sent is what arrives; the end of its input ends the farm."""
    with farm_process("--streams", "2", "--control", "--audio", "aac") as farm, RtspClient(farm.url(1)) as client:
        assert farm.started["event"] == "farm.started"
        assert farm.started["streams"] == 2
        client.play(audio=True)
        units = client.units(20)
        assert farm.ask(do="sent")["streams"][1]["sent"] >= 20
        assert farm.ask(do="jump", streams="1", seconds=10) == {"event": "act.done", "do": "jump"}
        assert farm.ask(do="jump", streams="7")["event"] == "command.refused"
        assert farm.ask(nonsense=1)["event"] == "command.refused"
        report = farm.ask(do="stop")
        assert report["event"] == "farm.stopped"
        _, error = farm.process.communicate(timeout=20)
        units += client.to_the_end()
        assert farm.process.returncode == 0, error
    mine = report["streams"][1]
    found = check_access_units(unit.data for unit in units)
    assert [list(piece) for piece in found.ranges] == mine["ranges"]
    assert report["frames_sent"] == mine["sent"] == found.frames
    assert report["frames_dropped"] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_in_order(number: int) -> None:
    """No frame more, connections open for a moment, then what was sent; exit status 0."""
    with farm_process("--streams", "1", "--linger", "0.2") as farm, RtspClient(farm.url(0)) as client:
        client.play()
        units = client.units(5)
        farm.process.send_signal(number)
        units += client.to_the_end()
        report = farm.line()
        assert farm.process.wait(20) == 0
    assert report["event"] == "farm.stopped"
    assert report["streams"][0]["ranges"] == [[0, len(units) - 1]]


@pytest.mark.slow
def test_a_farm_that_was_stopped_does_not_catch_up() -> None:
    """SIGSTOP for three seconds: the frames of that time do not exist, and nothing comes in a burst."""
    with farm_process("--streams", "1") as farm, RtspClient(farm.url(0)) as client:
        client.play()
        units = client.units(10)
        farm.process.send_signal(signal.SIGSTOP)
        threading.Event().wait(3.0)
        farm.process.send_signal(signal.SIGCONT)
        while units[-1].timestamp - units[0].timestamp < 2 * 90_000:
            units.append(client.unit())
    assert check_access_units(unit.data for unit in units).whole
    assert len(units) < 100


def test_a_script_and_a_login_come_from_the_command_line(tmp_path: Path) -> None:
    """--script, --auth, --login, --loss, --jitter, --b-frames: as in process."""
    (tmp_path / "odd.toml").write_text('[[trait]]\nstreams = "1"\nrefuse = true\n')
    options = ["--streams", "2", "--script", str(tmp_path / "odd.toml"), "--auth", "digest", "--login", "me:pass", "--jitter", "5"]
    with farm_process(*options, "--seconds", "60", "--b-frames", "1") as farm:
        with RtspClient(farm.url(0)) as client:
            assert client.ask("DESCRIBE").status == 401
        with RtspClient(farm.url(0).replace("//", "//me:pass@")) as client:
            client.play()
            assert check_access_units(unit.data for unit in client.units(10)).whole
        with RtspClient(farm.url(1).replace("//", "//me:pass@")) as client:
            assert client.ask("DESCRIBE").status == 401
        assert "pass" not in json.dumps(farm.started)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--size", "big"], "is no picture size"),
        (["--bitrate", "fast"], "is no bitrate"),
        (["--audio", "mp3"], "is no audio codec"),
        (["--loss", "200"], "loss: a share"),
        (["--burn", "--streams", "9"], "burn: at most 8"),
        (["--script", "/nonexistent.toml"], "cannot be read"),
        (["--host", "192.0.2.1"], "cannot listen at"),
        (["--codec", "vp9"], "vp9"),
    ],
)
def test_mistakes_are_said_with_exit_status_2(options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A sentence, and no traceback."""
    from nvrstore.cli import main

    assert main(["farm", *SMALL, *options]) == 2
    output = capsys.readouterr()
    assert sentence in output.out + output.err
    assert "Traceback" not in output.err


def test_people_get_urls_and_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    """Text instead of JSON."""
    from nvrstore.cli import main

    assert main(["farm", *SMALL, "--streams", "3", "--seconds", "0.1", "--linger", "0"]) == 0
    output = capsys.readouterr().out
    assert "/cam0 ... /cam2" in output
    assert "sent 0 frames, dropped 0" in output
