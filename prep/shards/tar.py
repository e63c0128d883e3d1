"""The members of a shard, header by header, with what the specification does not allow in a header."""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

BLOCK = 512
END = bytes(BLOCK)
USTAR = b"ustar\x0000"
CHUNK = 1 << 20


class TarError(Exception):
    """The tar cannot be followed any further.

    Attributes:
        code: `tar.truncated`, `tar.header` or `tar.end`.
        what: what is wrong.
        place: byte of the header where it went wrong.
    """

    def __init__(self, code: str, what: str, place: int) -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.place = place


@dataclass(frozen=True)
class Member:
    """A member of a tar.

    Attributes:
        name: its name.
        offset: byte at which its data begins.
        size: bytes of its data.
        oddities: what its header has that docs/shards.md, section 4, does not allow.
    """

    name: str
    offset: int
    size: int
    oddities: tuple[str, ...]

    @property
    def key(self) -> str:
        """The sample that it is of: its name up to the first dot."""
        return self.name.partition(".")[0]

    @property
    def extension(self) -> str:
        """Its name after the first dot."""
        return self.name.partition(".")[2]

    @property
    def end(self) -> int:
        """Byte at which the next header begins."""
        return self.offset + -(-self.size // BLOCK) * BLOCK

    def read(self, descriptor: int) -> bytes:
        """Its data."""
        return os.pread(descriptor, self.size, self.offset)


def members(descriptor: int, start: int = 0) -> Iterator[Member]:
    """The members of an open tar from the header at byte `start` to the end of the archive.

    Raises:
        TarError: the tar is cut short, a header is damaged, or something follows the end of the archive.
    """
    size = os.fstat(descriptor).st_size
    position = start
    while (block := os.pread(descriptor, BLOCK, position)) != END:
        if len(block) < BLOCK:
            raise TarError("tar.truncated", f"the tar ends at byte {size} without an end of archive", position)
        member = _member(block, position)
        if member.offset + member.size > size:
            raise TarError(
                "tar.truncated", f"{member.name} should end at byte {member.offset + member.size} of {size}", position
            )
        yield member
        position = member.end
    _check_end(descriptor, position, size)


def _member(block: bytes, place: int) -> Member:
    try:
        info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        raise TarError("tar.header", f"the header at byte {place} is damaged: {error}", place) from None
    if info.size < 0:
        raise TarError("tar.header", f"the header at byte {place} is damaged: its size is {info.size}", place)
    oddities = {
        "is not USTAR": block[257:265] != USTAR,
        "is no regular file": info.type != tarfile.REGTYPE,
        f"has mode {info.mode:04o} instead of 0444": info.mode != 0o444,
        f"has owner {info.uid}:{info.gid} instead of 0:0": (info.uid, info.gid) != (0, 0),
        f"has modification time {info.mtime} instead of 0": info.mtime != 0,
    }
    return Member(info.name, place + BLOCK, info.size, tuple(what for what, odd in oddities.items() if odd))


def _check_end(descriptor: int, position: int, size: int) -> None:
    if size - position < 2 * BLOCK:
        raise TarError("tar.truncated", f"the tar ends at byte {size} inside its end of archive", position)
    for place in range(position, size, CHUNK):
        if os.pread(descriptor, CHUNK, place).strip(b"\0"):
            raise TarError("tar.end", f"something follows the end of archive at byte {position}", position)
