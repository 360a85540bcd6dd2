"""What `record` shows on a terminal, and `status` in text: it fits, says what is wrong first, and hides nothing that counts."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType
from tests.support.recorder import Site, small_farm

from nvrstore import events
from nvrstore.cli.live import Screen, streams_view, summary, troubles
from nvrstore.cli.told import told
from nvrstore.model import Cause, Epoch, Gap, MemberRef, Role

NOW_NS = 1_795_000_000_000_000_000


def stream(id: str, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "stream": id,
        "name": id,
        "state": "recording",
        "reason": "",
        "hint": "",
        "codec": "h264",
        "width": 1920,
        "height": 1080,
        "fps": 25.0,
        "bitrate_bps": 4_000_000,
        "durable_age_s": 0.4,
        "stored_bytes": 123_456_789,
        "gap": None,
    }
    return {**values, **changes}


def dead(name: str, why: str = "rtsp://10.0.0.5/main: Connection refused") -> dict[str, Any]:
    gap = {"cause": "camera", "start_ns": NOW_NS - 90 * 10**9, "detail": why}
    return stream(name, state="waiting", reason=why, codec="", fps=0, bitrate_bps=0, durable_age_s=None, stored_bytes=0, gap=gap)


def target(name: str, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"target": name, "role": "primary", "state": "synced", "late": False, "reason": ""}
    sizes = {"latency_ms_p50": 1.2, "latency_ms_p99": 17.0, "free_bytes": 82_900_000_000, "total_bytes": 271_000_000_000}
    return {**values, **sizes, "workers_stuck": 0, "pinned_bytes": 0, **changes}


def copying(seconds_left: int | None, **changes: int) -> dict[str, Any]:
    """A resync of the journal, as `upkeep` says it."""
    progress = {"bytes_done": 1_500_000_000, "bytes_total": 6_000_000_000, **changes}
    return {"resync": {"main": {**progress, "seconds_left": seconds_left}}}


def status(streams: list[dict[str, Any]], targets: list[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    journal = {
        "journal": "main",
        "epoch": "1.3",
        "copies": 2,
        "wanted": 2,
        "refuge": False,
        "targets": targets or [target("a"), target("b")],
    }
    values = {"recorder": "nvr-1", "utc_ns": NOW_NS, "streams": streams, "journals": [journal], "alarms": [], "upkeep": {"resync": {}}}
    return {**values, "buffer": {"bytes": 4096, "bytes_max": 537_000_000}, **changes}


def lines(what: RenderableType, width: int) -> list[str]:
    """As a terminal of that width shows it."""
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(what)
    return out.getvalue().splitlines()


SCENES: dict[str, Callable[[], dict[str, Any]]] = {
    "two": lambda: status([stream("gate"), stream("yard")]),
    "none": lambda: status([]),
    "many": lambda: status([stream(f"cam{i}") for i in range(300)]),
    "many of them dead": lambda: status([dead(f"cam{i}") if i % 3 else stream(f"cam{i}") for i in range(100)]),
    "long names": lambda: status([stream(f"camera-number-{i}-of-the-northern-parking-lot" * 2, name="Nordtor " * 9) for i in range(9)]),
    "wide names": lambda: status([stream(f"cam{i}", name="北門停車場カメラ" * 5) for i in range(5)]),
    "long reasons": lambda: status([dead("gate", "no " * 90)], [target("array-a", state="away", reason="gone " * 50), target("b")]),
    "many targets": lambda: status([stream("gate")], [target(f"a-target-with-a-long-name-{i}") for i in range(8)]),
    "resync": lambda: status([stream("gate")], [target("a"), target("b", role="standby", state="live")], upkeep=copying(750)),
    "stuck": lambda: status(
        [stream("gate")], [target("a", state="away", reason="hangs", workers_stuck=2, pinned_bytes=4 << 20), target("b")]
    ),
    "alarms": lambda: status([stream("gate")], alarms=[{"what": "catalog", "sentence": "cannot be written " * 9, "utc_ns": 1}]),
}


@pytest.mark.parametrize("width", [40, 80, 120, 250])
@pytest.mark.parametrize("scene", SCENES)
def test_the_view_fits_into_every_terminal(scene: str, width: int) -> None:
    """No line is longer than the terminal is wide, and no terminal of usual height has to scroll."""
    height = 30
    screen = Screen()
    for i in range(9):
        screen.note(events.Alarm(utc_ns=NOW_NS + i, what="upkeep", sentence="something failed " * i))
    shown = lines(screen.view(SCENES[scene](), width, height), width)
    assert max(map(cell_len, shown)) <= width
    assert len(shown) <= height
    assert "streams recording" in " ".join(shown)
    assert shown[-1].strip() == ""  # where the cursor stands


def test_what_matters_least_leaves_first() -> None:
    """On a narrow terminal names are still read, and the state and the age of what is durable still stand beside them."""
    scene = status([stream("gate-of-the-northern-parking-lot"), dead("yard")])
    wide, usual, narrow = (lines(streams_view(scene, width), width) for width in (200, 90, 60))
    assert wide[0].split() == ["stream", "state", "codec", "fps", "bitrate", "durable", "stored", "gap"]
    assert usual[0].split() == ["stream", "state", "codec", "durable", "gap"]
    assert narrow[0].split() == ["stream", "state", "durable", "gap"]
    assert "gate-of-the-northern-p" in usual[2]
    assert "gate-of-the" in narrow[2]
    assert "0.4 s ago" in narrow[2]


def test_trouble_comes_first_and_the_rest_is_counted() -> None:
    """With hundreds of cameras the dead one is on the screen."""
    scene = status([*(stream(f"cam{i}") for i in range(80)), dead("yard"), dead("gate")])
    shown = lines(streams_view(scene, 100, 10), 100)
    assert [line.split()[0] for line in shown[1:4]] == ["yard", "gate", "cam0"]
    assert shown[-1] == "... and 73 more"
    assert len(shown) == 11
    assert lines(streams_view(scene, 100, 2), 100)[-1] == "... and 81 more, 1 of them not recording"
    assert len(lines(streams_view(scene, 100), 100)) == 83
    assert any("camera 1 min 30 s" in line for line in shown)


def test_every_trouble_has_a_sentence_of_its_own() -> None:
    """Alarms, targets, streams; each once, and no login in any of them."""
    scene = status(
        [dead("gate"), stream("yard", reason="rtsp://admin:hunter2@10.0.0.5/: connecting"), stream("sane")],
        [target("a", state="away", reason="Input/output error"), target("b")],
        alarms=[{"what": "control", "sentence": "no control socket", "utc_ns": 1}],
    )
    assert troubles(scene) == [
        "ALARM, control: no control socket",
        "target a: Input/output error",
        "gate: camera: rtsp://10.0.0.5/main: Connection refused",
        "yard: rtsp://***@10.0.0.5/: connecting",
    ]
    scene["journals"][0]["refuge"] = True
    assert "NO TARGET LIVES" in summary(scene)


@pytest.mark.parametrize(("seconds_left", "left"), [(None, ""), (0, ", 0 s left"), (119, ", 119 s left"), (750, ", 12 min left")])
def test_a_resync_shows_how_far_it_is_and_how_long_it_takes(seconds_left: int | None, left: str) -> None:
    """On the first line of the view; the target that is copied to stands in the table as live, and none is in trouble."""
    scene = status([stream("gate")], [target("a"), target("b", role="standby", state="live")], upkeep=copying(seconds_left))
    shown = lines(Screen().view(scene, 160, 30), 160)
    assert shown[0].rstrip().endswith(f"; resync of main: 1.5 GB of 6 GB{left}")
    assert [line.split()[4] for line in shown if line.startswith("b ")] == ["live"]
    assert troubles(scene) == []
    assert "resync" not in lines(Screen().view(status([stream("gate")]), 160, 30), 160)[0], "none in progress, none shown"


@pytest.mark.parametrize(
    ("count", "pinned_bytes", "sentence"),
    [
        (1, 0, "target a: 1 worker is stuck in the kernel"),
        (2, 4_200_000, "target a: 2 workers are stuck in the kernel, with 4.2 MB of the buffer"),
    ],
)
def test_workers_that_are_stuck_and_what_they_hold_are_shown(count: int, pinned_bytes: int, sentence: str) -> None:
    """Beside the target's state, and as a sentence; also where it has returned, and all else is well."""
    scene = status([stream("gate")], [target("a", workers_stuck=count, pinned_bytes=pinned_bytes), target("b")])
    shown = lines(Screen().view(scene, 120, 30), 120)
    assert [f"synced, {count} stuck" in line for line in shown if line.startswith(("a ", "b "))] == [True, False]
    assert sentence in [line.rstrip() for line in shown]


