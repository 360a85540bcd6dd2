"""From TOML to a `Config`: files, includes, and every mistake at once with its place.

    nvr.toml ── include ──▶ cameras.d/*.toml       one pass per file: syntax, tables one by one; then names across all
    mistakes: ("nvr.toml:14 stream[3].url", "is missing"), ...

An included file may hold targets, journals, streams, its own `stream_defaults` (for its own streams, over the including
file's) and includes. A file is read once: a circle or a second way to the same file is a mistake. What was written is
repeated in a sentence only where it can be no secret.
"""

from __future__ import annotations

import glob
import os
import re
import tomllib
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, Final, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from nvrstore.config import checks, places
from nvrstore.config.models import Config, JournalConfig, Objectives, RecorderConfig, StreamConfig, StreamDefaults, Table, TargetConfig
from nvrstore.errors import ConfigError, redact

M = TypeVar("M", bound=Table)

FORMAT: Final = 1
_LISTS: Final[Mapping[str, tuple[type[Table], str, str]]] = {
    "target": (TargetConfig, "name", ""),
    "journal": (JournalConfig, "name", "targets"),
    "stream": (StreamConfig, "id", "journal"),
}
_TABLES: Final[Mapping[str, type[Table]]] = {"recorder": RecorderConfig, "stream_defaults": StreamDefaults, "objectives": Objectives}
_KNOWN: Final = ("format", "include", *_TABLES, *_LISTS)
_MAIN_ONLY: Final = ("recorder", "objectives")

_SENTENCES: Final = {
    "missing": "is missing",
    "string_type": "must be a text",
    "path_type": "must be a path",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a table",
    "mapping_type": "must be a table",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "must be at most 64 letters, digits, '.', '_' or '-', and begin with a letter or digit",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
}


@dataclass
class _Reading:
    """What was found so far, over all files."""

    problems: list[checks.Problem] = field(default_factory=list)
    unread: bool = False  # a file could not be read: what would be in it is not missing
    files: list[Path] = field(default_factory=list)
    tables: dict[str, Any] = field(default_factory=dict)
    targets: list[checks.Entry[TargetConfig]] = field(default_factory=list)
    journals: list[checks.Entry[JournalConfig]] = field(default_factory=list)
    streams: list[checks.Entry[StreamConfig]] = field(default_factory=list)


@dataclass(frozen=True)
class _File:
    """One file on its way: its name for people, the directory its paths count from, its lines, the files that lead to it."""

    name: str
    base: str
    lines: Mapping[places.Path, int]
    stack: tuple[Path, ...]

    def at(self, *path: str | int) -> str:
        """`nvr.toml:14 stream[3].url`."""
        line = places.line_of(self.lines, path)
        return f"{self.name}:{line} {checks.shown(path)}" if line else f"{self.name} {checks.shown(path)}".strip()


def load(path: str | os.PathLike[str]) -> Config:
    """See `Config.load`."""
    reading = _Reading()
    main = Path(os.path.abspath(path))
    _read_file(main, os.fspath(path), reading, (), StreamDefaults(), asked_at=None)
    return _finish(reading, os.fspath(path))


def parse(source: str | Mapping[str, Any], *, base: str | os.PathLike[str] = "", name: str = "configuration") -> Config:
    """See `Config.parse`."""
    reading = _Reading()
    directory = os.path.abspath(base or ".")
    if isinstance(source, str):
        _read_text(source, name, directory, reading, (), StreamDefaults())
    else:
        _read_tables(source, _File("", directory, {}, ()), reading, StreamDefaults())
    return _finish(reading, name)


