"""A benchmark counts only what was verified: our archives frame by frame, other recorders' files by the number of frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av

from nvrstore.drills.account import differences, take_account


def _sent(sent: Mapping[str, Any]) -> dict[str, list[list[int]]]:
    return {f"cam{line['stream']}": line["ranges"] for line in sent["streams"]}


def verify_archive(folder: Path, sent: Mapping[str, Any]) -> tuple[int, int, str]:
    """Frames lost, frames sent, and what is wrong besides. What was sent before the first recorded frame was not asked for."""
    account = take_account(folder / "a", "main")
    problems = list(account.damage) + differences(folder / "a", folder / "b", "main")
    lost = frames = 0
    for stream, ranges in _sent(sent).items():
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


def verify_files(copies: Sequence[Path], streams: int, sent: Mapping[str, Any]) -> tuple[int, int, str]:
    """The same by counting: frames in all copies of every camera, against what was sent since the first one."""
    lost = frames = 0
    problem = ""
    for i in range(streams):
        counts = []
        for folder in copies:
            count = 0
            for path in sorted(folder.glob(f"{i}-*.mp4")):
                try:
                    with av.open(str(path)) as container:
                        count += sum(1 for packet in container.demux(video=0) if packet.size)
                except (av.FFmpegError, IndexError):
                    problem = f"{path.name} cannot be read"
            counts.append(count)
        expected = sum(last - first + 1 for first, last in _sent(sent)[f"cam{i}"])
        frames += expected
        lost += max(0, expected - min(counts))
    return lost, frames, problem
