"""`ls`, `export`, `verify`, `catalog rebuild`: on a configuration, on a bare target, on a bare volume."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.support.encoded import demuxed
from tests.support.footage import T0, Footage
from tests.support.logs import logger_restored

from nvrstore.catalog.store import CATALOG_FILE, Catalog
from nvrstore.cli import main
from nvrstore.cli.common import iso
from nvrstore.model import NS_PER_S, Cause, Gap, Media

GAP = Gap("g", "gate", Cause.CAMERA, T0 + 6 * NS_PER_S, T0 + 8 * NS_PER_S, "rebooted")


class Ran(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Calls `nvrstore` with words."""

    def call(*words: object) -> Ran:
        status = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Ran(status, out, err)

    with logger_restored():
        yield call


class Place(NamedTuple):
    config: Path
    root: Path
    footage: Footage

    def volume(self, target: str = "a", number: int = 0) -> Path:
        return self.root / target / self.footage.volumes[number].path

    def flip(self, target: str, number: int, offset: int) -> None:
        path = self.volume(target, number)
        data = bytearray(path.read_bytes())
        data[offset] ^= 1
        path.write_bytes(data)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Six seconds of two cameras on the targets a and b, the catalog that a recorder left, and a configuration."""
    footage = Footage.record(seconds=6, per_volume_s=2.0, gaps={0: [GAP]})
    for name in "ab":
        footage.to_directory(tmp_path / name, name)
    (tmp_path / "state").mkdir()
    catalog = Catalog(tmp_path / "state" / CATALOG_FILE, interval_s=60.0)
    footage.feed(catalog)
    catalog.refreshed()
    assert catalog.close()
    config = tmp_path / "nvr.toml"
    targets = ", ".join(f'{{ name = "{n}", path = "{n}", isolation = "thread" }}' for n in "ab")
    config.write_text(
        f'format = 1\nrecorder = {{ name = "nvr-1", state = "state" }}\ntarget = [ {targets} ]\n'
        'journal = [ { name = "main", targets = ["a", "b"] } ]\n'
    )
    return Place(config, tmp_path, footage)


def test_ls_tells_streams_volumes_spans_gaps_and_coverage(run: Run, place: Place) -> None:
    """People get tables, programs JSON, with the same content."""
    ran = run("ls", place.config)
    assert ran.status == 0
    assert "gate camera" in ran.out
    assert "h264 320x240, aac 48000 Hz" in ran.out
    assert iso(T0) in run("ls", place.config, "--stream", "yard").out
    found = run("ls", place.config, "--totals", "--json").json["streams"]
    assert [(s["stream"], s["tracks"][0]["codec"]) for s in found] == [("gate", "h264"), ("yard", "h264")]
    assert found[0]["bytes"] > 0
    volumes = run("ls", place.config, "volumes", "--json").json["volumes"]
    assert [v["path"] for v in volumes] == [s.path for s in place.footage.volumes]
    assert {c["state"] for v in volumes for c in v["copies"]} == {"complete"}
    spans = run("ls", place.config, "spans", "--stream", "gate", "--json").json["spans"]
    assert {s["track"]["media"] for s in spans} == {"video", "audio"}
    assert run("ls", place.config, "gaps", "--json").json["gaps"][0]["cause"] == "camera"
    assert "rebooted" in run("ls", place.config, "gaps").out
    assert run("ls", place.config, "gaps", "--from", iso(T0 + 9 * NS_PER_S)).out == "no gaps\n"
    coverage = run("ls", place.config, "coverage", "--json").json["coverage"]
    assert [(c["stream"], c["recorded_ms"], c["unexplained_ms"]) for c in coverage][1] == ("yard", 6000, 0)
    assert "100.000%" in run("ls", place.config, "coverage", "--stream", "yard").out
    assert run("ls", place.config, "marks").out == "no marks\n"


def test_ls_works_on_a_bare_target_and_a_bare_volume(run: Run, place: Place, tmp_path: Path) -> None:
    """No configuration, no catalog; a volume may lie anywhere, under any name."""
    assert [s["stream"] for s in run("ls", place.root / "b", "--json").json["streams"]] == ["gate", "yard"]
    lone = tmp_path / "found.mp4"
    lone.write_bytes(place.volume("b", 1).read_bytes())
    assert [s["stream"] for s in run("ls", lone, "--json").json["streams"]] == ["gate", "yard"]
    (volume,) = run("ls", lone, "volumes", "--json").json["volumes"]
    assert volume["volume_id"] == place.footage.volumes[1].header.volume_id
    clip = tmp_path / "clip.mp4"
    assert run("export", lone, "yard", "--from", iso(T0), "--to", iso(T0 + 9 * NS_PER_S), "-o", clip).status == 0
    assert demuxed(clip.read_bytes())


def test_export_writes_the_clip_and_says_what_is_in_it(run: Run, place: Place, tmp_path: Path) -> None:
    """The file's checksum, its tracks, its gaps; an existing file is not replaced without being told to."""
    clip = tmp_path / "clip.mp4"
    words = ("export", place.config, "gate", "yard", "--from", iso(T0), "--to", iso(T0 + 7 * NS_PER_S), "-o", clip)
    ran = run(*words)
    assert ran.status == 0
    assert hashlib.sha256(clip.read_bytes()).hexdigest() in ran.out
    assert "300 frames" in ran.out
    assert "camera, rebooted" in ran.out
    again = run(*words)
    assert again.status == 2
    assert "exists already" in again.err
    report = run(*words, "--force", "--json").json
    assert report["sha256"] == hashlib.sha256(clip.read_bytes()).hexdigest()
    packets = demuxed(clip.read_bytes())
    number = next(t["track_id"] for t in report["tracks"] if (t["stream"], t["media"]) == ("gate", "video"))
    assert [p[2] for p in packets[number - 1]] == [s.data for s in place.footage.samples("gate", Media.VIDEO)]


