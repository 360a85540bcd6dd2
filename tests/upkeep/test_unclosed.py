"""When recovery tries a volume again that it could not bring to its end."""

from __future__ import annotations

import pytest

from nvrstore.upkeep.unclosed import RETRY_S, RETRY_S_MAX, Heard, Unclosed

A, B = Heard("a"), Heard("b")


def test_it_waits_and_then_twice_as_long_each_time() -> None:
    """A second scan costs what the first one did."""
    waiting = Unclosed()
    now_s = 0.0
    for n in range(12):
        waiting.tried("v", {"a"}, answered={A, B}, now_s=now_s)
        wait_s = min(RETRY_S * 2**n, RETRY_S_MAX)
        assert waiting.holders(["v"], answered={A}, now_s=now_s + wait_s - 0.1) == {"v": {"a"}}
        assert waiting.holders(["v"], answered={A}, now_s=now_s + wait_s) == {}
        now_s += wait_s


def test_a_target_that_answers_again_is_heard_at_once() -> None:
    """It may hold what was missing."""
    waiting = Unclosed()
    waiting.tried("v", {"a"}, answered={A}, now_s=0)
    assert waiting.holders(["v"], answered={A}, now_s=1) == {"v": {"a"}}
    assert waiting.holders(["v"], answered={A, B}, now_s=1) == {}


@pytest.mark.parametrize("now", [A._replace(generation=1), A._replace(haunted=False)])
def test_a_target_that_left_while_it_was_tried_or_had_a_stuck_worker_is_tried_again_at_once(now: Heard) -> None:
    """Else the copies would differ for seconds after everything is in step again."""
    before = A._replace(haunted=not now.generation)
    waiting = Unclosed()
    for _ in range(3):
        waiting.tried("v", {"a", "b"}, answered={before, B}, now_s=0)
    assert waiting.holders(["v"], answered={before, B}, now_s=1) == {"v": {"a", "b"}}
    assert waiting.holders(["v"], answered={now, B}, now_s=1) == {}
    waiting.tried("v", {"a", "b"}, answered={now, B}, now_s=1)
    assert waiting.holders(["v"], answered={now, B}, now_s=1 + RETRY_S) == {}, "and waits no longer than at the first time"


def test_what_is_done_or_gone_is_forgotten() -> None:
    """And begins anew should it come back."""
    waiting = Unclosed()
    for volume in ("done", "gone"):
        waiting.tried(volume, (), answered={A}, now_s=0)
        waiting.tried(volume, (), answered={A}, now_s=0)
    waiting.done("done")
    assert waiting.holders(["done"], answered={A}, now_s=0) == {}
    waiting.tried("gone", {"a"}, answered={A}, now_s=0)
    assert waiting.holders(["gone"], answered={A}, now_s=RETRY_S) == {}
