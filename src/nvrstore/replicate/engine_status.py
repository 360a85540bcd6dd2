"""One journal as `status` shows it: JSON values, read from the engine without waiting for it.

Its parts may be a moment apart: they are read from another thread, without a lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvrstore.failover.machine import State
from nvrstore.model import Role

if TYPE_CHECKING:
    from nvrstore.replicate.engine import JournalEngine


def engine_status(engine: JournalEngine) -> dict[str, object]:
    """Epoch, members, commits, and every target with its state, latency and space."""
    roles = {m.target: m.role for m in engine.members()}
    places = engine.watch.places
    taking = [m for m in engine.members() if m.role is not Role.REFUGE and places[m.target].state in (State.LIVE, State.SYNCED)]
    return {
        "journal": engine.spec.name,
        "epoch": str(engine.epoch),
        "set_durable": engine.set_durable,
        "copies": len(taking),  # members whose volume is open: what is about to join counts nothing yet
        "wanted": engine.spec.copies,
        "refuge": engine.in_refuge,
        "commit_ms_p50": round(engine.commit_latencies.quantile(0.5) * 1e3, 1),
        "commit_ms_p99": round(engine.commit_latencies.quantile(0.99) * 1e3, 1),
        "commits": engine.commits,
        "waiting_bytes": sum(lane.waiting.bytes for lane in engine.lanes),
        "lanes": len(engine.lanes),
        "targets": [
            {
                "target": name,
                "role": str(roles[name]) if name in roles else "-",
                "state": str(place.state),
                "late": place.late,
                "reason": place.reason,
                **engine.ports[name].stats(),
            }
            for name, place in places.items()
        ],
    }
