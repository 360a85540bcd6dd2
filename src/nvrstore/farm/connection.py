"""A client's RTSP connection: a non-blocking socket and what still waits to be written to it.

    open --close()--> closing: what waits is written --> half closed (FIN): the client reads to the end --> its FIN: gone
      |                                                                                                       ^
      '--reset(), or any error: dead ------------------------------------------------------------------------'

The backlog is bounded. A unit that does not fit is dropped as a whole (the next packets' sequence numbers tell), so a client
that does not read never costs memory, nor any other client a moment. RTSP responses and RTCP queue behind what is being
written: packets are never torn apart.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Final

from nvrstore.farm.ranges import Ranges
from nvrstore.farm.rtsp import Parser
from nvrstore.farm.session import Session

BACKLOG_BYTES_MAX: Final = 2 << 20  # per client: four seconds of a camera of 4 Mbit/s
_PIECES: Final = 64  # buffers per sendmsg
_LINGER_NOT: Final = struct.pack("ii", 1, 0)


class Connection:
    """One client. `watch(connection, writable)` is called when the wish to be told about writability changes."""

    __slots__ = (
        "_backlog",
        "_watch",
        "backlog_bytes",
        "backlog_bytes_max",
        "closing",
        "dead",
        "half_closed",
        "parser",
        "peer",
        "sessions",
        "sock",
    )

    def __init__(self, sock: socket.socket, peer: str, watch: Callable[[Connection, bool], None], backlog_bytes_max: int) -> None:
        self.sock, self.peer = sock, peer
        self.parser = Parser()
        self.sessions: dict[str, Session] = {}
        self.backlog_bytes = 0
        self.backlog_bytes_max = backlog_bytes_max
        self.closing = self.half_closed = False
        self.dead = False  # an error, or the client is gone
        self._backlog: deque[tuple[memoryview, Ranges | None, int]] = deque()
        self._watch = watch

    def write(self, parts: tuple[bytes, ...], length: int, ranges: Ranges | None, number: int) -> bool:
        """Write `parts`, or as much as goes now; the rest waits. True: written to the last byte.

        Where a rest waits, `number` is added to `ranges` when its last byte is written; where it does not fit, never.
        """
        if self._backlog or self.closing or self.dead:
            if not self.closing and not self.dead and self.backlog_bytes + length <= self.backlog_bytes_max:
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
        while backlog and not self.dead:
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
        if self.closing:
            self._half_close()

    def close(self) -> None:
        """Close in order: sessions end now, what was begun is written, then the client reads to the end."""
        self._end_sessions()
        self.closing = True
        if not self._backlog:
            self._half_close()

    def reset(self) -> None:
        """Break off: what is under way is lost."""
        self._end_sessions()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        self.dead = True

    def _half_close(self) -> None:
        if not self.half_closed:
            self.half_closed = True
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError:
                self.dead = True

    def _end_sessions(self) -> None:
        for session in self.sessions.values():
            session.close()
        self.sessions.clear()
