"""How large a lane's next volume becomes. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from nvrstore.limits import MIB, VOLUME_BYTES_MAX, VOLUME_BYTES_MIN, VOLUME_SHARE_MAX, VOLUME_SPAN_S, VOLUMES_SHARE_MAX
from nvrstore.targets.contract import LookResult


def next_volume_bytes(configured: int | None, rate_bps: float, *, looks: Iterable[LookResult | None], lanes: int) -> int:
    """What is configured, or what arrives in `VOLUME_SPAN_S`; a small share of the smallest member, as their `looks` saw them."""
    totals = [look.total_bytes for look in looks if look is not None]
    size = int(min(max(rate_bps * VOLUME_SPAN_S, VOLUME_BYTES_MIN), VOLUME_BYTES_MAX)) if configured is None else configured
    if totals:
        size = min(size, max(min(totals) // max(VOLUME_SHARE_MAX, VOLUMES_SHARE_MAX * 2 * lanes), MIB))
    return -(-size // MIB) * MIB
