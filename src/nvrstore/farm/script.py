"""Scripts: what happens to which streams, and when, as a TOML file.

    [[trait]]                          for life
    streams = "0-3,7"                  "all" where left out
    real_fps = 21                      any field of `Traits`

    [[event]]                          at a moment
    do = "mute"                        any deed of `Act`
    streams = "2"
    at_s = 5                           after the farm's start
    for_s = 3                          then undone
    every_s = 20                       and again

All mistakes of a file are reported at once, each with its place.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from nvrstore.errors import ConfigError, UsageError
from nvrstore.farm.oddities import PLAIN, Act, Traits

_TRAITS: Final = TypeAdapter(Traits)
_ACT: Final = TypeAdapter(Act)
_SPAN: Final = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True, slots=True)
class Script:
    """What a file says."""

    traits: Mapping[int, Traits] = field(default_factory=dict)
    acts: tuple[Act, ...] = ()


def parse_streams(text: str, streams: int) -> tuple[int, ...]:
    """`"0-3,7"` or `"all"`. Raises `UsageError`."""
    if text == "all":
        return tuple(range(streams))
    wanted: set[int] = set()
    for part in text.split(","):
        match = _SPAN.fullmatch(part.strip())
        if match is None:
            raise UsageError(f"{text!r} names no streams", hint='write "0-3,7" or "all"')
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < streams:
            raise UsageError(f"{part.strip()!r} is not among the farm's streams 0-{streams - 1}")
        wanted.update(range(first, last + 1))
    return tuple(sorted(wanted))


def _place(prefix: str, error: ValidationError) -> list[tuple[str, str]]:
    return [(".".join((prefix, *map(str, problem["loc"]))), problem["msg"]) for problem in error.errors()]


def _entry(entry: object, place: str, streams: int, problems: list[tuple[str, str]]) -> tuple[tuple[int, ...], dict[str, Any]] | None:
    """The streams that an entry names, and the rest of it."""
    if not isinstance(entry, dict):
        problems.append((place, "is no table"))
        return None
    rest = dict(entry)
    try:
        return parse_streams(str(rest.pop("streams", "all")), streams), rest
    except UsageError as error:
        problems.append((f"{place}.streams", error.message))
        return None


def parse_act(entry: Mapping[str, Any], streams: int) -> Act:
    """One event, as in a script. Raises `ConfigError`."""
    problems: list[tuple[str, str]] = []
    parts = _entry(entry, "event", streams, problems)
    if parts is not None:
        try:
            return replace(_ACT.validate_python(parts[1]), streams=parts[0])
        except ValidationError as error:
            problems += _place("event", error)
    raise ConfigError(problems, source="event")


def parse_script(text: str, streams: int, *, source: str = "script") -> Script:
    """A script for a farm of so many streams. Raises `ConfigError`."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([("file", f"is no TOML: {error}")], source=source) from None
    problems: list[tuple[str, str]] = [(name, "is not known here") for name in document if name not in ("trait", "event")]
    traits: dict[int, Traits] = {}
    acts: list[Act] = []
    for at, entry in enumerate(_list(document, "trait", problems)):
        parts = _entry(entry, f"trait[{at}]", streams, problems)
        if parts is None:
            continue
        try:
            own = _TRAITS.validate_python(parts[1])
        except ValidationError as error:
            problems += _place(f"trait[{at}]", error)
            continue
        for stream in parts[0]:
            traits[stream] = merge(traits.get(stream, PLAIN), own)
    for at, entry in enumerate(_list(document, "event", problems)):
        parts = _entry(entry, f"event[{at}]", streams, problems)
        if parts is None:
            continue
        try:
            acts.append(replace(_ACT.validate_python(parts[1]), streams=parts[0]))
        except ValidationError as error:
            problems += _place(f"event[{at}]", error)
    if problems:
        raise ConfigError(problems, source=source)
    return Script(traits, tuple(acts))


def _list(document: Mapping[str, Any], name: str, problems: list[tuple[str, str]]) -> list[object]:
    entries = document.get(name, [])
    if not isinstance(entries, list):
        problems.append((name, f"is no list of tables: write [[{name}]]"))
        return []
    return entries


def merge(one: Traits, other: Traits) -> Traits:
    """Both; where both say something, the other."""
    said = {spec.name: getattr(other, spec.name) for spec in fields(Traits) if getattr(other, spec.name) != spec.default}
    return replace(one, **said)


def load_script(path: Path, streams: int) -> Script:
    """Read a script from a file. Raises `ConfigError`, `UsageError`."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the script {str(path)!r} cannot be read: {error}") from None
    return parse_script(text, streams, source=str(path))
