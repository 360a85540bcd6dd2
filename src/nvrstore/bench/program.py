"""A program of ours in a process of its own, that answers one JSON line for each line it is sent.

It ends when its standard input does, so nothing is left behind when whoever started it dies. A session of its own:
Ctrl-C on the terminal reaches the starter alone, which ends both in order.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

from nvrstore.errors import NvrstoreError

ANSWER_S: Final = 120.0
LOOK_S: Final = 0.5
END_S: Final = 15.0


class ProgramError(NvrstoreError):
    """It ended, or did not answer."""


class Interrupted(Exception):
    """The user wants the bench to end: the step is not counted."""


class Program:
    """`python -m MODULE WORDS...`; use it under `with`. `end`: set when nobody wants its answers any more."""

    def __init__(self, name: str, words: Sequence[str], end: threading.Event | None = None) -> None:
        self._name, self._end = name, end
        self.process = subprocess.Popen(
            [sys.executable, "-m", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def answer(self) -> dict[str, Any]:
        """The next line. Raises ProgramError, `Interrupted`."""
        waited_s = 0.0
        while self.process.stdout is None or not select.select([self.process.stdout], [], [], LOOK_S)[0]:
            waited_s += LOOK_S
            if self._end is not None and self._end.is_set():
                raise Interrupted
            if waited_s >= ANSWER_S:
                raise ProgramError(f"{self._name} did not answer within {ANSWER_S:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise ProgramError(f"{self._name} ended", hint="its own words stand above")
        loaded: dict[str, Any] = json.loads(line)
        return loaded

    def ask(self, do: str) -> dict[str, Any]:
        """Send one command; its answer. Raises ProgramError."""
        if self.process.stdin is None:
            raise ProgramError(f"{self._name} takes no commands")
        try:
            self.process.stdin.write(json.dumps({"do": do}) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise ProgramError(f"{self._name} ended", hint="its own words stand above") from error
        return self.answer()

    def close(self) -> None:
        """End it, within a bound; may be called again."""
        if self.process.stdin is not None:
            try:
                self.process.stdin.close()
            except BrokenPipeError:
                pass  # it ended before it had read everything
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Cameras(Program):
    """`nvrstore farm`, steered by JSON lines."""

    def __init__(self, streams: int, bitrate: str, end: threading.Event | None = None) -> None:
        words = ["nvrstore", "farm", "--streams", str(streams), "--port", "0", "--bitrate", bitrate, "--json", "--control"]
        super().__init__("the farm of simulated cameras", words, end)
        try:
            self.port = int(self.answer()["port"])
        except BaseException:
            self.close()
            raise

    def url(self, i: int) -> str:
        return f"rtsp://127.0.0.1:{self.port}/cam{i}"
