"""Cameras that misbehave: each trait and each act is seen on the wire, and harms no other stream."""

from __future__ import annotations

import base64
import math
from dataclasses import replace
from itertools import pairwise

import av
import pytest
from tests.support.rtp_client import AccessUnit, RtspClient

from nvrstore.errors import UsageError
from nvrstore.farm import Act, Codec, Farm, FarmConfig, Traits, check_access_units, parse_sei
from nvrstore.farm.nal import is_key_slice, is_slice, nal_type, split_annex_b

pytestmark = pytest.mark.slow

CODECS = [Codec.H264, Codec.H265]


def hear(config: FarmConfig, traits: Traits, count: int = 45, *, audio: bool = False) -> tuple[RtspClient, list[AccessUnit]]:
    """What a client gets of a camera with these traits."""
    with Farm(replace(config, traits={0: traits})) as farm, RtspClient(farm.url(0)) as client:
        client.play(audio=audio)
        units = client.units(count)
    assert check_access_units(unit.data for unit in units).whole
    assert client.lost == 0
    return client, units


def steps(units: list[AccessUnit]) -> list[int]:
    """Differences of timestamps, in frames of 100 a second."""
    return [((after.timestamp - before.timestamp + 2**31) % 2**32 - 2**31) // 900 for before, after in pairwise(units)]


def until_stepped(client: RtspClient, units: list[AccessUnit], beyond: int = 10) -> None:
    """Read on until timestamps have stepped by something else than a frame, and some units more."""
    while set(steps(units)) == {1}:
        assert len(units) < 1000
        units.append(client.unit())
    units += client.units(beyond)


def keys(codec: Codec, units: list[AccessUnit]) -> list[int]:
    """Positions of key units."""
    return [at for at, unit in enumerate(units) if any(is_slice(codec, nal) and is_key_slice(codec, nal) for nal in unit.nals)]


def sps(codec: Codec, unit: AccessUnit) -> bytes:
    """The SPS in a unit."""
    return next(nal for nal in unit.nals if nal_type(codec, nal) == {Codec.H264: 7, Codec.H265: 33}[codec])


@pytest.mark.slow
def test_a_wrong_rate_makes_media_time_shorter_than_wall_time(small: FarmConfig) -> None:
    """Declares 100 frames a second, sends 25: timestamps step as declared, stamps tell the truth."""
    client, units = hear(small, Traits(real_fps=25), 30)
    assert "a=framerate:100" in client.sdp
    assert set(steps(units)) == {1}
    stamps = [parse_sei(unit.data) for unit in units]
    wall_s = (stamps[-1].sent_ns - stamps[0].sent_ns) / 1e9  # type: ignore[union-attr]
    assert wall_s > 2 * 29 / 100


def test_timestamps_wrap_where_32_bits_end(small: FarmConfig) -> None:
    """From 2**32 - 9000 on, the eleventh frame begins again at 0."""
    _, units = hear(small, Traits(timestamp_0=2**32 - 9000), 20)
    assert units[0].timestamp == 2**32 - 9000
    assert units[10].timestamp == 0
    assert set(steps(units)) == {1}


@pytest.mark.parametrize(
    ("traits", "expected"),
    [
        (Traits(first_off_s=1000), {0: -99_999}),
        (Traits(stuck_every=10), {9: 0, 10: 2, 19: 0, 20: 2}),
        (Traits(backward_every=10), {9: -2, 10: 4, 19: -2, 20: 4}),
    ],
)
def test_timestamps_that_no_clock_makes(small: FarmConfig, traits: Traits, expected: dict[int, int]) -> None:
    """A wild first one; equal ones; such that go back. The others step by one frame."""
    _, units = hear(small, traits, 25)
    assert {at: step for at, step in enumerate(steps(units)) if step != 1} == expected


def test_a_prebuffer_comes_at_once(small: FarmConfig) -> None:
    """Two seconds of frames are sent at PLAY, before any time passes; then the camera goes on live."""
    _, units = hear(small, Traits(prebuffer_s=2), 220)
    stamps = [parse_sei(unit.data) for unit in units]
    burst_s = (stamps[199].sent_ns - stamps[0].sent_ns) / 1e9  # type: ignore[union-attr]
    assert burst_s < 1.0
    assert set(steps(units)) == {1}


@pytest.mark.parametrize("codec", CODECS)
def test_a_camera_without_key_units_sends_parameter_sets_all_the_same(small: FarmConfig, codec: Codec) -> None:
    """Periodic intra refresh: there is never a picture to begin with."""
    _, units = hear(small, Traits(no_key=True, codec=codec))
    assert keys(codec, units) == []
    assert sum(any(nal_type(codec, nal) in (7, 33) for nal in unit.nals) for unit in units) >= 2


@pytest.mark.parametrize("codec", CODECS)
def test_parameter_sets_flap_and_the_picture_does_not(small: FarmConfig, codec: Codec) -> None:
    """Another SPS in every GOP, of the same size and profile."""
    _, units = hear(small, Traits(sps_flap=True, codec=codec), 65)
    seen = [sps(codec, units[at]) for at in keys(codec, units)]
    assert len(seen) == 4
    assert seen[0] == seen[2] != seen[1] == seen[3]
    if codec is Codec.H264:
        assert {bytes(one[:3] + one[4:]) for one in seen} == {seen[0][:3] + seen[0][4:]}


@pytest.mark.parametrize("codec", CODECS)
def test_units_may_be_dressed_in_other_ways(small: FarmConfig, codec: Codec) -> None:
    """Delimiters, parameter sets in one packet, several slices, the marker bit on SEI: the units are the same."""
    traits = Traits(codec=codec, delimiters=True, aggregate=True, slices=3)
    _, units = hear(small, traits, 30)
    assert all(nal_type(codec, unit.nals[0]) == {Codec.H264: 9, Codec.H265: 35}[codec] for unit in units)
    if codec is Codec.H264:  # libx265 keeps one slice for so small a picture
        assert {sum(is_slice(codec, nal) for nal in unit.nals) for unit in units} == {3}


def test_the_marker_may_be_on_the_stamp_too(small: FarmConfig) -> None:
    """Two markers in a unit: the timestamp alone tells where it ends."""
    with Farm(replace(small, traits={0: Traits(stamp_marker=True)})) as farm, RtspClient(farm.url(0)) as client:
        client.play()
        packets = [client.packet() for _ in range(30)]
    assert all(packet.marker for packet in packets if packet.payload[0] & 31 == 6)


@pytest.mark.parametrize("sets", ["full", "none", "annex-b", "garbage"])
@pytest.mark.parametrize("codec", CODECS)
def test_the_session_description_may_lack_or_garble_parameter_sets(small: FarmConfig, codec: Codec, sets: str) -> None:
    """As they should be, missing, with start codes, or as bytes that mean nothing; in-band they are right."""
    client, units = hear(small, Traits(codec=codec, sdp_sets=sets), 3)  # type: ignore[arg-type]
    real = sps(codec, units[0])
    said = [base64.b64decode(text + "==") for line in client.sdp.splitlines() if "sprop" in line for text in _values(line)]
    match sets:
        case "full":
            assert real in said
        case "none":
            assert said == []
        case "annex-b":
            assert real in [nal for one in said for nal in split_annex_b(one)]
            assert real not in said
        case _:
            assert said
            assert real not in said


def _values(line: str) -> list[str]:
    """Base64 values of the sprop parameters of an fmtp line."""
    parts = (part.strip() for part in line.partition(" ")[2].split(";"))
    return [text for part in parts if part.startswith("sprop") for text in part.partition("=")[2].split(",")]


@pytest.mark.parametrize(
    ("reports", "count"),
    [("true", 1), ("none", 0), ("late", 0), ("stranger", 1), ("wrong", 1)],
)
def test_sender_reports_may_be_absent_late_strange_or_wrong(small: FarmConfig, reports: str, count: int) -> None:
    """In the first half second."""
    client, units = hear(small, Traits(reports=reports), 50)  # type: ignore[arg-type]
    assert len(client.reports) == count
    for report in client.reports:
        stamp = parse_sei(units[0].data)
        assert stamp is not None
        assert (report.ssrc == units[0].ssrc) == (reports != "stranger")
        assert (abs(report.utc_s - stamp.sent_ns / 1e9) < 10) == (reports != "wrong")


def test_declared_sound_may_never_come(small: FarmConfig) -> None:
    """The SDP names it, SETUP accepts it, nothing is sent."""
    client, _ = hear(small, Traits(audio="aac", audio_late_s=math.inf), 60, audio=True)
    assert "mpeg4-generic" in client.sdp
    assert client.audio == []


@pytest.mark.slow
def test_declared_sound_may_come_late(small: FarmConfig) -> None:
    """After half a second it comes, with the timestamps of that moment."""
    client, units = hear(small, Traits(audio="pcma", audio_late_s=0.5), 100, audio=True)
    assert 15 <= len(client.audio) <= 30
    report = next(report for report in client.reports if report.ssrc != units[0].ssrc)
    assert 0.45 < (client.audio[0].timestamp - report.timestamp) % 2**32 / 8000 < 0.55


@pytest.mark.slow
@pytest.mark.parametrize(("ratio", "least", "most"), [(0.5, 20, 28), (1.0, 45, 52), (2.0, 90, 103)])
def test_a_sound_card_may_be_fast_or_slow(small: FarmConfig, ratio: float, least: int, most: int) -> None:
    """Frames of 20 ms in a second of picture."""
    client, _ = hear(small, Traits(audio="pcma", audio_hz_ratio=ratio), 101, audio=True)
    assert least <= len(client.audio) <= most


def test_aac_may_lack_its_configuration_and_have_an_odd_rate(small: FarmConfig) -> None:
    """No `config=` in the SDP; 22,050 Hz."""
    client, _ = hear(small, Traits(audio="aac", audio_config=False, audio_rate=22_050), 20, audio=True)
    assert "mpeg4-generic/22050/1" in client.sdp
    assert "config=" not in client.sdp


@pytest.mark.parametrize(
    ("traits", "status"),
    [(Traits(refuse=True), 401), (Traits(clients_max=0), 453)],
)
def test_a_camera_may_refuse(small: FarmConfig, traits: Traits, status: int) -> None:
    """Whatever the login; or because too many are there."""
    with Farm(replace(small, traits={0: traits})) as farm, RtspClient(farm.url(0)) as client:
        assert client.ask("SETUP", farm.url(0) + "/trackID=0", Transport="RTP/AVP/TCP;unicast;interleaved=0-1").status == status


def test_a_camera_may_close_or_never_answer(small: FarmConfig) -> None:
    """Away: the connection is closed at the first request. Hung: it stays open, and nothing comes."""
    config = replace(small, streams=3, traits={0: Traits(away=True), 1: Traits(hang=True)})
    with Farm(config) as farm, RtspClient(farm.url(0)) as away, RtspClient(farm.url(1)) as hung, RtspClient(farm.url(2)) as sane:
        with pytest.raises(EOFError):
            away.ask("OPTIONS")
        hung.sock.sendall(f"DESCRIBE {hung.url} RTSP/1.0\r\nCSeq: 1\r\n\r\n".encode())
        sane.play()
        sane.units(20)
        hung.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            hung.sock.recv(1)


def test_a_mute_camera_answers_and_sends_nothing(small: FarmConfig) -> None:
    """From the start; when it is unmuted it begins with a key unit, and no number was used up."""
    config = replace(small, streams=2, traits={0: Traits(mute=True)})
    with Farm(config) as farm, RtspClient(farm.url(0)) as client, RtspClient(farm.url(1)) as sane:
        client.play()
        sane.play()
        sane.units(20)
        assert client.ask("GET_PARAMETER").status == 200
        assert farm.sent(0).made == 0
        farm.act(Act("unmute", (0,)))
        units = client.units(5)
    assert check_access_units(unit.data for unit in units).ranges == ((0, 4),)


def test_a_camera_that_falls_silent_goes_on_without_a_hole_in_its_numbers(small: FarmConfig) -> None:
    """Sequence numbers and frame numbers go on; timestamps tell how long it was. Its neighbour on the same feed sees nothing."""
    with Farm(replace(small, streams=2)) as farm, RtspClient(farm.url(0)) as client, RtspClient(farm.url(1)) as sane:
        client.play()
        sane.play()
        units = client.units(10)
        farm.act(Act("mute", (0,), for_s=0.3))
        until_stepped(client, units)
        sane_units = sane.units(60)
    assert client.lost == 0
    assert check_access_units(unit.data for unit in units).whole
    long_steps = [step for step in steps(units) if step != 1]
    assert len(long_steps) == 1
    assert long_steps[0] >= 25
    assert set(steps(sane_units)) == {1}
    assert sane.lost == 0


def test_a_restarted_camera_begins_at_zero_in_the_middle_of_a_gop(small: FarmConfig) -> None:
    """Timestamps and sequence numbers at 0, another SSRC, no key unit first: the connection lives."""
    with Farm(small) as farm, RtspClient(farm.url(0)) as client:
        client.play()
        units = client.units(12)
        farm.act(Act("restart"))
        while units[-1].ssrc == units[0].ssrc:
            units.append(client.unit())
        first = len(units) - 1
        units += client.units(30)
    assert (units[first].timestamp, units[first].first_seq) == (0, 0)
    assert keys(Codec.H264, units[first:])[0] == 10
    assert check_access_units(unit.data for unit in units).whole


@pytest.mark.parametrize("seconds", [3600.0, -2.5])
def test_timestamps_may_jump(small: FarmConfig, seconds: float) -> None:
    """Forward by an hour, back by some seconds; sequence numbers say that nothing was lost."""
    with Farm(small) as farm, RtspClient(farm.url(0)) as client:
        client.play()
        units = client.units(10)
        farm.act(Act("jump", seconds=seconds))
        until_stepped(client, units)
    assert [step for step in steps(units) if step != 1] == [round(seconds * 100) + 1]
    assert client.lost == 0


def test_frames_may_be_lost_on_the_way(small: FarmConfig) -> None:
    """A hole in sequence numbers and in time; the frames after it are whole."""
    with Farm(small) as farm, RtspClient(farm.url(0)) as client:
        client.play()
        units = client.units(10)
        farm.act(Act("lose", frames=7))
        until_stepped(client, units)
    assert [step for step in steps(units) if step != 1] == [8]
    gaps = [(after.first_seq - before.last_seq) & 0xFFFF for before, after in pairwise(units)]
    assert len([gap for gap in gaps if gap != 1]) == 1
    assert max(gaps) >= 14


@pytest.mark.parametrize("live", [True, False])
def test_a_camera_may_change_its_picture_while_it_runs(small: FarmConfig, live: bool) -> None:
    """Another size from a key unit on, in one connection; DESCRIBE tells the new one afterwards."""
    change = Act("change", (0,), at_s=0.3, width=192, height=144)
    with Farm(replace(small, script=() if live else (change,))) as farm, RtspClient(farm.url(0)) as client:
        client.play()
        units = client.units(5)
        if live:
            farm.act(change)
        parameter_sets = sps(Codec.H264, units[0])
        while keys(Codec.H264, units[-1:]) == [] or sps(Codec.H264, units[-1]) == parameter_sets:
            units.append(client.unit())
        units += client.units(30)
        assert client.ask("DESCRIBE").status == 200
    decoder = av.CodecContext.create("h264", "r")
    sizes = [(frame.width, frame.height) for unit in units for frame in decoder.decode(av.Packet(unit.annex_b))]
    assert len(sizes) > 30
    assert sizes == sorted(sizes)
    assert set(sizes) == {(160, 120), (192, 144)}
    assert check_access_units(unit.data for unit in units).whole
    assert client.lost == 0
    assert all(0 <= step <= 2 for step in steps(units))


def test_refusals_and_absences_come_and_go(small: FarmConfig) -> None:
    """refuse, admit, leave, come: who plays while it is refused goes on; who plays when it leaves is disconnected."""
    with Farm(small) as farm, RtspClient(farm.url(0)) as client:
        client.play()
        farm.act(Act("refuse"))
        with RtspClient(farm.url(0)) as other:
            assert other.ask("DESCRIBE").status == 401
        client.units(3)
        farm.act(Act("admit"))
        farm.act(Act("leave"))
        client.to_the_end()
        with RtspClient(farm.url(0)) as other, pytest.raises(EOFError):
            other.ask("DESCRIBE")
        farm.act(Act("come"))
        with RtspClient(farm.url(0)) as other:
            other.play()
            assert other.units(2)


def test_a_reset_breaks_the_connection_off(small: FarmConfig) -> None:
    """RST, not FIN: what is under way is lost."""
    with Farm(small) as farm, RtspClient(farm.url(0)) as client:
        client.play()
        client.units(3)
        farm.act(Act("reset"))
        with pytest.raises(ConnectionResetError):
            client.to_the_end()


def test_a_hung_camera_wakes_up_again(small: FarmConfig) -> None:
    """Neither frames nor answers, then both again on the same connection."""
    with Farm(small) as farm, RtspClient(farm.url(0)) as client:
        client.play()
        units = client.units(5)
        farm.act(Act("hang", for_s=0.2))
        until_stepped(client, units)
        assert client.ask("GET_PARAMETER").status == 200
    assert max(steps(units)) > 10
    assert check_access_units(unit.data for unit in units).whole


def test_a_flapping_camera_disconnects_again_and_again(small: FarmConfig) -> None:
    """A script's act repeats."""
    script = (Act("disconnect", (0,), at_s=0.1, every_s=0.1),)
    with Farm(replace(small, script=script)) as farm:
        for _ in range(3):
            with RtspClient(farm.url(0)) as client:
                client.play()
                client.to_the_end()


def test_an_act_on_a_stream_that_is_not_there_is_refused(small: FarmConfig) -> None:
    """Now, in a script, and as a trait."""
    with Farm(small) as farm, pytest.raises(UsageError, match="stream 1"):
        farm.act(Act("mute", (1,)))
    for config in (replace(small, script=(Act("mute", (3,)),)), replace(small, traits={3: Traits()})):
        with pytest.raises(UsageError, match="3 is not one of the 1 streams"):
            Farm(config)
