"""The wall clock is wrong, or is put right: recording goes on, nothing is deleted for it, and footage is found at the time that was shown.

Time that decides is monotonic; what is stored is what the wall clock said. The drill clock-step does an hour, forth and back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import av
import pytest
from tests.support import crash
from tests.support.recorder import JOURNAL, Site, small_farm

from nvrstore.archive import Archive
from nvrstore.catalog.store import CATALOG_FILE
from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.drills.account import volumes_in
from nvrstore.drills.recording import InProcess
from nvrstore.journal.names import VolumeName, parse_volume_path
from nvrstore.model import NS_PER_S

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

STRETCH_S: Final = 1.0  # recorded under each time
WAIT_S: Final = 30.0


def wait(holds: Callable[[], object]) -> None:
    deadline_s, pause = SYSTEM_CLOCK.monotonic_s() + WAIT_S, threading.Event()
    while not holds():
        assert SYSTEM_CLOCK.monotonic_s() < deadline_s, "it did not happen"
        pause.wait(0.05)


def recorded_on(recording: InProcess, since_s: float, commits: int) -> bool:
    """Whether it has gone on for a while since then."""
    return SYSTEM_CLOCK.monotonic_s() - since_s > STRETCH_S and recording.core.status()["journals"][0]["commits"] > commits + 2


def record_under(site: Site, moves: list[Callable[[int], float]], *, alarmed: str = "") -> tuple[list[tuple[int, int]], int]:
    """Record, move the clock (its UTC in ns -> seconds to step by), record on: from when until when, and how much was pruned.

    `alarmed`: a word of the one alarm that is waited for; empty: there is none.
    """
    recording = InProcess(site.config(), {})
    clock, stretches = recording.clock, []
    try:
        for move in [lambda _: 0.0, *moves]:
            before_ns = clock.utc_ns()
            by_s = move(before_ns)
            clock.step(by_s)
            began_ns, began_s = before_ns + round(by_s * NS_PER_S), SYSTEM_CLOCK.monotonic_s()
            wait(partial(recorded_on, recording, began_s, recording.core.status()["journals"][0]["commits"]))
            stretches.append((began_ns, clock.utc_ns()))
        sent = site.farm.stop_sending()
        threading.Event().wait(1.0)
        wait(lambda: {target["state"] for target in recording.core.status()["journals"][0]["targets"]} == {"synced"})
        status = recording.core.status()
        if alarmed:
            wait(lambda: any(heard.name == "Alarm" for heard in recording.events))
    finally:
        recording.stop()
    assert site.lost(sent) == {}
    assert site.account().damage == ()
    assert site.differences() == []
    assert [heard.event for heard in recording.events if heard.name == "TargetLost"] == []
    assert [alarmed in str(heard.event) for heard in recording.events if heard.name == "Alarm"] == [True] * bool(alarmed)
    return stretches, status["upkeep"]["pruned"]


def found(site: Site, start_ns: int, end_ns: int) -> list[int]:
    """How much of each stream the archive finds in a stretch, in ns."""

    async def ask() -> list[int]:
        async with Archive(site.config()) as archive:
            spans = [await archive.spans(f"cam{i}", start_ns, end_ns) for i in range(site.farm.config.streams)]
        return [sum(min(span.end_ns, end_ns) - max(span.start_ns, start_ns) for span in of) for of in spans]

    return anyio.run(ask)


def check_what_is_stored(site: Site, stretches: list[tuple[int, int]]) -> list[VolumeName]:
    """Every stretch is found, with the catalog and from the targets alone; every volume opens. The volumes, in the order of making."""
    for with_catalog in (True, False):
        for start_ns, end_ns in stretches[1:]:
            for length_ns in found(site, start_ns, end_ns):
                assert length_ns > (end_ns - start_ns) * 0.7, f"{(end_ns - start_ns) / NS_PER_S} s were recorded, catalog: {with_catalog}"
        (site.state / CATALOG_FILE).unlink(missing_ok=True)
    volumes = volumes_in(site.folder / "a", JOURNAL)
    names = []
    for path in volumes:
        file = site.folder / "a" / path
        stored = sum(entry.samples for batch in crash.scan_bytes(memoryview(file.read_bytes())).batches for entry in batch.entries)
        with av.open(str(file)) as volume:
            assert sum(packet.size > 0 for packet in volume.demux()) == stored, path
        name = parse_volume_path(str(path))
        assert name is not None
        names.append(name)
    return sorted(names)


def test_a_clock_that_is_put_back_deletes_and_reorders_nothing(tmp_path: Path) -> None:
    """A leap second, an hour, a day; with a policy that keeps a day."""
    with small_farm(2) as farm:
        site = Site(tmp_path, farm, journal={"volume_age_s": 1, "keep": {"days": 1}})
        stretches, pruned = record_under(site, [lambda _: -1.0, lambda _: -3600.0, lambda _: -86_400.0])
    assert pruned == 0
    names = check_what_is_stored(site, stretches)
    assert [name.number for name in names] == list(range(len(names))), "their order is that of their numbers, whatever the clock said"
    assert len({name.day for name in names}) >= 2


def test_a_clock_that_leaps_years_ahead_deletes_nothing_before_somebody_could_look(tmp_path: Path) -> None:
    """By the new clock all that was recorded before is far too old."""
    with small_farm(2) as farm:
        site = Site(tmp_path, farm, journal={"volume_age_s": 1, "keep": {"days": 30}})
        stretches, pruned = record_under(site, [lambda _: 3650 * 86_400.0], alarmed="for its age")
    assert pruned == 0
    check_what_is_stored(site, stretches)


def test_the_years_2038_and_2106_are_times_like_any_other(tmp_path: Path) -> None:
    """2^31 and 2^32 seconds go by while cameras are recorded: no field of 32 bits holds the time of day."""

    def just_before(moment_s: int) -> Callable[[int], float]:
        return lambda now_ns: moment_s - 0.5 - now_ns / NS_PER_S

    with small_farm(2) as farm:
        site = Site(tmp_path, farm, journal={"volume_age_s": 1})
        stretches, _ = record_under(site, [just_before(1 << 31), just_before(1 << 32)])
    crossed = zip((31, 32), stretches[1:], strict=True)
    assert [start_ns < (1 << bits) * NS_PER_S < end_ns for bits, (start_ns, end_ns) in crossed] == [True, True]
    names = check_what_is_stored(site, stretches)
    assert [name.number for name in names] == list(range(len(names)))
    assert [name.path for name in names] == sorted(name.path for name in names), "listed by name they are in order too"
    assert {"2038-01-19", "2106-02-07"} < {name.day for name in names}
