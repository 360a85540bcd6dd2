"""Removing a volume so that a superseded writer cannot: into the trash, look who owns the journal, only then unlink.

    2026-11-23/07-45-10Z….mp4 ──rename──▶ trash/0008/2026-11-23_07-45-10Z….mp4 ──epochs/ shows no higher term──▶ unlinked
                  ▲                                   │
                  └────────── put back ───────────────┘   a higher term, or epochs/ cannot be read: the outcome is unknown

A new owner takes back all trash before its first look at what is due (`restore_trash`), so that what a paused writer
moved aside in its last moment is there again. All of it is `Steps`; the catalog's row goes to garbage before any of it.
"""

from __future__ import annotations

import errno
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from nvrstore.errors import FencedError, TargetError
from nvrstore.failover.terms import ClaimKey
from nvrstore.journal.names import TRASH_DIR, VolumeName, journal_dir, trash_path, untrash_path
from nvrstore.replicate.claim import hold_term
from nvrstore.targets.contract import Call, Request, Steps, Verb
from nvrstore.targets.steps import ask, expect, list_all

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def prune(target: str, name: VolumeName, own: ClaimKey, *, busy_days: Collection[str] = ()) -> Steps[bool]:
    """Remove the copy of a volume on `target`; False when it was not there.

    An empty day's folder goes too, unless it is one of `busy_days`, in which volumes may be opened now.
    Raises FencedError when a higher term is seen there, TargetError when anything is uncertain; the file is back in its
    place then, or still in the trash if even that failed.
    """
    # Asked twice: first so that a superseded writer moves nothing at all, then since the rename may have hung meanwhile.
    yield from hold_term(target, name.journal, own)
    trash = trash_path(name, own.term)
    moved = yield Call(target, Request(Verb.RENAME, name.path, path2=trash))
    if moved.errno == errno.ENOENT:
        trash = yield from _in_trash(target, trash)
        moved = yield Call(target, Request(Verb.RENAME, name.path, path2=trash))
    if moved.errno == errno.ENOENT:
        return False
    expect(moved, target, f"move {name.path} to the trash")
    try:
        yield from hold_term(target, name.journal, own)
    except (FencedError, TargetError):
        yield from _put_back(target, trash, name)
        raise
    yield from ask(target, Request(Verb.UNLINK, trash), f"unlink {trash}")
    if name.day not in busy_days:
        yield Call(target, Request(Verb.RMDIR, _folder(name.path)))  # ENOTEMPTY is the usual answer
    return True


def _in_trash(target: str, trash: str) -> Steps[str]:
    """Where a volume can be moved to: its folder is made. On a full disk that of another term serves: trash is taken back from all."""
    folder = _folder(trash)
    made = yield Call(target, Request(Verb.MKDIR, folder))
    if made.errno in FULL:
        root = _folder(folder)
        for entry in (yield from list_all(target, root, missing_ok=True)):
            if entry.directory:
                return f"{root}/{entry.name}{trash.removeprefix(folder)}"
    expect(made, target, f"make {folder}")
    return trash


def make_trash(target: str, journal: str, term: int) -> Steps[bool]:
    """The folder for what goes in this term, while there is room for it: a full disk cannot make one. False: not now."""
    answer = yield Call(target, Request(Verb.MKDIR, f"{journal_dir(journal)}/{TRASH_DIR}/{term:04d}"))
    return answer.ok


@dataclass(frozen=True, slots=True)
class Restored:
    """What was taken back from the trash of one target: volumes that are there again; files that could not be moved, with why."""

    volumes: tuple[VolumeName, ...]
    failed: dict[str, str]


def restore_trash(target: str, journal: str) -> Steps[Restored]:
    """Take back everything that lies in the trash, whoever put it there; folders that are empty then go.

    Retention decides anew about each volume. Where a file of the same name exists, it stays, and the trash keeps the other.
    Raises TargetError when the trash cannot be listed.
    """
    root = f"{journal_dir(journal)}/{TRASH_DIR}"
    volumes: list[VolumeName] = []
    failed: dict[str, str] = {}
    for term in (yield from list_all(target, root, missing_ok=True)):
        if not term.directory:
            continue
        folder = f"{root}/{term.name}"
        for file in (yield from list_all(target, folder, missing_ok=True)):
            path = f"{folder}/{file.name}"
            name = untrash_path(path)
            try:
                if name is not None and (yield from _put_back(target, path, name)):
                    volumes.append(name)
                else:
                    failed[path] = "no volume" if name is None else "a file of that name exists"
            except TargetError as error:
                failed[path] = str(error)
        yield Call(target, Request(Verb.RMDIR, folder))
    return Restored(tuple(volumes), failed)


def _put_back(target: str, trash: str, name: VolumeName) -> Steps[bool]:
    """Give a file in the trash its name again; False where that name is taken. LINK, not RENAME: nothing is ever replaced."""
    yield from ask(target, Request(Verb.MKDIR, _folder(name.path)), f"make {_folder(name.path)}")
    linked = yield Call(target, Request(Verb.LINK, trash, path2=name.path))
    if linked.errno == errno.EEXIST:
        # Stopped between link and unlink, both names are one file, and the second can go.
        if not (yield from _same_file(target, trash, name.path)):
            return False
    elif linked.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
        there = yield Call(target, Request(Verb.STAT, name.path))
        if there.errno != errno.ENOENT:
            expect(there, target, f"look at {name.path}")
            return False
        yield from ask(target, Request(Verb.RENAME, trash, path2=name.path), f"put {name.path} back")
        return True
    else:
        expect(linked, target, f"put {name.path} back")
    yield from ask(target, Request(Verb.UNLINK, trash), f"unlink {trash}")
    return True


def _same_file(target: str, path: str, path2: str) -> Steps[bool]:
    one = (yield from ask(target, Request(Verb.STAT, path), f"look at {path}")).json()
    two = (yield from ask(target, Request(Verb.STAT, path2), f"look at {path2}")).json()
    return bool((one["dev"], one["ino"]) == (two["dev"], two["ino"]))


def _folder(path: str) -> str:
    return path.rpartition("/")[0]
