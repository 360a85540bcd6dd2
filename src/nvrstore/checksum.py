"""CRC-32C (Castagnoli, as in iSCSI, RFC 3720 B.4), the checksum of everything on disk.

`crc32c(data, seed)` continues from `seed`, takes any buffer without a copy, and returns an unsigned 32-bit integer.
It comes from the `crc32c` package (18-26 GB/s); where that is missing, from `crcmod`, loudly: 40 to 2,000 times slower.
`crc32c_reference` is always crcmod's: an independent implementation for tests and `verify --reference`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import crcmod.predefined

Buffer = bytes | bytearray | memoryview

_reference: Final = crcmod.predefined.mkPredefinedCrcFun("crc-32c")


def crc32c_reference(data: Buffer, seed: int = 0) -> int:
    """CRC-32C of `data` by crcmod, continuing from `seed`."""
    return int(_reference(bytes(data), seed))


def _choose() -> Callable[..., int]:
    try:
        import crc32c as fast
    except ImportError:
        logging.getLogger("nvrstore").warning("crc32c is not installed: checksums fall back to crcmod, which is far slower")
        return crc32c_reference
    return fast.crc32c


#: CRC-32C of a buffer, continuing from a seed (0 at the start): `crc32c(data, seed)`.
crc32c: Final[Callable[..., int]] = _choose()
