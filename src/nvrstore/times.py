"""Moments as users give them, and as they are stored.

Aware datetimes, ISO 8601 texts with an offset, or UTC nanoseconds. A naive datetime means something else on every
machine, so it is refused.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from nvrstore.errors import UsageError
from nvrstore.model import NS_PER_S

Moment = datetime | int

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_utc_ns(moment: Moment) -> int:
    """UTC nanoseconds of `moment`, exact to the microsecond of a datetime. Raises UsageError for a naive datetime."""
    if isinstance(moment, datetime):
        if moment.tzinfo is None or moment.utcoffset() is None:
            raise UsageError(
                f"{moment.isoformat()} has no time zone", hint="give an aware datetime, for example datetime.now(UTC), or UTC nanoseconds"
            )
        return (moment - _EPOCH) // timedelta(microseconds=1) * 1000
    return int(moment)


def to_datetime(utc_ns: int) -> datetime:
    """The aware UTC datetime of UTC nanoseconds, truncated to microseconds."""
    return _EPOCH + timedelta(microseconds=utc_ns // 1000)


def parse(text: str) -> int:
    """UTC nanoseconds of an ISO 8601 text with an offset (`2026-11-23T07:45:10Z`). Raises UsageError."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is no moment", hint="write it as ISO 8601 with an offset: 2026-11-23T07:45:10Z") from error
    return to_utc_ns(moment)


def iso(utc_ns: int) -> str:
    """ISO 8601 in UTC, with milliseconds."""
    return to_datetime(utc_ns).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds(utc_ns: int) -> float:
    return utc_ns / NS_PER_S
