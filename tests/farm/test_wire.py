"""What is on the wire, read by a client that shares no code with the farm."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import pytest
from tests.support.rtp_client import RtspClient

from nvrstore.farm import Codec, Farm, FarmConfig, check_access_units, parse_sei
from nvrstore.farm.nal import is_key_slice, is_parameter_set, is_slice, nal_type
from nvrstore.farm.stamp import parse_stamp

pytestmark = pytest.mark.slow

CODECS = [Codec.H264, Codec.H265]


@pytest.mark.parametrize("udp", [False, True])
@pytest.mark.parametrize("codec", CODECS)
def test_units_come_whole_in_order_and_begin_with_a_key_unit(small: FarmConfig, codec: Codec, udp: bool) -> None:
    """Sequence numbers have no hole, timestamps step by a frame, the first unit is a key unit with its parameter sets."""
    with Farm(replace(small, codec=codec)) as farm, RtspClient(farm.url(0), udp=udp) as client:
        client.play()
        units = client.units(60)
    assert client.lost == 0
    assert all(after.first_seq == (before.last_seq + 1) & 0xFFFF for before, after in pairwise(units))
    assert {(after.timestamp - before.timestamp) & 0xFFFFFFFF for before, after in pairwise(units)} == {900}
    report = check_access_units(unit.data for unit in units)
    assert report.whole
    assert report.ranges == ((0, 59),)
    sets = [nal_type(codec, nal) for nal in units[0].nals if is_parameter_set(codec, nal)]
    assert sets == {Codec.H264: [7, 8], Codec.H265: [32, 33, 34]}[codec]
    keys = [at for at, unit in enumerate(units) if any(is_slice(codec, nal) and is_key_slice(codec, nal) for nal in unit.nals)]
    assert keys == [0, 20, 40]


@pytest.mark.parametrize("codec", CODECS)
def test_the_stamp_stands_between_parameter_sets_and_slices(small: FarmConfig, codec: Codec) -> None:
    """Where the standards want SEI: after the parameter sets, before the first slice (H.264 7.4.1.2.3, H.265 7.4.2.4.4)."""
    with Farm(replace(small, codec=codec)) as farm, RtspClient(farm.url(0)) as client:
        client.play()
        nals = client.unit().nals
    kinds = ["set" if is_parameter_set(codec, nal) else "slice" if is_slice(codec, nal) else "stamp" for nal in nals]
    assert kinds == sorted(kinds, key=["set", "stamp", "slice"].index)
    assert kinds.count("stamp") == 1


def test_large_units_are_sent_in_packets_that_fit_an_ethernet_frame() -> None:
    """No RTP packet over 1460 bytes, so that with IP and UDP headers it stays under an MTU of 1500; whole again at the other end."""
    with (
        Farm(FarmConfig(width=640, height=360, bitrate_bps=8_000_000, fps=50, gop=10)) as farm,
        RtspClient(farm.url(0), udp=True) as client,
    ):
        client.play()
        first = client.packet()
        assert int(client.info["seq"]) == first.seq
        assert int(client.info["rtptime"]) == first.timestamp
        sizes = [len(client.packet().payload) for _ in range(200)]
    assert 1000 < max(sizes) <= 1460 - 12


def test_streams_tell_themselves_apart_and_carry_the_time_of_sending(small: FarmConfig) -> None:
    """The stamp holds the stream's number, and the UTC at which it was sent."""
    before_ns = time.time_ns()
    with Farm(replace(small, streams=3)) as farm:
        for stream in range(3):
            with RtspClient(farm.url(stream)) as client:
                client.play()
                stamps = [parse_sei(unit.data) for unit in client.units(3)]
            assert [stamp and (stamp.stream, stamp.number) for stamp in stamps] == [(stream, 0), (stream, 1), (stream, 2)]
            times_ns = [stamp.sent_ns for stamp in stamps if stamp]
            assert before_ns < times_ns[0] < times_ns[1] < times_ns[2] < time.time_ns()


