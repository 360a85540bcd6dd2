"""The tables of a configuration as frozen values.

    Config ─┬─ recorder      who records, and where its own state lies
            ├─ targets[]     places that keep volumes             (TOML: [[target]])
            ├─ journals[]    sets of targets, with a retention    (TOML: [[journal]])
            ├─ streams[]     cameras                              (TOML: [[stream]], defaults in [stream_defaults])
            └─ objectives    what was promised to somebody; drills measure against it

Units are in the names: `_s` seconds, `_bytes`, `_bps` bits per second. Each model checks itself; what concerns several
tables is in checks.py. Building a model in Python raises pydantic's ValidationError (a ValueError); `Config.load` and
`Config.parse` raise `ConfigError` with every mistake. This module reads no file and resolves no login.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SecretStr,
    Tag,
    ValidationInfo,
    field_serializer,
    model_validator,
)

from nvrstore.config import checks, login
from nvrstore.config.units import DAYS, MINUTES_PER_DAY, Bytes, Days, Hour, SizeField
from nvrstore.errors import redact
from nvrstore.limits import FRAGMENT_S, GIB, SEGMENT_S, SILENCE_S, TICK_S, VOLUME_AGE_S
from nvrstore.model import NS_PER_S

#: Names that become directories and parts of file names.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Text = Annotated[str, Field(min_length=1)]
Seconds = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
SecondsOrZero = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=1)]

RecordMode = Literal["always", "event", "off"]


def _absolute(path: Path, info: ValidationInfo) -> Path:
    """Relative paths count from the file that names them, else from the working directory."""
    base = (info.context or {}).get("base", "")
    return Path(os.path.abspath(os.path.join(base, path.expanduser())))


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


class Table(BaseModel):
    """Base of all tables: frozen, no unknown keys, and nothing secret in `repr` or in an error's text."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, populate_by_name=True)

    def __repr_args__(self) -> Any:
        for name, value in super().__repr_args__():
            yield name, redact(value) if isinstance(value, str) else value


class RecorderConfig(Table):
    """Who records. `state` is a directory on a local disk: catalog, terms, control socket, refuge."""

    name: Name
    state: AbsolutePath
    workers: Annotated[int, Field(strict=True, ge=0, le=64)] = 0  # processes that receive the streams; 0: threads of the host
    worker_python: Text | None = None  # interpreter of the targets' workers; None: sys.executable
    refuge_bytes: Bytes = 4 * GIB  # bound of what is kept on the state disk while no target lives
    timezone: Annotated[str, AfterValidator(checks.timezone)] | None = (
        None  # IANA name in which schedules are meant; None: the machine's own
    )

    def local(self, utc_ns: int) -> datetime:
        """The local time at `utc_ns`, in which schedules are meant."""
        moment = datetime.fromtimestamp(utc_ns / NS_PER_S, UTC)
        return moment.astimezone(None if self.timezone is None else ZoneInfo(self.timezone))


class TargetConfig(Table):
    """A place that keeps volumes: a directory of a mounted file system (`path`), or a storage node (`url`)."""

    name: Name
    path: AbsolutePath | None = None
    url: Annotated[str, AfterValidator(checks.node_url)] | None = (
        None  # nvr://HOST:PORT[,HOST:PORT ...]: several addresses are several ways to the same node
    )
    id: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None = None  # refuse any other target than this one (target.json)
    medium: Literal["auto", "ssd", "disk", "network", "node", "memory"] = "auto"
    isolation: Literal["process", "thread"] = "process"

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.url is None):
            raise ValueError("needs either path or url" if self.path is None else "has both path and url; a target is one place")
        return self

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """(host, port) of a storage node, in order of preference; empty for a directory."""
        return () if self.url is None else checks.node_addresses(self.url)


class KeepConfig(Table):
    """How long footage is kept. What is not given does not limit; a full target always overwrites its oldest."""

    days: Seconds | None = None
    bytes: SizeField | None = None  # of this journal on each of its targets; "80%" of the target
    free: SizeField | None = None  # what stays free on each target


def _at_most_targets(copies: int, info: ValidationInfo) -> int:
    named = info.data.get("targets")
    if named is not None and copies > len(named):
        raise ValueError(f"asks for {copies} copies, but {len(named)} targets are named")
    return copies


def _not_before_late(lost_s: float, info: ValidationInfo) -> float:
    if (info.data.get("late_s") or 0) > lost_s:
        raise ValueError("must not be less than late_s")
    return lost_s


