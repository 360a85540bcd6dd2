"""Runs scenarios in a sandbox, looks up every frame, and reports.

    cameras on, every target in step --random while--> scenario --> in step again --> cameras off, drained, recorder off
        --> every frame that was sent is looked up on every copy --> Run

A run that does not come to its end is a failed run with its sentence, never an exception of the drill.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, Final

from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.config import Config
from nvrstore.drills.account import Account, differences, take_account
from nvrstore.drills.faults import FaultError
from nvrstore.drills.live import LIVE, LiveDrill
from nvrstore.drills.losses import explained, losses, worst
from nvrstore.drills.places import FILE_SYSTEMS
from nvrstore.drills.report import DrillReport, Run, ScenarioReport, StreamResult, Wait, judge
from nvrstore.drills.sandbox import JOURNAL, DrillError, Sandbox, Stage, sandbox
from nvrstore.drills.scenarios import SCENARIOS, Scenario
from nvrstore.errors import NvrstoreError
from nvrstore.farm import Farm, FarmConfig, SentFrames
from nvrstore.farm.ranges import FrameRange, count, subtract, union
from nvrstore.limits import FRAGMENT_S, TICK_S
from nvrstore.model import NS_PER_S, Cause, Gap, RecordKind

WARM_S: Final = (0.8, 1.8)  # the fault comes at a random moment within this, after everything is in step
REST_S: Final = 0.3
LEDGER_S: Final = 6.5  # a recorder that was started again has written down when none ran
COMMIT_S: Final = 0.5  # allowed for a commit and for what lies in sockets when a machine dies

Say = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Options:
    """How to run drills."""

    streams: int = 4
    repeat: int = 1
    seed: int = 1
    width: int = 320
    height: int = 240
    bitrate_bps: int = 200_000
    fps: float = 25
    filesystem: str | None = None  # one of places.FILE_SYSTEMS, for all targets of a sandbox
    rto_s: float | None = None
    rpo_s: float | None = None
    ttd_factor: float | None = None  # objective: a target is declared lost within so many times what its scenario promises
    wait: bool = False  # objective: no camera feels the fault


def run_drills(
    names: Sequence[str], options: Options, *, folder: Path | None = None, say: Say = lambda *_: None, first: int = 0
) -> DrillReport:
    """Run each scenario `options.repeat` times, from the run number `first` on. `folder`: kept; without one, a temporary one."""
    report = _blank(options)
    for name in names:
        scenario = SCENARIOS[name]
        entry = ScenarioReport(scenario.name, scenario.what, scenario.expect)
        report.scenarios.append(entry)
        for turn in range(first, first + options.repeat):
            say("begins", {"scenario": name, "seed": seed_of(scenario, options, turn)})
            try:
                run = _run_in(folder, scenario, options, turn)
            except FaultError as error:
                entry.skipped = f"{error.message}; {error.hint}" if error.hint else error.message
                say("skipped", {"scenario": name, "reason": entry.skipped})
                break
            entry.runs.append(run)
            say("ran", {"scenario": name, "run": run})
    return report


def run_live(config: Config, target: str, names: Sequence[str], options: Options, *, say: Say = lambda *_: None) -> DrillReport:
    """Break one target of the running recorder of `config`. Raises UsageError, NotRunningError."""
    report = replace(_blank(options), streams=len(config.streams))
    for name in names:
        entry = ScenarioReport(name, LIVE[name], "every camera is recorded all along; the target returns and is given what it missed")
        report.scenarios.append(entry)
        for turn in range(options.repeat):
            seed = f"{name} {options.seed}.{turn}"
            say("begins", {"scenario": name, "seed": seed})
            run = LiveDrill(config, target, name, seed=seed).run()
            run.objectives = judge(run, rto_s=options.rto_s, rpo_s=options.rpo_s, fps=options.fps)
            entry.runs.append(run)
            say("ran", {"scenario": name, "run": run})
    return report


def _blank(options: Options) -> DrillReport:
    return DrillReport(
        started=datetime.fromtimestamp(SYSTEM_CLOCK.utc_ns() // 10**9, UTC).isoformat(),
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        streams=options.streams,
        fps=options.fps,
        seed=options.seed,
        filesystem=options.filesystem,
        objectives={"rto_s": options.rto_s, "rpo_s": options.rpo_s},
    )


def seed_of(scenario: Scenario, options: Options, turn: int) -> str:
    """From which everything random in one run is drawn."""
    words = [scenario.name, *([options.filesystem] if options.filesystem else []), f"{options.seed}.{turn}"]
    return " ".join(words)


def draw(options: Options, turn: int) -> int:
    """Where a scenario has several ways (which side, which worker), each comes in its turn, over repeats and over file systems."""
    return options.seed + turn + (FILE_SYSTEMS.index(options.filesystem) if options.filesystem else 0)


def _run_in(folder: Path | None, scenario: Scenario, options: Options, turn: int) -> Run:
    if folder is not None:
        own = folder / seed_of(scenario, options, turn).replace(" ", "-")
        own.mkdir(parents=True)
        return run_once(scenario, options, turn, own)
    own = Path(tempfile.mkdtemp(prefix="nvrstore-drill-"))
    try:
        return run_once(scenario, options, turn, own)
    finally:
        shutil.rmtree(own, ignore_errors=True)


def run_once(scenario: Scenario, options: Options, turn: int, folder: Path) -> Run:
    """The run number `turn` below `folder`, which is empty. Raises FaultError when this machine does not have the fault."""
    config = FarmConfig(
        streams=options.streams,
        width=options.width,
        height=options.height,
        bitrate_bps=options.bitrate_bps,
        fps=options.fps,
        gop=max(1, round(options.fps)),
    )
    seed = seed_of(scenario, options, turn)
    run = Run(scenario.name, seed)
    with Farm(config) as farm, sandbox(folder, farm, scenario.kinds, scenario.journal, filesystem=options.filesystem) as box:
        innocent = set(scenario.kinds) - {*scenario.loses, *scenario.may_lose}
        stage = Stage(box, Random(seed), scenario.child, draw(options, turn), innocent)
        try:
            try:
                _play(stage, scenario)
            except (DrillError, FaultError) as error:
                if isinstance(error, FaultError) and stage.fault_s is None:
                    raise  # nothing was broken: this machine does not have the fault
                stage.problems.append(error.message)
            for place in box.places.values():
                place.clear()
            _settle(stage, run)
        finally:
            stage.close()
        _tell(stage, scenario, run)
        if stage.sent is not None:
            _count(box, scenario, run, stage.sent)
    if options.filesystem:
        run.how += f"; all targets on {options.filesystem}"
    run.wait = Wait.of(run.streams, options.fps)
    run.objectives = judge(
        run,
        rto_s=None if scenario.outage else options.rto_s,
        rpo_s=options.rpo_s,
        fps=options.fps,
        ttd_s=None if options.ttd_factor is None or scenario.ttd_s is None else options.ttd_factor * scenario.ttd_s,
        wait=options.wait,
    )
    return run


def _play(stage: Stage, scenario: Scenario) -> None:
    stage.wait(lambda: stage.durable() and stage.synced(), "every camera is recorded, every target in step")
    stage.recording.intervals()  # how cameras begin says nothing
    stage.sleep(stage.random.uniform(*WARM_S))
    scenario.act(stage)
    # Where the cameras are off already, nothing new can become durable.
    stage.wait(lambda: stage.synced() and (stage.sent is not None or stage.durable()), "every target is in step again")
    stage.sleep(LEDGER_S if scenario.dies else REST_S)


def _settle(stage: Stage, run: Run) -> None:
    """Cameras off, then the recorder."""
    try:
        stage.stop_farm()
    except NvrstoreError as error:
        stage.problems.append(error.message)
    for stream, seconds in stage.recording.intervals().items():
        run.streams.append(_intervals_only(stream, stage.interval_before.get(stream), seconds))
    stage.stop()


def _intervals_only(stream: str, before_s: float | None, interval_s: float) -> StreamResult:
    """Frames are counted once the recorder has ended."""
    return StreamResult(stream, 0, 0, 0, 0, 0, 0, round(before_s * 1e3, 1) if before_s else None, round(interval_s * 1e3, 1))


def _tell(stage: Stage, scenario: Scenario, run: Run) -> None:
    """From what was heard to figures and moments."""
    fault_s = stage.fault_s
    _tell_losses(stage, scenario, run)
    for heard in stage.heard():
        target = str(heard.event.get("target", ""))
        if fault_s is None or heard.t_s < fault_s:
            continue
        match heard.name:
            case "TargetJoined":
                stage.note("joined", f"{target} takes new footage", target, heard.t_s)
            case "TargetSynced":
                stage.note("synced", f"{target} lacks nothing", target, heard.t_s)
            case "RefugeEntered":
                stage.note("note", "the state disk takes over", "", heard.t_s)
            case _:
                pass
    if scenario.dies and fault_s is not None:
        run.ttr_s = run.recovery_s = _back(stage, fault_s)
    run.moments, run.samples = sorted(stage.moments, key=lambda moment: moment.t_s), stage.samples
    run.problems, run.notes, run.stop_s = stage.problems, stage.notes, stage.stop_s
    run.how = stage.how or "; ".join(
        f"{place.name}: {place.how}" for name, place in stage.places.items() if scenario.kinds[name] != ("plain",)
    )
    run.how = run.how or stage.places["a"].how


def _tell_losses(stage: Stage, scenario: Scenario, run: Run) -> None:
    """Losses and recoveries as moments and figures; a loss that nothing explains is a problem."""
    found = losses(stage.heard(), stage.moments, stage.begin_s)
    may_lose = {*scenario.loses, *scenario.may_lose, *stage.may_lose}
    mine = [loss for loss in found if explained(loss, may_lose, stage.moments, stage.begin_s)]
    for loss in found:
        if loss in mine:
            continue
        stalled_s = stage.witness.stalled_s(loss.target, loss.lost_s)
        if stalled_s and loss.since_failure_s is None:
            stage.notes.append(f"{loss.target} was declared lost as well; a write of 4 KiB beside it took {stalled_s:.1f} s")
        else:
            stage.problems.append(f"a false alarm: nothing was done to {loss.target}, and it was declared lost: {loss.reason}")
    for name in scenario.loses:
        if name not in {loss.target for loss in mine} and not stage.problems:
            stage.problems.append(f"target {name} was broken, and never declared lost")
    for loss in found:
        stage.note("lost", f"{loss.target} declared lost: {loss.reason}", loss.target, loss.lost_s)
    for commit_s in sorted({loss.commit_s for loss in found if loss.commit_s is not None}):
        last = max((loss for loss in found if loss.commit_s == commit_s), key=lambda loss: loss.lost_s)
        text = f"commits again, {(commit_s - last.lost_s) * 1e3:.0f} ms after the declaration"
        stage.note("recovered", text, last.target, commit_s)
    run.ttd_s = worst(loss.ttd_s for loss in mine)
    run.declared_s = worst(loss.since_failure_s for loss in mine)
    run.ttr_s = worst(loss.ttr_s for loss in mine)
    run.recovery_s = worst(loss.recovery_s for loss in mine)


def _back(stage: Stage, fault_s: float) -> float | None:
    """From the death of a recorder to the first moment at which every stream was durable under the next one."""
    for sample in stage.samples:
        t_s = sample.t_s + stage.begin_s
        if t_s > fault_s and sample.age_s is not None and t_s - sample.age_s > fault_s:
            return t_s - fault_s
    return None


# --- the proof


def _count(box: Sandbox, scenario: Scenario, run: Run, sent: Sequence[SentFrames]) -> None:
    accounts = {name: take_account(place.stored, JOURNAL) for name, place in box.places.items()}
    for name, account in accounts.items():
        if name not in scenario.damages:
            run.problems += [f"{name}: {damage}" for damage in account.damage]
        elif not account.damage:
            run.problems.append(f"{name}: the damage that was done is not found")
        else:
            run.notes.append(f"found: {name}: {account.damage[0]}")
    intervals = {result.stream: result for result in run.streams}
    run.streams = [_stream(i, frames, accounts, scenario, intervals.get(f"cam{i}"), box.farm.config.fps) for i, frames in enumerate(sent)]
    if scenario.dies:
        _explained(run, accounts, box.farm.config.fps)
    if scenario.equal:
        first, second = list(box.places.values())[:2]
        differing = differences(first.stored, second.stored, JOURNAL)
        run.copies_equal = not differing
        run.problems += differing[:10]


def _stream(
    i: int, sent: SentFrames, accounts: Mapping[str, Account], scenario: Scenario, before: StreamResult | None, fps: float
) -> StreamResult:
    stream = f"cam{i}"
    reports = [account.reports[stream] for account in accounts.values() if stream in account.reports]
    there: tuple[FrameRange, ...] = union(*(report.ranges for report in reports)) if reports else ()
    missing = count(subtract(sent.ranges, there))
    allowed = round((FRAGMENT_S + TICK_S + COMMIT_S) * fps) if scenario.dies else 0
    damaged = max((len(report.damaged) for name, report in _named(accounts, stream) if name not in scenario.damages), default=0)
    return StreamResult(
        stream=stream,
        sent=sent.count,
        durable=sent.count - missing,
        lost=max(0, missing - allowed),
        unrecorded=min(missing, allowed),
        duplicated=max((len(report.duplicated) for report in reports), default=0),
        damaged=damaged,
        interval_before_ms=before.interval_before_ms if before else None,
        interval_ms=before.interval_ms if before else None,
    )


def _named(accounts: Mapping[str, Account], stream: str) -> list[tuple[str, Any]]:
    return [(name, account.reports[stream]) for name, account in accounts.items() if stream in account.reports]


def _explained(run: Run, accounts: Mapping[str, Account], fps: float) -> None:
    """What died with the recorder has to stand in the ledger, and as no less than it was."""
    records = [record for account in accounts.values() for record in account.records if record.kind == RecordKind.GAP]
    gaps = {gap.id: gap for gap in map(Gap.of, records) if gap.cause is Cause.RECORDER and gap.end_ns is not None}
    for result in run.streams:
        told_s = sum(((gap.end_ns or 0) - gap.start_ns) / NS_PER_S for gap in gaps.values() if gap.stream == result.stream)
        missing_s = (result.lost + result.unrecorded) / fps
        if missing_s > told_s + 2 / fps:  # a frame at either end
            run.problems.append(f"{result.stream}: {missing_s:.2f} s are missing, and the ledger tells of {told_s:.2f} s")
