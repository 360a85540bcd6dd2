"""`nvrstore catalog rebuild CONFIG`: make the catalog again from the targets alone, ledger included.

Broken off, it goes on where it was. While a recorder runs it is refused: that one keeps its catalog itself. Exit status 3
when a target did not answer: the catalog then holds what the others told.
"""

from __future__ import annotations

import typer

from nvrstore.catalog.rebuild import Progress
from nvrstore.catalog.store import CATALOG_FILE
from nvrstore.cli.common import ConfigFile, JsonFlag, plain, print_json, say, warn
from nvrstore.cli.stored import archive_at, progress
from nvrstore.config import Config
from nvrstore.playback.library import rebuild as rebuild_catalog

app = typer.Typer(no_args_is_help=True)


@app.callback()
def group() -> None:
    """The index of what is stored, which can always be made again."""


@app.command("rebuild")
def rebuild(config: ConfigFile, as_json: JsonFlag = False) -> None:
    """Make the catalog again from the targets alone."""
    path = Config.load(config).recorder.state / CATALOG_FILE
    with archive_at(config) as archive, progress("rebuilding", shown=not as_json) as show:

        def step(now: Progress) -> None:
            show(now.done / max(1, now.total), now.path)

        outcome, strangers = rebuild_catalog(path, archive.copies, on_progress=step)
    if as_json:
        print_json({"catalog": str(path), "complete": outcome.complete, **plain(outcome), "strangers": plain(strangers)})
    else:
        say(f"{path}: {outcome.volumes} volumes, {outcome.adopted} of them read now")
        for stranger in strangers:
            problem = stranger.problem.removeprefix(f"{stranger.path}: ")
            warn(f"target {stranger.target!r}: {stranger.path} cannot be told: {problem}")
        for target in outcome.unreachable:
            warn(f"target {target!r} did not answer: what only it holds is not in the catalog")
    if not outcome.complete:
        raise typer.Exit(3)
