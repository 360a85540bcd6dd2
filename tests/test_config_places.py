"""Lines of a TOML text: every key and element is found where it stands, whatever stands between."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvrstore.config.places import line_of, places

TRICKY = '''# [not] = "a table"
a = 1 # = [
b.c."d e" = """
[x]
y = 1
"""
'q' = [ 1, "]", # ]
  { k = "}", l.m = [ ] },
  \'\'\'
  z = 1\'\'\', 2024-01-01 10:00:00,
]
[t.u] # comment
v = -1.5e3
w = "\\" ] \\\\"
[[s]]
id = "one"
sub = { x = 1, y = [ 1,
 2 ] }
[s.deep]
n = true
[[s]]

id = "two"
[[s.list]]
o = 1
[[s.list]]
p = 1
'''


def paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from paths(inner, (*path, key))


def test_every_key_has_the_line_on_which_it_stands() -> None:
    """Strings, comments and brackets inside of strings mislead nobody."""
    found = places(TRICKY)
    assert set(paths(tomllib.loads(TRICKY))) == set(found)
    assert found["b", "c", "d e"] == 3
    assert found["q", 2, "l", "m"] == 8
    assert (found["q", 3], found["q", 4]) == (9, 10)
    assert found["t", "u", "w"] == 14
    assert (found["s", 0], found["s", 0, "sub", "y", 1], found["s", 0, "deep", "n"]) == (15, 18, 20)
    assert (found["s", 1], found["s", 1, "id"]) == (21, 23)
    assert (found["s", 1, "list", 0, "o"], found["s", 1, "list", 1, "p"]) == (25, 27)


def test_the_nearest_table_stands_for_what_is_missing() -> None:
    """A key that is not there has the line of its table; what is nowhere has none."""
    found = places(TRICKY)
    assert line_of(found, ("s", 1, "url")) == 21
    assert line_of(found, ("nothing",)) is None


def test_windows_line_ends_change_nothing() -> None:
    """Files come from everywhere."""
    assert places(TRICKY.replace("\n", "\r\n")) == places(TRICKY)


@given(st.text(alphabet="[]{}=.,\"'#\\\nab1 ", max_size=60))
def test_any_text_comes_to_an_end(text: str) -> None:
    """What is no TOML gives wrong lines at worst; what is TOML has a line for every path."""
    found = places(text)
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert set(paths(value)) <= set(found)


@pytest.mark.parametrize("text", ["a=1\nb=[\n{c=2},\n]", "[x]\ny=1\n[x.z]\nw=2", "a.b=1\na.c=2"])
def test_compact_texts_too(text: str) -> None:
    """Blanks are nobody's duty."""
    assert set(paths(tomllib.loads(text))) == set(places(text))
