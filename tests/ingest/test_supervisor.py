"""What happens around sessions: reconnecting, silence, refusals, sources that are stuck; on a clock that only the test moves."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import pytest
from tests.support.ingest import Book, Puppet, Puppets, Stage
from tests.support.media import AUDIO_CONFIG, VIDEO_CONFIG

from nvrstore.clock import ManualClock
from nvrstore.config import StreamConfig
from nvrstore.errors import SourceEndedError, SourceError, SourceRefusedError, SourceUnreachableError
from nvrstore.events import GapClosed, GapOpened
from nvrstore.ingest.contract import Endpoint
from nvrstore.ingest.group import Ingest
from nvrstore.ingest.status import StreamState
from nvrstore.ingest.taps import Tap
from nvrstore.limits import BACKOFF_REFUSED_S_MIN, BACKOFF_S_MAX, CONNECTS_MAX, SOURCES_STUCK_MAX, STOP_S
from nvrstore.model import NS_PER_S, Cause, FragmentFlag, Gap, Media, Sample


def test_a_stream_goes_from_waiting_to_recording() -> None:
    """Each state is told once, in order, and the snapshot says what is recorded."""
    stage = Stage()
    stage.connect()
    stage.run(5, frames=True)
    status = stage.supervisor.status()
    assert stage.states() == ["waiting", "connecting", "recording"]
    assert (status.codec, status.width, status.height, status.engine) == ("h264", 320, 240, "pyav")
    assert 24 < status.fps < 26
    assert status.bitrate_bps == pytest.approx(8 * 700 * 25, rel=0.1)
    assert status.gap is None
    assert status.connected_ns is not None
    assert stage.supervisor.stop()
    assert stage.supervisor.status().state is StreamState.STOPPED
    assert stage.book.samples() == 125
    stage.book.check()


def test_an_interruption_is_one_gap_from_the_last_picture_to_the_next_one() -> None:
    """Whatever is tried meanwhile; the index of samples goes on, and the new run is a discontinuity."""
    stage = Stage()
    stage.connect()
    stage.run(4, frames=True)
    stage.source.end(SourceEndedError("closed"))
    for _ in range(4):
        stage.connect()
        stage.source.end(SourceUnreachableError("nobody"))
    stage.connect()
    stage.run(4, frames=True)
    stage.supervisor.stop()
    (gap,) = stage.book.gaps()
    footage = stage.book.of()
    first, behind = [i for i, fragment in enumerate(footage) if fragment.flags & FragmentFlag.DISCONTINUITY]
    assert first == 0
    assert gap.cause is Cause.CAMERA
    assert gap.detail == "closed"
    assert gap.start_ns == footage[behind - 1].end_ns
    assert gap.end_ns == footage[behind].utc_ns
    assert stage.book.samples() == 200
    assert stage.supervisor.status().reconnects == 5
    stage.book.check()
    told = [type(event) for event in stage.book.events if isinstance(event, GapOpened | GapClosed)]
    assert told == [GapOpened, GapClosed]


def test_a_gap_is_in_the_ledger_as_soon_as_it_is_known() -> None:
    """Its end follows under the same id: a recorder that dies in the gap has told of it."""
    stage = Stage()
    stage.connect()
    stage.run(2, frames=True)
    stage.source.end()
    (opened,) = stage.book.gaps()
    assert opened.end_ns is None
    stage.connect()
    stage.run(3, frames=True)
    (closed,) = stage.book.gaps()
    assert (closed.id, closed.start_ns) == (opened.id, opened.start_ns)
    assert closed.end_ns is not None
    stage.supervisor.stop()


def test_a_camera_that_was_never_there_is_a_gap_from_the_start_on() -> None:
    """Coverage begins when recording was asked for."""
    stage = Stage()
    stage.connect()
    stage.source.end(SourceUnreachableError("nobody"))
    (gap,) = stage.book.gaps()
    assert (gap.start_ns, gap.end_ns) == (stage.start_ns, None)
    stage.supervisor.stop()


def test_the_first_picture_closes_recorder_down() -> None:
    """Who composes the recorder opens the gap from the last durable sample on; ingest knows its end."""
    down = Gap("down", "gate", Cause.RECORDER, 1_600_000_000 * NS_PER_S)
    stage = Stage(start_gaps=[down])
    stage.connect()
    stage.run(3, frames=True)
    stage.supervisor.stop()
    (gap,) = stage.book.gaps()
    assert (gap.id, gap.cause, gap.start_ns) == ("down", Cause.RECORDER, down.start_ns)
    assert gap.end_ns == stage.book.of()[0].utc_ns


def test_recorder_down_ends_when_the_recorder_is_up_and_the_camera_is_not() -> None:
    """From then on it is the camera's fault, and the ledger says so, without a hole between the two."""
    down = Gap("down", "gate", Cause.RECORDER, 1_600_000_000 * NS_PER_S)
    stage = Stage(start_gaps=[down])
    stage.connect()
    stage.source.end(SourceUnreachableError("nobody"))
    first, second = stage.book.gaps()
    assert (first.id, first.end_ns) == ("down", stage.start_ns)
    assert (second.cause, second.start_ns, second.end_ns) == (Cause.CAMERA, stage.start_ns, None)
    stage.supervisor.stop()


