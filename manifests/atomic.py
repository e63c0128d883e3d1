"""Atomic writes: a file appears complete or not at all."""

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
PARTIAL = ".mbt.tmp"
"""Suffix of a file that is being written; its name starts with a dot, and its writer holds a lock on it."""


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes `path` when the block succeeds and is deleted when it fails.

    The bytes are on disk (fsync of file and folder) before the name is, so a reader never sees a partial file.

    Raises:
        StorageError: no space left, quota exceeded, or the folder is not writable.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = _locked_partial(path)
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


def _locked_partial(path: Path) -> tuple[int, Path]:
    """A new partial file for `path`, open and locked."""
    while True:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent)
        with contextlib.suppress(OSError):  # Some file systems have no locks.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor, Path(name)
        os.close(descriptor)  # It was deleted before it was locked.


def _delete_abandoned(partial: Path) -> None:
    """Delete a partial file unless its writer lives."""
    with contextlib.suppress(OSError), partial.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        partial.unlink()


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
def exclusive_writer(folder: Path) -> Iterator[None]:
    """Lock `folder` for this process alone, and delete partial files of ours that killed writers left in it.

    Raises:
        StorageError: another process is writing to the folder.
    """
    with _lock(folder / ".lock", fcntl.LOCK_EX):
        for partial in folder.rglob(f".*{PARTIAL}"):
            _delete_abandoned(partial)
        yield


@contextlib.contextmanager
def shared_writer(folder: Path, worker: str) -> Iterator[None]:
    """Lock `folder` as one of several writers that write different files.

    Raises:
        StorageError: an exclusive writer or another writer with this name is writing to the folder.
    """
    with _lock(folder / ".lock", fcntl.LOCK_SH), _lock(folder / f".lock-{worker}", fcntl.LOCK_EX):
        yield


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; wait for it for up to a minute.

    Raises:
        StorageError: another process holds the lock.
    """
    with _lock(path, fcntl.LOCK_EX, patience_s=60.0):
        yield


@contextlib.contextmanager
def _lock(path: Path, kind: int, patience_s: float = LOCK_PATIENCE_S) -> Iterator[None]:
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    with file:
        if not _acquire(file, kind, patience_s):
            raise StorageError(f"another process is writing to {path.parent}", "Wait until it ends, or choose another folder")
        yield


def _acquire(file: TextIO, kind: int, patience_s: float) -> bool:
    """Lock the file, and retry for a while: a child process of a killed writer may hold the lock a moment longer."""
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
    """The path, or its nearest parent that exists; absolute."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable (fsync)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn operating-system errors about writing to `path` into a StorageError."""
    try:
        yield
    except OSError as error:
        reason = {
            errno.ENOSPC: "no space left on the disk",
            errno.EDQUOT: "the disk quota is exceeded",
            errno.EFBIG: "the file is too large for the file system",
            errno.EROFS: "the file system is read-only",
            errno.EACCES: "permission denied",
            errno.ENOTDIR: "a part of the path is a file",
            errno.EEXIST: "a part of the path is a file",
        }.get(error.errno or 0)
        if reason is None:
            raise
        fix = "Free some space or choose another folder, then run the same command again; finished work is kept"
        raise StorageError(f"cannot write {path}: {reason}", fix) from error
