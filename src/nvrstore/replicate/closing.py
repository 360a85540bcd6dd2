"""Closing a cut volume: index durable -> handle closed -> truncated to its length, on every copy that counts.

Only when each of them holds every batch that was submitted to anyone. A volume of which a batch had to go into a later
one, and any volume of a writer that was superseded, is left as it is: recovery decides what it holds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import Enum

from nvrstore.journal.index import volume_index
from nvrstore.replicate.contract import LaneHost
from nvrstore.replicate.port import Op
from nvrstore.replicate.volume import Copy, CopyState, OpenVolume
from nvrstore.targets.contract import Answer, Request, Verb


class Closing(Enum):
    """How far it is."""

    PENDING = "pending"
    CLOSED = "closed"
    LEFT = "left"


class Closer:
    """Closes the volumes of one lane. `enqueue` and `failed` are the lane's."""

    def __init__(
        self, host: LaneHost, enqueue: Callable[[Copy, Op], None], failed: Callable[[OpenVolume, Copy, Answer, str], None]
    ) -> None:
        self._host, self._enqueue, self._failed = host, enqueue, failed

    def step(self, volume: OpenVolume) -> Closing:
        """Go on with `volume`, whose batches are all settled."""
        copies = volume.live()
        if not copies or volume.orphaned or self._host.fenced:
            for copy in copies:
                self._enqueue(copy, Op(Request(Verb.CLOSE, handle=copy.handle), lambda _op, _answer: None, self))
            return Closing.LEFT
        if volume.closing is None:
            if all(copy.state is CopyState.OPEN for copy in copies):
                self._index(volume, copies)
        elif all(copy.state is CopyState.CLOSED for copy in copies):
            return Closing.CLOSED
        return Closing.PENDING

    def _index(self, volume: OpenVolume, copies: list[Copy]) -> None:
        index = volume_index(volume.header, volume.batches)
        held = self._host.buffer.hold(len(index))
        if held is None:
            return  # the buffer is full: later
        held.view[: len(index)] = index
        volume.closing, volume.length = held, volume.builder.offset + len(index)
        for copy in copies:
            request = Request(Verb.APPEND, handle=copy.handle, offset=volume.builder.offset, extent=held.extent.offset, length=len(index))
            self._enqueue(copy, Op(request, self._indexed(volume, copy), self, held))

    def _indexed(self, volume: OpenVolume, copy: Copy) -> Callable[[Op, Answer], None]:
        port = self._host.ports[copy.target]

        def truncated(answer: Answer) -> None:
            if copy.counts and answer.ok:
                copy.state = CopyState.CLOSED
            elif copy.counts:
                port.fail(f"closing a volume: {os.strerror(answer.errno)}", answer.errno)

        def closed(_op: Op, answer: Answer) -> None:
            if not copy.counts:
                return  # its target left meanwhile, in order: recovery decides what this one holds
            if not answer.ok:
                self._failed(volume, copy, answer, "closing a volume")
                return
            future = port.target.keeper.submit(Request(Verb.TRUNCATE, path=volume.path, length=volume.length))
            future.add_done_callback(lambda done: self._host.post(lambda: truncated(done.result())))

        def indexed(_op: Op, answer: Answer) -> None:
            if answer.ok and copy.counts:
                self._enqueue(copy, Op(Request(Verb.CLOSE, handle=copy.handle), closed, self))
            elif copy.counts:
                self._failed(volume, copy, answer, "closing a volume")

        return indexed
