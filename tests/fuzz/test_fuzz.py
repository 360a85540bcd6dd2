"""No bytes of a camera crash the lean engine: every entry point, by seeds and by hypothesis; what fuzz.py finds gets a test here."""

from __future__ import annotations

import gc
import tracemalloc
from random import Random
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fuzz.entries import ENTRIES, SEEDS, handshake, hear, opened
from tests.support.packets import framed, packet


@pytest.mark.parametrize("entry", ENTRIES)
def test_what_is_orderly_passes(entry: str) -> None:
    """The seeds, whole and cut short anywhere."""
    for seed in SEEDS[entry]:
        for end in range(len(seed) + 1):
            ENTRIES[entry](seed[:end])


@pytest.mark.parametrize("entry", ENTRIES)
@given(data=st.data())
def test_no_bytes_crash(entry: str, data: st.DataObject) -> None:
    """Garbage, and what is orderly with pieces of it replaced."""
    if data.draw(st.booleans()):
        ENTRIES[entry](data.draw(st.binary(max_size=600)))
        return
    made = bytearray(data.draw(st.sampled_from(SEEDS[entry])))
    for at, piece in data.draw(st.lists(st.tuples(st.integers(0, len(made)), st.binary(max_size=8)), max_size=6)):
        made[at : at + len(piece)] = piece
    ENTRIES[entry](bytes(made))


GROWTH_BYTES_MAX: Final = 300_000  # an access unit that is open at one look and not at the other, and caches


@pytest.mark.slow
@pytest.mark.parametrize(("video", "sound"), [("h264", "aac"), ("hevc", "g711"), ("h264", "opus")])
def test_one_session_does_not_grow_whatever_the_camera_sends_in_it(video: str, sound: str) -> None:
    """Packets of all kinds, new sources, new parameter sets, reports, messages, other people's channels: bounded, for ever."""
    random = Random(7)
    kinds = [bytes((kind,)) for kind in range(256)]
    numbers = [1, 1]

    def sent() -> bytes:
        """One frame, or one message."""
        what = random.random()
        if what < 0.02:
            return b"RTSP/1.0 200 OK\r\nCSeq: %d\r\nX-%d: y\r\n\r\n" % (random.randrange(1 << 30), random.randrange(1 << 30))
        if what < 0.04:
            return framed(b"\x80\xc8\0\6" + random.randbytes(24), random.choice((1, 3)))
        if what < 0.06:
            return framed(packet(random.randbytes(30), 1, 0, ssrc=random.randrange(1 << 32)), random.randrange(4, 255))
        track = random.random() < 0.3
        numbers[track] += 1 if random.random() < 0.95 else random.randrange(1 << 16)
        ssrc = 7 if random.random() < 0.97 else random.randrange(1 << 32)
        body = random.choice(kinds) + random.randbytes(random.randrange(400))
        data = packet(body, numbers[track], random.randrange(1 << 32), ssrc=ssrc, payload_type=96 + track, marker=random.random() < 0.3)
        return framed(data, 2 * track)

    reads = handshake(video, sound)
    made, receiver = opened(reads)
    sizes = []
    tracemalloc.start()
    try:
        for _ in range(4):
            for _ in range(150):
                reads.append(b"".join(sent() for _ in range(20)))
                while reads:
                    hear(made, passes_s=0.05)
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert not receiver.ends, "the session is meant to go on"
    assert receiver.samples
    assert sizes[-1] - sizes[1] < GROWTH_BYTES_MAX, sizes
