"""What kind of storage lies below a descriptor, from /proc and /sys alone: nothing here touches the target."""

from __future__ import annotations

import os


def mount_of(fd: int) -> dict[str, str | int]:
    """File system and device below a descriptor, from /proc and /sys alone: nothing here touches the target."""
    found: dict[str, str | int] = {}
    try:
        with open(f"/proc/self/fdinfo/{fd}") as info:
            mount_id = next((line.split()[1] for line in info if line.startswith("mnt_id:")), "")
        with open("/proc/self/mountinfo") as mounts:
            for line in mounts:
                left, _, right = line.partition(" - ")
                if left.split(" ", 1)[0] == mount_id:
                    found["fstype"], found["source"] = right.split(" ")[:2]
                    found["device"] = left.split(" ")[2]
        found["rotational"] = rotational(str(found.get("device", "")), str(found.get("source", "")))
    except OSError:
        pass  # no /proc or /sys here: the caller assumes the careful class
    return found


def rotational(device: str, source: str) -> int:
    """1 for a disk that spins, 0 for one that does not, -1 when the kernel does not say."""
    if device.startswith("0:") and source.startswith("/dev/"):  # btrfs shows an anonymous device
        rdev = os.stat(source).st_rdev
        device = f"{os.major(rdev)}:{os.minor(rdev)}"
    for queue in ("queue", "../queue"):  # of a whole disk, of a partition's disk
        try:
            with open(f"/sys/dev/block/{device}/{queue}/rotational") as file:
                return int(file.read())
        except OSError:
            continue
    return -1