def test_an_export_that_lacks_something_ends_with_1(run: Run, place: Place, tmp_path: Path) -> None:
    """Both copies of a fragment are damaged: the file holds the rest, the status says that it is not all."""
    stored = place.footage.volumes[1]
    batch = next(b for b in stored.volume.batches if any(e.track_id == 1 for e in b.entries))
    entry = next(e for e in batch.entries if e.track_id == 1)
    for target in "ab":
        place.flip(target, 1, batch.offset + entry.offset + 400)
    clip = tmp_path / "clip.mp4"
    ran = run("export", place.config, "gate", "--from", iso(T0), "--to", iso(T0 + 6 * NS_PER_S), "-o", clip)
    assert ran.status == 1
    assert "not in the file: gate" in ran.err
    assert "damaged" in ran.err
    assert clip.exists()


def test_verify_is_quiet_where_everything_is_whole(run: Run, place: Place) -> None:
    """Status 0; on a configuration, a target, a volume; with the reference implementation."""
    ran = run("verify", place.config)
    assert (ran.status, ran.err) == (0, "")
    assert "everything is as it was written" in ran.out
    assert run("verify", place.config, "--reference", "--json").json["ok"] is True
    assert run("verify", place.root / "a").status == 0
    assert run("verify", place.volume()).status == 0
    assert run("verify", place.config, "--target", "b", "--json").json["copies"] == len(place.footage.volumes)


@pytest.mark.parametrize("part", ["fragment", "batch header", "volume header"])
def test_verify_names_a_flipped_byte_and_ends_with_1(run: Run, place: Place, part: str) -> None:
    """Volume, offset, track and time of the damage, and where it is whole; also on the bare target and the bare file."""
    stored = place.footage.volumes[1]
    batch = next(b for b in stored.volume.batches if any(e.track_id == 1 for e in b.entries))
    entry = next(e for e in batch.entries if e.track_id == 1)
    offset = {"fragment": batch.offset + entry.offset + 400, "batch header": batch.offset + 60, "volume header": 600}[part]
    place.flip("b", 1, offset)
    ran = run("verify", place.config, "--json")
    assert ran.status == 1
    (found,) = ran.json["damage"]
    assert (found["target"], found["path"], found["kind"], found["whole_on"]) == ("b", stored.path, part, ["a"])
    assert found["offset"] <= offset < found["offset"] + found["length"]
    if part == "fragment":
        assert (found["tracks"], found["start_ns"]) == ([{"stream": "gate", "media": "video"}], entry.utc_ns)
    table = run("verify", place.config).out
    assert stored.path in table
    assert part in table
    assert run("verify", place.root / "b").status == 1
    assert run("verify", place.volume("b", 1)).status == 1
    assert run("verify", place.root / "a").status == 0


