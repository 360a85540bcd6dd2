"""Every error of the library, in one tree.

An error says what happened, to what, and what to do next (`hint`). It also says what is known about the outcome:
*refused* (it certainly did not happen) or *unknown* (it may have happened: never treat it as refused).
`exit_status` is what the command line ends with: 1 failed the check, 2 usage or configuration, 3 not reachable.
Credentials never appear here: whoever raises an error about a URL passes it through `redact` first.
"""

from __future__ import annotations

import errno as _errno
import os
import re
from enum import Enum
from typing import ClassVar


class Outcome(Enum):
    """What is known about an operation that raised."""

    REFUSED = "refused"
    UNKNOWN = "unknown"


class NvrstoreError(Exception):
    """Base of all errors that this library raises on purpose."""

    hint: str = ""
    outcome: ClassVar[Outcome] = Outcome.REFUSED
    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if hint is not None:
            self.hint = hint


# --- configuration and use -------------------------------------------------------------------------------------


class ConfigError(NvrstoreError):
    """The configuration has mistakes. `problems` lists all of them, each as (place, sentence)."""

    exit_status = 2

    def __init__(self, problems: list[tuple[str, str]], *, source: str = "configuration") -> None:
        self.problems = tuple(problems)
        self.source = source
        lines = "\n".join(f"  {place}: {sentence}" for place, sentence in problems)
        noun = "mistake" if len(problems) == 1 else "mistakes"
        super().__init__(f"{source}: {len(problems)} {noun}\n{lines}", hint="correct the places named above and start again")


class UsageError(NvrstoreError):
    """An argument that cannot be used: an unknown name, a naive datetime, an end before its start."""

    exit_status = 2


class ForkedError(NvrstoreError):
    """The object belongs to the process that made it; this one is a fork of that process."""

    hint = "create the Recorder or Archive after the fork, in the process that uses it"


class ClosedError(NvrstoreError):
    """The object was closed by its owner."""


class RecorderFailedError(NvrstoreError):
    """The recorder itself cannot go on (not a camera, not a target): its `async with` body is cancelled."""


class JournalInUseError(NvrstoreError):
    """Another recorder records into this journal, or has this state directory open."""

    exit_status = 2
    hint = "stop the other recorder, or start this one with --take-over if it is gone for good"


class FencedError(NvrstoreError):
    """The target has seen a higher term: this writer prunes nothing more there, and appends elsewhere."""

    hint = "another recorder took over this journal; see `nvrstore status`"

    def __init__(self, target: str, *, term: int, term_seen: int) -> None:
        super().__init__(f"target {target!r} has seen term {term_seen}, this writer has term {term}")
        self.target, self.term, self.term_seen = target, term, term_seen


# --- targets ---------------------------------------------------------------------------------------------------


