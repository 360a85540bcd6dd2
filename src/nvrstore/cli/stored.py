"""What `ls`, `export` and `verify` share: the place that they look at, and how they show where they are.

PLACE = a configuration (TOML)     its targets and its catalog
      | a target directory         what lies there, without a configuration
      | a volume file              that one volume, wherever it lies
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer

from nvrstore.config import Config
from nvrstore.errors import TargetIdentityError, UsageError
from nvrstore.journal.names import TARGET_FILE, VOLUME_SUFFIX
from nvrstore.playback.core import ArchiveCore

CLOSE_S: Final = 2.0

Place = Annotated[
    Path,
    typer.Argument(
        metavar="PLACE", envvar="NVRSTORE_CONFIG", help="A configuration file, a target directory, or a volume.", show_default=False
    ),
]
From = Annotated[str, typer.Option("--from", metavar="TIME", help="ISO 8601, `now`, or -10min, -2h, -1d.", show_default=False)]
To = Annotated[str, typer.Option("--to", metavar="TIME", help="The same.", show_default=False)]


@contextmanager
def archive_at(place: Path) -> Iterator[ArchiveCore]:
    """The archive at a place. Raises `UsageError`, `ConfigError`, `TargetIdentityError`."""
    core = _opened(place)
    try:
        yield core
    finally:
        core.close(CLOSE_S)


def _opened(place: Path) -> ArchiveCore:
    if place.is_dir():
        if not (place / TARGET_FILE).is_file():
            raise TargetIdentityError(f"{place} is a directory without a {TARGET_FILE}: it is no target", target=str(place))
        return ArchiveCore.of_directories({place.resolve().name or "target": place.resolve()})
    if place.suffix == VOLUME_SUFFIX:
        if not place.is_file():
            raise UsageError(f"there is no file {place}")
        return ArchiveCore.of_volume(place.resolve())
    return ArchiveCore.configured(Config.load(place))


@contextmanager
def progress(what: str, *, shown: bool) -> Iterator[Callable[[float, str], None]]:
    """A line on standard error that tells the share that is done (0..1) and where; only on a terminal."""
    if not shown or not sys.stderr.isatty():
        yield lambda share, where: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[where]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=1.0, where="")
        yield lambda share, where: bar.update(task, completed=share, where=where)
