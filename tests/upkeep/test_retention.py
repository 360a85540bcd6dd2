"""What goes when: plans of retention, and what a year of them does to a mirror."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvrstore.journal.names import VolumeName
from nvrstore.model import NS_PER_S, Cause
from nvrstore.replicate.floor import JOURNAL, Floor, expired
from nvrstore.upkeep.pruning import first_room
from nvrstore.upkeep.retention import (
    Keep,
    Plan,
    Reason,
    Space,
    Span,
    StoredCopy,
    StoredVolume,
    ledger_entries,
    plan_retention,
)

DAY_NS = 86_400 * NS_PER_S
NOW_NS = 20_000 * DAY_NS
SIZE = 10


def name(number: int, *, term: int = 1, journal: str = "main", tag: str = "9f2c41aa", lane: int = 0) -> VolumeName:
    path = f"{journal}/2026-11-23/07-45-10Z.t{term:04d}-{tag}.l{lane}.v{number:06d}.mp4"
    return VolumeName(path, journal, "2026-11-23", "07-45-10", term, tag, lane, number)


def volume(
    number: int, targets: str, *, age_days: float = 1, open: bool = False, journal: str = "main", unverified: str = "", stream: str = "gate"
) -> StoredVolume:
    end_ns = NOW_NS - int(age_days * DAY_NS)
    copies = tuple(StoredCopy(t, SIZE, verified=t not in unverified) for t in targets)
    spans = (Span(stream, end_ns - DAY_NS, end_ns),)
    return StoredVolume(f"{journal}{number}", name(number, journal=journal), end_ns, copies, open, spans)


def gone(plan: Plan) -> list[tuple[str, int, Reason]]:
    return [(r.target, r.volume.name.number, r.reason) for r in plan.removals]


FULL = {"a": Space(1000, 0), "b": Space(1000, 0)}
ROOMY = {"a": Space(1000, 900), "b": Space(1000, 900)}


def test_nothing_goes_while_the_policy_is_kept_and_there_is_room() -> None:
    """No bound, no removal."""
    volumes = [volume(i, "ab", age_days=30 - i) for i in range(20)]
    plan = plan_retention(volumes, ROOMY, {"main": Keep(age_ns=31 * DAY_NS, free_share=0.05)}, now_ns=NOW_NS)
    assert plan == Plan((), {}, {})


def test_what_is_older_than_the_policy_goes_everywhere_and_stays_away() -> None:
    """Past its age, a volume goes on every target that answers, and the journal's floor rises above it."""
    volumes = [volume(0, "abc", age_days=30.9), volume(1, "ab", age_days=30.5), volume(2, "ab", age_days=29.5), volume(3, "ab", age_days=0)]
    plan = plan_retention(volumes, ROOMY, {"main": Keep(age_ns=30 * DAY_NS)}, now_ns=NOW_NS)
    assert gone(plan) == [(t, n, Reason.EXPIRED) for n in (0, 1) for t in "ab"]
    assert [r.last for r in plan.removals] == [False, False, False, True], "volume 0 lies on c too, which does not answer"
    floor = plan.floors[("main", JOURNAL)]
    assert floor.covers(name(1))
    assert not floor.covers(name(2))
    assert [(g.stream, g.cause) for g in ledger_entries(plan.removals)] == [("gate", Cause.POLICY)]


def test_a_clock_that_starts_in_a_wrong_year_deletes_nothing() -> None:
    """Age counts from the newest footage, plus one day at most."""
    volumes = [volume(i, "a", age_days=10 - i) for i in range(10)]
    plan = plan_retention(volumes, ROOMY, {"main": Keep(age_ns=20 * DAY_NS)}, now_ns=NOW_NS + 30_000 * DAY_NS)
    assert plan.removals == ()


