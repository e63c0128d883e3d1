"""Tars of samples in the format of docs/shards.md, section 4: written member by member, and read header by header."""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)
"""End of archive: two blocks of zeros."""
USTAR = b"ustar\x0000"
MODE = 0o444
CHUNK = 1 << 20


class TarError(Exception):
    """The tar cannot be read any further.

    Attributes:
        code: `tar.truncated`, `tar.header` or `tar.end`.
        what: what is wrong.
        position: byte at which the bad header begins.
    """

    def __init__(self, code: str, what: str, position: int) -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.position = position


@dataclass(frozen=True)
class Member:
    """A member of a tar.

    Attributes:
        name: its file name.
        offset: byte at which its data begins.
        size: bytes of its data.
        violations: properties of its header that the format does not allow.
    """

    name: str
    offset: int
    size: int
    violations: tuple[str, ...]

    @property
    def key(self) -> str:
        """Key of its sample: the name up to the first dot."""
        return self.name.partition(".")[0]

    @property
    def extension(self) -> str:
        """The name after the first dot."""
        return self.name.partition(".")[2]

    @property
    def end(self) -> int:
        """Byte at which the next header begins."""
        return self.offset + self.size + -self.size % BLOCK

    def read(self, descriptor: int) -> bytes:
        """Its data, from the open tar."""
        return os.pread(descriptor, self.size, self.offset)


def append_member(file: BinaryIO, name: str, data: bytes) -> int:
    """Append a member at the current position of `file`; return the byte at which its data begins.

    The bytes depend on name and data only: USTAR, owner and modification time 0, mode 0444.
    """
    header = tarfile.TarInfo(name)
    header.size, header.mode = len(data), MODE
    file.write(header.tobuf(tarfile.USTAR_FORMAT))
    offset = file.tell()
    file.write(data)
    file.write(bytes(-len(data) % BLOCK))
    return offset


def archive_size(size: int) -> int:
    """Size of a complete tar whose members take `size` bytes: with its end of archive, in records of 10 KiB."""
    size += len(END)
    return size + -size % tarfile.RECORDSIZE


def members(descriptor: int, start: int = 0) -> Iterator[Member]:
    """The members of an open tar from the header at byte `start` to the end of archive.

    Raises:
        TarError: the tar is truncated, a header is damaged, or something follows the end of archive.
    """
    size = os.fstat(descriptor).st_size
    position = start
    while (block := os.pread(descriptor, BLOCK, position)) != bytes(BLOCK):
        if len(block) < BLOCK:
            raise TarError("tar.truncated", f"the tar ends at byte {size} without an end of archive", position)
        member = _member(block, position)
        end = member.offset + member.size
        if end > size:
            raise TarError("tar.truncated", f"{member.name} should end at byte {end}, but the tar has {size} bytes", position)
        yield member
        position = member.end
    _check_end(descriptor, position, size)


def _member(block: bytes, position: int) -> Member:
    try:
        info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        raise TarError("tar.header", f"the header at byte {position} is damaged: {error}", position) from None
    if info.size < 0:
        raise TarError("tar.header", f"the header at byte {position} is damaged: its size is {info.size}", position)
    violations = {
        "is not USTAR": block[257:265] != USTAR,
        "is not a regular file": info.type != tarfile.REGTYPE,
        f"has mode {info.mode:04o} instead of {MODE:04o}": info.mode != MODE,
        f"has owner {info.uid}:{info.gid} instead of 0:0": (info.uid, info.gid) != (0, 0),
        f"has modification time {info.mtime} instead of 0": info.mtime != 0,
    }
    return Member(info.name, position + BLOCK, info.size, tuple(what for what, found in violations.items() if found))


def _check_end(descriptor: int, position: int, size: int) -> None:
    if size - position < len(END):
        raise TarError("tar.truncated", f"the tar ends at byte {size} inside its end of archive", position)
    for start in range(position, size, CHUNK):
        if os.pread(descriptor, CHUNK, start).strip(b"\0"):
            raise TarError("tar.end", f"something follows the end of archive at byte {position}", position)
