"""The engines that there are, by name; the only place that knows them all.

`engine = "auto"` takes the first of AUTO that is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from nvrstore.errors import SourceError
from nvrstore.ingest.contract import SourceFactory
from nvrstore.ingest.lean import LeanEngine
from nvrstore.ingest.pyav import PyavEngine

AUTO: Final = ("pyav", "lean")


def default_engines() -> dict[str, SourceFactory]:
    """A factory of every engine. One such set belongs to one `Ingest`: engines may share threads between their sources."""
    return {"pyav": PyavEngine(), "lean": LeanEngine()}


def choose(engines: Mapping[str, SourceFactory], wanted: str) -> tuple[str, SourceFactory]:
    """Name and factory of the engine that a configuration asks for. Raises `SourceError` for one that is not there."""
    names = AUTO if wanted == "auto" else (wanted,)
    for name in names:
        if name in engines:
            return name, engines[name]
    raise SourceError(f'there is no engine {wanted!r} in this version; set `engine = "auto"`')
