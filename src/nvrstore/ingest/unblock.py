"""Waking a thread that waits in libav for the network: `shutdown(2)` on the very socket it waits for.

libav keeps its sockets to itself, and many cameras share one address and port (a farm, a gateway), so neither a list of
descriptors nor a peer's address says whose is whose. The kernel does: `/proc/self/task/<tid>/syscall` (proc(5)) names
the call that a thread waits in, with its arguments: a descriptor (`recvfrom`, `connect`), or the address of an array of
`struct pollfd` (`poll`, `ppoll`), which is read through `/proc/self/mem`: a wrong address there is an error number, not
a crash. Calls that are not in the table, and machines, are left alone.

Only stream sockets are shut down, and none is ever closed here: libav owns them. Where the kernel does not tell,
nothing happens, and the caller leaves the thread behind.
"""

from __future__ import annotations

import os
import platform
import socket
import struct
from typing import Final

_POLLFD: Final = struct.Struct("=ihh")  # poll(2): fd, events, revents
_POLLFDS_MAX: Final = 64

# syscalls(2) by number: those that wait for one descriptor (read write sendto recvfrom sendmsg recvmsg connect), and for many (poll ppoll).
_CALLS: Final = {
    "x86_64": (frozenset({0, 1, 42, 44, 45, 46, 47}), frozenset({7, 271})),
    "aarch64": (frozenset({63, 64, 203, 206, 207, 211, 212}), frozenset({73})),
}
_ONE, _MANY = _CALLS.get(platform.machine(), (frozenset[int](), frozenset[int]()))


def awaited_fds(tid: int) -> list[int]:
    """Descriptors that thread `tid` of this process waits for in the kernel, as far as the kernel tells."""
    try:
        with open(f"/proc/self/task/{tid}/syscall", encoding="ascii") as file:
            words = file.read().split()
        if len(words) < 3:  # "running", or "-1 sp pc": not in a system call
            return []
        call, first, second = int(words[0]), int(words[1], 16), int(words[2], 16)
        if call in _ONE:
            return [first]
        if call not in _MANY:
            return []
        count = min(second, _POLLFDS_MAX)
        memory = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            entries = os.pread(memory, count * _POLLFD.size, first)
        finally:
            os.close(memory)
    except (OSError, ValueError, OverflowError):
        return []
    return [fd for fd, _, _ in _POLLFD.iter_unpack(entries[: len(entries) // _POLLFD.size * _POLLFD.size]) if fd >= 0]


def shut_down_awaited(tid: int) -> bool:
    """Shut down the stream sockets that thread `tid` waits for; False when there was none to be found just now."""
    done = False
    for fd in awaited_fds(tid):
        try:
            copy = socket.socket(fileno=os.dup(fd))
        except OSError:
            continue
        with copy:
            try:
                # The descriptor was read a moment ago: make sure that the thread still waits for it.
                if copy.type == socket.SOCK_STREAM and copy.family in (socket.AF_INET, socket.AF_INET6) and fd in awaited_fds(tid):
                    copy.shutdown(socket.SHUT_RDWR)
                    done = True
            except OSError:
                continue
    return done
