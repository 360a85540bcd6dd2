"""The program of the README and those in examples/ do what they say: against a simulated camera, on both event loops."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import anyio
import av
import pytest
from examples import analytics
from tests.support.logs import logger_restored

import nvrstore
from nvrstore.cli import main
from nvrstore.farm import Farm, FarmConfig

ROOT: Final = Path(__file__).parent.parent
README: Final = (ROOT / "README.md").read_text()

pytestmark = pytest.mark.slow


@pytest.fixture
def farm() -> Iterator[Farm]:
    with Farm(FarmConfig(streams=1, width=320, height=240, bitrate_bps=400_000, gop=25)) as cameras:
        yield cameras


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with the README's configuration in it, its paths below it; the targets are made as the README says."""
    (text,) = re.findall(r"```toml\n(.*?)```", README, re.S)
    (tmp_path / "mnt").mkdir()
    (tmp_path / "nvr.toml").write_text(text.replace("/mnt/", f"{tmp_path}/mnt/").replace("/var/lib/nvrstore", f"{tmp_path}/state"))
    with logger_restored():
        for directory in re.findall(r"target init (\S+)", README):
            if directory.startswith("/mnt/"):
                assert main(["target", "init", directory.replace("/mnt/", f"{tmp_path}/mnt/")]) == 0
    return tmp_path


def with_camera(place: Path, farm: Farm) -> None:
    with (place / "nvr.toml").open("a") as file:
        file.write(f'\n[[stream]]\nid = "gate"\nurl = "{farm.url(0, login=False)}"\n')


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_program_of_the_readme_runs(place: Path, farm: Farm, backend: str) -> None:
    """Fifteen lines: it records, taps, marks, waits until both targets hold it, and exports. The library prints nothing meanwhile."""
    (program,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len([line for line in program.splitlines() if line.strip()]) <= 20
    assert program.count("rtsp://127.0.0.1:8554/cam0") == 1
    program = program.replace("rtsp://127.0.0.1:8554/cam0", farm.url(0, login=False)).replace(
        "anyio.run(main)", f"anyio.run(main, backend={backend!r})"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=place, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with av.open(str(place / "clip.mp4")) as clip:
        frames = sum(1 for _ in clip.decode(video=0))
    assert frames >= 5 * 25


def test_a_host_follows_the_events_and_ends_in_order(place: Path, farm: Farm) -> None:
    """examples/embed.py: events as JSON lines; SIGTERM, which the host handles, ends it with everything committed."""
    with_camera(place, farm)
    command = [sys.executable, str(ROOT / "examples" / "embed.py"), "nvr.toml"]
    with subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            assert json.loads(line)
            if '"state": "recording"' in line:
                process.send_signal(signal.SIGTERM)
                break
        process.stdout.read()
        assert process.wait(timeout=30) == 0
        assert process.stderr.read() == ""


def test_an_analysis_marks_what_it_sees(place: Path, farm: Farm) -> None:
    """examples/analytics.py decodes keyframes of the tap."""
    with_camera(place, farm)

    async def look() -> float | None:
        recorder = nvrstore.Recorder(nvrstore.Config.load(place / "nvr.toml"))
        async with recorder, recorder.stream("gate").tap(keyframes_only=True) as samples:
            return analytics.brightness(await samples.receive())

    luma = anyio.run(look)
    assert luma is not None
    assert 30 < luma < 225
