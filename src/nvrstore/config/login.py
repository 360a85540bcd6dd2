"""Where a camera's credentials come from: never from the model, only at the moment of connecting.

    login = "env:NAME"          the variable NAME of the recorder's environment
    login = "file:/path"        the first line of a file (systemd's credentials, a mounted secret)
    url = "rtsp://user:pw@..."  allowed, and taken out of the URL when the configuration is read

In all three the text is `user:password`; the password may hold colons. Invariant: nothing here puts a credential into
an error, and what was read is kept nowhere.
"""

from __future__ import annotations

import os
import re
from typing import Final
from urllib.parse import quote, unquote

from nvrstore.errors import SourceError

_URL: Final = re.compile(r"(?s)([A-Za-z][A-Za-z0-9+.-]*://)(.*)")


def resolve_login(login: str) -> tuple[str, str]:
    """(user, password) from `"env:NAME"` or `"file:PATH"`. Reads the environment or the file now; raises `SourceError`."""
    kind, _, where = login.partition(":")
    if kind == "env":
        text = os.environ.get(where)
        if text is None:
            raise SourceError(f"the login is not there: no variable {where!r}", hint=f"set {where}=user:password for the recorder")
    elif kind == "file":
        try:
            with open(where, encoding="utf-8") as file:
                text = file.readline().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise SourceError(
                f"the login file {where!r} cannot be read: {reason}",
                hint="the login file's first line is user:password; the recorder's user must be able to read it",
            ) from None
    else:
        raise SourceError("the login is neither env:NAME nor file:PATH", hint="put user:password into a file and name it")
    return split_login(text, f"login {kind}:{where}")


def split_login(text: str, where: str = "login") -> tuple[str, str]:
    """(user, password) from `user:password`. Raises `SourceError`, without the text, where there is no colon."""
    user, colon, password = text.partition(":")
    if not colon:
        raise SourceError(f"{where} holds no user:password", hint="write the user, a colon, and the password")
    return user, password


def split_url(url: str) -> tuple[str, str | None]:
    """(URL without user-info, "user:password" or None). User-info is percent-decoded (RFC 3986 3.2.1).

    Passwords with a raw "@" or "/" are common in the field although a URL may not hold them: the user-info ends at the
    last "@" of the authority, or, where the "authority" has a port that is no number, at the last "@" of all.
    """
    match = _URL.fullmatch(url)
    if match is None or match[1].lower() == "file://":
        return url, None
    scheme, rest = match[1], match[2]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        at = authority.rindex("@")
    else:
        port = authority.rpartition(":")[2] if ":" in authority and not authority.endswith("]") else ""
        if not port or port.isdigit() or "@" not in rest:
            return url, None
        at = rest.rindex("@")
    user, _, password = rest[:at].partition(":")
    return scheme + rest[at + 1 :], f"{unquote(user)}:{unquote(password)}"


def url_with_login(url: str, login: tuple[str, str] | None) -> str:
    """The URL that libav wants, with percent-encoded user-info. Goes to libav and nowhere else: not into logs, not into argv."""
    match = _URL.fullmatch(url)
    if login is None or match is None:
        return url
    return f"{match[1]}{quote(login[0], safe='')}:{quote(login[1], safe='')}@{match[2]}"
