"""How sizes, hours and days are written in a configuration.

    size   1000000 | "500MB" | "10GiB" | "5%"      decimal and binary units; a share of the target where that makes sense
    hour   "07:30" | "24:00" | TOML's 07:30:00     minutes since midnight
    days   "mon-fri" | "sat,sun" | "daily" | ["mon", "wed"]

Durations need no unit in the value: their keys carry it (`hold_down_s = 30`). Every parser raises ValueError with a
sentence that names the accepted forms; none repeats what was written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import time
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_FACTORS: Final = {
    "": 1,
    "b": 1,
    **{prefix + "b": 1000**power for power, prefix in enumerate("kmgtp", start=1)},
    **{prefix + "ib": 1024**power for power, prefix in enumerate("kmgtp", start=1)},
}
_SIZE: Final = re.compile(r"(?i)\s*(\d+(?:\.\d+)?)\s*([kmgtp]?i?b?)\s*")
_SHARE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*")
_HOUR: Final = re.compile(r"(\d{1,2}):(\d{2})")

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MINUTES_PER_DAY: Final = 24 * 60


@dataclass(frozen=True, slots=True)
class Size:
    """So many bytes, or a share (0 … 1) of something whose size is known later."""

    bytes: int = 0
    share: float = 0.0

    def of(self, total_bytes: int) -> int:
        """In bytes, for a target of `total_bytes`."""
        return self.bytes + int(self.share * total_bytes)

    def __str__(self) -> str:
        return f"{self.share * 100:g}%" if self.share else str(self.bytes)

    @classmethod
    def parse(cls, value: object) -> Size:
        """From `"5%"`, `"10GiB"` or a number of bytes."""
        if isinstance(value, Size):
            return value
        if isinstance(value, str) and (match := _SHARE.fullmatch(value)):
            share = float(match[1]) / 100
            if share > 1:
                raise ValueError("must be at most 100%")
            return cls(share=share)
        try:
            return cls(bytes=parse_bytes(value))
        except ValueError:
            raise ValueError('must be a size such as "10GB", "10GiB", "5%" or a number of bytes') from None


def parse_bytes(value: object) -> int:
    """A number of bytes from an integer, or from a text such as `"500MB"` (10^6) or `"500MiB"` (2^20)."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)) and match[2].lower() in _FACTORS:
        return int(float(match[1]) * _FACTORS[match[2].lower()])
    raise ValueError('must be a size such as "10GB", "10GiB" or a number of bytes')


def parse_hour(value: object) -> int:
    """Minutes since midnight, 0 … 1440."""
    if isinstance(value, time):
        return value.hour * 60 + value.minute
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MINUTES_PER_DAY:
        return value
    if isinstance(value, str) and (match := _HOUR.fullmatch(value.strip())):
        minutes = int(match[1]) * 60 + int(match[2])
        if int(match[2]) < 60 and minutes <= MINUTES_PER_DAY:
            return minutes
    raise ValueError('must be a time of day from "00:00" to "24:00"')


def show_hour(minutes: int) -> str:
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


def parse_days(value: object) -> tuple[str, ...]:
    """Names of days, Monday first, from a list or a text such as `"mon-fri,sun"`; a range may run over the week's end."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise ValueError('must be days such as "mon-fri", "sat,sun" or "daily"')
    found: set[int] = set()
    for part in parts:
        word = part.strip().lower()
        first, dash, last = word.partition("-")
        if word == "daily":
            found.update(range(7))
        elif first[:3] in DAYS and (not dash or last[:3] in DAYS):
            begin = DAYS.index(first[:3])
            end = DAYS.index(last[:3]) if dash else begin
            found.update((begin + i) % 7 for i in range((end - begin) % 7 + 1))
        else:
            raise ValueError('must be days such as "mon-fri", "sat,sun" or "daily"')
    return tuple(DAYS[i] for i in sorted(found))


def _schema(*types: str) -> WithJsonSchema:
    return WithJsonSchema({"type": list(types)} if len(types) > 1 else {"type": types[0]})


def _serialize(show: Any) -> PlainSerializer:
    return PlainSerializer(show, return_type=str)


SizeField = Annotated[Size, BeforeValidator(Size.parse), _serialize(str), _schema("string", "integer")]
Bytes = Annotated[int, BeforeValidator(parse_bytes), _schema("string", "integer")]
Hour = Annotated[int, BeforeValidator(parse_hour), _serialize(show_hour), _schema("string")]
Days = Annotated[tuple[str, ...], BeforeValidator(parse_days)]
