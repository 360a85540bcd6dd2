"""A real engine with real workers on a real directory for a few seconds, telling each acknowledgement in the moment it is made."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.support.engine import CONFIG, Heard, Identity

from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.journal.model import Batch, VolumeHeader
from nvrstore.media.fragment import Fragmenter
from nvrstore.model import Commit, Media, Sample, TrackKey
from nvrstore.replicate.buffer import ReplayBuffer
from nvrstore.replicate.claim import Claimant, claim_term
from nvrstore.replicate.contract import JournalSpec
from nvrstore.replicate.engine import JournalEngine
from nvrstore.replicate.hub import Hub
from nvrstore.replicate.intake import Intake
from nvrstore.replicate.inventory import survey
from nvrstore.replicate.port import Port
from nvrstore.replicate.recover import recover_volume
from nvrstore.targets.directory import DirectoryTarget
from nvrstore.targets.identity import ensure_journal, identify, init_target
from nvrstore.targets.pool import Pool
from nvrstore.targets.steps import run_steps

SESSION = 0x0102030405060708
RECORDER = "cd" * 16


class Telling(Heard):
    """Tells each commit before anybody else could hear of it."""

    def __init__(self, told: Callable[[list[Identity]], None]) -> None:
        super().__init__()
        self._told = told

    def batch_stored(self, header: VolumeHeader, path: str, batch: Batch, targets: Sequence[str], commit: Commit | None) -> None:
        before = len(self.fragments)
        super().batch_stored(header, path, batch, targets, commit)
        self._told(self.fragments[before:])


def record(root: Path, told: Callable[[list[Identity]], None], *, fragments: int, size: int = 3000) -> int:
    """Record so many fragments of two cameras into `root`; how many were acknowledged. Stops in order."""
    target = DirectoryTarget("a", root)
    targets = {"a": target}
    pool = Pool(16 << 20)
    hub = Hub(SYSTEM_CLOCK, on_failure=lambda error: None)
    heard = Telling(told)
    try:
        identity = run_steps(init_target("a", force=True), targets, timeout_s=30)
        run_steps(ensure_journal("a", "main", "ef" * 16), targets, timeout_s=30)
        claim = run_steps(claim_term(["a"], "main", Claimant("nvr-1", RECORDER, SESSION), utc_ns=0, state_term=0), targets, timeout_s=30)
        port = Port(target, pool, SYSTEM_CLOCK, target_id=identity.id, look_id=RECORDER, journals=["main"], lost_s=30, post=hub.post)
        spec = JournalSpec(
            name="main",
            journal_id="ef" * 16,
            recorder="nvr-1",
            session=SESSION,
            claim=claim.claim.key,
            targets=("a",),
            copies=1,
            claimed_on=frozenset("a"),
            tick_s=0.02,
            volume_bytes=1 << 20,
            volume_age_s=0.4,
        )
        intake = Intake(hub.wake)
        engine = JournalEngine(spec, {"a": port}, ReplayBuffer(pool, bytes_max=16 << 20), intake, SYSTEM_CLOCK, heard, hub.post)
        hub.add([port], [engine])
        hub.start()
        _film(intake, heard, fragments, size)
        pause = threading.Event()
        for _ in range(600):
            if hub.ask(lambda: engine.idle):
                break
            hub.ask(engine.stop)
            pause.wait(0.05)
        return len(heard.fragments)
    finally:
        hub.stop(10.0)
        for each in hub.ports:
            each.close(10.0)
        target.close(10.0)
        pool.close()


def recover(root: Path) -> list[str]:
    """What the next start does: claim, then bring every volume to its end. Returns the paths of those that stay open."""
    target = DirectoryTarget("a", root, isolation="thread")
    targets = {"a": target}
    try:
        me = Claimant("nvr-1", RECORDER, SESSION + 1)
        claim = run_steps(claim_term(["a"], "main", me, utc_ns=0, state_term=0), targets, timeout_s=30).claim
        target_id = run_steps(identify("a"), targets, timeout_s=30).id
        seen = run_steps(survey(["a"], "main"), targets, timeout_s=30)
        still_open = []
        for volume in seen.volumes:
            if volume.settled:
                continue
            steps = recover_volume(
                volume, own=claim.key, configured={"a": target_id}, answered=seen.answered, in_place_ok=lambda target, path: True
            )
            done = run_steps(steps, targets, timeout_s=30)
            if done.closed_length is None:
                still_open.append(done.path)
        return still_open + [copy.path for copy in seen.strangers]
    finally:
        target.close(10.0)


def _film(intake: Intake, heard: Heard, fragments: int, size: int) -> None:
    pause = threading.Event()
    cutters = {name: Fragmenter(TrackKey(name, Media.VIDEO), CONFIG, SESSION) for name in ("gate", "yard")}
    for name in cutters:
        intake.declare(TrackKey(name, Media.VIDEO), name, CONFIG)
    for n in range(fragments):
        for name, cutter in cutters.items():
            now_s, now_ns = SYSTEM_CLOCK.monotonic_s(), SYSTEM_CLOCK.utc_ns()
            sample = Sample(Media.VIDEO, f"{name} {n} ".encode() * (size // 10), n * 9000, n * 9000, True, now_ns, now_s)
            for fragment in [*cutter.push(sample, now_ns), *(cutter.flush() if n == fragments - 1 else ())]:
                intake.put(fragment)
        pause.wait(0.03)
