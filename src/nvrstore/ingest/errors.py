"""What libav reports, as errors of this library: the border where its exceptions stop.

libav's own exceptions carry the URL they were opened with, login included: none of them leaves here, neither as text nor
as `__cause__` or `__context__`. So this returns errors, to be raised or handed on outside of any `except` block.
"""

from __future__ import annotations

import errno
from typing import Final

import av.error

from nvrstore.errors import (
    SourceEndedError,
    SourceError,
    SourceNotVideoError,
    SourceRefusedError,
    SourceSilentError,
    SourceUnreachableError,
    redact,
)
from nvrstore.model import Cause

_RTSP: Final = ("rtsp", "rtsps")
_NETWORK_ERRNOS: Final = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN})
_RESET_ERRNOS: Final = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED, errno.ESHUTDOWN, errno.ENOTCONN})


class SourceNetworkError(SourceUnreachableError):
    """The way to the camera is interrupted: not the camera is to blame, as far as one can tell."""

    hint = "check the network between recorder and camera"


class SourceUnsupportedError(SourceNotVideoError):
    """The camera, or what it sends, asks for something that this engine does not speak; another one may."""

    hint = 'set `engine = "auto"` or "pyav" for this stream'


def cause_of(error: SourceError) -> Cause:
    """What the ledger says of a session that ended with `error`."""
    if isinstance(error, SourceRefusedError):
        return Cause.REFUSED
    return Cause.NETWORK if isinstance(error, SourceNetworkError) else Cause.CAMERA


def opening_failed(error: Exception, url: str, waited_s: float, timeout_s: float) -> SourceError:
    """Why `av.open(url)` failed after `waited_s`."""
    where = redact(url)
    text = _text(error)
    rtsp = url.partition(":")[0].lower() in _RTSP
    match error:
        case av.error.HTTPUnauthorizedError() | av.error.HTTPForbiddenError():
            return SourceRefusedError(f"{where}: the camera refuses the login ({text})")
        case av.error.HTTPNotFoundError():
            return SourceNotVideoError(f"{where}: there is nothing at this path ({text})")
        case av.error.HTTPClientError() | av.error.HTTPError():
            return SourceSilentError(f"{where}: the camera answers, and gives no video ({text})")
        case TimeoutError():
            return SourceUnreachableError(f"{where}: no answer within {timeout_s:g} s")
        case ConnectionError():
            return SourceUnreachableError(f"{where}: {text}")
        case FileNotFoundError() | IsADirectoryError() | PermissionError():
            return SourceNotVideoError(f"{where}: {text}", hint="check the path, and the permissions of the recorder's user")
        case LookupError():
            return SourceNotVideoError(f"{where}: {text}", hint="check the URL: its scheme, or what is there, is not known")
        case ValueError() if rtsp:  # libav's answer to a server that is mute, hangs up, or speaks something else
            if waited_s >= timeout_s:
                return SourceSilentError(f"{where}: connected, and no answer within {timeout_s:g} s")
            return SourceSilentError(
                f"{where}: connected, and no sensible answer", hint="is that an RTSP port? the camera may be full, or starting"
            )
        case ValueError():
            return SourceNotVideoError(f"{where}: {text}")
        case EOFError():
            return SourceEndedError(f"{where}: closed before anything came")
        case OSError() if error.errno in _NETWORK_ERRNOS:
            return SourceNetworkError(f"{where}: {text}")
        case OSError() if error.errno == errno.EPROTONOSUPPORT and rtsp:  # RTSP 461
            hint = 'set `transport = "udp"`, or "tcp" where that is set already'
            return SourceSilentError(f"{where}: the camera does not send over the transport that is set ({text})", hint=hint)
        case OSError() if error.errno == errno.EIO:
            what = "the name cannot be resolved, or the connection broke" if rtsp else "no answer that could be read as video"
            return SourceUnreachableError(f"{where}: {what} ({text})", hint=None if rtsp else SourceNotVideoError.hint)
        case _:
            return SourceUnreachableError(f"{where}: {text}")


def reading_failed(error: Exception | None, url: str, timeout_s: float) -> SourceError:
    """Why a session that was open ended; None: libav came to the end of the stream."""
    where = redact(url)
    match error:
        case None | EOFError():
            return SourceEndedError(f"{where}: the stream ended")
        case TimeoutError():
            return SourceSilentError(f"{where}: nothing came for {timeout_s:g} s")
        case OSError() if error.errno in _NETWORK_ERRNOS:
            return SourceNetworkError(f"{where}: {_text(error)}")
        case OSError() if error.errno in _RESET_ERRNOS:
            return SourceEndedError(f"{where}: the camera closed the connection ({_text(error)})")
        case av.error.HTTPUnauthorizedError() | av.error.HTTPForbiddenError():
            return SourceRefusedError(f"{where}: the camera refuses the login ({_text(error)})")
        case _:
            return SourceEndedError(f"{where}: {_text(error)}")


def _text(error: Exception) -> str:
    """libav's sentence alone: its exceptions' own text holds the URL."""
    return redact(str(getattr(error, "strerror", None) or type(error).__name__))
