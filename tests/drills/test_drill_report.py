"""What drills report: figures, verdicts, the JSON document and the page, from values alone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from nvrstore.cli import main
from nvrstore.drills.page import page
from nvrstore.drills.places import FILE_SYSTEMS
from nvrstore.drills.report import DrillReport, Moment, Run, Sample, ScenarioReport, Spread, StreamResult, Wait, judge, longest_wait
from nvrstore.drills.runner import Options, draw, seed_of
from nvrstore.drills.scenarios import SCENARIOS

ASKED_FOR = {
    *("hang", "io-error", "sync-error-once", "thin-pool", "fill", "read-only", "vanish", "slow", "flap", "corrupt", "all", "all-but-spare"),
    *("power-cut", "kill-recorder", "kill-worker", "clock-step", "during-resync", "during-rollover"),
}


def stream(name: str = "cam0", /, **figures: int) -> StreamResult:
    values = {"sent": 100, "durable": 100, "lost": 0, "unrecorded": 0, "duplicated": 0, "damaged": 0, **figures}
    return StreamResult(name, **values, interval_before_ms=41.0, interval_ms=52.0)


def run(**changes: object) -> Run:
    made = Run("hang", "hang 1.0", how="a: through FUSE", ttd_s=1.2, ttr_s=0.1, recovery_s=1.3, streams=[stream()], copies_equal=True)
    made.samples = [Sample(i / 10, i * 3, i, 0.5, (("a", "away" if 20 < i < 40 else "synced"), ("b", "synced"))) for i in range(60)]
    made.moments = [Moment(2.0, "fault", "no call on a <comes> back", "a"), Moment(3.2, "lost", "a declared lost", "a")]
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def report(*runs: Run) -> DrillReport:
    entry = ScenarioReport("hang", "no call comes back", "lost by its age", list(runs))
    skipped = ScenarioReport("power-cut", "power fails", "nothing committed is lost", skipped="no loop devices")
    return DrillReport("2026-11-23T10:00:00+00:00", "Linux", 1, 25, 1, {"rto_s": 2.0, "rpo_s": None}, [entry, skipped])


@pytest.mark.parametrize("changes", [{"lost": 1}, {"duplicated": 1}, {"damaged": 1}])
def test_one_frame_lost_twice_or_damaged_fails_a_run(changes: dict[str, int]) -> None:
    """The exit status is about every single frame."""
    assert run().passed
    assert not run(streams=[stream(**changes)]).passed
    assert not report(run(), run(streams=[stream(**changes)])).passed


def test_unequal_copies_problems_and_missed_objectives_fail_a_run_and_unrecorded_frames_do_not() -> None:
    """What died with a recording machine, within its bound, is stated and allowed; nothing else is."""
    assert not run(copies_equal=False).passed
    assert run(copies_equal=None).passed
    assert not run(problems=["the ledger does not say so"]).passed
    assert not run(objectives={"rto": False}).passed
    died = run(streams=[stream(durable=90, unrecorded=10)])
    assert died.passed
    assert "nothing was lost." in report(run()).verdict
    assert "10 frames that died" in report(run(), died).verdict
    assert "NOT" in report(run(), run(copies_equal=False)).verdict


def test_a_report_in_which_nothing_ran_has_not_passed() -> None:
    """Skipping everything proves nothing."""
    assert not report().passed


def test_a_spread_is_least_median_and_p99() -> None:
    """By the nearest rank; of few values the p99 is the largest; nothing measured is nothing."""
    assert Spread.of([None]) is None
    assert Spread.of([0.3, None, 0.1]) == Spread(0.1, 0.2, 0.3, 2)
    assert Spread.of([i / 1000 for i in range(1, 201)]) == Spread(0.001, 0.1005, 0.198, 200)


def test_objectives_are_judged_by_recovery_time_and_by_footage_that_is_missing() -> None:
    """RTO is from the fault to the commit under the new set; RPO is the worst stream's missing footage in seconds."""
    assert judge(run(), rto_s=None, rpo_s=None, fps=25) == {}
    assert judge(run(), rto_s=1.31, rpo_s=0, fps=25) == {"rto": True, "rpo": True}
    assert judge(run(), rto_s=1.29, rpo_s=0, fps=25)["rto"] is False
    assert judge(run(recovery_s=None), rto_s=60, rpo_s=None, fps=25) == {"rto": False}, "lost, and no commit came"
    assert judge(run(ttd_s=None, recovery_s=None), rto_s=60, rpo_s=None, fps=25) == {}, "nothing was lost"
    died = run(streams=[stream(), stream("cam1", durable=50, unrecorded=50)])
    assert judge(died, rto_s=None, rpo_s=2.0, fps=25) == {"rpo": True}
    assert judge(died, rto_s=None, rpo_s=1.9, fps=25) == {"rpo": False}


