"""The command line: verbs load one at a time, errors are a sentence, a hint and an exit status, no output holds a credential."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import typer
from tests.support.logs import logger_restored

from nvrstore import __version__
from nvrstore.cli import VERBS, common, main
from nvrstore.clock import ManualClock
from nvrstore.errors import ConfigError, NvrstoreError, TargetUnavailableError, UsageError


class Ran(NamedTuple):
    status: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Calls `main` with words; what it logged and configured is taken back."""

    def call(*argv: str) -> Ran:
        status = main(argv)
        out, err = capsys.readouterr()
        return Ran(status, out, err)

    with logger_restored():
        yield call


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Puts a function in place of the verb `verify`."""

    def install(command: Callable[..., Any]) -> None:
        module = ModuleType("nvrstore.cli.verify")
        module.__spec__ = ModuleSpec(module.__name__, None)
        module.command = command  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return install


def fails_with(error: BaseException) -> Callable[..., None]:
    def command(as_json: common.JsonFlag = False) -> None:
        raise error

    return command


# --- verbs -----------------------------------------------------------------------------------------------------


def test_help_names_every_verb_and_imports_none(run: Run) -> None:
    """A newcomer's first command answers at once: neither libav nor pydantic is loaded for it."""
    code = (
        "import sys; from nvrstore.cli import main; main(['--help']); sys.stderr.write(str({'av', 'pydantic', 'anyio'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "set()"
    assert all(verb in done.stdout for verb in VERBS)


def test_the_version_is_told(run: Run) -> None:
    """`nvrstore --version`, before any verb."""
    assert run("--version") == Ran(0, f"nvrstore {__version__}\n", "")


def test_the_module_runs_like_the_command() -> None:
    """`python -m nvrstore` is the same program."""
    done = subprocess.run([sys.executable, "-m", "nvrstore", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"nvrstore {__version__}\n"


def test_a_verb_gets_its_words_and_its_status_is_the_programs(run: Run, verb: Callable[[Callable[..., Any]], None]) -> None:
    """A check that failed ends with 1; a verb that returns ends with 0."""

    def command(name: str, as_json: common.JsonFlag = False) -> None:
        common.say(f"{name} {as_json}")
        if name == "bad":
            raise typer.Exit(1)

    verb(command)
    assert run("verify", "good", "--json") == Ran(0, "good True\n", "")
    assert run("verify", "bad") == Ran(1, "bad False\n", "")


@pytest.mark.parametrize(
    ("argv", "message", "hint"),
    [
        (["verfy"], "No such command 'verfy'", "nvrstore --help"),
        (["verify"], "Missing argument", "nvrstore verify --help"),
        (["verify", "x", "--jsn"], "No such option: --jsn", "nvrstore verify --help"),
        (["--log", "loud", "verify", "x"], "'loud' is no log level", "one of debug, info, warning, error, critical"),
    ],
)
def test_wrong_use_ends_with_2_and_a_hint(
    run: Run, verb: Callable[[Callable[..., Any]], None], argv: list[str], message: str, hint: str
) -> None:
    """Typing errors are told in one line and are followed by where to look; with --json as an object."""

    def command(name: str, as_json: common.JsonFlag = False) -> None:
        raise AssertionError("never called")

    verb(command)
    ran = run(*argv)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith(f"error: {message}")
    assert ran.err.endswith(f"hint: {hint}\n")
    ran = run(*argv, "--json")
    assert (ran.status, ran.err) == (2, "")
    error = json.loads(ran.out)["error"]
    assert error["message"].startswith(message)
    assert error["hint"] == hint


def test_a_verb_that_is_not_there_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build without a verb says so, instead of a traceback."""
    monkeypatch.setitem(VERBS, "nothing", "Not there.")
    ran = run("nothing")
    assert (ran.status, ran.err.splitlines()[0]) == (2, "error: the verb 'nothing' is not part of this build of nvrstore")


# --- errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NvrstoreError("it failed", hint="do this"), 1),
        (UsageError("it failed", hint="do this"), 2),
        (TargetUnavailableError("it failed", target="a", hint="do this"), 3),
    ],
)
def test_errors_are_a_sentence_a_hint_and_a_status(
    run: Run, verb: Callable[[Callable[..., Any]], None], error: NvrstoreError, status: int
) -> None:
    """On standard error for people; on standard output as an object for programs."""
    verb(fails_with(error))
    assert run("verify") == Ran(status, "", "error: it failed\nhint: do this\n")
    ran = run("verify", "--json")
    assert (ran.status, ran.err) == (status, "")
    assert json.loads(ran.out) == {
        "error": {
            "type": type(error).__name__,
            "message": "it failed",
            "hint": "do this",
            "outcome": error.outcome.value,
            "exit_status": status,
        }
    }


def test_all_mistakes_of_a_configuration_are_in_the_object(run: Run, verb: Callable[[Callable[..., Any]], None]) -> None:
    """Programs get every mistake with its place."""
    verb(fails_with(ConfigError([("a.toml:1 x", "is missing"), ("a.toml:2 y", "must be a number")], source="a.toml")))
    assert json.loads(run("verify", "--json").out)["error"]["problems"] == [
        {"place": "a.toml:1 x", "message": "is missing"},
        {"place": "a.toml:2 y", "message": "must be a number"},
    ]
    assert "a.toml: 2 mistakes" in run("verify").err


def test_a_mistake_of_ours_says_where_to_look(
    run: Run, verb: Callable[[Callable[..., Any]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected exception is one line with its place and status 70; the traceback is shown on demand."""
    verb(fails_with(ZeroDivisionError("rtsp://admin:hunter2@h/x")))
    ran = run("verify")
    assert ran.status == common.STATUS_INTERNAL
    assert ran.err.startswith("error: unexpected ZeroDivisionError: rtsp://***@h/x (test_cli.py:")
    assert "NVRSTORE_DEBUG=1" in ran.err
    assert "Traceback" not in ran.err
    monkeypatch.setenv("NVRSTORE_DEBUG", "1")
    ran = run("verify")
    assert "Traceback" in ran.err
    assert "hunter2" not in ran.err


def test_an_interruption_is_not_an_error(run: Run, verb: Callable[[Callable[..., Any]], None]) -> None:
    """Ctrl-C ends with 130 and without a traceback."""
    verb(fails_with(KeyboardInterrupt()))
    assert run("verify") == Ran(130, "", "stopped\n")


def test_a_reader_that_goes_away_is_not_an_error() -> None:
    """`nvrstore ... | head -1` ends quietly, without a traceback."""
    code = (
        "import sys; from types import ModuleType; from importlib.machinery import ModuleSpec\n"
        "import nvrstore.cli as cli; from nvrstore.cli.common import say\n"
        "m = ModuleType('nvrstore.cli.verify'); m.__spec__ = ModuleSpec(m.__name__, None); sys.modules[m.__name__] = m\n"
        "m.command = lambda: [say('x' * 1000) for _ in range(10_000)] and None\n"
        "sys.exit(cli.main(['verify']))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_async_verbs_raise_the_one_error_that_matters() -> None:
    """A task group's wrapping is no part of what happened."""

    async def fail() -> None:
        raise ExceptionGroup("tasks", [ExceptionGroup("tasks", [UsageError("this")])])

    with pytest.raises(UsageError, match="this"):
        common.run_async(fail)


# --- showing ---------------------------------------------------------------------------------------------------


class Colour(StrEnum):
    RED = "red"


@dataclasses.dataclass(frozen=True)
class Thing:
    path: Path
    colour: Colour
    parts: tuple[int, ...]


def test_values_of_every_kind_become_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Snapshots of the library are shown as they are: dataclasses, enums, paths, sets; credentials are not."""
    common.print_json({"thing": Thing(Path("/a"), Colour.RED, (1, 2)), "set": {2, 1}, "url": "rtsp://u:hunter2@h/", "raw": b"\1"})
    assert json.loads(capsys.readouterr().out) == {
        "thing": {"path": "/a", "colour": "red", "parts": [1, 2]},
        "set": [1, 2],
        "url": "rtsp://***@h/",
        "raw": "01",
    }


def test_events_are_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    """Live verbs under --json: one object per line."""
    common.print_event({"a": 1})
    common.print_event({"a": "ü"})
    assert capsys.readouterr().out == '{"a": 1}\n{"a": "ü"}\n'


def test_tables_are_not_cut_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    """What goes into a file or to grep keeps every character; brackets are no markup."""
    common.show_table(["name", ">bytes"], [["x" * 300, 1], ["[red]", None], ["rtsp://u:hunter2@h/", 22]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["x" * 300, "1"]
    assert lines[3].split() == ["[red]"]
    assert lines[4].split() == ["rtsp://***@h/", "22"]


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (common.human_bytes(0), "0 B"),
        (common.human_bytes(1_500_000), "1.5 MB"),
        (common.human_bytes(8.2e15), "8.2 PB"),
        (common.human_s(0.0123), "12 ms"),
        (common.human_s(3.44), "3.4 s"),
        (common.human_s(310), "5 min 10 s"),
        (common.human_s(7500), "2 h 5 min"),
        (common.human_s(86400 * 3), "3 d"),
        (common.iso(1_700_000_000_123_456_789), "2023-11-14T22:13:20.123Z"),
        (common.iso(None), "-"),
    ],
)
def test_figures_are_shown_for_people(shown: str, text: str) -> None:
    """Sizes, durations and times in the form that a person reads."""
    assert shown == text


@pytest.mark.parametrize(
    ("text", "utc_ns"),
    [
        ("2023-11-14T22:13:20Z", 1_700_000_000_000_000_000),
        ("2023-11-14T23:13:20.000001+01:00", 1_700_000_000_000_001_000),
        ("now", 1_700_000_000_000_000_000),
        ("-10min", 1_699_999_400_000_000_000),
        ("-1.5h", 1_699_994_600_000_000_000),
        ("+2s", 1_700_000_002_000_000_000),
    ],
)
def test_times_are_read_as_people_write_them(text: str, utc_ns: int) -> None:
    """ISO 8601, or relative to now."""
    assert common.parse_time(text, ManualClock()) == utc_ns


@pytest.mark.parametrize("text", ["yesterday", "10", "-10", "2023-13-01", ""])
def test_what_is_no_time_is_refused(text: str) -> None:
    """A time that was misread would export the wrong hour."""
    with pytest.raises(UsageError, match="is no time"):
        common.parse_time(text, ManualClock())


# --- target init -----------------------------------------------------------------------------------------------


def test_a_directory_becomes_a_target_once(run: Run, tmp_path: Path) -> None:
    """The first time it gets its identity; the second time it is told to be ready."""
    ran = run("target", "init", str(tmp_path / "array-a"), "--json")
    made = json.loads(ran.out)
    assert (ran.status, made["name"], made["path"]) == (0, "array-a", str(tmp_path / "array-a"))
    assert json.loads((tmp_path / "array-a" / "target.json").read_text())["id"] == made["id"]
    ran = run("target", "init", str(tmp_path / "array-a"))
    assert (ran.status, ran.err) == (2, f"error: target 'array-a': it already is one, {made['id']}\nhint: it is ready for use\n")


def test_a_directory_with_other_files_becomes_a_target_only_by_force(run: Run, tmp_path: Path) -> None:
    """A slip of the pen must not turn somebody's home directory into a recorder's."""
    (tmp_path / "letter.txt").write_text("x")
    assert run("target", "init", str(tmp_path)).status == 2
    assert run("target", "init", str(tmp_path), "--force").status == 0


def test_a_missing_mount_is_not_made(run: Run, tmp_path: Path) -> None:
    """Only the last part of the path is made: a missing parent is a disk that is not mounted."""
    ran = run("target", "init", str(tmp_path / "disk" / "array"))
    assert ran.status == 2
    assert "is it mounted?" in ran.err
    assert not (tmp_path / "disk").exists()
