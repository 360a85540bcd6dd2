"""The real command line: `python -m nvrstore` in a process of its own, under a bound."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

from nvrstore.journal.scan import ScanResult, scan_volume

BOUND_S: Final = 60.0  # of one command: only a program that hangs comes near it


class Ran(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """The error object of `--json`, alone on standard output."""
        error: dict[str, Any] = self.json["error"]
        assert error["exit_status"] == self.status
        return error


def nvrstore(*words: object, **environment: str) -> Ran:
    """Run one command to its end. Raises where it hangs."""
    command = [sys.executable, "-m", "nvrstore", *map(str, words)]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    try:
        out, err = process.communicate(timeout=BOUND_S)
    except subprocess.TimeoutExpired:
        process.kill()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        raise AssertionError(f"it hangs: {command}") from None
    assert "Traceback" not in err, err
    return Ran(process.returncode, out, err)


def together(*commands: Sequence[object]) -> list[Ran]:
    """Several commands at once: most of the time they wait."""
    with ThreadPoolExecutor(len(commands)) as pool:
        return list(pool.map(lambda words: nvrstore(*words), commands))


def refused(*words: object, status: int, sentence: str, hint: str, shown: bool = True) -> None:
    """A command that must be refused: a sentence, a hint, an exit status; the same as an object under --json."""
    if shown:
        ran = nvrstore(*words)
        lines = ran.err.splitlines()
        assert (ran.status, ran.out) == (status, ""), ran
        assert any(line.startswith("error: ") for line in lines), ran.err
        assert sentence in ran.err
        assert any(line.startswith("hint: ") and hint in line for line in lines), ran.err
    error = nvrstore(*words, "--json").error
    assert error["exit_status"] == status
    assert sentence in error["message"]
    assert hint in error["hint"]
    assert error["hint"]


def copied(folder: Path, into: Path) -> Path:
    """A recorded site at another place, to be damaged there; its configuration."""
    for part in folder.iterdir():
        if part.is_dir():
            shutil.copytree(part, into / part.name, ignore=shutil.ignore_patterns("control.sock", "locks"))
    config = into / "nvr.toml"
    config.write_text((folder / "nvr.toml").read_text().replace(str(folder), str(into)))
    return config


def scanned(path: Path) -> ScanResult:
    """A volume as the format's own scan sees it."""
    data = path.read_bytes()
    scan = scan_volume(len(data), deep=True, path=str(path))
    wish = next(scan)
    while True:
        try:
            wish = scan.send(data[wish.offset : wish.offset + wish.length])
        except StopIteration as stop:
            result: ScanResult = stop.value
            return result


def flip(path: Path, offset: int) -> None:
    """One bit of a file is wrong."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))
