"""How many samples does one core carry from the camera's thread to a target?

Run: python benchmarks/bench_hot_loop.py [--seconds 5] [--sample-bytes 20000] [--streams 64] [--json]

Question: samples of 20 KB per second and core through fragmenter, batch (copy into the pool's extent, checksum) and a target in memory.
Method:   every stream sends 25 frames a second, a keyframe each two; whenever 8 MiB of fragments wait they become one batch in an extent
          of the pool, which an appender of a memory target writes into its preallocated volume; the answer frees the extent. One thread;
          CPU time of the process is counted, not the clock on the wall. Samples come from memory, not from the cache: 80 MB of them.
          A small volume is verified first: scanned with all its checksums, every sample looked up, byte for byte, in order.
Peer:     the floor, in the same run: the same bytes copied into the extent, checksummed, copied into the target; no fragment, no batch.
Reports:  a table, or with --json one JSON object per line: {bench, host, unit, value, peer, ratio}.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from nvrstore.checksum import crc32c
from nvrstore.extents import Extent
from nvrstore.journal.batch import VolumeBuilder
from nvrstore.journal.model import Batch, VolumeHeader, VolumeTrack
from nvrstore.journal.scan import scan_volume
from nvrstore.limits import BATCH_BYTES_CUT, MIB
from nvrstore.media.boxes import find
from nvrstore.media.fragment import Fragmenter
from nvrstore.media.init import video_config
from nvrstore.model import Epoch, Fragment, Media, Sample, TrackConfig, TrackKey, new_id
from nvrstore.targets.contract import Appender, Request, Verb
from nvrstore.targets.memory import MemoryTarget
from nvrstore.targets.pool import Pool

FPS: Final = 25
UTC_NS: Final = 1_700_000_000_000_000_000
SAMPLES_BYTES: Final = 80 * MIB  # more than any cache holds
BATCHES_PER_VOLUME: Final = 24
VOLUME_BYTES: Final = (BATCHES_PER_VOLUME + 1) * 12 * MIB
SESSION: Final = 7


def samples_of(count: int, size: int) -> list[Sample]:
    """`count` frames of one camera, all different."""
    noise = random.Random(1).randbytes(size + count)
    made = []
    for i in range(count):
        data = noise[i : i + size]
        made.append(Sample(Media.VIDEO, data, i * 90_000 // FPS, i * 90_000 // FPS, i % 50 == 0, UTC_NS, i / FPS))
    return made


@dataclass
class Hand:
    """Carries fragments into volumes on a target in memory, one batch at a time."""

    tracks: Sequence[TrackKey]
    config: TrackConfig

    def __post_init__(self) -> None:
        self.pool = Pool(4 * BATCH_BYTES_CUT)
        self.target = MemoryTarget("memory")
        self.appender: Appender = self.target.start_appender(self.pool)
        self.samples = 0
        self.volumes = 0
        self.space = [bytearray(VOLUME_BYTES), bytearray(VOLUME_BYTES)]  # the target's medium: allocated once, used in turn
        self.batches: list[Batch] = []
        self.path = ""
        self.waiting: list[Fragment] = []
        self.waiting_bytes = 0
        self.open()

    def ask(self, request: Request) -> None:
        self.appender.submit(request)
        (answer,) = self.appender.answers()
        if not answer.ok:
            raise RuntimeError(f"{request.verb.name}: {os.strerror(answer.errno)}")

    def keep(self, request: Request) -> None:
        if not self.target.keeper.call(request, 10).ok:
            raise RuntimeError(request.verb.name)

    def open(self) -> None:
        """Begin a volume, and throw the one before it away."""
        if self.path:
            self.ask(Request(Verb.CLOSE, handle=self.volumes))
            self.keep(Request(Verb.UNLINK, path=self.path))
        self.volumes += 1
        tracks = tuple(VolumeTrack(track, track.stream, self.config) for track in self.tracks)
        epoch = Epoch(1, 1)
        header = VolumeHeader(new_id(), "main", new_id(), "bench", SESSION, epoch, 0, self.volumes, (), UTC_NS, UTC_NS - 10**9, tracks)
        self.builder = VolumeBuilder(header)
        self.path = f"volume-{self.volumes}.mp4"
        head = self.builder.header_bytes
        extent = self.alloc(len(head))
        self.pool.view(extent)[: len(head)] = head
        self.keep(Request(Verb.PREPARE, path="next", length=VOLUME_BYTES))
        self.target.files.file("next").data = self.space[self.volumes % 2]
        self.ask(Request(Verb.OPEN, "next", self.path, self.volumes, extent=extent.offset, length=len(head)))
        self.pool.free(extent)
        self.batches = []

    def alloc(self, length: int) -> Extent:
        extent = self.pool.alloc(length)
        if extent is None:
            raise RuntimeError("the pool is full")
        return extent

    def take(self, fragments: Iterable[Fragment]) -> None:
        for fragment in fragments:
            self.waiting.append(fragment)
            self.waiting_bytes += fragment.length
        if self.waiting_bytes >= BATCH_BYTES_CUT:
            self.commit()

    def commit(self) -> None:
        """One batch of all that waits."""
        if not self.waiting:
            return
        if len(self.batches) == BATCHES_PER_VOLUME:
            self.open()
        length = self.builder.size(self.waiting)
        extent = self.alloc(length)
        batch = self.builder.build(
            self.pool.view(extent)[:length], self.waiting, (), last_committed=len(self.batches) - 1, utc_now_ns=UTC_NS
        )
        self.ask(Request(Verb.APPEND, handle=self.volumes, offset=batch.offset, extent=extent.offset, length=length))
        self.pool.free(extent)
        self.batches.append(batch)
        self.samples += sum(fragment.samples for fragment in self.waiting)
        self.waiting, self.waiting_bytes = [], 0

    def close(self) -> None:
        self.appender.close(1)
        self.target.close(1)
        self.pool.close()


def config_of() -> TrackConfig:
    """A configuration of H.264 video: the parameter sets of a camera that sends 1920x1080."""
    sets = bytes.fromhex("00000001674d0028965201e0089f97016e0200000fa00003a9821000000001" + "68ebef20")
    return video_config("h264", sets, 1920, 1080)


def record(hand: Hand, samples: Sequence[Sample], streams: int, until_s: float | None = None) -> tuple[int, float]:
    """Push every sample of every stream, over and over until `until_s` is used up; returns how many, and the CPU seconds it took."""
    cutters = [Fragmenter(track, hand.config, SESSION) for track in hand.tracks[:streams]]
    pushed = 0
    began = time.process_time()
    while True:
        for sample in samples:
            first = sample.dts == 0
            for cutter in cutters:
                closed = cutter.push(sample, UTC_NS, discontinuity=first)
                if closed:
                    hand.take(closed)
        pushed += len(samples) * streams
        if until_s is None or time.process_time() - began >= until_s:
            break
    for cutter in cutters:
        hand.take(cutter.flush())
    hand.commit()
    return pushed, time.process_time() - began


def verify(streams: int = 3, count: int = 120, size: int = 2000) -> None:
    """Record a small volume, scan it, and find every sample in it, byte for byte. Raises RuntimeError where it is not so."""
    samples = samples_of(count, size)
    hand = Hand([TrackKey(f"camera-{i}", Media.VIDEO) for i in range(streams)], config_of())
    record(hand, samples, streams)
    stored = bytes(hand.target.files.file(hand.path).data[: hand.builder.offset])
    hand.close()
    scan = scan_volume(len(stored), deep=True)
    try:
        read = next(scan)
        while True:
            read = scan.send(stored[read.offset : read.offset + read.length])
    except StopIteration as stop:
        result = stop.value
    found: dict[int, list[bytes]] = {}
    for batch in result.batches:
        for entry in batch.entries:
            start = batch.offset + entry.offset
            fragment = stored[start : start + entry.length]
            mdat = find(fragment, "mdat")
            payload = fragment[mdat.body : mdat.end]
            found.setdefault(entry.track_id, []).extend(payload[i : i + size] for i in range(0, len(payload), size))
    if result.damage or found != {i: [sample.data for sample in samples] for i in range(1, streams + 1)}:
        raise RuntimeError("the volume does not hold what was recorded")


def floor(samples: Sequence[Sample], until_s: float) -> float:
    """Samples per CPU second when they are only copied, checksummed, and copied again."""
    extent, sink = memoryview(bytearray(BATCH_BYTES_CUT)), memoryview(bytearray(BATCH_BYTES_CUT))
    per_batch = BATCH_BYTES_CUT // len(samples[0].data)
    done = 0
    began = time.process_time()
    while time.process_time() - began < until_s:
        for start in range(0, len(samples) - per_batch, per_batch):
            at = 0
            for sample in samples[start : start + per_batch]:
                end = at + len(sample.data)
                extent[at:end] = sample.data
                at = end
            crc32c(extent[:at])
            sink[:at] = extent[:at]
            done += per_batch
    return done / (time.process_time() - began)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--sample-bytes", type=int, default=20_000)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    verify()
    samples = samples_of(max(100, SAMPLES_BYTES // options.sample_bytes), options.sample_bytes)
    hand = Hand([TrackKey(f"camera-{i}", Media.VIDEO) for i in range(options.streams)], config_of())
    record(hand, samples[:100], options.streams)  # warm up
    already = hand.samples
    pushed, cpu_s = record(hand, samples, options.streams, options.seconds)
    if hand.samples - already != pushed:
        raise RuntimeError(f"{pushed} samples went in, {hand.samples - already} were written")
    hand.close()
    value, peer = pushed / cpu_s, floor(samples, options.seconds / 2)
    if options.json:
        figures = {"unit": "samples/s/core", "value": round(value), "peer": round(peer), "ratio": round(value / peer, 3)}
        print(json.dumps({"bench": "hot_loop", "host": platform.node(), "sample_bytes": options.sample_bytes, **figures}))
    else:
        print(f"verified; {pushed:,} samples of {options.sample_bytes:,} bytes, {options.streams} streams")
        print(f"{'recorded':>12} {value:>12,.0f} samples/s/core   {value * options.sample_bytes / 1e9:.1f} GB/s")
        print(f"{'floor':>12} {peer:>12,.0f} samples/s/core   copy, checksum, copy; ratio {value / peer:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
