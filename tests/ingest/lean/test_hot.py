"""Video packets to access units: every way of cutting, in reads of any size, gives back what was cut; what is missing is told."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.packets import Line, Wire, aggregate, fragments, framed, packet

from nvrstore.ingest.lean import hot

CODECS = ["h264", "hevc"]
#: First bytes of NAL units: a slice that begins a picture, a later slice of it, IDR, SPS, SEI, delimiter.
FIRST = {"h264": b"\x41\x9a", "hevc": b"\x02\x01\xd0"}
LATER = {"h264": b"\x41\x1a", "hevc": b"\x02\x01\x50"}
IDR = {"h264": b"\x65\x88", "hevc": b"\x26\x01\xaf"}
SETS = {"h264": b"\x67\x42", "hevc": b"\x42\x01\x01"}
SEI = {"h264": b"\x06\x05", "hevc": b"\x4e\x01\x05"}
DELIMITER = {"h264": b"\x09\xf0", "hevc": b"\x46\x01\x50"}


def nal(codec: str, start: dict[str, bytes], size: int, seed: int = 0) -> bytes:
    """A NAL unit of `size` bytes."""
    return start[codec] + random.Random(seed).randbytes(max(0, size - len(start[codec])))


@given(
    codec=st.sampled_from(CODECS),
    sizes=st.lists(st.lists(st.integers(3, 9000), min_size=1, max_size=4), min_size=1, max_size=6),
    cut=st.integers(40, 1400),
    reads=st.lists(st.integers(1, 4000), max_size=60),
    marker=st.booleans(),
    seq=st.integers(0, 65_535),
)
def test_what_was_cut_is_put_together_again(codec: str, sizes: list[list[int]], cut: int, reads: list[int], marker: bool, seq: int) -> None:
    """Whatever the sizes of NAL units, packets and reads, with or without markers, across the wrap of sequence numbers."""
    wire, line = Wire(codec, seq), Line(codec)
    sent = []
    data = b""
    for number, group in enumerate(sizes):
        nals = [nal(codec, FIRST if i == 0 else LATER, size, seed=size) for i, size in enumerate(group)]
        sent.append(nals)
        data += b"".join(wire.unit(nals, number * 3600, cut=cut, marker=marker))
    line.feed_in(data, reads)
    line.reader.flush()
    assert [unit.nals for unit in line.units] == sent
    assert [unit.timestamp for unit in line.units] == [number * 3600 for number in range(len(sizes))]
    assert not any(unit.damaged for unit in line.units)
    assert line.reader.sequence.lost == 0


@pytest.mark.parametrize("codec", CODECS)
def test_a_run_of_equal_packets_is_taken_at_once(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast way is taken, and gives what the slow way gives."""
    taken: list[int] = []
    fast = hot._payloads

    def counting(stride: int, skip: int, count: int) -> object:
        taken.append(count)
        return fast(stride, skip, count)

    monkeypatch.setattr(hot, "_payloads", counting)
    picture = nal(codec, FIRST, 100_000)
    line, wire = Line(codec), Wire(codec, seq=100)
    line.feed(b"".join(wire.unit([picture], 0)))
    assert [unit.nals for unit in line.units] == [[picture]]
    assert sum(taken) >= len(fragments(codec, picture, 1200)) - 3
    assert max(taken) == hot.RUN_MAX + 1


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("change", ["type", "channel", "sequence", "hundreds", "marker", "version", "fragment"])
def test_a_packet_that_is_not_like_the_others_ends_a_run(codec: str, change: str) -> None:
    """Every byte that is looked at counts: what differs is not taken for video of the same picture."""
    picture = nal(codec, FIRST, 20_000)
    line, wire = Line(codec), Wire(codec, seq=100)
    frames = [bytearray(frame) for frame in wire.unit([picture], 0)]
    fragment = 17 if codec == "h264" else 18
    at = {"type": 5, "channel": 1, "sequence": 7, "hundreds": 6, "marker": 5, "version": 4, "fragment": fragment}[change]
    frames[5][at] ^= {"type": 1, "channel": 2, "sequence": 0x20, "hundreds": 1, "marker": 0x80, "version": 0x40, "fragment": 0x40}[change]
    line.feed(b"".join(frames))
    line.reader.flush()
    assert [unit.nals for unit in line.units] != [[picture]]
    assert any(unit.damaged for unit in line.units)


