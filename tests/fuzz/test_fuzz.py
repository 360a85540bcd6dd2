"""No bytes of a camera crash the lean engine: every entry point, by seeds, by hypothesis, and by what a fuzzer once found."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fuzz.entries import ENTRIES, SEEDS

#: What a fuzzer found, by the entry point, with what went wrong.
FOUND: Final[dict[str, tuple[bytes, ...]]] = {}


@pytest.mark.parametrize("entry", ENTRIES)
def test_what_is_orderly_passes(entry: str) -> None:
    """The seeds, whole and cut short anywhere."""
    for seed in SEEDS[entry]:
        for end in range(len(seed) + 1):
            ENTRIES[entry](seed[:end])


@pytest.mark.parametrize("entry", ENTRIES)
@given(data=st.data())
def test_no_bytes_crash(entry: str, data: st.DataObject) -> None:
    """Garbage, and what is orderly with pieces of it replaced."""
    if data.draw(st.booleans()):
        ENTRIES[entry](data.draw(st.binary(max_size=600)))
        return
    made = bytearray(data.draw(st.sampled_from(SEEDS[entry])))
    for at, piece in data.draw(st.lists(st.tuples(st.integers(0, len(made)), st.binary(max_size=8)), max_size=6)):
        made[at : at + len(piece)] = piece
    ENTRIES[entry](bytes(made))


@pytest.mark.parametrize(("entry", "data"), [(entry, data) for entry, found in FOUND.items() for data in found])
def test_what_a_fuzzer_found_stays_mended(entry: str, data: bytes) -> None:
    """Each of these ended a session, or would have, with an error that was none of the engine's own."""
    ENTRIES[entry](data)
