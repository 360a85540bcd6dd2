"""`nvrstore status CONFIG`: what a running recorder says of itself, over its control socket."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from nvrstore.cli.common import ConfigFile, JsonFlag, console, print_json, say
from nvrstore.cli.live import streams_view, summary, targets_table, troubles
from nvrstore.config import Config
from nvrstore.control import call

NAMES_MAX: Final = 5  # streams that are named with one hint


def command(config: ConfigFile, as_json: JsonFlag = False) -> None:
    """Streams, targets and journals of the recorder that runs with this configuration."""
    status = call(Config.load(config).recorder.state / "control.sock", "status")
    if as_json:
        print_json(status)
        return
    screen = console()
    say(summary(status))
    screen.print(targets_table(status, screen.width))
    screen.print(streams_view(status, screen.width))
    for sentence in troubles(status):
        say(sentence)
    for hint, streams in hints(status).items():
        shown = ", ".join(streams[:NAMES_MAX]) + (f" and {len(streams) - NAMES_MAX} more" if len(streams) > NAMES_MAX else "")
        say(f"hint for {shown}: {hint}")


def hints(status: Mapping[str, Any]) -> dict[str, list[str]]:
    """What to do about streams that are not recorded, and for which of them."""
    found: dict[str, list[str]] = {}
    for stream in status["streams"]:
        if stream["hint"]:
            found.setdefault(stream["hint"], []).append(stream["stream"])
    return found
