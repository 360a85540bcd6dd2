"""What scenarios do: each breaks something on a `Stage`, waits as long as a person would, and heals.

Broken is what `Stage.fault` was told, at the moment it was told. A function returns when nothing is broken any more; it raises
DrillError when what it waited for did not happen. The runner then waits until every target is in step, and counts.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final

from nvrstore.drills import faults
from nvrstore.drills.faults import FaultError
from nvrstore.drills.places import Place
from nvrstore.drills.recording import InProcess, kill_process
from nvrstore.drills.sandbox import DrillError, Stage
from nvrstore.limits import ABANDONED_WORKERS_MAX

STOP_S_MAX: Final = 5.0
HOLD_S: Final = 1.0  # how long a fault stays after it was noticed


# --- one target


def _lose(stage: Stage, name: str, text: str, act: Callable[[Place], None]) -> float:
    """Break a target, wait until it is declared lost, and a little longer; the moment of the fault."""
    place = stage.places[name]
    fault_s = stage.fault(text, name)
    act(place)
    stage.wait_event("TargetLost", name, fault_s)
    stage.sleep(HOLD_S)
    return fault_s


def io_error(stage: Stage) -> None:
    _lose(stage, "a", "every call on a fails with EIO", lambda place: place.fail(errno.EIO))
    stage.places["a"].clear()
    stage.healed("a works again", "a")


def hang(stage: Stage) -> None:
    place = stage.places["a"]
    _lose(stage, "a", "no call on a comes back", Place.hang)
    stuck = _stuck(stage, "a")
    if not stuck:
        stage.problems.append("the workers that hang are not counted")
    if stuck > ABANDONED_WORKERS_MAX:
        stage.problems.append(f"{stuck} workers of a are stuck; {ABANDONED_WORKERS_MAX} may be")
    stage.note("note", f"{stuck} workers of a are stuck, and counted", "a")
    place.clear()
    stage.healed("a answers again", "a")
    stage.wait(lambda: not _stuck(stage, "a"), "stuck workers are replaced when the target answers again")


def _stuck(stage: Stage, name: str) -> int:
    status = stage.status() or {"journals": [{"targets": []}]}
    return sum(target["workers_stuck"] for target in status["journals"][0]["targets"] if target["target"] == name)


def sync_error(stage: Stage) -> None:
    _lose(stage, "a", "one sync on a fails, once", Place.fail_once_at_sync)
    stage.places["a"].clear()
    stage.healed("a works (it did all along, but for one sync)", "a")


def thin_pool(stage: Stage) -> None:
    place = stage.places["a"]
    _lose(stage, "a", "below the file system of a no space is left, and in it there is plenty", lambda place: place.fail(errno.ENOSPC))
    place.clear()
    stage.healed("there is space below a again", "a")


def read_only(stage: Stage) -> None:
    place = stage.places["a"]
    if place.kind == "disk" and place.disk is not None:
        disk = place.disk
        _lose(stage, "a", "the file system of a turns read-only", lambda _: disk.turn_read_only())
        place.remount()
    else:
        _lose(stage, "a", "a answers EROFS", lambda place: place.fail(errno.EROFS))
        place.clear()
    stage.healed("a can be written again", "a")


def fill(stage: Stage) -> None:
    place = stage.places["a"]
    if not place.own:
        stage.fault("a answers ENOSPC", "a")
        place.fail(errno.ENOSPC)
        stage.sleep(3 * HOLD_S)
        place.clear()
    else:
        stage.fault("no byte is left on a", "a")
        with faults.filled(place.path):
            stage.sleep(4 * HOLD_S)
    stage.healed("there is room on a again", "a")


def vanish(stage: Stage) -> None:
    place = stage.places["a"]
    stage.how = "the directory is moved away"
    with faults.moved_away(place.path):
        _lose(stage, "a", "the path of a leads to an empty directory", lambda _: None)
    stage.healed("a is back at its path", "a")


def unmount(stage: Stage) -> None:
    place = stage.places["a"]
    if os.geteuid() != 0:
        raise FaultError("mounting something over a target needs root")
    stage.how = "another file system is mounted over it"
    fault_s = stage.fault("another file system is mounted at the path of a", "a")
    cover = faults.covered(place.path)
    cover.__enter__()
    try:
        stage.wait_event("TargetLost", "a", fault_s)
        stage.sleep(HOLD_S)
        strangers = os.listdir(place.path)
    finally:
        cover.__exit__(None, None, None)
    if strangers:
        stage.problems.append(f"the wrong file system was written to: {strangers}")
    stage.healed("a is mounted again", "a")


def slow(stage: Stage) -> None:
    stage.fault("every write on a takes 0.3 s longer", "a")
    stage.places["a"].slow(0.3)
    stage.sleep(3 * HOLD_S)
    stage.places["a"].clear()
    stage.healed("a is as fast as before", "a")


def flap(stage: Stage) -> None:
    place = stage.places["a"]
    for turn in range(3):
        fault_s = stage.fault(f"a fails, for the {('first', 'second', 'third')[turn]} time", "a")
        place.fail(errno.EIO)
        stage.wait_event("TargetLost", "a", fault_s)
        place.clear()
        stage.healed("a works again", "a")
        if turn < 2:
            stage.wait_event("TargetJoined", "a", fault_s)


def corrupt(stage: Stage) -> None:
    place = stage.places["a"]
    stage.how = "bytes on the disk are changed"
    closed = stage.wait_event("VolumeClosed")
    path = place.stored / str(closed.event["path"])
    stage.fault("one byte in a closed volume on a is changed", "a")
    with path.open("r+b") as file:
        offset = path.stat().st_size // 2
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x10]))
    stage.sleep(HOLD_S)


# --- more than one


def every_one(stage: Stage) -> None:
    fault_s = stage.fault("every call on every target fails with EIO")
    for place in stage.places.values():
        place.fail(errno.EIO)
    for name in stage.places:
        stage.wait_event("TargetLost", name, fault_s)
    stage.sleep(3 * HOLD_S)  # past the moment at which the state disk takes over
    for place in stage.places.values():
        place.clear()
    stage.healed("all targets work again")


def all_but_spare(stage: Stage) -> None:
    fault_s = stage.fault("a and b fail with EIO; the spare lives")
    for name in ("a", "b"):
        stage.places[name].fail(errno.EIO)
    for name in ("a", "b"):
        stage.wait_event("TargetLost", name, fault_s)
    stage.sleep(2 * HOLD_S)
    for name in ("a", "b"):
        stage.places[name].clear()
    stage.healed("a and b work again")


def during_resync(stage: Stage) -> None:
    fault_s = _lose(stage, "a", "a fails with EIO", lambda place: place.fail(errno.EIO))
    stage.sleep(2 * HOLD_S)
    stage.places["a"].clear()
    stage.healed("a works again, and lacks what was recorded meanwhile", "a")
    stage.wait(lambda: _copies(stage), "resync of a begins")
    second = stage.drawn(["a", "b"])
    stage.notes.append(f"the second failure hit {'the target that is being copied to' if second == 'a' else 'the one that is copied from'}")
    stage.may_lose.add(second)
    fault_s = stage.fault(f"in the middle of the resync, {second} fails", second)
    stage.places[second].fail(errno.EIO)
    stage.wait_event("TargetLost", second, fault_s)
    stage.sleep(HOLD_S)
    stage.places[second].clear()
    stage.healed(f"{second} works again", second)


def _copies(stage: Stage) -> bool:
    """Resync is at a volume. Its pace in this scenario holds it there until somebody has looked."""
    status = stage.status()
    return status is not None and any(progress["bytes_total"] for progress in status["upkeep"]["resync"].values())


def during_rollover(stage: Stage) -> None:
    fault_s = stage.fault("a still takes batches, but no new volume can be opened there", "a")
    stage.places["a"].fail_opening()
    stage.wait_event("TargetLost", "a", fault_s)
    stage.sleep(HOLD_S)
    stage.places["a"].clear()
    stage.healed("a works again", "a")


# --- processes, machines, time


def kill_worker(stage: Stage) -> None:
    place = stage.places["a"]
    stage.how = "SIGKILL"
    kind = stage.drawn(["appender", "keeper"])
    stage.fault(f"the {kind} of a is killed", "a")
    for pid in stage.recording.worker_pids(place, kind):
        kill_process(pid)
    stage.sleep(2 * HOLD_S)


def kill_recorder(stage: Stage) -> None:
    stage.how = "SIGKILL"
    stage.fault("the recorder is killed, and its workers")
    stage.kill()
    stage.sleep(stage.random.uniform(0.0, HOLD_S))
    stage.healed("the recorder is started again")
    stage.start()


def power_cut(stage: Stage) -> None:
    if not all(place.disk for place in stage.places.values()):
        raise FaultError("a power cut needs root and loop devices")
    stage.fault("power is cut: the recorder dies, and what no target had synced is thrown away")
    for place in stage.places.values():
        if place.disk is not None:
            place.disk.shut_down()
    stage.kill()
    for place in stage.places.values():
        place.remount()
    stage.healed("power is back")
    stage.start()


def clock_step(stage: Stage) -> None:
    if not isinstance(stage.recording, InProcess):
        raise DrillError("a clock can be stepped only for a recorder in this process")
    stage.how = "the recorder's wall clock, through its clock interface"
    hour_s = stage.drawn([3600.0, -3600.0])
    stage.fault(f"the wall clock steps by {hour_s / 3600:+.0f} h")
    stage.recording.clock.step(hour_s)
    stage.sleep(2 * HOLD_S)
    stage.recording.clock.step(-hour_s)
    stage.healed("the wall clock steps back")


def hang_stop(stage: Stage) -> None:
    place = stage.places["a"]
    stuck = stage.recording.worker_pids(place, "")
    fault_s = stage.fault("no call on a comes back", "a")
    place.hang()
    stage.wait_event("TargetLost", "a", fault_s)
    stage.stop_farm()
    stage.note("note", "the recorder is told to stop while its workers hang")
    stage.stop()
    if stage.stop_s is not None and stage.stop_s > STOP_S_MAX:
        stage.problems.append(f"the recorder took {stage.stop_s:.1f} s to stop; {STOP_S_MAX:.0f} s are promised")
    alive = [pid for pid in stuck if os.path.exists(f"/proc/{pid}")]
    stage.notes.append(f"its process was gone after {stage.stop_s:.1f} s; {len(alive)} stuck workers outlived it")
    if not alive:
        stage.problems.append("no worker was stuck: the drill proves nothing")
    place.clear()
    stage.healed("a answers again; the stuck workers end", "a")
    stage.wait(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in alive), "stuck workers end after the thaw")
    stage.start()


def nothing(stage: Stage) -> None:
    stage.note("note", "nothing is broken")
    stage.sleep(2 * HOLD_S)
