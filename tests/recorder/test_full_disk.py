"""A small disk is filled again and again: recording never stops, the oldest goes, and the ledger says so."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.support import crash
from tests.support.crash import Footage, Watch
from tests.support.prove import note, proving
from tests.support.recorder import JOURNAL, Process, Site, small_farm

from nvrstore.drills.account import volumes_in
from nvrstore.drills.faults import LoopDisk
from nvrstore.farm import Farm
from nvrstore.journal.names import VolumeName, parse_volume_path
from nvrstore.limits import MIB
from nvrstore.model import Cause

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(400)]

DISK_BYTES = 300 * MIB
TIMES = 10 if proving() else 5
STREAMS, BITRATE_BPS = 8, 20_000_000  # a disk is full after twelve seconds
COMMIT_S_MAX = 5.0  # however busy the machine is: recording has not stopped


@pytest.fixture
def farm() -> Iterator[Farm]:
    with small_farm(STREAMS, bitrate_bps=BITRATE_BPS) as running:
        yield running


@pytest.fixture
def site(tmp_path: Path, farm: Farm) -> Iterator[Site]:
    with ExitStack() as stack:
        for target in ("a", "b"):
            stack.enter_context(LoopDisk.mounted("ext4", tmp_path / f"{target}.img", tmp_path / target, size_bytes=DISK_BYTES))
        yield Site(tmp_path, farm, journal={"keep": {"days": 30}})


def name_of(path: str) -> VolumeName:
    name = parse_volume_path(path)
    assert name is not None
    return name


def test_a_disk_that_is_filled_five_times_over_never_stops_the_recording(site: Site, farm: Farm) -> None:
    """Whole volumes go, the oldest first, on both targets alike; what went is in the ledger, what is left is whole."""
    process = Process(site)
    pause = threading.Event()
    longest_s = 0.0
    try:
        with Watch(site, process, poll_s=0.05) as watch:
            watch.wait_for(lambda status: crash.synced(status) and crash.recording(status))
            epoch = watch.status["journals"][0]["epoch"]
            first_ns = min(stream["durable_ns"] for stream in watch.status["streams"])
            commits, since_s, stored = 0, crash.now_s(), 0
            while stored < TIMES * DISK_BYTES:
                status, now_s = watch.status, crash.now_s()
                assert process.process.poll() is None, process.errors
                longest_s = max(longest_s, now_s - since_s)
                assert longest_s < COMMIT_S_MAX, f"nothing was committed for so long; {status}; {process.errors}"
                if status["journals"][0]["commits"] != commits:
                    commits, since_s = status["journals"][0]["commits"], now_s
                stored = sum(stream["stored_bytes"] for stream in status["streams"])
                pause.wait(0.02)
            sent = farm.stop_sending()
            crash.drained(watch)
            pruned = -1
            while pruned != watch.status["upkeep"]["pruned"]:  # until what is under way is done
                pruned = watch.status["upkeep"]["pruned"]
                pause.wait(1.5)
            assert process.end() == 0, process.errors
    finally:
        process.end(signal.SIGKILL)
    assert watch.status["journals"][0]["epoch"] == epoch, "nobody left the set"
    assert [event for event in process.events if event["event"] == "TargetLost"] == []
    gone = {t: [name_of(e["path"]) for e in process.events if e["event"] == "VolumePruned" and e["target"] == t] for t in site.targets}
    for target, names in gone.items():
        left = [name_of(str(path)) for path in volumes_in(site.folder / target, JOURNAL)]
        assert len(names) > TIMES * 10, "volumes are at most 1/32 of a disk"
        assert max(names) < min(left), f"on {target} something older stayed"
        if "pruning.postponed" not in process.errors:
            assert names == sorted(names)
    check_what_is_left(site, first_ns)
    footage = Footage.of(site.folder / "a")
    for frames in sent:
        assert footage.numbers(f"cam{frames.stream}")[-1] == frames.last
    note(
        "full-disk",
        times=TIMES,
        disk_bytes=DISK_BYTES,
        longest_s=round(longest_s, 2),
        pruned=pruned,
        frames_left=len(footage.numbers("cam0")),
    )


def check_what_is_left(site: Site, first_ns: int) -> None:
    """Both targets hold the same volumes, whole; one ledger entry per stream reaches from the beginning to what is left."""
    assert site.differences() == []
    gaps = crash.ledger(site)
    for target in site.targets:
        footage = Footage.of(site.folder / target)
        assert crash.disorder(footage) == []
        assert footage.closed == footage.volumes
        for stream, fragments in footage.fragments.items():
            gap = next(gap for gap in gaps if gap.stream == stream)
            assert gap.cause is Cause.STORAGE, "the policy wanted it for thirty days"
            assert gap.start_ns < first_ns
            assert gap.end_ns is not None
            assert abs(gap.end_ns - fragments[0].utc_ns) < 40_000_000, "it ends where what is left begins, to the frame"
        assert crash.unexplained(site, footage) == []
