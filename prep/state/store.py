"""Where finished files go: the dataset folder itself, or a folder behind a URL that fsspec knows."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from mbt.manifests.errors import StorageError
from mbt.manifests.reading.remote import file_system

CHUNK = 8 << 20


class Store:
    """The finished files of a dataset folder.

    Args:
        folder: the dataset folder, where every file is made.
        url: such as `s3://bucket/set`; there they go when they are whole. None: files stay.

    Raises:
        InputError: fsspec knows no such kind of URL, or what it needs for it is not installed.
    """

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self.folder = folder
        self.url = url
        if url is not None:
            self._files, self._root = file_system(url, f"cannot write to {url}")

    def __getstate__(self) -> tuple[Path, str | None]:
        return self.folder, self.url

    def __setstate__(self, state: tuple[Path, str | None]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    @cached_property
    def _sizes(self) -> dict[str, int]:
        """Bytes of what is behind the URL, by name, as listed once and put since."""
        with self._errors():
            try:
                listed = self._files.ls(self._root, detail=True, refresh=True)
            except FileNotFoundError:
                return {}
        return {entry["name"].rstrip("/").rpartition("/")[2]: entry["size"] or 0 for entry in listed}

    def size(self, name: str) -> int | None:
        """Bytes of a finished file, or None if it is not there.

        Raises:
            StorageError: what is behind the URL cannot be listed.
        """
        if self.url is not None:
            return self._sizes.get(name)
        try:
            return (self.folder / name).stat().st_size
        except OSError:
            return None

    def put(self, name: str) -> None:
        """Bring a file of the folder to its place, whole or not at all.

        Raises:
            StorageError: it cannot be written.
        """
        if self.url is None:
            return
        path, target = self.folder / name, f"{self._root}/{name}"
        size = path.stat().st_size
        with self._errors():
            self._files.makedirs(self._root, exist_ok=True)
            with self._files.transaction, path.open("rb") as source, self._files.open(target, "wb") as file:
                shutil.copyfileobj(source, file, CHUNK)
            self._files.invalidate_cache()
            arrived = self._files.info(target)["size"]
        if arrived != size:
            raise StorageError(f"{self.url}/{name} has {arrived} bytes, not {size}", "Run the same command again")
        self._sizes[name] = size

    def release(self, name: str) -> None:
        """Delete the folder's copy of a file that was put behind the URL."""
        if self.url is not None:
            (self.folder / name).unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Remove a finished file, if it is there.

        Raises:
            StorageError: it cannot be removed.
        """
        if self.url is None:
            (self.folder / name).unlink(missing_ok=True)
        elif self._sizes.pop(name, None) is not None:
            with self._errors():
                self._files.rm_file(f"{self._root}/{name}")

    @contextmanager
    def _errors(self) -> Iterator[Any]:
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            fix = "Check the address and the credentials, then run the same command again: what is finished is kept"
            raise StorageError(f"cannot reach {self.url}: {error}", fix) from error
