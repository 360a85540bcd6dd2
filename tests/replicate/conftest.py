"""Fixtures of the engine's tests."""

from __future__ import annotations

import pytest
from tests.support.engine import Rig


@pytest.fixture(params=[False, True], ids=["threads", "worker"])
def laid_out(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever uses this runs twice: fragments come one by one from threads, or as batches laid out by another process."""
    monkeypatch.setattr(Rig, "laid_out", request.param)
