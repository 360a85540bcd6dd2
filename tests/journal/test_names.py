"""Names of volumes: for people and for listing, one per volume, in the order of writing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvrstore.journal.model import VolumeHeader
from nvrstore.journal.names import (
    epochs_dir,
    is_day,
    journal_file,
    next_path,
    parse_volume_path,
    trash_path,
    untrash_path,
    volume_path,
    writer_tag,
)
from nvrstore.model import Epoch

HEADER = VolumeHeader(
    volume_id="00" * 16,
    journal="main",
    journal_id="11" * 16,
    recorder="nvr-1",
    session=0x9F2C41AA_00000000,
    epoch=Epoch(8, 3),
    lane=0,
    number=42,
    members=(),
    created_ns=1_795_419_910_999_999_999,
    origin_ns=0,
    tracks=(),
)
PATH = "main/2026-11-23/07-45-10Z.t0008-9f2c41aa.l0.v000042.mp4"


def test_a_volume_is_named_by_its_second_term_writer_lane_and_number() -> None:
    """People find a volume by its day and time, machines by its term and number."""
    assert volume_path(HEADER) == PATH
    name = parse_volume_path(PATH)
    assert name is not None
    assert (name.journal, name.day, name.time) == ("main", "2026-11-23", "07-45-10")
    assert (name.term, name.tag, name.lane, name.number) == (8, "9f2c41aa", 0, 42)


@given(
    session=st.integers(0, 2**64 - 1),
    term=st.integers(0, 2**64 - 1),
    lane=st.integers(0, 2**32 - 1),
    number=st.integers(0, 2**64 - 1),
    created_s=st.integers(0, 4_000_000_000),
)
def test_every_name_is_read_back(session: int, term: int, lane: int, number: int, created_s: int) -> None:
    """Numbers may outgrow their usual width; the name stays readable."""
    header = replace(HEADER, session=session, epoch=Epoch(term, 1), lane=lane, number=number, created_ns=created_s * 10**9)
    name = parse_volume_path(volume_path(header))
    assert name is not None
    assert (name.term, name.tag, name.lane, name.number) == (term, writer_tag(session), lane, number)


def test_volumes_sort_by_term_and_number_and_never_by_time() -> None:
    """A wall clock that stepped back must not reorder what was written."""
    later_number = replace(HEADER, number=43, created_ns=HEADER.created_ns - 86_400 * 10**9)
    later_term = replace(HEADER, number=0, epoch=Epoch(10_000, 0), created_ns=0)
    names = [parse_volume_path(volume_path(header)) for header in (later_term, later_number, HEADER)]
    assert sorted(name for name in names if name is not None) == names[::-1]


def test_two_writers_of_one_term_have_two_names() -> None:
    """After a partition two writers may hold equal terms: their volumes must not collide."""
    assert volume_path(replace(HEADER, session=0x12345678_00000000)) != PATH


@pytest.mark.parametrize(
    "path",
    [
        "",
        "main",
        "main/journal.json",
        "main/2026-11-23/07-45-10Z.t0008-9f2c41aa.l0.v000042.mp4.tmp",
        "main/2026-11-23/07-45-10Z.t0008-9F2C41AA.l0.v000042.mp4",
        "main/2026-11-23/07-45-10Z.t8-9f2c41aa.l0.v000042.mp4",
        "main/2026-11-23/07-45-10Z.t0008-9f2c41aa.l0.v000042.mp4\n",
        "main/.next/07-45-10Z.t0008-9f2c41aa.l0.v000042.mp4",
        "main/2026-11-23/deep/07-45-10Z.t0008-9f2c41aa.l0.v000042.mp4",
        "/2026-11-23/07-45-10Z.t0008-9f2c41aa.l0.v000042.mp4",
        ".hidden/2026-11-23/07-45-10Z.t0008-9f2c41aa.l0.v000042.mp4",
        "main/\uff12\uff10\uff12\uff16-11-23/07-45-10Z.t0008-9f2c41aa.l0.v000042.mp4",
    ],
)
def test_what_is_no_volume_is_not_taken_for_one(path: str) -> None:
    """People put files of their own beside volumes; they are left alone."""
    assert parse_volume_path(path) is None


@pytest.mark.parametrize("journal", ["", ".", "..", ".next", "a/b", "a\0b", "x" * 101])
def test_a_journal_whose_name_would_leave_its_folder_is_refused(journal: str) -> None:
    """No name in a configuration may reach outside of the target."""
    with pytest.raises(ValueError, match="folder"):
        volume_path(replace(HEADER, journal=journal))


def test_what_goes_to_the_trash_can_be_put_back() -> None:
    """A new holder of the journal takes back what a superseded one meant to delete: the way back needs no database."""
    name = parse_volume_path(PATH)
    assert name is not None
    path = trash_path(name, 12)
    assert path == "main/trash/0012/2026-11-23_07-45-10Z.t0008-9f2c41aa.l0.v000042.mp4"
    assert untrash_path(path) == name
    assert untrash_path(PATH) is None
    assert untrash_path("main/trash/0012/readme.txt") is None


def test_the_other_places_lie_beside_the_days() -> None:
    """Everything of a journal is below one folder."""
    assert (epochs_dir("main"), journal_file("main"), next_path("main", "ab12")) == ("main/epochs", "main/journal.json", "main/.next/ab12")
    assert is_day("2026-11-23")
    assert not is_day("epochs")
