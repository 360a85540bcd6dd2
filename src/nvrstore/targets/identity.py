"""Who a target is, and which journals it keeps: `target.json` at its root, `journal.json` in each journal's directory.

    <root>/target.json                  {"format": 1, "id": "<32 hex digits>", ...}     written once, by `init_target`
    <root>/looks/                       one block per recorder, see look.py
    <root>/<journal>/journal.json       {"format": 1, "id": "<32 hex digits>", "name": "<journal>"}    written once
    <root>/<journal>/{epochs,.next,trash}/

No identity, no write: a directory without `target.json` is a bare mount point, and must never be filled by mistake. Two
different journals under one name are refused. All of this is `Steps`: see contract.py.
"""

from __future__ import annotations

import errno
import json
from typing import Any, Final

from nvrstore.errors import TargetIdentityError
from nvrstore.model import new_id
from nvrstore.targets.contract import Call, Identity, Request, Steps, Verb
from nvrstore.targets.look import EPOCHS_DIR, IDENTITY_PATH, parse_identity
from nvrstore.targets.steps import ask, expect, list_all, read_all

FORMAT: Final = 1
JOURNAL_FILE: Final = "journal.json"
NEXT_DIR: Final = ".next"
TRASH_DIR: Final = "trash"
#: What a directory may hold and still count as empty: file systems and desktops put it there themselves.
_HARMLESS: Final = frozenset({"lost+found", ".snapshot", ".zfs", ".Trash-1000", "System Volume Information", ".DS_Store"})


def init_target(target: str, *, id: str | None = None, force: bool = False) -> Steps[Identity]:
    """Make a directory a target. Refuses one that is a target already, and, unless `force`, one that is not empty."""
    yield from ask(target, Request(Verb.MKDIR), "create the directory")
    there = yield from list_all(target, "")
    names = {entry.name for entry in there}
    if IDENTITY_PATH in names:
        known = yield from identify(target)
        raise TargetIdentityError(f"target {target!r}: it already is one, {known.id}", target=target, hint="it is ready for use")
    foreign = sorted(names - _HARMLESS)
    if foreign and not force:
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        hint = "take an empty directory, or say --force to share it with what is there"
        raise TargetIdentityError(f"target {target!r}: the directory is not empty ({shown})", target=target, hint=hint)
    body = {"format": FORMAT, "id": id or new_id()}
    answer = yield Call(target, Request(Verb.PUT, IDENTITY_PATH, data=_text(body)))
    if answer.errno != errno.EEXIST:  # somebody else was faster: then theirs counts
        expect(answer, target, f"write {IDENTITY_PATH}")
    return (yield from identify(target))


def identify(target: str, *, expected_id: str | None = None) -> Steps[Identity]:
    """The identity found at the target's path. Raises TargetIdentityError when there is none, or not the expected one."""
    answer = yield Call(target, Request(Verb.STAT, IDENTITY_PATH))
    if answer.errno in (errno.ENOENT, errno.ENOTDIR):
        raise TargetIdentityError(f"target {target!r}: there is no {IDENTITY_PATH} in its directory", target=target)
    stat = expect(answer, target, f"look for {IDENTITY_PATH}").json()
    text = yield from read_all(target, IDENTITY_PATH)
    identity = parse_identity(text.decode(errors="replace"), device=stat["dev"], inode=stat["ino"])
    if identity is None:
        hint = "restore it from the other targets' records, or start over with an empty directory"
        raise TargetIdentityError(f"target {target!r}: its {IDENTITY_PATH} cannot be read", target=target, hint=hint)
    if identity.format > FORMAT:
        hint = "use the version of nvrstore that wrote it, or a newer one"
        raise TargetIdentityError(f"target {target!r} has format {identity.format}, this version knows {FORMAT}", target=target, hint=hint)
    if expected_id is not None and identity.id != expected_id:
        hint = "are mounts swapped? the configuration's paths have to lead to the same disks as before"
        raise TargetIdentityError(f"target {target!r} is {identity.id}, expected was {expected_id}", target=target, hint=hint)
    return identity


def find_journal(target: str, journal: str) -> Steps[str | None]:
    """The id of a journal on this target; None when it keeps none of that name."""
    answer = yield Call(target, Request(Verb.READ, f"{journal}/{JOURNAL_FILE}", length=4096))
    if answer.errno in (errno.ENOENT, errno.ENOTDIR):
        return None
    expect(answer, target, f"read {journal}/{JOURNAL_FILE}")
    try:
        body: Any = answer.json()
        id_ = body["id"]
    except (ValueError, KeyError, TypeError):
        id_ = None
    if not isinstance(id_, str) or len(id_) != 32:
        hint = "restore it from another target of the journal"
        raise TargetIdentityError(f"target {target!r}: {journal}/{JOURNAL_FILE} cannot be read", target=target, hint=hint)
    return id_


def ensure_journal(target: str, journal: str, id: str) -> Steps[str]:
    """Make the journal's directories where they are missing. Raises TargetIdentityError when another journal has its name."""
    known = yield from find_journal(target, journal)
    for folder in (EPOCHS_DIR, NEXT_DIR, TRASH_DIR):
        if known in (None, id):
            yield from ask(target, Request(Verb.MKDIR, f"{journal}/{folder}"), f"create {journal}/{folder}")
    if known is None:
        body = {"format": FORMAT, "id": id, "name": journal}
        answer = yield Call(target, Request(Verb.PUT, f"{journal}/{JOURNAL_FILE}", data=_text(body)))
        if answer.errno != errno.EEXIST:
            expect(answer, target, f"write {journal}/{JOURNAL_FILE}")
        known = yield from find_journal(target, journal)
    if known != id:
        hint = "rename one of the two journals in the configuration, or take another target"
        raise TargetIdentityError(f"target {target!r} keeps another journal under the name {journal!r}", target=target, hint=hint)
    return known


def _text(body: dict[str, Any]) -> bytes:
    return (json.dumps(body, indent=1) + "\n").encode()
