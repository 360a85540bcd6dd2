"""The configuration: what is written is understood, every mistake is told with its place, no credential is ever shown."""

from __future__ import annotations

import json
import pickle
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from nvrstore.config import Config, JournalConfig, KeepConfig, RecorderConfig, ScheduleEntry, Size, StreamConfig, TargetConfig
from nvrstore.errors import ConfigError

SMALL = """
format = 1
include = ["cameras.d/*.toml"]
recorder = { name = "nvr-1", state = "/var/lib/nvrstore" }
target = [ { name = "array-a", path = "/mnt/array-a" }, { name = "node-b", url = "nvr://10.0.0.7:7700,10.1.0.7:7700" } ]
journal = [ { name = "main", targets = ["array-a", "node-b"], copies = 2, keep = { days = 30, free = "5%" } } ]
stream_defaults = { journal = "main", transport = "tcp", audio = "aac" }
[[stream]]
id = "gate"
name = "Gate, north"
url = "rtsp://10.0.0.5/main"
login = "file:/run/credentials/gate"
"""

HEAD = """
recorder = { name = "nvr-1", state = "/var/lib/nvrstore" }
target = [ { name = "a", path = "/mnt/a" }, { name = "b", path = "/mnt/b" } ]
journal = [ { name = "main", targets = ["a", "b"] } ]
"""


def mistakes(text: str, **more: Any) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        Config.parse(text, name="nvr.toml", **more)
    assert caught.value.exit_status == 2
    return dict(caught.value.problems)


# --- what is written is understood -----------------------------------------------------------------------------


def test_a_small_configuration_needs_no_more_than_this(tmp_path: Path) -> None:
    """The example of the documentation loads, and everything it does not say has a default."""
    file = tmp_path / "nvr.toml"
    file.write_text(SMALL)
    config = Config.load(file)
    assert config.recorder.state == Path("/var/lib/nvrstore")
    assert [t.name for t in config.targets] == ["array-a", "node-b"]
    assert config.target("node-b").addresses == (("10.0.0.7", 7700), ("10.1.0.7", 7700))
    assert config.journal("main").keep == KeepConfig(days=30, free=Size(share=0.05))
    (gate,) = config.streams
    assert (gate.title, gate.journal, gate.audio, gate.record, gate.login) == (
        "Gate, north",
        "main",
        "aac",
        "always",
        "file:/run/credentials/gate",
    )
    assert config.warnings() == ()


def test_tables_can_be_built_in_python() -> None:
    """Hosts that have their own configuration build the same values from keywords, and get the same checks."""
    config = Config(
        recorder=RecorderConfig(name="nvr", state=Path("/var/lib/nvrstore")),
        targets=(TargetConfig(name="a", path=Path("/mnt/a")),),
        journals=(JournalConfig(name="main", targets=("a",)),),
        streams=(StreamConfig(id="gate", url="rtsp://10.0.0.5/main"),),
    )
    assert config.streams[0].journal == "main"
    assert config.journals[0].copies == 1
    with pytest.raises(ValidationError, match="there is no target 'b'; known: a"):
        Config(recorder=config.recorder, targets=config.targets, journals=(JournalConfig(name="main", targets=("b",)),))


def test_values_are_frozen() -> None:
    """A configuration that a recorder runs cannot be changed under its feet."""
    config = Config.parse(HEAD)
    with pytest.raises(ValidationError):
        config.recorder.name = "x"


def test_a_stream_says_more_than_the_defaults_and_maps_are_merged() -> None:
    """Own keys win over `stream_defaults`, also when they repeat a default; `labels` and `options` are merged."""
    text = """
    stream_defaults = { audio = "off", segment_s = 4, labels = { site = "north", floor = "1" } }
    stream = [ { id = "a", url = "rtsp://h/a" }, { id = "b", url = "rtsp://h/b", audio = "aac", labels = { floor = "2" } } ]
    """
    a, b = Config.parse(HEAD + text).streams
    assert (a.audio, a.segment_s, dict(a.labels)) == ("off", 4, {"site": "north", "floor": "1"})
    assert (b.audio, b.segment_s, dict(b.labels)) == ("aac", 4, {"site": "north", "floor": "2"})


def test_streams_added_later_get_the_same_defaults() -> None:
    """`complete` is what a recorder does with a stream that its host adds while it runs."""
    config = Config.parse(HEAD + 'stream_defaults = { transport = "udp" }')
    added = config.complete(StreamConfig(id="x", url="rtsp://h/x"))
    assert (added.transport, added.journal) == ("udp", "main")


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ('"5%"', Size(share=0.05)),
        ('"10GB"', Size(10_000_000_000)),
        ('"10 GiB"', Size(10 * 2**30)),
        ('"1.5mb"', Size(1_500_000)),
        ("4096", Size(4096)),
    ],
)
def test_sizes_are_written_as_people_write_them(written: str, size: Size) -> None:
    """Decimal and binary units are told apart; a share is taken of the target's size."""
    config = Config.parse(HEAD.replace('["a", "b"]', f'["a", "b"], keep = {{ free = {written} }}'))
    assert config.journals[0].keep.free == size
    assert Size(share=0.05).of(1000) == 50


