"""`nvrstore verify PLACE`: check every checksum of every copy, and compare the copies. Changes nothing.

Exit status 1 when anything is damaged, 3 when a target did not answer and nothing else is wrong.
"""

from __future__ import annotations

from typing import Annotated

import typer

from nvrstore.cli.common import JsonFlag, human_bytes, iso, plain, print_json, say, show_table, warn
from nvrstore.cli.stored import Place, archive_at, progress
from nvrstore.playback.verify import FoundDamage, VerifyProgress, VerifyReport

SHOWN_MAX = 100  # lines of damage for people; --json has all of them


def command(
    place: Place,
    target: Annotated[list[str] | None, typer.Option(help="Only copies on this target; may be given several times.")] = None,
    reference: Annotated[
        bool, typer.Option("--reference", help="Check everything again with an independent CRC-32C (crcmod): slow, about 400 MB/s.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Check every checksum on the targets; damage is named by target, volume, offset, track and time."""
    with archive_at(place) as archive, progress("verifying", shown=not as_json) as show:

        def step(now: VerifyProgress) -> None:
            show(now.bytes_done / max(1, now.bytes_total), now.path)

        report = archive.verify(target or None, reference=reference, on_progress=step)
    if as_json:
        print_json({"ok": report.ok, **plain(report)})
    else:
        _show(report)
    if report.damage:
        raise typer.Exit(1)
    if report.unreachable:
        raise typer.Exit(3)


def _show(report: VerifyReport) -> None:
    checked = f"{report.volumes} volumes, {report.copies} copies, {report.fragments} fragments, {human_bytes(report.bytes)}"
    say(f"checked {checked}{' with both implementations' if report.reference else ''}")
    if report.erased:
        say(f"{report.erased} fragments were erased on purpose")
    if report.damage:
        columns = ("target", "volume", ">offset", ">length", "what", "track", "from", "until", "whole on")
        show_table(columns, [_row(damage) for damage in report.damage[:SHOWN_MAX]])
        if len(report.damage) > SHOWN_MAX:
            say(f"and {len(report.damage) - SHOWN_MAX} more: --json shows all")
        lost = sum(not damage.whole_on for damage in report.damage)
        say(f"{len(report.damage)} damaged places; {lost} of them are whole on no copy")
    for target, problem in report.unreachable.items():
        warn(f"not checked: {target}: {problem}")
    if report.ok:
        say("everything is as it was written")


def _row(damage: FoundDamage) -> list[object]:
    tracks = ", ".join(map(str, damage.tracks[:2])) + (f" and {len(damage.tracks) - 2} more" if len(damage.tracks) > 2 else "")
    times = (iso(damage.start_ns or None), iso(damage.end_ns or None))
    what = f"{damage.kind}: {damage.detail}" if damage.detail else damage.kind
    return [damage.target, damage.path, damage.offset, damage.length, what, tracks or "-", *times, ", ".join(damage.whole_on) or "none"]
