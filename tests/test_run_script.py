"""The script `run`: what it says and does before there is anything to run.

It is tried in a copy of its own, with stand-ins for the system's commands in front of the PATH.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent

NOT_ROOT: Final = {"id": "echo 1000"}
NO_PYTHON: Final = dict.fromkeys(("python3.13", "python3.12", "python3.11", "python3"), "exit 1")
NO_PACKAGE: Final = {"dpkg-query": "exit 1", "apt-get": "echo apt-get was called >&2; exit 100"}

Script = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Runs a copy of the script; `commands` are the bodies of stand-ins."""
    checkout, stand_ins = tmp_path / "checkout", tmp_path / "bin"
    checkout.mkdir()
    stand_ins.mkdir()
    for name in ("run", "pyproject.toml"):
        shutil.copy(ROOT / name, checkout / name)

    def call(*words: str, commands: dict[str, str], cwd: Path = checkout) -> subprocess.CompletedProcess[str]:
        for name, body in commands.items():
            (stand_ins / name).write_text(f"#!/bin/sh\n{body}\n")
            (stand_ins / name).chmod(0o755)
        environment = {"PATH": f"{stand_ins}:/usr/bin:/bin", "HOME": str(tmp_path)}
        return subprocess.run(
            [str(checkout / "run"), *words], env=environment, cwd=cwd, capture_output=True, text=True, check=False, timeout=60
        )

    return call


def made_for(checkout: Path, level: str, python: str) -> None:
    """A stand-in for an environment that is complete: its Python says `python` about itself, its nvrstore its words and place."""
    (checkout / ".venv" / "bin").mkdir(parents=True)
    for name, body in {"python": f"echo '{python}'", "nvrstore": 'echo "nvrstore $* in $(pwd)"'}.items():
        (checkout / ".venv" / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (checkout / ".venv" / "bin" / name).chmod(0o755)
    checksum = subprocess.run("cksum <pyproject.toml", shell=True, cwd=checkout, capture_output=True, text=True, check=True).stdout
    (checkout / ".venv" / f".made-for-{level}").write_text(f"{checkout}\n{checksum}{python}\n")


@pytest.mark.parametrize("words", [[], ["help"], ["bogus"]])
def test_it_says_what_it_can_do(script: Script, words: list[str]) -> None:
    """Without a word, or with a wrong one, the list of words is shown; only `help` counts as success."""
    done = script(*words, commands={})
    assert "./run demo" in done.stdout + done.stderr
    assert done.returncode == (0 if words == ["help"] else 2)


@pytest.mark.parametrize(
    ("word", "some", "other"), [("demo", "python3 python3-venv\n", "ffmpeg"), ("test", "gir1.2-gst-rtsp-server-1.0", "no such package")]
)
def test_without_root_it_prints_the_one_line_that_is_missing(script: Script, word: str, some: str, other: str) -> None:
    """Nothing is installed behind anybody's back; the demo needs neither servers nor ffmpeg."""
    done = script(word, commands=NOT_ROOT | NO_PYTHON | NO_PACKAGE)
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1] + "\n"
    assert line.startswith("apt-get install -y --no-install-recommends python3 python3-venv")
    assert some in line
    assert other not in line
    assert "was called" not in done.stderr


def test_as_root_it_installs_and_says_what_failed(script: Script) -> None:
    """When apt cannot, the line is printed for somebody who can."""
    done = script("cli", commands={"id": "echo 0"} | NO_PYTHON | NO_PACKAGE)
    assert done.returncode == 2
    assert done.stderr.count("apt-get was called") == 2
    assert done.stderr.splitlines()[-1] == "apt-get install -y --no-install-recommends python3 python3-venv"


def test_it_is_quiet_when_all_is_there(script: Script, tmp_path: Path) -> None:
    """A complete environment is used as it is: no word, no check of packages, the words and the place are the caller's."""
    made_for(tmp_path / "checkout", "run", "3.11.2")
    done = script("cli", "ls", "a b", commands=NOT_ROOT | NO_PACKAGE, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"nvrstore ls a b in {tmp_path}\n", "")


def test_the_tools_of_the_tests_are_enough_for_the_rest(script: Script, tmp_path: Path) -> None:
    """Who has run the tests does not install again for the demo."""
    made_for(tmp_path / "checkout", "test", "3.11.2")
    assert script("demo", "--json", commands=NO_PACKAGE).stdout.startswith("nvrstore demo --json in ")


@pytest.mark.parametrize("change", ["pyproject", "python", "place"])
def test_an_environment_for_something_else_is_not_trusted(script: Script, tmp_path: Path, change: str) -> None:
    """Another pyproject.toml, another Python below it, a checkout that was moved: it is set up again."""
    checkout = tmp_path / "checkout"
    made_for(checkout, "run", "3.11.2")
    match change:
        case "pyproject":
            with (checkout / "pyproject.toml").open("a") as file:
                file.write("\n# changed\n")
        case "python":
            (checkout / ".venv" / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
        case "place":
            (checkout / ".venv" / ".made-for-run").write_text("/elsewhere\n")
            (checkout / ".venv" / ".made-in").write_text("/elsewhere\n")
    done = script("cli", "ls", commands=NOT_ROOT | NO_PYTHON | NO_PACKAGE)
    said = {"pyproject": "run: installing . into .venv", "python": "run: something is missing", "place": "run: something is missing"}
    assert done.stderr.startswith(said[change])
