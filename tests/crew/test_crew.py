"""What the recorder takes over from a worker, and what it does where it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import cast
from unittest.mock import Mock

from nvrstore.config import StreamConfig
from nvrstore.config.models import RecorderConfig
from nvrstore.crew.crew import Crew
from nvrstore.crew.messages import Declared, LaidOut, Put, Recorded, Report
from nvrstore.crew.process import Process
from nvrstore.crew.seat import Heard, Seat
from nvrstore.crew.stream import RemoteStream
from nvrstore.extents import Extent
from nvrstore.journal.batch import positions
from nvrstore.limits import BLOCK_BYTES
from nvrstore.model import Cause, Gap, Media, TrackConfig, TrackKey
from nvrstore.replicate.intake import Intake
from nvrstore.targets.pool import Pool

TRACK = TrackKey("gate", Media.VIDEO)
CONFIG = TrackConfig(Media.VIDEO, "h264", 90_000, b"trak")
SECOND = 1_000_000_000


def batch(number: int, *, track: int = 0) -> LaidOut:
    """One second of it."""
    put = Put(track, 25 * number, 25, number * SECOND, 90_000, 0, 0.0, positions([100])[0], 100)
    return LaidOut(Extent(number * BLOCK_BYTES, BLOCK_BYTES), (put,))


def test_a_batch_that_cannot_be_taken_over_ends_its_worker(tmp_path: Path) -> None:
    """What came behind it would hide that it is missing: the gap begins where the last whole one ended."""
    pool = Pool(BLOCK_BYTES, windows=1, window_bytes=8 * BLOCK_BYTES)
    try:
        crew = Crew(1, RecorderConfig(name="nvr", state=tmp_path, workers=1), {}, lambda: pool.windows)
        intake, process = Intake(), Mock()
        stream = RemoteStream(StreamConfig(id="gate", url="rtsp://10.0.0.5/main"), intake, 1.0, (), None, lambda _: None)
        crew._heard[cast(Process, process)] = heard = Heard(seat=Seat(1, pool.windows[0]), streams={"gate": stream})

        def hear(*reports: Report) -> None:
            crew._reports(process, list(reports))

        closed = Gap("g", "gate", Cause.CAMERA, SECOND, 3 * SECOND)
        hear(Declared(0, TRACK, "Gate", CONFIG, 0), batch(0))
        hear(batch(1, track=7), batch(2), Recorded("gate", closed.record()))
        hear(batch(3))
        taken = intake.take()
        assert [fragment.index for fragment in taken.fragments] == [0]
        assert taken.records == []
        assert heard.streams["gate"].next_index == {Media.VIDEO: 25}
        assert heard.streams["gate"].end_ns == SECOND
        assert pool.windows[0].taken_bytes == BLOCK_BYTES
        process.kill.assert_called_once_with("a batch of it could not be taken over")
        del taken
    finally:
        pool.close()
