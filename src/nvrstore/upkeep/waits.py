"""How long age has waited in the journals in which more than a day's footage would go at once. Kept over restarts.

A recorder that was off for long and a clock that leapt ahead look the same from here. A day of recording is time for somebody to
look at the clock; then age counts again, for this once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final

WAIT_S: Final = 86_400.0
SAVE_S: Final = 60.0  # so much waiting may be forgotten when the recorder ends


class Waits:
    """`waited`: seconds by journal, as `save` was given them by an earlier recorder. Used by one thread at a time."""

    def __init__(self, waited: Mapping[str, float], save: Callable[[Mapping[str, float]], object]) -> None:
        self._waited = dict(waited)
        self._save = save
        self._looked_s: dict[str, float] = {}
        self._saved_s = float("-inf")

    def ripe(self) -> frozenset[str]:
        """Journals in which age has waited long enough."""
        return frozenset(journal for journal, waited_s in self._waited.items() if waited_s >= WAIT_S)

    def look(self, overdue: Collection[str], sure: Collection[str], now_s: float) -> list[str]:
        """Take in which journals hold what is overdue now; those of them that this recorder had not seen before.

        `sure`: journals all of whose targets answered. In others what is overdue may lie where nobody can look now.
        """
        news = [journal for journal in overdue if journal not in self._looked_s]
        before = set(self._waited)
        for journal in overdue:
            self._waited[journal] = self._waited.get(journal, 0.0) + now_s - self._looked_s.get(journal, now_s)
            self._looked_s[journal] = now_s
        for journal in before.difference(overdue):
            if journal in sure or self._waited[journal] >= WAIT_S:
                del self._waited[journal]
                self._looked_s.pop(journal, None)
        if before != set(self._waited) or (self._waited and now_s - self._saved_s >= SAVE_S):
            self._saved_s = now_s
            self._save(dict(self._waited))
        return news
