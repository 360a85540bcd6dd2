"""The intake wakes the engine for a full batch, and only once for each."""

from __future__ import annotations

from dataclasses import replace

from tests.support.volumes import GATE, fragment

from nvrstore.limits import BATCH_BYTES_CUT
from nvrstore.replicate.intake import Intake


def test_a_full_batch_wakes_once_until_it_is_taken() -> None:
    """Under load each fragment comes to a batch that is full already: a wake-up each would be a system call each."""
    woken = []
    intake = Intake(lambda: woken.append(1))
    quarter = replace(fragment(GATE), length=BATCH_BYTES_CUT // 4)
    for _ in range(3):
        intake.put(quarter)
    assert not woken
    for _ in range(6):
        intake.put(quarter)
    assert len(woken) == 1
    assert len(intake.take().fragments) == 9
    for _ in range(4):
        intake.put(quarter)
    assert len(woken) == 2
