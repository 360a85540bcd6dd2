"""A step counts only when every frame that was sent is on both targets, intact, once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvrstore.bench.model import TOO_SMALL
from nvrstore.drills.account import differences, take_account
from nvrstore.replicate.floor import floors_of


def sent_ranges(sent: Mapping[str, Any]) -> dict[str, list[list[int]]]:
    """Ranges of frame numbers by stream, from what the farm says it sent."""
    return {f"cam{line['stream']}": line["ranges"] for line in sent["streams"]}


def verify_archive(a: Path, b: Path, sent: Mapping[str, Any]) -> tuple[int, int, str]:
    """Frames lost, frames sent, and what is wrong besides. What was sent before the first recorded frame was not asked for."""
    account = take_account(a, "main")
    problems = list(account.damage) + differences(a, b, "main")
    if floors_of(account.records, "main"):
        problems.insert(0, TOO_SMALL)
    lost = frames = 0
    for stream, ranges in sent_ranges(sent).items():
        report = account.reports.get(stream)
        numbers = {number for first, last in ranges for number in range(first, last + 1)}
        if report is None or not report.ranges:
            lost += len(numbers)
            frames += len(numbers)
            continue
        begin = report.ranges[0].first
        wanted = {number for number in numbers if number >= begin}
        there = {number for piece in report.ranges for number in range(piece.first, piece.last + 1)}
        frames += len(wanted)
        missing = sorted(wanted - there)
        lost += len(missing)
        if missing:
            problems.append(f"{stream} lacks {len(missing)} of {begin} to {ranges[-1][1]}: {missing[:5]}")
        if report.duplicated or report.damaged:
            problems.append(f"{stream}: {len(report.duplicated)} frames twice, {len(report.damaged)} damaged")
    return lost, frames, "; ".join(problems[:3])
