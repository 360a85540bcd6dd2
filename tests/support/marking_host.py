"""A host that embeds the recorder: it marks every stream again and again, and prints each mark once it is durable.

python marking_host.py nvr.toml [--add]     one JSON object a line: {"event": "mark", "id", "stream", "durable_ns"}

With --add its streams are not configured but added, as hosts do that keep their cameras elsewhere.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime

import anyio

import nvrstore


async def main(path: str, add: bool) -> None:
    """Mark until killed."""
    config = nvrstore.Config.load(path)
    added = config.streams if add else ()
    async with nvrstore.Recorder(config.model_copy(update={"streams": ()}) if add else config) as recorder:
        for camera in added:
            await recorder.add_stream(camera)
        number = 0
        while True:
            for stream in recorder.streams():
                now = datetime.now(UTC)
                mark = await stream.mark("test", now, now, {"number": number})
                number += 1
                until = stream.durable_until()
                durable_ns = None if until is None else int(until.timestamp()) * 1_000_000_000 + until.microsecond * 1000
                print(json.dumps({"event": "mark", "id": mark, "stream": stream.id, "durable_ns": durable_ns}), flush=True)
                await anyio.sleep(0.02)


anyio.run(main, sys.argv[1], "--add" in sys.argv[2:])
