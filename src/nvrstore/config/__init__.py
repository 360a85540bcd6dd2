"""The configuration: what to record, where to keep it, how long.

    Config.load("nvr.toml")      a file and what it includes       (loading.py, places.py: file, table path, line)
    Config.parse(text_or_dict)   the same without a file
    StreamConfig(id=..., ...)    the tables as frozen pydantic models (models.py; sizes and hours: units.py)
    resolve_login(login)         credentials, read at connect only    (login.py)

Invariants: `load` and `parse` report every mistake at once, each with its place, as one `ConfigError`. No credential
is ever in a model's `url`, `repr` or dump, nor in the sentence of a mistake.
"""

from nvrstore.config.login import resolve_login, url_with_login
from nvrstore.config.models import (
    Config,
    JournalConfig,
    KeepConfig,
    Objectives,
    RecorderConfig,
    RecordMode,
    ScheduleEntry,
    StreamConfig,
    StreamDefaults,
    TargetConfig,
)
from nvrstore.config.units import Size

__all__ = [
    "Config",
    "JournalConfig",
    "KeepConfig",
    "Objectives",
    "RecordMode",
    "RecorderConfig",
    "ScheduleEntry",
    "Size",
    "StreamConfig",
    "StreamDefaults",
    "TargetConfig",
    "resolve_login",
    "url_with_login",
]
