"""Scripts: what a file may say, and how its mistakes are reported."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from nvrstore.errors import ConfigError, UsageError
from nvrstore.farm import Act, Codec, Reports, Traits, load_script, parse_act, parse_script
from nvrstore.farm.script import parse_streams

EXAMPLE = """
[[trait]]
streams = "0-1,3"
real_fps = 21
reports = "none"

[[trait]]
streams = "3"
audio = "aac"
audio_late_s = inf

[[event]]
do = "mute"
streams = "2"
at_s = 5
for_s = 3
every_s = 20

[[event]]
do = "change"
codec = "h265"
width = 640
"""


def test_a_script_becomes_traits_and_acts() -> None:
    """Traits of several entries add up; streams left out are all streams."""
    script = parse_script(EXAMPLE, 4)
    odd = Traits(real_fps=21, reports=Reports.NONE)
    assert script.traits == {0: odd, 1: odd, 3: Traits(real_fps=21, reports=Reports.NONE, audio="aac", audio_late_s=math.inf)}
    assert script.acts == (
        Act("mute", (2,), at_s=5, for_s=3, every_s=20),
        Act("change", (0, 1, 2, 3), codec=Codec.H265, width=640),
    )


def test_all_mistakes_of_a_script_are_reported_at_once_with_their_places() -> None:
    """Unknown tables, fields, deeds, streams, and values of the wrong kind."""
    text = """
    [[trait]]
    streams = "9"
    [[trait]]
    real_fsp = 21
    [[event]]
    do = "explode"
    [[event]]
    do = "jump"
    seconds = "soon"
    [recorder]
    name = "x"
    """
    with pytest.raises(ConfigError) as caught:
        parse_script(text, 4, source="bad.toml")
    places = [place for place, _ in caught.value.problems]
    assert places == ["recorder", "trait[0].streams", "trait[1].real_fsp", "event[0].do", "event[1].seconds"]
    assert "bad.toml: 5 mistakes" in str(caught.value)


@pytest.mark.parametrize("text", ["[[event]", "trait = 5", "event = [1, 2]"])
def test_what_is_no_script_is_said(text: str) -> None:
    """No TOML, or tables of the wrong form."""
    with pytest.raises(ConfigError):
        parse_script(text, 1)


@pytest.mark.parametrize(("text", "streams"), [("all", (0, 1, 2, 3)), ("2", (2,)), ("0-2", (0, 1, 2)), ("3, 0-1,1", (0, 1, 3))])
def test_streams_are_named_by_number_span_or_all(text: str, streams: tuple[int, ...]) -> None:
    """As one writes page numbers."""
    assert parse_streams(text, 4) == streams


@pytest.mark.parametrize("text", ["", "4", "2-9", "3-1", "cam0", "1;2"])
def test_streams_that_are_not_there_are_refused(text: str) -> None:
    """Out of bounds, backwards, or no number."""
    with pytest.raises(UsageError):
        parse_streams(text, 4)


def test_a_single_act_is_parsed_like_an_event() -> None:
    """As on the standard input of `nvrstore farm --control`."""
    assert parse_act({"do": "jump", "streams": "1", "seconds": -2}, 2) == Act("jump", (1,), seconds=-2)
    with pytest.raises(ConfigError):
        parse_act({"do": "jump", "streams": "7"}, 2)
    with pytest.raises(ConfigError):
        parse_act({"streams": "1"}, 2)


def test_a_file_that_cannot_be_read_is_a_mistake_of_usage(tmp_path: Path) -> None:
    """Not there, or no text."""
    with pytest.raises(UsageError, match="cannot be read"):
        load_script(tmp_path / "none.toml", 1)
    (tmp_path / "script.toml").write_text(EXAMPLE)
    assert load_script(tmp_path / "script.toml", 4).acts
