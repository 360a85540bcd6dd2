"""The source text itself keeps the rules: layers, clocks, prints, docstrings, sizes, words.

`LAYERS` is the architecture as data. A module imports only from rows above its own; rooms of one row do not know each
other. Whoever needs to break a rule changes it here, in the open, with a reason.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent
PACKAGE: Final = ROOT / "src" / "nvrstore"

#: Rows from the bottom of the house to its roof. The first rows are single stones: what everybody stands on.
LAYERS: Final = (
    ("errors", "limits", "clock"),
    ("extents",),
    ("model", "checksum", "telemetry"),
    ("config", "events", "times", "losses"),
    ("media", "failover", "timeline"),
    ("ingest", "journal", "worker"),
    ("targets", "catalog", "crew"),
    ("replicate", "playback"),
    ("upkeep", "cluster"),
    ("control",),
    ("recorder", "archive"),
    ("blocking",),
    ("farm",),
    ("drills",),
    ("bench",),  # looks frames up with the account of drills: one proof for both
    ("__init__",),
    ("cli",),
    ("__main__",),
)
ROW: Final = {room: row for row, rooms in enumerate(LAYERS) for room in rooms}

LINES_MAX: Final = 400
TEST_LINES_MAX: Final = 650  # a test file grows with its cases, and the simulation's node mirrors a whole recorder

#: Calls that ask for the time. Everybody else takes a Clock, or `now` as an argument.
CLOCKS: Final = {
    "time": {"time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"},
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
}
MAY_READ_CLOCKS: Final = {"clock", "worker"}  # a worker is started by file path and can import nothing of ours


def none_of(found: Iterable[str]) -> None:
    """Fail with one line for everything that was found."""
    lines = list(found)
    if lines:
        pytest.fail("\n".join(lines), pytrace=False)


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def short(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST, path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ["nvrstore", *path.relative_to(PACKAGE).parts[:-1]]
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def room_imported(name: str) -> str | None:
    """The room of ours that a dotted name belongs to; None for other people's modules."""
    parts = name.split(".")
    if parts[0] != "nvrstore":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ROW else "__init__"


def wrong_imports(path: Path, tree: ast.AST) -> list[str]:
    room = room_of(path)
    wrong = []
    for line, name in imports(tree, path):
        other = room_imported(name)
        if other is not None and other != room and ROW[other] >= ROW[room]:
            wrong.append(f"{short(path)}:{line} imports {name}: {other!r} is not below {room!r}")
    return wrong


@pytest.mark.parametrize("path", modules(), ids=short)
def test_imports_point_one_way(path: Path) -> None:
    """A room imports from rows above its own in the table of rooms, never sideways or from those that are built upon it."""
    assert room_of(path) in ROW, f"{short(path)}: a new room needs a row in LAYERS"
    none_of(wrong_imports(path, ast.parse(path.read_text())))


def test_the_import_check_sees_upward_sideways_relative_and_hidden_imports() -> None:
    """The check above can fail: each of these four lines is caught."""
    tree = ast.parse(
        "from nvrstore.replicate import writer\n"
        "import nvrstore.ingest.pyav\n"
        "def f():\n    from ..targets import contract\n"
        "from nvrstore import Recorder\n"
        "from nvrstore.media import boxes\n"
        "import os, av\n"
    )
    assert [line.split(" ")[0] for line in wrong_imports(PACKAGE / "journal" / "x.py", tree)] == [
        "journal/x.py:1",
        "journal/x.py:2",
        "journal/x.py:5",
        "journal/x.py:4",
    ]


@pytest.mark.parametrize("path", modules(), ids=short)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    """A module begins with a docstring."""
    assert ast.get_docstring(ast.parse(path.read_text())), f"{short(path)} has no docstring"


def clock_calls(tree: ast.AST) -> list[int]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
            if node.attr in CLOCKS.get(owner, ()):
                found.append(node.lineno)
        elif isinstance(node, ast.ImportFrom) and node.module == "time" and {alias.name for alias in node.names} & CLOCKS["time"]:
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", [p for p in modules() if room_of(p) not in MAY_READ_CLOCKS], ids=short)
def test_only_the_clock_asks_what_time_it_is(path: Path) -> None:
    """Time is a parameter: everything else can be tested without waiting."""
    none_of(f"{short(path)}:{line}" for line in clock_calls(ast.parse(path.read_text())))


