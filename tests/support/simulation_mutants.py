"""One mutation of the code for each promise: a recorder that breaks it, for the checks of the simulation to find.

acknowledge early · reuse memory · give it back too early · believe a failed sync · ignore the term · prune whatever others own
cut below what was committed · bring back what expired · say nothing about what was dropped · commit out of order
recover what is being written · wait for the dead · drop though one could take it · condemn at once · come back at once
say nothing of a lost member · believe headers alone · empty the next primary
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final
from unittest import mock

from nvrstore import losses
from nvrstore.config import JournalConfig
from nvrstore.extents import Loan
from nvrstore.failover.detector import Health, Verdict
from nvrstore.failover.machine import Event
from nvrstore.journal import scan
from nvrstore.journal.scan import ScanResult
from nvrstore.replicate import copying, recover, resync
from nvrstore.replicate.bound import Bound
from nvrstore.replicate.buffer import Held, ReplayBuffer
from nvrstore.replicate.engine import JournalEngine
from nvrstore.replicate.lane import Lane
from nvrstore.replicate.places import Watch
from nvrstore.replicate.port import Port
from nvrstore.replicate.settling import Debts
from nvrstore.replicate.truth import Truth, choose_truth
from nvrstore.replicate.volume import Copy, OpenVolume, Submitted
from nvrstore.targets.contract import Answer
from nvrstore.upkeep import mending
from nvrstore.upkeep.pruning import Pruning


@contextmanager
def acknowledge_early() -> Iterator[None]:
    """A batch counts when it was handed over."""
    append = Lane._append

    def early(self: Lane, volume: OpenVolume, copy: Copy, sub: Submitted) -> None:
        append(self, volume, copy, sub)
        sub.pending.discard(copy.target)
        sub.acked.add(copy.target)

    with mock.patch.object(Lane, "_append", early):
        yield


@contextmanager
def reuse_memory() -> Iterator[None]:
    """What an abandoned worker was given is free at once."""
    fail = Port.fail

    def forgetful(self: Port, reason: str, code: int = 0) -> None:
        fail(self, reason, code)
        for grave in self._graves:
            for held in grave.held:
                held.drop()
            grave.held.clear()

    with mock.patch.object(Port, "fail", forgetful):
        yield


@contextmanager
def give_back_too_early() -> Iterator[None]:
    """A worker may fill its extent again as soon as its fragments are in a batch: in the one that lies there."""
    keep = ReplayBuffer.keep

    def generous(self: ReplayBuffer, loan: Loan) -> Held:
        held = keep(self, loan)
        held._memory = mock.Mock(view=held._memory.view)
        return held

    with mock.patch.object(ReplayBuffer, "keep", generous), mock.patch.object(Loan, "keep", return_value=None):
        yield


@contextmanager
def believe_a_failed_sync() -> Iterator[None]:
    """The sync failed; tried again it succeeds, and means nothing."""
    appended = Lane._appended

    def believing(self: Lane, volume: OpenVolume, copy: Copy, sub: Submitted, answer: Answer) -> None:
        appended(self, volume, copy, sub, replace(answer, errno=0) if answer.errno == errno.EIO else answer)

    with mock.patch.object(Lane, "_appended", believing):
        yield


@contextmanager
def ignore_the_term() -> Iterator[None]:
    """Somebody else's higher term is nothing to this writer."""
    with mock.patch.object(Watch, "_lawful", return_value=True):
        yield


@contextmanager
def cut_below_a_committed_batch() -> Iterator[None]:
    """The last batch is taken for a torn tail."""

    def short(scans: Mapping[str, ScanResult]) -> Truth | None:
        truth = choose_truth(scans)
        if truth is None or truth.closed or len(truth.batches) < 2:
            return truth
        return replace(truth, batches=truth.batches[:-1], holders=truth.holders[:-1], committed=-1, stray=False)

    with mock.patch.object(recover, "choose_truth", short):
        yield


@contextmanager
def resurrect_the_expired() -> Iterator[None]:
    """Resync copies what retention let go."""
    with mock.patch.object(resync, "expired", return_value=False), mock.patch.object(mending, "expired", return_value=False):
        yield


@contextmanager
def drop_in_silence() -> Iterator[None]:
    """What the buffer had no room for is not in the ledger."""
    with mock.patch.object(losses.Losses, "over", lambda self, stream: self._open.pop(stream, None) and None):
        yield


@contextmanager
def commit_out_of_order() -> Iterator[None]:
    """What is owed again does not keep its place."""
    with mock.patch.object(Debts, "owe"):
        yield


@contextmanager
def recover_what_is_being_written() -> Iterator[None]:
    """Upkeep is not told what is in use."""
    with (
        mock.patch.object(JournalEngine, "paths_in_use", return_value=set()),
        mock.patch.object(JournalEngine, "released", return_value=True),
    ):
        yield


