"""Recorders that die: what they reported durable until then, and what is really there afterwards.

Watch(site, process)      asks a running recorder for its state many times a second: the last thing it promised
Footage.of(root)          every frame in the volumes of one target, read with the format's own scan and nothing else
check(site, promises)     what was promised is there, on every target; what is not there is explained, exactly
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, Self

from tests.support.recorder import JOURNAL, Process, Site

from nvrstore.catalog.query import CatalogReader
from nvrstore.catalog.store import CATALOG_FILE
from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.control import call
from nvrstore.drills.account import volumes_in
from nvrstore.errors import CatalogError, NvrstoreError
from nvrstore.farm import Farm
from nvrstore.farm.check import is_intact, parse_sei
from nvrstore.journal.scan import ScanResult, scan_volume
from nvrstore.media.samples import samples_of
from nvrstore.model import NS_PER_S, Cause, Gap, Media, Record, RecordKind
from nvrstore.playback.core import ArchiveCore
from nvrstore.playback.library import rebuild

POLL_S = 0.02


class Watch:
    """The promises of one running recorder, as anybody hears them: its control socket, asked again and again."""

    def __init__(self, site: Site, process: Process, *, poll_s: float = POLL_S) -> None:
        self._socket, self._process, self._poll_s = site.state / "control.sock", process, poll_s
        self.durable_ns: dict[str, int] = {}
        self.status: dict[str, Any] = {}
        self.answers = 0
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="test-watch")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._poll_s):
            try:
                status = call(self._socket, "status", timeout_s=2.0)
            except (NvrstoreError, OSError):
                continue  # not yet, or not any more
            with self._changed:
                self.status = status
                self.answers += 1
                for stream in status["streams"]:
                    if stream["durable_ns"]:
                        self.durable_ns[stream["stream"]] = stream["durable_ns"]
                self._changed.notify_all()

    def wait_for(self, wanted: Any, timeout_s: float = 60.0) -> dict[str, Any]:
        """The first status from now on for which `wanted(status)` holds."""
        with self._changed:
            deadline_s = SYSTEM_CLOCK.monotonic_s() + timeout_s
            while not (self.answers and wanted(self.status)):
                self._changed.wait(0.5)
                if self._process.process.poll() is not None or SYSTEM_CLOCK.monotonic_s() > deadline_s:
                    raise AssertionError(f"it did not happen; last of {self.answers}: {self.status}; {self._process.errors}")
            return self.status


def states(status: Mapping[str, Any]) -> dict[str, str]:
    """Targets and their states in the first journal."""
    return {target["target"]: target["state"] for target in status["journals"][0]["targets"]}


def synced(status: Mapping[str, Any]) -> bool:
    """Whether every target lacks nothing."""
    return set(states(status).values()) == {"synced"}


def recording(status: Mapping[str, Any]) -> bool:
    """Whether every stream has something durable in this session."""
    return all(stream["durable_ns"] for stream in status["streams"])


def resyncing(status: Mapping[str, Any]) -> bool:
    """Whether a target that returned is being copied to, and some of it is there."""
    return any(progress["bytes_done"] for progress in status["upkeep"]["resync"].values())


def recording_until(status: Mapping[str, Any], until_ns: int) -> bool:
    """Whether every stream is durable up to a moment."""
    return all((stream["durable_ns"] or 0) >= until_ns for stream in status["streams"])


def now_ns() -> int:
    """The wall clock."""
    return SYSTEM_CLOCK.utc_ns()


def now_s() -> float:
    """The monotonic clock."""
    return SYSTEM_CLOCK.monotonic_s()


def drained(watch: Watch) -> None:
    """Until nothing arrives any more: cameras have stopped, what they sent was taken in."""
    before, since_s = -1, 0.0

    def quiet(status: Mapping[str, Any]) -> bool:
        nonlocal before, since_s
        samples = sum(stream["samples"] for stream in status["streams"])
        if samples != before:
            before, since_s = samples, SYSTEM_CLOCK.monotonic_s()
        return SYSTEM_CLOCK.monotonic_s() - since_s > 0.5

    watch.wait_for(quiet)


# --- what is there ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fragment:
    """One fragment of video on disk. `numbers` are the farm's frame numbers in it."""

    session: int
    index: int
    utc_ns: int
    end_ns: int
    numbers: tuple[int, ...]