def test_the_clock_check_sees_every_way_to_ask() -> None:
    """The check above can fail."""
    text = "import time, datetime\ntime.time()\nfrom time import monotonic\ndatetime.datetime.now()\ndatetime.now(UTC)\ntime.sleep(1)\n"
    assert sorted(clock_calls(ast.parse(text))) == [2, 3, 4, 5]


@pytest.mark.parametrize("path", [p for p in modules() if room_of(p) not in ("cli", "__main__")], ids=short)
def test_a_library_does_not_print(path: Path) -> None:
    """Only the command line writes to the terminal."""
    calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    none_of(f"{short(path)}:{call.lineno}" for call in calls if getattr(call.func, "id", "") == "print")


@pytest.mark.parametrize("path", [p for p in modules() if room_of(p) == "worker"], ids=short)
def test_workers_need_the_standard_library_alone(path: Path) -> None:
    """A worker starts in milliseconds, in any interpreter, without our environment."""
    names = [(line, name) for line, name in imports(ast.parse(path.read_text()), path) if room_imported(name) != "worker"]
    none_of(f"{short(path)}:{line} {name}" for line, name in names if name.split(".")[0] not in sys.stdlib_module_names)


# --- all text of the project -----------------------------------------------------------------------------------

TEXT_SUFFIXES: Final = {".py", ".md", ".toml", ".sh", ""}


def texts() -> list[Path]:
    found = [path for path in ROOT.iterdir() if path.is_file() and path.suffix in TEXT_SUFFIXES]
    for room in ("src", "tests", "docs", "examples", "benchmarks", ".ci"):
        found += [path for path in (ROOT / room).rglob("*") if path.is_file() and path.suffix in TEXT_SUFFIXES]
    return sorted(path for path in found if "__pycache__" not in path.parts and path.name not in ("LICENSE", ".git"))


def test_no_file_holds_two_ideas() -> None:
    """Files aim for 200 lines and end at 400; tests, whose cases are many, a little later."""
    sizes = {path.relative_to(ROOT).as_posix(): path.read_text().count("\n") for path in texts() if path.suffix == ".py"}
    none_of(
        f"{name}: {lines} lines" for name, lines in sizes.items() if lines > (TEST_LINES_MAX if name.startswith("tests/") else LINES_MAX)
    )


def strange_words(text: str, pages: set[str]) -> list[str]:
    """Words that nobody outside can follow: unfinished work, machine paths, pages that are not in the tree."""
    found = re.findall(r"\b(?:TODO|FIXME|XXX|HACK)\b|<{7} |>{7} ", text)
    found += re.findall(r"(?<![\w.$}])/(?:work|root|home/\w+)/[\w./-]+", text)
    found += [page for page in re.findall(r"\b[A-Z]{3,}\.md\b", text) if page not in pages]
    return found


def test_the_text_refers_to_nothing_that_is_not_there() -> None:
    """What a file mentions, a reader of this tree can look up; what is unfinished is no comment but a missing feature."""
    pages = {path.name for path in texts() if path.suffix == ".md"}
    others = [path for path in texts() if path != Path(__file__)]
    none_of(f"{path.relative_to(ROOT)}: {word}" for path in others for word in strange_words(path.read_text(), pages))


def test_the_word_check_sees_what_it_looks_for() -> None:
    """The check above can fail."""
    text = "# TODO: later; see NOTES.md and /root/x; fine: README.md, /mnt/a, src/work/y"
    assert strange_words(text, {"README.md"}) == ["TODO", "/root/x", "NOTES.md"]


def files_of_tests() -> list[Path]:
    return sorted((ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("path", files_of_tests(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_test_says_which_rule_it_holds_up(path: Path) -> None:
    """A test's docstring is the rule; its name is a sentence."""
    tree = ast.parse(path.read_text())
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) and n.name.startswith("test_")]
    assert ast.get_docstring(tree), "the module has no docstring"
    none_of(f"{f.name}:{f.lineno}" for f in functions if not ast.get_docstring(f))
