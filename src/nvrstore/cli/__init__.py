"""The command line: `nvrstore VERB ...`.

    argv ──▶ main ──▶ imports the module of that verb alone ──▶ its `command` or `app` (common.py says how a verb looks)
                └──── errors: sentence and hint on stderr, or {"error": ...} on stdout under --json; exit status

Verbs are looked up in `VERBS`, so that `nvrstore --help` imports none of them and `nvrstore ls` only one. The library
never imports this package.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Any, Final

import typer

from nvrstore import __version__
from nvrstore.cli.common import STATUS_INTERNAL, STATUS_INTERRUPTED, show_error
from nvrstore.errors import NvrstoreError, UsageError, redact

#: verb -> what `nvrstore --help` says; the module is nvrstore.cli.<verb>. The order is that of a newcomer's day.
VERBS: Final = {
    "demo": "Simulated cameras, two targets, one of them fails: every frame is accounted for.",
    "record": "The recorder in the foreground.",
    "farm": "Simulated cameras over real RTSP.",
    "drill": "Break things on purpose, and see what it costs.",
    "bench": "How many cameras this machine records without loss.",
    "target": "Prepare a directory as a target; take one out for maintenance.",
    "status": "What a running recorder says of itself.",
    "ls": "What is stored: streams, spans, gaps, marks.",
    "export": "Take footage out as one standard MP4.",
    "verify": "Check every checksum on the targets.",
    "catalog": "Rebuild the catalog from the targets alone.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status. Raises SystemExit only where a verb does."""
    args = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in args
    try:
        status = _build(_verb_in(args), as_json=as_json)(args=args, prog_name="nvrstore", standalone_mode=False)
        sys.stdout.flush()
        if status == STATUS_INTERRUPTED:  # typer's word for a KeyboardInterrupt
            typer.echo("stopped", err=True)
        return status if isinstance(status, int) else 0
    except NvrstoreError as error:
        show_error(error, as_json=as_json)
        return error.exit_status
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("stopped", err=True)
        return STATUS_INTERRUPTED
    except (BrokenPipeError, SystemExit) as leaving:
        if not isinstance(leaving, BrokenPipeError) and not isinstance(leaving.__context__, BrokenPipeError):
            raise
        # Whoever read our output has gone (`nvrstore ls | head`): not an error, and nothing can be said to it.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        return 0
    except Exception as error:  # noqa: BLE001 - the outermost frame: whatever went wrong becomes a sentence and an exit status
        if hasattr(error, "format_message"):  # typer's own: a missing argument, an unknown option
            if error.format_message():  # empty: the help was shown instead
                show_error(_usage(error, args), as_json=as_json)
            return 2
        show_error(_unexpected(error), as_json=as_json)
        return STATUS_INTERNAL


def _verb_in(args: Sequence[str]) -> str | None:
    return next((arg for arg in args if arg in VERBS), None)


def _build(verb: str | None, *, as_json: bool) -> Callable[..., Any]:
    app = typer.Typer(
        help="Records hundreds of RTSP cameras and does not lose footage when storage, a link, a process or a machine dies.",
        no_args_is_help=True,
        rich_markup_mode="markdown",
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def options(
        version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)] = False,
        log: Annotated[str, typer.Option(help="Show log events from this level on.", envvar="NVRSTORE_LOG", metavar="LEVEL")] = "warning",
    ) -> None:
        from nvrstore.telemetry import configure_cli_logging

        try:
            configure_cli_logging(level=log, as_json=as_json)
        except ValueError:
            raise UsageError(f"{log!r} is no log level", hint="one of debug, info, warning, error, critical") from None

    for name, help_text in VERBS.items():
        if name != verb:
            app.command(name, help=help_text)(_not_loaded)
            continue
        module = _module(name)
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name, help=help_text)
        else:
            app.command(name, help=module.command.__doc__ or help_text)(module.command)
    return typer.main.get_command(app)


def _module(verb: str) -> Any:
    name = f"nvrstore.cli.{verb}"
    if find_spec(name) is None:
        raise UsageError(f"the verb {verb!r} is not part of this build of nvrstore", hint="`nvrstore --help` lists the verbs")
    return import_module(name)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nvrstore {__version__}")
        raise typer.Exit


def _not_loaded() -> None:
    """Stands for a verb that was not asked for: only its line in the help is shown."""
    raise UsageError("a verb was asked for that is not the first word", hint="write `nvrstore VERB [OPTIONS]`")


def _usage(error: Exception, args: Sequence[str]) -> UsageError:
    message = str(error.format_message()).strip()  # type: ignore[attr-defined]
    verb = _verb_in(args)
    return UsageError(message, hint=f"nvrstore {verb} --help" if verb else "nvrstore --help")


def _unexpected(error: Exception) -> NvrstoreError:
    """A mistake of ours: say so, and say where to look."""
    if os.environ.get("NVRSTORE_DEBUG"):
        typer.echo(redact("".join(traceback.format_exception(error))), err=True)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return NvrstoreError(
        f"unexpected {type(error).__name__}: {error} ({os.path.basename(where.filename)}:{where.lineno})",
        hint="this is a mistake in nvrstore, not in what you did; NVRSTORE_DEBUG=1 shows the traceback to report",
    )
