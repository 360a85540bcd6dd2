"""What one table cannot know about itself: names that must agree, addresses that must be addresses.

`across` gets whatever could be read: a table with a mistake of its own still has its name here, so that one slip of
the pen is reported once and not at every place that refers to it. Pure; nothing here repeats a URL.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from nvrstore.errors import redact

if TYPE_CHECKING:
    from nvrstore.config.models import JournalConfig, StreamConfig, TargetConfig

T = TypeVar("T")

Problem = tuple[str, str]


class Entry(NamedTuple, Generic[T]):
    """A table as far as it could be read."""

    at: Callable[..., str]  # the place of the table, or of a key in it: at("targets", 1)
    name: str | None  # None where it is missing
    value: T | None  # None where it has a mistake of its own
    refers_to: Sequence[str] = ()  # names of targets (of a journal), of the journal (of a stream)


SCHEMES: Final = ("rtsp", "rtsps", "http", "https", "srt", "rtmp", "rtmps", "rtp", "udp", "tcp", "file")

#: Name of the implicit last target, on the state disk.
REFUGE: Final = "refuge"

#: libav options that carry credentials.
SECRET_OPTIONS: Final = frozenset({"headers", "cookies", "passphrase", "key", "password", "cryptokey", "decryption_key", "http_proxy"})

#: Behind the first "/" of a URL: an "@", then what can only be the address of a camera. The password that stands before it holds a "/".
_BEHIND_AT: Final = re.compile(r"@(?:[\w-]+(?:\.[\w-]+)+(?::\d|/)|[\w-]+:\d|\d+(?:\.\d+){3}\b|\[[0-9A-Fa-f:.]+\])")

_PATTERN_NODE: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:,/\[\]]+):(\d{1,5})")


def source_url(url: str) -> str:
    """A URL that a camera may have, or an absolute path of a media file. Raises ValueError."""
    if "://" not in url:
        if not PurePath(url).is_absolute():
            raise ValueError("must be a URL such as rtsp://10.0.0.5/main, or an absolute path")
        return url
    scheme, _, rest = url.partition("://")
    if scheme.lower() not in SCHEMES:
        raise ValueError(f"has a scheme that is not known{suggestion(scheme.lower(), SCHEMES)}")
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("must be a URL with a host and, if any, a port from 1 to 65535") from None
    if not rest or (scheme.lower() != "file" and not host):
        raise ValueError("must be a URL with a host")
    if scheme.lower() != "file" and _BEHIND_AT.search(re.sub(r"^[^/?#]*", "", rest)):
        raise ValueError("has an address behind an '@' in its path: in a password, write '@' as %40, '/' as %2F, '?' as %3F, '#' as %23")
    return url


def node_url(url: str) -> str:
    """A URL of a storage node. Raises ValueError."""
    node_addresses(url)
    return url


def node_addresses(url: str) -> tuple[tuple[str, int], ...]:
    """(host, port) pairs of `nvr://HOST:PORT[,HOST:PORT...]`. Raises ValueError."""
    scheme, _, rest = url.partition("://")
    found = []
    for part in rest.removesuffix("/").split(","):
        match = _PATTERN_NODE.fullmatch(part)
        if scheme != "nvr" or match is None or not 0 < int(match[2]) < 65536:
            raise ValueError("must be nvr://HOST:PORT, further addresses behind commas")
        found.append((match[1].strip("[]"), int(match[2])))
    return tuple(found)


def timezone(name: str) -> str:
    """An IANA name. Raises ValueError."""
    try:
        return ZoneInfo(name).key
    except (ValueError, OSError, LookupError):
        raise ValueError('must be an IANA name such as "Europe/Berlin"') from None


def not_empty(values: tuple[T, ...]) -> tuple[T, ...]:
    """Raises ValueError. (A minimum length of the field would also fire where all elements have mistakes of their own.)"""
    if not values:
        raise ValueError("must not be empty")
    return values


def no_duplicates(names: tuple[str, ...]) -> tuple[str, ...]:
    """Raises ValueError where a name stands twice."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"names {twice[0]!r} twice")
    return names