@dataclass
class Footage:
    """What the volumes of one target hold."""

    fragments: dict[str, list[Fragment]] = field(default_factory=lambda: defaultdict(list))  # by stream, in order, each once
    records: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    volumes: int = 0
    closed: int = 0

    @classmethod
    def of(cls, root: Path) -> Footage:
        """Read everything. Damage, and frames that are not what the farm sent, are `problems`."""
        footage = cls()
        seen: set[tuple[str, int, int]] = set()
        for name in volumes_in(root, JOURNAL):
            data = memoryview((root / name).read_bytes())
            scan = scan_bytes(data, str(name))
            footage.volumes += 1
            footage.closed += scan.closed
            footage.problems += [f"{name}: {damage}" for damage in scan.damage]
            if scan.header is None:
                footage.problems.append(f"{name}: {scan.problem}")
                continue
            for batch in scan.batches:
                footage.records.extend(batch.records)
                for entry in batch.entries:
                    track = scan.header.tracks[entry.track_id - 1]
                    key = (track.track.stream, entry.session, entry.index)
                    if track.track.media is not Media.VIDEO or key in seen:
                        continue
                    seen.add(key)
                    start = batch.offset + entry.offset
                    numbers = []
                    for sample in samples_of(data[start : start + entry.length]):
                        stamp = parse_sei(sample.data)
                        if stamp is None or not is_intact(sample.data):
                            footage.problems.append(f"{name}: a frame of {key} is not as it was sent")
                        else:
                            numbers.append(stamp.number)
                    end_ns = entry.utc_ns + entry.duration * NS_PER_S // track.config.timescale
                    footage.fragments[track.track.stream].append(Fragment(entry.session, entry.index, entry.utc_ns, end_ns, tuple(numbers)))
        for fragments in footage.fragments.values():
            fragments.sort(key=lambda f: (f.utc_ns, f.index))
        return footage

    def numbers(self, stream: str) -> list[int]:
        """Every frame number of a stream, in order."""
        return [number for fragment in self.fragments[stream] for number in fragment.numbers]


def scan_bytes(data: memoryview, path: str = "") -> ScanResult:
    """The format's own scan, every payload checked."""
    scan = scan_volume(len(data), deep=True, path=path)
    wish = next(scan)
    while True:
        try:
            wish = scan.send(bytes(data[wish.offset : wish.offset + wish.length]))
        except StopIteration as stop:
            result: ScanResult = stop.value
            return result


def holds(footage: Footage, promised: Mapping[str, int]) -> list[str]:
    """Promises that are not kept there, in words: footage that was reported durable up to a moment, and is not there."""
    broken = []
    for stream, durable_ns in promised.items():
        if not any(fragment.utc_ns < durable_ns <= fragment.end_ns for fragment in footage.fragments.get(stream, ())):
            broken.append(f"{stream} was durable until {durable_ns}, and is not there")
    return broken


def disorder(footage: Footage) -> list[str]:
    """What should be there once, in order and without a hole inside a session, and is not; in words."""
    found = list(footage.problems)
    for stream, fragments in footage.fragments.items():
        numbers = footage.numbers(stream)
        if len(set(numbers)) != len(numbers):
            found.append(f"{stream}: frames are there twice")
        if numbers != sorted(numbers):
            found.append(f"{stream}: frames are out of order")
        for one, two in pairwise(fragments):
            if one.session == two.session and (one.index + len(one.numbers) != two.index or one.numbers[-1] + 1 != two.numbers[0]):
                found.append(f"{stream}: hole inside session {one.session:016x} between frames {one.numbers[-1]} and {two.numbers[0]}")
    return found


@dataclass(frozen=True, slots=True)
class Hole:
    """Frames that were sent and not stored: between two sessions, with the exact ends of what is stored around it."""

    stream: str
    start_ns: int
    end_ns: int
    session: int  # that begins behind it
    frames: int


