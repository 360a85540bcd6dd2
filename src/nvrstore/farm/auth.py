"""Logins: Basic (RFC 7617) and Digest with MD5 or SHA-256 (RFC 7616), as cameras ask for them. Pure.

A digest is HASH(HASH(user:realm:password) : nonce [: nc : cnonce : qop] : HASH(method:uri)). The URI in it is whatever the client
put there: real cameras accept relative and absolute forms, and so does the farm.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from nvrstore.farm.rtsp import Request, parse_authorization

REALM: Final = "nvrstore farm"


class Auth(StrEnum):
    """How streams are protected."""

    NONE = "none"
    BASIC = "basic"
    DIGEST = "digest"  # MD5 with no qop, what most cameras do
    DIGEST_SHA256 = "digest-sha256"


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Guard:
    """Asks for a login and checks it. One nonce for the life of the farm: it guards test patterns."""

    auth: Auth
    user: str
    password: str
    nonce: str

    def challenge(self) -> tuple[tuple[str, str], ...]:
        """`WWW-Authenticate` headers for a 401."""
        match self.auth:
            case Auth.BASIC:
                value = f'Basic realm="{REALM}"'
            case Auth.DIGEST:
                value = f'Digest realm="{REALM}", nonce="{self.nonce}"'
            case Auth.DIGEST_SHA256:
                value = f'Digest realm="{REALM}", nonce="{self.nonce}", algorithm=SHA-256, qop="auth"'
            case Auth.NONE:
                return ()
        return (("WWW-Authenticate", value),)

    def admits(self, request: Request) -> bool:
        """Whether the request carries the right login."""
        if self.auth is Auth.NONE:
            return True
        header = parse_authorization(request.headers.get("authorization", ""))
        if self.auth is Auth.BASIC:
            try:
                given = base64.b64decode(header.fields.get("token", ""), validate=True)
            except binascii.Error:
                return False
            return header.scheme == "basic" and hmac.compare_digest(given, f"{self.user}:{self.password}".encode())
        fields = header.fields
        algorithm = "SHA-256" if self.auth is Auth.DIGEST_SHA256 else "MD5"
        if header.scheme != "digest" or fields.get("algorithm", "MD5").upper() != algorithm:
            return False
        if fields.get("username") != self.user or fields.get("nonce") != self.nonce or fields.get("realm") != REALM:
            return False
        answer = self._digest(_sha256 if algorithm == "SHA-256" else _md5, request.method, fields.get("uri", ""), dict(fields))
        return hmac.compare_digest(answer.encode(), fields.get("response", "").lower().encode())

    def _digest(self, hashed: Callable[[str], str], method: str, uri: str, fields: dict[str, str]) -> str:
        one = hashed(f"{self.user}:{REALM}:{self.password}")
        two = hashed(f"{method}:{uri}")
        if fields.get("qop"):
            return hashed(f"{one}:{self.nonce}:{fields.get('nc', '')}:{fields.get('cnonce', '')}:{fields['qop']}:{two}")
        return hashed(f"{one}:{self.nonce}:{two}")
