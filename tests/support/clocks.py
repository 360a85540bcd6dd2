"""Cameras and links with clocks of their own, and what a timeline made of their frames."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from tests.support.media import UTC_NS, sample

from nvrstore.model import Media, Sample
from nvrstore.timeline import Placement, RunReason, Timeline

MS = 1_000_000
S = 1_000_000_000


def timeline(*, trust_camera_clock: bool = False) -> Timeline:
    made = Timeline("gate", 7, trust_camera_clock=trust_camera_clock)
    assert made.declare(Media.VIDEO, 90_000) == []
    assert made.declare(Media.AUDIO, 8_000) == []
    return made


def place(made: Timeline, samples: Iterable[Sample]) -> list[Placement]:
    return [placement for one in samples for placement in made.place([one])]


def camera(
    seconds: float,
    *,
    fps: float = 25,
    start_dts: int = 0,
    start_s: float = 0.0,
    rate: float = 1.0,
    delay_s: float = 0.0,
    jitter_s: float = 0.0,
    seed: int = 1,
) -> Iterator[Sample]:
    """Frames at `fps` by our clock, whose media time runs at `rate`; each arrives `delay_s` and up to `jitter_s` late."""
    rng = random.Random(seed)
    latest = 0.0
    for i in range(round(seconds * fps)):
        sent_s = start_s + i / fps
        latest = max(latest, sent_s + delay_s + rng.random() * jitter_s)
        yield sample(start_dts + round(i / fps * rate * 90_000), at_s=latest, keyframe=i % 50 == 0)


def errors_ms(placements: list[Placement], *, start_dts: int = 0, rate: float = 1.0, fps: float = 25) -> list[float]:
    """How far each frame was placed from when it was sent, in ms."""
    return [(p.utc_ns - UTC_NS - (p.sample.dts - start_dts) / 90_000 / rate * S) / MS for p in placements]


def offsets_us(placements: list[Placement]) -> list[int]:
    """How far each frame lies from a steady 25 fps since UTC_NS, in whole microseconds."""
    return [round((p.utc_ns - UTC_NS - i * 40 * MS) / 1000) for i, p in enumerate(placements)]


def runs(placements: list[Placement]) -> list[tuple[int, RunReason]]:
    """(position, reason) of every sample that begins a run."""
    return [(i, p.began.reason) for i, p in enumerate(placements) if p.began is not None]
