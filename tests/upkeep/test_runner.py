"""How upkeep runs its steps: what it tells of the targets that it meets."""

from __future__ import annotations

import errno

import pytest

from nvrstore.targets.contract import Answer, Call, Request, Steps, Verb
from nvrstore.targets.memory import MemoryTarget
from nvrstore.upkeep.host import Runner


@pytest.mark.parametrize(
    ("verb", "code", "suspected"),
    [
        (Verb.WRITE, errno.EIO, ["a"]),
        (Verb.SYNC, errno.EROFS, ["a"]),
        (Verb.READ, errno.EIO, []),  # one file is damaged: it is mended
        (Verb.WRITE, errno.ENOSPC, []),  # retention's business
        (Verb.UNLINK, errno.ENOENT, []),
    ],
)
def test_a_target_on_which_a_chore_fails_hard_is_looked_at_at_once(verb: Verb, code: int, suspected: list[str]) -> None:
    """A resync that is refused need not wait for the next look: the target may be gone."""

    def steps() -> Steps[Answer]:
        return (yield Call("a", Request(verb, "f", data=b"x", length=1)))

    target, heard = MemoryTarget("a"), list[str]()
    target.fault = lambda request: code if request.verb is verb else 0
    assert Runner({"a": target}, heard.append).run(steps()).errno == code
    assert heard == suspected
    target.close(0.0)
