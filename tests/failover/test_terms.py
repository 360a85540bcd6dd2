"""Terms and claims: what is written, who owns a journal, who is superseded."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvrstore.checksum import crc32c_reference
from nvrstore.errors import DamagedError, FormatError
from nvrstore.failover.terms import (
    TERM_MAX,
    Claim,
    ClaimKey,
    Verdict,
    judge,
    keys_in,
    next_term,
    owners,
    pack_claim,
    parse_claim,
)

ME = "9f2c41aa" * 4
OTHER = "0badcafe" * 4
CLAIM = Claim("main", 8, "nvr-1", ME, 0x0123456789ABCDEF, 1_700_000_000_000_000_000)
GOLDEN = (
    b'{"format":1,"journal":"main","recorder":"nvr-1","recorder_id":"9f2c41aa9f2c41aa9f2c41aa9f2c41aa",'
    b'"session":"0123456789abcdef","term":8,"utc_ns":1700000000000000000}\ncrc32c c80dd21e\n'
)

keys = st.builds(ClaimKey, st.integers(1, TERM_MAX), st.binary(min_size=16, max_size=16).map(bytes.hex), st.integers(0, (1 << 64) - 1))


def test_the_bytes_of_a_claim_are_frozen() -> None:
    """Format 1, to the byte, checked by an independent CRC-32C."""
    assert pack_claim(CLAIM) == GOLDEN
    line, check = GOLDEN.splitlines(keepends=True)
    assert check == b"crc32c %08x\n" % crc32c_reference(line)
    assert parse_claim(GOLDEN) == CLAIM
    assert CLAIM.key.name == "t0000000008-9f2c41aa9f2c41aa9f2c41aa9f2c41aa-0123456789abcdef.claim"


def test_no_flipped_byte_passes_for_a_claim() -> None:
    """Every byte is covered by the checksum or by the syntax."""
    for at, byte in enumerate(GOLDEN):
        with pytest.raises(FormatError):
            parse_claim(GOLDEN[:at] + bytes([byte ^ 0x04]) + GOLDEN[at + 1 :])


def test_no_cut_claim_passes_for_a_whole_one() -> None:
    """A torn file is told from a claim."""
    for kept in range(len(GOLDEN)):
        with pytest.raises(FormatError):
            parse_claim(GOLDEN[:kept])


@pytest.mark.parametrize("change", [{"term": 0}, {"term": TERM_MAX + 1}, {"recorder_id": "x"}, {"session": -1}, {"session": 1 << 64}])
def test_a_claim_that_its_name_cannot_say_is_not_written(change: dict[str, Any]) -> None:
    """The name must say the whole key, or fencing by names would be blind."""
    with pytest.raises(ValueError, match=r"term|id"):
        pack_claim(dataclasses.replace(CLAIM, **change))


def test_a_claim_of_a_later_format_is_refused_with_a_sentence() -> None:
    """A checksum that agrees does not make an unknown format readable."""
    line = GOLDEN.splitlines(keepends=True)[0].replace(b'"format":1', b'"format":2')
    with pytest.raises(FormatError, match="newer") as caught:
        parse_claim(line + b"crc32c %08x\n" % crc32c_reference(line), path="main/epochs/x")
    assert not isinstance(caught.value, DamagedError)
    assert caught.value.path == "main/epochs/x"


@given(keys, keys)
def test_names_order_as_terms_do(a: ClaimKey, b: ClaimKey) -> None:
    """The greatest name of a directory is a claim of its highest term."""
    assert ClaimKey.of(a.name) == a
    if a.term < b.term:
        assert a.name < b.name
    assert keys_in([b.name, ".tmp", a.name, "t1.claim"]) == sorted([a, b])


@given(st.lists(st.integers(0, TERM_MAX - 1)))
def test_the_next_term_is_above_everything_seen(seen: list[int]) -> None:
    """Max + 1 over lease, state disk and targets; 1 where nothing was ever claimed."""
    assert next_term(*seen) == max(seen, default=0) + 1


def test_terms_end_with_a_sentence_and_never_wrap() -> None:
    """A damaged state disk that says the highest term must not lead to a lower one."""
    with pytest.raises(ValueError, match="no term"):
        next_term(TERM_MAX)


def test_the_newest_claim_names_the_owner() -> None:
    """The highest term owns; equal terms after a partition are owners both, and a claim seen on two targets counts once."""
    a, b, c = ClaimKey(7, ME, 1), ClaimKey(8, OTHER, 2), ClaimKey(8, ME, 3)
    assert owners([]) == ()
    assert owners([a, b, b]) == (b,)
    assert owners([c, a, b]) == (b, c)


MINE = ClaimKey(8, ME, 5)


@pytest.mark.parametrize(
    ("seen", "answered", "verdict"),
    [
        (None, (), Verdict.OK),
        (MINE, (), Verdict.OK),
        (ClaimKey(7, OTHER, 1), (), Verdict.OK),
        (ClaimKey(8, OTHER, 1), (), Verdict.OK),
        (ClaimKey(8, ME, 1), (), Verdict.OK),
        (ClaimKey(9, OTHER, 1), (), Verdict.SUPERSEDED),
        (ClaimKey(9, OTHER, 5), (), Verdict.SUPERSEDED),
        (ClaimKey(9, ME, 5), (), Verdict.OK),
        (ClaimKey(9, ME, 1), (), Verdict.STALE_SELF),
        (ClaimKey(9, ME, 1), (4,), Verdict.STALE_SELF),
        (ClaimKey(9, ME, 1), (1,), Verdict.SUPERSEDED),
        (ClaimKey(9, OTHER, 1), (1,), Verdict.SUPERSEDED),
    ],
)
def test_only_a_higher_term_of_another_writer_fences(seen: ClaimKey | None, answered: tuple[int, ...], verdict: Verdict) -> None:
    """Equal terms harm nothing; an earlier session of the same recorder is answered by a higher claim, once."""
    assert judge(MINE, seen, frozenset(answered)) is verdict


@given(st.lists(st.booleans(), max_size=30))
def test_two_live_copies_of_one_state_directory_do_not_outbid_each_other_for_ever(moves: list[bool]) -> None:
    """Of two sessions with one recorder id, each answers the other at most once; then the lower one is fenced."""
    terms = {1: 0, 2: 0}
    answered: dict[int, frozenset[int]] = {1: frozenset(), 2: frozenset()}
    claims = 0
    for first in moves:
        me, other = (1, 2) if first else (2, 1)
        if terms[me] == 0:
            terms[me], claims = next_term(*terms.values()), claims + 1
        elif terms[other] and judge(ClaimKey(terms[me], ME, me), ClaimKey(terms[other], ME, other), answered[me]) is Verdict.STALE_SELF:
            answered[me] |= {other}
            terms[me], claims = next_term(*terms.values()), claims + 1
    assert claims <= 4