def test_schedules_hold_over_midnight_and_the_first_entry_wins() -> None:
    """An entry belongs to the day on which it begins; what no entry covers is off."""
    stream = StreamConfig.model_validate(
        {
            "id": "x",
            "url": "rtsp://h/x",
            "record": [{"days": "fri", "from": "22:00", "to": "06:00", "mode": "event"}, {"days": "mon-fri", "from": "08:00"}],
        }
    )
    friday = datetime(2026, 11, 27)  # noqa: DTZ001 - local time is what schedules are about
    at = {hour: stream.mode_at(friday.replace(hour=hour)) for hour in (5, 7, 8, 21, 22)}
    assert at == {5: "off", 7: "off", 8: "always", 21: "always", 22: "event"}
    assert stream.mode_at(friday.replace(day=28, hour=5)) == "event"
    assert stream.mode_at(friday.replace(day=28, hour=6)) == "off"
    assert ScheduleEntry(mode="event").covers(6, 1439)


def test_local_time_is_that_of_the_configured_zone() -> None:
    """Schedules are meant in the recorder's zone, wherever its machine believes to be."""
    recorder = RecorderConfig(name="x", state=Path("/s"), timezone="Asia/Tokyo")
    assert recorder.local(0).isoformat() == "1970-01-01T09:00:00+09:00"


def test_a_configuration_survives_json_and_pickle() -> None:
    """What the control socket shows can be read back; a worker process gets the very same values."""
    config = Config.parse(SMALL.replace('include = ["cameras.d/*.toml"]', ""))
    assert Config.parse(json.loads(config.model_dump_json(by_alias=True))) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert json.dumps(Config.model_json_schema())


# --- files -----------------------------------------------------------------------------------------------------


def test_included_files_bring_streams_with_defaults_of_their_own(tmp_path: Path) -> None:
    """Relative paths count from the file that names them; a file's defaults go over those of the file that includes it."""
    (tmp_path / "cams.d").mkdir()
    (tmp_path / "nvr.toml").write_text(
        'include = ["cams.d/*.toml"]\nrecorder = { name = "n", state = "state" }\n'
        + HEAD.split("\n", 2)[2]
        + 'stream_defaults = { audio = "off", transport = "udp" }\n[[stream]]\nid = "own"\nurl = "rtsp://h/own"\n'
    )
    (tmp_path / "cams.d" / "1.toml").write_text(
        'stream_defaults = { audio = "copy" }\nstream = [ { id = "one", url = "rtsp://h/1", login = "file:secret" } ]'
    )
    config = Config.load(tmp_path / "nvr.toml")
    assert config.recorder.state == tmp_path / "state"
    own, one = config.streams
    assert (own.audio, own.transport) == ("off", "udp")
    assert (one.audio, one.transport, one.login) == ("copy", "udp", f"file:{tmp_path}/cams.d/secret")


def test_mistakes_are_told_by_the_file_and_line_where_they_stand(tmp_path: Path) -> None:
    """Every file has its own count of lines and tables; names are compared across all of them."""
    (tmp_path / "nvr.toml").write_text('include = ["b.toml"]\nfrmat = 1\n' + HEAD + '[[stream]]\nid = "x"\nurl = "rtsp://h/x"\n')
    (tmp_path / "b.toml").write_text('\n\n[[stream]]\nid = "x"\nurl = "rtsp://h/x"\n[[stream]]\nid = "y"\n[recorder]\nname = "z"\n')
    with pytest.raises(ConfigError) as caught:
        Config.load(tmp_path / "nvr.toml")
    main = tmp_path / "nvr.toml"
    assert dict(caught.value.problems) == {
        f"{main}:2 frmat": "is an unknown key; did you mean 'format'?",
        "b.toml:4 stream[0].id": f"'x' is already taken by {main}:7 stream[0]",
        "b.toml:6 stream[1].url": "is missing",
        "b.toml:8 recorder": "belongs into the main file only",
    }


def test_includes_in_a_circle_and_twice_are_told(tmp_path: Path) -> None:
    """A file is read once: a circle ends at the place that closes it."""
    (tmp_path / "a.toml").write_text(HEAD + 'include = ["b.toml", "c.toml"]')
    (tmp_path / "b.toml").write_text('include = ["c.toml"]')
    (tmp_path / "c.toml").write_text('include = ["b.toml"]')
    with pytest.raises(ConfigError) as caught:
        Config.load(tmp_path / "a.toml")
    sentences = [sentence for _, sentence in caught.value.problems]
    assert sentences == ["includes run in a circle: b.toml -> c.toml -> b.toml", "c.toml is included twice"]


