"""A recorder inside your own program: what happens to it, as JSON lines, until SIGTERM or Ctrl-C.

Run: python examples/embed.py nvr.toml

The library installs no signal handler and configures no logging: both are the host's, as here.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from typing import Any

import anyio
from anyio.abc import TaskGroup

import nvrstore
from nvrstore.config import StreamConfig
from nvrstore.errors import NvrstoreError
from nvrstore.ingest.contract import Endpoint


def resolve(stream: StreamConfig) -> Endpoint:
    """Asked at every connect, in a thread: the place for a vault, for ONVIF, for URLs with a token in them."""
    return Endpoint(stream.url, stream.resolve_login())


async def stop_on_signal(tasks: TaskGroup) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            tasks.cancel_scope.cancel()


def show(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, default=str) + "\n")
    sys.stdout.flush()


async def main(path: str) -> None:
    config = nvrstore.Config.load(path)
    async with nvrstore.Recorder(config, resolve=resolve) as recorder, anyio.create_task_group() as tasks:
        tasks.start_soon(stop_on_signal, tasks)
        async with recorder.events() as events:
            show(recorder.statistics())  # taken once we listen: between this and the first event nothing is missing
            async for event in events:
                show(event.as_json())


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    try:
        anyio.run(main, sys.argv[1])
    except NvrstoreError as error:
        sys.exit(f"{error}\n{error.hint}")