@pytest.mark.parametrize("codec", CODECS)
def test_aggregates_are_taken_apart(codec: str) -> None:
    """Parameter sets and SEI in one packet, a picture behind them."""
    small = [nal(codec, DELIMITER, 3), nal(codec, SETS, 20), nal(codec, SEI, 30)]
    picture = nal(codec, IDR, 5000)
    line, wire = Line(codec), Wire(codec)
    line.feed(b"".join(wire.packets([aggregate(codec, small), *fragments(codec, picture, 900)], 0)))
    assert [unit.nals for unit in line.units] == [[*small, picture]]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("lost", [0, 1, 5, 16])
def test_a_lost_packet_is_counted_and_flags_its_access_unit(codec: str, lost: int) -> None:
    """First, second, any, last but one: what came before the hole is kept, what follows is not taken for its continuation."""
    line, wire = Line(codec), Wire(codec)
    picture = nal(codec, FIRST, 20_000)
    line.feed(b"".join(wire.unit([nal(codec, FIRST, 500)], 0)))
    frames = wire.unit([picture], 3600)
    assert len(frames) > 16
    line.feed(b"".join(frame for i, frame in enumerate(frames) if i != lost))
    line.feed(b"".join(wire.unit([nal(codec, FIRST, 500)], 7200)))
    line.reader.flush()
    assert line.reader.sequence.lost == 1
    torn = [unit for unit in line.units if unit.timestamp == 3600]
    assert [unit.damaged for unit in torn] == ([True] if lost else [])
    if lost:
        assert torn[0].nals == [picture[: len(torn[0].nals[0])]]
        assert len(torn[0].nals[0]) >= 1200 * lost
    assert [unit.damaged for unit in line.units if unit.timestamp == 7200] == [not lost]


@pytest.mark.parametrize("codec", CODECS)
def test_a_lost_marker_damages_nobody_else(codec: str) -> None:
    """The last packet is missing: that access unit is damaged; the next one plainly begins behind the hole."""
    line, wire = Line(codec), Wire(codec)
    frames = wire.unit([nal(codec, FIRST, 5000)], 0)
    line.feed(b"".join(frames[:-1]))
    line.feed(b"".join(wire.unit([nal(codec, SEI, 20), nal(codec, FIRST, 5000)], 3600)))
    assert [unit.damaged for unit in line.units] == [True, False]


@pytest.mark.parametrize("codec", CODECS)
def test_whole_access_units_that_are_lost_flag_the_next_one(codec: str) -> None:
    """Nobody knows whether its beginning is among what is missing: never silently whole."""
    line, wire = Line(codec), Wire(codec)
    line.feed(b"".join(wire.unit([nal(codec, FIRST, 50)], 0)))
    wire.unit([nal(codec, FIRST, 9000)], 3600)
    for timestamp in (7200, 10_800):
        line.feed(b"".join(wire.unit([nal(codec, FIRST, 50)], timestamp)))
    assert [(unit.timestamp, unit.damaged) for unit in line.units] == [(0, False), (7200, True), (10_800, False)]
    assert line.reader.sequence.lost == 8


@pytest.mark.parametrize("codec", CODECS)
def test_a_session_that_begins_in_the_middle_of_a_picture_leaves_its_rest_out(codec: str) -> None:
    """Nothing of it was ever owed: the first access unit is the first whole one."""
    for skipped in (0, 3, 8):
        line, wire = Line(codec), Wire(codec)
        line.feed(b"".join(wire.unit([nal(codec, FIRST, 9000), nal(codec, LATER, 50)], 7)[skipped:]))
        line.feed(b"".join(wire.unit([nal(codec, FIRST, 9000), nal(codec, LATER, 50)], 3607)))
        assert [unit.timestamp for unit in line.units] == ([3607] if skipped else [7, 3607])
        assert not any(unit.damaged for unit in line.units)


@pytest.mark.parametrize("codec", CODECS)
def test_a_hole_in_a_picture_that_is_left_out_damages_nobody(codec: str) -> None:
    """Nobody is owed that picture, so nobody misses its packets."""
    line, wire = Line(codec), Wire(codec)
    frames = wire.unit([nal(codec, FIRST, 9000), nal(codec, LATER, 50)], 7)
    line.feed(b"".join(frames[3:5] + frames[6:]))
    for timestamp in (3607, 7207):
        line.feed(b"".join(wire.unit([nal(codec, SEI, 20), nal(codec, FIRST, 5000)], timestamp)))
    assert [(unit.timestamp, unit.damaged) for unit in line.units] == [(3607, False), (7207, False)]


