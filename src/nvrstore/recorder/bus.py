"""Events to any number of listeners, each with a bounded queue of its own.

Publishing never blocks and never fails: a full queue drops its oldest and counts it. Listeners are plain queues with a
wake-up; the async face (bridge.py) turns one into a stream.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from nvrstore.events import Event

T = TypeVar("T")

LISTENER_EVENTS_MAX: Final = 1024


class Mailbox(Generic[T]):
    """A bounded queue between a thread that must not wait and a listener that may be slow."""

    def __init__(self, bound: int, wake: Callable[[], None] = lambda: None) -> None:
        self._queue: deque[T] = deque()
        self._bound, self._wake = bound, wake
        self._lock = threading.Lock()
        self.dropped = 0
        self._told = 0  # of those that were dropped
        self.closed = False

    def put(self, item: T) -> None:
        """Add an item; drops the oldest when full."""
        with self._lock:
            if self.closed:
                return
            if len(self._queue) >= self._bound:
                self._queue.popleft()
                self.dropped += 1
            self._queue.append(item)
        self._wake()

    def take(self) -> list[T]:
        """Everything that is here."""
        return self.take_counted()[1]

    def take_counted(self) -> tuple[int, list[T]]:
        """How many were dropped since the last time, and everything that is here: it came behind them."""
        with self._lock:
            items = list(self._queue)
            self._queue.clear()
            missing, self._told = self.dropped - self._told, self.dropped
        return missing, items

    def close(self) -> None:
        """Nothing more comes; what is here can still be taken."""
        self.closed = True
        self._wake()


class Bus:
    """Hands every event to the listeners that want its kind."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: list[tuple[tuple[type[Event], ...], Mailbox[Event]]] = []

    def listen(self, kinds: tuple[type[Event], ...], box: Mailbox[Event]) -> None:
        """`kinds`: classes of events, subclasses included; empty: all."""
        with self._lock:
            self._listeners.append((kinds or (Event,), box))

    def leave(self, box: Mailbox[Event]) -> None:
        with self._lock:
            self._listeners = [entry for entry in self._listeners if entry[1] is not box]

    def publish(self, event: Event) -> None:
        """From any thread."""
        with self._lock:
            boxes = [box for kinds, box in self._listeners if isinstance(event, kinds)]
        for box in boxes:
            box.put(event)

    def close(self) -> None:
        with self._lock:
            listeners, self._listeners = self._listeners, []
        for _, box in listeners:
            box.close()
