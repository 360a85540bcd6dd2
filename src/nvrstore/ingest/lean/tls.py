"""TLS to cameras: what is looked at, and why a connection came to nothing, in words that name the thing and the next step.

Cameras sign their certificates themselves, so they are looked at only where that is asked for: `options = {tls_verify = "1"}`,
with the authority, or the camera's own certificate, in `ca_file` where the system does not know it. As libav does it.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Final

from nvrstore.errors import SourceError, SourceUnreachableError, redact
from nvrstore.ingest.contract import SourceRequest

_PORT_HINT: Final = 'does the camera speak TLS at this port? its certificate is looked at only with `options = {tls_verify = "1"}`'
_CA_HINT: Final = "put the camera's certificate, or its authority's, into a file and set `options = {ca_file = ...}`"
_NAME_HINT: Final = "use a name in the URL that stands in the certificate, or give the camera one that names this address"
_TIME_HINT: Final = "give the camera a new certificate; or is its clock, or the recorder's, wrong?"

#: OpenSSL's X509_V_ERR_*, in words, and what to do about it.
_REASONS: Final[Mapping[int, tuple[str, str]]] = {
    9: ("its certificate is not valid yet", _TIME_HINT),
    10: ("its certificate has expired", _TIME_HINT),
    18: ("its certificate is signed by itself, and not known here", _CA_HINT),
    19: ("the authority of its certificate is not known here", _CA_HINT),
    20: ("the authority of its certificate is not known here", _CA_HINT),
    21: ("the authority of its certificate is not known here", _CA_HINT),
    62: ("its certificate is for another name", _NAME_HINT),
    64: ("its certificate is for another address", _NAME_HINT),
}


def context(request: SourceRequest) -> ssl.SSLContext:
    """How to speak TLS with this camera. Raises `SourceError` for a `ca_file` that cannot be read."""
    failed = ""
    try:
        made = ssl.create_default_context(cafile=request.options.get("ca_file"))
    except (OSError, ValueError) as error:
        failed = getattr(error, "strerror", None) or str(error)
    if failed:
        raise SourceError(f"{request.stream}: the certificates in `ca_file` cannot be read ({failed})")
    if request.options.get("tls_verify", "0") in ("", "0"):
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    return made


def failed(error: OSError, where: str) -> SourceUnreachableError:
    """Why the handshake came to nothing."""
    if isinstance(error, ssl.SSLCertVerificationError):
        said = error.verify_message or "it does not pass"
        words, hint = _REASONS.get(error.verify_code, ("its certificate is refused", _CA_HINT))
        return SourceUnreachableError(f"{where}: {words} ({redact(said.rstrip('.'))})", hint=hint)
    reason = getattr(error, "reason", None) or error.strerror or type(error).__name__
    return SourceUnreachableError(f"{where}: no TLS connection ({redact(str(reason))})", hint=_PORT_HINT)
