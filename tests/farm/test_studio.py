"""Feeds, wheels and the studio on a clock that moves only when told: who gets which unit when."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvrstore.clock import ManualClock
from nvrstore.farm import Act, Codec, Traits
from nvrstore.farm.camera import Camera, Look
from nvrstore.farm.oddities import PLAIN
from nvrstore.farm.on_air import OnAir, runs
from nvrstore.farm.ranges import FrameRange, Ranges, count, subtract, union
from nvrstore.farm.reels import AudioSpec, VideoSpec, audio_reel, video_reel
from nvrstore.farm.rtp import aac_payload, framed_packets, rtp_header, video_payloads
from nvrstore.farm.session import Session
from nvrstore.farm.studio import Studio, StudioConfig

SPEC = VideoSpec(Codec.H264, 64, 64, Fraction(25), 100_000, 10)


class Ear(Session):
    """A session that notes what it is given, and when."""

    def __init__(self, camera: Camera, clock: ManualClock) -> None:
        super().__init__("1", camera, loss=0, seed=0)
        self.video = (0, 1)
        self.clock = clock
        self.heard: list[tuple[float, OnAir, int]] = []
        self.reports: list[float] = []

    def send_unit(self, on_air: OnAir, stamp: bytes, number: int) -> None:
        if not self.waiting:
            self.heard.append((self.clock.monotonic_s(), on_air, number))

    def send_report(self, packet: bytes, *, audio: bool) -> None:
        self.reports.append(self.clock.monotonic_s())


def studio_of(*traits: Traits, audio: bool = False) -> tuple[Studio, ManualClock, list[Ear]]:
    """A studio with a camera for each of `traits`, and an ear at each."""
    clock = ManualClock()
    reel = video_reel(SPEC)
    sound = audio_reel(AudioSpec("pcma", 8000)) if audio else None
    studio = Studio(StudioConfig([Look(reel, sound, own) for own in traits], {SPEC: reel}, seed=1, burn=False), clock)
    ears = [Ear(camera, clock) for camera in studio.cameras.values()]
    return studio, clock, ears


def run(studio: Studio, clock: ManualClock, seconds: float) -> None:
    """Let time pass from one due unit to the next."""
    end_s = clock.monotonic_s() + seconds
    while studio.next_due_s is not None and studio.next_due_s <= end_s:
        clock.advance(max(0.0, studio.next_due_s - clock.monotonic_s()))
        studio.send_due(clock.monotonic_s())
    clock.advance(max(0.0, end_s - clock.monotonic_s()))


def test_units_are_sent_at_the_frame_rate_from_a_key_unit_on() -> None:
    """25 a second, the first one a key unit, none late."""
    studio, clock, (ear,) = studio_of(PLAIN)
    studio.play(ear)
    run(studio, clock, 4.0)
    assert ear.heard[0][1].key
    assert 95 <= len(ear.heard) <= 101
    assert all(abs(after - before - 0.04) < 1e-6 for (before, _, _), (after, _, _) in pairwise(ear.heard))
    assert [number for _, _, number in ear.heard] == list(range(len(ear.heard)))
    assert studio.lateness_s_max < 1e-6


def test_a_second_session_waits_for_a_key_unit() -> None:
    """It hears nothing before, then the same as the first one."""
    studio, clock, (ear,) = studio_of(PLAIN)
    studio.play(ear)
    run(studio, clock, 1.0)
    other = Ear(ear.camera, clock)
    studio.play(other)
    run(studio, clock, 2.0)
    assert other.heard[0][1].key
    assert other.heard == ear.heard[-len(other.heard) :]


@pytest.mark.parametrize("frames", range(SPEC.gop))
def test_a_camera_that_comes_back_at_once_begins_with_a_key_unit_soon(frames: int) -> None:
    """Also where its feed has not noticed yet that it was left, whichever of its units was the last; no packet is made twice."""
    studio, clock, (ear, neighbour) = studio_of(PLAIN, PLAIN)
    studio.play(ear)
    studio.play(neighbour)
    run(studio, clock, 1.01 + frames * 0.04)
    ear.close()
    again = Ear(ear.camera, clock)
    studio.play(again)
    run(studio, clock, 0.08)
    assert again.heard[0][1].key
    run(studio, clock, 1.0)
    assert [number for _, _, number in ear.heard + again.heard] == list(range(len(ear.heard) + len(again.heard)))
    sent = [(unit.ssrc, unit.timestamp) for _, unit, _ in ear.heard + again.heard]
    assert len(set(sent)) == len(sent)
    assert all(abs(after - before - 0.04) < 1e-6 for before, after in pairwise(at_s for at_s, _, _ in neighbour.heard))


def test_a_camera_that_comes_back_at_the_moment_of_a_key_unit_does_not_get_it_twice() -> None:
    """The feed that it left goes on from where it is, also when it is the one that it gets again."""
    studio, clock, (ear,) = studio_of(PLAIN)
    sent = []
    for _ in range(40):  # rounding decides whether that moment counts as past
        studio.play(ear)
        while not (ear.heard and ear.heard[-1][1].key):
            run(studio, clock, (studio.next_due_s or 0.0) - clock.monotonic_s())
        sent += [(unit.ssrc, unit.timestamp) for _, unit, _ in ear.heard]
        ear.close()
        ear = Ear(ear.camera, clock)
    assert len(set(sent)) == len(sent)


def test_nobody_gets_a_unit_while_all_wait() -> None:
    """The first session leaves while the second one waits: no frame is made until the key unit."""
    studio, clock, (ear,) = studio_of(PLAIN)
    studio.play(ear)
    run(studio, clock, 1.1)
    made = ear.camera.number
    other = Ear(ear.camera, clock)
    studio.play(other)
    ear.close()
    run(studio, clock, 1.0)
    assert other.heard[0][2] == made
    assert other.heard[0][1].key


def test_many_cameras_at_once_are_spread_over_the_wheel() -> None:
    """62 cameras that begin at the same moment: no feed has more than eight of them, and nobody waits longer than a GOP."""
    studio, clock, ears = studio_of(*[PLAIN] * 62)
    for ear in ears:
        studio.play(ear)
    assert max(len(ear.camera.feed.cameras) for ear in ears if ear.camera.feed) <= 8
    run(studio, clock, 0.45)
    assert all(ear.heard for ear in ears)


def test_sender_reports_come_with_the_first_unit_and_every_five_seconds() -> None:
    """For each session on its own."""
    studio, clock, (ear,) = studio_of(PLAIN)
    studio.play(ear)
    run(studio, clock, 11.0)
    assert len(ear.reports) == 3
    assert ear.reports[0] == ear.heard[0][0]
    assert all(4.99 < after - before < 5.05 for before, after in pairwise(ear.reports))


def test_lost_units_leave_a_hole_in_time_too() -> None:
    """What follows comes when it would have come."""
    studio, clock, (ear,) = studio_of(PLAIN)
    studio.play(ear)
    run(studio, clock, 2.0)
    studio.act(ear.camera, Act("lose", frames=7))
    before = len(ear.heard)
    run(studio, clock, 2.0)
    (last_s, last, _), (next_s, following, _) = ear.heard[before - 1], ear.heard[before]
    assert abs(next_s - last_s - 8 * 0.04) < 1e-6
    assert following.timestamp - last.timestamp == 8 * 3600
    assert following.seq - last.seq > last.packets


def test_a_camera_that_leaves_a_shared_feed_goes_on_without_a_seam() -> None:
    """Sequence numbers, timestamps and instants go on; its neighbours do not notice."""
    studio, clock, ears = studio_of(*[PLAIN] * 40, audio=True)
    for ear in ears:
        studio.play(ear)
    run(studio, clock, 2.0)
    ear = next(ear for ear in ears if ear.camera.feed is not None and len(ear.camera.feed.cameras) > 1)
    shared = ear.camera.feed
    studio.act(ear.camera, Act("jump", seconds=0))
    assert ear.camera.feed is not shared
    run(studio, clock, 2.0)
    for one in ears:
        for (before_s, before, _), (after_s, after, _) in pairwise(one.heard):
            assert abs(after_s - before_s - 0.04) < 1e-6
            assert after.seq == before.seq + before.packets
            assert after.timestamp == before.timestamp + 3600
        sound = [packet for _, on_air, _ in one.heard for packet in on_air.audio]
        assert all(after[1:] == (before[1] + 1, before[2] + 160) for before, after in pairwise(sound))


def test_a_farm_that_was_suspended_goes_on_from_now() -> None:
    """Live pictures of that time do not exist: timestamps tell, sequence numbers go on, nothing is sent in a burst."""
    studio, clock, (ear,) = studio_of(PLAIN, audio=True)
    studio.play(ear)
    run(studio, clock, 2.0)
    before = len(ear.heard)
    clock.advance(60)
    studio.skip(60)
    studio.send_due(clock.monotonic_s())
    assert len(ear.heard) - before <= 2
    run(studio, clock, 1.0)
    (_, last, _), (_, following, _) = ear.heard[before - 1], ear.heard[before]
    assert 60 * 90_000 <= following.timestamp - last.timestamp <= 61 * 90_000
    assert following.seq == last.seq + last.packets
    assert all(len(on_air.audio) <= 3 for _, on_air, _ in ear.heard)


@pytest.mark.parametrize("offset_s", [-0.4, 0.0, 0.4])
def test_sound_keeps_the_pace_of_the_picture(offset_s: float) -> None:
    """50 frames of 20 ms a second, behind or ahead of the picture by a constant."""
    studio, clock, (ear,) = studio_of(Traits(audio_offset_s=offset_s), audio=True)
    studio.play(ear)
    run(studio, clock, 10.0)
    sound = [packet for _, on_air, _ in ear.heard for packet in on_air.audio]
    assert abs(len(sound) - 50 * (10 - offset_s)) <= 52 + 50 * abs(offset_s)
    assert [timestamp - sound[0][2] for _, _, timestamp in sound] == [160 * at for at in range(len(sound))]


# --- pieces ----------------------------------------------------------------------------------------------------------


@given(st.integers(2, 5000), st.integers(100, 1400), st.sampled_from([Codec.H264, Codec.H265]))
def test_fragments_of_any_size_make_the_nal_unit_again(size: int, limit: int, codec: Codec) -> None:
    """RFC 6184 5.8, RFC 7798 4.4.3: start and end bits once each, no payload too large, nothing lost."""
    header = b"\x65" if codec is Codec.H264 else b"\x26\x01"
    nal = header + bytes(at % 251 for at in range(size))
    payloads = video_payloads(codec, [nal], limit)
    assert all(len(payload) <= limit for payload in payloads)
    if len(payloads) == 1:
        assert payloads[0] == nal
        return
    at = len(header)
    flags = [payload[at] for payload in payloads]
    assert [flag >> 6 for flag in flags] == [2, *[0] * (len(flags) - 2), 1]
    assert b"".join(payload[at + 1 :] for payload in payloads) == nal[at:]
    kind = {flag & 0x3F for flag in flags}
    assert kind == ({5} if codec is Codec.H264 else {19})
    assert {payload[:at] for payload in payloads} == {b"\x7c" if codec is Codec.H264 else b"\x62\x01"}


@given(st.lists(st.integers(1, 1412), min_size=0, max_size=200))
def test_runs_of_datagrams_are_cut_into_the_same_packets_again(sizes: list[int]) -> None:
    """As the kernel cuts them: pieces of the size beside the run, the last one shorter; within the kernel's bounds."""
    packets = [bytes([at % 256]) * size for at, size in enumerate(sizes)]
    cut = [run[at : at + size] for run, size in runs(packets) for at in range(0, len(run), size)]
    assert cut == packets
    assert all(len(run) <= 60_000 and -(-len(run) // size) <= 40 for run, size in runs(packets))


def test_equal_packets_share_a_call() -> None:
    """Twenty fragments of a picture: one run."""
    assert len(runs([b"x" * 1412] * 20 + [b"x" * 100])) == 1


def test_headers_are_as_the_standards_picture_them() -> None:
    """RFC 3550 5.1, RFC 2326 10.12, RFC 3640 3.3.6: golden bytes."""
    assert rtp_header(96, 0x1_0001, 0x1_0000_0002, 0xAABBCCDD, marker=True).hex() == "80e0000100000002aabbccdd"
    parts = framed_packets(2, [b"ab", b"c"], 96, 0xFFFF, 7, 1, mark_last=True)
    assert b"".join(parts).hex() == "2402000e8060ffff00000007000000016162" + "2402000d80e00000000000070000000163"
    assert aac_payload(b"\xff" * 5).hex() == "00100028ffffffffff"


NUMBERS = st.sets(st.integers(0, 60))


@settings(max_examples=200)
@given(NUMBERS, NUMBERS)
def test_ranges_behave_like_sets(one: set[int], other: set[int]) -> None:
    """Union, difference, count and holes against Python's sets."""
    first, second = Ranges(sorted(one)).frozen(), Ranges(sorted(other)).frozen()

    def numbers(ranges: tuple[FrameRange, ...]) -> set[int]:
        return {number for piece in ranges for number in range(piece.first, piece.last + 1)}

    assert numbers(first) == one
    assert union(first, second) == Ranges(sorted(one | other)).frozen()
    assert subtract(first, second) == Ranges(sorted(one - other)).frozen()
    assert count(first) == len(one)
    if one:
        assert numbers(Ranges(sorted(one)).holes()) == set(range(min(one), max(one))) - one


def test_ranges_take_numbers_in_order_only() -> None:
    """A number twice, or a lower one, is a mistake."""
    ranges = Ranges([1, 2])
    with pytest.raises(ValueError, match="comes after"):
        ranges.add(2)
