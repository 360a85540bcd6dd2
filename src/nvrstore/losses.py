"""What had to be dropped, as gaps with both their ends: one growing gap per stream while it lasts.

buffer full, nobody can take it -> a fragment goes -> gap opened        room again -> gap closed, both ends known
"""

from __future__ import annotations

from dataclasses import replace

from nvrstore.model import Cause, Fragment, Gap, new_id


class Losses:
    """The losses that are open, all for the same reason. Every method returns the gap to be written down, or None."""

    def __init__(self, detail: str) -> None:
        self._detail = detail
        self._open: dict[str, Gap] = {}

    def __bool__(self) -> bool:
        return bool(self._open)

    def dropped(self, fragment: Fragment) -> Gap | None:
        """`fragment` is given up. The gap is written down when it opens; how far it reaches, when it closes."""
        stream = fragment.track.stream
        gap = self._open.get(stream)
        opened = None
        if gap is None:
            opened = gap = Gap(new_id(), stream, Cause.STORAGE, fragment.utc_ns, None, self._detail)
        end_ns = max(fragment.end_ns, gap.end_ns or 0)
        self._open[stream] = replace(gap, start_ns=min(gap.start_ns, fragment.utc_ns), end_ns=end_ns)
        return opened

    @property
    def streams(self) -> list[str]:
        """Those of which something was given up, and nothing taken since."""
        return list(self._open)

    def over(self, stream: str) -> Gap | None:
        """Footage of `stream` is taken again."""
        return self._open.pop(stream, None)
