"""The bench: its search, its judgement, its arithmetic; the real verb once; input that it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.commands import nvrstore, refused
from tests.support.volumes import Volume, header

from nvrstore.bench.bottleneck import bottleneck_of
from nvrstore.bench.model import TOO_SMALL, Bottleneck, Step, Usage
from nvrstore.bench.page import page
from nvrstore.bench.search import PRECISION, next_streams
from nvrstore.bench.sizing import size
from nvrstore.bench.step import Plan
from nvrstore.bench.verify import verify_archive
from nvrstore.replicate.floor import Floor

IDLE = Usage(cores=4, machine=1.0, farm=0.2, farm_thread=0.2, recorder=0.7, recorder_process=0.5, thread=0.4, thread_name="nvrstore-hub")
GOOD = Step(100, 10.0, IDLE, 200.0, 20.0, 50.0, 50, 1.0, 25_000, target_mb_s=50.0)
LOST = replace(GOOD, frames_lost=3)


@pytest.mark.parametrize("capacity", [*range(0, 140), 999, 4095])
def test_the_search_ends_beside_the_capacity(capacity: int) -> None:
    """Whatever a machine can do, the answer is at most a twentieth (or one stream) below it, and never above."""
    results: list[tuple[int, bool]] = []
    while (wanted := next_streams(results, most=4096)) is not None:
        assert wanted not in [streams for streams, _ in results]
        results.append((wanted, wanted <= capacity))
        assert len(results) < 30
    best = max((streams for streams, passed in results if passed), default=0)
    assert best <= capacity <= best + max(1, int(best * PRECISION))


@pytest.mark.parametrize("most", [1, 5, 16, 100])
def test_the_search_stops_at_the_most_that_was_asked_for(most: int) -> None:
    """`--max` is tried itself, and nothing above it."""
    results: list[tuple[int, bool]] = []
    while (wanted := next_streams(results, most=most)) is not None:
        results.append((wanted, True))
    assert max(streams for streams, _ in results) == most


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (GOOD, Bottleneck.NONE),
        (replace(LOST, usage=None), Bottleneck.UNKNOWN),
        (replace(LOST, usage=replace(IDLE, farm_thread=0.95)), Bottleneck.FARM),
        (replace(LOST, usage=replace(IDLE, machine=3.9, farm=1.2)), Bottleneck.FARM),
        (replace(LOST, usage=replace(IDLE, machine=3.9)), Bottleneck.CPU),
        (replace(LOST, usage=replace(IDLE, thread=0.95)), Bottleneck.GIL),
        (replace(LOST, usage=replace(IDLE, recorder_process=1.2)), Bottleneck.GIL),
        (replace(GOOD, commit_ms_p99=500.0), Bottleneck.DISK),
        (replace(GOOD, targets_lost=("a",)), Bottleneck.DISK),
        (replace(GOOD, frames_dropped=1), Bottleneck.NETWORK),
        (replace(GOOD, problem=TOO_SMALL), Bottleneck.DISK),
        (LOST, Bottleneck.UNKNOWN),
    ],
)
def test_the_bottleneck_is_named_from_what_was_measured(step: Step, kind: Bottleneck) -> None:
    """Each kind has its case; what nothing explains is called unknown."""
    assert bottleneck_of(step)[0] is kind


def test_hardware_is_sized_for_a_hundred_cameras() -> None:
    """The farm's CPU is not the recorder's; bytes become terabytes a day."""
    sizing = size(replace(GOOD, streams=200), 4_000_000)
    assert (sizing.with_reserve, sizing.per_100_cores, sizing.per_100_mb) == (160, 0.4, 100.0)
    assert (sizing.per_100_mb_s, sizing.per_100_tb_day) == (25.0, 2.16)


@pytest.mark.slow
def test_bad_input_is_refused(tmp_path: Path) -> None:
    """A sentence, a hint, exit status 2."""
    a = tmp_path / "a"
    a.mkdir()
    refused("bench", "--bitrate", "fast", status=2, sentence="no bitrate", hint="4M")
    refused("bench", "--targets", a, a, status=2, sentence="given twice", hint="two directories")
    refused("bench", "--targets", a, tmp_path / "none", status=2, sentence="no directory", hint="two directories")
    refused("bench", "--streams", "0", status=2, sentence="no number of streams", hint="auto")
    refused("bench", "--streams", "99999999", "--targets", a, tmp_path, status=2, sentence="are free", hint="free space")


@pytest.mark.parametrize("removed", [False, True])
def test_a_run_whose_own_footage_had_to_make_room_does_not_count(tmp_path: Path, removed: bool) -> None:
    """What is left would be whole: the ledger says that there was more."""
    volume = Volume.begin(header(journal="main"))
    volume.add((), [Floor({"t0008-9f2c41aa.l0": 3}).record(journal="main")] if removed else ())
    for name in "ab":
        file = tmp_path / name / "main/2026-11-23/07-45-10Z.t0008-9f2c41aa.l0.v000042.mp4"
        file.parent.mkdir(parents=True)
        file.write_bytes(volume.data)
    lost, frames, problem = verify_archive(tmp_path / "a", tmp_path / "b", {"streams": []})
    assert (lost, frames) == (0, 0)
    assert problem.startswith(TOO_SMALL) is removed


def test_a_step_needs_room_for_its_footage_and_what_is_prepared_beside_it(tmp_path: Path) -> None:
    """512 cameras of 4 Mbit/s are two lanes: a quarter of a gigabyte a second, and three volumes of ten seconds for each lane."""
    plan = Plan((tmp_path, tmp_path), "4M", 4_000_000, 30.0, "auto", 2)
    assert plan.volume_bytes(512) == 1_280_000_000
    assert plan.volume_bytes(1) == 64 << 20, "the least"
    assert plan.room_bytes(512) == 1.25 * (256e6 * (30 + 4 + 15 + 5) + 3 * 2 * 1.28e9)


@pytest.mark.slow
def test_the_real_verb_measures_and_verifies_a_step(tmp_path: Path) -> None:
    """Few streams for two seconds: every frame on both targets, figures filled in, nothing left behind."""
    places = tmp_path / "a", tmp_path / "b"
    for place in places:
        place.mkdir()
    ran = nvrstore(
        "bench", "--streams", 2, "--bitrate", "256k", "--seconds", 2, "--targets", *places, "--json", "--html", tmp_path / "page.html"
    )
    assert ran.status == 0, ran
    (step,) = ran.json["steps"]
    assert step["passed"]
    assert step["frames_lost"] == 0 < step["frames_sent"]
    assert step["pss_mb"] > 0 < step["commits"]
    assert ran.json["result"]["streams"] == 2
    assert [list(place.iterdir()) for place in places] == [[], []]
    assert "2 cameras are recorded" in (tmp_path / "page.html").read_text()


def test_the_page_shows_every_step_and_loads_nothing() -> None:
    """Figures as in the table; what failed is told apart without its colour; text of others is escaped."""
    failed = replace(GOOD, streams=200, commit_ms_p99=700.0, problem="a <b> c")
    sizing = size(GOOD, 4_000_000)
    text = page(
        [failed, GOOD, replace(LOST, streams=400, usage=None)], streams=100, bottleneck="the disk & more", sizing=sizing, about="2 cores"
    )
    assert "100 cameras are recorded" in text
    assert "the disk &amp; more" in text
    assert "a &lt;b&gt; c" in text
    assert text.count("<svg") == 3
    assert text.count('fill="var(--panel)"') == 5, "a ring for every line of the step that failed"
    assert not [word for word in ("http:", "https:", "<script", "src=") if word in text]
