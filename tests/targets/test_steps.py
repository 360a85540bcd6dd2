"""Steps decide, the driver acts: failures reach the steps as answers, and their conclusions the caller."""

from __future__ import annotations

import errno

import pytest
from tests.support.targets import ask, run

from nvrstore.clock import ManualClock
from nvrstore.errors import TargetIdentityError, TargetIOError, TargetUnavailableError, UsageError
from nvrstore.limits import KEEPER_PIECE_BYTES
from nvrstore.targets.contract import Answer, Call, Identity, Request, Steps, Verb
from nvrstore.targets.identity import identify, init_target
from nvrstore.targets.look import look_counter, look_request, look_text, parse_identity
from nvrstore.targets.memory import MemoryTarget
from nvrstore.targets.steps import expect, read_all, run_steps


def both(first: str, second: str) -> Steps[list[int]]:
    return [(yield Call(first, Request(Verb.SPACE))).errno, (yield Call(second, Request(Verb.SPACE))).errno]


def test_each_call_goes_to_the_target_that_it_names() -> None:
    """And a failure of one is an answer like any other."""
    a, b = MemoryTarget("a"), MemoryTarget("b")
    b.fault = lambda _: errno.EIO
    assert run_steps(both("a", "b"), {"a": a, "b": b}, timeout_s=1) == [0, errno.EIO]


def test_a_target_that_nobody_knows_is_a_mistake_of_the_caller() -> None:
    """Said by name, inside the steps, so that they can clean up."""
    cleaned = []

    def steps() -> Steps[None]:
        try:
            yield Call("none", Request(Verb.SPACE))
        finally:
            cleaned.append(True)

    with pytest.raises(UsageError, match="none"):
        run_steps(steps(), {}, timeout_s=1)
    assert cleaned == [True]


def test_a_target_that_does_not_answer_is_unknown_and_one_that_errs_says_why() -> None:
    """`expect` tells the two apart, and says what was being done."""
    target = MemoryTarget("t", clock=ManualClock())
    assert expect(Answer(1), "t", "x") == Answer(1)
    with pytest.raises(TargetIOError, match="read missing: ENOENT") as caught:
        run(target, read_all("t", "missing"))
    assert caught.value.errno == errno.ENOENT
    target.hold()
    with pytest.raises(TargetUnavailableError, match="read missing"):
        run(target, read_all("t", "missing"))


@pytest.mark.parametrize("size", [0, 1, KEEPER_PIECE_BYTES - 1, KEEPER_PIECE_BYTES, KEEPER_PIECE_BYTES + 1, 3 * KEEPER_PIECE_BYTES])
def test_files_of_every_size_are_read_whole(size: int) -> None:
    """Also those that end exactly with a piece."""
    target = MemoryTarget("t")
    content = bytes(range(251)) * (size // 251 + 1)
    assert ask(target, Verb.PUT, "f", data=content[:size]).ok
    assert run(target, read_all("t", "f")) == content[:size]


def test_init_refuses_a_directory_that_is_in_use_and_ignores_what_file_systems_leave() -> None:
    """Somebody's photos are not a target by mistake; `lost+found` is nobody's photo."""
    target = MemoryTarget("t", blank=True)
    target.files.mkdirs("lost+found")
    target.files.mkdirs("photos")
    with pytest.raises(TargetIdentityError, match="photos") as caught:
        run(target, init_target("t"))
    assert "--force" in caught.value.hint
    target.files.rmdir("photos")
    assert run(target, init_target("t", id="a" * 32)).id == "a" * 32


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[]", b'{"format": 1, "id": "short"}', b'{"format": "1", "id": 5}', b"\xff\xfe", b'{"format": 1']
)
def test_an_identity_that_cannot_be_read_is_no_identity(text: bytes) -> None:
    """Torn or foreign: an error with a hint, never a guess."""
    target = MemoryTarget("t", blank=True)
    assert ask(target, Verb.PUT, "target.json", data=text).ok
    with pytest.raises(TargetIdentityError, match="cannot be read"):
        run(target, identify("t"))


def test_a_newer_format_is_refused() -> None:
    """With the two numbers."""
    target = MemoryTarget("t", blank=True)
    assert ask(target, Verb.PUT, "target.json", data=b'{"format": 9, "id": "%s"}' % (b"a" * 32)).ok
    with pytest.raises(TargetIdentityError, match="format 9, this version knows 1"):
        run(target, identify("t"))
    assert parse_identity('{"format": 1, "id": "%s", "more": 1}' % ("a" * 32), device=1, inode=2) == Identity("a" * 32, 1, 1, 2)


@pytest.mark.parametrize("counter", [0, 1, 2**63])
def test_the_text_of_a_look_block_is_read_back(counter: int) -> None:
    """By the writer's next look, and by another recorder that wants to know whether the writer lives."""
    assert look_counter(look_text(counter).encode().ljust(4096, b"\0")) == counter


@pytest.mark.parametrize("block", [b"", bytes(4096), b"nvrstore look \n", b"nvrstore look -1\n", b"nvrstore look 5", b"something else 5\n"])
def test_a_block_that_is_no_look_has_no_counter(block: bytes) -> None:
    """Zeroes of a fresh block, a torn one, another file."""
    assert look_counter(block) is None


@pytest.mark.parametrize("look_id", ["", ".hidden", "a/b"])
def test_a_look_id_is_a_plain_name(look_id: str) -> None:
    """It becomes a file name beside other recorders'."""
    with pytest.raises(ValueError, match="plain file name"):
        look_request(look_id=look_id, counter=1, journals=(), target_id="a" * 32)