def shown(path: Iterable[str | int]) -> str:
    """`stream[3].url`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def hidden(options: Mapping[str, str]) -> dict[str, str]:
    """libav options as they may be shown."""
    return {key: "***" if key in SECRET_OPTIONS else redact(value) for key, value in options.items()}


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'url'?`, or what there is where nothing is near."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(known)}" if 0 < len(known) <= 12 else ""


def across(
    targets: Sequence[Entry[TargetConfig]], journals: Sequence[Entry[JournalConfig]], streams: Sequence[Entry[StreamConfig]]
) -> list[Problem]:
    """Every disagreement between tables, as (place, sentence)."""
    return [
        *_twice(targets, "name"),
        *_twice(journals, "name"),
        *_twice(streams, "id"),
        *_reserved(targets),
        *_same_place(targets),
        *_unknown_names(targets, journals, streams),
        *_sources(targets, streams),
    ]


def _twice(entries: Sequence[Entry[T]], key: str) -> Iterator[Problem]:
    first: dict[str, str] = {}
    for at, name, *_ in entries:
        if name is not None and name in first:
            yield at(key), f"{name!r} is already taken by {first[name]}"
        elif name is not None:
            first[name] = at()


def _reserved(targets: Sequence[Entry[TargetConfig]]) -> Iterator[Problem]:
    for at, name, *_ in targets:
        if name == REFUGE:
            yield at("name"), f"{REFUGE!r} is what the recorder calls its own place on the state disk"


def _same_place(targets: Sequence[Entry[TargetConfig]]) -> Iterator[Problem]:
    first: dict[PurePath | str, str] = {}
    for at, _, target, _ in targets:
        where = None if target is None else target.path or target.url
        if where is not None and where in first:
            yield at("path" if isinstance(where, PurePath) else "url"), f"is the same place as {first[where]}"
        elif where is not None:
            first[where] = at()


def _unknown_names(
    targets: Sequence[Entry[TargetConfig]], journals: Sequence[Entry[JournalConfig]], streams: Sequence[Entry[StreamConfig]]
) -> Iterator[Problem]:
    target_names = [entry.name for entry in targets if entry.name is not None]
    journal_names = [entry.name for entry in journals if entry.name is not None]
    for journal in journals:
        for i, name in enumerate(journal.refers_to):
            if name not in target_names:
                yield journal.at("targets", i), f"there is no target {name!r}{suggestion(name, target_names)}"
    for stream in streams:
        for name in stream.refers_to:
            if name not in journal_names:
                yield stream.at("journal"), f"there is no journal {name!r}{suggestion(name, journal_names)}"
        if not stream.refers_to and len(journals) > 1:
            yield stream.at("journal"), f"is missing: there are several journals{suggestion('', journal_names)}"


def _sources(targets: Sequence[Entry[TargetConfig]], streams: Sequence[Entry[StreamConfig]]) -> Iterator[Problem]:
    directories = [target.value.path for target in targets if target.value is not None and target.value.path is not None]
    for at, _, stream, _ in streams:
        if stream is None:
            continue
        if stream.engine == "lean" and stream.transport == "udp" and stream.url.lower().startswith("rtsps:"):
            yield at("transport"), "'lean' speaks rtsps over tcp only"
        source = PurePath(stream.url.removeprefix("file://"))
        if any(source.is_relative_to(directory) for directory in directories):
            yield at("url"), "is a file on a target: a target that hangs would hang the source"


def unwise(targets: Iterable[TargetConfig], journals: Iterable[JournalConfig], streams: Iterable[StreamConfig]) -> Iterator[Problem]:
    """What is allowed and yet worth a word, as (place, sentence)."""
    journals = list(journals)
    used = {name for journal in journals for name in journal.targets}
    for target in targets:
        if target.name not in used:
            yield f"target {target.name!r}", "no journal uses it"
    for journal in journals:
        if journal.copies == 1:
            yield f"journal {journal.name!r}", "keeps one copy: footage is lost with its target"
    for stream in streams:
        if stream.credentials_in_url:
            yield f"stream {stream.id!r}", "the login stands in its url; a file of its own is safer: login = 'file:PATH' or 'env:NAME'"
