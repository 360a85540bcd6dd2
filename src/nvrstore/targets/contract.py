"""What every target is: two workers that answer requests, and nothing that can block the caller.

    journal engine --append--> Appender   opens a prepared volume, appends, closes; its answers alone make commits
    everybody else --call----> Keeper     prepare, look, list, read, write, rename, unlink; pieces <= 1 MiB, looks first

Invariant: no method here touches the target in the calling thread. A request goes to a worker (a child process, a
thread, or a model) and its answer comes back later, or never. Workers know no format: paths, offsets, bytes.
Paths are relative to the target's root, with "/" between parts.

Multi-step work (scan, recover, resync, prune, claim) is written as `Steps`: a generator that yields `Call`s and is
sent `Answer`s. It decides, somebody else acts: `steps.py` drives it with real keepers, a simulation with model ones.
"""

from __future__ import annotations

import errno as _errno
import json
from collections.abc import Generator
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from nvrstore.model import Medium as Medium

if TYPE_CHECKING:
    from nvrstore.targets.pool import Pool

T = TypeVar("T")


class Verb(IntEnum):
    """What a worker can be asked. Numbers are shared with worker/main.py, which cannot import this."""

    # appender
    OPEN = 1  # handle, path (prepared file), path2 (its name), extent+length (header): write, link, unlink, sync file and directories
    APPEND = 2  # handle, offset, extent, length (multiples of 4096): durable when answered
    CLOSE = 3  # handle
    # keeper
    LOOK = 10  # data: JSON, see `look_request`; answer data: JSON, see `LookResult`
    PREPARE = 11  # path, length: create exclusively, preallocate (fallocate), sync; makes parent directories
    LIST = 12  # path, data (name to go on behind): answer data: JSON [[name, size, is_dir, mtime_ns]...] sorted; value 1: there is more
    STAT = 13  # path: answer data: JSON {"size", "blocks", "mtime_ns", "dev", "ino", "dir"}
    SPACE = 14  # answer data: JSON {"total", "free", "inodes_free"} in bytes and counts
    READ = 15  # path, offset, length <= 1 MiB: answer data: the bytes (short at the end of the file). flag fresh=1: past the page cache
    WRITE = 16  # path, offset, data: creates the file (never its directories) when missing; not durable before SYNC
    SYNC = 17  # path: fdatasync a file, or fsync a directory
    TRUNCATE = 18  # path, length: and sync
    RENAME = 19  # path, path2: replaces path2, syncs both directories
    LINK = 20  # path, path2: EEXIST where path2 exists; syncs the directory
    UNLINK = 21  # path: syncs the directory; ENOENT is an error
    MKDIR = 22  # path: and its parents, synced; existing is fine. The empty path is the root itself (not its parents)
    PUT = 23  # path, data: written whole under a temporary name, synced, linked to path (EEXIST where it exists), directories synced
    RMDIR = 24  # path: an empty directory
    ABOUT = 25  # answer data: JSON {"fstype", "source", "device", "rotational"}: what kind of storage lies below the target


APPENDER_VERBS = frozenset({Verb.OPEN, Verb.APPEND, Verb.CLOSE})


