"""A spare that took a lost member's place: what it gets, and when."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.support.recorder import JOURNAL, Site, small_farm, until

import nvrstore
from nvrstore.farm import Farm
from nvrstore.recorder.wiring import make_target
from nvrstore.targets.contract import Verb
from nvrstore.targets.faulty import FaultyTarget

pytestmark = [pytest.mark.slow, pytest.mark.anyio]


@pytest.fixture
def anyio_backend() -> str:
    """Neither loop knows of targets."""
    return "asyncio"


@pytest.fixture
def farm() -> Iterator[Farm]:
    with small_farm(1) as running:
        yield running


def volumes(site: Site, target: str) -> set[str]:
    return {path.name for path in (site.folder / target / JOURNAL).glob("*/*.mp4")}


@pytest.mark.parametrize("rebuild_after_s", [600, 5])
async def test_a_spare_gets_what_comes_at_once_and_the_history_when_the_lost_member_stays_away(
    tmp_path: Path, farm: Farm, rebuild_after_s: int
) -> None:
    """Copying the history takes hours, and is in vain where somebody replaces a cable; what comes meanwhile has its copies at once."""
    site = Site(tmp_path, farm, targets=("a", "b", "s"))
    site.journal = {"targets": ["a", "b", "s"], "copies": 2, "volume_age_s": 1, "rebuild_after_s": rebuild_after_s}
    made: dict[str, FaultyTarget] = {}

    def make(config: Any, python: str | None, lock_fd: int | None) -> FaultyTarget:
        made[config.name] = FaultyTarget(make_target(config, python, lock_fd))
        return made[config.name]

    async with nvrstore.Recorder(site.config(), make=make) as recorder:
        await until(lambda: len(volumes(site, "a") & volumes(site, "b")) >= 6)
        history = volumes(site, "a") & volumes(site, "b")
        assert not volumes(site, "s"), "a spare waits empty-handed"
        fault = made["a"].fail(errno.EIO)
        await until(lambda: recorder.statistics()["journals"][0]["copies"] == 2 and len(volumes(site, "s")) >= 3)
        old = set(sorted(history)[:2])  # begun long before the loss
        if rebuild_after_s == 5:
            await until(lambda: volumes(site, "s") >= history)
        else:
            await anyio.sleep(4.0)  # several rounds of upkeep
            assert not volumes(site, "s") & old
        fault.remove()
        await until(lambda: {t["target"]: t["state"] for t in recorder.statistics()["journals"][0]["targets"]}["a"] == "synced")
        sent = await anyio.to_thread.run_sync(farm.stop_sending)
        await until(lambda: recorder.stream("cam0").status().gap is not None)
    assert site.lost(sent) == {}
    assert site.differences() == [], "who comes back gets everything"


async def test_a_standby_keeps_its_window_and_the_primary_everything(tmp_path: Path, farm: Farm) -> None:
    """What left the window does not come back by resync, and is no gap: it is stored once."""
    site = Site(tmp_path, farm)
    site.journal = {"volume_age_s": 1, "standby_keep": {"days": 4 / 86_400}}
    async with nvrstore.Recorder(site.config()) as recorder:
        await until(lambda: {t["state"] for t in recorder.statistics()["journals"][0]["targets"]} == {"synced"})
        before = len(volumes(site, "b"))
        await until(lambda: len(volumes(site, "b")) >= before + 2)  # the roles are what they will be
        first = sorted(volumes(site, "a") & volumes(site, "b"))[-1]
        roles = {t["role"]: t["target"] for t in recorder.statistics()["journals"][0]["targets"]}
        primary, standby = roles["primary"], roles["standby"]
        await until(lambda: first not in volumes(site, standby) and len(volumes(site, primary)) >= 10, timeout_s=60.0)
        await anyio.sleep(3.0)  # several rounds of upkeep: nothing brings it back
        assert first in volumes(site, primary)
        assert first not in volumes(site, standby)
        assert volumes(site, standby) < volumes(site, primary)
        sent = await anyio.to_thread.run_sync(farm.stop_sending)
        await until(lambda: recorder.stream("cam0").status().gap is not None)
    assert site.lost(sent, site.account(primary)) == {}


async def test_standbys_give_nothing_up_while_the_primary_is_lost(tmp_path: Path, farm: Farm) -> None:
    """Whatever their window says, one of them may be all that is left; once the primary lacks nothing again, they discard again."""
    names = ("a", "b", "c")
    site = Site(tmp_path, farm, targets=names)
    site.journal = {"targets": list(names), "copies": 3, "volume_age_s": 1, "standby_keep": {"days": 4 / 86_400}}
    made: dict[str, FaultyTarget] = {}

    def make(config: Any, python: str | None, lock_fd: int | None) -> FaultyTarget:
        made[config.name] = FaultyTarget(make_target(config, python, lock_fd))
        return made[config.name]

    async with nvrstore.Recorder(site.config(), make=make) as recorder:

        def standing(what: str) -> dict[str, str]:
            return {t["target"]: t[what] for t in recorder.statistics()["journals"][0]["targets"]}

        await until(lambda: set(standing("state").values()) == {"synced"} and standing("role")["a"] == "primary")
        await until(lambda: all(volumes(site, "a") - volumes(site, name) for name in ("b", "c")), timeout_s=60.0)  # they discard
        # What is there can be read: a copy that is read just then, and cannot be, is doubted for ten minutes.
        fault = made["a"].fail(errno.EIO, verbs={Verb.LOOK, Verb.PREPARE, Verb.OPEN, Verb.APPEND, Verb.CLOSE})
        await until(lambda: standing("state")["a"] == "away" and standing("role")["b"] == "primary")
        await anyio.sleep(0.5)  # a removal that was on its way has been done, or was called off
        held = {name: volumes(site, name) for name in ("b", "c")}
        assert all(held.values())
        newer = 12  # volumes of a second each: three times their window, and two rounds of upkeep
        await until(lambda: len(volumes(site, "b") - held["b"]) >= newer, timeout_s=60.0)
        for name in ("b", "c"):
            assert held[name] <= volumes(site, name)
        alone = volumes(site, "b")
        fault.remove()
        await until(lambda: standing("state")["a"] == "synced" and standing("role")["a"] == "primary")
        assert alone <= volumes(site, "a"), "the primary has everything before anybody gives anything up"
        await until(lambda: not any(held[name] & volumes(site, name) for name in ("b", "c")), timeout_s=60.0)
        assert held["b"] <= volumes(site, "a")
        sent = await anyio.to_thread.run_sync(farm.stop_sending)
        await until(lambda: recorder.stream("cam0").status().gap is not None)
    assert site.lost(sent) == {}
