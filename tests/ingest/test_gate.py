"""What policy leaves out is in the ledger; what a trigger asks for is stored, from a keyframe on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from itertools import count

from hypothesis import given
from hypothesis import strategies as st
from tests.support.media import AUDIO, AUDIO_CONFIG, SESSION, UTC_NS, VIDEO, VIDEO_CONFIG

from nvrstore.config import RecordMode, ScheduleEntry, StreamConfig
from nvrstore.ingest.gate import Gate, Passed
from nvrstore.model import NS_PER_S, Cause, Fragment, FragmentFlag, Gap, TrackKey

ALWAYS: Callable[[int], RecordMode] = lambda _: "always"  # noqa: E731
EVENT: Callable[[int], RecordMode] = lambda _: "event"  # noqa: E731
OFF: Callable[[int], RecordMode] = lambda _: "off"  # noqa: E731


def at(second: float) -> int:
    return UTC_NS + round(second * NS_PER_S)


def fragment(second: int, *, keyframe: bool = True, track: TrackKey = VIDEO, size: int = 100) -> Fragment:
    """One second of a track that begins at `second`."""
    config = VIDEO_CONFIG if track is VIDEO else AUDIO_CONFIG
    flags = FragmentFlag.KEYFRAME if keyframe else FragmentFlag(0)
    return Fragment(track, config, SESSION, second * 25, 25, at(second), config.timescale, flags, (bytes(size),), size)


def gate(mode_at: Callable[[int], RecordMode], *, pre_event_s: float = 5, bytes_max: int = 1 << 20) -> Gate:
    numbers = count()
    return Gate("gate", mode_at, pre_event_s=pre_event_s, bytes_max=bytes_max, id_factory=lambda: f"gap-{next(numbers)}")


def push(to: Gate, seconds: Iterable[int], gop: int = 2) -> Passed:
    """Push a fragment per second, every `gop`th with a keyframe; everything that passed."""
    fragments: list[Fragment] = []
    gaps: list[Gap] = []
    for second in seconds:
        passed = to.push(fragment(second, keyframe=second % gop == 0))
        fragments += passed.fragments
        gaps += passed.gaps
    return Passed(tuple(fragments), tuple(gaps))


def seconds(passed: Passed) -> list[int]:
    return [(f.utc_ns - UTC_NS) // NS_PER_S for f in passed.fragments]


def test_always_stores_everything_and_writes_no_gap() -> None:
    """The usual camera."""
    passed = push(gate(ALWAYS), range(10))
    assert seconds(passed) == list(range(10))
    assert not passed.gaps


def test_off_stores_nothing_and_says_so_once() -> None:
    """One gap, open, from the first fragment on."""
    passed = push(gate(OFF), range(10))
    assert not passed.fragments
    assert [(g.cause, g.start_ns, g.end_ns) for g in passed.gaps] == [(Cause.POLICY, at(0), None)]


def test_an_event_buffer_is_no_gap_until_something_falls_out_of_it() -> None:
    """Nothing is lost yet that a trigger could not still rescue."""
    recorder = gate(EVENT)
    assert push(recorder, range(6)) == Passed()
    (opened,) = push(recorder, range(6, 12)).gaps
    assert (opened.start_ns, opened.end_ns) == (at(0), None)


def test_a_trigger_stores_the_past_and_the_time_after_it_from_a_keyframe_on() -> None:
    """Fragments in the buffer enter on the trigger; the first one begins a run, and ends the gap."""
    recorder = gate(EVENT, pre_event_s=5)
    (opened,) = push(recorder, range(12)).gaps
    rescued = recorder.trigger(at(11.5), pre_s=2, post_s=3)
    # 9.5 was asked for, and lies in the GOP that begins at 8.
    assert seconds(rescued) == [8, 9, 10, 11]
    assert rescued.fragments[0].flags & FragmentFlag.DISCONTINUITY
    assert not rescued.fragments[1].flags & FragmentFlag.DISCONTINUITY
    assert [(g.id, g.start_ns, g.end_ns) for g in rescued.gaps] == [(opened.id, at(0), at(8))]
    after = push(recorder, range(12, 30))
    assert seconds(after) == [12, 13, 14]
    (again,) = after.gaps
    assert (again.start_ns, again.end_ns) == (at(15), None)


def test_triggers_unite() -> None:
    """A second trigger within the span of the first one prolongs it, and stores nothing twice."""
    recorder = gate(EVENT)
    push(recorder, range(4))
    first = recorder.trigger(at(4), pre_s=10, post_s=2)
    middle = push(recorder, [4, 5])
    second = recorder.trigger(at(5.5), pre_s=10, post_s=4)
    rest = push(recorder, range(6, 14))
    assert seconds(first) + seconds(middle) + seconds(second) + seconds(rest) == list(range(10))


def test_a_longer_past_than_the_buffer_holds_is_a_gap_with_both_ends() -> None:
    """What the user asked for and the recorder no longer has is said, not hidden."""
    recorder = gate(EVENT, pre_event_s=3)
    push(recorder, range(20))
    rescued = recorder.trigger(at(20), pre_s=60, post_s=1)
    (closed,) = rescued.gaps
    assert closed.end_ns == rescued.fragments[0].utc_ns == at(16)


def test_the_buffer_is_bounded_in_bytes() -> None:
    """A camera that floods does not fill the memory while it waits for an event."""
    recorder = gate(EVENT, pre_event_s=1000, bytes_max=1000)
    gaps: list[Gap] = []
    for second in range(100):
        gaps += recorder.push(fragment(second, keyframe=second % 5 == 0)).gaps
        assert recorder.waiting_bytes <= 1000
    assert len(gaps) == 1


def test_without_keyframes_the_buffer_is_bounded_in_time() -> None:
    """Intra refresh has none: the past is cut by time alone."""
    recorder = gate(EVENT, pre_event_s=3)
    push(recorder, range(1, 50), gop=1000)
    assert seconds(recorder.trigger(at(50), pre_s=10, post_s=0)) == [47, 48, 49]


def test_a_schedule_changes_where_the_footage_says_so() -> None:
    """The mode is asked for the time of the fragment; the gap reaches from the last stored fragment to the next one."""
    recorder = gate(lambda utc_ns: "always" if (utc_ns - UTC_NS) // NS_PER_S % 20 < 10 else "off")
    passed = push(recorder, range(40), gop=1)
    assert seconds(passed) == [*range(10), *range(20, 30)]
    assert [(g.start_ns, g.end_ns) for g in passed.gaps] == [(at(10), None), (at(10), at(20)), (at(30), None)]


def test_when_a_schedule_goes_from_event_to_always_it_begins_at_a_keyframe_and_stores_no_past() -> None:
    """What was only buffered while nothing happened is not stored, but for the rest of the running GOP."""
    recorder = gate(lambda utc_ns: "event" if utc_ns < at(9) else "always", pre_event_s=5)
    passed = push(recorder, range(12), gop=4)
    assert seconds(passed) == [8, 9, 10, 11]
    assert passed.fragments[0].flags & FragmentFlag.DISCONTINUITY
    assert [g.end_ns for g in passed.gaps if g.end_ns] == [at(8)]


def test_off_is_off_also_for_triggers() -> None:
    """A schedule that says "off" is obeyed."""
    recorder = gate(OFF)
    push(recorder, range(5))
    assert recorder.trigger(at(5), pre_s=5, post_s=5) == Passed()
    assert not push(recorder, range(5, 10)).fragments


def test_sound_waits_and_goes_with_its_picture() -> None:
    """Both tracks of a stream are rescued in the order in which they came, and both begin a run."""
    recorder = gate(EVENT)
    for second in range(4):
        recorder.push(fragment(second))
        recorder.push(fragment(second, track=AUDIO))
    push(recorder, range(4, 20))
    recorder.push(fragment(20, track=AUDIO))
    rescued = recorder.trigger(at(21), pre_s=1, post_s=0)
    assert [f.track for f in rescued.fragments] == [VIDEO, VIDEO, AUDIO]
    assert [bool(f.flags & FragmentFlag.DISCONTINUITY) for f in rescued.fragments] == [True, False, True]


def test_closing_leaves_out_what_waits() -> None:
    """Nothing vanishes when a stream is removed: the gap is open, its end is for whoever goes on."""
    recorder = gate(EVENT)
    push(recorder, range(3))
    (opened,) = recorder.close()
    assert (opened.start_ns, opened.end_ns) == (at(0), None)


def test_the_mode_comes_from_the_configured_schedule() -> None:
    """A day of office hours, in local time."""
    office = ScheduleEntry.model_validate({"days": "mon-fri", "from": "08:00", "to": "18:00", "mode": "always"})
    config = StreamConfig(id="gate", url="rtsp://10.0.0.5/main", record=(office,))
    monday = datetime(2026, 11, 23, 7, 59, tzinfo=UTC)
    assert config.mode_at(monday) == "off"
    assert config.mode_at(monday.replace(hour=8, minute=0)) == "always"


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("trigger"), st.integers(0, 12), st.integers(0, 6)),
            st.tuples(st.just("push"), st.integers(0, 1), st.sampled_from([0, 1, 2])),
        ),
        max_size=80,
    )
)
def test_every_fragment_is_stored_or_waits_or_lies_in_a_gap(steps: list[tuple[str, int, int]]) -> None:
    """Honest: in any order of triggers, schedules and keyframes; and what is stored is stored once, in order."""
    modes: dict[int, RecordMode] = {}
    recorder = gate(lambda utc_ns: modes[utc_ns])
    pushed: list[int] = []
    stored: list[int] = []
    gaps: dict[str, Gap] = {}
    for what, first, second in steps:
        if what == "trigger":
            passed = recorder.trigger(at(len(pushed)), pre_s=first, post_s=second)
        else:
            piece = fragment(len(pushed), keyframe=bool(first))
            modes[piece.utc_ns] = ("always", "event", "off")[second]
            pushed.append(piece.utc_ns)
            passed = recorder.push(piece)
        stored += [f.utc_ns for f in passed.fragments]
        gaps.update((g.id, g) for g in passed.gaps)
    gaps.update((g.id, g) for g in recorder.close())
    assert stored == sorted(set(stored))
    for utc_ns in pushed:
        inside = any(g.start_ns <= utc_ns and (g.end_ns is None or utc_ns < g.end_ns) for g in gaps.values())
        assert inside is (utc_ns not in stored)