def test_a_refused_login_waits_long_and_is_a_gap_of_its_own() -> None:
    """Somebody has to act on it; and a camera that locks accounts is not asked again at once."""
    stage = Stage()
    stage.connect()
    stage.run(2, frames=True)
    stage.source.end(SourceEndedError("closed"))
    stage.connect()
    stage.source.end(SourceRefusedError("401"))
    made = len(stage.puppets.made)
    assert stage.supervisor.status().state is StreamState.REFUSED
    stage.run(BACKOFF_REFUSED_S_MIN - 1)
    assert len(stage.puppets.made) == made
    camera, refused = stage.book.gaps()
    assert (camera.cause, refused.cause) == (Cause.CAMERA, Cause.REFUSED)
    assert camera.end_ns == refused.start_ns
    stage.supervisor.retry_now()
    stage.tick()
    assert len(stage.puppets.made) == made + 1
    stage.supervisor.stop()


def test_a_camera_that_is_connected_and_silent_is_given_up() -> None:
    """The watchdog looks at pictures: sound alone is silence."""
    stage = Stage(silence_s=5.0)
    stage.connect()
    stage.source.receiver.on_track(AUDIO_CONFIG)
    stage.run(3, frames=True)
    stage.run(4.5, sound=True)
    assert not stage.source.stops
    stage.run(1, sound=True)
    assert stage.source.stops
    stage.source.obey()
    assert "no picture for 5 s" in stage.supervisor.status().reason
    stage.supervisor.stop()


def test_a_camera_is_not_silent_while_what_it_sent_waits_here() -> None:
    """A machine that is behind knows only what the camera did up to then."""
    stage = Stage(silence_s=5.0)
    stage.connect()
    stage.run(3, frames=True)
    stage.source.heard_until_s = stage.clock.monotonic_s() + 4
    stage.run(8)
    assert not stage.source.stops
    stage.source.heard_until_s += 2
    stage.run(0.4)
    assert stage.source.stops
    stage.supervisor.stop()


def test_a_machine_that_stood_still_takes_no_camera_for_silent() -> None:
    """Stopped, suspended, moved: for as long as it stood, nobody listened. Afterwards silence counts again."""
    clock, puppets = ManualClock(), Puppets()
    ingest = Ingest(7, clock=clock, engines=puppets.engines())
    ingest._thread = threading.current_thread()  # the test plays the ingest thread
    ingest.add(StreamConfig(id="gate", url="rtsp://10.0.0.5/main", silence_s=5.0), Book())
    ingest._tick()
    puppets.last.receiver.on_track(VIDEO_CONFIG)
    puppets.last.receiver.on_samples([Sample(Media.VIDEO, b"picture", 0, 0, True, clock.utc_ns(), clock.monotonic_s())])
    clock.advance(600)
    for _ in range(24):
        ingest._tick()
        assert not puppets.last.stops
        clock.advance(0.2)
    clock.advance(0.5)
    ingest._tick()
    assert puppets.last.stops
    ingest._thread = None
    ingest.stop()


def test_a_camera_that_never_sends_a_picture_is_given_up() -> None:
    """Connecting takes several answers, each of which may be late; then it ends."""
    stage = Stage(silence_s=2.0)
    stage.connect()
    stage.run(5.5)
    assert not stage.source.stops
    stage.run(1)
    assert stage.source.stops
    stage.supervisor.stop()


def test_a_source_that_waits_for_its_turn_is_not_given_up() -> None:
    """However long the others take to be opened: what the camera has to answer in begins with the turn."""
    stage = Stage(silence_s=2.0)
    stage.connect()
    stage.source.connecting_s = math.inf
    stage.run(30)
    assert not stage.source.stops
    stage.source.connecting_s = stage.clock.monotonic_s()
    stage.run(5.5)
    assert not stage.source.stops
    stage.run(1)
    assert stage.source.stops
    stage.supervisor.stop()