def test_what_is_overdue_by_more_than_a_day_waits_and_keeps_its_order() -> None:
    """The clock leapt ahead by years, or the recorder was off for long: nobody can tell, so somebody has to look."""
    volumes = [volume(0, "ab", age_days=40), volume(1, "ab", age_days=30.5), volume(2, "ab", age_days=0)]
    keep = {"main": Keep(age_ns=30 * DAY_NS), "other": Keep(age_ns=DAY_NS)}
    plan = plan_retention(volumes, ROOMY, keep, now_ns=NOW_NS)
    assert plan.removals == (), "nothing newer goes in front of it either"
    assert plan.floors == {}
    assert plan.overdue == {"main": 10 * DAY_NS}
    ripe = plan_retention(volumes, ROOMY, keep, now_ns=NOW_NS, ripe={"main"})
    assert gone(ripe) == [(t, n, Reason.EXPIRED) for n in (0, 1) for t in "ab"]
    full = plan_retention(volumes, {"a": Space(1000, 0), "b": Space(1000, 0)}, keep, now_ns=NOW_NS, room={"a": 1, "b": 1})
    assert gone(full) == [(t, 0, Reason.OVERWRITTEN) for t in "ab"], "recording never waits"
    assert {r.cause for r in full.removals} == {Cause.STORAGE}, "its age is in doubt; that the disk was full is not"


def test_the_window_of_a_standby_waits_too() -> None:
    """Or a clock that leapt ahead would leave one copy of the history."""
    volumes = [volume(0, "ab", age_days=20), volume(1, "ab", age_days=0)]
    keep, window = {"main": Keep(age_ns=3650 * DAY_NS)}, {("main", "b"): Keep(age_ns=7 * DAY_NS)}
    plan = plan_retention(volumes, ROOMY, keep, now_ns=NOW_NS, keep_at=window)
    assert (plan.removals, plan.overdue) == ((), {"main": 13 * DAY_NS})
    ripe = plan_retention(volumes, ROOMY, keep, now_ns=NOW_NS, keep_at=window, ripe={"main"})
    assert gone(ripe) == [("b", 0, Reason.EXPIRED)]


def test_what_had_expired_while_its_target_was_away_does_not_wait() -> None:
    """It was decided when it was due: the floor says so."""
    volumes = [volume(0, "a", age_days=40), volume(1, "ab", age_days=0)]
    floors = {("main", JOURNAL): Floor().raised([name(0)])}
    plan = plan_retention(volumes, ROOMY, {"main": Keep(age_ns=30 * DAY_NS)}, now_ns=NOW_NS, floors=floors)
    assert gone(plan) == [("a", 0, Reason.EXPIRED)]
    assert plan.overdue == {}


def test_bytes_beyond_the_bound_go_oldest_first_on_each_target() -> None:
    """The open volume counts, but does not go."""
    volumes = [volume(i, "ab" if i < 4 else "a", open=i == 5) for i in range(6)]
    plan = plan_retention(volumes, ROOMY, {"main": Keep(bytes_max=3 * SIZE)}, now_ns=NOW_NS)
    assert gone(plan) == [("a", 0, Reason.EXPIRED), ("a", 1, Reason.EXPIRED), ("a", 2, Reason.EXPIRED), ("b", 0, Reason.EXPIRED)]
    assert plan.floors[("main", "b")] == Floor({"t0001-9f2c41aa.l0": 0})


MINUTE_NS = 60 * NS_PER_S


def lane_volume(lane: int, number: int, minute: float, *, term: int = 1, size: int = SIZE, targets: str = "a") -> StoredVolume:
    """Of a lane; it ends at `minute`."""
    named = name(number, lane=lane, term=term)
    return StoredVolume(f"t{term}l{lane}v{number}", named, NOW_NS + int(minute * MINUTE_NS), tuple(StoredCopy(t, size) for t in targets))


def two_lanes(*, term: int = 1, hours: int = 10, from_hour: int = 0) -> list[StoredVolume]:
    """The same hours twice: lane 0 is cut every minute (a camera of it flaps), lane 1 every hour."""
    start = 60 * from_hour
    fast = [lane_volume(0, i, start + i + 1, term=term) for i in range(60 * hours)]
    slow = [lane_volume(1, i, start + 60 * (i + 1), term=term) for i in range(hours)]
    return [*slow, *fast]


@pytest.mark.parametrize(
    "keep",
    [Keep(age_ns=90 * DAY_NS, free_bytes=200 * SIZE), Keep(bytes_max=410 * SIZE)],
    ids=["overwritten", "expired by bytes"],
)
def test_a_lane_that_is_cut_rarely_loses_no_newer_footage_than_the_others(keep: Keep) -> None:
    """Numbers count per lane: what goes is the oldest by time, and no floor rises above what stays."""
    volumes = two_lanes()
    plan = plan_retention(volumes, {"a": Space(610 * SIZE, 0)}, {"main": keep}, now_ns=NOW_NS + 600 * MINUTE_NS)
    went = {r.volume.volume_id for r in plan.removals}
    assert len(went) == 200
    oldest = sorted(volumes, key=lambda v: (v.end_ns, v.name))
    assert went == {v.volume_id for v in oldest[:200]}, "three hours of both lanes"
    floors = {place: floor for (_, place), floor in plan.floors.items()}
    assert {v.volume_id for v in volumes if expired(v.name, floors, "a")} == went, (
        "nothing that stays has expired, nothing that went has not"
    )


