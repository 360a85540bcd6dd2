"""What is durable, as waiters are told."""

from __future__ import annotations

from nvrstore.recorder.durable import Durability


def test_more_targets_in_step_than_copies_are_wanted_is_no_mistake() -> None:
    """Right after a spare helped out, it and both preferred targets lack nothing: three, where two are wanted."""
    durability = Durability(2)
    waiting = durability.wait_footage("gate", 0, 2)
    durability.synced("main", ["gate"], 3)
    assert waiting.done()