@pytest.mark.parametrize("codec", CODECS)
def test_a_clock_that_stands_still_hides_no_pictures_behind_one_that_is_left_out(codec: str) -> None:
    """Every picture has the timestamp of the one that had begun before the session: all but that one come out."""
    line, wire = Line(codec), Wire(codec)
    pictures = [[nal(codec, FIRST, 3000, seed), nal(codec, LATER, 50, seed)] for seed in range(48)]
    line.feed(b"".join(wire.unit(pictures[0], 7)[1:]))
    for picture in pictures[1:]:
        line.feed(b"".join(wire.unit(picture, 7)))
    assert [unit.nals for unit in line.units] == pictures[1:]
    assert not any(unit.damaged for unit in line.units)


@pytest.mark.parametrize("codec", CODECS)
def test_a_clock_that_begins_anew_passes_the_timestamp_of_a_picture_that_was_left_out(codec: str) -> None:
    """What a timestamp meant when the session began it means no longer."""
    line, wire = Line(codec), Wire(codec)
    line.feed(b"".join(wire.unit([nal(codec, FIRST, 3000)], 3607)[1:]))
    times = [7207, 10_807, 7, 3607, 7207]
    for timestamp in times:
        line.feed(b"".join(wire.unit([nal(codec, FIRST, 3000)], timestamp)))
    assert [unit.timestamp for unit in line.units] == times


@pytest.mark.parametrize("codec", CODECS)
def test_a_session_that_ends_in_the_middle_of_a_picture_says_so(codec: str) -> None:
    """What is open at the end is given out, and is known to be incomplete where markers end pictures."""
    line, wire = Line(codec), Wire(codec)
    line.feed(b"".join(wire.unit([nal(codec, FIRST, 500)], 0)))
    line.feed(b"".join(wire.unit([nal(codec, FIRST, 9000)], 3600)[:-1]))
    line.reader.flush()
    assert [unit.damaged for unit in line.units] == [False, True]
    assert line.sink.flushed == 1


def test_doubled_and_late_packets_are_left_out() -> None:
    """Over TCP only a confused sender does that."""
    line, wire = Line(), Wire()
    frames = wire.unit([nal("h264", FIRST, 9000)], 0)
    line.feed(b"".join([*frames[:4], frames[3], frames[1], *frames[4:]]))
    assert [len(unit.nals[0]) for unit in line.units] == [9000]
    assert not line.units[0].damaged
    assert line.reader.sequence.late == 2


def test_numbers_that_begin_anew_are_followed() -> None:
    """A restart inside a session: what is torn is flagged, then everything is as before."""
    line, wire = Line(), Wire(seq=40_000)
    line.feed(b"".join(wire.unit([nal("h264", FIRST, 9000)], 0)[:4]))
    wire.seq = 0
    for timestamp in (90_000, 93_600):
        line.feed(b"".join(wire.unit([nal("h264", FIRST, 9000)], timestamp)))
    assert [unit.damaged for unit in line.units] == [True, False, False]


def test_a_clock_that_begins_anew_behind_a_hole_is_a_restart_and_no_loss() -> None:
    """Servers that rewind for another client skip a number: what plainly begins there is whole."""
    line, wire = Line(), Wire()
    for timestamp in (180_000, 183_600):
        line.feed(b"".join(wire.unit([nal("h264", FIRST, 5000)], timestamp)))
    wire.seq += 1
    for timestamp in (7, 3607):
        line.feed(b"".join(wire.unit([nal("h264", FIRST, 5000)], timestamp)))
    assert [unit.damaged for unit in line.units] == [False] * 4
    wire.seq += 1
    line.feed(b"".join(wire.unit([nal("h264", FIRST, 5000)], 7)))
    assert line.units[-1].damaged


def test_another_source_is_taken_when_two_of_its_packets_follow_each_other() -> None:
    """RFC 3550 A.1; a single stray packet of a stranger changes nothing."""
    line, wire = Line(), Wire()
    stray = framed(packet(b"\x41\x9a", 5, 0, ssrc=99))
    frames = wire.unit([nal("h264", FIRST, 9000)], 0)
    line.feed(b"".join([*frames[:3], stray, *frames[3:]]))
    assert [unit.damaged for unit in line.units] == [False]
    line.feed(b"".join(wire.unit([nal("h264", FIRST, 9000)], 3600)[:4]))
    other = Wire(ssrc=8)
    for timestamp in (0, 3600):
        line.feed(b"".join(other.unit([nal("h264", FIRST, 9000)], timestamp)))
    assert [unit.damaged for unit in line.units] == [False, True, False, False]
    assert [len(unit.nals[0]) for unit in line.units[2:]] == [9000, 9000]


