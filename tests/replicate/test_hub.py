"""The hub's thread: whatever happens is seen at once, not when it would have looked anyway."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.replicate import hub as room
from nvrstore.replicate.engine import JournalEngine
from nvrstore.replicate.hub import Hub
from nvrstore.replicate.port import Port


class Answered:
    """A port whose answer comes while the engines are at work: it is taken at the end of that round, and wakes nobody any more."""

    appender = None

    def __init__(self) -> None:
        self.answers = 1

    def tick(self) -> None:
        """Nothing is due."""

    def pump(self) -> bool:
        heard = working.is_set() and self.answers > 0
        self.answers -= heard
        return heard


working = threading.Event()


def test_an_answer_that_is_taken_at_the_end_of_a_round_has_a_round_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a commit, or the loss of a target, is noticed a whole wait later."""
    monkeypatch.setattr(room, "WAIT_S_MAX", 1000.0)
    working.clear()
    rounds = threading.Semaphore(0)

    def step(**_: Any) -> None:
        working.set()
        rounds.release()

    engine = SimpleNamespace(step=step, lanes=(), due_s=float("inf"), clock_stepped=lambda _: None)
    failures: list[BaseException] = []
    hub = Hub(SYSTEM_CLOCK, on_failure=failures.append)
    hub.add([cast(Port, Answered())], [cast(JournalEngine, engine)])
    hub.start()
    try:
        assert rounds.acquire(timeout=30)
        assert rounds.acquire(timeout=30), "the engines did not see what was answered"
        assert not rounds.acquire(blocking=False)
    finally:
        assert hub.stop(10.0)
    assert not failures
