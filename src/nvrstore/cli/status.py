"""`nvrstore status CONFIG`: what a running recorder says of itself, over its control socket."""

from __future__ import annotations

from nvrstore.cli.common import ConfigFile, JsonFlag, console, print_json, say
from nvrstore.cli.live import streams_table, summary, targets_table
from nvrstore.config import Config
from nvrstore.control import call


def command(config: ConfigFile, as_json: JsonFlag = False) -> None:
    """Streams, targets and journals of the recorder that runs with this configuration."""
    status = call(Config.load(config).recorder.state / "control.sock", "status")
    if as_json:
        print_json(status)
        return
    say(summary(status))
    console().print(targets_table(status))
    console().print(streams_table(status))
