"""The recorder's state directory, on a local disk.

    lock              flock: one recorder per directory
    recorder.json     {"format": 1, "id": "<32 hex>"}: who this recorder is, for ever
    terms/<journal>   the highest term that it claimed
    targets.json      name -> uuid, as last seen: which disk belongs where
    journals.json     name -> uuid
    waits.json        name -> seconds that retention has waited with what is overdue
    locks/<target>    flock, inherited by the target's workers: a stuck worker of a dead recorder still holds it
    catalog.sqlite  control.sock  refuge/

Every file is written whole under a temporary name, synced, renamed. Its death is an alarm, never a stop: only opening
raises; what is saved later fails quietly and says so in its result.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvrstore.errors import ConfigError, JournalInUseError
from nvrstore.model import new_id
from nvrstore.telemetry import get_logger

log = get_logger("recorder.state")


class StateDirectory:
    """An opened state directory; `close` gives it free."""

    def __init__(self, path: Path) -> None:
        """Open and lock it. Raises `JournalInUseError` when another recorder has it, `ConfigError` when it cannot be used."""
        self.path = path
        try:
            for folder in (path, path / "terms", path / "locks"):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock_fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError([("recorder.state", f"{path}: {error.strerror}; it must be a writable directory")]) from error
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock_fd)
            raise JournalInUseError(f"another recorder has the state directory {path} open") from error
        identity = self._load("recorder.json")
        self.recorder_id: str = identity.get("id", "")
        if not self.recorder_id:
            self.recorder_id = new_id()
            self._save("recorder.json", {"format": 1, "id": self.recorder_id})
        self.target_ids: dict[str, str] = dict(self._load("targets.json"))
        self.journal_ids: dict[str, str] = dict(self._load("journals.json"))

    @property
    def catalog(self) -> Path:
        return self.path / "catalog.sqlite"

    @property
    def socket(self) -> Path:
        return self.path / "control.sock"

    @property
    def refuge(self) -> Path:
        return self.path / "refuge"

    def term(self, journal: str) -> int:
        """The highest term claimed for `journal`; 0 when none is known."""
        return int(self._load(f"terms/{journal}").get("term", 0))

    def save_term(self, journal: str, term: int) -> bool:
        return self._save(f"terms/{journal}", {"term": term})

    def waits(self) -> dict[str, float]:
        """Seconds that retention has waited with what is overdue, by journal."""
        return {name: float(waited_s) for name, waited_s in self._load("waits.json").items() if isinstance(waited_s, int | float)}

    def save_waits(self, waited: Mapping[str, float]) -> bool:
        return self._save("waits.json", dict(waited))

    def learn_target(self, name: str, target_id: str) -> None:
        """Remember which uuid the target of that name has."""
        if self.target_ids.get(name) != target_id:
            self.target_ids[name] = target_id
            self._save("targets.json", self.target_ids)

    def learn_journal(self, name: str, journal_id: str) -> None:
        """Remember which uuid the journal of that name has."""
        if self.journal_ids.get(name) != journal_id:
            self.journal_ids[name] = journal_id
            self._save("journals.json", self.journal_ids)

    def worker_lock(self, target: str) -> int | None:
        """A locked descriptor for the workers of `target`; None while workers of an earlier recorder still hold it."""
        fd = os.open(self.path / "locks" / target, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return None
        return fd

    def close(self) -> None:
        os.close(self._lock_fd)

    def _load(self, name: str) -> dict[str, Any]:
        try:
            loaded = json.loads((self.path / name).read_text())
        except (OSError, ValueError):
            return {}  # missing or torn: everything in here can be learned again
        return loaded if isinstance(loaded, dict) else {}

    def _save(self, name: str, value: dict[str, Any]) -> bool:
        target, temporary = self.path / name, self.path / f"{name}.new"
        try:
            with open(temporary, "w") as file:
                json.dump(value, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except OSError as error:
            log.error("state.failed", path=str(target), error=error.strerror)
            return False
        return True
