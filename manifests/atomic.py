"""Files that appear complete or not at all."""

import contextlib
import errno
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.errors import StorageError

LOCK_PATIENCE_S = 3.0
PARTIAL = ".tmp"
"""Suffix of a file that is being written; its name begins with a dot."""


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes `path` when the block ends well, and vanishes when it does not.

    The bytes are on disk (fsync of file and folder) before the name is; a reader never sees a part.

    Raises:
        StorageError: no space left, quota exceeded, read-only or forbidden folder.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent)
        partial = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.chmod(0o644)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_file(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, in UTF-8."""
    write_bytes(path, text.encode())


def write_table(path: Path, table: pa.Table) -> None:
    """Write an Arrow table to `path` as Parquet (zstd) atomically."""
    with atomic_file(path) as file:
        pq.write_table(table, file, compression="zstd")


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold `folder` as its only writer, after removing what writers that were killed left unfinished in it.

    Raises:
        StorageError: another process is writing there.
    """
    lock = folder / ".lock"
    with storage_errors(lock):
        folder.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    with file:
        if not _locked(file):
            raise StorageError(f"another process is writing to {folder}", "Wait for it, or choose another folder")
        for partial in folder.rglob(f".*{PARTIAL}"):
            partial.unlink()
        yield


def _locked(file: TextIO) -> bool:
    """Lock the file; a child that a killed writer was just starting may hold it a moment longer."""
    give_up = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= give_up:
                return False
            time.sleep(0.05)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write at `path` into a StorageError."""
    try:
        yield
    except OSError as error:
        reason = {
            errno.ENOSPC: "no space left on the disk",
            errno.EDQUOT: "the disk quota is used up",
            errno.EROFS: "the file system is read-only",
            errno.EACCES: "permission denied",
            errno.ENOTDIR: "a part of the path is a file",
            errno.EEXIST: "a part of the path is a file",
        }.get(error.errno or 0)
        if reason is None:
            raise
        fix = "Free some space or choose another folder, then run the same command again: what is finished is kept"
        raise StorageError(f"cannot write {path}: {reason}", fix) from error
