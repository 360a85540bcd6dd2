"""`nvrstore target`: make a directory a target, once; take one out of a running recorder, and bring it back.

    nvrstore target drain array-a nvr.toml       it may be unmounted then; recording goes on with the others
    nvrstore target return array-a nvr.toml      it joins again, gets what it missed, then its role; with failback = "manual"
                                                 the role goes to it when this is said again, once it is in step

    nvrstore target init /mnt/array-a            people: its id, what is below it, the line for the configuration
    nvrstore target init /mnt/array-a --json     programs: {"name", "path", "id", "medium", "total_bytes", ...}

A recorder writes only where it finds the identity that this verb leaves behind: so it never fills the bare mount point
of a disk that was not mounted. The directory is touched by a worker; one that hangs ends in an error, not in a wait.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from nvrstore.cli.common import ConfigFile, JsonFlag, human_bytes, print_json, say, unseen, warn
from nvrstore.config import Config
from nvrstore.control import call
from nvrstore.errors import TargetIOError, UsageError
from nvrstore.failover.members import Told
from nvrstore.targets.contract import Request, Verb
from nvrstore.targets.directory import DirectoryTarget, medium_of
from nvrstore.targets.identity import init_target
from nvrstore.targets.steps import run_steps

TIMEOUT_S: Final = 20.0  # of each step: a sleeping disk may need ten seconds to spin up
CLOSE_S: Final = 2.0
DRAIN_S: Final = 60.0  # a target that hangs is waited for as long as its medium may take

_TOLD: Final = {
    Told.RETURNS: "returns: `nvrstore status` shows how far its resync is",
    Told.PRIMARY: "becomes primary again",
    Told.NOTHING: "is {state}, and has the role that it can have: nothing to do",
    Told.TOO_EARLY: "is {state}: it comes into step by itself as soon as it can; nothing is done before",
}

app = typer.Typer(no_args_is_help=True)


@app.callback()
def group() -> None:
    """Prepare a directory as a target; take one out for maintenance, and bring it back."""


@app.command("init")
def init(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", parser=unseen, help="An empty directory; its last part is made where it is missing.", show_default=False
        ),
    ],
    name: Annotated[str, typer.Option(help="What the configuration will call it; the directory's own name if not given.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Also where other files lie in the directory.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make a directory a target. Done once for each disk, array or mount; what is stored there carries its identity."""
    path = Path(os.path.abspath(directory))
    made = _init(name or path.name or "target", path, force=force)
    if as_json:
        print_json(made)
        return
    say(f"{path} is now a target: {made['id']}")
    say(f"{made['medium']}, {made['fstype']}: {human_bytes(made['free_bytes'])} free of {human_bytes(made['total_bytes'])}")
    if made["on_root"]:
        warn("it lies on the same file system as /: is the disk that was meant mounted?")
    say()
    say("in the configuration:")
    say(f"target = [ {{ name = {json.dumps(made['name'])}, path = {json.dumps(str(path))} }} ]")


@app.command("drain")
def drain(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The target's name in the configuration.", show_default=False)],
    config: ConfigFile,
    as_json: JsonFlag = False,
) -> None:
    """Take a target out of a running recorder, for maintenance. Recording goes on with the others.

    Once it ends with status 0 nothing of the recorder is open there, and it can be unmounted.
    """
    socket = _socket(config)
    at_rest = bool(call(socket, "drain", timeout_s=DRAIN_S, target=name)["at_rest"])
    if as_json:
        print_json({"target": name, "done": "drain", "at_rest": at_rest, "states": _states(socket, name)})
    elif at_rest:
        say(f"{name} is drained and can be unmounted; bring it back with: nvrstore target return {name}")
    if not at_rest:
        warn(f"{name} is drained, but it hangs, and workers of the recorder are stuck in it: it cannot be unmounted before they are gone")
        raise typer.Exit(1)


@app.command("return")
def bring_back(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The target's name in the configuration.", show_default=False)],
    config: ConfigFile,
    as_json: JsonFlag = False,
) -> None:
    """Maintenance is over: the target joins again, gets what it missed, then its role.

    Where failback is "manual": one that is in step again becomes primary again.
    """
    socket = _socket(config)
    told = {str(journal): str(what) for journal, what in call(socket, "return", target=name)["journals"].items()}
    states = _states(socket, name)
    if as_json:
        print_json({"target": name, "done": "return", "journals": told, "states": states})
        return
    for journal, what in told.items():
        say(f"{journal}: {name} {_TOLD[Told(what)].format(state=states[journal])}")


def _socket(config: Path) -> Path:
    return Config.load(config).recorder.state / "control.sock"


def _states(socket: Path, name: str) -> dict[str, str]:
    """By journal."""
    journals = call(socket, "status")["journals"]
    return {j["journal"]: t["state"] for j in journals for t in j["targets"] if t["target"] == name}


def _init(name: str, path: Path, *, force: bool) -> dict[str, Any]:
    target = DirectoryTarget(name, path)
    try:
        target.wait_ready(TIMEOUT_S)
        identity = run_steps(init_target(name, force=force), {name: target}, timeout_s=TIMEOUT_S)
        space, about = (target.keeper.call(Request(verb), TIMEOUT_S) for verb in (Verb.SPACE, Verb.ABOUT))
        sizes = space.json() if space.ok else {"total": 0, "free": 0}
        storage = about.json() if about.ok else {}
        return {
            "name": name,
            "path": str(path),
            "id": identity.id,
            "format": identity.format,
            "medium": str(medium_of(storage)),
            "fstype": storage.get("fstype", "unknown"),
            "on_root": storage.get("device") == _device_of_root(),
            "total_bytes": sizes["total"],
            "free_bytes": sizes["free"],
        }
    except TargetIOError as error:
        if error.errno != errno.ENOENT:
            raise
        # Only the last part is made: missing parents are a mount that is not there, or a slip of the pen.
        raise UsageError(f"{path} cannot be made in {path.parent}", hint="is it mounted? only the last part of a path is made") from None
    finally:
        target.close(CLOSE_S)


def _device_of_root() -> str:
    device = os.stat("/").st_dev
    return f"{os.major(device)}:{os.minor(device)}"