def test_first_room_takes_the_oldest_of_all_lanes() -> None:
    """Where not even the ledger's entry can be written, too."""
    plan = plan_retention(two_lanes(), {"a": Space(610 * SIZE, 0)}, {"main": Keep(free_bytes=200 * SIZE)}, now_ns=NOW_NS + 600 * MINUTE_NS)
    chosen = first_room(plan.removals, {"a": 61 * SIZE})
    assert [r.volume.name.lane for r in chosen].count(1) == 1, "an hour of lane 1 for sixty minutes of lane 0"
    assert max(r.volume.end_ns for r in chosen) == NOW_NS + 60 * MINUTE_NS


def test_a_clock_that_was_ahead_keeps_a_lane_in_order_and_is_corrected_by_what_came_later() -> None:
    """Lane 0 wrote ten volumes years ahead: they count as old as what lane 0 wrote next."""
    fast = [lane_volume(0, i, 10**6 if 20 <= i < 30 else i + 1) for i in range(60)]
    slow = [lane_volume(1, i, 12 * (i + 1)) for i in range(5)]
    plan = plan_retention([*slow, *fast], {"a": Space(65 * SIZE, 0)}, {"main": Keep(free_bytes=34 * SIZE)}, now_ns=NOW_NS + 60 * MINUTE_NS)
    assert sorted((r.volume.name.lane, r.volume.name.number) for r in plan.removals) == [*((0, n) for n in range(32)), (1, 0), (1, 1)]


def test_a_term_goes_after_the_one_before_it_whatever_its_clock_said() -> None:
    """A recorder that started in 1970 after a power cut wrote the newest footage all the same."""
    volumes = [*two_lanes(hours=2), *two_lanes(term=2, hours=2, from_hour=-200_000)]
    plan = plan_retention(volumes, {"a": Space(244 * SIZE, 0)}, {"main": Keep(free_bytes=122 * SIZE)}, now_ns=NOW_NS)
    assert {r.volume.name.term for r in plan.removals} == {1}
    assert len(plan.removals) == 122


def test_a_small_disk_gives_up_what_a_roomy_one_keeps() -> None:
    """Copied elsewhere and verified goes before the oldest single copy; floors keep resync from bringing it back."""
    spaces = {"a": Space(100, 0), "b": Space(1000, 900)}
    volumes = [
        volume(0, "a"),
        volume(1, "ab", unverified="b"),
        volume(2, "ab"),
        volume(3, "ab"),
        volume(4, "ab"),
        volume(5, "ab", open=True),
    ]
    plan = plan_retention(volumes, spaces, {"main": Keep(age_ns=90 * DAY_NS, free_bytes=20)}, now_ns=NOW_NS)
    assert gone(plan) == [("a", 2, Reason.REDUNDANT), ("a", 3, Reason.REDUNDANT)]
    assert not any(r.last for r in plan.removals)
    assert ledger_entries(plan.removals) == []
    assert expired(name(3), {"a": plan.floors[("main", "a")]}, "a")
    assert not expired(name(3), {"a": plan.floors[("main", "a")]}, "b")


def test_what_a_wanted_member_lacks_does_not_count_as_copied() -> None:
    """An interval that is not yet in sync goes only as the last resort, in the order of age."""
    spaces = {"a": Space(100, 0), "b": Space(1000, 900)}
    volumes = [volume(0, "ab"), volume(1, "ab"), volume(2, "ab")]
    plan = plan_retention(volumes, spaces, {"main": Keep(free_bytes=10)}, now_ns=NOW_NS, unsynced={"main0", "main1"})
    assert gone(plan) == [("a", 2, Reason.REDUNDANT)]
    plan = plan_retention(volumes, spaces, {"main": Keep(free_bytes=20)}, now_ns=NOW_NS, unsynced={"main0", "main1"})
    assert gone(plan) == [("a", 2, Reason.REDUNDANT), ("a", 0, Reason.OVERWRITTEN)]


