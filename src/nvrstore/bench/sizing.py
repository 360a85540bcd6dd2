"""What the measured capacity means for hardware. Pure; decimal units, as disks are sold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nvrstore.bench.model import Step

RESERVE: Final = 0.2  # for resync, export, and cameras that send more at night than they say
DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class Sizing:
    """`per_100_*` are of the largest step that passed, for 100 cameras; disks: of each target."""

    streams: int
    with_reserve: int
    bitrate_bps: int
    per_100_cores: float
    per_100_mb: float  # MiB, as the kernel counts
    per_100_mb_s: float
    per_100_tb_day: float

    @property
    def sentence(self) -> str:
        return (
            f"this machine: {self.streams} cameras of {self.bitrate_bps / 1e6:g} Mbit/s; with {RESERVE * 100:.0f} % in reserve "
            f"{self.with_reserve}; per 100 cameras: {self.per_100_cores:.2f} cores, {self.per_100_mb:.0f} MiB, "
            f"{self.per_100_mb_s:.1f} MB/s to each target, {self.per_100_tb_day:.2f} TB a day on each target"
        )


def size(step: Step, bitrate_bps: int) -> Sizing:
    """From the largest step that passed. Its cores are the machine's without the farm and strangers: write-back runs in kernel threads."""
    usage = step.usage
    if usage is None or not step.passed:
        raise ValueError("hardware is sized from a step that passed")
    share = 100 / step.streams
    per_100_mb_s = step.target_mb_s * share
    return Sizing(
        streams=step.streams,
        with_reserve=int(step.streams * (1 - RESERVE)),
        bitrate_bps=bitrate_bps,
        per_100_cores=round(usage.recording * share, 3),
        per_100_mb=round(step.pss_mb * share, 1),
        per_100_mb_s=round(per_100_mb_s, 2),
        per_100_tb_day=round(per_100_mb_s * DAY_S / 1e6, 3),
    )
