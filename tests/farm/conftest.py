"""What the farm's tests share: a small, quick camera."""

from __future__ import annotations

import pytest

from nvrstore.farm import FarmConfig


@pytest.fixture
def small() -> FarmConfig:
    """A picture that is encoded in milliseconds, at a rate that keeps tests short."""
    return FarmConfig(width=160, height=120, bitrate_bps=400_000, fps=100, gop=20)