@pytest.mark.parametrize(("age_ns", "cause"), [(90 * DAY_NS, Cause.STORAGE), (None, Cause.POLICY)])
def test_a_full_disk_overwrites_the_oldest_and_says_so(age_ns: int | None, cause: Cause) -> None:
    """Last copies go with a ledger entry: against the policy where it names an age, as it says where it does not."""
    volumes = [volume(0, "a"), volume(1, "a"), volume(2, "a"), volume(3, "a", open=True)]
    plan = plan_retention(volumes, {"a": Space(1000, 0)}, {"main": Keep(age_ns=age_ns, free_bytes=SIZE + 1)}, now_ns=NOW_NS)
    assert gone(plan) == [("a", 0, Reason.OVERWRITTEN), ("a", 1, Reason.OVERWRITTEN)]
    [gap] = ledger_entries(plan.removals)
    assert (gap.cause, gap.stream, gap.start_ns, gap.end_ns) == (cause, "gate", volumes[0].spans[0].start_ns, volumes[1].end_ns)


def test_the_ledger_grows_by_one_entry_per_stream_not_per_volume() -> None:
    """The gap of an earlier plan is extended under its own id."""
    keep = {"main": Keep(free_bytes=SIZE)}
    first = ledger_entries(plan_retention([volume(0, "a", age_days=9)], {"a": Space(100, 0)}, keep, now_ns=NOW_NS).removals)
    second = plan_retention([volume(1, "a", age_days=8)], {"a": Space(100, 0)}, keep, now_ns=NOW_NS).removals
    [gap] = ledger_entries(second, {g.id: g for g in first})
    assert gap.id == first[0].id
    assert (gap.start_ns, gap.end_ns) == (first[0].start_ns, NOW_NS - 8 * DAY_NS)


def test_the_open_volume_and_held_footage_never_go() -> None:
    """What stays missing is said, and nothing is done about it."""
    volumes = [volume(0, "a", age_days=50), volume(1, "a", age_days=3, open=True), volume(2, "a", age_days=60, stream="yard")]
    hold = Span("gate", NOW_NS - 51 * DAY_NS, NOW_NS - 50 * DAY_NS - 1)
    policy = {"main": Keep(age_ns=DAY_NS, bytes_max=0, free_bytes=50)}
    plan = plan_retention(volumes, {"a": Space(100, 0)}, policy, now_ns=NOW_NS, holds=[hold])
    assert gone(plan) == [("a", 2, Reason.EXPIRED)]
    assert plan.short == {"a": 40}


def test_a_standby_with_a_window_keeps_what_only_it_has() -> None:
    """Outside its window a copy goes from the standby only while the journal proper is kept in full elsewhere."""
    volumes = [volume(0, "s", age_days=9), volume(1, "as", age_days=8), volume(2, "as", age_days=3), volume(3, "cs", age_days=7)]
    spaces = {"a": Space(1000, 0), "s": Space(1000, 500)}
    window = {("main", "s"): Keep(age_ns=5 * DAY_NS)}
    plan = plan_retention(volumes, spaces, {"main": Keep(age_ns=90 * DAY_NS)}, now_ns=NOW_NS, keep_at=window)
    assert gone(plan) == [("s", 1, Reason.EXPIRED)]
    assert set(plan.floors) == {("main", "s")}
    assert plan_retention(volumes, spaces, {"main": Keep()}, now_ns=NOW_NS, keep_at=window, unsynced={"main1"}).removals == ()


def test_journals_on_one_target_give_in_the_order_of_age() -> None:
    """The oldest footage of the target goes, whichever journal it belongs to."""
    volumes = [volume(n, "a", age_days=10 - n, journal=j) for n, j in [(0, "main"), (1, "side"), (2, "main"), (3, "side"), (4, "main")]]
    plan = plan_retention(volumes, {"a": Space(100, 0)}, {"main": Keep(free_bytes=30), "side": Keep()}, now_ns=NOW_NS)
    assert [(r.volume.name.journal, r.volume.name.number) for r in plan.removals] == [("main", 0), ("side", 1), ("main", 2)]


@pytest.mark.parametrize("step_days", [-400, -1, 1, 10_000])
def test_a_step_of_the_clock_reorders_nothing(step_days: int) -> None:
    """One volume with a broken clock goes when its turn comes, and holds nobody up."""
    volumes = [volume(n, "a", age_days=10 - n + (step_days if n == 2 else 0)) for n in range(6)]
    for count in range(1, 6):
        plan = plan_retention(volumes, {"a": Space(100, 0)}, {"main": Keep(free_bytes=count * SIZE)}, now_ns=NOW_NS)
        assert [r.volume.name.number for r in plan.removals] == list(range(count))