def holes(footage: Footage) -> list[Hole]:
    """Every change of session: there a recorder died."""
    found = []
    for stream, fragments in footage.fragments.items():
        for one, two in pairwise(fragments):
            if one.session != two.session:
                found.append(Hole(stream, one.end_ns, two.utc_ns, two.session, two.numbers[0] - one.numbers[-1] - 1))
    return found


def misnamed(found: Sequence[Hole], gaps: Iterable[Gap], *, footage: Footage) -> list[str]:
    """Holes that the ledger does not name exactly, and gaps "recorder" where there is footage; in words.

    Exactly: one gap "recorder" begins where the stored footage ends, and the gaps together reach to where it begins again.
    """
    wrong = []
    by_stream: dict[str, list[Gap]] = defaultdict(list)
    for gap in gaps:
        by_stream[gap.stream].append(gap)
    for hole in found:
        inside = [gap for gap in by_stream[hole.stream] if gap.start_ns < hole.end_ns and (gap.end_ns or 0) > hole.start_ns]
        if hole.end_ns <= hole.start_ns:
            continue  # the camera's clock says that nothing is missing
        if not any(gap.cause is Cause.RECORDER and gap.start_ns == hole.start_ns for gap in inside):
            wrong.append(f"{hole}: no gap 'recorder' begins there; {inside}")
        at = hole.start_ns
        for gap in sorted(inside, key=lambda gap: gap.start_ns):
            if gap.start_ns <= at and gap.end_ns is not None:
                at = max(at, gap.end_ns)
        if at != hole.end_ns:
            wrong.append(f"{hole}: the gaps reach to {at}, which is {(hole.end_ns - at) / 1e6:.0f} ms short; {inside}")
    for stream, named in by_stream.items():
        for gap in named:
            for fragment in footage.fragments[stream]:
                if gap.start_ns < fragment.end_ns and (gap.end_ns is None or gap.end_ns > fragment.utc_ns):
                    wrong.append(f"{stream}: {gap} lies over footage from {fragment.utc_ns} to {fragment.end_ns}")
                    break
    return wrong


def unexplained(site: Site, footage: Footage) -> list[str]:
    """What `Archive.coverage` cannot explain between the first and the last frame of each stream, in words."""
    core = ArchiveCore.configured(site.config())
    try:
        found = []
        for stream, fragments in footage.fragments.items():
            answer = core.coverage(stream, fragments[0].utc_ns, fragments[-1].end_ns)
            found += [str(hole) for hole in answer.holes]
        return found
    finally:
        core.close()


def ledger(site: Site) -> list[Gap]:
    """The gap ledger, as an archive answers while no recorder runs."""
    core = ArchiveCore.configured(site.config())
    try:
        return core.gaps()
    finally:
        core.close()


def answers(catalog: CatalogReader) -> dict[str, Any]:
    """Everything that a catalog can be asked, the ledger included."""
    streams = catalog.streams(totals=True)
    names = [stream.stream for stream in streams]
    return {
        "volumes": catalog.volumes(),
        "streams": streams,
        **{f"spans of {name}": catalog.spans(name) for name in names},
        **{f"bounds of {name}": catalog.bounds(name) for name in names},
        **{f"coverage of {name}": catalog.coverage(name, *(catalog.bounds(name) or (0, 0))) for name in names},
        "gaps": catalog.gaps(),
        "marks": catalog.marks(),
        **{str(kind): catalog.records(kind) for kind in RecordKind},
    }


def kept(site: Site) -> dict[str, Any]:
    """What the catalog that the recorder kept answers, and it alone: nothing is looked up on the targets."""
    with CatalogReader(site.state / CATALOG_FILE) as catalog:
        return answers(catalog)


def rebuilt(site: Site) -> dict[str, Any]:
    """What a catalog answers that is made from the targets alone."""
    core = ArchiveCore.configured(site.config())
    path = site.folder / "rebuilt.sqlite"
    try:
        outcome, strangers = rebuild(path, core.copies)
        assert outcome.complete
        assert strangers == []
        with CatalogReader(path) as catalog:
            return answers(catalog)
    finally:
        core.close()
        for file in site.folder.glob("rebuilt.sqlite*"):
            file.unlink()


