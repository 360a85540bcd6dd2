"""What can be broken: one entry each in `SCENARIOS`, with what is done, what has to come of it, and on which kind of target.

Before a scenario, every camera is recorded and every target is in step, for a random while; after it the runner waits until
that is so again, and looks every frame up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from nvrstore.drills import acts
from nvrstore.drills.sandbox import Stage
from nvrstore.limits import LOOK_S, TICK_S

PLAIN: Final = ("plain",)
FUSE: Final = ("fuse", "plain")
DISK: Final = ("disk", "plain")
ERROR_S: Final = TICK_S + 0.05  # a tick writes, or looks; what comes back with an error is believed at once
LOOK_FAILS_S: Final = LOOK_S + TICK_S  # what is written goes well, only a look can see it
HANG_S: Final = 1.3  # the deadline of the class ssd, and a tick
EXT4: Final = ("ext4", "plain")


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way to break things."""

    name: str
    what: str
    expect: str
    act: Callable[[Stage], None]
    kinds: Mapping[str, Sequence[str]] = field(default_factory=lambda: {"a": PLAIN, "b": PLAIN})
    journal: Mapping[str, Any] = field(default_factory=dict)
    child: bool = False  # the recorder needs a process of its own
    loses: tuple[str, ...] = ("a",)  # targets that have to be declared lost
    may_lose: tuple[str, ...] = ()  # those that may be, too; any other loss is a false alarm, and fails the run
    ttd_s: float | None = None  # promised: a target that is broken so is declared lost within this, at the median
    dies: bool = False  # the recording machine dies: what was not in a commit goes with it
    outage: bool = False  # no target is left for a while: the next commit can only come when one is back
    equal: bool = True  # copies are the same bytes at the end
    damages: tuple[str, ...] = ()  # targets on which damage has to be found
    root: bool = False  # also where its targets are plain directories

    @property
    def needs(self) -> str:
        """What it takes to have it for real."""
        kinds = sorted({wanted[0] for wanted in self.kinds.values()} - {"plain"})
        words = {
            "fuse": "root and /dev/fuse",
            "thin": "root, /dev/fuse and loop devices",
            **dict.fromkeys(("disk", "frail", "ext4"), "root and loop devices"),
        }
        simulated = all("plain" in wanted for wanted in self.kinds.values())
        if not kinds:
            return "root" if self.root else "-"
        return " and ".join(words[kind] for kind in kinds) + ("; simulated without" if simulated else "")


_SPARE: Final = {"a": FUSE, "b": FUSE, "c": PLAIN}
_A_FUSE: Final = {"a": FUSE, "b": PLAIN}

SCENARIOS: Final[Mapping[str, Scenario]] = {
    scenario.name: scenario
    for scenario in (
        Scenario("nothing", "nothing is broken: what the others are compared with", "no loss, no failover", acts.nothing, loses=()),
        Scenario(
            "io-error",
            "every call on a target fails with EIO",
            "lost at once; the other goes on; resync",
            acts.io_error,
            _A_FUSE,
            ttd_s=ERROR_S,
        ),
        Scenario(
            "hang", "no call on a target comes back, not even stat", "lost by its age; nobody else waits", acts.hang, _A_FUSE, ttd_s=HANG_S
        ),
        Scenario(
            "hang-stop",
            "the recorder has to stop while a target hangs",
            "it ends within 5 s, its process exits; late writes of stuck workers harm nothing",
            acts.hang_stop,
            {"a": ("fuse",), "b": PLAIN},
            child=True,
            ttd_s=HANG_S,
        ),
        Scenario(
            "sync-error-once",
            "one sync fails, once; everything before and after works",
            "nothing that this sync covered is believed; the tail is repaired from the other copy",
            acts.sync_error,
            _A_FUSE,
            ttd_s=ERROR_S,
        ),
        Scenario(
            "thin-pool",
            "a file system that has space lies on a medium that has none left",
            "lost as by any failed sync; retention deletes nothing for it; resync",
            acts.thin_pool,
            {"a": ("thin",), "b": PLAIN},
        ),
        Scenario(
            "read-only", "a file system turns read-only", "lost at once; resync", acts.read_only, {"a": EXT4, "b": PLAIN}, ttd_s=ERROR_S
        ),
        Scenario(
            "fill",
            "a target is full",
            "prepared volumes are written to their end; the oldest makes room, or the target is lost",
            acts.fill,
            {"a": DISK, "b": PLAIN},
            loses=(),
            may_lose=("a",),
            equal=False,
        ),
        Scenario(
            "vanish",
            "a target's directory is moved away",
            "its next look sees it; nothing is written in its place",
            acts.vanish,
            ttd_s=LOOK_FAILS_S,
        ),
        Scenario(
            "unmount",
            "another file system appears at a target's path",
            "its next look sees it; it is not written to",
            acts.unmount,
            root=True,
            ttd_s=LOOK_FAILS_S,
        ),
        Scenario("slow", "every write takes 0.3 s", "late, and not lost; nobody else is slower for it", acts.slow, loses=()),
        Scenario(
            "flap",
            "a target fails and returns, three times",
            "lost three times; each hold-down is longer",
            acts.flap,
            _A_FUSE,
            ttd_s=ERROR_S,
        ),
        Scenario(
            "corrupt",
            "a byte in a closed volume is changed",
            "a check finds it; every frame is whole on the other copy",
            acts.corrupt,
            journal={"volume_age_s": 1},
            loses=(),
            equal=False,
            damages=("a",),
        ),
        Scenario(
            "all",
            "every target fails",
            "memory, then the state disk, hold everything, and it is written back",
            acts.every_one,
            {"a": FUSE, "b": FUSE},
            loses=("a", "b"),
            outage=True,
            ttd_s=ERROR_S,
        ),
        Scenario(
            "all-but-spare",
            "both members fail, the spare lives",
            "the spare is recruited",
            acts.all_but_spare,
            _SPARE,
            loses=("a", "b"),
            ttd_s=ERROR_S,
        ),
        Scenario(
            "power-cut",
            "the machine loses power, recorder and targets",
            "what was in a commit is there; what was not is in the ledger",
            acts.power_cut,
            {"a": ("frail",), "b": ("frail",)},
            child=True,
            loses=(),
            may_lose=("a", "b"),  # between the cut and its own death the recorder may still say so
            dies=True,
        ),
        Scenario(
            "kill-recorder",
            "the recorder is killed with its workers",
            "what was in a commit is there; what was not is in the ledger; recording goes on at once",
            acts.kill_recorder,
            child=True,
            loses=(),
            may_lose=("a", "b"),  # its workers die first
            dies=True,
        ),
        Scenario(
            "kill-worker",
            "a worker process is killed",
            "another one is started; nothing is lost",
            acts.kill_worker,
            loses=(),
            may_lose=("a",),
        ),
        Scenario(
            "clock-step", "the wall clock steps by an hour, and back", "recording goes on; the step is recorded", acts.clock_step, loses=()
        ),
        Scenario(
            "during-resync",
            "a second failure, of either side, in the middle of a resync",
            "resync goes on where it was, both directions",
            acts.during_resync,
            {"a": FUSE, "b": FUSE},
            journal={"resync_bps": 400_000},
            ttd_s=ERROR_S,
        ),
        Scenario(
            "during-rollover",
            "a target fails just when the next volume is opened",
            "the volume is opened on the other; nothing is lost",
            acts.during_rollover,
            _A_FUSE,
            journal={"volume_age_s": 1},
        ),
    )
}
