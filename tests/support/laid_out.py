"""An ingest worker as the engine knows it: it lays batches out in a window of the pool, and writes over whatever is free again."""

from __future__ import annotations

from math import inf

from nvrstore.crew.batcher import Batcher, taken_over
from nvrstore.extents import Extent, Window
from nvrstore.model import Fragment, TrackConfig, TrackKey
from nvrstore.replicate.intake import Intake

JUNK = b"\xee"


class Worker:
    """Fragments wait in it until `hand_over`. `sit` again: another process takes its place."""

    def __init__(self, window: Window, intake: Intake, session: int, *, journal: str = "main") -> None:
        self._window, self._intake, self._session, self._journal = window, intake, session, journal
        self._tracks: dict[int, tuple[TrackKey, TrackConfig]] = {}
        self.freed = 0  # extents that came back
        self._memory = window.view(Extent(window.offset, window.length))
        self.sit()

    def sit(self) -> None:
        """A process begins here that knows nothing but what is still needed in the window."""
        self._batches = batches = Batcher()
        memory = self._memory

        def freed(extent: Extent) -> None:
            memory[extent.offset : extent.offset + extent.length] = JUNK * extent.length
            batches.freed(extent)
            self.freed += 1

        self._window.open(lambda taken: batches.sit(memory, taken), freed)
        for track, _ in self._tracks.values():
            batches.lane(track, self._journal, 0.2)

    def close(self) -> None:
        """Let go of the pool."""
        self._memory.release()
        self._batches.sit(memoryview(b""), ())

    def declare(self, track: TrackKey, name: str, config: TrackConfig) -> None:
        """As ingest's `Intake`. What came before goes before."""
        self.hand_over()
        if (track, config) not in self._tracks.values():
            self._tracks[len(self._tracks)] = (track, config)
        self._intake.declare(track, name, config, ("worker", self._batches.lane(track, self._journal, 0.2).number))

    def put(self, fragment: Fragment, now_s: float = 0.0) -> None:
        """As ingest's `Intake`."""
        number = next(number for number, known in self._tracks.items() if known == (fragment.track, fragment.config))
        self._batches.add(number, fragment, now_s)

    def hand_over(self) -> list[Fragment]:
        """Everything that waits, as far as there is room: what the engine got."""
        handed: list[Fragment] = []
        for lane in self._batches.due(inf):
            laid_out = self._batches.lay_out(lane)
            if laid_out is not None:
                fragments = taken_over(laid_out, self._window, self._tracks, self._session)
                self._intake.put_lane(fragments)
                handed += fragments
        return handed