def test_two_full_disks_stay_a_mirror() -> None:
    """For three hundred volumes on two disks of fifty, pruned in turn, both hold the same newest volumes all the time."""
    disks: dict[str, dict[int, StoredVolume]] = {"a": {}, "b": {}}
    rng = Random(4)
    keep = {"main": Keep(age_ns=900 * DAY_NS, free_share=0.05)}
    lost: set[int] = set()
    for number in range(300):
        for disk in disks.values():
            disk[number] = volume(number, "", age_days=0)
        for target in rng.sample(["a", "b"], 2):  # each prunes for itself, in any order
            everything = _merged(disks, open=number)
            spaces = {t: Space(50 * SIZE, 50 * SIZE - len(d) * SIZE) for t, d in disks.items()}
            plan = plan_retention(everything, spaces, keep, now_ns=NOW_NS)
            for removal in plan.removals:
                if removal.target == target:
                    del disks[target][removal.volume.name.number]
                    if not any(removal.volume.name.number in d for d in disks.values()):
                        lost.add(removal.volume.name.number)
        newest = set(range(max(0, number - 45), number + 1))
        assert newest <= set(disks["a"])
        assert newest <= set(disks["b"])
        assert lost == set(range(number + 1)) - set(disks["a"]) - set(disks["b"])


def _merged(disks: dict[str, dict[int, StoredVolume]], *, open: int) -> list[StoredVolume]:
    numbers = sorted({n for disk in disks.values() for n in disk})
    return [volume(n, "".join(t for t, d in disks.items() if n in d), age_days=0, open=n == open) for n in numbers]


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[StoredVolume], dict[str, Space], Keep, set[str]]:
    count = draw(st.integers(1, 25))
    volumes = []
    for number in range(count):
        targets = draw(st.sampled_from(["a", "b", "ab", "abc", "c"]))
        volumes.append(
            volume(
                number, targets, age_days=draw(st.integers(0, 40)), open=number >= count - 1, unverified=draw(st.sampled_from(["", "a"]))
            )
        )
    spaces = {t: Space(500, draw(st.integers(0, 300))) for t in draw(st.sampled_from(["a", "ab"]))}
    keep = Keep(
        draw(st.sampled_from([None, 20 * DAY_NS])), draw(st.sampled_from([None, 50, 150])), free_bytes=draw(st.sampled_from([0, 40, 200]))
    )
    return volumes, spaces, keep, draw(st.sets(st.sampled_from([v.volume_id for v in volumes])))


@settings(max_examples=200, deadline=None)
@given(situations())
def test_no_plan_breaks_a_promise(situation: tuple[list[StoredVolume], dict[str, Space], Keep, set[str]]) -> None:
    """Copies are removed once, only where they are, never open ones; a last copy or an un-synced interval that the policy
    wants goes only when nothing else is left to go; enough goes, and not more than one volume too much.
    """
    volumes, spaces, keep, unsynced = situation
    plan = plan_retention(volumes, spaces, {"main": keep}, now_ns=NOW_NS, unsynced=unsynced)
    by_id = {v.volume_id: v for v in volumes}
    seen = [(r.target, r.volume.volume_id) for r in plan.removals]
    assert len(seen) == len(set(seen))
    left = {v.volume_id: {c.target for c in v.copies} for v in volumes}
    for removal in plan.removals:
        assert removal.target in spaces
        assert not removal.volume.open
        left[removal.volume.volume_id].remove(removal.target)
        assert removal.last == (not left[removal.volume.volume_id])
        if removal.reason is Reason.REDUNDANT:
            assert removal.volume.volume_id not in unsynced
            assert any(c.verified for c in by_id[removal.volume.volume_id].copies if c.target in left[removal.volume.volume_id])
    for target, space in spaces.items():
        freed = sum(r.bytes for r in plan.removals if r.target == target)
        missing = keep.free_bytes - space.free_bytes - freed
        assert plan.short.get(target, 0) == max(0, missing)
        if missing > 0:
            assert not [v for v in volumes if target in left[v.volume_id] and not v.open], "nothing more could go"
        pressed = [r for r in plan.removals if r.target == target and r.reason is not Reason.EXPIRED]
        if pressed:
            assert missing + pressed[-1].bytes > 0, "the last one was still needed"