def test_verify_says_when_a_target_is_away(run: Run, place: Place) -> None:
    """Nothing is damaged, and not everything was checked: status 3."""
    (place.root / "b").rename(place.root / "elsewhere")
    ran = run("verify", place.config)
    assert ran.status == 3
    assert "not checked: b" in ran.err


def test_ls_does_not_call_an_archive_empty_that_it_could_not_look_at(run: Run, place: Place) -> None:
    """Without a catalog, and with targets away: a warning for each; with all of them away status 3."""
    (place.root / "state" / CATALOG_FILE).unlink()
    (place.root / "b").rename(place.root / "elsewhere")
    ran = run("ls", place.config)
    assert (ran.status, "'b' did not answer" in ran.err, "gate" in ran.out) == (0, True, True)
    (place.root / "a").rename(place.root / "elsewhere too")
    ran = run("ls", place.config)
    assert ran.status == 3
    assert "no target answered" in ran.err


def test_the_catalog_is_rebuilt_and_answers_as_before(run: Run, place: Place) -> None:
    """Deleted, rebuilt from the targets alone: the same output, word for word."""
    whats = ("streams", "volumes", "spans", "gaps", "marks", "coverage")
    before = [run("ls", place.config, what, "--json").out for what in whats]
    (place.root / "state" / CATALOG_FILE).unlink()
    ran = run("catalog", "rebuild", place.config)
    assert ran.status == 0
    assert f"{len(place.footage.volumes)} volumes" in ran.out
    assert [run("ls", place.config, what, "--json").out for what in whats] == before
    assert run("catalog", "rebuild", place.config, "--json").json["complete"] is True


def test_a_rebuild_with_a_target_away_keeps_what_it_found(run: Run, place: Place) -> None:
    """Status 3, a warning that names the target, and a catalog of what the other holds."""
    (place.root / "b").rename(place.root / "elsewhere")
    ran = run("catalog", "rebuild", place.config)
    assert ran.status == 3
    assert "'b' did not answer" in ran.err
    volumes = run("ls", place.config, "volumes", "--json").json["volumes"]
    assert {c["target"] for v in volumes for c in v["copies"]} == {"a"}


@pytest.mark.parametrize(
    ("words", "status", "sentence", "hint"),
    [
        (("ls", "{config}", "--stream", "gte"), 1, "no footage of stream 'gte'", "nvrstore ls"),
        (("ls", "{root}/nothing.toml"), 2, "nothing.toml", ""),
        (("ls", "{root}/nothing.mp4"), 2, "there is no file", ""),
        (("ls", "{root}"), 2, "is no target", "target init"),
        (("ls", "{root}/junk.mp4"), 1, "no volume", "verify"),
        (("verify", "{config}", "--target", "c"), 2, "no target 'c'", "names a, b"),
        (("export", "{config}", "gate", "--from", "yesterday", "--to", "now"), 2, "'yesterday' is no time", "2026-11-23"),
        (("export", "{config}", "gate", "--from", "now", "--to", "-1h", "-o", "{root}/x.mp4"), 2, "behind its start", ""),
        (
            ("export", "{config}", "gate", "--from", "-1h", "--to", "now", "-o", "{root}/x.mp4"),
            1,
            "nothing is stored of gate",
            "nvrstore ls",
        ),
        (("catalog", "rebuild", "{root}/nothing.toml"), 2, "nothing.toml", ""),
    ],
)
def test_mistakes_are_a_sentence_a_hint_and_a_status(
    run: Run, place: Place, words: tuple[str, ...], status: int, sentence: str, hint: str
) -> None:
    """Whatever is wrong with what was asked, nothing is written and nothing hangs."""
    (place.root / "junk.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(5000))
    before = sorted(p.name for p in place.root.iterdir())
    ran = run(*(word.format(config=place.config, root=place.root) for word in words))
    assert ran.status == status
    assert sentence in ran.err
    assert hint in ran.err
    assert sorted(p.name for p in place.root.iterdir()) == before


def test_an_unreadable_catalog_does_not_keep_anybody_from_reading(run: Run, place: Place) -> None:
    """Rubbish where the catalog was: the targets answer, and a log entry says why it takes longer."""
    (place.root / "state" / CATALOG_FILE).write_bytes(b"rubbish" * 1000)
    ran = run("ls", place.config, "--json")
    assert ran.status == 0
    assert [s["stream"] for s in ran.json["streams"]] == ["gate", "yard"]
