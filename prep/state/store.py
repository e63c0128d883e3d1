"""Where finished files are stored: in the dataset folder itself, or at a URL that fsspec supports."""

import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from mbt.manifests.errors import MbtError, StorageError
from mbt.manifests.reading.remote import file_system, hide_secrets, without_secrets

CHUNK = 8 << 20


class Store:
    """The finished files of a dataset folder.

    Args:
        folder: the dataset folder, where every file is written first.
        url: such as `s3://bucket/set`; finished files are uploaded there. None: they stay in the folder.

    Attributes:
        shown: the URL for messages, without password and query, which may be secret.

    Raises:
        InputError: fsspec does not support the URL's protocol, or a package that it needs is not installed.
        StorageError: the server cannot be reached.
    """

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self.folder = folder
        self.url = url
        self._transaction = threading.Lock()  # A file system of fsspec has one transaction at a time.
        if url is not None:
            self.shown = without_secrets(url)
            with self._storage_errors():
                self._files, self._root = file_system(url, f"cannot write to {self.shown}")

    def __getstate__(self) -> tuple[Path, str | None]:
        return self.folder, self.url

    def __setstate__(self, state: tuple[Path, str | None]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    @cached_property
    def _sizes(self) -> dict[str, int]:
        """Bytes of each file at the URL, by name: listed once, then kept up to date."""
        with self._storage_errors():
            try:
                listed = self._files.ls(self._root, detail=True, refresh=True)
            except FileNotFoundError:
                return {}
        return {entry["name"].rstrip("/").rpartition("/")[2]: entry["size"] or 0 for entry in listed}

    def size(self, name: str) -> int | None:
        """Bytes of a finished file, or None if it does not exist.

        Raises:
            StorageError: the files at the URL cannot be listed.
        """
        if self.url is not None:
            return self._sizes.get(name)
        try:
            return (self.folder / name).stat().st_size
        except OSError:
            return None

    def read(self, name: str, spans: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """Yield parts of a finished file, each given as its first byte and its number of bytes, in ascending order.

        Raises:
            StorageError: the file cannot be read.
        """
        if self.url is None:
            with (self.folder / name).open("rb") as file:
                yield from _parts(file, spans)
        else:
            with self._storage_errors(), self._files.open(f"{self._root}/{name}", "rb", block_size=CHUNK) as file:
                yield from _parts(file, spans)

    def put(self, name: str) -> None:
        """Upload a file of the folder, completely or not at all; does nothing without a URL.

        Raises:
            StorageError: the upload failed.
        """
        if self.url is None:
            return
        path, target = self.folder / name, f"{self._root}/{name}"
        size = path.stat().st_size
        with self._storage_errors():
            self._files.makedirs(self._root, exist_ok=True)
            with self._transaction, self._files.transaction, path.open("rb") as source, self._files.open(target, "wb") as file:
                shutil.copyfileobj(source, file, CHUNK)
            self._files.invalidate_cache()
            stored_size = self._files.info(target)["size"]
        if stored_size != size:
            raise StorageError(
                f"{self.shown}/{name} has {stored_size} bytes after the upload, not {size}", "Run the same command again"
            )
        self._sizes[name] = size

    def is_pending(self, names: Iterable[str]) -> bool:
        """Whether a local copy of one of these files remains, because it may not have been uploaded."""
        return self.url is not None and any((self.folder / name).exists() for name in names)

    def release(self, name: str) -> None:
        """Delete the local copy of an uploaded file."""
        if self.url is not None:
            (self.folder / name).unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Delete a finished file, if it exists.

        Raises:
            StorageError: it cannot be deleted.
        """
        if self.url is None:
            (self.folder / name).unlink(missing_ok=True)
        elif self._sizes.pop(name, None) is not None:
            with self._storage_errors():
                self._files.rm_file(f"{self._root}/{name}")

    @contextmanager
    def _storage_errors(self) -> Iterator[None]:
        """Turn fsspec's exceptions into a StorageError, which does not quote the credentials."""
        try:
            yield
        except (FileNotFoundError, MbtError):
            raise
        except Exception as error:
            fix = "Check the URL and the credentials, then run the same command again; finished shards are kept"
            raise StorageError(f"cannot reach {self.shown}: {hide_secrets(str(error), self.url or '')}", fix) from None


def _parts(file: BinaryIO, spans: Sequence[tuple[int, int]]) -> Iterator[bytes]:
    for start, size in spans:
        file.seek(start)
        yield file.read(size)
