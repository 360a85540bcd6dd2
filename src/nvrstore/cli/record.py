"""`nvrstore record CONFIG`: the recorder in the foreground.

On a terminal a live table; otherwise, or with --json, one JSON object per line: every event, and the status once a
second. SIGTERM and SIGINT end it in order (everything committed, volumes closed), SIGHUP reads the configuration again.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import anyio
import typer
from anyio.abc import ObjectReceiveStream
from anyio.streams.memory import MemoryObjectSendStream

from nvrstore.cli.common import ConfigFile, JsonFlag, print_event, say, warn
from nvrstore.cli.live import Screen
from nvrstore.config import Config
from nvrstore.errors import ClosedError, NvrstoreError
from nvrstore.recorder.facade import Recorder
from nvrstore.telemetry import configure_cli_logging

STATUS_S = 1.0


def command(
    config: ConfigFile,
    take_over: Annotated[bool, typer.Option("--take-over", help="Record even if another recorder owns a journal.")] = False,
    seconds: Annotated[float, typer.Option(help="Stop after so long; 0: run until a signal.", min=0)] = 0.0,
    as_json: JsonFlag = False,
) -> None:
    """Record the cameras of a configuration until SIGTERM or Ctrl-C."""
    loaded = Config.load(config)
    for place, sentence in loaded.warnings():
        warn(f"{config}: {place}: {sentence}")
    live = sys.stdout.isatty() and not as_json
    if live:
        configure_cli_logging(level="critical")  # a warning would tear the table; it is in the table's foot, as an event
    anyio.run(_record, loaded, config, take_over, seconds, live)


async def _record(config: Config, path: Path, take_over: bool, seconds: float, live: bool) -> None:
    problem: NvrstoreError | None = None
    # From before the start to behind the end: a signal that comes while it starts or stops must not kill it halfway.
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
        send, hangups = anyio.create_memory_object_stream[None](1)
        async with send, hangups, anyio.create_task_group() as tasks:
            tasks.start_soon(_signals, received, send, tasks.cancel_scope)
            try:
                await _run(Recorder(config, take_over=take_over), path, hangups, seconds, live)
            except ClosedError:
                pass  # told to end before it had started
            except NvrstoreError as error:
                problem = error  # raised below, as it is and not in a group
            tasks.cancel_scope.cancel()
    # The receiver gives signals back their default action: that would kill a process that has ended in order, and only has to exit.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if problem is not None:
        raise problem
    if live:
        say("stopped in order: everything that arrived is committed")


async def _run(recorder: Recorder, path: Path, hangups: ObjectReceiveStream[None], seconds: float, live: bool) -> None:
    async with recorder, anyio.create_task_group() as tasks:
        tasks.start_soon(_follow, recorder, path, hangups)
        if live:
            tasks.start_soon(_draw, recorder)
        else:
            tasks.start_soon(_print_events, recorder)
            tasks.start_soon(_print_status, recorder)
        if seconds:
            await anyio.sleep(seconds)
            tasks.cancel_scope.cancel()
        else:
            await anyio.sleep_forever()


async def _signals(received: AsyncIterator[signal.Signals], hangups: MemoryObjectSendStream[None], scope: anyio.CancelScope) -> None:
    async for number in received:
        if number != signal.SIGHUP:
            scope.cancel()
            return
        try:
            hangups.send_nowait(None)
        except anyio.WouldBlock:
            pass  # one waits already: it will read the newest file


async def _follow(recorder: Recorder, path: Path, hangups: ObjectReceiveStream[None]) -> None:
    """Read the configuration again whenever somebody asks for it; a mistake in it changes nothing."""
    async for _ in hangups:
        try:
            for sentence in await recorder.apply(Config.load(path)):
                warn(sentence)
        except NvrstoreError as error:
            warn(f"the configuration was not applied: {error}")


async def _print_events(recorder: Recorder) -> None:
    async with recorder.events() as happened:
        async for event in happened:
            print_event(event.as_json())


async def _print_status(recorder: Recorder) -> None:
    while True:
        await anyio.sleep(STATUS_S)
        print_event({"event": "status", **recorder.statistics()})


async def _draw(recorder: Recorder) -> None:
    screen = Screen()
    with screen.shown():
        async with recorder.events() as happened, anyio.create_task_group() as tasks:
            tasks.start_soon(_collect, happened, screen)
            while True:
                status: dict[str, Any] = recorder.statistics()
                screen.show(status)
                await anyio.sleep(STATUS_S)


async def _collect(happened: Any, screen: Screen) -> None:
    async for event in happened:
        screen.note(event)