class JournalConfig(Table):
    """Footage of some streams on an ordered list of targets: primary, standbys, spares."""

    name: Name
    targets: Annotated[tuple[Name, ...], AfterValidator(checks.not_empty), AfterValidator(checks.no_duplicates)]
    copies: Annotated[Count, AfterValidator(_at_most_targets)] = (
        2  # members of the set; the targets behind them are spares. Not given: 2, or 1 where there is one target
    )
    commit: Literal["all", "any"] = "all"
    keep: KeepConfig = KeepConfig()
    standby_keep: KeepConfig | None = None  # a rolling window on standbys; None: as `keep`
    tick_s: Seconds = TICK_S
    fragment_s: Seconds = FRAGMENT_S
    late_s: Seconds | None = None  # None: by the target's medium
    lost_s: Annotated[Seconds, AfterValidator(_not_before_late)] | None = None
    hold_down_s: SecondsOrZero = 30.0
    failback: Literal["auto", "manual"] = "auto"
    buffer_bytes: Bytes | None = None  # None: 3 x lost_s of measured throughput
    volume_bytes: Bytes | None = None  # None: about a minute of throughput
    volume_age_s: Seconds = VOLUME_AGE_S
    rebuild_after_s: SecondsOrZero = 1200.0
    resync_bps: Annotated[int, Field(strict=True, gt=0)] | None = None  # None: all but the time in which live batches are on their way
    takeover_s: Seconds = 60.0

    @model_validator(mode="before")
    @classmethod
    def _copies_follow_targets(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "copies" not in data and isinstance(data.get("targets"), list | tuple):
            return {**data, "copies": max(1, min(2, len(data["targets"])))}
        return data


class ScheduleEntry(Table):
    """One line of a recording schedule. It belongs to the day on which it begins; `to` before `from` runs over midnight."""

    days: Days = DAYS
    start: Hour = Field(default=0, validation_alias="from", serialization_alias="from")
    end: Hour = Field(default=MINUTES_PER_DAY, validation_alias="to", serialization_alias="to")
    mode: RecordMode = "always"

    def covers(self, weekday: int, minute: int) -> bool:
        """Whether it holds at `minute` of `weekday` (Monday is 0)."""
        if self.start < self.end:
            return DAYS[weekday] in self.days and self.start <= minute < self.end
        evening = DAYS[weekday] in self.days and minute >= self.start
        morning = DAYS[weekday - 1] in self.days and minute < self.end
        return evening or morning


def _mode_or_schedule(value: Any) -> str:
    return "<mode>" if isinstance(value, str) else "<schedule>"


Schedule = Annotated[tuple[ScheduleEntry, ...], AfterValidator(checks.not_empty)]
Record = Annotated[Annotated[RecordMode, Tag("<mode>")] | Annotated[Schedule, Tag("<schedule>")], Discriminator(_mode_or_schedule)]


_TWO_LOGINS = "two logins"


def _login_form(value: str, info: ValidationInfo) -> str:
    if value == _TWO_LOGINS:
        raise ValueError("stands beside credentials in the url; one of them is enough")
    kind, _, where = value.partition(":")
    if kind not in ("env", "file") or not where:
        raise ValueError('must be "env:NAME" or "file:PATH"; the login itself does not belong here')
    return f"file:{_absolute(Path(where), info)}" if kind == "file" else value


class StreamDefaults(Table):
    """What streams have in common. A stream's own keys win; `options` and `labels` are merged."""

    login: Annotated[str, AfterValidator(_login_form)] | None = None
    journal: Name | None = None  # None: the only journal
    engine: Literal["auto", "pyav", "lean"] = "auto"
    transport: Literal["tcp", "udp"] = "tcp"
    audio: Literal["aac", "pcm", "copy", "off"] = "aac"
    record: Record = "always"
    pre_event_s: SecondsOrZero = 10.0
    fragment_s: Seconds | None = None  # None: the journal's
    segment_s: Seconds = SEGMENT_S
    silence_s: Seconds = SILENCE_S
    options: Mapping[str, str] = Field(default_factory=dict)  # libav's, by its names, for cameras that need them
    labels: Mapping[str, str] = Field(default_factory=dict)

    @field_serializer("options")
    def _hide_secret_options(self, options: Mapping[str, str]) -> dict[str, str]:
        return checks.hidden(options)

    def __repr_args__(self) -> Any:
        for name, value in super().__repr_args__():
            yield name, checks.hidden(value) if name == "options" else value


class StreamConfig(StreamDefaults):
    """One camera (one of its streams). Credentials written in `url` are taken out of it and shown by nothing."""

    id: Name
    url: Annotated[str, AfterValidator(checks.source_url)]
    name: str = ""  # for people; the id where empty

    _credentials: SecretStr | None = PrivateAttr(default=None)

    @model_validator(mode="wrap")
    @classmethod
    def _take_credentials(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        found = None
        if isinstance(data, Mapping) and isinstance(data.get("url"), str):
            url, found = login.split_url(data["url"])
            # What goes on to validation holds no credentials: pydantic's errors keep their input.
            data = {**data, "url": url, **({"login": _TWO_LOGINS} if found is not None and data.get("login") is not None else {})}
        made = handler(data)
        if found is not None:
            made._credentials = SecretStr(found)
        return made

    @field_serializer("url")
    def _hide_query_secrets(self, url: str) -> str:
        return redact(url)

    @property
    def title(self) -> str:
        """The name for people."""
        return self.name or self.id

    @property
    def credentials_in_url(self) -> bool:
        return self._credentials is not None

    def resolve_login(self) -> tuple[str, str] | None:
        """(user, password), read now, or None where the camera needs none. Raises `SourceError`. Call it when connecting, keep nothing."""
        if self._credentials is not None:
            return login.split_login(self._credentials.get_secret_value())
        return None if self.login is None else login.resolve_login(self.login)

    def mode_at(self, local: datetime) -> RecordMode:
        """What the schedule says at this local time. The first entry that covers it wins; none: off."""
        if isinstance(self.record, str):
            return self.record
        weekday, minute = local.weekday(), local.hour * 60 + local.minute
        return next((entry.mode for entry in self.record if entry.covers(weekday, minute)), "off")

    def with_defaults(self, defaults: StreamDefaults) -> StreamConfig:
        """This stream, with everything that it does not say itself from `defaults`."""
        changes: dict[str, Any] = {key: getattr(defaults, key) for key in defaults.model_fields_set - self.model_fields_set}
        if self.credentials_in_url:
            changes.pop("login", None)
        for key in ("options", "labels"):
            if getattr(defaults, key):
                changes[key] = {**getattr(defaults, key), **getattr(self, key)}
        return self.model_copy(update=changes) if changes else self


class Objectives(Table):
    """What was promised to somebody: recovery time (fault to next commit) and recovery point (footage lost)."""

    rto_s: Seconds | None = None
    rpo_s: SecondsOrZero | None = None


def _at(*start: str | int) -> Callable[..., str]:
    return lambda *path: checks.shown((*start, *path))


class Config(Table):
    """A whole configuration, checked. Read one with `load` or `parse`; build one from its tables in Python."""

    recorder: RecorderConfig
    targets: Annotated[tuple[TargetConfig, ...], Field(min_length=1, validation_alias="target", serialization_alias="target")]
    journals: Annotated[tuple[JournalConfig, ...], Field(min_length=1, validation_alias="journal", serialization_alias="journal")]
    streams: Annotated[tuple[StreamConfig, ...], Field(validation_alias="stream", serialization_alias="stream")] = ()
    stream_defaults: StreamDefaults = StreamDefaults()
    objectives: Objectives = Objectives()
    format: Literal[1] = 1

    @model_validator(mode="after")
    def _complete_and_check(self) -> Self:
        object.__setattr__(self, "streams", tuple(self.complete(stream) for stream in self.streams))
        problems = checks.across(
            [checks.Entry(_at("target", i), t.name, t) for i, t in enumerate(self.targets)],
            [checks.Entry(_at("journal", i), j.name, j, j.targets) for i, j in enumerate(self.journals)],
            [checks.Entry(_at("stream", i), s.id, s, (s.journal,) if s.journal else ()) for i, s in enumerate(self.streams)],
        )
        if problems:
            raise ValueError("; ".join(f"{place}: {sentence}" for place, sentence in problems))
        return self

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Config:
        """Read a file, and what it includes. Raises `ConfigError` with every mistake and its place."""
        from nvrstore.config.loading import load

        return load(path)

    @classmethod
    def parse(cls, source: str | Mapping[str, Any], *, base: str | os.PathLike[str] = "", name: str = "configuration") -> Config:
        """From TOML text or a mapping of the same shape. Relative paths and includes count from `base`. Raises `ConfigError`."""
        from nvrstore.config.loading import parse

        return parse(source, base=base, name=name)

    def complete(self, stream: StreamConfig) -> StreamConfig:
        """`stream` with `stream_defaults`, and with its journal named where there is only one."""
        stream = stream.with_defaults(self.stream_defaults)
        if stream.journal is None and len(self.journals) == 1:
            stream = stream.model_copy(update={"journal": self.journals[0].name})
        return stream

    def target(self, name: str) -> TargetConfig:
        """The target of that name. Raises KeyError."""
        return {target.name: target for target in self.targets}[name]

    def journal(self, name: str) -> JournalConfig:
        """The journal of that name. Raises KeyError."""
        return {journal.name: journal for journal in self.journals}[name]

    def warnings(self) -> tuple[tuple[str, str], ...]:
        """What is allowed and unwise, as (place, sentence)."""
        return tuple(checks.unwise(self.targets, self.journals, self.streams))
