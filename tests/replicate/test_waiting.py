"""What waits for a batch: in the order in which it was built first, when it is owed again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.engine import CONFIG

from nvrstore.media.fragment import Fragmenter
from nvrstore.model import Fragment, Media, Sample, TrackKey
from nvrstore.replicate.buffer import ReplayBuffer
from nvrstore.replicate.settling import Debts
from nvrstore.replicate.waiting import Waiting
from nvrstore.targets.pool import Pool


def fragments(stream: str, count: int) -> list[Fragment]:
    """Of one frame each."""
    cutter = Fragmenter(TrackKey(stream, Media.VIDEO), CONFIG, 1, fragment_s=0.01)
    made: list[Fragment] = []
    for n in range(count):
        made += cutter.push(Sample(Media.VIDEO, b"x" * 100, n * 3600, n * 3600, True, n * 40_000_000, n * 0.04), n * 40_000_000)
    return [*made, *cutter.flush()]


@pytest.fixture
def waiting() -> Iterator[Waiting]:
    pool = Pool(1 << 20)
    yield Waiting(ReplayBuffer(pool, bytes_max=pool.size))
    pool.close()


def test_what_is_owed_again_waits_in_the_order_in_which_it_was_built(waiting: Waiting) -> None:
    """Whoever loses its copy last comes in front only of what was built after it."""
    debts = Debts()
    first, second, third, new = fragments("gate", 4)
    aside = fragments("yard", 1)[0]
    waiting.put(new)
    for order, owed in ((3, [second, third]), (7, [aside]), (2, [first])):
        debts.owe(owed, order)
        waiting.put_back(owed, [], debts.of)
    assert list(waiting.fragments) == [first, second, third, aside, new]
    assert [debts.of(fragment) for fragment in waiting.fragments] == [2, 3, 3, 7, None]


def test_halves_of_a_batch_keep_their_order_when_the_first_is_owed_once_more(waiting: Waiting) -> None:
    """It was built once more in two batches; the second waits still."""
    debts = Debts()
    first, second = fragments("gate", 2)
    debts.owe([first, second], 5)
    waiting.put_back([second], [], debts.of)
    waiting.put_back([first], [], debts.of)
    assert list(waiting.fragments) == [first, second]


def test_what_is_owed_holds_up_what_was_built_after_it_and_nothing_else() -> None:
    """Until it is committed, or given up."""
    debts = Debts()
    first, second = fragments("gate", 2)
    debts.owe([first], 3)
    debts.owe([second], 5)
    assert [order for order in range(8) if not debts.before(order)] == [0, 1, 2, 3]
    debts.repaid([(first.track, first.session, first.index)])
    assert [order for order in range(8) if not debts.before(order)] == [0, 1, 2, 3, 4, 5]
    debts.repaid([(second.track, second.session, second.index)])
    assert not debts
