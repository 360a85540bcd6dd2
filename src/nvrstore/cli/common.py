"""What all verbs share: their form, their options, how they show values, times and errors.

A verb is one module `nvrstore/cli/<verb>.py` with either

    def command(config: ConfigFile, as_json: JsonFlag = False) -> None: ...       one function, typer's annotations
    app = typer.Typer(...)                                                        a group: `target init`, `catalog rebuild`

It is imported only when asked for, so it may import what it needs at its top. It shows its result with `show_table` and
`say`, or with one `print_json` under `--json` (a live verb: one `print_event` per line). It ends by returning, by
`raise typer.Exit(1)` when the check it was asked for failed, or by letting an `NvrstoreError` go: `main` (in
`__init__.py`) shows that one, and knows the exit status. No verb prints a credential: all output goes through `redact`.

Exit status: 0 done, 1 failed the check, 2 usage or configuration, 3 not reachable, 70 a mistake of nvrstore itself,
130 interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from nvrstore.clock import SYSTEM_CLOCK, Clock
from nvrstore.errors import ConfigError, NvrstoreError, UsageError, redact
from nvrstore.model import NS_PER_S

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

STATUS_INTERNAL: Final = 70  # EX_SOFTWARE of sysexits.h
STATUS_INTERRUPTED: Final = 130

JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON document on standard output instead of text.")]
ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG", envvar="NVRSTORE_CONFIG", help="Configuration file (TOML).", show_default=False)
]


def unseen(text: str) -> Path:
    """A path that may lie on a target. As `parser` of an argument: typer itself looks at every Path, and a hung mount would keep it."""
    return Path(text)


# --- showing ---------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """`value` as JSON can say it: dataclasses and models as objects, enums by value, paths and times as text."""
    match value:
        case None | bool() | int() | float() | str() if not isinstance(value, Enum):
            return value
        case Enum():
            return plain(value.value)
        case Mapping():
            return {key if isinstance(key, str) else str(plain(key)): plain(v) for key, v in value.items()}
        case bytes() | bytearray() | memoryview():
            return bytes(value).hex()
        case datetime():
            return value.isoformat()
        case set() | frozenset():
            return sorted(plain(v) for v in value)
        case list() | tuple():
            return [plain(v) for v in value]
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        case _ if hasattr(value, "model_dump"):
            return value.model_dump(mode="json", by_alias=True)
        case _:
            return str(value)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(redact(json.dumps(plain(value), indent=2, ensure_ascii=False)))


def print_event(value: Any) -> None:
    """One JSON object on one line of standard output, at once."""
    typer.echo(redact(json.dumps(plain(value), ensure_ascii=False)))
    sys.stdout.flush()


def say(text: str = "") -> None:
    """One line for people on standard output."""
    typer.echo(redact(text))


def warn(text: str) -> None:
    """One line for people on standard error: what went on all the same."""
    typer.echo(f"warning: {redact(text)}", err=True)


def console() -> Console:
    """A console of rich: coloured and as wide as the terminal; plain and never wrapped into a pipe or a file."""
    from rich.console import Console

    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=10_000)


def show_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> None:
    """A table. Columns whose name begins with ">" are aligned to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.removeprefix(">"), justify="right" if right else "left", no_wrap=not sys.stdout.isatty())
    for row in rows:
        table.add_row(*(Text(redact("" if cell is None else str(cell))) for cell in row))
    console().print(table)


def show_error(error: NvrstoreError, *, as_json: bool) -> None:
    """`error: sentence` and `hint: next step` on standard error; under --json an object on standard output."""
    if as_json:
        detail: dict[str, Any] = {
            "type": type(error).__name__,
            "message": error.message,
            "hint": error.hint,
            "outcome": error.outcome.value,
            "exit_status": error.exit_status,
        }
        if isinstance(error, ConfigError):
            detail["problems"] = [{"place": place, "message": sentence} for place, sentence in error.problems]
        print_json({"error": detail})
        return
    typer.echo(f"error: {redact(error.message)}", err=True)
    if error.hint:
        typer.echo(f"hint: {redact(error.hint)}", err=True)


def human_bytes(count: float) -> str:
    """`1.5 GB`: decimal units, three digits."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"


def human_s(seconds: float) -> str:
    """`12 ms`, `3.4 s`, `5 min 10 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, small_size, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // small_size
            return f"{whole // size} {unit}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


# --- times -----------------------------------------------------------------------------------------------------

_RELATIVE: Final = re.compile(r"([+-])(\d+(?:\.\d+)?)(s|min|m|h|d)")
_UNIT_S: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def iso(utc_ns: int | None) -> str:
    """`2026-11-23T07:45:10.123Z`; "-" for None."""
    if utc_ns is None:
        return "-"
    moment = datetime.fromtimestamp(utc_ns // NS_PER_S, UTC) + timedelta(microseconds=utc_ns % NS_PER_S // 1000)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(text: str, clock: Clock = SYSTEM_CLOCK) -> int:
    """UTC nanoseconds from ISO 8601 (no offset: the machine's local time), `now`, `-10min`, `-2h`, `-1d`. Raises `UsageError`."""
    if text == "now":
        return clock.utc_ns()
    if match := _RELATIVE.fullmatch(text):
        distance_ns = round(float(match[2]) * _UNIT_S[match[3]] * NS_PER_S)
        return clock.utc_ns() + (distance_ns if match[1] == "+" else -distance_ns)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{text!r} is no time", hint="write 2026-11-23T07:45:10Z, 2026-11-23T08:45:10+01:00, now, or -10min") from None
    since = moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * NS_PER_S + since.microseconds * 1000


# --- running ---------------------------------------------------------------------------------------------------


def run_async(function: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
    """Run an async function to its end. Of a group with one exception, that exception is raised."""
    import anyio

    try:
        return anyio.run(partial(function, *args, **kwargs))
    except BaseExceptionGroup as group:
        only: BaseException = group
        while isinstance(only, BaseExceptionGroup) and len(only.exceptions) == 1:
            only = only.exceptions[0]
        raise only from None
