"""A tap never slows the recording, and never shows a picture whose keyframe it dropped."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tests.support.media import AUDIO_CONFIG, VIDEO_CONFIG, sample

from nvrstore.ingest.taps import Tap
from nvrstore.model import Media


def feed(tap: Tap, number: int, *, keyframe: bool = False, size: int = 100, media: Media = Media.VIDEO) -> None:
    config = VIDEO_CONFIG if media is Media.VIDEO else AUDIO_CONFIG
    tap.offer(sample(number * 3600, data=bytes(size), keyframe=keyframe, media=media), config, number)


def numbers(tap: Tap) -> list[int]:
    return [item.utc_ns for item in tap.take()]


def test_samples_come_in_order_from_the_first_keyframe_on() -> None:
    """Analytics can decode from the first sample that they get."""
    tap = Tap()
    for number in range(10):
        feed(tap, number, keyframe=number % 4 == 2)
    assert numbers(tap) == list(range(2, 10))
    assert tap.statistics().dropped == 0


def test_a_slow_consumer_loses_whole_gops_and_is_told_how_much() -> None:
    """The oldest groups of pictures go; the first sample behind the hole says how many are missing."""
    tap = Tap(samples_max=10)
    for number in range(16):
        feed(tap, number, keyframe=number % 4 == 0)
    items = tap.take()
    assert [item.utc_ns for item in items] == list(range(8, 16))
    assert items[0].dropped_before == 8
    assert tap.statistics().dropped == 8


def test_a_gop_whose_beginning_was_taken_is_skipped_to_its_end() -> None:
    """When the rest of a group that is longer than the queue goes, what follows is useless until the next keyframe."""
    tap = Tap(samples_max=4)
    feed(tap, 0, keyframe=True)
    assert numbers(tap) == [0]
    for number in range(1, 8):
        feed(tap, number)
    assert numbers(tap) == []
    feed(tap, 8, keyframe=True)
    (item,) = tap.take()
    assert (item.utc_ns, item.dropped_before) == (8, 7)


def test_bytes_are_bounded() -> None:
    """Memory does not depend on how slow the consumer is."""
    tap = Tap(bytes_max=1000)
    for number in range(50):
        feed(tap, number, keyframe=number % 3 == 0, size=200)
        assert tap.statistics().waiting_bytes <= 1000


def test_keyframes_only_gives_keyframes_only() -> None:
    """What most analytics want: one picture per GOP, no decoding of the rest."""
    tap = Tap(keyframes_only=True)
    for number in range(9):
        feed(tap, number, keyframe=number % 4 == 0)
    assert numbers(tap) == [0, 4, 8]


def test_audio_comes_only_where_it_is_wanted() -> None:
    """Video alone is the default."""
    for audio, expected in ((False, [0]), (True, [0, 1])):
        tap = Tap(audio=audio)
        feed(tap, 0, keyframe=True)
        feed(tap, 1, media=Media.AUDIO, keyframe=True)
        assert numbers(tap) == expected


def test_a_stream_without_keyframes_is_shown_anyway() -> None:
    """Waiting for a keyframe has a bound."""
    tap = Tap(samples_max=5)
    for number in range(7):
        feed(tap, number)
    assert numbers(tap) == [5, 6]


def test_the_consumer_is_woken_when_something_waits_and_when_the_tap_closes() -> None:
    """Once per change from empty, not once per sample."""
    woken: list[int] = []
    tap = Tap(lambda: woken.append(1))
    for number in range(3):
        feed(tap, number, keyframe=number == 0)
    assert len(woken) == 1
    assert len(tap.take(2)) == 2
    tap.take()
    feed(tap, 3)
    tap.close()
    assert len(woken) == 3
    feed(tap, 4, keyframe=True)
    assert numbers(tap) == [3]
    assert tap.closed


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("offer"), st.booleans(), st.integers(1, 400)), st.tuples(st.just("take"), st.just(False), st.integers(0, 5))
        )
    )
)
def test_every_sample_is_delivered_or_counted(steps: list[tuple[str, bool, int]]) -> None:
    """Offered from the first keyframe on = delivered + dropped + waiting; and no picture comes whose keyframe was dropped."""
    tap = Tap(samples_max=6, bytes_max=1000)
    number, begun, key_since_hole, expected = 0, False, False, 0
    for what, keyframe, value in steps:
        if what == "offer":
            begun = begun or keyframe
            if begun:
                feed(tap, number, keyframe=keyframe, size=value)
                number += 1
            continue
        for item in tap.take(value):
            assert item.utc_ns == expected + item.dropped_before
            key_since_hole = item.sample.keyframe or (key_since_hole and not item.dropped_before)
            assert key_since_hole
            expected = item.utc_ns + 1
    statistics = tap.statistics()
    assert statistics.delivered + statistics.dropped + statistics.waiting == number