def _finish(reading: _Reading, source: str) -> Config:
    problems = reading.problems
    if not reading.unread:
        if "recorder" not in reading.tables:
            problems.append(("recorder", "is missing"))
        for key, found in (("target", reading.targets), ("journal", reading.journals)):
            if not found and not any(place.endswith(key) for place, _ in problems):
                problems.append((key, f"is missing: there must be at least one [[{key}]]"))
        problems += checks.across(reading.targets, reading.journals, reading.streams)
    if problems:
        raise ConfigError(sorted(problems, key=_order(problems)), source=source)
    return Config(
        recorder=reading.tables["recorder"],
        targets=tuple(entry.value for entry in reading.targets if entry.value is not None),
        journals=tuple(entry.value for entry in reading.journals if entry.value is not None),
        streams=tuple(entry.value for entry in reading.streams if entry.value is not None),
        stream_defaults=reading.tables.get("stream_defaults", StreamDefaults()),
        objectives=reading.tables.get("objectives", Objectives()),
    )


def _order(problems: Sequence[checks.Problem]) -> Callable[[checks.Problem], tuple[int, int]]:
    """As one reads: by file in the order of their first mistakes, then by line."""
    split = re.compile(r"(.*?):(\d+)\b")
    files: dict[str, int] = {}
    for place, _ in problems:
        files.setdefault(match[1] if (match := split.match(place)) else "", len(files))

    def key(problem: checks.Problem) -> tuple[int, int]:
        match = split.match(problem[0])
        return (files[match[1]], int(match[2])) if match else (files[""], 0)

    return key


# --- files -----------------------------------------------------------------------------------------------------


def _read_file(
    path: Path, shown: str, reading: _Reading, stack: tuple[Path, ...], defaults: StreamDefaults, *, asked_at: str | None
) -> None:
    where = asked_at or shown
    real = Path(os.path.realpath(path))
    if real in stack:
        circle = " -> ".join(step.name for step in (*stack[stack.index(real) :], real))
        reading.problems.append((where, f"includes run in a circle: {circle}"))
        return
    if real in reading.files:
        reading.problems.append((where, f"{shown} is included twice"))
        return
    reading.files.append(real)
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else f"is not UTF-8 text (byte {error.start})"
        reading.problems.append((where, why if asked_at is None else f"{shown} {why}"))
        reading.unread = True
        return
    _read_text(text, shown, str(path.parent), reading, (*stack, real), defaults)


def _read_text(text: str, name: str, base: str, reading: _Reading, stack: tuple[Path, ...], defaults: StreamDefaults) -> None:
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = re.fullmatch(r"(?s)(.*?) \(at (?:line (\d+), column (\d+)|end of document)\)", str(error))
        what, line = (match[1], match[2]) if match else (str(error), None)
        # tomllib repeats single characters and keys, never values
        reading.problems.append((f"{name}:{line}" if line else f"{name}, at its end", f"is not TOML: {what}"))
        reading.unread = True
        return
    _read_tables(tables, _File(name, base, places.places(text), stack), reading, defaults)


def _include(patterns: Any, file: _File, reading: _Reading, defaults: StreamDefaults) -> None:
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
        reading.problems.append((file.at("include"), 'must be a list of file names such as ["cameras.d/*.toml"]'))
        return
    for i, pattern in enumerate(patterns):
        found = sorted(glob.glob(os.path.join(file.base, pattern)))
        if not found and not glob.has_magic(pattern):
            reading.problems.append((file.at("include", i), f"there is no file {pattern!r}"))
            reading.unread = True
        for path in found:
            shown = os.path.relpath(path, file.base) if os.path.isabs(pattern) is False else path
            _read_file(Path(path), shown, reading, file.stack, defaults, asked_at=file.at("include", i))


# --- tables ----------------------------------------------------------------------------------------------------


def _read_tables(raw: Mapping[str, Any], file: _File, reading: _Reading, inherited: StreamDefaults) -> None:
    """One file's tables, one by one: a mistake in one hides none in another."""
    for key in raw:
        if key not in _KNOWN:
            reading.problems.append((file.at(key), f"is an unknown key{checks.suggestion(key, _KNOWN)}"))
    if (number := raw.get("format", FORMAT)) != FORMAT or isinstance(number, bool):
        reading.problems.append((file.at("format"), f"must be {FORMAT}: this version of nvrstore reads format {FORMAT}"))
    included = len(file.stack) > 1
    for key, model in _TABLES.items():
        if key not in raw:
            continue
        if key in _MAIN_ONLY and (included or key in reading.tables):
            reading.problems.append((file.at(key), "belongs into the main file only"))
            continue
        value = _validate(model, raw[key], [key], file, reading)
        if key != "stream_defaults":
            reading.tables[key] = value
        elif isinstance(value, StreamDefaults):
            inherited = _over(value, inherited)
    if not included:
        reading.tables["stream_defaults"] = inherited
    for key in _LISTS:
        if key in raw:
            _read_list(key, raw[key], file, reading, inherited)
    if "include" in raw:
        _include(raw["include"], file, reading, inherited)


