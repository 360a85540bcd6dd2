"""Sessions of the lean engine, heard by a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.ingest import Ear

from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.ingest.contract import Endpoint, SourceRequest
from nvrstore.ingest.lean import LeanEngine, LeanSource
from nvrstore.limits import STOP_S


@contextmanager
def session(
    url: str, *, engine: LeanEngine | None = None, login: tuple[str, str] | None = None, ear: Ear | None = None, **request: Any
) -> Iterator[tuple[LeanSource, Ear]]:
    """A running source and who hears it; stopped and gone at the end."""
    ear = ear or Ear()
    fields = {"timeout_s": 10.0, **request}
    source = (engine or LeanEngine())(SourceRequest("gate", lambda: Endpoint(url, login), **fields), ear, SYSTEM_CLOCK)
    source.start()
    try:
        yield source, ear
    finally:
        source.stop()
        assert source.join(STOP_S)
        assert len(ear.ends) == 1
