"""A client's RTSP connection: a non-blocking socket and what still waits to be written to it.

The backlog is bounded. A unit that does not fit is dropped as a whole (the next packets' sequence numbers tell), so a client
that does not read never costs memory, nor any other client a moment. RTSP responses and RTCP queue behind what is being
written: packets are never torn apart.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from typing import Final

from nvrstore.farm.ranges import Ranges
from nvrstore.farm.rtsp import Parser
from nvrstore.farm.session import Session

BACKLOG_BYTES_MAX: Final = 2 << 20  # per client: four seconds of a camera of 4 Mbit/s
_PIECES: Final = 64  # buffers per sendmsg


class Connection:
    """One client. `watch` is called when the need to be told about writability changes."""

    __slots__ = ("_backlog", "_watch", "backlog_bytes", "backlog_bytes_max", "closing", "dead", "parser", "peer", "sessions", "sock")

    def __init__(
        self, sock: socket.socket, peer: str, watch: Callable[[Connection, bool], None], backlog_bytes_max: int = BACKLOG_BYTES_MAX
    ) -> None:
        self.sock, self.peer = sock, peer
        self.parser = Parser()
        self.sessions: dict[str, Session] = {}
        self.backlog_bytes = 0
        self.backlog_bytes_max = backlog_bytes_max
        self.closing = False  # closed as soon as the backlog is written
        self.dead = False  # an error: nothing more can be written
        self._backlog: deque[tuple[memoryview, Ranges | None, int]] = deque()
        self._watch = watch

    def write(self, parts: tuple[bytes, ...], length: int, ranges: Ranges | None, number: int) -> bool:
        """Write `parts`, or as much as goes now; the rest waits. True: written to the last byte.

        Where a rest waits, `number` is added to `ranges` when its last byte is written; where it does not fit, never.
        """
        if self.dead or self.closing:
            return False
        if self._backlog:
            if self.backlog_bytes + length <= self.backlog_bytes_max or ranges is None:
                self._keep(parts, 0, ranges, number)
            return False
        try:
            done = self.sock.sendmsg(parts)
        except BlockingIOError:
            done = 0
        except OSError:
            self.dead = True
            self._watch(self, True)  # the loop finds it dead
            return False
        if done == length:
            return True
        self._keep(parts, done, ranges, number)
        self._watch(self, True)
        return False

    def _keep(self, parts: tuple[bytes, ...], done: int, ranges: Ranges | None, number: int) -> None:
        views = []
        for part in parts:
            if done < len(part):
                views.append(memoryview(part)[done:])
                self.backlog_bytes += len(part) - done
            done = max(0, done - len(part))
        for view in views[:-1]:
            self._backlog.append((view, None, 0))
        self._backlog.append((views[-1], ranges, number))

    def flush(self) -> None:
        """Write what waits, as much as goes."""
        backlog = self._backlog
        while backlog:
            pieces = [backlog[at][0] for at in range(min(_PIECES, len(backlog)))]
            try:
                done = self.sock.sendmsg(pieces)
            except BlockingIOError:
                return
            except OSError:
                self.dead = True
                return
            self.backlog_bytes -= done
            while done:
                view, ranges, number = backlog[0]
                if done < len(view):
                    backlog[0] = (view[done:], ranges, number)
                    break
                done -= len(view)
                backlog.popleft()
                if ranges is not None:
                    ranges.add(number)
        self._watch(self, False)

    @property
    def finished(self) -> bool:
        """Whether it can be closed now."""
        return self.dead or (self.closing and not self._backlog)