class TargetError(NvrstoreError):
    """Something about one target. `target` is its configured name."""

    exit_status = 3

    def __init__(self, message: str, *, target: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.target = target


class TargetUnavailableError(TargetError):
    """The target did not answer in time: it may or may not have done what was asked."""

    outcome = Outcome.UNKNOWN
    hint = "check the mount, the link and the device; `nvrstore status` shows since when"


class TargetIOError(TargetError):
    """The target answered with an error number of the operating system."""

    outcome = Outcome.UNKNOWN

    def __init__(self, target: str, code: int, *, doing: str) -> None:
        self.errno = code
        self.doing = doing
        name = _errno.errorcode.get(code, str(code))
        super().__init__(f"target {target!r}: {doing}: {name} ({os.strerror(code)})", target=target, hint=_io_hint(code))


class TargetIdentityError(TargetError):
    """The directory is not the target it should be: no identity file, another one, or it was moved or unmounted."""

    exit_status = 2
    hint = "is it mounted? a new directory becomes a target with `nvrstore target init DIR`"


def _io_hint(code: int) -> str:
    match code:
        case _errno.ENOSPC | _errno.EDQUOT:
            return "free space on the target, or lower `keep` of its journals"
        case _errno.EROFS:
            return "the file system went read-only: look at the kernel log, repair it, mount it again"
        case _errno.EACCES | _errno.EPERM:
            return "the recorder's user needs read and write permission on the target"
        case _errno.ENOTDIR:
            return "a target is a directory; what is there is something else"
        case _errno.ENOENT:
            return "is it mounted? `nvrstore target init DIR` makes a directory a target"
        case _:
            return "look at the kernel log and at the device's health"


# --- what is stored --------------------------------------------------------------------------------------------


class FormatError(NvrstoreError):
    """Bytes that are not what the volume format says. `path` and `offset` name the place."""

    def __init__(self, message: str, *, path: str = "", offset: int = 0) -> None:
        where = f"{path}: " if path else ""
        super().__init__(f"{where}byte {offset}: {message}", hint="`nvrstore verify` tells what is damaged, and which copy is whole")
        self.path, self.offset = path, offset


class DamagedError(FormatError):
    """A checksum does not match: the bytes were changed after they were written."""


class NotFoundError(NvrstoreError):
    """A stream, journal, volume or span of time that the archive does not know."""

    hint = "`nvrstore ls` shows what is stored"


class CatalogError(NvrstoreError):
    """The catalog cannot be read or written. The footage is not concerned."""

    hint = "`nvrstore catalog rebuild` makes it again from the targets alone"


# --- cameras ---------------------------------------------------------------------------------------------------


class SourceError(NvrstoreError):
    """A camera cannot be recorded now. Never raised out of a running recorder: it becomes a state, an event, a gap."""

    exit_status = 3


class SourceUnreachableError(SourceError):
    """Nobody answers at the address."""

    hint = "check the address, the cable and the camera's power"


class SourceRefusedError(SourceError):
    """The camera refused the login. Tried again only after a long pause, so that it does not lock us out."""

    hint = "correct the login, then send SIGHUP to try again at once; many cameras lock an account after a few wrong passwords"


class SourceNotVideoError(SourceError):
    """What is at the URL is no video that can be recorded."""

    hint = "check the path of the URL; `ffprobe URL` shows what is there"


class SourceSilentError(SourceError):
    """Connected, but no frame arrives."""

    hint = "the camera may have reached its limit of clients, or needs a restart"


class SourceEndedError(SourceError):
    """The camera closed the connection, or a file came to its end."""


# The user-info ends at the last "@" of the authority; a password with a raw "/" is told from a port by not being a number.
_CREDENTIALS = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)(?:[^/\s]*@|[^/\s@:\[]+:(?!\d{1,5}(?:[/\s]|$))[^\s]*@)")
# In a query (`?user=..&pwd=..`), or in the path as some cameras have it (`/user=.._password=.._channel=1`).
_IN_QUERY = re.compile(
    r"(?i)([?&/;_](?:user|usr|username|login|loginuse|loginpas|pass|pwd|psw|passwd|password|passphrase|token|access_token|auth|key|secret)=)"
    r"[^&\s#'\"<>]+?(?=_[a-z]+=|[&\s#'\"<>]|$)"
)


def redact(text: str) -> str:
    """Return `text` with the user-info part of every URL in it, and credentials in its query, replaced by `***`.

    >>> redact("open rtsp://admin:p%40ss@10.0.0.5/main failed")
    'open rtsp://***@10.0.0.5/main failed'
    >>> redact("GET http://10.0.0.5/video.cgi?user=admin&pwd=secret&res=hd")
    'GET http://10.0.0.5/video.cgi?user=***&pwd=***&res=hd'
    >>> redact("rtsp://10.0.0.5:554/user=admin_password=se_cret_channel=1_stream=0.sdp")
    'rtsp://10.0.0.5:554/user=***_password=***_channel=1_stream=0.sdp'
    """
    return _IN_QUERY.sub(r"\1***", _CREDENTIALS.sub(r"\1***@", text))
