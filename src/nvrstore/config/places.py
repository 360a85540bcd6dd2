"""On which line of a TOML text each key and each array element begins.

    places("a = 1\\n[[stream]]\\nid = 'x'")  ->  {("a",): 1, ("stream",): 2, ("stream", 0): 2, ("stream", 0, "id"): 3}

`tomllib` gives values without places, and a mistake without a line is a search. This walks a text that tomllib has
accepted, looking only at what bounds keys and values (TOML 1.0: keys, tables, arrays of tables, inline tables). It
validates nothing and, given anything else, may give wrong lines, never an exception.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

Path = tuple[str | int, ...]

_BLANK: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY: Final = re.compile(r"""[ \t]*(?:"((?:[^"\\\n]|\\.)*)"|'([^'\n]*)'|([A-Za-z0-9_-]+))[ \t]*""")
_STRING: Final = re.compile(r'"""(?s:(?:[^\\]|\\.)*?)"""+|' + r"'''(?s:.*?)'''+|" + r'"(?:[^"\\\n]|\\.)*"|' + r"'[^'\n]*'")
_SCALAR: Final = re.compile(r"[^,\]}\n#]*")


def places(text: str) -> dict[Path, int]:
    """Line numbers, from 1, by path."""
    return _Walk(text).run()


def line_of(known: Mapping[Path, int], path: Path) -> int | None:
    """The line of `path`, or of the nearest table around it."""
    while path and path not in known:
        path = path[:-1]
    return known.get(path)


class _Walk:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self.counts: dict[Path, int] = {}  # elements so far of each array of tables

    def run(self) -> dict[Path, int]:
        table: Path = ()
        while self._skip_blank() < len(self.text):
            before = self.at
            if self.text.startswith("[", self.at):
                table = self._header()
            else:
                self._pair(table)
            if self.at == before:
                break  # not TOML: give up with what is known
        return self.lines

    def _skip_blank(self) -> int:
        match = _BLANK.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return self.at

    def _note(self, path: Path) -> None:
        self.lines.setdefault(path, self.text.count("\n", 0, self.at) + 1)

    def _keys(self) -> list[str]:
        keys = []
        while match := _KEY.match(self.text, self.at):
            keys.append(next(group for group in match.groups() if group is not None))
            self.at = match.end()
            if not self.text.startswith(".", self.at):
                break
            self.at += 1
        return keys

    def _header(self) -> Path:
        double = self.text.startswith("[[", self.at)
        start = self.at
        self.at += 2 if double else 1
        keys = self._keys()
        end = self.at + (2 if double else 1)
        self.at = start  # the line of a header is where its bracket stands
        path: Path = ()
        for i, key in enumerate(keys):
            path = (*path, key)
            self._note(path)
            if double and i == len(keys) - 1:
                self.counts[path] = self.counts.get(path, 0) + 1
            if path in self.counts:
                path = (*path, self.counts[path] - 1)
                self._note(path)
        self.at = end
        return path

    def _pair(self, table: Path) -> None:
        start = self.at
        keys = self._keys()
        after, self.at = self.at, start
        path = table
        for key in keys:
            path = (*path, key)
            self._note(path)
        self.at = after
        if keys and self.text.startswith("=", self.at):
            self.at += 1
            self._value(path)

    def _value(self, path: Path) -> None:
        self._skip_blank()
        if self.text.startswith("[", self.at):
            self._sequence(path, "]")
        elif self.text.startswith("{", self.at):
            self._sequence(path, "}")
        elif match := _STRING.match(self.text, self.at) or _SCALAR.match(self.text, self.at):
            self.at = match.end()

    def _sequence(self, path: Path, close: str) -> None:
        self.at += 1
        index = 0
        while self._skip_blank() < len(self.text) and not self.text.startswith(close, self.at):
            before = self.at
            if close == "]":
                self._note((*path, index))
                self._value((*path, index))
            else:
                self._pair(path)
            index += 1
            self._skip_blank()
            if self.text.startswith(",", self.at):
                self.at += 1
            if self.at == before:
                break
        self.at += 1
