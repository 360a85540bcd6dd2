"""The engines that there are, by name; the only place that knows them all.

`engine = "auto"` is the one that chooses (auto.py); where it is not there, the first of AUTO that is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from nvrstore.errors import SourceError
from nvrstore.ingest.auto import AutoEngine
from nvrstore.ingest.contract import SourceFactory
from nvrstore.ingest.lean import LeanEngine
from nvrstore.ingest.pyav import PyavEngine

AUTO: Final = ("auto", "lean", "pyav")


def default_engines() -> dict[str, SourceFactory]:
    """A factory of every engine. One such set belongs to one `Ingest`: engines may share threads between their sources."""
    lean, pyav = LeanEngine(), PyavEngine()
    return {"auto": AutoEngine(lean.strictly(), pyav), "lean": lean, "pyav": pyav}


def choose(engines: Mapping[str, SourceFactory], wanted: str) -> SourceFactory:
    """The factory of the engine that a configuration asks for. Raises `SourceError` for one that is not there."""
    names = AUTO if wanted == "auto" else (wanted,)
    for name in names:
        if name in engines:
            return engines[name]
    raise SourceError(f'there is no engine {wanted!r} in this version; set `engine = "auto"`')
