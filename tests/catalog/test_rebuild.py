"""What the targets alone tell: the decisions of a look, without a target."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from tests.support.footage import Footage
from tests.support.volumes import scan

from nvrstore.catalog.query import CatalogReader
from nvrstore.catalog.rebuild import Adopt, FileEntry, Finding, ListDir, Outcome, Progress, Removed, Stranger, look_through, record
from nvrstore.catalog.schema import CopyState, create
from nvrstore.catalog.views import VolumeInfo
from nvrstore.journal.scan import ScanResult

Files = dict[str, bytearray | None]  # path -> bytes; None: the device does not give the file


def look(
    targets: Mapping[str, Files | None], known: list[VolumeInfo] | None = None, skip: frozenset[str] = frozenset()
) -> tuple[list[Finding], Outcome]:
    """Answer the wishes of a look from memory; a target that is None does not answer."""
    steps = look_through(sorted(targets), known or [], skip=skip)
    findings: list[Finding] = []
    answer: list[FileEntry] | ScanResult | None = None
    try:
        while True:
            item = steps.send(answer)
            answer = None
            files = targets[item.target] if isinstance(item, ListDir) or hasattr(item, "size") else None  # type: ignore[union-attr]
            if isinstance(item, ListDir):
                answer = None if files is None else listing(files, item.path)
            elif isinstance(item, Adopt | Removed | Stranger | Progress):
                findings.append(item)
            else:
                data = (files or {})[item.path]
                answer = None if data is None else scan(data, header=item.header)
    except StopIteration as stop:
        return findings, stop.value


def listing(files: Files, path: str) -> list[FileEntry]:
    found: dict[str, FileEntry] = {}
    for name, data in {**files, "target.json": bytearray(b"{}")}.items():
        if path and not name.startswith(f"{path}/"):
            continue
        first, *rest = name.removeprefix(f"{path}/" if path else "").split("/")
        found[first] = FileEntry(first, 0 if rest else len(data or b""), bool(rest))
    return [found[name] for name in sorted(found)]


def files_of(footage: Footage) -> Files:
    return {stored.path: bytearray(stored.data) for stored in footage.volumes}


def known_after(findings: list[Finding]) -> list[VolumeInfo]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    create(connection)
    for finding in findings:
        record(connection, finding)
    volumes = CatalogReader(None, connection).volumes()
    connection.close()
    return volumes


def test_equal_paths_are_copies_of_one_volume() -> None:
    """Every volume is adopted once, with all its copies: complete where it is closed, live where it is open."""
    footage = Footage.record(seconds=4, per_volume_s=2.0, close_last=False)
    findings, outcome = look({"a": files_of(footage), "b": files_of(footage)})
    adopted = [finding for finding in findings if isinstance(finding, Adopt)]
    assert [a.header.volume_id for a in adopted] == [stored.header.volume_id for stored in footage.volumes]
    assert [a.closed_length for a in adopted] == [len(s.data) if s.closed else None for s in footage.volumes]
    assert adopted[0].copies == {t: (len(footage.volumes[0].data), CopyState.COMPLETE) for t in "ab"}
    assert {state for _, state in adopted[-1].copies.values()} == {CopyState.LIVE}
    assert outcome == Outcome(len(footage.volumes), len(footage.volumes), 0, 0, ())


def test_what_is_known_and_settled_is_not_scanned_again() -> None:
    """A rebuild that was broken off goes on; a closed volume with all its copies in full length costs nothing."""
    footage = Footage.record(seconds=4, per_volume_s=2.0, close_last=False)
    targets: dict[str, Files | None] = {"a": files_of(footage), "b": files_of(footage)}
    findings, _ = look(targets)
    again, outcome = look(targets, known_after(findings))
    assert [f.path for f in again if isinstance(f, Adopt)] == [footage.volumes[-1].path], "an open volume may have grown"
    assert outcome.adopted == 1
    skipped, _ = look(targets, known_after(findings), skip=frozenset({footage.volumes[-1].header.volume_id}))
    assert not [f for f in skipped if isinstance(f, Adopt)], "the recorder itself knows what it writes"


def test_a_copy_is_removed_only_where_its_target_answers() -> None:
    """A target that is away, or a bare mount point, says nothing about what it holds."""
    footage = Footage.record(seconds=4, per_volume_s=2.0)
    findings, _ = look({"a": files_of(footage), "b": files_of(footage)})
    known = known_after(findings)
    less = files_of(footage)
    del less[footage.volumes[0].path]
    gone, outcome = look({"a": less, "b": None}, known)
    assert [f for f in gone if isinstance(f, Removed)] == [Removed(footage.volumes[0].header.volume_id, "a")]
    assert outcome.unreachable == ("b",)
    assert not outcome.complete


def test_a_copy_with_a_damaged_header_is_read_with_that_of_another() -> None:
    """One copy's `moov` is broken: the volume is known from the other, and this copy as damaged."""
    footage = Footage.record(seconds=4, per_volume_s=60.0)
    a, b = files_of(footage), files_of(footage)
    path = footage.volumes[0].path
    broken = b[path]
    assert broken is not None
    broken[300] ^= 1
    findings, outcome = look({"a": a, "b": b})
    (adopted,) = [f for f in findings if isinstance(f, Adopt)]
    assert {target: state for target, (_, state) in adopted.copies.items()} == {"a": CopyState.COMPLETE, "b": CopyState.DAMAGED}
    assert outcome.strangers == 0
    findings, outcome = look({"b": b})
    assert [f.path for f in findings if isinstance(f, Stranger)] == [path]
    assert outcome.strangers == 1


def test_a_copy_that_lost_its_end_is_partial() -> None:
    """The volume is closed on one target; the other has what it got until it failed."""
    footage = Footage.record(seconds=4, per_volume_s=60.0)
    stored = footage.volumes[0]
    end = stored.volume.batches[2].offset
    findings, _ = look({"a": files_of(footage), "b": {stored.path: stored.data[: end + 100]}})
    (adopted,) = [f for f in findings if isinstance(f, Adopt)]
    assert adopted.copies["b"] == (end, CopyState.PARTIAL)
    assert len(adopted.batches) == len(stored.volume.batches)


def test_a_file_that_cannot_be_read_makes_the_look_incomplete() -> None:
    """Nothing is decided about a copy that its target did not give."""
    footage = Footage.record(seconds=2, per_volume_s=60.0)
    findings, outcome = look({"a": files_of(footage), "b": dict.fromkeys(files_of(footage))})
    assert outcome.unreachable == ("b",)
    assert [set(f.copies) for f in findings if isinstance(f, Adopt)] == [{"a"}]
