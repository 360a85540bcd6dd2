"""Live samples for analytics: a bounded queue beside the recording, which it never slows (the thread-safe core).

    ingest thread ──offer──▶ [ GOP | GOP | GOP ... ] ──take──▶ consumer        too slow: whole GOPs go, oldest first

What was dropped is counted, and the first sample behind a hole says how many are missing in front of it. A consumer
never gets a picture whose keyframe was dropped: if the one GOP that is left does not fit, it goes, and so does
everything until the next keyframe (or as many samples as the queue holds: a stream without keyframes is shown anyway).
Audio, where wanted, is dropped together with the video around it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from nvrstore.limits import TAP_BYTES_MAX, TAP_SAMPLES_MAX
from nvrstore.model import Media, Sample, TrackConfig


@dataclass(frozen=True, slots=True)
class TapSample:
    """A live sample: as recorded, with its place in time, and what came before it."""

    sample: Sample
    config: TrackConfig
    utc_ns: int
    dropped_before: int = 0  # samples that this tap dropped just before this one


@dataclass(frozen=True, slots=True)
class TapStatistics:
    """A tap's counters."""

    waiting: int
    waiting_bytes: int
    delivered: int
    dropped: int


class Tap:
    """One consumer's queue. `offer` is called by ingest, everything else by the consumer; all are thread-safe, none blocks.

    `on_ready` is called, without a lock held, in ingest's thread when the queue stops being empty and when it is closed:
    it must only wake the consumer.
    """

    def __init__(
        self,
        on_ready: Callable[[], None] = lambda: None,
        *,
        keyframes_only: bool = False,
        audio: bool = False,
        samples_max: int = TAP_SAMPLES_MAX,
        bytes_max: int = TAP_BYTES_MAX,
    ) -> None:
        self._on_ready = on_ready
        self._keyframes_only = keyframes_only
        self._audio = audio
        self._samples_max: Final = samples_max
        self._bytes_max: Final = bytes_max
        self._lock = threading.Lock()
        self._queue: deque[TapSample] = deque()
        self._bytes = 0
        self._skipping = True  # until the first keyframe
        self._skipped = 0  # since that is so
        self._missed = 0  # dropped since the last sample that was queued
        self._dropped = 0
        self._delivered = 0
        self._closed = False

    def offer(self, sample: Sample, config: TrackConfig, utc_ns: int) -> None:
        """Queue a sample, if it is wanted and fits."""
        video = sample.media is Media.VIDEO
        if not video and not self._audio:
            return
        if video and self._keyframes_only and not sample.keyframe:
            return
        with self._lock:
            if self._closed:
                return
            begins = video and (sample.keyframe or self._skipped >= self._samples_max)
            if self._skipping and not begins:
                self._skipped += 1
                if self._delivered or self._dropped:  # what came before the first keyframe was never owed
                    self._drop(1)
                return
            self._skipping, self._skipped = False, 0
            size = len(sample.data)
            while self._queue and (len(self._queue) >= self._samples_max or self._bytes + size > self._bytes_max):
                self._drop_oldest_gop()
            if not self._queue and not begins and self._missed:
                self._skipping = True  # its keyframe went with the rest
                self._drop(1)
                return
            was_empty = not self._queue
            self._queue.append(TapSample(sample, config, utc_ns, self._missed))
            self._missed = 0
            self._bytes += size
        if was_empty:
            self._on_ready()

    def missed(self, count: int) -> None:
        """So many samples were lost on the way here: the next one says so."""
        with self._lock:
            self._drop(count)

    def take(self, most: int = 0) -> list[TapSample]:
        """Up to `most` waiting samples, oldest first (0: all)."""
        with self._lock:
            count = min(most, len(self._queue)) if most else len(self._queue)
            taken = [self._queue.popleft() for _ in range(count)]
            self._bytes -= sum(len(item.sample.data) for item in taken)
            self._delivered += count
        return taken

    def close(self) -> None:
        """Take nothing more; what waits can still be taken."""
        with self._lock:
            self._closed = True
        self._on_ready()

    @property
    def closed(self) -> bool:
        return self._closed

    def statistics(self) -> TapStatistics:
        with self._lock:
            return TapStatistics(len(self._queue), self._bytes, self._delivered, self._dropped)

    def _drop(self, count: int) -> None:
        self._dropped += count
        self._missed += count

    def _drop_oldest_gop(self) -> None:
        """Drop up to the next keyframe in the queue; what was counted as missing moves to that keyframe."""
        count = 0
        while self._queue:
            head = self._queue[0]
            if count and head.sample.keyframe and head.sample.media is Media.VIDEO:
                missing = count + head.dropped_before
                self._queue[0] = TapSample(head.sample, head.config, head.utc_ns, missing)
                self._dropped += count
                return
            self._queue.popleft()
            self._bytes -= len(head.sample.data)
            count += 1 + head.dropped_before
            self._dropped -= head.dropped_before  # counted when they were dropped
        self._drop(count)
