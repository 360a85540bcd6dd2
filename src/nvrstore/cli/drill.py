"""`nvrstore drill SCENARIO…`: break things on purpose, and see what it costs.

In a sandbox (simulated cameras that number every frame, targets and a recorder of its own), or against the running
recorder of a configuration. Exit status 0 only if nothing was lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from nvrstore.cli.common import JsonFlag, human_s, print_json, say, show_table
from nvrstore.config import Config
from nvrstore.errors import UsageError

if TYPE_CHECKING:
    from nvrstore.drills.report import DrillReport, Run

STREAMS_MAX: Final = 200


def command(
    scenarios: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SCENARIO... [CONFIG]",
            help="What to break; see --list. `every`: all of them. CONFIG, with --target: the configuration of a running recorder.",
            show_default=False,
        ),
    ] = None,
    list_them: Annotated[bool, typer.Option("--list", help="What can be broken, and what it takes.")] = False,
    sandbox: Annotated[bool, typer.Option("--sandbox", help="Simulated cameras and targets of its own (the default).")] = False,
    target: Annotated[str | None, typer.Option(help="Break this target of the running recorder.", show_default=False)] = None,
    streams: Annotated[int, typer.Option(help="Simulated cameras.", min=1, max=STREAMS_MAX)] = 4,
    repeat: Annotated[int, typer.Option(help="How often each scenario is run.", min=1, max=10_000)] = 1,
    seed: Annotated[int, typer.Option(help="Decides when things break, and whatever else is random.")] = 1,
    bitrate: Annotated[int, typer.Option(help="Of each camera, in bit/s.", min=16_000)] = 200_000,
    filesystem: Annotated[
        str | None,
        typer.Option(help="Put every target of the sandbox on one of these: ext4, xfs, btrfs, tmpfs (root), fuse.", show_default=False),
    ] = None,
    rto: Annotated[float | None, typer.Option(help="Objective: seconds from a fault to the next commit, at most.", min=0)] = None,
    rpo: Annotated[float | None, typer.Option(help="Objective: seconds of footage that may be missing of a stream.", min=0)] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as one self-contained page.", show_default=False)] = None,
    directory: Annotated[Path | None, typer.Option("--dir", help="Work in this empty directory, and keep it.", show_default=False)] = None,
    as_json: JsonFlag = False,
) -> None:
    """Break things on purpose and time the answer. Exit status 0: nothing was lost."""
    from nvrstore.drills.scenarios import SCENARIOS

    if list_them:
        _list(SCENARIOS, as_json=as_json)
        return
    words = list(scenarios or [])
    config = Config.load(words.pop()) if words and words[-1].endswith(".toml") else None
    if (config is None) != (target is None) or (config is not None and sandbox):
        raise UsageError("a running recorder is drilled with CONFIG and --target; a sandbox with neither", hint="nvrstore drill --help")
    if config is not None:
        rto, rpo = rto if rto is not None else config.objectives.rto_s, rpo if rpo is not None else config.objectives.rpo_s
    from nvrstore.drills.live import LIVE
    from nvrstore.drills.places import FILE_SYSTEMS

    names = _names(words, SCENARIOS if config is None else LIVE)
    if filesystem is not None and (config is not None or filesystem not in FILE_SYSTEMS):
        raise UsageError(f"no drill can be had on {filesystem!r}", hint=f"in a sandbox, one of {', '.join(FILE_SYSTEMS)}")
    if directory is not None and directory.exists() and any(directory.iterdir()):
        raise UsageError(f"{directory} is not empty", hint="give an empty directory, or none: drills then use a temporary one")

    from nvrstore.drills.runner import Options, run_drills, run_live

    def tell(event: str, figures: Mapping[str, Any]) -> None:
        if not as_json:
            _line(event, figures)

    options = Options(streams=streams, repeat=repeat, seed=seed, bitrate_bps=bitrate, filesystem=filesystem, rto_s=rto, rpo_s=rpo)
    if config is not None and target is not None:
        report = run_live(config, target, names, options, say=tell)
    else:
        report = run_drills(names, options, folder=directory.resolve() if directory else None, say=tell)
    if html is not None:
        from nvrstore.drills.page import page

        html.write_text(page(report), encoding="utf-8")
    if as_json:
        print_json(report.as_json())
    else:
        _show(report, html)
    if not report.passed:
        raise typer.Exit(1)


def _names(wanted: list[str], known: Mapping[str, Any]) -> list[str]:
    if not wanted:
        raise UsageError("no scenario was named", hint="`nvrstore drill --list` shows them; `nvrstore drill every` runs all of them")
    if wanted == ["every"]:
        return list(known)
    strangers = [name for name in wanted if name not in known]
    if strangers:
        raise UsageError(f"there is no scenario {strangers[0]!r}", hint="`nvrstore drill --list` shows them")
    return wanted


def _list(scenarios: Mapping[str, Any], *, as_json: bool) -> None:
    from nvrstore.drills.live import LIVE

    if as_json:
        sandbox = [{"scenario": s.name, "what": s.what, "expect": s.expect, "needs": s.needs} for s in scenarios.values()]
        print_json({"sandbox": sandbox, "live": [{"scenario": name, "what": what} for name, what in LIVE.items()]})
        return
    say("In a sandbox:")
    show_table(
        ["scenario", "what is broken", "what has to come of it", "needs"], [(s.name, s.what, s.expect, s.needs) for s in scenarios.values()]
    )
    say("\nOn the target of a running recorder (CONFIG --target NAME):")
    show_table(["scenario", "what is done to the target"], LIVE.items())


def _line(event: str, figures: Mapping[str, Any]) -> None:
    match event:
        case "begins":
            say(f"{figures['seed']}: recording ...")
        case "skipped":
            say(f"   not run: {figures['reason']}")
        case "ran":
            run: Run = figures["run"]
            words = [f"{run.total('sent')} frames sent, {run.total('lost')} lost"]
            words += [f"declared after {human_s(run.ttd_s)}"] if run.ttd_s is not None else []
            words += [f"next commit after {human_s(run.ttr_s)}"] if run.ttr_s is not None else []
            if run.wait is not None:
                words += [f"longest wait for a frame {human_s(run.wait.since_s)} ({human_s(run.wait.before_s)} before)"]
            say(f"   {'passed' if run.passed else 'FAILED'}: {', '.join(words)}; {run.how}")
            for problem in run.problems[:5]:
                say(f"   problem: {problem}")
        case _:
            pass


def _show(report: DrillReport, html: Path | None) -> None:
    from nvrstore.drills.report import Spread

    def spread(values: Any) -> str:
        found = Spread.of(values)
        if found is None:
            return "-"
        if found.count == 1:
            return human_s(found.median_s)
        return f"{human_s(found.min_s)} / {human_s(found.median_s)} / {human_s(found.p99_s)}"

    rows = []
    for scenario in report.scenarios:
        runs = scenario.runs
        equal = {None: "-", True: "yes", False: "NO"}[next((run.copies_equal for run in runs if not run.copies_equal), bool(runs) or None)]
        rows.append(
            (
                scenario.name,
                "not run" if not runs else "passed" if scenario.passed else "FAILED",
                *(sum(run.total(what) for run in runs) for what in ("sent", "durable", "lost", "unrecorded", "duplicated")),
                spread(run.ttd_s for run in runs),
                spread(run.declared_s for run in runs),
                spread(run.ttr_s for run in runs),
                equal,
            )
        )
    say()
    show_table(
        [
            "scenario",
            "",
            ">sent",
            ">durable",
            ">lost",
            ">unrecorded",
            ">twice",
            ">TTD",
            ">of it, after the first failed call",
            ">TTR",
            "copies equal",
        ],
        rows,
    )
    several = any(len(scenario.runs) > 1 for scenario in report.scenarios)
    say("TTD: fault to declaration. TTR: declaration to next commit." + (" min / median / p99." if several else ""))
    if any(run.total("unrecorded") for scenario in report.scenarios for run in scenario.runs):
        say("unrecorded: died with the recording machine before it was in a commit; within the bound, and in the ledger.")
    if html is not None:
        say(f"The report is in {html}.")
    say(report.verdict)