def test_events_are_told_in_sentences() -> None:
    """When, what, why; what stands elsewhere on the screen is not told."""
    changed: dict[str, Any] = {"utc_ns": NOW_NS, "journal": "main", "target": "a"}
    gap = Gap("g", "gate", Cause.NETWORK, NOW_NS, None, "rtsp://u:hunter2@h/ is away")
    member = MemberRef("b", "0" * 32, Role.PRIMARY)
    happened: list[tuple[events.Event, str]] = [
        (events.TargetLost(**changed, before="synced", after="away", reason="EIO"), "target a is lost: EIO"),
        (events.TargetJoined(**changed, before="joining", after="live"), "target a takes new footage"),
        (events.TargetSynced(**changed, before="live", after="synced"), "target a lacks nothing"),
        (events.TargetChanged(**changed, before="live", after="drained"), "target a is drained"),
        (
            events.SetChanged(utc_ns=NOW_NS, journal="main", epoch=Epoch(1, 2), members=(member,), wanted=2),
            "main 1.2 on b: fewer than the 2",
        ),
        (events.FailedOver(**changed, reason="EIO", ttr_s=0.2), "main goes on without a: next commit 200 ms after the loss"),
        (events.GapOpened(utc_ns=NOW_NS, gap=gap), "gate: nothing is stored since 11:06:40Z, network: rtsp://***@h/ is away"),
        (events.EventsDropped(utc_ns=NOW_NS, count=7), "7 events are not shown"),
    ]
    for event, sentence in happened:
        assert told(event).startswith(f"11:06:40Z {sentence}"), told(event)
    untold: list[events.Event] = [
        events.TargetChanged(**changed, before="away", after="hold-down"),
        events.StreamChanged(utc_ns=NOW_NS, stream="gate", state="recording"),
        events.ResyncProgress(**changed, done_bytes=1, total_bytes=2),
    ]
    for event in untold:
        assert told(event) == ""


@pytest.mark.slow
def test_a_terminal_shows_the_view_and_ends_in_order(tmp_path: Path) -> None:
    """`nvrstore record` on a pseudo-terminal of 80 columns; Ctrl-C ends it."""
    with small_farm(2) as farm:
        site = Site(tmp_path, farm)
        leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        command = [sys.executable, "-m", "nvrstore", "record", str(site.file)]
        with subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env={**os.environ, "TERM": "xterm"}) as process:
            os.close(follower)
            try:
                seen = read_until(leader, lambda text: "2 of 2 streams recording" in text and "lacks nothing" in text)
                process.send_signal(signal.SIGINT)
                seen += read_until(leader, lambda text: "stopped in order" in text)
                assert process.wait(30) == 0
            finally:
                process.kill()
                os.close(leader)
    assert "cam1" in seen
    assert "primary" in seen
    assert "Traceback" not in seen
    assert site.differences() == []


def read_until(fd: int, wanted: Callable[[str], bool]) -> str:
    text = ""
    while not wanted(text):
        if not select.select([fd], [], [], 60.0)[0]:
            raise AssertionError(f"it never came: {text[-2000:]}")
        text += os.read(fd, 65_536).decode(errors="replace")
    return text