def test_the_json_document_has_its_fields_and_agrees_with_the_figures() -> None:
    """The document is an interface: fields come, none goes."""
    document = json.loads(json.dumps(report(run(), run(ttd_s=1.4)).as_json()))
    assert set(document) == {"format", "started", "machine", "streams", "fps", "seed", "filesystem", "objectives", "passed", "scenarios"}
    hang, skipped = document["scenarios"]
    assert set(hang) == {"scenario", "what", "expect", "passed", "skipped", "ttd", "declared", "ttr", "recovery", "longest_wait", "runs"}
    assert hang["recovery"]["median_ms"] == 1300.0
    assert hang["ttd"] == {"min_ms": 1200.0, "median_ms": 1300.0, "p99_ms": 1400.0, "count": 2}
    assert hang["declared"] is None, "no call came back with an error"
    failed = ScenarioReport("io-error", "", "", [run(declared_s=0.004), run(), run(declared_s=0.002)]).as_json()
    assert failed["declared"] == {"min_ms": 2.0, "median_ms": 3.0, "p99_ms": 4.0, "count": 2}
    assert [one["declared_ms"] for one in failed["runs"]] == [4.0, None, 2.0]
    one = hang["runs"][0]
    assert one["frames"] == {"sent": 100, "durable": 100, "lost": 0, "unrecorded": 0, "duplicated": 0, "damaged": 0}
    assert {
        "seed",
        "how",
        "passed",
        "ttd_ms",
        "declared_ms",
        "ttr_ms",
        "recovery_ms",
        "longest_wait",
        "stop_s",
        "coverage",
        "copies_equal",
        "moments",
        "samples",
        "streams",
    } <= set(one)
    assert one["moments"][0] == {"t_s": 2.0, "kind": "fault", "target": "a", "text": "no call on a <comes> back"}
    assert skipped["skipped"] == "no loop devices"
    assert document["passed"] is True


