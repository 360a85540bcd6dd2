"""A benchmark counts only what was verified: other recorders' files by the number of frames; our archives are nvrstore.bench.verify's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av

from nvrstore.bench.verify import sent_ranges


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
        expected = sum(last - first + 1 for first, last in sent_ranges(sent)[f"cam{i}"])
        frames += expected
        lost += max(0, expected - min(counts))
    return lost, frames, problem
