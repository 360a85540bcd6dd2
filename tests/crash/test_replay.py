"""Power cuts at any moment, on real file systems: whatever state they leave, what was acknowledged is there.

A state costs 50 to 130 ms, most of it to build, mount and unmount it. A log has 3,000 to 7,000 entries, so that all prefixes take
minutes: `./run prove` takes them all, `./run test` takes samples. Of the un-flushed writes of each prefix, one subset is tried.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from random import Random

import pytest
from tests.support.crash_recording import record, recover
from tests.support.crash_replay import LoggedDisk, Replay, crash_states, look
from tests.support.engine import Identity
from tests.support.prove import note, proving
from tests.support.simulation_mutants import acknowledge_early

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(3600 if proving() else 300)]

STATES: dict[str, tuple[int, int | None]] = {"ext4": (200, None), "xfs": (40, None)}  # usual, proving; None: behind every entry


class Run:
    """What was recorded, and what was acknowledged when."""

    def __init__(
        self, fstype: str, folder: Path, *, fragments: int, mutated: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        self.disk = LoggedDisk(fstype, folder)
        self.told: list[list[Identity]] = []
        with self.disk.mounted() as root, mutated():
            record(root, self._tell, fragments=fragments)
        self.entries = self.disk.entries()

    def _tell(self, identities: list[Identity]) -> None:
        self.told.append(identities)
        self.disk.mark(len(self.told) - 1)

    def violations(self, count: int | None, rng: Random) -> tuple[int, list[str]]:
        """How many crash states there were, and what is missing or wrong in them, before recovery and after it."""
        replay = Replay(self.disk, self.entries, rng)
        found, states = [], 0
        try:
            for state in crash_states(self.entries, count, rng):
                states += 1
                with replay.state(state) as root:
                    there, wrong = look(root)
                    wrong += [f"{path} stays open" for path in recover(root)]
                    after, wrong_after = look(root)
                    wrong += wrong_after
                    there &= after  # recovery takes nothing away
                due = {identity for told in self.told[: state.marks + 1] for identity in told}
                if due - there or wrong:
                    found.append(f"power cut behind entry {state.cut}: {len(due - there)} of {len(due)} are missing; {wrong}")
        finally:
            replay.close()
        return states, found


@pytest.mark.parametrize("fstype", STATES)
def test_what_was_acknowledged_survives_every_power_cut(fstype: str, tmp_path: Path) -> None:
    """All writes up to the last flush and any of those behind it: nothing acknowledged is missing, no committed batch is damaged."""
    run = Run(fstype, tmp_path, fragments=60)
    count = STATES[fstype][proving()]
    assert len(run.told) > 10, "it recorded"
    assert sum(entry.kind == b"F" for entry in run.entries) > len(run.told), "the disk was flushed for each acknowledgement"
    states, violations = run.violations(count, Random(fstype))
    note(
        f"crash-{fstype}",
        states=states,
        recovered=states,
        acknowledgements=len(run.told),
        log_entries=len(run.entries),
        violations=len(violations),
    )
    assert not violations, violations[:3]


def test_a_recorder_that_acknowledges_before_the_sync_is_found(tmp_path: Path) -> None:
    """The check of the check."""
    run = Run("ext4", tmp_path, fragments=40, mutated=acknowledge_early)
    states, violations = run.violations(60, Random(1))
    note("crash-mutant", states=states, violations=len(violations))
    assert len(violations) >= 3
