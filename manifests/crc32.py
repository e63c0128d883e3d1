"""The checksum of a sample."""

import zlib
from collections.abc import Iterable


def crc32(parts: Iterable[bytes]) -> int:
    """CRC-32 (that of zip, gzip and PNG) of the parts, one after the other."""
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc
