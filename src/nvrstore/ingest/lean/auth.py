"""Logins over RTSP: Basic (RFC 7617) and Digest (RFC 7616, and RFC 2617 as older cameras do it). Pure but for random numbers.

    WWW-Authenticate ─▶ challenges() ─▶ strongest that we know ─▶ Login.header(method, uri), made anew for every request

Invariant: a password is in no error and no `repr`; Basic is never shown to another host than the one that was configured.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

_PART: Final = re.compile(r'([\w.-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*))|([A-Za-z][\w-]*)(?=\s|,|$)')
_HEADER_MAX: Final = 4096  # characters; the pattern's worst case grows with the square
_HASHES: Final[Mapping[str, str]] = {"SHA-512-256": "sha512_256", "SHA-256": "sha256", "MD5": "md5"}  # by strength


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way that a camera offers to log in. Names of fields are lower case."""

    scheme: str  # lower case
    fields: Mapping[str, str]

    @property
    def algorithm(self) -> str:
        return self.fields.get("algorithm", "MD5").upper().removesuffix("-SESS")

    @property
    def strength(self) -> int:
        """0: not known here."""
        if self.scheme == "basic":
            return 1
        if self.scheme == "digest" and "nonce" in self.fields and self.algorithm in _HASHES:
            return 1 + len(_HASHES) - list(_HASHES).index(self.algorithm)
        return 0


def challenges(values: Iterable[str]) -> list[Challenge]:
    """Every challenge in the `WWW-Authenticate` headers of one response; several may stand in one header."""
    found: list[Challenge] = []
    for value in values:
        fields: dict[str, str] | None = None
        for match in _PART.finditer(value[:_HEADER_MAX]):
            if match[4]:
                fields = {}
                found.append(Challenge(match[4].lower(), fields))
            elif fields is not None:
                text = match[3] if match[2] is None else re.sub(r"\\(.)", r"\1", match[2])
                fields.setdefault(match[1].lower(), text)
    return found


class Login:
    """A user's name and password, and what the camera wants to see of them."""

    def __init__(self, user: str, password: str) -> None:
        self._user, self._password = user, password
        self._challenge: Challenge | None = None
        self._count = 0

    def __repr__(self) -> str:
        return "Login(***)"

    @property
    def ready(self) -> bool:
        """Whether the camera has said how to log in."""
        return self._challenge is not None

    def accept(self, offered: list[Challenge], *, basic: bool) -> bool:
        """Take the strongest challenge. False: there is none, or it says that the very login that it was just shown is wrong."""
        usable = [challenge for challenge in offered if challenge.strength > 1 or (challenge.strength == 1 and basic)]
        if not usable:
            return False
        best = max(usable, key=lambda challenge: challenge.strength)
        known, self._challenge = self._challenge, best
        if known is None or known.scheme != best.scheme:
            self._count = 0
            return True
        again = best.scheme == "digest" and known.fields["nonce"] != best.fields["nonce"]
        if again:
            self._count = 0
        return again or best.fields.get("stale", "").lower() == "true"

    def forget(self) -> None:
        """Another server: it will say itself what it wants."""
        self._challenge = None

    def header(self, method: str, uri: str) -> str:
        """The value of `Authorization` for one request."""
        challenge = self._challenge
        if challenge is None:
            return ""
        if challenge.scheme == "basic":
            return "Basic " + base64.b64encode(f"{self._user}:{self._password}".encode()).decode()
        return self._digest(challenge, method, uri)

    def _digest(self, challenge: Challenge, method: str, uri: str) -> str:
        fields = challenge.fields

        def digest(text: str) -> str:
            return hashlib.new(_HASHES[challenge.algorithm], text.encode(), usedforsecurity=False).hexdigest()

        realm, nonce = fields.get("realm", ""), fields["nonce"]
        cnonce = secrets.token_hex(8)
        self._count += 1
        count = f"{self._count:08x}"
        secret = digest(f"{self._user}:{realm}:{self._password}")
        if fields.get("algorithm", "").upper().endswith("-SESS"):
            secret = digest(f"{secret}:{nonce}:{cnonce}")
        offered = [name.strip().lower() for name in fields.get("qop", "").split(",") if name.strip()]
        qop = "auth" if "auth" in offered else "auth-int" if "auth-int" in offered else ""
        asked = f"{method}:{uri}:{digest('')}" if qop == "auth-int" else f"{method}:{uri}"
        middle = f"{nonce}:{count}:{cnonce}:{qop}" if qop else nonce
        answer = digest(f"{secret}:{middle}:{digest(asked)}")
        said = [f'username="{_quoted(self._user)}"', f'realm="{_quoted(realm)}"', f'nonce="{_quoted(nonce)}"', f'uri="{uri}"']
        said.append(f'response="{answer}"')
        if "algorithm" in fields:
            said.append(f"algorithm={fields['algorithm']}")
        if "opaque" in fields:
            said.append(f'opaque="{_quoted(fields["opaque"])}"')
        if qop:
            said += [f"qop={qop}", f"nc={count}", f'cnonce="{cnonce}"']
        return "Digest " + ", ".join(said)


def _quoted(text: str) -> str:
    """Inside a quoted-string; what would end the header is left out."""
    return re.sub(r'(["\\])', r"\\\1", re.sub(r"[\r\n]", "", text))