def differing(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    """Answers that differ, in words."""
    return [f"{key}: {one.get(key)} / {two.get(key)}" for key in {*one, *two} if one.get(key) != two.get(key)]


def wait_for_catalog(site: Site, wanted: Callable[[CatalogReader], bool], timeout_s: float = 60.0) -> None:
    """Until the file answers so."""
    pause, end_s = threading.Event(), now_s() + timeout_s
    seen = "nothing"
    while now_s() < end_s:
        try:
            with CatalogReader(site.state / CATALOG_FILE) as catalog:
                if wanted(catalog):
                    return
                seen = f"refresh {catalog.needs_refresh}, {[(v.path, v.closed, v.stale) for v in catalog.volumes()]}"
        except CatalogError as error:
            seen = str(error)  # it is not there, or not made yet
        pause.wait(0.1)
    raise AssertionError(f"the catalog was not completed: {seen}")


def whole(catalog: CatalogReader) -> bool:
    """Whether it lacks nothing that it knows of."""
    return not catalog.needs_refresh and not any(volume.stale for volume in catalog.volumes())


def check(site: Site, promises: Iterable[Mapping[str, int]]) -> None:
    """After a recorder ended in order: all promises of all recorders before it are kept, on every target, and the rest is explained."""
    assert site.differences() == []
    for target in site.targets:
        footage = Footage.of(site.folder / target)
        assert [broken for promised in promises for broken in holds(footage, promised)] == []
        assert disorder(footage) == []
        assert footage.closed == footage.volumes
    assert misnamed(holes(footage), ledger(site), footage=footage) == []
    assert unexplained(site, footage) == []
    assert differing(kept(site), rebuilt(site)) == []


def live_on(site: Site, farm: Farm, promises: Iterable[Mapping[str, int]]) -> Footage:
    """A last recorder, left in peace: everything that dead ones promised is on all copies, in order, once, and the rest explained."""
    process = Process(site)
    try:
        with Watch(site, process) as watch:
            watch.wait_for(lambda status: synced(status) and recording(status))
            wait_for_catalog(site, whole)
            farm.stop_sending()
            drained(watch)
            status = process.end()
    finally:
        process.end(signal.SIGKILL)
    assert status == 0, process.errors
    check(site, [*promises, watch.durable_ns])
    return Footage.of(site.folder / site.targets[0])


# --- dying -----------------------------------------------------------------------------------------------------


class MarkingHost(Process):
    """A host that embeds the recorder and marks all the time; it prints a mark when the recorder says that it is durable."""

    @staticmethod
    def command(site: Site) -> list[str]:
        return [sys.executable, str(Path(__file__).with_name("marking_host.py")), str(site.file)]


def kill(process: Process, random: Random | None = None) -> str:
    """`kill -9` of the recorder; with `random`, by chance of its workers too, or of one of them first. Says what it did."""
    workers = process.workers()
    how = "recorder" if random is None else random.choice(("recorder", "recorder", "all", "worker first"))
    if how == "worker first" and workers and random is not None:
        _kill(random.choice(workers))
        threading.Event().wait(random.uniform(0.0, 0.1))
    process.process.kill()
    if how == "all":
        for pid in workers:
            _kill(pid)
    process.end(signal.SIGKILL)
    wait_gone(workers)
    return how


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def worker(pid: int) -> tuple[str, str]:
    """Kind and target of a worker process."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    kind, target = words[-5:-3]  # KIND ROOT GUARD PARENT_PID, and nothing behind the last NUL
    return kind, target


def wait_gone(pids: Iterable[int], timeout_s: float = 10.0) -> None:
    """Until none of these processes is there any more: workers end by themselves when their recorder is dead."""
    pause = threading.Event()
    waited_s = 0.0
    left = list(pids)
    while left := [pid for pid in left if alive(pid)]:
        if waited_s > timeout_s:
            raise AssertionError(f"workers {left} outlive their recorder")
        pause.wait(0.01)
        waited_s += 0.01


def alive(pid: int) -> bool:
    """Whether there is such a process, and it is not one that only waits to be reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
