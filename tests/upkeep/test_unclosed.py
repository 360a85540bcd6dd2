"""When recovery tries a volume again that it could not bring to its end."""

from __future__ import annotations

from nvrstore.upkeep.unclosed import RETRY_S, RETRY_S_MAX, Unclosed


def test_it_waits_and_then_twice_as_long_each_time() -> None:
    """A second scan costs what the first one did."""
    waiting = Unclosed()
    now_s = 0.0
    for n in range(12):
        waiting.tried("v", {"a"}, answered={"a", "b"}, now_s=now_s)
        wait_s = min(RETRY_S * 2**n, RETRY_S_MAX)
        assert waiting.holders(["v"], answered={"a"}, now_s=now_s + wait_s - 0.1) == {"v": {"a"}}
        assert waiting.holders(["v"], answered={"a"}, now_s=now_s + wait_s) == {}
        now_s += wait_s


def test_a_target_that_answers_again_is_heard_at_once() -> None:
    """It may hold what was missing."""
    waiting = Unclosed()
    waiting.tried("v", {"a"}, answered={"a"}, now_s=0)
    assert waiting.holders(["v"], answered={"a"}, now_s=1) == {"v": {"a"}}
    assert waiting.holders(["v"], answered={"a", "b"}, now_s=1) == {}


def test_what_is_done_or_gone_is_forgotten() -> None:
    """And begins anew should it come back."""
    waiting = Unclosed()
    for volume in ("done", "gone"):
        waiting.tried(volume, (), answered={"a"}, now_s=0)
        waiting.tried(volume, (), answered={"a"}, now_s=0)
    waiting.done("done")
    assert waiting.holders(["done"], answered={"a"}, now_s=0) == {}
    waiting.tried("gone", {"a"}, answered={"a"}, now_s=0)
    assert waiting.holders(["gone"], answered={"a"}, now_s=RETRY_S) == {}