def test_csrcs_extensions_and_padding_are_stepped_over() -> None:
    """RFC 3550 5.1: they are not video."""
    line = Line()
    picture = nal("h264", FIRST, 100)
    csrcs = packet(b"\1\2\3\4\5\6\7\x08" + picture[:60], 1, 0, first=0x82)
    extended = packet(b"\xab\xac\0\1\0\0\0\0" + picture, 2, 3600, first=0x90, marker=True)
    padded = packet(picture + b"\0\0\3", 3, 7200, first=0xA0, marker=True)
    for data in (csrcs, extended, padded):
        line.feed(framed(data))
    assert [unit.nals for unit in line.units] == [[picture[:60]], [picture], [picture]]


@pytest.mark.parametrize("first", [0xAF, 0xB0, 0x8F, 0x00, 0xC0])
@pytest.mark.parametrize("size", [0, 1, 3, 11, 12, 13, 16, 20])
def test_packets_that_lie_about_their_header_are_left_out(first: int, size: int) -> None:
    """More CSRCs, extension or padding than there are bytes, another version, no header at all."""
    line, wire = Line(), Wire(seq=1)
    line.feed(framed(packet(b"\xff" * 8, 1, 0, first=first)[:size]))
    line.feed(b"".join(wire.unit([nal("h264", FIRST, 100)], 3600)))
    assert [unit.timestamp for unit in line.units][-1] == 3600
    assert len(line.units) <= 2


# --- what cameras do


def test_camera_17_a_marker_on_an_sei_does_not_lose_the_picture_behind_it() -> None:
    """It is an access unit of its own, to be joined with the next one: markers in the middle never tear pictures."""
    line, wire = Line(), Wire()
    line.feed(b"".join(wire.unit([nal("h264", SEI, 20)], 0)))
    line.feed(b"".join(wire.unit([nal("h264", FIRST, 5000)], 0)))
    line.feed(b"".join(wire.unit([nal("h264", FIRST, 5000)], 3600)))
    assert [[piece[0] & 31 for piece in unit.nals] for unit in line.units] == [[6], [1], [1]]
    assert not any(unit.damaged for unit in line.units)


@pytest.mark.parametrize("codec", CODECS)
def test_camera_17_a_camera_that_marks_every_slice_is_seen_through(codec: str) -> None:
    """From the second slice of a picture on the timestamp alone ends access units; the first picture is flagged."""
    line, wire = Line(codec), Wire(codec)
    sent = []
    for timestamp in range(0, 4 * 3600, 3600):
        slices = [nal(codec, FIRST, 2000, seed=timestamp), nal(codec, LATER, 2000), nal(codec, LATER, 300)]
        sent.append(slices)
        line.feed(b"".join(frame for piece in slices for frame in wire.unit([piece], timestamp)))
    line.reader.flush()
    assert [unit.nals for unit in line.units[2:]] == sent[1:]
    assert [unit.damaged for unit in line.units] == [False, True, False, False, False]


def test_camera_17_the_type_of_a_fragment_may_change_inside_a_unit() -> None:
    """The first fragment says what it is."""
    line, wire = Line(), Wire()
    picture = nal("h264", IDR, 9000)
    payloads = [bytearray(piece) for piece in fragments("h264", picture, 1000)]
    for piece in payloads[1:]:
        piece[1] = piece[1] & 0xE0 | 1
    line.feed(b"".join(wire.packets(map(bytes, payloads), 0)))
    assert [unit.nals for unit in line.units] == [[picture]]


@pytest.mark.parametrize("codec", CODECS)
def test_camera_17_empty_fragments_and_packets_are_stepped_over(codec: str) -> None:
    """They carry nothing, and nothing is lost with them."""
    line, wire = Line(codec), Wire(codec)
    picture = nal(codec, FIRST, 3000)
    pieces = fragments(codec, picture, 1000)
    head = pieces[1][: 2 if codec == "h264" else 3]
    line.feed(b"".join(wire.packets([pieces[0], head, head, *pieces[1:]], 0)))
    line.feed(framed(packet(b"", 3, 3600)))
    assert [unit.nals for unit in line.units] == [[picture]]
    assert not line.units[0].damaged