def test_a_source_that_is_stuck_is_left_behind_and_not_heard_any_more() -> None:
    """The next session begins without it; what it still says is dropped; when it goes after all, it is no longer counted."""
    stage = Stage(silence_s=2.0)
    stage.puppets.stuck = True
    stage.connect()
    stuck = stage.source
    stage.run(1, frames=True)
    stage.run(2.2)
    assert stuck.stops
    stage.puppets.stuck = False
    stage.run(STOP_S + 0.4)
    assert stage.supervisor.status().stuck == 1
    stage.connect()
    stage.run(2, frames=True)
    before = stage.supervisor.status().samples
    stuck.receiver.on_samples([Sample(Media.VIDEO, b"late", 0, 0, True, stage.clock.utc_ns(), stage.clock.monotonic_s())])
    stuck.receiver.on_ended(SourceEndedError("late"))
    assert stage.supervisor.status().samples == before
    assert stage.supervisor.status().state is StreamState.RECORDING
    stuck.ended = True
    stage.tick()
    assert stage.supervisor.status().stuck == 0
    assert stage.supervisor.stop()
    stage.book.check()


def test_a_source_that_only_hands_on_what_it_read_is_not_left_behind() -> None:
    """However long that takes: it is footage."""
    stage = Stage(silence_s=2.0)
    stage.puppets.stuck = True
    stage.connect()
    stage.run(1, frames=True)
    stage.source.behind = True
    stage.run(2.2 + 2 * STOP_S)
    assert stage.source.stops
    stage.frame(keyframe=False)
    stage.source.end()
    assert stage.supervisor.status().stuck == 0
    stage.supervisor.stop()
    assert stage.book.samples() == 26


def test_sources_that_are_left_behind_are_bounded() -> None:
    """A camera that hangs every thread costs a few of them, not one per try; when one comes back, the next try follows."""
    stage = Stage(silence_s=1.0)
    stage.puppets.stuck = True
    stage.run(600, step_s=0.2)
    assert len(stage.puppets.made) == stage.supervisor.status().stuck == SOURCES_STUCK_MAX
    stage.puppets.made[0].ended = True
    stage.run(60, step_s=0.2)
    assert len(stage.puppets.made) == SOURCES_STUCK_MAX + 1
    stage.supervisor.stop()


def test_a_stream_that_is_removed_and_added_again_goes_on_counting() -> None:
    """A fragment's identity (stream, session, index) is never used twice, nor the name of a run."""
    clock, puppets, book = ManualClock(), Puppets(), Book()
    ingest = Ingest(7, clock=clock, engines=puppets.engines())
    ingest._thread = threading.current_thread()  # the test plays the ingest thread
    for life in range(3):
        ingest.add(StreamConfig(id="gate", url="rtsp://10.0.0.5/main"), book)
        ingest._tick()
        puppets.last.receiver.on_track(VIDEO_CONFIG)
        for frame in range(30):
            clock.advance(0.04)
            pts = frame * 3600
            sample = Sample(Media.VIDEO, b"picture", pts, pts, frame == 0, clock.utc_ns(), clock.monotonic_s())
            puppets.last.receiver.on_samples([sample])
        assert ingest.remove("gate")
        assert book.samples() == 30 * (life + 1)
        clock.advance(60)
    book.check()
    assert len(book.runs()) == 3
    assert [gap.cause for gap in book.gaps()] == [Cause.POLICY, Cause.POLICY]
    assert all(gap.end_ns is not None and gap.end_ns - gap.start_ns > 59 * NS_PER_S for gap in book.gaps())
    ingest._thread = None
    ingest.stop()


def test_stopping_is_bounded_and_says_when_a_source_is_stuck() -> None:
    """Everything that was received is handed on all the same."""
    stage = Stage()
    stage.puppets.stuck = True
    stage.connect()
    stage.run(2, frames=True)
    assert not stage.supervisor.stop()
    assert stage.book.samples() == 50


def test_a_session_that_is_told_to_end_is_heard_to_its_end() -> None:
    """Engines hold a frame until the next one begins: the last one comes when they end."""
    stage = Stage()
    stage.connect()
    stage.run(2, frames=True)
    stage.supervisor.request_stop()
    stage.frame(keyframe=False)
    assert stage.supervisor.finish(stage.clock.monotonic_s() + STOP_S)
    assert stage.book.samples() == 51


def test_tries_get_rarer_and_there_is_one_at_a_time() -> None:
    """An hour without the camera is a few hundred tries at the most, one after the other."""
    stage = Stage()
    for _ in range(3600):
        stage.run(1)
        if stage.puppets.made and not stage.source.ended:
            stage.source.end(SourceUnreachableError("nobody"))
    assert 3600 / BACKOFF_S_MAX <= len(stage.puppets.made) <= 3 * 3600 / BACKOFF_S_MAX
    assert len(stage.book.gaps()) == 1
    stage.supervisor.stop()


