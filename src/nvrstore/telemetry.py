"""Logs: structured events over the standard library's `logging`, silent until the host configures it.

    get_logger("ingest.pyav").info("session.opened", stream="gate", after_s=0.4)

    -> logging.getLogger("nvrstore.ingest.pyav"), level INFO, message `session.opened stream=gate after_s=0.4`,
       and the fields themselves as `record.nvrstore` (a dict) for hosts whose handlers write JSON

Events are `noun.verbed`, fields carry their unit in the name. Invariant: no credential of a URL leaves here, in a
message, a field or a traceback. Nothing global is configured: not structlog, not the root logger. Only the command
line calls `configure_cli_logging`.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, Final, TextIO, cast

import structlog

from nvrstore.errors import redact

ROOT: Final = "nvrstore"
HIDDEN: Final = "***"

#: Fields whose value is never shown, whatever it is.
SECRET_FIELDS: Final = frozenset({"password", "passwd", "secret", "token", "authorization", "credentials", "psk"})

#: Frames between the caller of a bound logger and the `Logger` method it ends in: so that `%(lineno)d` is the caller's.
_STACKLEVEL: Final = 4

logging.getLogger(ROOT).addHandler(logging.NullHandler())


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of one module: pass `__name__`, or a name below `nvrstore` such as `"targets.node"`."""
    full = name if name == ROOT or name.startswith(ROOT + ".") else f"{ROOT}.{name}"
    logger = structlog.wrap_logger(
        logging.getLogger(full),
        processors=[structlog.stdlib.filter_by_level, structlog.processors.format_exc_info, redact_fields, to_stdlib],
        wrapper_class=structlog.stdlib.BoundLogger,
        context_class=dict,
        cache_logger_on_first_use=True,
    )
    return cast("structlog.stdlib.BoundLogger", logger)


def redact_fields(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: takes credentials out of every value, also of nested ones and of exceptions."""
    for key, value in event.items():
        event[key] = HIDDEN if key in SECRET_FIELDS else redacted(value)
    return event


def redacted(value: Any) -> Any:
    """`value` without credentials: numbers as they are, containers copied, everything else as its redacted text."""
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return redact(value)
        case Mapping():
            return {str(k): HIDDEN if k in SECRET_FIELDS else redacted(v) for k, v in value.items()}
        case list() | tuple() | set() | frozenset():
            return [redacted(v) for v in value]
        case _:
            return redact(str(value))


def to_stdlib(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> tuple[tuple[str], dict[str, Any]]:
    """A structlog processor, the last: one line `event key=value ...` and the fields as `record.nvrstore`."""
    fields = dict(event)
    name = str(fields.pop("event", ""))
    trace = fields.pop("exception", None)
    line = " ".join([name, *(f"{key}={_plain(value)}" for key, value in fields.items())])
    if trace:
        line = f"{line}\n{trace}"
        fields["exception"] = trace
    # exc_info=False: `Logger.exception` would otherwise add the traceback a second time, unredacted.
    return (line,), {"extra": {"nvrstore": {"event": name, **fields}}, "exc_info": False, "stacklevel": _STACKLEVEL}


def _plain(value: Any) -> str:
    """A value as it stands in a line: quoted where it has blanks or quotes, floats without noise."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False) if not value or any(c in ' "=\n\t' for c in value) else value
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return str(value)


# --- the command line ------------------------------------------------------------------------------------------


class LineFormatter(logging.Formatter):
    """`2026-11-23T07:45:10.123Z warning target.lost target=array-a cause=EIO`."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{_iso(record)} {record.levelname.lower()} {super().format(record)}"


class JsonFormatter(logging.Formatter):
    """One JSON object per line: `time`, `level`, `logger`, `event`, and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {"time": _iso(record), "level": record.levelname.lower(), "logger": record.name}
        own = getattr(record, "nvrstore", None)
        fields.update(own if isinstance(own, dict) else {"event": redact(record.getMessage())})
        return json.dumps(fields, ensure_ascii=False)


def configure_cli_logging(*, level: str = "warning", as_json: bool = False, stream: TextIO | None = None) -> None:
    """Show the library's events on `stream` (standard error by default). For programs that own the process: the command line.

    Called again, it replaces what it set before. Raises ValueError for a level that `logging` does not know.
    """
    logger = logging.getLogger(ROOT)
    logger.setLevel(level.upper())
    for handler in list(logger.handlers):
        if getattr(handler, "nvrstore_cli", False):
            logger.removeHandler(handler)
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.nvrstore_cli = True  # type: ignore[attr-defined]
    handler.setFormatter(JsonFormatter() if as_json else LineFormatter())
    logger.addHandler(handler)
    logger.propagate = False


def _iso(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
