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

from mbt.manifests.errors import StorageError

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
    with _lock(folder / ".lock", fcntl.LOCK_EX):
        for partial in folder.rglob(f".*{PARTIAL}"):
            partial.unlink()
        yield


@contextlib.contextmanager
def one_of_many(folder: Path, worker: str) -> Iterator[None]:
    """Hold `folder` as one of its writers, each of which writes other files.

    Raises:
        StorageError: a sole writer or another one of this name is writing there.
    """
    with _lock(folder / ".lock", fcntl.LOCK_SH), _lock(folder / f".lock-{worker}", fcntl.LOCK_EX):
        yield


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock `path`, after waiting up to a minute for it.

    Raises:
        StorageError: another process holds it.
    """
    with _lock(path, fcntl.LOCK_EX, patience_s=60.0):
        yield


@contextlib.contextmanager
def _lock(path: Path, kind: int, patience_s: float = LOCK_PATIENCE_S) -> Iterator[None]:
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    with file:
        if not _is_locked(file, kind, patience_s):
            raise StorageError(f"another process is writing to {path.parent}", "Wait for it, or choose another folder")
        yield


def _is_locked(file: TextIO, kind: int, patience_s: float) -> bool:
    """Lock the file; a child that a killed writer was just starting may hold it a moment longer."""
    give_up = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= give_up:
                return False
            time.sleep(0.05)


def nearest_existing(path: Path) -> Path:
    """The path, or the nearest above it that is there; absolute."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())


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
            errno.EFBIG: "the file is larger than the file system allows",
            errno.EROFS: "the file system is read-only",
            errno.EACCES: "permission denied",
            errno.ENOTDIR: "a part of the path is a file",
            errno.EEXIST: "a part of the path is a file",
        }.get(error.errno or 0)
        if reason is None:
            raise
        fix = "Free some space or choose another folder, then run the same command again: what is finished is kept"
        raise StorageError(f"cannot write {path}: {reason}", fix) from error
