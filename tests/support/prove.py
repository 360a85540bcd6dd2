"""`./run prove`: the same tests with many more repeats and seeds, and what they found as JSON.

for seed in seeds(usual=10, proving=50): ...
note("kill-9", repeats=50, lost=0)             -> benchmarks/results/prove_kill-9.json, when proving
"""

from __future__ import annotations

import json
import os
import platform
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