@dataclass(frozen=True, slots=True)
class Request:
    """One thing asked of a worker. `extent` is an offset in the pool (appender only); `data` are small inline bytes or a write's piece."""

    verb: Verb
    path: str = ""
    path2: str = ""
    handle: int = 0  # chosen by the caller, so that OPEN and the first APPENDs can be sent without waiting
    offset: int = 0
    length: int = 0
    extent: int = 0
    fresh: bool = False
    data: bytes | memoryview = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: `errno` 0 is success. `number` is the request's, as `submit` returned it.

    `value` of one that failed: what the system said, where that is another number; 0 mostly.
    """

    number: int
    errno: int = 0
    value: int = 0
    data: bytes = field(default=b"", repr=False)

    @property
    def ok(self) -> bool:
        return self.errno == 0

    def json(self) -> Any:
        return json.loads(self.data)


#: Error number for "no answer in time, or the worker is gone": outcome unknown.
UNAVAILABLE = _errno.ETIMEDOUT


class Appender(Protocol):
    """One appender. Used by one thread (the journal engine's), never blocks."""

    def fileno(self) -> int:
        """Readable when `answers` has something, or when the worker died."""

    def submit(self, request: Request) -> int:
        """Hand a request over; returns its number. Requests are carried out in order.

        After a failed or short write everything else for that handle is refused with EIO.
        """

    def answers(self) -> list[Answer]:
        """What has come back since the last call. A dead worker answers everything outstanding with ESRCH, `value` -1."""

    def running_since_s(self) -> float | None:
        """Monotonic second at which the call that runs now began, None when idle: stamped by the worker itself in shared memory."""

    def abandon(self) -> None:
        """Never wait for it again: it is killed where possible, and its answers are dropped."""

    def wind_up(self) -> None:
        """Take nothing more: it ends by itself behind what was handed over, and `gone` says when. `close` then frees what is ours."""

    def gone(self) -> bool:
        """Whether it can no longer touch any memory or file: only then may extents that it was given be reused."""

    def close(self, timeout_s: float) -> bool:
        """End it in order; False when it did not go in time (it is abandoned then)."""


class Keeper(Protocol):
    """One keeper. Thread-safe; never blocks but in `call`, which is bounded."""

    def submit(self, request: Request) -> Future[Answer]:
        """Hand a request over. The future always gets an Answer, never an exception; UNAVAILABLE when the worker dies or is replaced."""

    def call(self, request: Request, timeout_s: float) -> Answer:
        """Submit and wait at most `timeout_s`; an Answer with errno UNAVAILABLE after that."""

    def running_since_s(self) -> float | None:
        """As in `Appender`."""

    def restart(self) -> bool:
        """Abandon the present worker and start another. False at rest, and where too many are stuck: none is started, or the present
        one is kept.
        """

    def rest(self) -> None:
        """The worker ends behind what it was sent, and no other is started before `wake`: until then every answer is UNAVAILABLE."""

    def wake(self) -> None:
        """End the rest; the next request starts a worker."""

    def close(self, timeout_s: float) -> bool:
        """End it in order; False when it did not go in time (it is abandoned then)."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What `target.json` says, and where it was found by path: a moved directory is found no more, another mount differs."""

    id: str  # 32 hex digits
    format: int
    device: int
    inode: int


@dataclass(frozen=True, slots=True)
class LookResult:
    """What a look saw (JSON of the same names in the answer to LOOK)."""

    identity: Identity | None  # None: there is no target.json at the path
    counter: int  # of the look block, read back from the medium
    claims: dict[str, str]  # journal name -> greatest file name in its epochs/ ("" where there is none)
    total_bytes: int
    free_bytes: int
    counter_errno: int = (
        0  # ENOSPC or EDQUOT where the counter could not be advanced because the target is full; other errors fail the look
    )


class Target(Protocol):
    """A place that keeps volumes."""

    @property
    def name(self) -> str: ...

    @property
    def medium(self) -> Medium: ...

    @property
    def keeper(self) -> Keeper: ...

    def start_appender(self, pool: Pool) -> Appender:
        """Start an appender over `pool`. Raises `TargetUnavailableError` when no worker can be started or too many are stuck."""

    def first_failure_s(self) -> float | None:
        """Monotonic second at which the first write, sync or look of its present workers failed hard (an error of the target itself).

        Stamped by the worker that made the call. None: none did, or a look has gone well since. Does not wait.
        """

    def workers_stuck(self) -> int:
        """Abandoned workers (both kinds) that still hold descriptors or memory."""

    def at_rest(self) -> bool:
        """Whether no worker of either kind is left, abandoned ones included: nothing of ours is open there. Does not wait."""

    def close(self, timeout_s: float) -> bool:
        """End all workers in order; False when any had to be left behind."""


@dataclass(frozen=True, slots=True)
class Call:
    """One step: ask the keeper of `target` (by name) for `request`.

    `ahead`: calls that follow, whatever this one's answer is. Whoever drives the steps may begin them early, in their order, so that
    one target reads while another one writes; to ignore them is always right.
    """

    target: str
    request: Request
    ahead: tuple[Call, ...] = field(default=(), compare=False, repr=False)

    @property
    def key(self) -> tuple[object, ...]:
        """The same for the same call named again; the bytes of a write count as the object that they are."""
        request = self.request
        data = id(request.data) if request.data else 0
        return self.target, request.verb, request.path, request.offset, request.length, data


#: Multi-step work: yields a Call, is sent its Answer (also on failure: look at `answer.errno`), returns a T.
Steps = Generator[Call, Answer, T]
