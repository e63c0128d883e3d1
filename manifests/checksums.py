"""Checksums of samples and files."""

import hashlib
import zlib
from collections.abc import Iterable
from pathlib import Path


def crc32(parts: Iterable[bytes]) -> int:
    """CRC-32 (as in zip, gzip and PNG) of the concatenated parts."""
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
