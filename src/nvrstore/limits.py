"""Every bound of the library, with its reason. Relations between bounds are asserted here, beside their proof."""

from __future__ import annotations

from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

# --- alignment and batches
BLOCK_BYTES: Final = 4096  # O_DIRECT alignment that every current disk and file system accepts; batches, volumes and extents end on it
BATCH_BYTES_CUT: Final = 8 * MIB  # waiting bytes that cut a batch before its tick: keeps one write under 50 ms at 200 MB/s
FRAGMENT_BYTES_MAX: Final = 4 * MIB  # a fragment closes at this size: high bitrates split, they do not fail
SAMPLE_BYTES_MAX: Final = 16 * MIB  # a larger access unit is not a video frame but a broken stream
BATCH_BYTES_MAX: Final = 32 * MIB  # no batch, header, records and padding included, is larger; scanners refuse to believe more
assert BATCH_BYTES_CUT + SAMPLE_BYTES_MAX + FRAGMENT_BYTES_MAX < BATCH_BYTES_MAX, "one oversized sample still fits behind a full batch"
RECORD_BYTES_MAX: Final = 64 * KIB  # one ledger record; user data of marks is refused beyond it
RECORDS_BYTES_MAX: Final = 2 * MIB  # records in one batch; the rest waits for the next

# --- lanes and volumes
LANE_TRACKS_MAX: Final = 400  # ffmpeg refuses files with more than 1,000 streams; leaves room for audio and joins
HEADER_BYTES_MAX: Final = 8 * MIB  # of a volume's header: 20 KiB per track, thirty times what parameter sets and names need
assert HEADER_BYTES_MAX >= LANE_TRACKS_MAX * 20 * KIB
VOLUME_BYTES_MIN: Final = 256 * MIB
VOLUME_BYTES_MAX: Final = 8 * GIB
VOLUME_SHARE_MAX: Final = 32  # a volume is at most 1/32 of the smallest member: retention by whole volumes stays fine-grained
VOLUMES_SHARE_MAX: Final = 4  # and those that all lanes of a journal write and have prepared, two each, are at most 1/4 of it
VOLUME_AGE_S: Final = 3600.0
VOLUME_SPAN_S: Final = 60.0  # aim: about a minute of the lane's throughput per volume
ORIGIN_MARGIN_S: Final = 60  # track time counts from a minute before the oldest waiting sample: late fragments still fit
CUT_COALESCE_S: Final = 2.0  # at most one cut for new codec configurations in this time

# --- the journal
TICK_S: Final = 0.2  # interval of group commits
FRAGMENT_S: Final = 1.0
SEGMENT_S: Final = 10.0
IN_FLIGHT_MAX: Final = 2  # batches submitted per target over all lanes: all that an abandoned worker can pin
BUFFER_BYTES_MIN: Final = 64 * MIB
BURST_S: Final = 3.0  # what is over the buffer's bound may stay so long in windows, which bound it too, and while the set changes

# --- workers
KEEPER_PIECE_BYTES: Final = MIB  # keepers read, copy and mend in pieces of this size, and look between pieces
MESSAGE_BYTES_MAX: Final = 60_000  # one request or answer over SOCK_SEQPACKET; well under the default socket buffer
ABANDONED_WORKERS_MAX: Final = 2  # per target; more are not started while these are stuck in the kernel
WORKER_HELLO_S: Final = 5.0  # a started worker says hello within this, or it counts as failed
CLOSE_S: Final = 2.0  # a worker that does not go when told is left behind after this

# --- looking
LOOK_S: Final = 1.0  # one look per target and second, busy or idle; of a member one a tick, while no tick has anything to write
LOOK_FRESH_S: Final = 5.0  # no acknowledgement on a look older than this
assert LOOK_FRESH_S >= 3 * LOOK_S

# --- ingest
BACKOFF_S_MIN: Final = 0.5
BACKOFF_S_MAX: Final = 30.0
BACKOFF_REFUSED_S_MIN: Final = 60.0  # after 401: five tries in five minutes lock many cameras for half an hour
BACKOFF_REFUSED_S_MAX: Final = 900.0
SILENCE_S: Final = 5.0  # connected and no sample for this long: the watchdog ends the session
STOP_S: Final = 2.0  # a stream's threads are gone, or left behind and counted, after this
SLEW_PPM_MAX: Final = 500
SESSION_STEADY_S: Final = 30.0  # a session that lasted this long was no flap: the next backoff begins anew
KEYFRAME_WAIT_S: Final = 10.0  # recording begins at a keyframe if one comes within this (smart codecs: 10 s apart), else anyway
CONNECTS_MAX: Final = 32  # sessions that connect at a time: opening decodes a picture, and a switch brings all cameras back at once
INGEST_TICK_S: Final = 0.2  # the ingest thread looks this often for what is due: reconnects, silence, fragments to close
SOURCES_STUCK_MAX: Final = 2  # per stream, left behind in the kernel: a camera that hangs threads for ever costs two
PACKET_WAIT_S: Final = 0.05  # packets wait so long to be handled together: Python runs best on many at once
PACKETS_WAITING_MAX: Final = 8192  # then readers wait: two seconds of 160 streams, 160 MB at 20 KB each
PRE_EVENT_BYTES_MAX: Final = 32 * MIB  # per stream: 10 s at 25 Mbit/s
TAP_SAMPLES_MAX: Final = 1000  # 40 s of video at 25 frames/s
TAP_BYTES_MAX: Final = 32 * MIB

# --- catalog and reading
HOLE_NS_MIN: Final = 500_000_000  # shorter holes are jitter and guessed durations of last samples; lost samples show in their indices
CATALOG_COMMIT_S: Final = 1.0  # one transaction of the catalog in this time
CATALOG_ROWS_MAX: Final = 200_000  # rows that wait for a stuck state disk (about 100 MB); then they are dropped, and found again in volumes
