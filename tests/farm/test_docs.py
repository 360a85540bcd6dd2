"""docs/farm.md says what the farm does."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Final, get_args

import pytest

from nvrstore.farm import Traits, parse_script
from nvrstore.farm.oddities import Deed
from nvrstore.farm.stamp import UUID

PAGE: Final = (Path(__file__).parents[2] / "docs" / "farm.md").read_text()


def test_every_trait_and_every_deed_is_documented() -> None:
    """And nothing else is."""
    traits, deeds = PAGE.partition("| trait | what it does |")[2].split("| deed | what happens |")
    names = {name for row in re.findall(r"^\| (`.*?) \|", traits, re.M) for name in re.findall(r"`(\w+)`", row)}
    assert names == {field.name for field in dataclasses.fields(Traits)}
    assert {name for row in re.findall(r"^\| (`.*?) \|", deeds, re.M) for name in re.findall(r"`(\w+)`", row)} == set(get_args(Deed))


def test_the_example_script_is_one() -> None:
    """It parses, for four streams."""
    (text,) = re.findall(r"^```toml script\n(.*?)^```", PAGE, re.M | re.S)
    script = parse_script(text, 4)
    assert set(script.traits) == {0, 1, 2}
    assert [act.do for act in script.acts] == ["mute"]


@pytest.mark.slow
def test_the_example_program_runs() -> None:
    """As somebody would paste it: every frame is there."""
    (text,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    result = subprocess.run([sys.executable, "-W", "error", "-c", text], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.startswith("50 frames, missing () duplicated () damaged ()")


def test_the_stamp_is_pictured_as_it_is() -> None:
    """The identifier that readers look for."""
    assert UUID.hex() == re.findall(r"uuid ([0-9a-f-]+)", PAGE)[0].replace("-", "")
