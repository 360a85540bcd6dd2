"""A look: what is asked of a keeper once a second, or once a tick while nothing is written, and what its answer means.

    open target.json by path -> read epochs/ of each journal -> advance the counter in looks/<id>, read it back -> statvfs

Opening by path finds a directory that was moved away or unmounted; descriptors that are already open would not notice.
The look block is one preallocated block of text, padded with zero bytes: `nvrstore look 17`. Other recorders read it
to see whether its writer still lives. Without the expected identity nothing is written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from nvrstore.errors import TargetError
from nvrstore.targets.contract import Answer, Identity, LookResult, Request, Verb

IDENTITY_PATH: Final = "target.json"
LOOKS_DIR: Final = "looks"
EPOCHS_DIR: Final = "epochs"
_BLOCK_MAGIC: Final = "nvrstore look "


def look_request(*, look_id: str, counter: int, journals: Sequence[str], target_id: str) -> Request:
    """A LOOK that advances `looks/<look_id>` to `counter`, if the target still is `target_id`, and reads the newest claims."""
    if not look_id or "/" in look_id or look_id.startswith("."):
        raise ValueError(f"a look id is a plain file name, not {look_id!r}")
    ask = {
        "identity": IDENTITY_PATH,
        "expect": target_id,
        "block": f"{LOOKS_DIR}/{look_id}",
        "text": look_text(counter),
        "epochs": {journal: f"{journal}/{EPOCHS_DIR}" for journal in journals},
    }
    return Request(Verb.LOOK, data=json.dumps(ask).encode())


def look_result(answer: Answer, target: str) -> LookResult:
    """What a successful LOOK saw. Raises TargetError when the answer is not one that a keeper gives."""
    try:
        seen: dict[str, Any] = answer.json()
        identity = None
        if seen["identity"] is not None:
            identity = parse_identity(seen["identity"]["text"], device=seen["identity"]["device"], inode=seen["identity"]["inode"])
        counter = look_counter(seen["block"].encode()) or 0
        claims = dict(seen["claims"])
        return LookResult(identity, counter, claims, seen["total_bytes"], seen["free_bytes"], counter_errno=seen["counter_errno"])
    except (ValueError, KeyError, TypeError) as error:
        raise TargetError(f"target {target!r}: the answer to a look cannot be understood: {error!r}", target=target) from error


def parse_identity(text: str, *, device: int, inode: int) -> Identity | None:
    """The identity in the text of a `target.json`; None when it is none (torn, or somebody else's file)."""
    try:
        body = json.loads(text)
        id_, format_ = body["id"], body["format"]
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(id_, str) or len(id_) != 32 or not isinstance(format_, int):
        return None
    return Identity(id_, format_, device, inode)


def look_text(counter: int) -> str:
    """What a look writes at the start of its block; zero bytes follow."""
    return f"{_BLOCK_MAGIC}{counter}\n"


def look_counter(block: bytes) -> int | None:
    """The counter in a look block; None when it is none."""
    line, newline, _ = block.partition(b"\n")
    digits = line.removeprefix(_BLOCK_MAGIC.encode())
    return int(digits) if newline and digits != line and digits.isdigit() else None