def test_credentials_are_resolved_at_every_connect_and_kept_nowhere() -> None:
    """A token URL that changes is asked for again; nothing of the supervisor shows it."""
    stage = Stage()
    asked: list[str] = []

    def resolve(config: StreamConfig) -> Endpoint:
        asked.append(config.id)
        return Endpoint(f"{config.url}?n={len(asked)}", ("admin", "s3cr3t"))

    stage.supervisor._resolve = resolve
    for _ in range(2):
        stage.connect()
        assert "s3cr3t" not in repr(stage.source.request) + repr(stage.source.request.resolve())
        stage.source.end()
    assert asked == ["gate", "gate"]
    assert "s3cr3t" not in repr(stage.supervisor.status()) + repr(stage.book.events) + repr(stage.book.records)
    stage.supervisor.stop()


def test_an_engine_that_is_not_there_is_a_reason_and_not_a_crash() -> None:
    """The configuration may name an engine of a later version."""
    stage = Stage(engine="lean")
    stage.run(0.5)
    assert "lean" in stage.supervisor.status().reason
    stage.supervisor.stop()


def test_a_machine_that_starts_no_thread_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of threads is bad luck for a camera, not the end of the recorder."""
    stage = Stage()

    def refuse(_: Puppet) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(Puppet, "start", refuse)
        stage.run(0.2)
    assert "thread" in stage.supervisor.status().reason
    stage.connect()
    assert stage.source.started
    stage.supervisor.stop()


def test_taps_get_what_is_recorded_and_may_come_and_go() -> None:
    """With the place in time that the recording has."""
    stage = Stage()
    tap, gone = Tap(), Tap()
    stage.supervisor.add_tap(tap)
    stage.supervisor.add_tap(gone)
    stage.supervisor.remove_tap(gone)
    stage.connect()
    stage.run(2, frames=True)
    stage.supervisor.stop()
    items = tap.take()
    assert len(items) == 50
    assert items[0].utc_ns == stage.book.of()[0].utc_ns
    assert items[0].config.codec == "h264"
    assert not gone.take()


def test_a_trigger_is_marked_and_stores_the_past() -> None:
    """Event recording, over the supervisor's own clock."""
    stage = Stage(record="event", pre_event_s=4.0)
    stage.connect()
    stage.run(20, frames=True)
    assert not stage.book.fragments
    mark = stage.supervisor.trigger("door", pre_s=3.0, post_s=2.0)
    stage.run(10, frames=True)
    stage.supervisor.stop()
    assert mark is not None
    assert mark.record() in stage.book.records
    first, last = stage.book.of()[0], stage.book.of()[-1]
    assert first.utc_ns <= mark.start_ns
    assert last.end_ns >= mark.end_ns
    assert last.end_ns - first.utc_ns < 10 * NS_PER_S
    assert [gap.cause for gap in stage.book.gaps()] == [Cause.POLICY, Cause.POLICY]


def test_of_many_cameras_only_some_connect_at_the_same_time() -> None:
    """A switch that reboots brings all of them back at once; those that wait longest come first."""
    clock, puppets = ManualClock(), Puppets()
    ingest = Ingest(7, clock=clock, engines=puppets.engines())
    ingest._thread = threading.current_thread()  # the test plays the ingest thread
    book = Book()
    for i in range(CONNECTS_MAX + 10):
        ingest.add(StreamConfig(id=f"cam{i}", url="rtsp://10.0.0.5/main"), book)
    ingest._tick()
    assert len(puppets.made) == CONNECTS_MAX
    for puppet in puppets.made[:4]:
        puppet.end(SourceError("no"))
    clock.advance(0.01)
    ingest._tick()
    assert [puppet.request.stream for puppet in puppets.made[CONNECTS_MAX:]] == [f"cam{CONNECTS_MAX + i}" for i in range(4)]
    ingest._thread = None
    assert ingest.stop() == 0


def test_a_turn_that_is_free_goes_to_the_next_camera_at_once() -> None:
    """Hundreds of cameras do not wait for the tick: who has connected, or failed to, wakes the thread."""
    clock, puppets, book = ManualClock(), Puppets(), Book()
    ingest = Ingest(7, clock=clock, engines=puppets.engines())
    ingest._thread = threading.current_thread()  # the test plays the ingest thread
    for i in range(CONNECTS_MAX + 2):
        ingest.add(StreamConfig(id=f"cam{i}", url="rtsp://10.0.0.5/main"), book)
    ingest._tick()
    first, second = puppets.made[:2]
    first.receiver.on_track(VIDEO_CONFIG)

    def turns_follow(happens: Callable[[], None], free: int) -> None:
        ingest._wake.clear()
        happens()
        assert ingest._wake.is_set()
        ingest._connect(ingest.supervisors())
        assert len(puppets.made) == CONNECTS_MAX + free

    picture = Sample(Media.VIDEO, b"picture", 0, 0, True, clock.utc_ns(), clock.monotonic_s())
    turns_follow(lambda: first.receiver.on_samples([picture]), 1)
    turns_follow(lambda: second.end(SourceError("no")), 2)
    ingest._thread = None
    assert ingest.stop() == 0
