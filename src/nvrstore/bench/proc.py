"""CPU time and memory of processes and threads, from /proc (proc(5)). A process that has gone counts nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_KTHREADD: Final = 2  # the parent of the kernel's threads


def tree(pid: int) -> list[int]:
    """`pid` and all its descendants."""
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        try:
            for task in os.listdir(f"/proc/{one}/task"):
                todo += [int(child) for child in Path(f"/proc/{one}/task/{task}/children").read_text().split()]
        except OSError:
            continue
    return sorted(set(found))


def _used_s(stat: str) -> float:
    try:
        fields = Path(stat).read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def cpu_s(pids: Iterable[int]) -> float:
    """User and system seconds so far."""
    return sum(_used_s(f"/proc/{pid}/stat") for pid in pids)


def threads_s(pid: int) -> dict[int, float]:
    """The same of every thread of one process, by its id in the kernel."""
    try:
        return {int(task): _used_s(f"/proc/{pid}/task/{task}/stat") for task in os.listdir(f"/proc/{pid}/task")}
    except OSError:
        return {}


def others_s(ours: Iterable[int]) -> dict[int, float]:
    """The same of every other process, by its id; threads of the kernel work for everybody, and are left out."""
    known = {*ours, _KTHREADD}
    found = {}
    for pid in (int(name) for name in os.listdir("/proc") if name.isdecimal()):
        if pid in known:
            continue
        try:
            parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if parent != _KTHREADD:
            found[pid] = _used_s(f"/proc/{pid}/stat")
    return found


def machine_s() -> float:
    """Busy seconds of all cores."""
    user, nice, system, _idle, _wait, irq, softirq, *_ = (int(f) for f in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + irq + softirq) / _TICKS


def pss_mb(pids: Iterable[int]) -> float:
    """Proportional set size in MiB: what is shared counts once."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024
