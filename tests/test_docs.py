"""What the documentation says is so: configurations load, keys and errors are all there, links lead somewhere."""

from __future__ import annotations

import inspect
import re
import tomllib
from pathlib import Path
from typing import Final

import pytest

from nvrstore import errors
from nvrstore.cli import VERBS
from nvrstore.config import Config, JournalConfig, KeepConfig, Objectives, RecorderConfig, ScheduleEntry, StreamConfig, TargetConfig
from nvrstore.config.models import Table
from nvrstore.drills.scenarios import SCENARIOS

ROOT: Final = Path(__file__).parent.parent
PAGES: Final = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

HEAD: Final = """
recorder = { name = "n", state = "/s" }
target = [ { name = "a", path = "/a" } ]
journal = [ { name = "j", targets = ["a"] } ]
"""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda p: p.name)
def test_every_example_configuration_loads(path: Path) -> None:
    """An example that does not load teaches mistakes."""
    config = Config.load(path)
    assert config.streams
    assert config.warnings() == ()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "toml")], ids=lambda p: p.name)
def test_every_configuration_in_the_documentation_loads(page: Path) -> None:
    """Whole files and parts of files."""
    for text in blocks(page, "toml"):
        Config.parse(text if "recorder" in tomllib.loads(text) else HEAD + text)


@pytest.mark.parametrize(
    "model",
    [Config, RecorderConfig, TargetConfig, JournalConfig, KeepConfig, StreamConfig, Objectives, ScheduleEntry],
    ids=lambda m: m.__name__,
)
def test_every_key_is_documented(model: type[Table]) -> None:
    """A key that nobody can look up does not exist."""
    page = (ROOT / "docs" / "configuration.md").read_text()
    keys = [info.validation_alias if isinstance(info.validation_alias, str) else name for name, info in model.model_fields.items()]
    assert [key for key in keys if not re.search(rf"`{key}`|\b{key} = ", page)] == []


def test_every_error_is_documented() -> None:
    """Whoever meets an error finds what to do."""
    page = (ROOT / "docs" / "operations.md").read_text()
    tree = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.NvrstoreError)]
    bases = {base for kind in tree for base in kind.__bases__} - {errors.FormatError}
    assert [kind.__name__ for kind in tree if kind not in bases and f"`{kind.__name__}`" not in page] == []


def test_every_verb_is_in_the_readme() -> None:
    """What the command line can do, a newcomer reads in one table."""
    page = (ROOT / "README.md").read_text()
    assert [verb for verb in VERBS if not re.search(rf"`{verb}[ `]", page)] == []


def faults_of_the_table() -> list[tuple[str, list[str], list[str]]]:
    """Every row of the table of faults: the fault, the drills and the tests that it names."""
    page = (ROOT / "docs" / "drills.md").read_text()
    _, _, table = page.partition("| fault | how it is made | what happens | test or drill |\n|---|---|---|---|\n")
    rows = [line.strip("|").split("|") for line in table.partition("\n\n")[0].splitlines()]
    return [(row[0].strip(), re.findall(r"drill `([a-z-]+)`", row[3]), re.findall(r"`(test_\w+)`", row[3])) for row in rows]


def test_every_fault_of_the_table_has_a_test_or_a_drill_that_exists() -> None:
    """A table that names tests which are gone says that something is tried, and it is not."""
    defined = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text(), re.M)
    }
    table = faults_of_the_table()
    assert len(table) >= 30
    assert [fault for fault, drills, tests in table if not drills and not tests] == []
    assert [drill for _, drills, _ in table for drill in drills if drill not in SCENARIOS] == []
    assert [test for _, _, tests in table for test in tests if test not in defined] == []


def test_every_drill_is_in_the_table_of_faults() -> None:
    """But the one that breaks nothing."""
    named = {drill for _, drills, _ in faults_of_the_table() for drill in drills}
    assert {*SCENARIOS} - named == {"nothing"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link is a file of this tree."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_programs_in_the_documentation_are_python(page: Path) -> None:
    """They compile; the one of the README also runs, see test_readme.py."""
    for text in blocks(page, "python"):
        compile(text, page.name, "exec")
