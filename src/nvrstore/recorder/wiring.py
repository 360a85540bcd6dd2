"""From the configuration's tables to what the engine takes: a port per target, a specification per journal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from nvrstore.clock import Clock
from nvrstore.config import Config, JournalConfig, TargetConfig
from nvrstore.crew.crew import Crew
from nvrstore.errors import ConfigError
from nvrstore.events import Event
from nvrstore.extents import Window
from nvrstore.ingest.face import Cameras
from nvrstore.ingest.group import Ingest
from nvrstore.ingest.supervisor import ResolveStream
from nvrstore.recorder.startup import ClaimedJournal
from nvrstore.recorder.state import StateDirectory
from nvrstore.replicate.contract import JournalSpec
from nvrstore.replicate.hub import Hub
from nvrstore.replicate.port import Port
from nvrstore.targets.contract import Target
from nvrstore.targets.directory import DirectoryTarget
from nvrstore.targets.pool import Pool

MakeTarget = Callable[[TargetConfig, str | None, int | None], Target]


def make_target(config: TargetConfig, worker_python: str | None, lock_fd: int | None) -> Target:
    """The target that a configuration names."""
    if config.path is None:
        raise ConfigError([(f"target {config.name}", "storage nodes are not supported by this version; give a path")])
    python = {} if worker_python is None else {"worker_python": worker_python}
    return DirectoryTarget(config.name, config.path, isolation=config.isolation, lock_fd=lock_fd, medium=config.medium, **python)


class Parts(Protocol):
    """The recorder, as far as it is built."""

    config: Config
    clock: Clock
    state: StateDirectory
    hub: Hub
    targets: dict[str, Target]
    session: int


def make_cameras(
    session: int,
    config: Config,
    clock: Clock,
    on_event: Callable[[Event], None],
    resolve: ResolveStream,
    windows: Callable[[], Sequence[Window]],
) -> Cameras:
    """Ingest as configured: in threads of this process, or in processes of its own, which lay batches out in `windows` of the pool."""
    if config.recorder.workers:
        ticks_s = {journal.name: journal.tick_s for journal in config.journals}
        return Crew(session, config.recorder, ticks_s, windows, clock=clock, on_event=on_event, resolve=resolve)
    return Ingest(session, clock=clock, on_event=on_event, resolve=resolve, local=config.recorder.local)


def make_ports(parts: Parts, pool: Pool, ids: Mapping[str, str]) -> dict[str, Port]:
    """A port per target, shared by all journals that name it. `ids`: the uuids that are known."""
    late: dict[str, float] = {}
    lost: dict[str, float] = {}
    journals: dict[str, list[str]] = {name: [] for name in parts.targets}
    for journal in parts.config.journals:
        for name in journal.targets:
            journals[name].append(journal.name)
            # Shared by several journals: the most patient one decides.
            if journal.late_s is not None:
                late[name] = max(journal.late_s, late.get(name, 0.0))
            if journal.lost_s is not None:
                lost[name] = max(journal.lost_s, lost.get(name, 0.0))
    return {
        name: Port(
            target,
            pool,
            parts.clock,
            target_id=ids.get(name, ""),
            look_id=parts.state.recorder_id,
            journals=journals[name],
            late_s=late.get(name),
            lost_s=lost.get(name),
            post=parts.hub.post,
        )
        for name, target in parts.targets.items()
    }


def journal_spec(parts: Parts, journal: JournalConfig, claimed: ClaimedJournal, refuge: str, buffer_bytes: int) -> JournalSpec:
    """What the engine needs to know of one journal."""
    return JournalSpec(
        name=journal.name,
        journal_id=claimed.journal_id,
        recorder=parts.config.recorder.name,
        session=parts.session,
        claim=claimed.claim.key,
        targets=journal.targets,
        copies=journal.copies,
        claimed_on=frozenset(claimed.targets),
        commit_any=journal.commit == "any",
        failback_auto=journal.failback == "auto",
        tick_s=journal.tick_s,
        fragment_s=journal.fragment_s,
        hold_down_s=journal.hold_down_s,
        buffer_bytes=journal.buffer_bytes or buffer_bytes,
        volume_bytes=journal.volume_bytes,
        volume_age_s=journal.volume_age_s,
        refuge=refuge,
    )
