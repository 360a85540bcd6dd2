"""Every topology is configuration: each example file is run as it stands, on other paths, and loses a target."""

from __future__ import annotations

import errno
import tomllib
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.support.recorder import init, small_farm, until

import nvrstore
from nvrstore.drills.account import differences, take_account
from nvrstore.farm import Farm
from nvrstore.farm.ranges import subtract
from nvrstore.recorder.wiring import make_target
from nvrstore.targets.faulty import FaultyTarget

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[2] / "examples"


def adapted(name: str, folder: Path, farm: Farm) -> dict[str, Any]:
    """The example with its targets below `folder` and the farm's cameras in place of its own."""
    tables = tomllib.loads((EXAMPLES / f"{name}.toml").read_text())
    tables.pop("include", None)
    tables["recorder"]["state"] = str(folder / "state")
    for target in tables["target"]:
        target["path"] = str(folder / target["name"])
        target["medium"] = "ssd"
        init(folder / target["name"])
    for journal in tables["journal"]:
        journal.update(hold_down_s=0.2, volume_bytes=4 << 20)
        journal.pop("keep", None)
    for i, stream in enumerate(tables["stream"]):
        stream["url"] = farm.url(i)
        stream.pop("login", None)
        stream.pop("engine", None)
        stream.pop("record", None)
    return tables


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # what differs on trio is tested with the recorder; this is about sets
@pytest.mark.parametrize("name", ["minimal", "two_targets", "spare", "n_plus_m", "three_copies"])
async def test_a_topology_records_loses_its_first_target_and_is_whole_again(name: str, tmp_path: Path) -> None:
    """The wanted number of copies is there before, and after; no frame is lost between."""
    tables = tomllib.loads((EXAMPLES / f"{name}.toml").read_text())
    made: dict[str, FaultyTarget] = {}

    def make(config: Any, python: str | None, lock_fd: int | None) -> FaultyTarget:
        made[config.name] = FaultyTarget(make_target(config, python, lock_fd))
        return made[config.name]

    with small_farm(len(tables["stream"])) as farm:
        config = nvrstore.Config.parse(adapted(name, tmp_path, farm))
        first = config.journals[0].targets[0]
        only = len(config.journals[0].targets) == 1
        async with nvrstore.Recorder(config, make=make) as recorder:

            def journal(i: int = 0) -> dict[str, Any]:
                found: dict[str, Any] = recorder.statistics()["journals"][i]
                return found

            def state(target: str) -> str:
                return str({t["target"]: t["state"] for t in journal()["targets"]}[target])

            await until(lambda: all(stream.durable_until(1) is not None for stream in recorder.streams()))
            await until(lambda: all(j["copies"] == j["wanted"] for j in recorder.statistics()["journals"]))
            await until(lambda: state(first) == "synced")
            fault = made[first].fail(errno.EIO)
            await until(lambda: state(first) in ("away", "hold-down"))
            spares = len(config.journals[0].targets) > config.journals[0].copies
            if spares:
                await until(lambda: journal()["copies"] == journal()["wanted"])
            await anyio.sleep(1.0)
            fault.remove()
            await until(lambda: state(first) == "synced")
            await until(lambda: journal()["copies"] == journal()["wanted"])
            sent = await anyio.to_thread.run_sync(farm.stop_sending)
            before = -1
            while (frames := sum(stream.status().samples for stream in recorder.streams())) != before:
                before = frames
                await anyio.sleep(0.5)
            if only:
                await until(lambda: not list((tmp_path / "state" / "refuge").glob("*/*/*.mp4")))
    for i, stream in enumerate(config.streams):
        journals = {j.name: j for j in config.journals}
        kept = journals[str(stream.journal)]
        for target in kept.targets[: kept.copies]:
            report = take_account(tmp_path / target, kept.name).reports[stream.id]
            assert subtract(sent[i].ranges, report.ranges) == (), (target, stream.id)
        for other in kept.targets[1 : kept.copies]:
            assert differences(tmp_path / kept.targets[0], tmp_path / other, kept.name) == []