def test_camera_17_a_fragment_without_an_end_is_ended_by_what_follows() -> None:
    """Some cameras never set the end bit."""
    line, wire = Line(), Wire()
    pieces = fragments("h264", nal("h264", FIRST, 3000), 1000)
    pieces[-1] = bytes((pieces[-1][0], pieces[-1][1] & 0xBF)) + pieces[-1][2:]
    later = nal("h264", LATER, 100)
    line.feed(b"".join(wire.packets([*pieces, later], 0)))
    assert [unit.nals for unit in line.units] == [[nal("h264", FIRST, 3000), later]]


def test_camera_17_a_camera_that_never_sets_the_end_bit_is_believed_after_a_while() -> None:
    """Until then its pictures are flagged: a marker in the middle of a fragmented slice means that something is missing."""
    line, wire = Line(), Wire()
    pieces = fragments("h264", nal("h264", FIRST, 3000), 1000)
    pieces[-1] = bytes((pieces[-1][0], pieces[-1][1] & 0xBF)) + pieces[-1][2:]
    for number in range(12):
        line.feed(b"".join(wire.packets(pieces, number * 3600)))
    assert [unit.damaged for unit in line.units] == [True] * 7 + [False] * 5
    assert all(unit.nals == [nal("h264", FIRST, 3000)] for unit in line.units)


def test_camera_17_a_camera_that_marks_every_packet_is_seen_through() -> None:
    """The first picture is torn, and flagged; from then on timestamps end access units."""
    line, wire = Line(), Wire()
    picture = nal("h264", FIRST, 5000)
    for number in range(4):
        line.feed(b"".join(frame for piece in fragments("h264", picture, 1000) for frame in wire.packets([piece], number * 3600)))
    line.reader.flush()
    assert [unit.damaged for unit in line.units] == [True, True, False, False]
    assert [unit.nals for unit in line.units[1:]] == [[picture]] * 3


def test_camera_17_too_many_nal_units_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of a million pieces is none: it is dropped, and the next sample says that something is missing."""
    monkeypatch.setattr(hot, "PARTS_MAX", 1000)
    line, wire = Line(), Wire()
    line.feed(b"".join(wire.packets([aggregate("h264", [b"\x41\x9a"] * 300)] * 10, 0, marker=False)))
    line.feed(b"".join(wire.unit([nal("h264", FIRST, 100)], 3600)))
    line.feed(b"".join(wire.unit([nal("h264", FIRST, 100)], 7200)))
    assert [unit.damaged for unit in line.units if unit.timestamp >= 3600] == [True, False] or line.units[0].damaged


def test_a_picture_without_an_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fragments for ever, no marker, no new timestamp: memory does not follow."""
    monkeypatch.setattr(hot, "SAMPLE_BYTES_MAX", 50_000)
    line, wire = Line(), Wire()
    pieces = fragments("h264", nal("h264", FIRST, 9000), 1000)
    line.feed(wire.packets(pieces[:1], 0, marker=False)[0])
    for _ in range(200):
        line.feed(b"".join(wire.packets(pieces[1:-1], 0, marker=False)))
        assert sum(map(len, line.reader._parts)) <= 60_000
    line.feed(b"".join(wire.unit([nal("h264", FIRST, 100)], 3600)))
    assert [unit.damaged for unit in line.units] == [True]


@given(st.binary(max_size=3000), st.sampled_from(CODECS), st.lists(st.integers(1, 300), max_size=20))
def test_no_payload_makes_a_reader_raise(garbage: bytes, codec: str, cuts: list[int]) -> None:
    """Whatever is in well-framed packets: access units are well-formed, and a sane picture behind it is whole."""
    line, wire = Line(codec), Wire(codec)
    at = 0
    for timestamp, cut in enumerate(cuts):
        line.feed(b"".join(wire.packets([garbage[at : at + cut]], timestamp // 3 * 3600, marker=cut % 5 == 0)))
        at += cut
    picture = nal(codec, FIRST, 4000)
    for timestamp in (90_000_000, 90_003_600):
        line.feed(b"".join(wire.unit([picture], timestamp)))
    line.reader.flush()
    for unit in line.units:
        assert unit.nals
    assert line.units[-1].nals == [picture]
    assert not line.units[-1].damaged