class Reader(HTMLParser):
    """Everything that a page asks a browser for, its tags in balance."""

    VOID = frozenset({"meta"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        assert not {"src", "onclick", "onload"} & {name for name, _ in attrs}
        assert all(not (value or "").startswith("http") for _, value in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_is_whole_loads_nothing_and_shows_fault_detection_and_every_figure() -> None:
    """One file, readable anywhere: no script, no address, every name escaped."""
    text = page(report(run(), run(ttd_s=1.4)))
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert not reader.open
    assert "svg" in reader.seen
    assert not {"script", "link", "img", "iframe"} & reader.seen
    words = " ".join(reader.words)
    assert "1200 / 1300 / 1400" in words
    for said in ("fault: a", "detected: a", "no call on a <comes> back", "Not run here: no loop devices"):
        assert said in words
    assert "prefers-color-scheme: dark" in text


def test_commits_are_drawn_where_they_were_seen() -> None:
    """A stroke each, none while there was none, and again when the next recorder counts from nought."""
    made = run()
    counts = [1, 2, 3, 3, 3, 3, 4, 0, 1, 2]
    made.samples = [replace(made.samples[i], t_s=float(i), commits=commits) for i, commits in enumerate(counts)]
    (path,) = re.findall(r'<path class="commits" d="([^"]*)"', page(report(made)))
    strokes = [float(place) for place in re.findall(r"M(\d+) ", path)]
    step = (strokes[1] - strokes[0]) / 1
    assert [round((stroke - strokes[0]) / step) for stroke in strokes] == [0, 1, 2, 6, 8, 9]


@pytest.mark.slow
def test_the_page_is_read_at_1200_px_without_scrolling_sideways(tmp_path: Path) -> None:
    """Every table and picture is as wide as the page at most, with figures of several digits over repeats."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no browser here to ask")
    long = run(streams=[stream(sent=1_234_567, durable=1_234_567)], ttd_s=1.2345, declared_s=1.1, ttr_s=1.2, wait=wait(60, 1_181))
    entry = ScenarioReport("sync-error-once", "one sync fails", "the tail is repaired", [long, long])
    made = replace(report(long), scenarios=[entry, *report(long).scenarios])
    script = "document.title=[...document.querySelectorAll('html,.wide')].filter(e=>e.scrollWidth>e.clientWidth).length+' too wide'"
    file = tmp_path / "page.html"
    file.write_text(page(made).replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    command = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1200,1600",
    ]
    dom = subprocess.run([*command, "--dump-dom", file.as_uri()], check=True, capture_output=True, text=True, timeout=60).stdout
    assert "<title>0 too wide</title>" in dom


def test_what_failed_is_the_run_that_is_drawn() -> None:
    """Of many runs the page shows the one to look at."""
    failed = run(streams=[stream(lost=1, durable=99)], seed="hang 1.7")
    text = page(report(run(), failed))
    assert "hang 1.7" in text
    assert "NOT everything" in text


def wait(before_ms: float, since_ms: float) -> Wait | None:
    return Wait.of([replace(stream(), interval_before_ms=before_ms, interval_ms=since_ms), stream("cam1")], 25)


def test_the_longest_wait_of_a_run_is_its_worst_streams_and_three_frames_more_are_allowed() -> None:
    """Not the middle of all streams: one camera that felt the fault is enough."""
    felt = wait(60, 181)
    assert felt is not None
    assert (felt.before_s, felt.since_s, felt.allowed_s, felt.kept) == (0.06, 0.181, 0.18, False)
    assert Wait.of([replace(stream(), interval_before_ms=None)], 25) is None
    assert judge(run(wait=felt), rto_s=None, rpo_s=None, fps=25) == {}, "told, and no objective unless it is asked for"
    assert judge(run(wait=felt), rto_s=None, rpo_s=None, fps=25, wait=True) == {"wait": False}
    assert judge(run(wait=wait(60, 180)), rto_s=None, rpo_s=None, fps=25, wait=True) == {"wait": True}
    assert run(wait=felt).as_json()["longest_wait"] == {"before_ms": 60.0, "since_ms": 181.0, "allowed_ms": 180.0, "kept": False}


def test_longest_waits_over_repeats_are_medians_of_the_worst_and_the_largest() -> None:
    """The median of each run's worst is held against what is allowed; the largest is told beside it."""
    waits = [wait(60, 70), wait(50, 400), wait(80, 75), None]
    figures = {
        "before_ms": 60.0,
        "since_ms": 75.0,
        "allowed_ms": 180.0,
        "before_max_ms": 80.0,
        "since_max_ms": 400.0,
        "kept": True,
        "count": 3,
    }
    assert longest_wait(waits) == figures
    late = longest_wait([wait(60, 181), wait(60, 182), wait(60, 60)])
    assert late is not None
    assert not late["kept"]
    assert longest_wait([None]) is None


def test_detection_is_held_against_what_is_allowed() -> None:
    """Where a target is lost; what nobody noticed has its own problem."""
    assert judge(run(), rto_s=None, rpo_s=None, fps=25, ttd_s=1.2) == {"ttd": True}
    assert judge(run(), rto_s=None, rpo_s=None, fps=25, ttd_s=1.19) == {"ttd": False}
    assert judge(run(ttd_s=None), rto_s=None, rpo_s=None, fps=25, ttd_s=1.19) == {}


def test_what_is_drawn_comes_in_turn_over_repeats_and_over_file_systems() -> None:
    """So both sides, both kinds and both directions occur, whatever the seed; and each run can be had again."""
    for seed in range(4):
        assert {draw(Options(seed=seed, filesystem=fs), 0) % 2 for fs in FILE_SYSTEMS} == {0, 1}
        for fs in (None, *FILE_SYSTEMS):
            assert {draw(Options(seed=seed, filesystem=fs), turn) % 2 for turn in range(2)} == {0, 1}
    seeds = [seed_of(SCENARIOS["flap"], Options(seed=3, filesystem=fs), turn) for fs in (None, *FILE_SYSTEMS) for turn in range(3)]
    assert len(set(seeds)) == len(seeds), "moments differ, too"


def test_every_scenario_that_was_promised_is_there() -> None:
    """The list is what integrators ask us for."""
    assert not ASKED_FOR - set(SCENARIOS)


def test_drill_list_says_what_each_scenario_does_and_needs(capsys: pytest.CaptureFixture[str]) -> None:
    """Without starting anything."""
    assert main(["drill", "--list", "--json"]) == 0
    lists = json.loads(capsys.readouterr().out)
    listed = lists["sandbox"]
    assert {entry["scenario"] for entry in lists["live"]} == {"drain", "hang", "fill", "unmount", "kill-worker"}
    assert [entry["scenario"] for entry in listed] == list(SCENARIOS)
    assert all(entry["what"] and entry["expect"] and entry["needs"] for entry in listed)
    assert next(entry for entry in listed if entry["scenario"] == "power-cut")["needs"] == "root and loop devices"


@pytest.mark.parametrize("words", [["drill"], ["drill", "no-such-thing"]])
def test_a_drill_without_a_known_scenario_is_refused_with_the_way_to_the_list(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, and what to type next."""
    assert main(words) == 2
    assert "drill --list" in capsys.readouterr().err
