"""What every engine is, what it tells, and where ingest hands over.

    camera ──▶ Source ──on_track / on_samples / on_reference / on_ended──▶ Receiver ──▶ Fragmenter ──▶ Intake
               (engine: own threads)                                      (supervisor.py)             (replication)

A source is one session with one camera: it connects once, delivers until the end, and says once why it ended. Who
reconnects, when, and what is written to the ledger is the supervisor's business.

Invariants: no callback comes before `start`, none after `on_ended`; `on_ended` comes exactly once, also after `stop`,
unless the source is stuck in the kernel. A track's `on_track` comes before its first sample. All callbacks of a
source come from one thread at a time. Credentials live in `Endpoint` alone, which is made at every connect and dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from nvrstore.clock import Clock
from nvrstore.config.login import split_login, split_url
from nvrstore.errors import SourceError, redact
from nvrstore.limits import SILENCE_S
from nvrstore.model import Fragment, Media, Record, Sample, TrackConfig, TrackKey


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a camera is, and how to log in. The login is shown by nothing; one that was written into the URL is taken out of it."""

    url: str
    login: tuple[str, str] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        url, found = split_url(self.url)
        object.__setattr__(self, "url", url)
        if found is not None and self.login is None:
            object.__setattr__(self, "login", split_login(found))


#: Asked at every connect, in a thread of ingest: may block (a vault, ONVIF, a token URL), may raise `SourceError`.
Resolve = Callable[[], Endpoint]


@dataclass(frozen=True, slots=True)
class SourceRequest:
    """One session that is wanted."""

    stream: str
    resolve: Resolve = field(repr=False)
    transport: Literal["tcp", "udp"] = "tcp"
    audio: Literal["aac", "pcm", "copy", "off"] = "aac"
    timeout_s: float = SILENCE_S  # bound of every single wait for the network
    options: Mapping[str, str] = field(default_factory=dict)  # libav's, by its names; engines take those that they know


def resolved(request: SourceRequest) -> Endpoint:
    """What `resolve` answers. Raises `SourceError`, in which nothing stands that the hook has looked up, nor in what it came from."""
    try:
        return request.resolve()
    except SourceError as error:
        failed = error.with_traceback(None)
        failed.message = redact(failed.message)
        failed.args = (failed.message,)
        failed.__cause__ = failed.__context__ = None
    except Exception as error:  # noqa: BLE001  # somebody else's hook; its text may hold what it looked up
        failed = SourceError(f"{request.stream}: the address and login could not be resolved ({type(error).__name__})")
    raise failed


class Receiver(Protocol):
    """Whoever wants a source's samples. Called in the source's thread; must not block."""

    def on_track(self, config: TrackConfig) -> None:
        """A track begins, or goes on as something else (another resolution, another codec)."""

    def on_samples(self, samples: Sequence[Sample]) -> None:
        """The next samples of one track (at least one), in decode order: those that came together are best told together."""

    def on_reference(self, media: Media, pts: int, utc_ns: int) -> None:
        """The camera's own clock said `utc_ns` at `pts` (an RTCP sender report, RFC 3550 6.4.1)."""

    def on_ended(self, error: SourceError) -> None:
        """The session is over, and why. Nothing comes after it."""


class Source(Protocol):
    """One session with one camera."""

    @property
    def engine(self) -> str:
        """Its name: "pyav", "lean"."""

    def start(self) -> None:
        """Connect and deliver, in threads of its own. Called once."""

    def stop(self) -> None:
        """Ask for the end at once: thread-safe, never blocks, may be called again when it had no effect yet."""

    def join(self, timeout_s: float) -> bool:
        """Wait for the end. False: it is stuck; its callbacks must be ignored from now on, its memory is lost."""


class SourceFactory(Protocol):
    """Makes a source of one engine."""

    def __call__(self, request: SourceRequest, receiver: Receiver, clock: Clock) -> Source: ...


class Intake(Protocol):
    """Where fragments and records go. Thread-safe, never blocks."""

    def declare(self, track: TrackKey, name: str, config: TrackConfig) -> None:
        """Announce a track, or its new configuration. Its fragments may follow at once."""

    def put(self, fragment: Fragment) -> None:
        """Hand a fragment over. Its track was declared."""

    def record(self, record: Record) -> None:
        """Hand a ledger record over."""


class LaneIntake(Intake, Protocol):
    """Who also takes batches that were laid out in another process."""

    def declare(self, track: TrackKey, name: str, config: TrackConfig, lane: Hashable = None) -> None:
        """`lane`: what names the tracks that are laid out together."""

    def put_lane(self, fragments: Sequence[Fragment]) -> None:
        """Hand the fragments of such a batch over, all of them."""
