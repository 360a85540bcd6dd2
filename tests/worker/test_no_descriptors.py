"""A process without a free descriptor cannot start workers: it says so, leaves nothing behind, and starts them when there are some."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.targets import PATIENCE_S, answers, ask, open_volume, run

from nvrstore.errors import TargetUnavailableError
from nvrstore.limits import MIB
from nvrstore.targets.contract import UNAVAILABLE, Verb
from nvrstore.targets.directory import DirectoryTarget
from nvrstore.targets.identity import init_target
from nvrstore.targets.pool import Pool

#: Every call on the way to a worker that takes a descriptor, and the module whose attribute it is.
TAKES_ONE = [(socket, "socketpair"), (os, "memfd_create"), (mmap, "mmap"), (fcntl, "fcntl"), (os, "posix_spawn")]


def emfile_at(call: Callable[..., Any], turn: int) -> Callable[..., Any]:
    """`call`, but for one turn, at which no descriptor is left."""
    turns = iter(range(1000))

    def limited(*args: Any, **options: Any) -> Any:
        if next(turns) == turn:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return call(*args, **options)

    return limited


@pytest.mark.parametrize(("module", "name"), TAKES_ONE, ids=[name for _, name in TAKES_ONE])
@pytest.mark.parametrize("turn", [0, 1, 2])
def test_a_worker_for_which_no_descriptor_is_left_is_not_half_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, turn: int
) -> None:
    """Neither an appender nor a keeper, wherever on the way they run out; that nothing stays open is what every test checks."""
    pool = Pool(MIB)
    target = DirectoryTarget("t", tmp_path)
    really = getattr(module, name)
    try:
        run(target, init_target("t"))
        with monkeypatch.context() as patched:
            patched.setattr(module, name, emfile_at(really, turn))
            if turn == 0 or name == "fcntl":
                with pytest.raises(TargetUnavailableError, match="Too many open files"):
                    target.start_appender(pool)
            else:
                assert target.start_appender(pool).close(PATIENCE_S)
        with monkeypatch.context() as patched:
            patched.setattr(module, name, emfile_at(really, turn))
            if not target.keeper.restart():
                assert ask(target, Verb.SPACE).errno == UNAVAILABLE, "and is not tried again at once"
        while not target.keeper.restart():
            pass  # those that were replaced are still on their way out; bounded by the test's own timeout
        assert ask(target, Verb.SPACE).ok
    finally:
        assert target.close(PATIENCE_S)
        pool.close()


@pytest.mark.parametrize("call", ["pidfd_open", "dup"])
def test_a_worker_without_a_pidfd_is_accounted_for_by_its_pid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """The last descriptor went into its channel, or there is none when it is to end: it works all the same, and is waited for."""

    def none_left(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, call, none_left)
    pool = Pool(MIB)
    target = DirectoryTarget("t", tmp_path)
    try:
        run(target, init_target("t"))
        assert ask(target, Verb.PREPARE, "j/.next/p", length=MIB // 2).ok
        appender = target.start_appender(pool)
        open_volume(appender, pool)
        assert answers(appender, 1)[0].ok
        assert appender.close(PATIENCE_S)
    finally:
        assert target.close(PATIENCE_S)
        pool.close()
