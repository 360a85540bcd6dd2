"""One camera, both engines at once: what they record is the same, to the byte and to the tick; and which of them `auto` takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from tests.support.ingest import Ear, recording

from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.config import StreamConfig
from nvrstore.errors import SourceRefusedError, SourceSilentError
from nvrstore.farm import Farm, FarmConfig
from nvrstore.farm.oddities import Traits
from nvrstore.ingest import auto
from nvrstore.ingest.auto import AutoEngine
from nvrstore.ingest.contract import Endpoint, Receiver, Source, SourceFactory, SourceRequest
from nvrstore.ingest.engines import default_engines
from nvrstore.ingest.errors import SourceUnsupportedError
from nvrstore.ingest.pyav import PyavEngine, PyavSource
from nvrstore.limits import STOP_S
from nvrstore.model import Media

pytestmark = pytest.mark.slow

SMALL = FarmConfig(width=160, height=120, bitrate_bps=200_000, fps=25, gop=25)


@contextmanager
def both(url: str, **request: Any) -> Iterator[dict[str, Ear]]:
    """A session of each engine with the same camera."""
    engines = default_engines()
    ears = {"lean": Ear(), "pyav": Ear()}
    sources: list[Source] = []
    try:
        for name, ear in ears.items():
            source = engines[name](SourceRequest("gate", lambda: Endpoint(url), timeout_s=10.0, **request), ear, SYSTEM_CLOCK)
            source.start()
            sources.append(source)
        yield ears
    finally:
        for source in sources:
            source.stop()
        for source in sources:
            assert source.join(STOP_S)


def assert_the_same(ears: dict[str, Ear], media: Media, count: int, *, ticks: int | None = 1) -> None:
    """At least `count` samples in a row that both have: byte for byte, at the same media time after the first."""
    lean, pyav = (ears[name].of(media)[1:] for name in ("lean", "pyav"))  # servers may begin in the middle of a picture
    shared = [
        (lean[max(0, shift) : len(pyav) + shift], pyav[max(0, -shift) : len(lean) - shift]) for shift in range(-len(pyav) + 1, len(lean))
    ]
    same = [(ours, theirs) for ours, theirs in shared if [s.data for s in ours] == [s.data for s in theirs]]
    assert same, "nowhere the same"
    lean, pyav = max(same, key=lambda pair: len(pair[0]))
    assert len(lean) >= count
    if ticks is not None:
        for ours, theirs in zip(lean, pyav, strict=True):
            assert abs((ours.pts - lean[0].pts) - (theirs.pts - pyav[0].pts)) <= ticks
            assert abs((ours.dts - lean[0].dts) - (theirs.dts - pyav[0].dts)) <= ticks
            assert ours.keyframe is theirs.keyframe
    assert not any(s.damaged for s in lean)


@pytest.mark.parametrize(
    "traits",
    [
        Traits(),
        Traits(codec="h265"),  # type: ignore[arg-type]
        Traits(b_frames=2),
        Traits(slices=4, delimiters=True),
        Traits(aggregate=True, stamp_marker=True),
        Traits(timestamp_0=2**32 - 45_000),
        Traits(audio="aac"),
    ],
    ids=["h264", "h265", "b-frames", "slices", "packing", "wrap", "aac"],
)
def test_both_engines_record_the_same(traits: Traits) -> None:
    """Access units with their parameter sets, PTS, DTS, keyframes; both hear the same camera at the same time."""
    with Farm(replace(SMALL, traits={0: traits})) as farm, both(farm.url(0)) as ears:
        for ear in ears.values():
            ear.hear(70)
            if traits.audio:
                ear.hear(30, Media.AUDIO)
    assert_the_same(ears, Media.VIDEO, 30)
    if traits.audio:
        assert_the_same(ears, Media.AUDIO, 15)
    configs = [{config.media: replace(config, trak=b"") for config in ear.configs} for ear in ears.values()]
    assert configs[0] == configs[1]


# --- auto


@pytest.mark.parametrize(
    ("fields", "engine", "reason"),
    [
        ({}, "lean", ""),
        ({"transport": "udp"}, "lean", ""),
        ({"options": {"rtsp_flags": "prefer_tcp"}}, "pyav", "rtsp_flags"),
        ({"options": {"tls_verify": "0"}}, "lean", ""),
        ({"engine": "pyav"}, "pyav", ""),
        ({"engine": "lean"}, "lean", ""),
    ],
)
def test_auto_takes_lean_where_it_fits_and_says_why_where_not(fields: dict[str, Any], engine: str, reason: str) -> None:
    """Transport, foreign options; whoever names an engine gets it. The status shows it."""
    with Farm(SMALL) as farm:
        config = StreamConfig.model_validate({"id": "gate", "url": farm.url(0), **fields})
        with recording(config) as (ingest, book):
            book.wait(lambda: book.samples() > 5)
            status = ingest.supervisor("gate").status()
    assert status.engine == engine
    assert reason in status.engine_reason
    assert bool(reason) is bool(status.engine_reason)


class Script:
    """Engines that end as they are told: the error of each session in turn; None: it delivers nothing, and goes on."""

    def __init__(self, name: str, *ends: Exception | None) -> None:
        self.name, self.ends, self.made = name, list(ends), 0

    def __call__(self, request: SourceRequest, receiver: Receiver, clock: object) -> Source:
        self.made += 1
        return _Played(self.name, self.ends.pop(0) if self.ends else None, receiver)


class _Played:
    def __init__(self, engine: str, end: Any, receiver: Receiver) -> None:
        self.engine, self._end, self._receiver = engine, end, receiver
        self._over = False

    def start(self) -> None:
        if self._end is not None:
            self._over = True
            self._receiver.on_ended(self._end)

    def stop(self) -> None:
        if not self._over:
            self._over = True
            self._receiver.on_ended(SourceSilentError("stopped"))

    def join(self, timeout_s: float) -> bool:
        return self._over


def run(engine: SourceFactory) -> tuple[Source, Ear]:
    """One session, stopped at once."""
    ear = Ear()
    source = engine(SourceRequest("gate", lambda: Endpoint("rtsp://h/")), ear, SYSTEM_CLOCK)
    source.start()
    source.stop()
    assert source.join(0)
    assert len(ear.ends) == 1
    return source, ear


def test_what_lean_does_not_speak_libav_opens_in_the_same_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """And from then on at once, until it is time to look again."""
    monkeypatch.setattr(auto, "SESSIONS", 2)
    lean = Script("lean", SourceUnsupportedError("no MJPEG here"), SourceUnsupportedError("still none"))
    pyav = Script("pyav")
    engine = AutoEngine(lean, pyav)
    reasons = []
    for _ in range(4):
        source, _ear = run(engine)
        assert source.engine == "pyav"
        reasons.append(source.engine_reason)  # type: ignore[attr-defined]
    assert reasons == ["no MJPEG here"] * 3 + ["still none"]
    assert (lean.made, pyav.made) == (2, 4)


def test_a_camera_that_waits_for_libavs_turn_is_known_to_wait() -> None:
    """Also where lean tried it first, in the same session: the engine that has it now says since when it connects."""
    pyav = PyavEngine()
    lean = Script("lean", SourceUnsupportedError("no MJPEG here"))
    source = AutoEngine(lean, pyav)(SourceRequest("gate", lambda: Endpoint("rtsp://h/")), Ear(), SYSTEM_CLOCK)
    assert source.connecting_s == -math.inf
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PyavSource, "start", lambda _: None)  # it is never its turn
        source.start()
    assert source.connecting_s == math.inf


def test_three_sessions_that_come_to_nothing_give_libav_a_turn() -> None:
    """Whatever lean does not understand of a camera: it is recorded. A refused login is no such thing."""
    silent = SourceSilentError("no sensible answer")
    lean = Script("lean", silent, silent, SourceRefusedError("no"), silent, silent)
    pyav = Script("pyav", silent)
    engine = AutoEngine(lean, pyav)
    assert [run(engine)[0].engine for _ in range(6)] == ["lean", "lean", "lean", "lean", "pyav", "lean"]


def test_a_session_that_is_stopped_while_engines_change_ends_once() -> None:
    """The other engine is not started any more."""
    ear = Ear()
    pyav = Script("pyav")
    lean = Script("lean", None)
    source = AutoEngine(lean, pyav)(SourceRequest("gate", lambda: Endpoint("rtsp://h/")), ear, SYSTEM_CLOCK)
    source.start()
    source.stop()
    source.on_ended(SourceUnsupportedError("late")) if not ear.ends else None
    assert (pyav.made, len(ear.ends)) == (0, 1)
