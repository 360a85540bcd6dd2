"""Copies that were given up while they were open: who may still write to them."""

from __future__ import annotations

from collections.abc import Mapping

from nvrstore.replicate.port import Port


class LeftCopies:
    """Of one journal. A worker that closes a file in order may do so long after its copy was given up."""

    def __init__(self, ports: Mapping[str, Port]) -> None:
        self._ports = ports
        self._left: dict[tuple[str, str], int] = {}  # path, target -> generation of the port that had it open

    def add(self, path: str, target: str, generation: int) -> None:
        # Workers of earlier generations are the port's to account for (`haunted`): their entries say nothing any more.
        self._left = {place: of for place, of in self._left.items() if of == self._ports[place[1]].generation}
        self._left[path, target] = generation

    def released(self, path: str, target: str) -> bool:
        """Whether no worker can still write to that copy, which is not in use."""
        port = self._ports[target]
        return not port.haunted and (not port.up or self._left.get((path, target)) != port.generation)
