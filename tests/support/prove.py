"""`./run prove`: the same tests with many more repeats and seeds, and what they found as JSON.

for seed in seeds(usual=10, proving=50): ...
note("full-disk", times=10, pruned=300)        -> benchmarks/results/prove_full-disk.json, when proving
tally("kill-9", "seed 3", kills=5, lost=0)     -> prove_kill-9.json: this part, and the sums over all parts
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path(__file__).parent.parent.parent / "benchmarks" / "results"


def proving() -> bool:
    """Whether `./run prove` runs."""
    return bool(os.environ.get("NVRSTORE_PROVE"))


def seeds(*, usual: int, proving: int, start: int = 0) -> range:
    """Seeds for one test: few in `./run test`, many in `./run prove`; always the same ones, so that a failure can be repeated.

    NVRSTORE_SEED=17 takes that one alone.
    """
    chosen = os.environ.get("NVRSTORE_SEED")
    if chosen:
        return range(int(chosen), int(chosen) + 1)
    return range(start, start + (proving if os.environ.get("NVRSTORE_PROVE") else usual))


def host() -> dict[str, Any]:
    """The machine that figures belong to."""
    return {"cpus": os.cpu_count(), "machine": platform.machine(), "kernel": platform.release(), "python": platform.python_version()}


def note(name: str, **figures: Any) -> None:
    """Keep the figures of one proof; nothing happens in usual runs."""
    if proving():
        RESULTS.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"proof": name, "host": host(), **figures}, indent=1)
        (RESULTS / f"prove_{name}.json").write_text(text + "\n")


def tally(name: str, part: str, **figures: Any) -> None:
    """Keep the figures of one part of a proof, and the sums over all parts; a part that is run again replaces what it said before.

    Parts are run in processes of their own, at the same time. Numbers are added up, numbers by kind too, lists are joined.
    """
    if not proving() or os.environ.get("NVRSTORE_SEED"):
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"prove_{name}.json"
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        parts = {**(json.loads(text).get("parts", {}) if text else {}), part: figures}
        parts = dict(sorted(parts.items()))
        document = {"proof": name, "host": host(), **added_up(parts.values()), "parts": parts}
        file.truncate(0)
        file.write(_one_part_a_line(document) + "\n")


def added_up(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The sums over parts: numbers, numbers by kind, lists."""
    sums: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            if isinstance(value, Mapping):
                kinds = sums.setdefault(key, {})
                sums[key] = {kind: kinds.get(kind, 0) + value.get(kind, 0) for kind in sorted({*kinds, *value})}
            else:
                sums[key] = sums[key] + value if key in sums else value
    return sums


def _one_part_a_line(document: Mapping[str, Any]) -> str:
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in document.items() if key != "parts"]
    parts = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in document["parts"].items()]
    return "{\n" + ",\n".join([*lines, ' "parts": {\n' + ",\n".join(parts) + "\n }"]) + "\n}"
