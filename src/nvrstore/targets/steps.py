"""Drives `Steps` with real keepers, and the steps that everybody needs: read a whole file, list a whole directory.

    steps --Call--> keeper.call(request, timeout) --Answer--> steps ... --> T

The generator decides, this acts. A keeper that does not answer in time is an Answer with errno UNAVAILABLE, which the
steps see like any other failure. Runs in the calling thread, which waits: never the host's event loop.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from nvrstore.errors import TargetIOError, TargetUnavailableError, UsageError
from nvrstore.limits import KEEPER_PIECE_BYTES, MIB
from nvrstore.targets.contract import UNAVAILABLE, Answer, Call, Request, Steps, Target, Verb

T = TypeVar("T")
READ_ALL_BYTES_MAX = 64 * MIB  # `read_all` is for small files: claims, identities, headers; volumes are read in pieces


def run_steps(steps: Steps[T], targets: Mapping[str, Target], *, timeout_s: float) -> T:
    """Run `steps` to their end; each call may take `timeout_s`. What the steps raise comes out here."""
    try:
        call = next(steps)
        while True:
            target = targets.get(call.target)
            if target is None:
                call = steps.throw(UsageError(f"there is no target {call.target!r}", hint="targets are named in the configuration"))
            else:
                call = steps.send(target.keeper.call(call.request, timeout_s))
    except StopIteration as stop:
        value: T = stop.value
        return value
    finally:
        steps.close()


def expect(answer: Answer, target: str, doing: str) -> Answer:
    """`answer`, if it is a success. Raises TargetUnavailableError or TargetIOError, saying what was being done."""
    if answer.ok:
        return answer
    if answer.errno == UNAVAILABLE:
        raise TargetUnavailableError(f"target {target!r} did not answer: {doing}", target=target)
    raise TargetIOError(target, answer.errno, doing=doing)


def ask(target: str, request: Request, doing: str) -> Steps[Answer]:
    """One call that has to succeed."""
    return expect((yield Call(target, request)), target, doing)


def read_all(target: str, path: str, *, fresh: bool = False) -> Steps[bytes]:
    """The whole of a small file. Raises TargetIOError: ENOENT where there is none, EFBIG beyond READ_ALL_BYTES_MAX."""
    whole = bytearray()
    while True:
        request = Request(Verb.READ, path, offset=len(whole), length=KEEPER_PIECE_BYTES, fresh=fresh)
        answer = yield from ask(target, request, f"read {path}")
        whole += answer.data
        if len(answer.data) < KEEPER_PIECE_BYTES:
            return bytes(whole)
        if len(whole) > READ_ALL_BYTES_MAX:
            raise TargetIOError(target, errno.EFBIG, doing=f"read {path}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a directory."""

    name: str
    size: int
    directory: bool
    mtime_ns: int


def list_all(target: str, path: str, *, missing_ok: bool = False) -> Steps[list[Entry]]:
    """All of a directory, sorted by name. Raises TargetIOError; with `missing_ok`, one that does not exist is empty."""
    entries: list[Entry] = []
    while True:
        behind = entries[-1].name.encode() if entries else b""
        answer = yield Call(target, Request(Verb.LIST, path, data=behind))
        if missing_ok and answer.errno == errno.ENOENT:
            return entries
        expect(answer, target, f"list {path or 'the root'}")
        page = [Entry(name, size, directory, mtime_ns) for name, size, directory, mtime_ns in answer.json()]
        entries += page
        if not answer.value or not page:
            return entries
