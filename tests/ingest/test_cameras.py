"""What real cameras do, played by the farm over real RTSP; what a server cannot do is in test_cameras_doctored.py.

Each test is named after its oddity: wild and broken timestamps (1 to 11), video (12 to 18), sound (19 to 22), sessions
(23 to 30). All cameras of the farm are recorded at the same time, for a few seconds, once; the tests look at the result.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
from tests.support.ingest import Book
from tests.support.media import entries

from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.config import StreamConfig
from nvrstore.farm import Farm, FarmConfig, SentFrames
from nvrstore.farm.oddities import Act, Reports, Traits
from nvrstore.ingest.group import Ingest
from nvrstore.media.nal import split_lengths
from nvrstore.model import NS_PER_S, Cause, FragmentFlag, Media
from nvrstore.timeline import RunReason

pytestmark = pytest.mark.slow

SECONDS = 7.0
SMALL = FarmConfig(width=160, height=120, bitrate_bps=200_000, fps=25, gop=25)
SILENCE_S = 1.0  # of cameras that fall silent; the others may be late for longer

TRAITS: dict[str, Traits] = {
    "sane": Traits(),
    "1 wild first": Traits(first_off_s=3600.0),
    "2 B-frames": Traits(b_frames=2),
    "3 equal": Traits(stuck_every=10),
    "3 decreasing": Traits(backward_every=15),
    "4 leap": Traits(),
    "4 lost": Traits(),
    "5 restart": Traits(),
    "5 rewind": Traits(),
    "6 wrap": Traits(timestamp_0=2**32 - 3 * 90_000),
    "7 false rate": Traits(real_fps=21),
    "8 burst": Traits(prebuffer_s=4.0),
    "9 no reports": Traits(reports=Reports.NONE),
    "9 stranger": Traits(reports=Reports.STRANGER),
    "9 wrong clock": Traits(reports=Reports.WRONG, audio="aac"),
    "12 none": Traits(sdp_sets="none"),
    "12 annex-b": Traits(sdp_sets="annex-b"),
    "12 garbage": Traits(sdp_sets="garbage"),
    "13 flap": Traits(sps_flap=True),
    "13 change": Traits(),
    "14 long": Traits(gop=125),
    "18 reset": Traits(join_anywhere=True),
    "19 pcma": Traits(audio="pcma"),
    "20 never": Traits(audio="aac", audio_late_s=float("inf")),
    "20 late": Traits(audio="aac", audio_late_s=2.0),
    "21 behind": Traits(audio="aac", audio_offset_s=0.4),
    "21 ahead": Traits(audio="aac", audio_offset_s=-0.4),
    "22 no config": Traits(audio="aac", audio_config=False),
    "22 odd rate": Traits(audio="aac", audio_rate=11_025),
    "23 mute": Traits(),
    "23 born mute": Traits(mute=True),
    "27 refuses": Traits(refuse=True),
    "30 flaps": Traits(),
}
NUMBER = {name: number for number, name in enumerate(TRAITS)}
SCRIPT = (
    Act("jump", (NUMBER["4 leap"],), at_s=3.0, seconds=60.0),
    Act("lose", (NUMBER["4 lost"],), at_s=3.0, frames=75),
    Act("restart", (NUMBER["5 restart"],), at_s=3.0),
    Act("jump", (NUMBER["5 rewind"],), at_s=3.0, seconds=-5.0),
    Act("change", (NUMBER["13 change"],), at_s=3.0, width=320, height=240),
    Act("reset", (NUMBER["18 reset"],), at_s=3.3),
    Act("mute", (NUMBER["23 mute"],), at_s=2.5, for_s=2.0),
    Act("disconnect", (NUMBER["30 flaps"],), at_s=1.0, every_s=0.4),
)


@dataclass
class Cast:
    """What was recorded of every camera, and what the farm sent."""

    books: dict[str, Book]
    sent: list[SentFrames]
    began_ns: int
    ended_ns: int
    states: dict[str, str]
    tries: dict[str, int]
    declared: dict[str, int] = field(default_factory=dict)

    def lost(self, name: str) -> int:
        """Frames that were sent and are not there, intact."""
        return sum(r.last - r.first + 1 for r in self.books[name].report().lost(self.sent[NUMBER[name]]))

    def whole(self, name: str) -> Book:
        """The book of a camera of which every frame is there, once, in order, without a gap."""
        book = self.books[name]
        assert book.report().whole
        assert self.lost(name) == 0
        assert not book.gaps()
        assert len(book.runs()) == len({fragment.track for fragment in book.fragments})
        self.timed(book)
        return book

    def timed(self, book: Book) -> None:
        """Every instant answers for itself, and lies where it was recorded; no frame lasts longer than a second."""
        book.check()
        for fragment in book.of():
            assert self.began_ns - 10 * NS_PER_S < fragment.utc_ns < self.ended_ns + NS_PER_S
            assert max(entry.duration for entry in entries(fragment)) <= 90_000


@pytest.fixture(scope="module", params=["lean", "pyav"])
def cast(request: pytest.FixtureRequest) -> Cast:
    """All cameras, recorded for SECONDS by one engine."""
    books = {name: Book() for name in TRAITS}
    config = replace(SMALL, streams=len(TRAITS), traits=dict(enumerate(TRAITS.values())), script=SCRIPT)
    with Farm(config) as farm:
        ingest = Ingest(7)
        began_ns = SYSTEM_CLOCK.utc_ns()
        for name, number in NUMBER.items():
            silence_s = SILENCE_S if "mute" in name else 5.0
            ingest.add(StreamConfig(id=f"cam{number}", url=farm.url(number), silence_s=silence_s, engine=request.param), books[name])
        end_s = SYSTEM_CLOCK.monotonic_s() + SECONDS
        sane = books["sane"]
        with sane.changed:
            sane.changed.wait_for(lambda: SYSTEM_CLOCK.monotonic_s() >= end_s, SECONDS)
        sent = farm.stop_sending()
        states = {name: str(ingest.supervisor(f"cam{number}").status().state) for name, number in NUMBER.items()}
        assert ingest.stop() == 0
        tries = {name: ingest.supervisor(f"cam{number}").status().reconnects for name, number in NUMBER.items()}
    return Cast(books, sent, began_ns, SYSTEM_CLOCK.utc_ns(), states, tries)


# --- timestamps


def test_a_sane_camera_is_whole(cast: Cast) -> None:
    """The measure of all the others: every frame that was sent, the last one included."""
    book = cast.whole("sane")
    assert book.samples() > 5 * 25


def test_camera_1_a_wild_first_timestamp_costs_nothing(cast: Cast) -> None:
    """One frame that claims to be an hour away belongs where it came, and lasts as long as the others."""
    book = cast.books["1 wild first"]
    assert book.report().whole
    assert cast.lost("1 wild first") == 0
    cast.timed(book)
    assert len(book.runs()) <= 2


def test_camera_2_a_keyframe_without_dts_is_a_frame_like_any_other(cast: Cast) -> None:
    """libav leaves the first frames of a stream with B-frames without: frame 0 is there."""
    book = cast.whole("2 B-frames")
    assert book.report().ranges[0].first == 0
    assert book.of()[0].flags & FragmentFlag.KEYFRAME


@pytest.mark.parametrize("name", ["3 equal", "3 decreasing"])
def test_camera_3_equal_and_decreasing_timestamps_are_clamped(cast: Cast, name: str) -> None:
    """No frame is lost, no run ends, every duration is positive."""
    book = cast.whole(name)
    assert min(entry.duration for fragment in book.of() for entry in entries(fragment)) > 0


def test_camera_4_a_leap_of_the_timestamps_loses_nothing(cast: Cast) -> None:
    """A minute forward in the middle of a stream that goes on: a new run, no gap, no frame of a minute."""
    book = cast.books["4 leap"]
    assert book.report().whole
    assert cast.lost("4 leap") == 0
    assert [run.reason for run in book.runs()] == [RunReason.START, RunReason.LEAP]
    assert not book.gaps()
    cast.timed(book)


def test_camera_4_frames_that_are_lost_are_a_gap_with_both_ends(cast: Cast) -> None:
    """Three seconds that never came: the network's fault, and not the length of the last frame.

    An engine that sees sequence numbers flags what follows up to the next keyframe: it cannot be decoded.
    """
    book = cast.books["4 lost"]
    gap, *behind = book.gaps()
    assert gap.cause is Cause.NETWORK
    assert [other.start_ns for other in behind] in ([], [gap.end_ns])
    assert gap.end_ns is not None
    assert gap.end_ns - gap.start_ns == pytest.approx(3 * NS_PER_S, rel=0.05)
    assert not book.report().damaged
    cast.timed(book)


@pytest.mark.parametrize(("name", "frames"), [("5 rewind", 0), ("5 restart", 1)])
def test_camera_5_timestamps_that_begin_anew_begin_a_run(cast: Cast, name: str, frames: int) -> None:
    """Back by seconds, or everything from zero in the middle of a session: no frame is lost, and time goes on.

    Of a restart libav leaves out the first RTP packet, until a second one confirms its sequence number (RFC 3550 A.1).
    """
    book = cast.books[name]
    assert not book.report().disordered
    assert cast.lost(name) <= frames
    assert len(book.runs()) == 2
    assert not book.gaps()
    cast.timed(book)


def test_camera_6_timestamps_wrap_unnoticed(cast: Cast) -> None:
    """32 bits at 90 kHz last 13 hours and a quarter: one run."""
    assert len(cast.whole("6 wrap").runs()) == 1


def test_camera_7_a_false_frame_rate_makes_no_phantom_gaps(cast: Cast) -> None:
    """Declares 25 frames a second, sends 21: media time falls behind, UTC does not."""
    book = cast.books["7 false rate"]
    assert book.report().whole
    assert cast.lost("7 false rate") == 0
    assert not book.gaps()
    assert abs(book.of()[-1].end_ns - cast.books["sane"].of()[-1].end_ns) < 1.5 * NS_PER_S


def test_camera_8_a_burst_of_the_past_is_placed_in_the_past(cast: Cast) -> None:
    """Four seconds that come at once are four seconds of footage before the connection, not a tenth of a second after it."""
    book = cast.books["8 burst"]
    assert book.report().whole
    assert cast.lost("8 burst") == 0
    sane = cast.books["sane"].of()[0].utc_ns
    assert book.of()[0].utc_ns - sane == pytest.approx(-4 * NS_PER_S, abs=NS_PER_S)
    cast.timed(book)


@pytest.mark.parametrize("name", ["9 no reports", "9 stranger", "9 wrong clock"])
def test_camera_9_sender_reports_may_be_missing_strange_or_wrong(cast: Cast, name: str) -> None:
    """Arrival is the default: a camera cannot change the date of a recording."""
    book = cast.books[name]
    assert book.report().whole
    assert cast.lost(name) == 0
    cast.timed(book)


def test_camera_11_pts_and_dts_differ_and_both_are_kept(cast: Cast) -> None:
    """B-frames come in the order of decoding, each with its offset; shown in order they are a steady stream."""
    shown: list[int] = []
    at = 0
    for fragment in cast.books["2 B-frames"].of():
        for entry in entries(fragment):
            shown.append(at + entry.offset)
            at += entry.duration
    assert shown != sorted(shown)
    # The farm may stop between a picture and the B-frames that are shown before it.
    steps = {b - a for a, b in pairwise(sorted(shown)[:-4])}
    assert steps == {3600}


# --- video


@pytest.mark.parametrize("name", ["12 none", "12 annex-b", "12 garbage"])
def test_camera_12_parameter_sets_are_taken_in_band(cast: Cast, name: str) -> None:
    """A description without them, or with nonsense: the first keyframe brings them, and nothing is lost."""
    book = cast.whole(name)
    assert [(config.width, config.height) for _, _, config in book.declared] == [(160, 120)]


def test_camera_13_parameter_sets_that_flap_change_nothing(cast: Cast) -> None:
    """Another SPS with every GOP, of the same picture: one track, one run, both sets in-band."""
    book = cast.whole("13 flap")
    assert len(book.declared) == 1
    sets = {nal for unit in book.units() for nal in split_lengths(unit) if nal[0] & 31 == 7}
    assert len(sets) == 2


def test_camera_13_another_resolution_is_another_configuration(cast: Cast) -> None:
    """A true change is announced before its first fragment; every fragment belongs to one of the two."""
    book = cast.books["13 change"]
    assert [(config.width, config.height) for _, _, config in book.declared] == [(160, 120), (320, 240)]
    assert cast.lost("13 change") == 0
    widths = [fragment.config.width for fragment in book.of()]
    assert widths == sorted(widths)
    changed = next(fragment for fragment in book.of() if fragment.config.width == 320)
    assert changed.flags & FragmentFlag.KEYFRAME
    cast.timed(book)


def test_camera_14_keyframes_that_are_far_apart_do_not_keep_fragments_open(cast: Cast) -> None:
    """Five seconds from keyframe to keyframe: fragments of a second all the same, so little is lost with the recorder."""
    book = cast.whole("14 long")
    assert max(fragment.duration for fragment in book.of()) <= 1.25 * 90_000
    assert any(not fragment.flags & FragmentFlag.KEYFRAME for fragment in book.of())


def test_camera_18_a_gop_that_a_disconnect_cut_off_is_followed_by_a_discontinuity(cast: Cast) -> None:
    """Behind it recording begins at a keyframe, although the camera begins anywhere; decoders are told not to go on."""
    book = cast.books["18 reset"]
    first, second = [fragment for fragment in book.of() if fragment.flags & FragmentFlag.DISCONTINUITY]
    assert first.flags & FragmentFlag.KEYFRAME
    assert second.flags & FragmentFlag.KEYFRAME
    assert second.index > 0
    before_first, between = book.gaps()
    assert before_first.end_ns == first.utc_ns
    assert between.end_ns == second.utc_ns
    assert not book.report().damaged
    cast.timed(book)


# --- sound


def test_camera_19_g711_becomes_aac_and_costs_no_video(cast: Cast) -> None:
    """MP4 does not carry it; browsers do not play it."""
    book = cast.whole("19 pcma")
    (config,) = [config for _, _, config in book.declared if config.media is Media.AUDIO]
    assert (config.codec, config.sample_rate) == ("aac", 8000)
    seconds = book.samples(Media.AUDIO) * 1024 / 8000
    assert seconds == pytest.approx(book.samples() / 25, abs=0.5)


@pytest.mark.parametrize(("name", "from_s", "to_s"), [("20 never", 0.0, 0.0), ("20 late", 3.0, 5.5)])
def test_camera_20_sound_that_comes_late_or_never_delays_nothing(cast: Cast, name: str, from_s: float, to_s: float) -> None:
    """It becomes a track with its first packet."""
    book = cast.whole(name)
    tracks = [track.media for track, _, _ in book.declared]
    assert tracks == ([Media.VIDEO, Media.AUDIO] if to_s else [Media.VIDEO])
    assert from_s <= book.samples(Media.AUDIO) * 1024 / 16_000 <= to_s


@pytest.mark.parametrize("name", ["21 behind", "21 ahead"])
def test_camera_21_sound_that_is_off_is_neither_lost_nor_doubled(cast: Cast, name: str) -> None:
    """Each track is cut by itself: fragments of sound follow each other without a hole.

    With every sender report libav sets sound by the camera's clock, which moves a frame by as much as that is off.
    """
    book = cast.whole(name)
    sound = book.of(Media.AUDIO)
    ticks = sum(entry.duration for fragment in sound for entry in entries(fragment))
    assert ticks / 16_000 == pytest.approx(book.samples(Media.AUDIO) * 1024 / 16_000, abs=0.5)
    for before, after in pairwise(sound):
        assert abs(after.utc_ns - before.end_ns) < 20_000_000
    assert book.samples(Media.AUDIO) * 1024 / 16_000 == pytest.approx(book.samples() / 25, abs=0.7)


@pytest.mark.parametrize(("name", "rate"), [("22 no config", 16_000), ("22 odd rate", 11_025)])
def test_camera_22_aac_without_a_description_or_at_an_odd_rate_is_kept(cast: Cast, name: str, rate: int) -> None:
    """Rate and channels say what a description would."""
    book = cast.whole(name)
    (config,) = [config for _, _, config in book.declared if config.media is Media.AUDIO]
    assert (config.codec, config.timescale) == ("aac", rate)
    assert book.samples(Media.AUDIO) * 1024 / rate == pytest.approx(book.samples() / 25, abs=0.7)


# --- sessions


def test_camera_23_a_camera_that_falls_silent_is_a_gap_and_comes_back(cast: Cast) -> None:
    """Connected, answering, and nothing comes: the watchdog ends it, the ledger has both ends."""
    book = cast.books["23 mute"]
    gap = book.gaps()[0]
    assert gap.cause is Cause.CAMERA
    assert "no picture" in gap.detail
    assert gap.end_ns is not None
    assert gap.end_ns - gap.start_ns > SILENCE_S * NS_PER_S
    assert not book.report().damaged
    cast.timed(book)


def test_camera_23_a_camera_that_never_sends_anything_is_given_up_again_and_again(cast: Cast) -> None:
    """One gap, open, from the start on; each try is bounded."""
    book = cast.books["23 born mute"]
    (gap,) = book.gaps()
    assert (gap.cause, gap.end_ns) == (Cause.CAMERA, None)
    assert cast.tries["23 born mute"] >= 1
    assert not book.fragments


def test_camera_27_a_refused_login_is_tried_once_and_then_left_alone(cast: Cast) -> None:
    """Five tries in five minutes lock many cameras: one in this time."""
    (gap,) = cast.books["27 refuses"].gaps()
    assert (gap.cause, gap.end_ns) == (Cause.REFUSED, None)
    assert cast.tries["27 refuses"] == 1
    assert cast.states["27 refuses"] == "refused"


def test_camera_30_a_camera_that_flaps_makes_few_pieces(cast: Cast) -> None:
    """It hangs up every 0.4 s: the tries get rarer, the holes longer, and each has both its ends."""
    book = cast.books["30 flaps"]
    assert 1 <= cast.tries["30 flaps"] <= 6
    assert len(book.runs()) <= 6
    assert not book.report().damaged
    book.check()
