"""What the recorder sees of ingest, whether it runs in threads here (group.py) or in processes of its own (crew/)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from nvrstore.config import StreamConfig
from nvrstore.ingest.contract import LaneIntake
from nvrstore.ingest.status import StreamStatus
from nvrstore.ingest.taps import Tap
from nvrstore.model import Gap


class StreamHand(Protocol):
    """One stream that is recorded. Thread-safe; nothing here waits."""

    @property
    def config(self) -> StreamConfig: ...

    def status(self) -> StreamStatus:
        """A frozen snapshot."""

    def retry_now(self) -> None:
        """Try at once: somebody says that the camera is back, or changed its login."""

    def trigger(self, name: str, *, pre_s: float, post_s: float) -> object:
        """Event recording: store from `pre_s` before now to `post_s` behind it, and mark it."""

    def add_tap(self, tap: Tap) -> None:
        """Give it samples from now on."""

    def remove_tap(self, tap: Tap) -> None: ...


class Cameras(Protocol):
    """All streams of one recorder. Thread-safe."""

    def add(self, config: StreamConfig, intake: LaneIntake, *, open_gaps: Iterable[Gap] = (), fragment_s: float = ...) -> StreamHand:
        """Record a stream from now on. Raises `UsageError` for an id that is in use, `ClosedError` after `stop`."""

    def remove(self, stream: str, timeout_s: float = ...) -> bool:
        """Record a stream no longer. False: its source is stuck and was left behind. Raises KeyError for an unknown id."""

    def supervisor(self, stream: str) -> StreamHand:
        """Raises KeyError for an unknown id."""

    def supervisors(self) -> Sequence[StreamHand]:
        """All streams, in the order in which they were added."""

    def stuck(self) -> int:
        """Sources that were left behind, waiting in the kernel."""

    def workers(self) -> list[dict[str, Any]]:
        """The processes in which streams are received, as JSON values; none where threads do it."""

    def stop(self, timeout_s: float = ...) -> int:
        """End all streams, handing on what was received; how many sources were left behind."""
