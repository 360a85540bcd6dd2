"""A target that stops answering again and again: how many of its workers are left in the kernel, and what becomes of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.fed import Fed
from tests.support.recorder import JOURNAL, init

from nvrstore.drills.account import differences
from nvrstore.drills.fuse_disk import FuseDisk
from nvrstore.limits import ABANDONED_WORKERS_MAX
from nvrstore.targets.process import ProcessWorker

pytestmark = [pytest.mark.slow, pytest.mark.root]
ROUNDS = 3


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FuseDisk]:
    for name in ("backing", "a", "b"):
        (tmp_path / name).mkdir()
    with FuseDisk.mounted(tmp_path / "backing", tmp_path / "a") as made:
        init(tmp_path / "a")
        init(tmp_path / "b")
        yield made


class GivenUp:
    """Counts worker processes that were killed and are still there, at each kill."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._killed: list[ProcessWorker] = []
        self.most = 0
        kill = ProcessWorker.kill

        def counted(worker: ProcessWorker) -> None:
            kill(worker)
            self._killed = [other for other in self._killed if other is not worker and not other.gone()] + [worker]
            self.most = max(self.most, len(self._killed))

        monkeypatch.setattr(ProcessWorker, "kill", counted)


def test_never_more_than_two_workers_are_stuck_however_often_a_target_hangs(
    tmp_path: Path, disk: FuseDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call hangs, the target returns without its worker, and then everything hangs: the new appender, and the keeper, too."""
    given_up = GivenUp(monkeypatch)
    with Fed(tmp_path, {"a": tmp_path / "a", "b": tmp_path / "b"}, hold_down_s=0.1) as fed:
        port = fed.core.hub.ports[0]
        assert port.name == "a"
        fed.until(fed.whole)
        for _ in range(ROUNDS):
            disk.hang("statfs", times=1)  # the keeper alone asks, and holds no lock that whoever comes next would wait for
            fed.until(lambda: fed.targets()["a"]["workers_stuck"] == 1 and fed.whole())
            disk.hang()
            fed.until(lambda: fed.states()["a"] == "away")
            fed.until(lambda: fed.targets()["a"]["workers_stuck"] == ABANDONED_WORKERS_MAX)
            tries = replacements(fed, monkeypatch)
            fed.until(lambda tries=tries: len(tries) > 10)  # type: ignore[misc]
            assert not any(tries), "the keeper hangs, too, and is not replaced"
            assert fed.targets()["a"]["workers_stuck"] == ABANDONED_WORKERS_MAX
            fed.goes_on()
            disk.clear()
            fed.until(lambda: fed.targets()["a"]["workers_stuck"] == 0 and fed.whole())
        assert given_up.most == ABANDONED_WORKERS_MAX
    assert fed.pending == set()
    assert differences(tmp_path / "backing", tmp_path / "b", JOURNAL) == []


def replacements(fed: Fed, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The results of all tries, from now on, to replace the keeper of a."""
    keeper = fed.core.targets["a"].keeper
    restart, tries = keeper.restart, list[bool]()

    def tried() -> bool:
        tries.append(restart())
        return tries[-1]

    monkeypatch.setattr(keeper, "restart", tried)
    return tries
