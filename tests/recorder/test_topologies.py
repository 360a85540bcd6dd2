"""Every topology is configuration: each example file is run as it stands, on other paths, and loses what it may lose."""

from __future__ import annotations

import errno
import tomllib
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.support.recorder import init, small_farm, until

import nvrstore
from nvrstore.config import JournalConfig
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


def standing(recorder: nvrstore.Recorder, what: str) -> dict[str, dict[str, str]]:
    """The role or the state of each target, by journal."""
    journals = recorder.statistics()["journals"]
    return {j["journal"]: {t["target"]: t[what] for t in j["targets"]} for j in journals}


def roles(journal: JournalConfig) -> dict[str, str]:
    """As configured, while all is well: the first is primary, spares wait outside the set."""
    names = ["primary", *["standby"] * (journal.copies - 1)]
    return {target: names[i] if i < journal.copies else "-" for i, target in enumerate(journal.targets)}


def states(journal: JournalConfig) -> dict[str, str]:
    return {target: "synced" if i < journal.copies else "ready" for i, target in enumerate(journal.targets)}


def members(recorder: nvrstore.Recorder) -> dict[str, set[str]]:
    """Who takes new footage, by journal."""
    taking = {j: {t for t, state in of.items() if state in ("live", "synced")} for j, of in standing(recorder, "state").items()}
    assert all(sum(role == "primary" for role in of.values()) <= 1 for of in standing(recorder, "role").values())
    return taking


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # what differs on trio is tested with the recorder; this is about sets
@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("minimal", ["array-a"]),
        ("minimal", ["array-b"]),
        ("two_targets", ["array-a"]),  # primary of one journal, standby of the other
        ("spare", ["fast-a"]),  # one spare for both journals
        ("n_plus_m", ["array-a", "array-b"]),  # each journal's primary: a spare for each
        ("n_plus_m", ["array-a", "array-c"]),  # both members of one journal: both spares
        ("n_plus_m", ["array-b", "spare-2"]),  # a primary, and the spare that would be its first
        ("three_copies", ["array-a", "array-b"]),  # any two may die
        ("three_copies", ["array-a", "vault"]),
        ("three_copies", ["array-b", "vault"]),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else value,
)
async def test_a_topology_records_through_its_losses_and_is_as_configured_again(name: str, lost: list[str], tmp_path: Path) -> None:
    """All at once: spares take the places; afterwards they wait again, each role is where it was, and no frame is missing."""
    tables = tomllib.loads((EXAMPLES / f"{name}.toml").read_text())
    made: dict[str, FaultyTarget] = {}

    def make(config: Any, python: str | None, lock_fd: int | None) -> FaultyTarget:
        made[config.name] = FaultyTarget(make_target(config, python, lock_fd))
        return made[config.name]

    with small_farm(len(tables["stream"])) as farm:
        config = nvrstore.Config.parse(adapted(name, tmp_path, farm))
        journals = {journal.name: journal for journal in config.journals}
        assert all(journal.failback == "auto" for journal in config.journals)
        left = {j.name: [target for target in j.targets if target not in lost] for j in config.journals}
        async with nvrstore.Recorder(config, make=make) as recorder:

            def as_configured() -> bool:
                wanted = [{j.name: of(j) for j in config.journals} for of in (roles, states)]
                return [standing(recorder, "role"), standing(recorder, "state")] == wanted

            await until(lambda: all(stream.durable_until(1) is not None for stream in recorder.streams()))
            await until(as_configured)
            faults = [made[target].fail(errno.EIO) for target in lost]
            await until(lambda: members(recorder) == {j: set(left[j][: journals[j].copies]) for j in journals})
            for j, of in standing(recorder, "role").items():
                survivors = [target for target in left[j] if target in journals[j].targets[: journals[j].copies]]
                assert "primary" in [of[target] for target in survivors[:1] or left[j]], "the first that has the history, if any has"
            await anyio.sleep(1.0)
            for j in journals:
                for spare in journals[j].targets[journals[j].copies :]:
                    recruited = spare in left[j][: journals[j].copies]
                    assert bool(list((tmp_path / spare / j).glob("*/*.mp4"))) == recruited, (j, spare)
            for fault in faults:
                fault.remove()
            await until(as_configured)
            assert [j["copies"] for j in recorder.statistics()["journals"]] == [j.copies for j in config.journals]
            sent = await anyio.to_thread.run_sync(farm.stop_sending)
            before = -1
            while (frames := sum(stream.status().samples for stream in recorder.streams())) != before:
                before = frames
                await anyio.sleep(0.5)
    for i, stream in enumerate(config.streams):
        kept = journals[str(stream.journal)]
        for target in kept.targets[: kept.copies]:
            report = take_account(tmp_path / target, kept.name).reports[stream.id]
            assert subtract(sent[i].ranges, report.ranges) == (), (target, stream.id)
        for other in kept.targets[1 : kept.copies]:
            assert differences(tmp_path / kept.targets[0], tmp_path / other, kept.name) == []
