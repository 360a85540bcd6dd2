"""The recorder and the archive for hosts without an event loop."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import av
import pytest
from tests.support.recorder import Site, small_farm

import nvrstore
from nvrstore.errors import JournalInUseError, NotFoundError
from nvrstore.events import SetChanged

pytestmark = pytest.mark.slow


def changed(event: object) -> SetChanged:
    assert isinstance(event, SetChanged)
    return event


def test_a_host_without_a_loop_records_marks_taps_listens_and_exports(tmp_path: Path) -> None:
    """Everything that the async face does, in plain calls."""
    with small_farm(1) as farm:
        site = Site(tmp_path, farm)
        with nvrstore.blocking(site.config()) as recorder:
            assert recorder.statistics()["recorder"] == "nvr-test"
            cam = recorder.stream("cam0")
            with cam.tap(keyframes_only=True) as samples:
                begin = next(samples)
                assert begin.sample.keyframe
                next(samples)
            now = datetime.now(UTC)
            assert cam.mark("person", now, now, {"score": 1}, copies=2)
            cam.wait_durable(now, copies=2)
            with recorder.events(SetChanged) as happened:
                assert happened.next_within(0.01) is None
                recorder.drain("b")
                assert [member.target for member in changed(next(happened)).members] == ["a"]
            with pytest.raises(NotFoundError):
                recorder.stream("none")
            with pytest.raises(JournalInUseError), nvrstore.blocking(site.config()):
                pass
            end_ns = begin.utc_ns + 1_000_000_000
        with nvrstore.blocking_archive(site.config()) as archive:
            with archive.read("cam0", begin.utc_ns, end_ns) as pieces:
                assert any(isinstance(piece, nvrstore.StoredFragment) for piece in pieces)
            archive.export(["cam0"], begin.utc_ns, end_ns, tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 20
