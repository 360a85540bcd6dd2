"""One stream as `status` shows it: JSON values from its snapshot and from what is durable of it."""

from __future__ import annotations

from typing import Any

from nvrstore.ingest.face import StreamHand
from nvrstore.model import NS_PER_S
from nvrstore.recorder.durable import Durability


def stream_status(supervisor: StreamHand, durability: Durability, now_ns: int) -> dict[str, Any]:
    """Its connection, its rates, how old the newest durable footage is, the open gap."""
    status = supervisor.status()
    durable_ns = durability.durable_ns(status.id)
    gap = status.gap
    return {
        "stream": status.id,
        "name": status.name,
        "journal": supervisor.config.journal,
        "state": str(status.state),
        "reason": status.reason,
        "hint": status.hint,
        "engine": status.engine,
        "engine_reason": status.engine_reason,
        "mode": status.mode,
        "codec": status.codec,
        "width": status.width,
        "height": status.height,
        "audio_codec": status.audio_codec,
        "fps": round(status.fps, 2),
        "bitrate_bps": round(status.bitrate_bps),
        "samples": status.samples,
        "skipped": status.skipped,
        "packets_lost": status.packets_lost,
        "reconnects": status.reconnects,
        "durable_ns": durable_ns or None,
        "durable_age_s": round((now_ns - durable_ns) / NS_PER_S, 3) if durable_ns else None,
        "stored_bytes": durability.stored_bytes(status.id),
        "gap": None if gap is None else {"cause": str(gap.cause), "start_ns": gap.start_ns, "detail": gap.detail},
    }
