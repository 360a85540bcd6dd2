"""Datagrams that overtook each other: against a sorted oracle, whatever the order, and bounded in time and number."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.packets import framed, packet

from nvrstore.ingest.lean.jitter import HELD_MAX, HOLD_S, Jitter
from nvrstore.ingest.lean.rtp import LATE_MAX


def made(number: int, ssrc: int = 7) -> bytes:
    return framed(packet(b"", number, 0, ssrc=ssrc))


def numbers(packets: list[bytes]) -> list[int]:
    return [int.from_bytes(data[6:8], "big") for data in packets]


def read(jitter: Jitter, *wanted: int, now_s: float = 0.0, ssrc: int = 7) -> list[int]:
    """What one read of these numbers gives on."""
    return numbers(jitter.order([made(number, ssrc) for number in wanted], now_s))


def test_what_is_missing_is_waited_for_and_then_all_goes_on() -> None:
    """As the module's first lines draw it; numbers wrap in the middle."""
    jitter = Jitter()
    assert read(jitter, 65_534, 65_535) == [65_534, 65_535]
    assert read(jitter, 1, 2) == []
    assert jitter.holds
    assert read(jitter, 0, 3) == [0, 1, 2, 3]
    assert not jitter.holds


def test_a_hole_that_stays_is_given_up_after_a_bounded_time() -> None:
    """Counted from when the first packet behind it came; each hole has its own time."""
    jitter = Jitter()
    read(jitter, 1)
    assert read(jitter, 3, now_s=10.0) == []
    assert read(jitter, 5, now_s=10.0 + HOLD_S / 2) == []
    assert jitter.due(10.0 + HOLD_S * 0.9) == []
    assert numbers(jitter.due(10.0 + HOLD_S)) == [3]
    assert numbers(jitter.due(10.0 + HOLD_S * 1.5)) == [5]
    assert not jitter.holds


def test_a_hole_that_stays_is_given_up_after_a_bounded_number() -> None:
    """Also where no time passes."""
    jitter = Jitter()
    read(jitter, 1)
    assert read(jitter, *range(3, 2 + HELD_MAX)) == []
    assert read(jitter, 2 + HELD_MAX) == list(range(3, 3 + HELD_MAX))


def test_the_first_read_says_what_comes_first() -> None:
    """Nothing else could."""
    assert read(Jitter(), 1, 0, 65_535) == [65_535, 0, 1]


def test_late_and_double_packets_are_left_to_whoever_counts_them() -> None:
    """They change nothing of what is expected; of those that are held there is one."""
    jitter = Jitter()
    read(jitter, 10, 11)
    assert read(jitter, 11, 10) == [11, 10]
    assert read(jitter, 13, 13) == []
    assert read(jitter, 12) == [12, 13]


def test_a_single_packet_from_far_back_is_lost_and_two_are_a_camera_that_counts_anew() -> None:
    """RFC 3550 A.1: or one datagram that took a detour would tear two pictures."""
    jitter = Jitter()
    read(jitter, 1000)
    assert read(jitter, 1000 - LATE_MAX - 1) == []
    assert read(jitter, 1001) == [1001]
    assert read(jitter, 1003) == []
    assert read(jitter, 5, 6) == [1003, 5, 6]
    assert jitter.expected == 7


def test_another_source_goes_on_at_once() -> None:
    """What the old one left is given on in front."""
    jitter = Jitter()
    read(jitter, 1, 3)
    assert read(jitter, 500, ssrc=8) == [3, 500]
    assert (jitter.ssrc, jitter.expected) == (8, 501)


@given(
    first=st.integers(0, 65_535),
    count=st.integers(1, 150),
    lost=st.sets(st.integers(1, 149)),
    reach=st.integers(1, HELD_MAX // 2),
    double=st.floats(0, 0.3),
    seed=st.integers(0, 1 << 32),
)
def test_every_order_within_reach_comes_out_sorted(first: int, count: int, lost: set[int], reach: int, double: float, seed: int) -> None:
    """Against the oracle: the packets that came, each once, sorted; doubles are let through behind, none is made up."""
    random = Random(seed)
    came = [at for at in range(count) if at not in lost]
    order = came[:1] + sorted(came[1:], key=lambda at: at + random.uniform(0, reach))
    order = [at for at in order for _ in range(2 if at and random.random() < double else 1)]
    jitter = Jitter()
    out: list[int] = []
    at = 0
    while at < len(order):
        size = random.randint(1, 8)
        out += read(jitter, *((first + number) & 0xFFFF for number in order[at : at + size]))
        at += size
        assert len(jitter._held) < HELD_MAX
    out += numbers(jitter.flush())
    found = [number - first & 0xFFFF for number in out]
    assert list(dict.fromkeys(found)) == came


@pytest.mark.parametrize("seed", range(20))
def test_no_numbers_make_it_raise_hold_on_or_make_anything_up(seed: int) -> None:
    """Whatever comes: nothing is given on that did not come, and nothing waits for longer than HOLD_S."""
    random = Random(seed)
    jitter = Jitter()
    given_on = 0
    for step in range(300):
        wanted = [random.choice((random.randrange(65_536), random.randrange(100))) for _ in range(random.randint(0, 12))]
        given_on += len(read(jitter, *wanted, now_s=step * 0.03, ssrc=random.choice((7, 7, 7, 8))))
        assert all(came_s > step * 0.03 - HOLD_S for _, came_s in jitter._held.values())
    assert given_on <= 300 * 12