def test_two_clients_of_one_stream_see_the_same_frames(small: FarmConfig) -> None:
    """Same numbers, same bytes, same timestamps; the second one is let in at a key unit."""
    with Farm(small) as farm, RtspClient(farm.url(0)) as one, RtspClient(farm.url(0)) as two:
        one.play()
        one.units(5)
        two.play()
        seen = two.units(30)
        later: dict[int, bytes] = {}
        while seen[-1].timestamp not in later:
            unit = one.unit()
            later[unit.timestamp] = unit.data
    assert [later[unit.timestamp] for unit in seen] == [unit.data for unit in seen]
    assert farm.sent(0).dropped == 0


@pytest.mark.parametrize("udp", [False, True])
@pytest.mark.parametrize("audio", ["aac", "pcma"])
def test_sound_and_picture_are_on_a_common_clock(small: FarmConfig, audio: Literal["aac", "pcma"], udp: bool) -> None:
    """Sender reports of both tracks map their first timestamps to the same moment, to a frame's length of sound."""
    hz, samples = (16_000, 1024) if audio == "aac" else (8_000, 160)
    with Farm(replace(small, audio=audio)) as farm, RtspClient(farm.url(0), udp=udp) as client:
        client.play(audio=True)
        units = client.units(100)
    assert len(client.audio) >= 10
    assert all((b.timestamp - a.timestamp) & 0xFFFFFFFF == samples for a, b in pairwise(client.audio))
    assert all((b.seq - a.seq) & 0xFFFF == 1 for a, b in pairwise(client.audio))
    video = next(report for report in client.reports if report.ssrc == units[0].ssrc)
    first_s = video.utc_s - signed(video.timestamp - units[0].timestamp) / 90_000
    sound = next(report for report in client.reports if report.ssrc == client.audio[0].ssrc)
    sound_s = sound.utc_s - signed(sound.timestamp - client.audio[0].timestamp) / hz
    assert abs(sound_s - first_s) <= samples / hz + 0.01
    stamp = parse_stamp(next(nal for nal in units[0].nals if parse_stamp(nal)))
    assert stamp is not None
    assert abs(stamp[1].sent_ns / 1e9 - first_s) < 1.0


def signed(difference: int) -> int:
    """A difference of RTP timestamps."""
    return (difference + 2**31) % 2**32 - 2**31


def test_other_channels_are_used_where_a_client_asks_for_them(small: FarmConfig) -> None:
    """Interleaved channels are the client's choice (RFC 2326 12.39)."""
    with Farm(replace(small, audio="pcma")) as farm, RtspClient(farm.url(0)) as client:
        client.play(audio=True, channels=(6, 10))
        assert check_access_units(unit.data for unit in client.units(30)).whole
        assert client.audio


@pytest.mark.parametrize("udp", [False, True])
def test_lost_packets_are_missing_from_what_counts_as_sent(small: FarmConfig, udp: bool) -> None:
    """Simulated loss: what arrives whole is what the farm calls sent, frame for frame."""
    with Farm(replace(small, loss=0.05, bitrate_bps=3_000_000, width=320, height=240)) as farm:
        with RtspClient(farm.url(0), udp=udp) as client:
            client.play()
            units = client.units(80)
        farm.stop_sending()
        sent = farm.sent(0)
    assert client.lost > 0
    assert sent.dropped > 0
    report = check_access_units(unit.data for unit in units)
    assert not report.damaged
    last = report.ranges[-1].last
    arrived = {number for piece in report.ranges for number in range(piece.first, piece.last + 1)}
    called_sent = {number for piece in sent.ranges for number in range(piece.first, piece.last + 1) if number <= last}
    # A unit whose lost packets are whole NAL units of their own looks whole to a depacketiser that does not see the hole before it.
    assert called_sent <= arrived


@pytest.mark.slow
def test_the_bitrate_is_what_was_asked_for() -> None:
    """Within a tenth, for a small picture and a large one, for both codecs."""
    for codec, width, height, rate in (("h264", 1280, 720, 4_000_000), ("h264", 320, 240, 500_000), ("h265", 640, 360, 1_000_000)):
        with Farm(FarmConfig(codec=codec, width=width, height=height, bitrate_bps=rate, gop=25)) as farm:
            assert abs(farm.bitrate_bps / rate - 1) < 0.1
