"""Drives `Steps` over memory targets, call by call: stopped anywhere, mixed with others, with faults in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Any, TypeVar

from nvrstore.clock import ManualClock
from nvrstore.targets.contract import Answer, Call, Request, Steps, Verb
from nvrstore.targets.memory import MemoryTarget

T = TypeVar("T")

#: Verbs that change a target: where a crash matters.
CHANGES = frozenset({Verb.WRITE, Verb.SYNC, Verb.TRUNCATE, Verb.RENAME, Verb.LINK, Verb.UNLINK, Verb.MKDIR, Verb.PUT, Verb.RMDIR})


class Stopped(Exception):
    """The work was stopped before the call that was asked for."""


def memory_targets(names: Iterable[str], **options: Any) -> dict[str, MemoryTarget]:
    """Targets by name, all on one clock that never moves by itself."""
    clock = ManualClock()
    return {name: MemoryTarget(name, clock=clock, **options) for name in names}


def drive(
    steps: Steps[T],
    targets: Mapping[str, MemoryTarget],
    *,
    changes_max: int | None = None,
    seen: Callable[[Call, Answer], None] | None = None,
) -> T:
    """Run `steps` to the end. With `changes_max`, raise `Stopped` in place of the change that would be one too many."""
    changes = 0
    try:
        call = next(steps)
        while True:
            if call.request.verb in CHANGES:
                changes += 1
                if changes_max is not None and changes > changes_max:
                    raise Stopped
            answer = targets[call.target].keeper.call(call.request, 0)
            if seen is not None:
                seen(call, answer)
            call = steps.send(answer)
    except StopIteration as stop:
        value: T = stop.value
        return value
    finally:
        steps.close()


def mixed(works: Mapping[str, Steps[Any]], targets: Mapping[str, MemoryTarget], rng: Random) -> dict[str, Any]:
    """Run several pieces of work, a call of one or of another at a time; what each returned or raised."""
    results: dict[str, Any] = {}
    calls: dict[str, Call] = {}
    for name, steps in works.items():
        calls[name] = next(steps)
    while calls:
        name = rng.choice(sorted(calls))
        answer = targets[calls[name].target].keeper.call(calls[name].request, 0)
        try:
            calls[name] = works[name].send(answer)
        except StopIteration as stop:
            results[name] = stop.value
            del calls[name]
        except Exception as error:  # noqa: BLE001  it is the result
            results[name] = error
            del calls[name]
    return results


def put(target: MemoryTarget, path: str, data: bytes) -> None:
    """A file with this content, durable."""
    for request in (Request(Verb.MKDIR, path.rsplit("/", 1)[0]), Request(Verb.PUT, path, data=data)):
        answer = target.keeper.call(request, 0)
        if not answer.ok:
            raise AssertionError(answer)


def content(target: MemoryTarget, path: str) -> bytes:
    """What a file holds, as everybody reads it."""
    file = target.files.files[path]
    return file.read(0, file.seen_size, fresh=True)


def tree(target: MemoryTarget) -> dict[str, bytes]:
    """All files by path."""
    return {path: content(target, path) for path in sorted(target.files.files)}