@contextmanager
def wait_for_the_dead() -> Iterator[None]:
    """Who hangs is never lost: what the others have is not committed."""
    with mock.patch.object(Port, "verdict", lambda self, resumed_s: Verdict(Health.GOOD if self.up else Health.LOST, self.reason)):
        yield


@contextmanager
def drop_though_one_could_take_it() -> Iterator[None]:
    """At the buffer's bound footage goes, and not the laggard."""

    def generous(self: Bound, now_s: float) -> None:
        self._drop()

    with mock.patch.object(Bound, "step", generous):
        yield


@contextmanager
def condemn_at_once() -> Iterator[None]:
    """Who was not looked at just now is lost."""
    verdict = Port.verdict

    def hasty(self: Port, *, resumed_s: float) -> Verdict:
        blind_s = self._clock.monotonic_s() - self.look_ok_s
        return Verdict(Health.LOST, "no look has succeeded") if self.up and blind_s > 0.5 else verdict(self, resumed_s=resumed_s)

    with mock.patch.object(Port, "verdict", hasty):
        yield


@contextmanager
def come_back_at_once() -> Iterator[None]:
    """No hold-down."""
    with mock.patch.object(Watch, "_nobody", return_value=True):
        yield


@contextmanager
def say_nothing_of_a_lost_member() -> Iterator[None]:
    """Recording goes on with what is left, and nobody hears of it."""
    happen = Watch.happen

    def silent(self: Watch, name: str, event: Event, reason: str) -> None:
        if event in (Event.LOST, Event.STALE):
            with mock.patch.object(self._host.observer, "target_changed"):
                happen(self, name, event, reason)
        else:
            happen(self, name, event, reason)

    with mock.patch.object(Watch, "happen", silent):
        yield


@contextmanager
def believe_headers_alone() -> Iterator[None]:
    """Recovery does not look at the footage of the last batch."""
    with mock.patch.object(scan, "payload_damage", return_value=[]), mock.patch.object(copying, "payload_damage", return_value=[]):
        yield


@contextmanager
def empty_the_next_primary() -> Iterator[None]:
    """Who is no primary yet, and will be in a moment, keeps only a standby's window."""

    def beside(self: Pruning, journal: JournalConfig) -> list[str]:
        return [member.target for member in self._host.engines[journal.name].members()[1:]]

    with mock.patch.object(Pruning, "_standbys", beside), mock.patch.object(Pruning, "_still", return_value=True):
        yield


#: By name: the mutation, what its violation must say, kinds of faults that it needs (none: whatever is drawn).
MUTANTS: Final[dict[str, tuple[Callable[[], Any], tuple[str, ...], dict[str, Any]]]] = {
    "acknowledge early": (acknowledge_early, ("I2",), {}),
    "reuse memory": (reuse_memory, ("memory",), {}),
    "give back too early": (give_back_too_early, ("memory",), {"laid_out": True}),
    "believe a failed sync": (believe_a_failed_sync, ("I16",), {}),
    "ignore the term": (ignore_the_term, ("I9",), {}),
    "cut below a committed batch": (cut_below_a_committed_batch, ("I17", "I1", "I10"), {}),
    "resurrect the expired": (
        resurrect_the_expired,
        ("I12",),
        {"keep_s": 8.0, "targets": "ab", "copies": 2, "seconds": 20.0, "kinds": ("hang", "partition")},
    ),
    "drop in silence": (
        drop_in_silence,
        ("I4",),
        {"targets": "a", "copies": 1, "pool_bytes": 40 << 10, "refuge": False, "kinds": ("hang",), "seconds": 20.0},
    ),
    "commit out of order": (
        commit_out_of_order,
        ("I3",),
        {"volume_age_s": 1.5, "kinds": ("full-once", "hang", "unmount"), "fault_every_s": 0.7},
    ),
    "wait for the dead": (wait_for_the_dead, ("promise 2",), {"targets": "ab", "copies": 2, "kinds": ("hang", "partition")}),
    "drop though one could take it": (
        drop_though_one_could_take_it,
        ("promise 2",),
        {"targets": "ab", "copies": 2, "pool_bytes": 24 << 10, "laid_out": False, "kinds": ("hang", "partition")},
    ),
    "condemn at once": (condemn_at_once, ("I26",), {}),
    "come back at once": (come_back_at_once, ("I25",), {}),
    "say nothing of a lost member": (say_nothing_of_a_lost_member, ("I29",), {"commit_any": False}),
    "believe headers alone": (believe_headers_alone, ("I18",), {"kinds": ("host-power-cut", "power-cut", "write-error-once")}),
    "empty the next primary": (
        empty_the_next_primary,
        ("I12",),
        {"window_s": 4.0, "keep_s": None, "targets": "ab", "copies": 1, "kinds": ("io-error", "partition"), "seconds": 20.0},
    ),
    "recover what is being written": (recover_what_is_being_written, ("I1", "I2", "I10", "I17", "I13", "I18", "I28"), {}),
}