def _over(own: StreamDefaults, inherited: StreamDefaults) -> StreamDefaults:
    merged = {key: getattr(inherited, key) for key in inherited.model_fields_set} | {key: getattr(own, key) for key in own.model_fields_set}
    for key in ("options", "labels"):
        if key in merged:
            merged[key] = {**getattr(inherited, key), **getattr(own, key)}
    return StreamDefaults.model_validate(merged)


def _read_list(key: str, raw: Any, file: _File, reading: _Reading, defaults: StreamDefaults) -> None:
    model, name_key, refers_key = _LISTS[key]
    if not isinstance(raw, list | tuple):
        reading.problems.append((file.at(key), f"must be a list of tables: write [[{key}]]"))
        return
    for i, element in enumerate(raw):
        value = _validate(model, element, [key, i], file, reading)
        if isinstance(value, StreamConfig):
            value = value.with_defaults(defaults)
        name = _written(value, element, name_key)
        refers_to = _written(value, element, refers_key) or (defaults.journal if key == "stream" else None) or ()
        refers_to = [refers_to] if isinstance(refers_to, str) else [one for one in refers_to if isinstance(one, str)]
        entry = checks.Entry(partial(file.at, key, i), name if isinstance(name, str) else None, value, refers_to)
        into: Any = {"target": reading.targets, "journal": reading.journals, "stream": reading.streams}[key]
        into.append(entry)


def _written(value: Table | None, raw: Any, key: str) -> Any:
    """What stands at `key`, also in a table that has a mistake elsewhere."""
    if value is not None:
        return getattr(value, key, None)
    found = raw.get(key) if isinstance(raw, Mapping) else None
    return found if isinstance(found, str | list | tuple) else None


def _validate(model: type[M], raw: Any, path: list[str | int], file: _File, reading: _Reading) -> M | None:
    try:
        return model.model_validate(raw, context={"base": file.base})
    except ValidationError as error:
        for one in error.errors(include_url=False):
            where = [part for part in one["loc"] if not str(part).startswith("<")]
            reading.problems.append((file.at(*path, *where), _sentence(one, model, where)))
        return None


def _sentence(error: Any, model: type[BaseModel], where: Sequence[str | int]) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return f"is an unknown key{checks.suggestion(str(where[-1]), _keys(model, where[:-1]))}"
    if kind == "value_error":
        return redact(str(context["error"]))
    if kind in _SENTENCES:
        return _SENTENCES[kind].format(**context)
    return redact(str(error["msg"]))


def _keys(model: type[BaseModel], where: Sequence[str | int]) -> list[str]:
    """The keys that a table may have, by the path to it from `model`."""
    for part in where:
        if isinstance(part, int):
            continue
        fields = {_alias(name, info): info for name, info in model.model_fields.items()}
        inner = _model_in(fields[part].annotation) if part in fields else None
        if inner is None:
            return []
        model = inner
    return [_alias(name, info) for name, info in model.model_fields.items()]


def _alias(name: str, info: Any) -> str:
    return info.validation_alias if isinstance(info.validation_alias, str) else name


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model inside `X | None`, `tuple[X, ...]`, `Annotated[X, ...]`."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation if issubclass(annotation, BaseModel) else None
    if get_origin(annotation) in (typing.Union, UnionType, tuple, list, typing.Annotated):
        return next((found for arg in get_args(annotation) if (found := _model_in(arg)) is not None), None)
    return None