def test_a_file_that_is_not_there_hides_no_mistake_and_makes_none_up(tmp_path: Path) -> None:
    """What an unread file would have held is not called missing; what was read is checked."""
    (tmp_path / "nvr.toml").write_text('include = ["none.toml", "empty.d/*.toml"]\nformat = "1"\n')
    with pytest.raises(ConfigError) as caught:
        Config.load(tmp_path / "nvr.toml")
    assert [sentence for _, sentence in caught.value.problems] == [
        "there is no file 'none.toml'",
        "must be 1: this version of nvrstore reads format 1",
    ]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"a = 1\nb = \n", "is not TOML: Invalid value"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_mistake_too(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    """Missing, binary and broken files end in a sentence."""
    file = tmp_path / "nvr.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=sentence):
        Config.load(file)


# --- mistakes --------------------------------------------------------------------------------------------------


def test_five_mistakes_are_five_lines() -> None:
    """Everything is told at once, each with table path and line, in the order of reading."""
    text = """recorder = { name = "nvr-1", stat = "/var/lib/nvrstore" }
target = [ { name = "a", path = "/mnt/a", medium = "floppy" } ]
journal = [ { name = "main", targets = ["a", "bb"], copies = 3 } ]
[[stream]]
id = "gate"
login = "admin:hunter2"
[[stream]]
id = "gate"
url = "rtsp://10.0.0.5:port/main"
pre_event_s = "ten"
"""
    with pytest.raises(ConfigError) as caught:
        Config.parse(text, name="nvr.toml")
    assert caught.value.problems == (
        ("nvr.toml:1 recorder.state", "is missing"),
        ("nvr.toml:1 recorder.stat", "is an unknown key; did you mean 'state'?"),
        ("nvr.toml:2 target[0].medium", "must be 'auto', 'ssd', 'disk', 'network', 'node' or 'memory'"),
        ("nvr.toml:3 journal[0].copies", "asks for 3 copies, but 2 targets are named"),
        ("nvr.toml:3 journal[0].targets[1]", "there is no target 'bb'; known: a"),
        ("nvr.toml:4 stream[0].url", "is missing"),
        ("nvr.toml:6 stream[0].login", 'must be "env:NAME" or "file:PATH"; the login itself does not belong here'),
        ("nvr.toml:8 stream[1].id", "'gate' is already taken by nvr.toml:4 stream[0]"),
        ("nvr.toml:9 stream[1].url", "must be a URL with a host and, if any, a port from 1 to 65535"),
        ("nvr.toml:10 stream[1].pre_event_s", "must be a number"),
    )
    assert "hunter2" not in str(caught.value)
    assert str(caught.value).startswith("nvr.toml: 10 mistakes\n  nvr.toml:1 recorder.state: is missing\n")


@pytest.mark.parametrize(
    ("text", "place", "sentence"),
    [
        ("formt = 1", "nvr.toml:5 formt", "is an unknown key; did you mean 'format'?"),
        ("format = 2", "nvr.toml:5 format", "must be 1: this version of nvrstore reads format 1"),
        ("include = 'x'", "nvr.toml:5 include", 'must be a list of file names such as ["cameras.d/*.toml"]'),
        ("[stream]\nid = 'x'", "nvr.toml:5 stream", "must be a list of tables: write [[stream]]"),
        ("stream = [7]", "nvr.toml:5 stream[0]", "must be a table"),
        ("objectives = { rto = 3 }", "nvr.toml:5 objectives.rto", "is an unknown key; did you mean 'rto_s'?"),
        ("stream_defaults = { audio = 'mp3' }", "nvr.toml:5 stream_defaults.audio", "must be 'aac', 'pcm', 'copy' or 'off'"),
        ("stream_defaults = { segment_s = 0 }", "nvr.toml:5 stream_defaults.segment_s", "must be greater than 0.0"),
        ("stream_defaults = { segment_s = nan }", "nvr.toml:5 stream_defaults.segment_s", "must be a finite number"),
        ("stream_defaults = { segment_s = true }", "nvr.toml:5 stream_defaults.segment_s", "must be a number"),
        ("stream_defaults = { record = 'allways' }", "nvr.toml:5 stream_defaults.record", "must be 'always', 'event' or 'off'"),
        ("stream_defaults = { record = [] }", "nvr.toml:5 stream_defaults.record", "must not be empty"),
        (
            "stream_defaults.record = [\n { from = '25:00' } ]",
            "nvr.toml:6 stream_defaults.record[0].from",
            'must be a time of day from "00:00" to "24:00"',
        ),
        (
            "stream_defaults.record = [{ days = 'mon-fry' }]",
            "nvr.toml:5 stream_defaults.record[0].days",
            'must be days such as "mon-fri", "sat,sun" or "daily"',
        ),
        ("stream = [{ id = 'x', url = 'rstp://h/' }]", "nvr.toml:5 stream[0].url", "has a scheme that is not known; did you mean 'rtp'?"),
        (
            "stream = [{ id = 'x', url = 'h/' }]",
            "nvr.toml:5 stream[0].url",
            "must be a URL such as rtsp://10.0.0.5/main, or an absolute path",
        ),
        (
            "stream = [{ id = 'x', url = '/mnt/a/f.mp4' }]",
            "nvr.toml:5 stream[0].url",
            "is a file on a target: a target that hangs would hang the source",
        ),
        (
            "stream = [{ id = 'x', url = 'rtsp://h/', journal = 'man' }]",
            "nvr.toml:5 stream[0].journal",
            "there is no journal 'man'; did you mean 'main'?",
        ),
        (
            "stream = [{ id = 'x', url = 'rtsps://h/', engine = 'lean', transport = 'udp' }]",
            "nvr.toml:5 stream[0].transport",
            "'lean' speaks rtsps over tcp only",
        ),
        (
            "stream = [{ id = 'x', url = 'rtsp://a:b@h/', login = 'env:X' }]",
            "nvr.toml:5 stream[0].login",
            "stands beside credentials in the url; one of them is enough",
        ),
        (
            "stream = [{ id = 'x y', url = 'rtsp://h/' }]",
            "nvr.toml:5 stream[0].id",
            "must be at most 64 letters, digits, '.', '_' or '-', and begin with a letter or digit",
        ),
    ],
)
def test_a_mistake_is_told_with_its_place(text: str, place: str, sentence: str) -> None:
    """One mistake is one problem: its place, and what would be right."""
    assert mistakes(HEAD + text) == {place: sentence}


@pytest.mark.parametrize(
    ("old", "new", "place", "sentence"),
    [
        (', path = "/mnt/b"', "", "target[1]", "needs either path or url"),
        ('path = "/mnt/b"', 'path = "/mnt/b", url = "nvr://h:1"', "target[1]", "has both path and url; a target is one place"),
        ('path = "/mnt/b"', 'url = "nvr://h"', "target[1].url", "must be nvr://HOST:PORT, further addresses behind commas"),
        ('path = "/mnt/b"', 'path = "/mnt/x/../a"', "target[1].path", "is the same place as nvr.toml:3 target[0]"),
        ('name = "b"', 'name = "refuge"', "target[1].name", "'refuge' is what the recorder calls its own place on the state disk"),
        ('name = "b"', 'name = "a"', "target[1].name", "'a' is already taken by nvr.toml:3 target[0]"),
        ('["a", "b"]', '["a", "a"]', "journal[0].targets", "names 'a' twice"),
        ('["a", "b"]', "[]", "journal[0].targets", "must not be empty"),
        ('["a", "b"]', '["a", "b"], late_s = 2, lost_s = 1', "journal[0].lost_s", "must not be less than late_s"),
        (
            '["a", "b"]',
            '["a", "b"], volume_bytes = "1 GX"',
            "journal[0].volume_bytes",
            'must be a size such as "10GB", "10GiB" or a number of bytes',
        ),
        (
            'state = "/var',
            'workers = 65, state = "/var',
            "recorder.workers",
            "must be at most 64",
        ),
        ('state = "/var', 'timezone = "CEST", state = "/var', "recorder.timezone", 'must be an IANA name such as "Europe/Berlin"'),
    ],
)
def test_a_mistake_in_targets_and_journals_is_told_with_its_place(old: str, new: str, place: str, sentence: str) -> None:
    """As above, where the table itself is what is wrong."""
    found = mistakes(HEAD.replace(old, new))
    assert found.get(f"nvr.toml:{2 if 'recorder' in place else 3 if 'target' in place[:6] else 4} {place}") == sentence


def test_what_must_be_there_is_asked_for() -> None:
    """An empty file is told what it lacks."""
    assert mistakes("") == {
        "recorder": "is missing",
        "target": "is missing: there must be at least one [[target]]",
        "journal": "is missing: there must be at least one [[journal]]",
    }


def test_a_stream_must_say_its_journal_where_there_are_several() -> None:
    """Footage never ends up in a journal that nobody chose."""
    text = HEAD.replace('["a", "b"] }', '["a", "b"] }, { name = "second", targets = ["a"] }') + "stream = [{ id = 'x', url = 'rtsp://h/' }]"
    assert mistakes(text) == {"nvr.toml:5 stream[0].journal": "is missing: there are several journals; known: main, second"}
