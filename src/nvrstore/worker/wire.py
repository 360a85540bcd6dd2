"""The words between a worker and its parent: messages, stamps, verbs. Both sides use this one definition.

    request  { number, verb, flags, handle, offset, length, extent, slot, lengths } path path2 data      little-endian
    answer   { number, errno, slot, value, length } data                              number 0: hello, data is JSON
    stamps   4096 bytes of shared memory: 64-bit words, written by the worker; ABANDONED is written by the parent

Data that is too large for a message travels in a slot of shared memory, which belongs to the request until it is answered.
"""

from __future__ import annotations

import errno
import os
import struct

PROTOCOL = 1
# number, verb, flags, handle, offset, length, extent, slot (-1: none), bytes of inline data, of path, of path2
REQUEST = struct.Struct("<QHHIQQQiIHH")
# number, errno, slot (-1: data is inline), value, bytes of data
ANSWER = struct.Struct("<QiiqI")
MESSAGE_BYTES = 65536  # of the buffer that a message is received in; none is larger
INLINE_BYTES_MAX = 60_000  # of data in a message
FRESH = 1  # flag of READ: past the page cache

BLOCK = 4096
SLOT_BYTES = 1 << 20
SLOTS = 8
LIST_PAGE = 500
WRITING_MAX = 8
BULK_BYTES = SLOT_BYTES // 2  # who reads so much at once reads a whole file
READ_AHEAD = 4 << 20  # of it, from where a bulk read begins
WRITE_BACK = 8 << 20  # of a file that is being copied: then what is dirty is on its way to the medium

OPEN, APPEND, CLOSE = 1, 2, 3
LOOK, PREPARE, LIST, STAT, SPACE, READ, WRITE, SYNC, TRUNCATE, RENAME, LINK, UNLINK, MKDIR, PUT, RMDIR, ABOUT = range(10, 26)

# Stamps: 64-bit words in shared memory, written by the worker, but ABANDONED, which the parent writes.
STAMPS_BYTES = 4096
ABANDONED, START_NS, RUNNING, DONE, BYTES, FAILED, DURABLE, DURABLE_NS, LOOKED_NS, FLAGS, FAILED_NS = range(11)
#: Errors of a write, a sync or a look that say that the target itself is broken: FAILED_NS is when the first such call failed, 0 again
#: after a look that went well. A READ does not count (a damaged file is mended), nor does ENOSPC (retention comes first).
HARD_ERRORS = frozenset(
    {errno.EIO, errno.EROFS, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ECONNRESET, errno.ESHUTDOWN, errno.EUCLEAN}
)
BUFFERED, NO_DSYNC, NO_FALLOCATE, NO_LINKS = 1, 2, 4, 8  # bits of FLAGS: what the file system refused


class Ask:
    """One request. `room` is the slot's memory, for data that is too large for a message."""

    __slots__ = ("data", "extent", "flags", "handle", "length", "number", "offset", "path", "path2", "room", "slot", "verb")

    def __init__(self, message: bytes, slots: memoryview | None) -> None:
        (self.number, self.verb, self.flags, self.handle, self.offset, self.length, self.extent, self.slot, inline, path, path2) = (
            REQUEST.unpack_from(message)
        )
        at = REQUEST.size
        self.path = os.fsdecode(message[at : at + path])
        self.path2 = os.fsdecode(message[at + path : at + path + path2])
        self.room: memoryview | None = None
        if self.slot >= 0 and slots is not None:
            self.room = slots[self.slot * SLOT_BYTES : (self.slot + 1) * SLOT_BYTES]
            self.data: bytes | memoryview = self.room[:inline]
        else:
            self.data = message[at + path + path2 : at + path + path2 + inline]
