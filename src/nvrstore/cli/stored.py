"""What `ls`, `export` and `verify` share: the place that they look at, and how they show where they are.

PLACE = a configuration (TOML)     its targets and its catalog
      | a target directory         what lies there, without a configuration
      | a volume file              that one volume, wherever it lies
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer

from nvrstore.cli.common import unseen
from nvrstore.config import Config
from nvrstore.errors import TargetIdentityError, TargetUnavailableError, UsageError
from nvrstore.journal.names import TARGET_FILE, VOLUME_SUFFIX
from nvrstore.playback.core import ArchiveCore
from nvrstore.targets.contract import UNAVAILABLE, Request, Verb
from nvrstore.targets.directory import DirectoryTarget
from nvrstore.targets.steps import expect

CLOSE_S: Final = 2.0
LOOK_S: Final = 10.0  # a sleeping disk may need so long to spin up

_HINT_AWAY: Final = "check the mount, the link and the device below it"

Place = Annotated[
    Path,
    typer.Argument(
        metavar="PLACE",
        envvar="NVRSTORE_CONFIG",
        parser=unseen,
        help="A configuration file, a target directory, or a volume.",
        show_default=False,
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
    if place.suffix == ".toml":
        return ArchiveCore.configured(Config.load(place))
    path = Path(os.path.abspath(place))
    is_directory, holds_target = _seen(path)
    if is_directory:
        if not holds_target:
            raise TargetIdentityError(f"{place} is a directory without a {TARGET_FILE}: it is no target", target=str(place))
        return ArchiveCore.of_directories({path.name or "target": path})
    return ArchiveCore.of_volume(path) if place.suffix == VOLUME_SUFFIX else ArchiveCore.configured(Config.load(place))


def _seen(path: Path) -> tuple[bool, bool]:
    """Whether a path is a directory, and whether it is a target. A worker looks: on a hung mount, it alone stays there."""
    beside = DirectoryTarget(str(path.parent), path.parent)
    try:
        found = beside.keeper.call(Request(Verb.STAT, path.name), LOOK_S)
        if found.errno == UNAVAILABLE:
            raise TargetUnavailableError(f"{path} did not answer within {LOOK_S:g} s", target=str(path), hint=_HINT_AWAY)
        if found.errno in (errno.ENOENT, errno.ENOTDIR):
            raise UsageError(f"there is no file {path}", hint="PLACE is a configuration, the directory of a target, or a volume")
        if not expect(found, str(path), "look at it").json()["dir"]:
            return False, False
        return True, beside.keeper.call(Request(Verb.STAT, f"{path.name}/{TARGET_FILE}"), LOOK_S).ok
    finally:
        beside.close(CLOSE_S)


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
