"""The rules of `faulty.py`: which request is to suffer what.

A fault matches by verb, by path (a glob), by how many it lets pass first (`after`) and how many it strikes (`times`).
Of several that match, the one added last decides. Thread-safe; `on_change` is called, without the lock, when one goes.
"""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import Enum, auto

from nvrstore.targets.contract import Request, Verb


class Kind(Enum):
    """What happens to a request."""

    FAIL = auto()  # answered with an error number, not carried out
    HANG = auto()  # neither, until the fault is removed
    HANG_DONE = auto()  # carried out, not answered until the fault is removed
    SLOW = auto()  # carried out, answered later
    SHORT = auto()  # an APPEND or WRITE of which half is carried out: EIO
    LIE = auto()  # answered as done, not carried out
    FLIP = auto()  # a READ of which one bit is wrong
    AWAY = auto()  # the path leads to an empty directory: unmounted, or moved


@dataclass(eq=False, slots=True)
class Fault:
    """One programmed fault. `struck` counts the requests that it hit."""

    kind: Kind
    verbs: frozenset[Verb] | None
    path: str | None
    after: int
    times: int | None
    errno: int
    delay_s: float
    _rules: Rules = field(repr=False)
    seen: int = 0
    struck: int = 0

    def remove(self) -> None:
        """The fault is over: what it withheld goes on."""
        self._rules.remove(self)

    @property
    def active(self) -> bool:
        return self in self._rules

    def strikes(self, request: Request, path: str) -> bool:
        """Whether it hits this request; counts."""
        if self.verbs is not None and request.verb not in self.verbs:
            return False
        if self.path is not None and not fnmatch.fnmatchcase(path, self.path):
            return False
        self.seen += 1
        if self.seen <= self.after or (self.times is not None and self.struck >= self.times):
            return False
        self.struck += 1
        return True


class Rules:
    """All faults of one target."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._on_change = on_change

    def add(
        self,
        kind: Kind,
        *,
        verbs: Collection[Verb] | None = None,
        path: str | None = None,
        after: int = 0,
        times: int | None = None,
        errno: int = 0,
        delay_s: float = 0.0,
    ) -> Fault:
        fault = Fault(kind, None if verbs is None else frozenset(verbs), path, after, times, errno, delay_s, self)
        with self._lock:
            self._faults.append(fault)
        return fault

    def remove(self, fault: Fault) -> None:
        with self._lock:
            if fault in self._faults:
                self._faults.remove(fault)
        self._on_change()

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()
        self._on_change()

    def __contains__(self, fault: object) -> bool:
        with self._lock:
            return fault in self._faults

    def strike(self, request: Request, path: str) -> Fault | None:
        """The fault that this request suffers, if any."""
        with self._lock:
            for fault in reversed(self._faults):
                if fault.strikes(request, path):
                    return fault
        return None
